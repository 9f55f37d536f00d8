r"""Attention patterns: where do heads look?

.. math:: A_{h,ij} = \mathrm{softmax}_j \left( q_{h,i} \cdot k_{h,j} / \sqrt{d} + m_{ij} \right)

is how much query position i of head h attends to key position j, as the model itself computes it
(`nnattr.runs.patterns` says how that is read and proven). Each row sums to one, or, in heads with
an attention sink, to what the sink leaves.

**Attention is not attribution.** A large weight on a token says that its value vector was copied
much, not that it matters: the vector may be short (heads often rest on the first token, whose
values are nearly zero), may lie where nothing reads it, or may carry what other tokens put there in
earlier layers. The value-weighted pattern

.. math:: A_{h,ij} \, \lVert v_{h,j} W_{O,h} \rVert

corrects for the first: it is the length of what head h adds at i because of j (Kobayashi et al.
2020, arXiv:2004.10102). The norm is taken behind W_O because v alone has no length of its own: v
may be scaled up and W_O down without any change in the model. For effects, patch
(`nnattr.activation_patching`).

The cost is one forward pass with the eager implementation, a pass of a single prompt to check it
against, and another one for the values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from nnattr.arguments import Positive, checked
from nnattr.graph import Part
from nnattr.jobs.record import as_task, provenance_of, untold
from nnattr.maps.linear import linear_map
from nnattr.model.heads import Heads, chosen
from nnattr.model.model import Model
from nnattr.model.patterns import attention_paths
from nnattr.model.prompts import Prompts, Run, texts_and_tokens
from nnattr.results import Patterns
from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.patterns import patterns
from nnattr.runs.places import read
from nnattr.runs.portions import Portions
from nnattr.tokens import Tokens


@checked
def attention_patterns(
    model: Model,
    prompts: Prompts,
    heads: Heads = "all",
    *,
    k: Positive = 3,
    weighted: bool = False,
    run: Run = "clean",
) -> Patterns:
    """Where chosen heads look, on every prompt.

    Args:
        model: as `nnattr.load` gives it.
        prompts: one or several; a task (whose ``run`` is read); or the ``tokens`` of a result, such
            as the random ones of `nnattr.detect_heads`.
        heads: ``"all"``, a head or a list of heads such as ``[(9, 6), "10.0"]``, or `Scores` over
            heads: then the ``k`` most positive and the ``k`` most negative.
        k: see ``heads``.
        weighted: multiply by the length of each key's value vector behind W_O (see above).
        run: which prompts of a task.

    Returns:
        a `Patterns`; ``.plot()`` draws it, ``.viewer()`` is a page to explore it with.

    Raises:
        ArchError: there is no such head; or the model's attention gives no pattern, with what was
            measured.
        BackendError: where the model runs its attention cannot be switched (a sandboxed server).
        TaskError: prompts that cannot be used as given.
        ResultError: scores that are not about heads.

    Cost: two forward passes, three if weighted. Only the chosen heads' patterns come down: prompts
    x heads x tokens² numbers.
    """
    texts, tokens = texts_and_tokens(model, prompts, run)
    picked = chosen(model, heads, k)
    width = tokens.ids.shape[1]
    order = sorted(picked)
    wanted = [[head for at, head in order if at == layer] for layer in range(model.n_layers)]
    payload = {
        "prompts": model.batch(tokens, prompts),
        "heads": {
            "paths": attention_paths(model),
            "heads": wanted,
            "options": {"logits_to_keep": 1} if model.accepts("logits_to_keep") else {},
        },
        "values": _value_places(model) if weighted else None,
        "portions": model.portions(width, floats=width**2 * max(model.n_heads, len(picked))),
    }
    outcome = model.run(patterns_job, payload, label="attention patterns")
    found = outcome.values["patterns"][:, [order.index(head) for head in picked]]
    data = _labelled(found, tokens, picked).to_dataset(name="values")
    given = {"heads": picked, "k": k, "weighted": weighted, "run": run, **untold(prompts)}
    task = as_task(prompts, texts, tokens)
    made = provenance_of(model, task, method="attention_patterns", arguments=given, outcome=outcome)
    return Patterns(data, made, tuple(map(tuple, tokens.strings)), tuple(texts), weighted)


def patterns_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """The chosen heads' patterns [example, head, query_pos, key_pos], sorted by layer and head."""
    every, asked_of = PromptBatch(**payload["prompts"]), HeadsAsked(**payload["heads"])
    values = None if payload["values"] is None else ValuePlaces(**payload["values"])
    portions = Portions(nn, tick, total=len(every), **payload["portions"])
    for some in portions:
        with portions.attempt():
            prompts = every.take(some)
            found = patterns(nn, prompts, asked_of.paths, asked_of.heads, asked_of.options)
            if values is not None:
                lengths = value_lengths(nn, prompts, asked_of, values)
                found = [a.float() * b[:, :, None] for a, b in zip(found, lengths, strict=True)]
            portions.keep({"patterns": torch.cat([one.float().cpu() for one in found], 1)})
            portions.tick(1, 1)
    return portions.joined()


class HeadsAsked:
    """Whose patterns are wanted.

    Attributes:
        paths: where each layer's pattern may be, see `nnattr.model.patterns.attention_paths`.
        heads: the numbers of each layer's heads; of an empty list the layer is not read.
        options: further arguments of a pass.
    """

    def __init__(
        self, paths: list[list[str]], heads: list[list[int] | None], options: dict[str, Any]
    ) -> None:
        self.paths = paths
        self.heads = heads
        self.options = options


class ValuePlaces:
    """Where values and output projections are, and how heads share them.

    Attributes:
        places: where each layer's values are.
        projections: the paths of attention's output projections.
        heads, kv_heads: how many heads a layer has, and how many of keys and values.
    """

    def __init__(
        self, places: list[tuple[Any, ...]], projections: list[str], heads: int, kv_heads: int
    ) -> None:
        self.places = places
        self.projections = projections
        self.heads = heads
        self.kv_heads = kv_heads


def value_lengths(
    nn: Any, prompts: PromptBatch, asked_of: HeadsAsked, values: ValuePlaces
) -> list[Tensor]:
    """For each layer with chosen heads the length of v W_O [example, head, key_pos]."""
    lengths: list[Tensor] = []
    with nn.trace(**inputs(prompts, asked_of.options)):
        with torch.no_grad():
            for layer, heads in enumerate(asked_of.heads):
                if heads:
                    v = read(nn, values.places[layer], prompts.width)
                    with torch.autocast(v.device.type, enabled=False):
                        projection = nn.get(values.projections[layer])
                        lengths.append(lengths_behind(projection, v, heads, values))
    return lengths


def lengths_behind(projection: Any, v: Tensor, heads: list[int], values: ValuePlaces) -> Tensor:
    """The length of these heads' v W_O [example, head, key_pos], inside a trace."""
    v = v.unflatten(-1, (values.kv_heads, -1))
    weight, _ = linear_map(projection, values.heads * v.shape[-1], v)
    parts = weight.unflatten(0, (values.heads, v.shape[-1]))
    own = [v[:, :, head * values.kv_heads // values.heads].float() @ parts[head] for head in heads]
    return torch.stack([one.norm(dim=-1) for one in own], 1)


def _value_places(model: Model) -> dict[str, Any]:
    """Where values and output projections are, and how heads share them."""
    return {
        "places": model.places("v"),
        "projections": [place[0] for place in model.places("z")],
        "heads": model.n_heads,
        "kv_heads": model.n_kv_heads,
    }


def _labelled(found: Tensor, tokens: Tokens, heads: list[tuple[int, int]]) -> xr.DataArray:
    """The patterns with position 0 at each prompt's first token, and NaN behind its last."""
    values = torch.full_like(found, float("nan"))
    for row, pad in enumerate(tokens.padding):
        length = found.shape[-1] - pad
        values[row, :, :length, :length] = found[row, :, pad:, pad:]
    labels = [str(Part("head", *head)) for head in heads]
    return xr.DataArray(
        values.numpy(),
        dims=("example", "head", "query_pos", "key_pos"),
        coords={
            "example": np.arange(len(tokens)),
            "head": labels,
            "layer": ("head", [layer for layer, _ in heads]),
            "number": ("head", [head for _, head in heads]),
        },
    )
