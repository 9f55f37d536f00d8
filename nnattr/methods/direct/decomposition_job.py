"""The job behind direct logit attribution: read the parts, weigh each, return numbers.

Everything here travels to where the model is: torch and plain values only. The weights are used
through the model, inside the trace, and what is assumed about them is measured in the same run:
``gaps`` are the largest errors, relative to the largest values, of

- ``residual stream``: its last state against the sum of its parts,
- ``norms``: the norms against the linear maps that stand for them,
- ``logits``: the model's own against those of the linear map,
- ``units``: attention (or MLP) against the sum of its heads (or neurons) and the bias.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.maps.linear import linear_map
from nnattr.maps.norm import Frozen, apply, frozen, per_unit, pull
from nnattr.runs.logits import model_inputs
from nnattr.runs.places import read

WORDS = ("tokens", "weights")


def decompose_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """Every part's share of the direction, and the metric of both runs.

    Args:
        nn: the nnsight model.
        tick: progress.
        **payload: ``run`` and ``other``, prompts (``ids`` and ``mask``) or None; ``tokens`` and
            ``weights`` [example, pos, word], the direction, the same at all positions where pos
            is 1; ``spots`` [cell, example, pos]; ``reads``,
            (key, path, side) in forward order, the last being the final residual stream;
            ``parts``, (key, factor); ``splits``, see `split`; ``heads``, or 0 for neurons;
            ``norm``, ``unembed``, ``multiplier``, ``capped``; ``whole``, whether the parts add up;
            ``each``, whether each part is normed by itself; ``keeps``, whether the model can leave
            out logits; ``rows``, examples at a time.

    Returns:
        ``parts`` [example, part, cell]; ``units ...`` and ``bias ...`` of each split; ``bias``,
        ``linear`` and ``whole`` [example, 1, cell], the direction's constant, what it reads in the
        final residual stream, and in the logits; ``run`` and ``other`` [example]; ``gaps``.
    """
    found: list[dict[str, Any]] = []
    gaps: dict[str, float] = {}
    total, rows = payload["run"]["ids"].shape[0], payload["rows"]
    for start in range(0, total, rows):
        ask = dict(payload, spots=payload["spots"][:, start : start + rows])
        for name in ("run", "other"):
            if payload[name] is not None:
                ask[name] = {
                    key: value[start : start + rows] for key, value in payload[name].items()
                }
        for name in WORDS:
            ask[name] = payload[name][start : start + rows]
        values, errors = examples(nn, ask)
        found.append(values)
        gaps = {key: max(gap, gaps.get(key, 0.0)) for key, gap in errors.items()}
        tick(min(start + rows, total), total)
    joined = {key: torch.cat([part[key] for part in found]).cpu() for key in found[0]}
    return {**joined, "gaps": gaps}


def examples(nn: Any, ask: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The same for one chunk of examples."""
    there = ask["spots"].any(0).any(0)
    there[-1] = True  # the metric is read at the last position
    columns = there.nonzero()[:, 0]
    # a number, not the columns: given a tensor, nnsight forgets to count positions from the mask
    kept = len(there) - int(columns[0])
    options: dict[str, Any] = {"logits_to_keep": kept} if ask["keeps"] else {}
    with nn.trace(model_inputs(ask["run"]), **options):
        with torch.no_grad():
            seen = look(nn, ask, columns)
            logits = nn.output.logits[:, columns - len(there)]
            values, gaps = weigh_parts(nn, ask, seen, picked(ask, logits, columns), columns)
    if ask["other"] is not None:
        values["other"] = metric_at_end(nn, ask)
    return values, gaps


def metric_at_end(nn: Any, ask: dict[str, Any]) -> Tensor:
    """The metric of the other run [example]."""
    options = {"logits_to_keep": 1} if ask["keeps"] else {}
    with nn.trace(model_inputs(ask["other"]), **options):
        with torch.no_grad():
            found = picked(ask, nn.output.logits[:, -1:], slice(-1, None))[:, 0]
    return found


def look(nn: Any, ask: dict[str, Any], columns: Tensor) -> dict[str, Tensor]:
    """Everything that is read, [example, pos, width], at the columns alone."""
    n, pos = ask["run"]["ids"].shape
    seen = {}
    for key, path, side in ask["reads"]:
        value = read(nn, (path, side, None), pos)
        seen[key] = value[:, columns.to(value.device)].expand(n, -1, -1)
    if "pos_embed" in seen:
        seen["embed"] = seen["embed"] - seen["pos_embed"]
    device = seen[ask["reads"][-1][0]].device
    return {key: value.to(device) for key, value in seen.items()}


def words(ask: dict[str, Any], columns: Any, device: Any) -> tuple[Tensor, Tensor]:
    """The direction's tokens and their weights [example, pos, word]; pos may be 1, for all."""
    found = [ask[name] if ask[name].shape[1] == 1 else ask[name][:, columns] for name in WORDS]
    return found[0].to(device), found[1].to(device)


def picked(ask: dict[str, Any], logits: Tensor, columns: Any) -> Tensor:
    """The direction's weighted sum of logits [example, pos]."""
    tokens, weights = words(ask, columns, logits.device)
    chosen = logits.gather(-1, tokens.expand(-1, logits.shape[1], -1))
    return (chosen.float() * weights).sum(-1)


def weigh_parts(
    nn: Any, ask: dict[str, Any], seen: dict[str, Tensor], whole: Tensor, columns: Tensor
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Each part's share of the direction, inside the trace."""
    final = seen[ask["reads"][-1][0]]
    valid = ask["spots"].any(0)[:, columns].to(final.device)
    with torch.autocast(final.device.type, enabled=False):  # servers cast products down otherwise
        view = final_view(nn, ask, final, columns)
        parts = torch.stack([weigh(view, f * seen[key].float()) for key, f in ask["parts"]], -1)
        linear = (view["direction"] * final.float()).sum(-1) + view["bias"]
        found = {"parts": parts, "linear": linear[..., None], "whole": whole.to(final)[..., None]}
        found["bias"] = view["bias"][..., None]
        gaps = {"eps": torch.finfo(final.dtype).eps, "norms": largest(view["norm"]["gap"], valid)}
        if ask["whole"]:
            total = torch.zeros_like(final, dtype=torch.float32)
            for key, factor in ask["parts"]:
                total += factor * seen[key].float()
            gaps["residual stream"] = gap(total, final.float(), valid)
        if not ask["capped"]:
            size = (view["direction"] * final.float()).abs().sum(-1)
            gaps["logits"] = gap(whole.to(linear), linear, valid, size)
        for one in ask["splits"]:
            units, bias, errors = split(nn, ask["heads"], view, seen, one)
            found[f"units {one['part']}"] = units
            found[f"bias {one['part']}"] = bias[..., None]
            found_units, expected, size = errors["units"]
            gaps["units"] = max(gaps.get("units", 0.0), gap(found_units, expected, valid, size))
            gaps["norms"] = max(gaps["norms"], largest(errors["norm"], valid))
        reduced = {key: over_cells(ask, value, valid, columns) for key, value in found.items()}
    reduced["run"] = whole[:, -1]
    return reduced, gaps


def final_view(nn: Any, ask: dict[str, Any], final: Tensor, columns: Tensor) -> dict[str, Any]:
    """How the residual stream is read: ``direction`` [example, pos, d_model], ``bias``, ..."""
    tokens, weights = words(ask, columns, final.device)
    tokens, which = tokens.unique(return_inverse=True)
    matrix, own = linear_map(nn.get(ask["unembed"]), final.shape[-1], final, tokens)
    behind = (matrix.T[which] * weights[..., None]).sum(-2) * ask["multiplier"]
    module = None if ask["norm"] is None else nn.get(ask["norm"])
    norm = frozen(module, final)
    bias = (behind * norm["bias"]).sum(-1) + (own[which] * weights).sum(-1) * ask["multiplier"]
    direction = pull(norm, behind)
    return {
        "direction": direction,
        "bias": bias.expand(direction.shape[:2]),
        "behind": behind,
        "norm": norm,
        "module": module,
        "dtype": final.dtype,
        "each": ask["each"],
    }


def weigh(view: dict[str, Any], vectors: Tensor) -> Tensor:
    """What the direction reads in ``vectors`` [example, pos, ..., d_model]."""
    units = vectors.ndim == 4
    if not view["each"]:
        direction = view["direction"]
        return (vectors * (direction[:, :, None] if units else direction)).sum(-1)
    normed = vectors
    if view["module"] is not None:
        normed = view["module"](vectors.to(view["dtype"])).float() - view["norm"]["bias"]
    behind = view["behind"]
    return (normed * (behind[:, :, None] if units else behind)).sum(-1)


def split(
    nn: Any, heads: int, view: dict[str, Any], seen: dict[str, Tensor], one: dict[str, Any]
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """One layer's attention by heads, or MLP by neurons: shares [example, pos, unit], and the bias.

    Args:
        nn: the nnsight model.
        heads: into how many heads the projection's input is split; 0 means neurons.
        view: as `final_view` gives it.
        seen: what was read.
        one: ``inner`` and ``projected``, the keys of the projection's input and output;
            ``projection``, its path; ``post``, the path of the norm behind it or None; ``factor``;
            ``part``, the key of what all this adds up to.
    """
    inner, projected = seen[one["inner"]].float(), seen[one["projected"]]
    weight, own = linear_map(nn.get(one["projection"]), inner.shape[-1], projected)
    post: Frozen = frozen(nn.get(one["post"]) if one["post"] else None, projected)
    offset = one["factor"] * (apply(post, own) + post["bias"])
    bias = weigh(view, offset)
    if heads:
        results = torch.einsum(
            "ephd,hdm->ephm", inner.unflatten(-1, (heads, -1)), weight.unflatten(0, (heads, -1))
        )
        errors = {"units": (results.sum(2) + own, projected.float(), None), "norm": post["gap"]}
        return weigh(view, one["factor"] * apply(per_unit(post), results)), bias, errors
    units = inner * (pull(post, view["direction"]) @ weight.T) * one["factor"]
    target = weigh(view, one["factor"] * seen[one["part"]].float())
    sums = (units.sum(-1) + bias, target, units.abs().sum(-1))
    return units, bias, {"units": sums, "norm": post["gap"]}


def over_cells(ask: dict[str, Any], values: Tensor, valid: Tensor, columns: Tensor) -> Tensor:
    """The mean over each cell's positions: [example, pos, part] to [example, part, cell]."""
    chosen = ask["spots"][:, :, columns].to(values.device).float()
    shares = chosen / chosen.sum(-1, keepdim=True).clamp_min(1)
    values = values.masked_fill(~valid[..., None], 0)
    return torch.einsum("epu,cep->euc", values, shares)


def gap(found: Tensor, expected: Tensor, valid: Tensor, size: Tensor | None = None) -> float:
    """The largest difference where ``valid``, relative to the largest of ``size``.

    ``size`` is what was expected, unless that may be near zero by itself.
    """
    error = (found - expected)[valid].abs().max()
    largest_value = (expected if size is None else size)[valid].abs().max()
    return float(error / largest_value.clamp_min(1e-30))


def largest(values: Tensor, valid: Tensor) -> float:
    """The largest value where ``valid``."""
    return float(values[valid].max())
