"""nnattr: which parts of a language model cause a behaviour?

::

    import nnattr

    model = nnattr.load("teaching-gpt2")
    task = nnattr.tasks.ioi(model.tokenizer, n=8, seed=0)
    scores = nnattr.activation_patching(model, task, nnattr.LogitDiff(), site="z")
    scores.top(5)
    scores.plot().show()

Names are imported when they are first used, so that ``import nnattr`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from nnattr import drawing

if TYPE_CHECKING:
    from nnattr import metrics, plots, tasks
    from nnattr.arch.spec import QKV, ArchSpec, Place
    from nnattr.backend import NDIF, Local, Simulated
    from nnattr.errors import (
        ArchError,
        BackendError,
        MetricError,
        NnattrError,
        ResultError,
        TaskError,
    )
    from nnattr.methods.ablation import ablate, ablate_together
    from nnattr.methods.activation_patching import activation_patching
    from nnattr.methods.attention_patterns import attention_patterns
    from nnattr.methods.attribution_patching import attribution_patching
    from nnattr.methods.capture import capture
    from nnattr.methods.circuits import ov_circuit, position_pattern, qk_circuit
    from nnattr.methods.compare_runs import compare_runs
    from nnattr.methods.composition import composition
    from nnattr.methods.copying import copying_score, name_mover_score
    from nnattr.methods.decompose_attention import decompose_attention
    from nnattr.methods.detect_heads import detect_heads
    from nnattr.methods.direct_logit_attribution import attention_vs_mlp, direct_logit_attribution
    from nnattr.methods.generate import generate
    from nnattr.methods.head_weights import head_weights
    from nnattr.methods.inspect_prompt import inspect_prompt
    from nnattr.methods.logit_lens import logit_lens
    from nnattr.methods.most_frequent_answers import most_frequent_answers
    from nnattr.methods.next_token_attribution import next_token_attribution
    from nnattr.methods.submit import Job, submit
    from nnattr.metrics import (
        KL,
        GroupLogitDiff,
        GroupLogProbDiff,
        GroupProbDiff,
        LogitDiff,
        LogProb,
        Loss,
        Prob,
        SequenceLogProb,
    )
    from nnattr.model.verify import verify
    from nnattr.model.view import Model, load
    from nnattr.results import HeadScores, Lens, Patterns, Scores, agreement, load_result
    from nnattr.tasks import Task

__version__ = version("nnattr")

#: The public names and the module that each lives in; modules stand for themselves.
_HOME = {
    "metrics": "nnattr.metrics",
    "plots": "nnattr.plots",
    "tasks": "nnattr.tasks",
    "ArchSpec": "nnattr.arch.spec",
    "Place": "nnattr.arch.spec",
    "QKV": "nnattr.arch.spec",
    "Local": "nnattr.backend",
    "NDIF": "nnattr.backend",
    "Simulated": "nnattr.backend",
    "ArchError": "nnattr.errors",
    "BackendError": "nnattr.errors",
    "MetricError": "nnattr.errors",
    "NnattrError": "nnattr.errors",
    "ResultError": "nnattr.errors",
    "TaskError": "nnattr.errors",
    "ablate": "nnattr.methods.ablation",
    "ablate_together": "nnattr.methods.ablation",
    "activation_patching": "nnattr.methods.activation_patching",
    "attention_patterns": "nnattr.methods.attention_patterns",
    "attention_vs_mlp": "nnattr.methods.direct_logit_attribution",
    "attribution_patching": "nnattr.methods.attribution_patching",
    "capture": "nnattr.methods.capture",
    "compare_runs": "nnattr.methods.compare_runs",
    "copying_score": "nnattr.methods.copying",
    "detect_heads": "nnattr.methods.detect_heads",
    "ov_circuit": "nnattr.methods.circuits",
    "position_pattern": "nnattr.methods.circuits",
    "qk_circuit": "nnattr.methods.circuits",
    "composition": "nnattr.methods.composition",
    "decompose_attention": "nnattr.methods.decompose_attention",
    "direct_logit_attribution": "nnattr.methods.direct_logit_attribution",
    "generate": "nnattr.methods.generate",
    "head_weights": "nnattr.methods.head_weights",
    "inspect_prompt": "nnattr.methods.inspect_prompt",
    "logit_lens": "nnattr.methods.logit_lens",
    "most_frequent_answers": "nnattr.methods.most_frequent_answers",
    "name_mover_score": "nnattr.methods.copying",
    "next_token_attribution": "nnattr.methods.next_token_attribution",
    "Job": "nnattr.methods.submit",
    "submit": "nnattr.methods.submit",
    "GroupLogProbDiff": "nnattr.metrics",
    "GroupLogitDiff": "nnattr.metrics",
    "GroupProbDiff": "nnattr.metrics",
    "KL": "nnattr.metrics",
    "LogProb": "nnattr.metrics",
    "LogitDiff": "nnattr.metrics",
    "Loss": "nnattr.metrics",
    "Prob": "nnattr.metrics",
    "SequenceLogProb": "nnattr.metrics",
    "verify": "nnattr.model.verify",
    "Model": "nnattr.model.view",
    "load": "nnattr.model.view",
    "HeadScores": "nnattr.results",
    "Lens": "nnattr.results",
    "Patterns": "nnattr.results",
    "Scores": "nnattr.results",
    "agreement": "nnattr.results",
    "load_result": "nnattr.results",
    "Task": "nnattr.tasks",
}

__all__ = [
    "KL",
    "NDIF",
    "QKV",
    "ArchError",
    "ArchSpec",
    "BackendError",
    "GroupLogProbDiff",
    "GroupLogitDiff",
    "GroupProbDiff",
    "HeadScores",
    "Job",
    "Lens",
    "Local",
    "LogProb",
    "LogitDiff",
    "Loss",
    "MetricError",
    "Model",
    "NnattrError",
    "Patterns",
    "Place",
    "Prob",
    "ResultError",
    "Scores",
    "SequenceLogProb",
    "Simulated",
    "Task",
    "TaskError",
    "ablate",
    "ablate_together",
    "activation_patching",
    "agreement",
    "attention_patterns",
    "attention_vs_mlp",
    "attribution_patching",
    "capture",
    "compare_runs",
    "composition",
    "copying_score",
    "decompose_attention",
    "detect_heads",
    "direct_logit_attribution",
    "generate",
    "head_weights",
    "inspect_prompt",
    "load",
    "load_result",
    "logit_lens",
    "metrics",
    "most_frequent_answers",
    "name_mover_score",
    "next_token_attribution",
    "ov_circuit",
    "plots",
    "position_pattern",
    "qk_circuit",
    "submit",
    "tasks",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"nnattr has no {name!r}; it has {', '.join(__all__)}")
    home = import_module(_HOME[name])
    value = home if name in _MODULES else getattr(home, name)
    globals()[name] = value
    return value


_MODULES = ("metrics", "plots", "tasks")


def _figures() -> None:
    """Load what draws results; importing it fills the table in `nnattr.drawing`."""
    from nnattr import plots  # noqa: F401


drawing.filled_by(_figures)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
