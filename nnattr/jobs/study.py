"""A study: one question of a causal method, checked before anything runs.

A study is a model, a task, a metric, a site, positions and a direction. In the ``"denoising"``
direction clean activations are put into the corrupted run, in the ``"noising"`` direction corrupted
ones into the clean run; *base* is the run patched into, *source* the run the activations come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from nnattr.backend import JobFunction
from nnattr.errors import MetricError, TaskError
from nnattr.jobs.asked import EVERYTHING, Asked
from nnattr.jobs.estimating import Estimating
from nnattr.jobs.frame import Frame
from nnattr.jobs.layout import PatchSite, layout, units
from nnattr.jobs.record import provenance_of
from nnattr.jobs.replacement import Fill
from nnattr.metrics import Metric, answer_fields, check, describe, read_tokens
from nnattr.model.model import Model
from nnattr.model.prompts import fits
from nnattr.results import Provenance
from nnattr.runs.portions import TOKENS_PER_FORWARD
from nnattr.tasks import Task
from nnattr.tasks.contrast import both_readings, uneven
from nnattr.tasks.positions import Positions, labels, spots
from nnattr.tokens import Tokens

Direction: TypeAlias = Literal["denoising", "noising"]


@dataclass(frozen=True)
class Study:
    """One question put to a model; see the module.

    ``job`` computes ``method``; ``by_layer`` says whether one job may cover only some of the
    layers, ``jobs_of`` what messages call these. With a ``fill`` the source is not the task's other
    run but what an ablation puts in; with an ``estimating`` cells are not patched but estimated.
    ``asked`` says which cells are asked about, and ``together`` whether they are replaced at once,
    which gives one number for each example, or one for each of its positions.
    """

    jobs_of: ClassVar[str] = "layers"

    job: JobFunction
    method: str
    by_layer: bool
    model: Model
    task: Task
    metric: Metric
    site: PatchSite
    positions: Positions
    direction: Direction
    normalized: bool
    engine: str = "suffix"
    fill: Fill | None = None
    max_memory: int | None = None
    asked: Asked = EVERYTHING
    together: bool = False
    estimating: Estimating | None = None

    def __post_init__(self) -> None:
        fits(self.model, self.task)
        check(self.metric, self.task)
        if self.reads_twice:
            self._require_even()
            self._require_signs()
        if self.by_position and not self.together:
            raise MetricError(
                f"{describe(self.metric)} is a number for every position, and {self.method} gives "
                "one for every cell. Ask about some cells at once: ablate_together, or "
                "activation_patching(..., together=True)."
            )

    @property
    def by_position(self) -> bool:
        """Whether the metric is a number for every position."""
        return bool(getattr(self.metric, "per_position", False))

    @property
    def each(self) -> bool:
        """Whether every position is a cell."""
        return isinstance(self.positions, str) and self.positions == "each"

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are asked about."""
        chosen = self.asked.layers
        return tuple(range(self.model.n_layers)) if chosen is None else chosen

    @property
    def reads_twice(self) -> bool:
        """Whether the metric compares two answers of several tokens, each in a reading of its own.

        See `nnattr.tasks.contrast`.
        """
        return bool(getattr(self.metric, "contrasts", False))

    def _require_even(self) -> None:
        """Refuse what would compare other tokens, or other prompts, in the two readings."""
        kind = self.fill.kind if self.fill else ""
        if kind == "resample":
            raise TaskError(
                f"{describe(self.metric)} reads each prompt with two answers, and two prompts "
                "would be drawn for them. Use replacement='mean'."
            )
        example = uneven(self.task)
        if example is not None and (self.each or kind == "mean_positional"):
            sizes = len(self.task.sequence_ids[example]), len(self.task.wrong_sequence_ids[example])
            raise TaskError(
                f"The answers of example {example} are {sizes[0]} and {sizes[1]} tokens, so that "
                "positions behind the prompt do not correspond. Use positions='all', 'last' or "
                "numbers, and for an ablation replacement='mean'."
            )

    def _require_signs(self) -> None:
        """Refuse the difference of two magnitudes, which is none."""
        if self.estimating is not None and self.estimating.magnitudes:
            raise TaskError(
                f"{describe(self.metric)} compares two readings of each prompt, and "
                f"estimator={self.estimating.name!r} gives magnitudes, whose difference says "
                "nothing. Use another estimator."
            )

    def payload(self, layers: Sequence[int] | None = None) -> dict[str, Any]:
        """What travels to the job, for these layers: tensors, plain values and the metric.

        Cells that are replaced together are so in one job, whatever the layers.
        """
        task = both_readings(self.task) if self.reads_twice else self.task
        order = ("corrupted", "clean") if self.direction == "denoising" else ("clean", "corrupted")
        runs = {"clean": task.clean_tokens}
        if self.fill is None:
            runs["corrupted"] = task.corrupted_tokens
        else:
            runs["corrupted"] = task.clean_tokens if self.reads_twice else self.fill.source
        last_only = bool(getattr(self.metric, "last_only", False))
        keeps = last_only and self.model.accepts("logits_to_keep")
        layers = list(self.layers if layers is None or self.together else layers)
        tokens, answers = read_tokens(self.metric, answer_fields(task))
        return {
            "base": self._batch(task, runs[order[0]]),
            "source": self._batch(task, runs[order[1]]),
            "base_is_clean": order[0] == "clean",
            "answers": answers,
            "read_tokens": tokens,
            "metric": self.metric,
            "last_only": last_only,
            "places": spots(task, "each") if self.by_position else None,
            "layers": layers,
            **self.asked.payload(layers),
            "units": units(self.model, self.site)[1],
            "spots": spots(task, self.positions),
            "rows": max(1, TOKENS_PER_FORWARD // task.width),
            "tokens": TOKENS_PER_FORWARD,
            "max_memory": self.max_memory,
            "engine": self.engine,
            "layout": {
                **layout(self.model, "pattern" if self._softens else self.site),
                "options": {"logits_to_keep": 1} if keeps else {},
                "takes_positions": self.model.accepts("position_ids"),
            },
            **(self.fill.payload(self.model, self.task) if self.fill else {"replacement": None}),
            **self._estimate,
        }

    @property
    def _softens(self) -> bool:
        """Whether queries or keys are estimated by what they do to patterns."""
        return self.estimating is not None and self.estimating.through(self.site) != ""

    @property
    def _estimate(self) -> dict[str, Any]:
        if self.estimating is None:
            return {}
        return {"estimate": self.estimating.payload(self.model, self.site)}

    def _batch(self, task: Task, tokens: Tokens) -> dict[str, Any]:
        """What travels of one run of a task, which may be read twice."""
        return self.model.batch(tokens, task, readings=1 + self.reads_twice)

    def frame(self) -> Frame:
        """What the answer's numbers will mean."""
        each = self.by_position or (self.each and not self.together)
        there = spots(self.task, "each" if each else self.positions)
        there = there if each else there.any(0, keepdim=True)
        unit, count = (None, 1) if self.together else units(self.model, self.site)
        return Frame(
            layers=1 if self.together else self.model.n_layers,
            units=count,
            cells=len(there),
            unit=unit,
            places=tuple(zip(labels(self.task), self.task.labels, strict=True)) if each else None,
            absent=tuple(map(tuple, (~there.any(-1)).T.tolist())),
            asked_layers=None if self.together else self.asked.layers,
            asked=None if self.together else self.asked.cells,
            together=self.together,
            by_position=self.by_position,
            direction=self.direction,
            normalized=self.normalized,
            contrast=self.reads_twice,
            complete=self.estimating.complete if self.estimating else "",
            magnitudes=bool(self.estimating and self.estimating.magnitudes),
            prompts=self.task.clean,
            provenance=self._provenance(),
        )

    def _in_words(self) -> str:
        """Which cells are asked about, in words; nothing where all are, one by one."""
        one_by_one = self.asked is EVERYTHING and not self.together
        if one_by_one or self.asked.pos_embed:
            return ""
        per_layer = units(self.model, self.site)[1]
        if self.each:
            per_layer *= len(labels(self.task))
        whole = self.model.n_layers * per_layer
        n = self.asked.count(self.model.n_layers, per_layer)
        done = "replaced at once" if self.together else "asked for"
        return f"{n} of {whole} cells were {done}"

    def _normed_direction(self) -> dict[str, Any]:
        return {"direction": self.direction, "normalized": self.normalized}

    def _provenance(self) -> Provenance:
        return provenance_of(
            self.model,
            self.task,
            method=self.method,
            arguments={
                "site": self.site,
                "positions": self.positions,
                **(self.fill.arguments if self.fill else self._normed_direction()),
                **(self.estimating.arguments(self.model) if self.estimating else {}),
                **({} if self.max_memory is None else {"max_memory": self.max_memory}),
                **self.asked.said,
            },
            metric=describe(self.metric),
        ).model_copy(update={"asked": self._in_words()})
