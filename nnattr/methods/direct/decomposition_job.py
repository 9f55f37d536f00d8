"""The job behind direct logit attribution: read the parts, weigh each, return numbers.

Everything here travels to where the model is: torch and plain values only. The weights are used
through the model, inside the trace, and what is assumed about them is measured in the same run:
the largest errors, relative to the largest values, of

- ``residual stream``: its last state against the sum of its parts,
- ``norms``: the norms against the linear maps that stand for them,
- ``logits``: the model's own against those of the linear map,
- ``units``: attention (or MLP) against the sum of its heads (or neurons) and the bias.

A model that is further off than rounding explains is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.maps.norm import apply, per_unit, transpose
from nnattr.maps.parts import Split, by_head, output_map, token_part, with_added
from nnattr.methods.direct.direction import Direction, Head, View, final_view
from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.logits import require_number
from nnattr.runs.places import read
from nnattr.runs.portions import Portions, RefusedError
from nnattr.runs.tolerance import weights_tolerance


class Parts:
    """What the residual stream is taken apart into.

    Attributes:
        reads: (name, path, side) of all that is read, in forward order; the last is the final
            residual stream.
        parts: (name, factor) of what it is the sum of.
        splits: the parts that fall apart further.
        added: vectors that edits add to the stream, see `nnattr.maps.parts.with_added`.
        heads: into how many heads; 0 means neurons.
        end: what stands behind it.
        embed: the path of the token embedding.
        whole: whether the parts add up to the final residual stream.
        each: whether every part is normed by itself.
        keeps: whether the model can leave out logits.
    """

    def __init__(
        self,
        *,
        reads: list[tuple[str, str, str]],
        parts: list[tuple[str, float]],
        splits: list[dict[str, Any]],
        added: list[tuple[str, int, Tensor, bool]],
        heads: int,
        end: dict[str, Any],
        embed: str,
        whole: bool,
        each: bool,
        keeps: bool,
    ) -> None:
        self.reads = reads
        self.parts = parts
        self.splits = [Split(**one) for one in splits]
        self.added = added
        self.heads = heads
        self.end = Head(**end)
        self.embed = embed
        self.whole = whole
        self.each = each
        self.keeps = keeps

    @property
    def final(self) -> str:
        """The name of the final residual stream."""
        return self.reads[-1][0]

    def options(self, last: int) -> dict[str, Any]:
        """Arguments of a pass whose logits are wanted at the ``last`` positions alone.

        A number, not the positions: given a tensor, nnsight forgets to count from the mask.
        """
        return {"logits_to_keep": last} if self.keeps else {}


class Gaps:
    """What was measured of the assumptions; the one value here that changes while a pass runs.

    Attributes:
        present: the entries that count [example, pos].
        largest: the largest error of each assumption, relative to the largest value.
    """

    def __init__(self, present: Tensor) -> None:
        self.present = present
        self.largest: dict[str, float] = {}

    def saw(self, what: str, errors: Tensor) -> None:
        """Relative errors [example, pos] of an assumption."""
        self._keep(what, float(errors[self.present].max()))

    def compare(
        self, what: str, found: Tensor, expected: Tensor, size: Tensor | None = None
    ) -> None:
        """Two values that should be one, relative to ``size``.

        ``size`` is what was expected, unless that may be near zero by itself.
        """
        error = (found - expected)[self.present].abs().max()
        largest_value = (expected if size is None else size)[self.present].abs().max()
        self._keep(what, float(error / largest_value.clamp_min(1e-30)))

    def _keep(self, what: str, gap: float) -> None:
        both = (gap, self.largest.get(what, 0.0))
        self.largest[what] = next((one for one in both if one != one), max(both))


def decomposition_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """Every part's share of the direction, and the metric of both runs.

    Args:
        nn: the nnsight model.
        tick: progress.
        **payload: ``run`` and ``other``, prompts or None; ``direction`` and ``parts``, see
            `Direction` and `Parts`; ``portions``.

    Returns:
        ``parts`` [example, part, cell]; ``units ...`` and ``bias ...`` of each split; ``bias``,
        ``linear`` and ``whole`` [example, 1, cell], the direction's constant, what it reads in the
        final residual stream, and in the logits; ``run`` and ``other`` [example].
    """
    run = PromptBatch(**payload["run"])
    other = None if payload["other"] is None else PromptBatch(**payload["other"])
    direction, parts = Direction(**payload["direction"]), Parts(**payload["parts"])
    portions = Portions(nn, tick, total=len(run), **payload["portions"])
    for some in portions:
        with portions.attempt():
            found = decomposed(nn, parts, run.take(some), direction.take(some))
            if other is not None:
                found["other"] = metric_at_end(nn, parts, other.take(some), direction.take(some))
                require_finite("other", found["other"])
            portions.keep(found)
            portions.tick(1, 1)
    return portions.joined()


def decomposed(
    nn: Any, parts: Parts, prompts: PromptBatch, direction: Direction
) -> dict[str, Tensor]:
    """The same for some of the examples, without the other run."""
    with nn.trace(**inputs(prompts, parts.options(-int(direction.from_end[0])))):
        with torch.no_grad():
            seen = read_parts(nn, parts, prompts, direction.columns)
            whole = direction.of(nn.output.logits[:, direction.from_end], direction.columns)
            found, gaps = weighed_parts(nn, parts, seen, whole, direction)
    found["run"] = whole[:, -1]
    require_finite("run", found["run"])
    require_finite("linear", found["linear"])
    require_sum(gaps, seen[parts.final].dtype)
    return found


def metric_at_end(nn: Any, parts: Parts, prompts: PromptBatch, direction: Direction) -> Tensor:
    """The metric of the other run [example]."""
    with nn.trace(**inputs(prompts, parts.options(1))):
        with torch.no_grad():
            found = direction.of(nn.output.logits[:, -1:], slice(-1, None))[:, 0]
    return found


def read_parts(nn: Any, parts: Parts, prompts: PromptBatch, columns: Tensor) -> dict[str, Tensor]:
    """Everything that is read, by name [example, column, width], inside the trace."""
    seen = {}
    for name, path, side in parts.reads:
        value = read(nn, (path, side, None), prompts.width)
        seen[name] = value[:, columns.to(value.device)].expand(len(prompts), -1, -1)
    seen = with_added(seen, prompts, parts.added, columns)
    if "pos_embed" in seen:
        these = PromptBatch(prompts.ids[:, columns], prompts.mask[:, columns])
        stream, positions = seen["embed"], seen["pos_embed"]
        seen["embed"] = token_part(nn, parts.embed, these, stream, positions)
    device = seen[parts.final].device
    return {name: value.to(device) for name, value in seen.items()}


def weighed_parts(
    nn: Any, parts: Parts, seen: dict[str, Tensor], whole: Tensor, direction: Direction
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Each part's share of the direction by cell, and what was measured, inside the trace."""
    final = seen[parts.final]
    gaps = Gaps(direction.present(final.device))
    with torch.autocast(final.device.type, enabled=False):  # servers cast products down otherwise
        view = final_view(nn, parts.end, final, direction)
        gaps.saw("norms", view.norm.gap)
        shares = [view.weigh(f * seen[name].float(), parts.each) for name, f in parts.parts]
        linear = (view.direction * final.float()).sum(-1) + view.bias
        compare_sums(parts, seen, view, whole, linear, gaps)
        found = {
            "parts": torch.stack(shares, -1),
            "linear": linear[..., None],
            "whole": whole.to(final)[..., None],
            "bias": view.bias[..., None],
        }
        for one in parts.splits:
            units, bias = units_of(nn, parts, view, seen, one, gaps)
            found[f"units {one.part}"] = units
            found[f"bias {one.part}"] = bias[..., None]
        by_cell = {name: direction.over_cells(value) for name, value in found.items()}
    return by_cell, gaps.largest


def compare_sums(
    parts: Parts,
    seen: dict[str, Tensor],
    view: View,
    whole: Tensor,
    linear: Tensor,
    gaps: Gaps,
) -> None:
    """Hold the parts against the residual stream, and what is read in it against the logits."""
    final = seen[parts.final]
    if parts.whole:
        total = torch.zeros_like(final, dtype=torch.float32)
        for name, factor in parts.parts:
            total += factor * seen[name].float()
        gaps.compare("residual stream", total, final.float())
    if not parts.end.capped:
        size = (view.direction * final.float()).abs().sum(-1)
        gaps.compare("logits", whole.to(linear), linear, size)


def units_of(
    nn: Any, parts: Parts, view: View, seen: dict[str, Tensor], split: Split, gaps: Gaps
) -> tuple[Tensor, Tensor]:
    """A layer's attention by heads, or MLP by neurons: shares [example, pos, unit], and the bias.

    Args:
        nn: the nnsight model.
        parts: what it is one of.
        view: how it is read.
        seen: what was read.
        split: the layer.
        gaps: gets the errors.
    """
    inner, projected = seen[split.inner].float(), seen[split.projected]
    weight, own, post = output_map(nn, split, inner.shape[-1], projected)
    bias = view.weigh(split.factor * (apply(post, own) + post.bias), parts.each)
    gaps.saw("norms", post.gap)
    if parts.heads:
        results = by_head(inner, weight, parts.heads)
        gaps.compare("units", results.sum(2) + own, projected.float())
        return view.weigh(split.factor * apply(per_unit(post), results), parts.each), bias
    units = inner * (transpose(post, view.direction) @ weight.T) * split.factor
    target = view.weigh(split.factor * seen[split.part].float(), parts.each)
    gaps.compare("units", units.sum(-1) + bias, target, units.abs().sum(-1))
    return units, bias


def require_finite(run: str, values: Tensor) -> None:
    """Refuse a metric that is not a number."""
    if not torch.isfinite(values).all():
        raise RefusedError(
            "metric",
            f"the metric is not finite on every example ({run} run). Check the model's weights for "
            "NaN or overflow (`nnattr doctor`), or use dtype='float32'.",
        )


def require_sum(gaps: dict[str, float], dtype: torch.dtype) -> None:
    """Refuse a model that is not the sum of what was read."""
    limit = weights_tolerance(dtype)
    for what, gap in gaps.items():
        require_number(gap)
        if gap > limit:
            raise RefusedError(
                "arch",
                "the model is not the sum of its parts as nnattr reads it: the "
                f"{what} differ by {gap:.1e} of their size, and at most {limit:.0e} is allowed. "
                "Its norm, unembedding or MLP is of a kind that direct logit attribution does not "
                "know; activation_patching needs none of them.",
            )
