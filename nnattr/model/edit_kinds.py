"""The kinds of edits as values, before they are made ready for a model: `nnattr.edit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from nnattr.arguments import Natural, Seed, checked
from nnattr.errors import TaskError
from nnattr.graph import Part, parse
from nnattr.model.prompts import Prompts
from nnattr.model.sites import SiteName
from nnattr.tasks import Task
from nnattr.tasks.positions import Positions, integers

#: A part: its name, a (layer, head), or a `Part`.
PartName: TypeAlias = str | tuple[int, int] | Part
Replacement: TypeAlias = Literal["zero", "mean", "mean_positional", "resample"]
Direction: TypeAlias = Literal["denoising", "noising"]


@dataclass(frozen=True)
class Ablation:
    """Parts replaced in every run; made by `ablate`."""

    parts: tuple[Part, ...]
    keep: bool
    replacement: Replacement
    dataset: Prompts | None
    positions: Positions | None
    seed: int

    @property
    def of_positions(self) -> bool:
        """Whether learned position embeddings are among its parts."""
        return any(part.kind == "pos_embed" for part in self.parts)


@dataclass(frozen=True)
class Swap:
    """Parts that take the values of another run in every run; made by `replace`."""

    parts: tuple[Part, ...]
    task: Task
    direction: Direction
    positions: Positions | None


@dataclass(frozen=True, eq=False)
class Steering:
    """A vector added in every run; made by `steer`."""

    site: SiteName
    layer: int
    vector: Tensor
    scale: float
    positions: Positions | None


#: What `nnattr.edited` takes.
Given: TypeAlias = Ablation | Swap | Steering


@checked
def ablate(
    parts: PartName | Sequence[PartName],
    replacement: Replacement = "zero",
    *,
    dataset: Prompts | None = None,
    positions: Positions = "all",
    keep: bool = False,
    seed: Seed = 0,
) -> Ablation:
    """Parts of the model that no longer say anything about the prompt.

    Args:
        parts: one or several: ``(layer, head)`` or ``"L1H0"``, ``"M3"``, ``"L1 attn"``, ``"L1N5"``,
            ``"L1H0.q"``, ``"L1KV0.k"``, ``"L1 pre"``; or ``"pos_embed"``, the learned position
            embeddings, alone and with ``"zero"`` or ``"mean"``.
        replacement: ``"zero"``; ``"mean"`` over all tokens of the dataset; ``"mean_positional"``,
            over its prompts, position by position (all of one length); ``"resample"``, what another
            of its prompts has there, drawn for each example among those of its length.
        dataset: prompts for the others than zero, as texts, a task or tokens.
        positions: which tokens, see `nnattr.tasks.positions`: ``"all"``, ``"last"``, a position
            counted from each prompt's own first token (or, negative, from its end), a list, or the
            name of a span where the model is asked about a task.
        keep: ablate every part of these kinds but these: is this set enough?
        seed: draws the prompts of ``"resample"``.

    In generation new tokens have the positions after the prompt. A mean or zero at ``"all"``
    positions holds there as well; ``"mean_positional"`` and ``"resample"`` end with the prompt.

    Raises:
        TaskError: no parts or positions, or values of a dataset without one, or the other way
            round.
        ArchError: something that is not the name of a part.
    """
    if (replacement != "zero") != (dataset is not None):
        raise TaskError(
            f"replacement is {replacement!r} and dataset is {'' if dataset is None else 'not '}"
            "None; a mean needs the prompts that it is taken over, resampling those that it draws "
            "from, and a zero needs none."
        )
    found = Ablation(_parts(parts), keep, replacement, dataset, _positions(positions), seed)
    whole = len(found.parts) == 1 and not keep and found.positions is None
    if found.of_positions and not (whole and replacement in ("zero", "mean")):
        raise TaskError(
            "Position embeddings are ablated in an edit of their own, with 'zero' or 'mean', and "
            "at all positions."
        )
    return found


@checked
def replace(
    parts: PartName | Sequence[PartName],
    *,
    task: Task,
    direction: Direction = "denoising",
    positions: Positions = "all",
) -> Swap:
    """Parts of the model take the values that they have in one run of a task.

    Example *i* gets those of the task's example *i*, each position those of the same one; so the
    model is then asked about as many prompts, of the same lengths. A model in whose every run a
    patch stays.

    Args:
        parts: as `ablate`.
        task: whose values; its prompts alone, without answers that stand behind them.
        direction: from which run, as in `activation_patching`: ``"denoising"`` puts clean
            activations in, ``"noising"`` corrupted ones.
        positions: as `ablate`; ``"all"`` are those of the prompt. New tokens of a generation, and
            answers behind a prompt, are left as they are.

    Raises:
        TaskError: no parts or positions, or corrupted activations of a task without a second run.
        ArchError: something that is not the name of a part.
    """
    if direction == "noising":
        _ = task.corrupted_tokens  # refuses a task that has none
    return Swap(_parts(parts), task, direction, _positions(positions))


@checked
def steer(
    layer: Natural,
    vector: Tensor | np.ndarray,
    *,
    site: SiteName = "resid_pre",
    positions: Positions = "all",
    scale: float = 1.0,
) -> Steering:
    """A vector that is added to an activation.

    Args:
        layer: of which layer.
        vector: what is added [width of the site]; of a difference of two means, for example.
        site: where; ``"resid_pre"`` is the residual stream that enters the layer.
        positions: to which tokens, as `ablate`. In generation new tokens have the positions after
            the prompt: ``"all"`` includes them, and negative ones count from the prompt's end.
        scale: how many times.

    Raises:
        TaskError: a vector that is not finite numbers in one row, or no longer so when scaled, or
            no positions.
    """
    if isinstance(vector, np.ndarray) and vector.dtype.kind == "f":
        vector = torch.from_numpy(vector.astype(np.float64))  # a copy: torch takes no view reversed
    if not isinstance(vector, Tensor) or vector.ndim != 1 or not vector.is_floating_point():
        raise TaskError(
            f"vector has the shape {tuple(vector.shape)} and dtype {vector.dtype}; expected finite "
            "floating-point numbers [width of the site]."
        )
    vector = vector.detach().float().cpu().clone()
    if not (vector * scale).isfinite().all():
        raise TaskError(f"vector times scale {scale} is not finite in float32; check both.")
    return Steering(site, layer, vector, scale, _positions(positions))


def _parts(given: PartName | Sequence[PartName]) -> tuple[Part, ...]:
    one = isinstance(given, str | Part) or (
        len(given) == 2 and all(isinstance(part, int) for part in given)
    )
    found = tuple(parse(part) for part in ([given] if one else given))  # type: ignore[list-item]
    if not found:
        raise TaskError("No parts were given to edit; name at least one.")
    return found


def _positions(given: Positions) -> Positions | None:
    """Positions as plain values; None for all.

    Raises:
        TaskError: there are none, or ``"each"``, which is many questions and one edit.
    """
    if isinstance(given, str):
        if given == "each":
            raise TaskError("positions is 'each', and an edit changes all of its own: say 'all'.")
        return None if given == "all" else given
    if not (found := integers(given)):
        raise TaskError("No positions were given; name at least one.")
    return found
