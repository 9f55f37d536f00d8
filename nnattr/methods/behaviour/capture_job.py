"""The job behind `nnattr.capture`: activations at some sites, or what is made of them.

Everything here travels to where the model is: torch and plain values only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.maps.norm import apply, per_unit
from nnattr.maps.parts import Split, output_map
from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.logits import take
from nnattr.runs.patterns import patterns
from nnattr.runs.places import read
from nnattr.runs.portions import Portions, RefusedError
from nnattr.runs.rotated import pair, rotated, scores
from nnattr.runs.tolerance import weights_tolerance

#: Both sides of a projection, in the order in which it is run.
SIDES = ("input", "output")
NO_SUM = (
    "attention's output is not the sum of its heads and a bias (it is off by {:.1e} of its size), "
    "so there is no result of a head. Use z, or attn_out."
)


class Columns:
    """Which positions are wanted of each prompt.

    Attributes:
        at: their columns in the padded batch [example, pos].
        present: which of these a prompt really has [example, pos].
    """

    def __init__(self, at: Tensor, present: Tensor) -> None:
        self.at = at
        self.present = present

    def take(self, some: slice) -> Columns:
        """Those of some of the examples."""
        return Columns(self.at[some], self.present[some])


class Wanted:
    """What is read.

    Attributes:
        reads: (site, place, groups, numbers) in forward order: into how many heads its last axis is
            split (0: it is not), and which of these are wanted.
        patterns: the heads of each layer whose patterns are wanted, or None.
        rotated: (site, 0 for queries or 1 for keys, numbers of heads) of those read as they meet.
        pattern_paths: where each layer's pattern is, see `nnattr.model.patterns.attention_paths`.
        rotated_paths: the same of the layers of ``rotated`` and ``scores`` alone.
        scores: the heads whose attention scores are wanted, or None.
        embed: where the stream enters layer 0, and the path of a table of positions that was added
            to the token embedding, or None; None where ``"embed"`` is not wanted.
        results: the layers whose attention is wanted by heads, see `nnattr.maps.parts.Split`.
        heads: how many heads there are, and the numbers of those that are wanted of these.
        options: further arguments of a pass.
    """

    def __init__(
        self,
        *,
        reads: list[tuple[str, tuple[Any, ...], int, list[int]]],
        patterns: list[list[int] | None] | None,
        rotated: list[tuple[str, int, list[int]]],
        pattern_paths: list[list[str]],
        rotated_paths: list[list[str]],
        scores: list[int] | None,
        embed: tuple[tuple[Any, ...], str | None] | None,
        results: list[dict[str, Any]],
        heads: tuple[int, list[int]],
        options: dict[str, Any],
    ) -> None:
        self.reads = reads
        self.patterns = patterns
        self.rotated = rotated
        self.pattern_paths = pattern_paths
        self.rotated_paths = rotated_paths
        self.scores = scores
        self.embed = embed
        self.results = [Split(**one) for one in results]
        self.heads = heads
        self.options = options


def capture_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """``value ...``: by site [example, layer, ...], or what ``reduce`` makes of them."""
    every, columns = PromptBatch(**payload["prompts"]), Columns(**payload["columns"])
    wanted, reduce = Wanted(**payload["wanted"]), payload["reduce"]
    portions = Portions(nn, tick, total=len(every), **payload["portions"])
    for some in portions:
        with portions.attempt():
            found = captured(nn, wanted, every.take(some), columns.take(some))
            found = found if reduce is None else reduce(found)
            portions.keep({f"value {name}": one.detach().cpu() for name, one in found.items()})
            portions.tick(1, 1)
    return portions.joined()


def captured(nn: Any, wanted: Wanted, prompts: PromptBatch, columns: Columns) -> dict[str, Tensor]:
    """By site [example, layer, ...] of some of the prompts."""
    found = activations(nn, wanted, prompts, columns) if wanted.reads else {}
    if wanted.patterns is not None:
        paths, heads = wanted.pattern_paths, wanted.patterns
        every = patterns(nn, prompts, paths, heads, wanted.options)
        found["pattern"] = query_rows(every, prompts.mask, columns)
    if wanted.rotated:
        pairs = rotated(nn, prompts, wanted.rotated_paths, wanted.options, pair)
        for name, which, heads in wanted.rotated:
            found[name] = chosen_heads([both[which] for both in pairs], heads, columns)
    if wanted.scores is not None:
        before = rotated(nn, prompts, wanted.rotated_paths, wanted.options, scores)
        chosen = [one[:, wanted.scores] for one in before]
        found["attn_scores"] = query_rows(chosen, prompts.mask, columns)
    if wanted.embed is not None or wanted.results:
        found.update(contributions(nn, wanted, prompts, columns))
    return found


def activations(
    nn: Any, wanted: Wanted, prompts: PromptBatch, columns: Columns
) -> dict[str, Tensor]:
    """By site [example, layer, pos, ...] of what modules return, by a plain pass."""
    seen: dict[str, list[Tensor]] = {}
    with nn.trace(**inputs(prompts, wanted.options)):
        with torch.no_grad():
            for name, where, groups, numbers in wanted.reads:
                value = read(nn, where, prompts.width)
                value = take(value.expand(len(prompts), -1, -1), columns.at).float()
                value = value * columns.present[..., None].to(value.device)
                if groups:
                    value = value.unflatten(-1, (groups, -1))[:, :, numbers]
                seen.setdefault(name, []).append(value)
    home = seen[wanted.reads[0][0]][0].device
    return {name: torch.stack([one.to(home) for one in each], 1) for name, each in seen.items()}


def contributions(
    nn: Any, wanted: Wanted, prompts: PromptBatch, columns: Columns
) -> dict[str, Tensor]:
    """What is added to the residual stream: ``embed`` [example, pos, d_model], and ``result``.

    The latter is [example, layer, pos, head, d_model].

    Raises:
        RefusedError: the heads and the bias do not sum to what left the projection in this run.
    """
    found: dict[str, Tensor] = {}
    with nn.trace(**inputs(prompts, wanted.options)):
        with torch.no_grad():
            if wanted.embed is not None:
                where, table = wanted.embed
                places = [where] if table is None else [(table, "output", None), where]
                *added, stream = [at_columns(nn, one, prompts, columns) for one in places]
                found["embed"] = masked(stream.float() - sum(one.float() for one in added), columns)
            seen = [
                [at_columns(nn, (one.projection, side, None), prompts, columns) for side in SIDES]
                for one in wanted.results
            ]
            with torch.autocast(columns.at.device.type, enabled=False):
                pairs = [
                    head_results(nn, wanted, one, columns, *values)
                    for one, values in zip(wanted.results, seen, strict=True)
                ]
    for _, gap in pairs:
        if not gap <= weights_tolerance(seen[0][1].dtype):
            raise RefusedError("arch", NO_SUM.format(gap))
    if pairs:
        home = pairs[0][0].device
        found["result"] = torch.stack([value.to(home) for value, _ in pairs], 1)
    return found


def at_columns(nn: Any, where: tuple[Any, ...], prompts: PromptBatch, columns: Columns) -> Tensor:
    """What is at a place, at the wanted positions [example, pos, width], inside a trace."""
    value = read(nn, where, prompts.width).expand(len(prompts), -1, -1)
    return take(value, columns.at)


def masked(value: Tensor, columns: Columns) -> Tensor:
    """The value [example, pos, ...] with zeros at positions that a prompt does not have."""
    there = columns.present.to(value.device)
    return torch.where(there.reshape(*there.shape, *[1] * (value.ndim - 2)), value, 0.0)


def head_results(
    nn: Any, wanted: Wanted, split: Split, columns: Columns, z: Tensor, projected: Tensor
) -> tuple[Tensor, float]:
    """A layer's heads as they reach the stream [example, pos, head, d_model], and the sum's gap."""
    every, numbers = wanted.heads
    z = z.float()
    weight, own, post = output_map(nn, split, z.shape[-1], projected)
    gap = masked(z @ weight + own - projected.float(), columns).abs().max()
    size = masked(projected.float(), columns).abs().max().clamp_min(1e-30)
    some = z.unflatten(-1, (every, -1))[..., numbers, :]
    matrices = weight.unflatten(0, (every, -1))[numbers]
    results = torch.einsum("ephd,hdm->ephm", some, matrices)
    return masked(apply(per_unit(post), results), columns), float(gap / size)


def chosen_heads(every: list[Tensor], heads: list[int], columns: Columns) -> Tensor:
    """Chosen heads and positions [example, layer, pos, head, d_head] of each layer's q or k."""
    home = every[0].device
    whole = torch.stack([one[:, heads].float().to(home) for one in every], 1).transpose(2, 3)
    rows = columns.at.to(home)[:, None, :, None, None]
    rows = rows.expand(-1, whole.shape[1], -1, *whole.shape[3:])
    return whole.gather(2, rows) * columns.present.to(home)[:, None, :, None, None]


def query_rows(every: list[Tensor], mask: Tensor, columns: Columns) -> Tensor:
    """The rows of chosen queries [example, layer, head, query_pos, key_pos].

    Key 0 is each prompt's first token; behind its last token there are zeros.
    """
    home = every[0].device
    whole = torch.stack([one.float().to(home) for one in every], 1)
    rows = columns.at.to(home)[:, None, None, :, None]
    rows = rows.expand(*whole.shape[:3], -1, whole.shape[-1])
    there = columns.present.to(home)[:, None, None, :, None]
    chosen = torch.where(there, whole.gather(3, rows), 0.0)
    shifts = (~mask).sum(1).tolist()
    return torch.stack([one.roll(-shift, -1) for one, shift in zip(chosen, shifts, strict=True)])
