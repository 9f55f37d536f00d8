"""What every causal method shares: checking the question, packing the job, labelling the answer.

A study is a model, a task, a metric, a site, positions and a direction. In the ``"denoising"``
direction clean activations are put into the corrupted run, in the ``"noising"`` direction corrupted
ones into the clean run; *base* is the run patched into, *source* the run the activations come from.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from nnattr.backend import Job, Outcome
from nnattr.errors import BackendError, MetricError, TaskError
from nnattr.methods.positions import Positions, spots
from nnattr.metrics import Metric, describe
from nnattr.model.runs import TOKENS_PER_FORWARD
from nnattr.model.sites import SiteName
from nnattr.model.view import Model
from nnattr.results import Provenance, Scores
from nnattr.tasks import IdGroups, Task
from nnattr.tokens import Tokens, prompt_ids

Direction: TypeAlias = Literal["denoising", "noising"]

#: A job that cannot go on returns ``{"refused": (kind, reason)}``; this is what we raise for it.
REFUSALS: dict[str, Callable[[str], Exception]] = {"metric": MetricError, "backend": BackendError}


@dataclass(frozen=True)
class Study:
    """One question put to a model; see the module."""

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

    def payload(self) -> dict[str, Any]:
        """What travels to the job: tensors, plain values and the metric."""
        runs = {"clean": self.task.clean_tokens, "corrupted": self.task.corrupted_tokens}
        base, source = ("corrupted", "clean") if self.direction == "denoising" else (
            "clean",
            "corrupted",
        )
        options: dict[str, Any] = {"use_cache": False}
        if getattr(self.metric, "last_only", False) and self._keeps_last():
            options["logits_to_keep"] = 1
        return {
            "base": _prompts(runs[base]),
            "source": _prompts(runs[source]),
            "base_is_clean": base == "clean",
            "answers": _answers(self.task),
            "places": self.model.places(self.site),
            "units": self.model.n_heads if self.site == "z" else 1,
            "spots": spots(self.task, self.positions),
            "metric": self.metric,
            "options": options,
            "rows": max(1, TOKENS_PER_FORWARD // self.task.width),
        }

    def _keeps_last(self) -> bool:
        """Whether the model can leave out the logits of all positions but the last."""
        forward = type(self.model.nn._module).forward
        return "logits_to_keep" in inspect.signature(forward).parameters

    def ask(self, job: Job, method: str, **more: Any) -> Scores:
        """Run ``job`` on the payload and ``more``, and label what it returns.

        The job returns ``change`` [example, layer, unit, cell] and the metric of both runs,
        ``base`` and ``source`` [example].
        """
        payload = {**self.payload(), **more}
        outcome = self.model.run(job, payload, label=method.replace("_", " "))
        if "refused" in outcome.values:
            kind, reason = outcome.values["refused"]
            raise REFUSALS[kind](f"{method} with {describe(self.metric)}: {reason}")
        base, source = (outcome.values[key].double().numpy() for key in ("base", "source"))
        _check_finite(self, base, source)
        denoising = self.direction == "denoising"
        clean, corrupted = (source, base) if denoising else (base, source)
        examples = np.arange(len(self.task))
        baselines = xr.DataArray(
            np.stack([clean, corrupted]),
            dims=("run", "example"),
            coords={"run": ["clean", "corrupted"], "example": examples},
        )
        raw = self._labelled(outcome.values["change"])
        scale = self._gap(base, source) if self.normalized else 1.0
        return Scores(raw, baselines, scale, self._provenance(method, outcome))

    def _labelled(self, change: Tensor) -> xr.DataArray:
        """The changes as a labelled array; NaN where an example has no such position."""
        absent = ~spots(self.task, self.positions).any(-1)  # [cell, example]
        values = change.float().masked_fill(absent.T[:, None, None, :], float("nan")).numpy()
        dims: tuple[str, ...] = ("example", "layer", "head", "pos")
        coords: dict[str, Any] = {
            dim: np.arange(size) for dim, size in zip(dims, values.shape, strict=True)
        }
        coords["token"] = ("pos", list(self.task.labels)) if self.positions == "each" else None
        array = values
        if self.positions != "each":
            array, dims = array[..., 0], dims[:-1]
            coords = {key: value for key, value in coords.items() if key not in ("pos", "token")}
        if self.site != "z":
            array, dims = array[:, :, 0], tuple(dim for dim in dims if dim != "head")
            del coords["head"]
        return xr.DataArray(array, dims=dims, coords=coords)

    def _gap(self, base: np.ndarray, source: np.ndarray) -> float:
        """The task's mean change from the run patched into to the other run."""
        gap = float(np.mean(source - base))
        size = float(np.mean(np.abs(source)) + np.mean(np.abs(base)))
        if abs(gap) <= 1e-5 * max(size, 1e-3):
            raise TaskError(
                f"{describe(self.metric)} is {base.mean():.6g} in the run patched into and "
                f"{source.mean():.6g} in the other, on average: there is nothing to attribute. Use "
                "prompts on which the runs differ, another metric, or normalized=False."
            )
        return gap

    def _provenance(self, method: str, outcome: Outcome) -> Provenance:
        positions = self.positions
        return Provenance(
            method=method,
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
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            seconds=round(outcome.seconds, 4),
            jobs=outcome.jobs,
            bytes_sent=outcome.bytes_sent,
            bytes_received=outcome.bytes_received,
        )


def _fits(model: Model, task: Task) -> None:
    """Whether the task was encoded for this model and fits its context."""
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


def _check_finite(study: Study, base: np.ndarray, source: np.ndarray) -> None:
    for values, run in ((base, "patched into"), (source, "patched from")):
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise MetricError(
                f"{describe(study.metric)} is {values[bad[0]]} on the run {run} of example "
                f"{bad[0]}, {study.task.clean[bad[0]]!r}. Check the model's weights for NaN or "
                f"overflow (`nnattr doctor {study.model.name}`), or use dtype='float32'."
            )


def _prompts(tokens: Tokens) -> dict[str, Tensor]:
    return {"ids": tokens.ids, "mask": tokens.mask}


def _answers(task: Task) -> dict[str, Tensor]:
    """Both sides' token ids [example, word], filled up with 0 where the mask is False."""
    packed: dict[str, Tensor] = {}
    sides: dict[str, IdGroups] = {"answers": task.answer_ids, "wrong_answers": task.wrong_answer_ids}
    for name, groups in sides.items():
        groups = groups or ((),) * len(task)
        width = max(map(len, groups))
        packed[name] = torch.tensor([[*group, *[0] * (width - len(group))] for group in groups])
        packed[f"{name}_mask"] = torch.tensor(
            [[i < len(group) for i in range(width)] for group in groups]
        )
    if not task.wrong_answer_ids:
        del packed["wrong_answers"], packed["wrong_answers_mask"]
    return packed
