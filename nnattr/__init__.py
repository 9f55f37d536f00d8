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

if TYPE_CHECKING:
    from nnattr import metrics, plots, tasks
    from nnattr.arch.spec import ArchSpec, Place
    from nnattr.backend import NDIF, Local, Simulated
    from nnattr.errors import (
        ArchError,
        BackendError,
        MetricError,
        NnattrError,
        ResultError,
        TaskError,
    )
    from nnattr.methods.activation_patching import activation_patching
    from nnattr.methods.agreement import agreement
    from nnattr.methods.attribution_patching import attribution_patching
    from nnattr.methods.submit import Job, submit
    from nnattr.metrics import KL, LogitDiff, LogProb, Loss, Prob
    from nnattr.model.verify import verify
    from nnattr.model.view import Model, load
    from nnattr.results import Scores
    from nnattr.tasks import Task

__version__ = version("nnattr")

#: The public names and the module that each lives in; modules stand for themselves.
_HOME = {
    "metrics": "nnattr.metrics",
    "plots": "nnattr.plots",
    "tasks": "nnattr.tasks",
    "ArchSpec": "nnattr.arch.spec",
    "Place": "nnattr.arch.spec",
    "Local": "nnattr.backend",
    "NDIF": "nnattr.backend",
    "Simulated": "nnattr.backend",
    "ArchError": "nnattr.errors",
    "BackendError": "nnattr.errors",
    "MetricError": "nnattr.errors",
    "NnattrError": "nnattr.errors",
    "ResultError": "nnattr.errors",
    "TaskError": "nnattr.errors",
    "activation_patching": "nnattr.methods.activation_patching",
    "agreement": "nnattr.methods.agreement",
    "attribution_patching": "nnattr.methods.attribution_patching",
    "Job": "nnattr.methods.submit",
    "submit": "nnattr.methods.submit",
    "KL": "nnattr.metrics",
    "LogProb": "nnattr.metrics",
    "LogitDiff": "nnattr.metrics",
    "Loss": "nnattr.metrics",
    "Prob": "nnattr.metrics",
    "verify": "nnattr.model.verify",
    "Model": "nnattr.model.view",
    "load": "nnattr.model.view",
    "Scores": "nnattr.results",
    "Task": "nnattr.tasks",
}

__all__ = [
    "KL",
    "NDIF",
    "ArchError",
    "ArchSpec",
    "BackendError",
    "Job",
    "Local",
    "LogProb",
    "LogitDiff",
    "Loss",
    "MetricError",
    "Model",
    "NnattrError",
    "Place",
    "Prob",
    "ResultError",
    "Scores",
    "Simulated",
    "Task",
    "TaskError",
    "activation_patching",
    "agreement",
    "attribution_patching",
    "load",
    "metrics",
    "plots",
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


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
