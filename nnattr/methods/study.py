"""A study: one question of a causal method, checked before anything runs.

A study is a model, a task, a metric, a site, positions and a direction. In the ``"denoising"``
direction clean activations are put into the corrupted run, in the ``"noising"`` direction corrupted
ones into the clean run; *base* is the run patched into, *source* the run the activations come from.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from nnattr.backend import JobFunction
from nnattr.errors import MetricError, TaskError
from nnattr.methods.chunks import in_chunks
from nnattr.methods.frame import Frame
from nnattr.methods.positions import Positions, spots
from nnattr.metrics import Metric, describe
from nnattr.model.runs import TOKENS_PER_FORWARD
from nnattr.model.sites import SiteName
from nnattr.model.view import Model
from nnattr.results import Provenance, Scores
from nnattr.tasks import IdGroups, Task
from nnattr.tokens import Tokens, prompt_ids

Direction: TypeAlias = Literal["denoising", "noising"]


@dataclass(frozen=True)
class Study:
    """One question put to a model; see the module.

    ``job`` computes ``method``; ``by_layer`` says whether its layers can be asked for apart.
    """

    job: JobFunction
    method: str
    by_layer: bool
    model: Model
    task: Task
    metric: Metric
    site: SiteName
    positions: Positions
    direction: Direction
    normalized: bool

    def __post_init__(self) -> None:
        if self.direction not in ("denoising", "noising"):
            raise TaskError(
                f"direction is {self.direction!r}; expected 'denoising' (clean activations into "
                "the corrupted run) or 'noising' (the reverse)."
            )
        if not callable(self.metric) or isinstance(self.metric, type):
            raise MetricError(
                f"{self.metric!r} is not a metric; pass an instance such as LogitDiff(), or a "
                "function (logits, batch) -> [example]."
            )
        for name in getattr(self.metric, "needs", ()):
            if not getattr(self.task, name):
                raise MetricError(f"{describe(self.metric)} needs {name}, and the task has none.")
        _fits(self.model, self.task)

    def run(self, checkpoint: str | Path | None = None) -> Scores:
        """Compute the answer where the model's backend says."""
        frame = self.frame()
        return frame.scores(*in_chunks(self, frame, checkpoint))

    @property
    def units(self) -> int:
        """How many parts of the site are patched apart: the heads of z, else one."""
        return self.model.n_heads if self.site == "z" else 1

    def payload(self) -> dict[str, Any]:
        """What travels to the job: tensors, plain values and the metric."""
        runs = {"clean": self.task.clean_tokens, "corrupted": self.task.corrupted_tokens}
        order = ("corrupted", "clean") if self.direction == "denoising" else ("clean", "corrupted")
        options: dict[str, Any] = {"use_cache": False}
        if getattr(self.metric, "last_only", False) and self._keeps_last():
            options["logits_to_keep"] = 1
        return {
            "base": _prompts(runs[order[0]]),
            "source": _prompts(runs[order[1]]),
            "base_is_clean": order[0] == "clean",
            "answers": _answers(self.task),
            "embed": self.model.spec.embed,
            "places": self.model.places(self.site),
            "units": self.units,
            "spots": spots(self.task, self.positions),
            "metric": self.metric,
            "options": options,
            "rows": max(1, TOKENS_PER_FORWARD // self.task.width),
        }

    def _keeps_last(self) -> bool:
        """Whether the model can leave out the logits of all positions but the last."""
        forward = type(self.model.nn._module).forward
        return "logits_to_keep" in inspect.signature(forward).parameters

    def frame(self) -> Frame:
        """What the answer's numbers will mean."""
        chosen = spots(self.task, self.positions)
        return Frame(
            layers=self.model.n_layers,
            units=self.units,
            cells=len(chosen),
            has_heads=self.site == "z",
            tokens=self.task.labels if self.positions == "each" else None,
            absent=tuple(map(tuple, (~chosen.any(-1)).T.tolist())),
            direction=self.direction,
            normalized=self.normalized,
            prompts=self.task.clean,
            provenance=self._provenance(),
        )

    def _provenance(self) -> Provenance:
        positions = self.positions
        return Provenance(
            method=self.method,
            arguments={
                "site": self.site,
                "positions": positions if isinstance(positions, str | int) else list(positions),
                "direction": self.direction,
                "normalized": self.normalized,
            },
            metric=describe(self.metric),
            model=self.model.name,
            revision=self.model.revision,
            architecture=self.model.architecture,
            backend=self.model.backend.name,
            dtype=self.model.dtype,
            task=self.task.name,
            task_hash=self.task.hash,
            versions={
                name: version(name) for name in ("nnattr", "nnsight", "torch", "transformers")
            },
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def _fits(model: Model, task: Task) -> None:
    """Check that the task was encoded for this model and fits its context."""
    limit = model.context_length
    if limit is not None and task.width > limit:
        longest = max(task.clean, key=len)
        raise TaskError(
            f"The prompt {longest[:60]!r}... is {task.width} tokens long, and {model.name} takes "
            f"{limit}."
        )
    mine = prompt_ids(model.tokenizer, task.clean[0])
    if task.clean_tokens.ids[0, task.clean_tokens.padding[0] :].tolist() != list(mine):
        raise TaskError(
            f"The task was encoded with another tokenizer than that of {model.name}; make it with "
            "tokenizer=model.tokenizer."
        )


def _prompts(tokens: Tokens) -> dict[str, Tensor]:
    return {"ids": tokens.ids, "mask": tokens.mask}


def _answers(task: Task) -> dict[str, Tensor]:
    """Both sides' token ids [example, word], filled up with 0 where the mask is False."""
    sides: dict[str, IdGroups] = {
        "answers": task.answer_ids,
        "wrong_answers": task.wrong_answer_ids,
    }
    packed: dict[str, Tensor] = {}
    for name, groups in sides.items():
        if groups:
            width = max(map(len, groups))
            packed[name] = torch.tensor([[*group, *[0] * (width - len(group))] for group in groups])
            packed[f"{name}_mask"] = torch.tensor(
                [[i < len(group) for i in range(width)] for group in groups]
            )
    return packed
