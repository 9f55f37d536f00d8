r"""Where does a head's attention come from? Its scores by what its queries and keys are made of.

What a head reads is a sum of parts: the embeddings, what every earlier head and MLP added, biases.
With the norm's scale frozen at the run's own value, queries and keys are sums of as many parts, and
the scores fall apart by pairs of them:

.. math:: s_{ij} = \tfrac{1}{\sqrt{d}} \Big(\sum_a q^a_i\Big) \cdot \Big(\sum_b k^b_j\Big)
                 = \sum_{a, b} \tfrac{1}{\sqrt{d}}\, q^a_i \cdot k^b_j

A rotary turn is linear, so each part is turned by itself and the sum stays exact. The parts are
held against the model's own attention in every run. An induction head shows as one large pair: the
embedding in its queries, the previous-token head in its keys.

It misleads when sizes are read as importance: a pair that adds the same number to all keys of a
query moves nothing, for the softmax does not see it. The ``spread`` counts variation over queries
as well as over keys. The frozen scale hides that every part also changes the scale.

Source: ARENA's "Intro to Mechanistic Interpretability", after Elhage et al. 2021. Cost: a forward
pass for each prompt, and for :math:`c` parts :math:`c^2` score maps, of which few come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from nnattr.arguments import Natural, checked
from nnattr.errors import TaskError
from nnattr.graph import Part, parse
from nnattr.jobs.record import as_task, provenance_of, untold
from nnattr.methods.attention.decompose_attention_job import decompose_attention_job
from nnattr.model.attention_form import layer_form
from nnattr.model.components import Plan, bias, components
from nnattr.model.heads import Head, chosen
from nnattr.model.model import Model
from nnattr.model.prompts import Prompts, texts_and_tokens
from nnattr.results import AttentionParts


@checked
def decompose_attention(
    model: Model,
    prompts: Prompts,
    head: Head,
    *,
    pairs: Natural | Sequence[Sequence[str]] = 4,
) -> AttentionParts:
    """A head's queries, keys and scores, by component of the residual stream.

    Args:
        model: as `nnattr.load` gives it.
        prompts: one or several texts, a task, whose clean prompts are read, or tokens.
        head: which head, ``(1, 4)`` or ``"L1H4"``.
        pairs: whose scores to return whole: (query component, key component) such as ``("embed",
            "L0H7")``, or how many of the strongest (in the first prompt).

    Returns:
        an `AttentionParts`: lengths of the parts, the spread of every pair's scores, the maps of
        some pairs, and the head's own scores and pattern.

    Raises:
        ArchError: no such head; scores that are not such a sum (queries and keys normed after they
            are projected, a bias for distance), or a residual stream that is not the sum of its
            parts.
        TaskError: prompts that cannot be used, or an unknown component.
    """
    ((layer, number),) = chosen(model, [head], 0)
    name = Part("head", layer, number)
    form = layer_form(model, layer, scores=True)
    plan = components(model, "head", range(layer), before=layer)
    names = _names(model, plan)
    kept = pairs if isinstance(pairs, int) else [_known(pair, names) for pair in pairs]
    texts, tokens = texts_and_tokens(model, prompts)
    payload = {
        "prompts": model.batch(tokens, prompts),
        "question": {
            "form": form,
            "head": number,
            "embed": model.spec.embed,
            "reads": list(plan.reads),
            "parts": list(plan.parts),
            "splits": list(plan.splits),
            "added": list(plan.added),
            "names": names,
        },
        "pairs": kept,
        "portions": model.portions(tokens.ids.shape[1]),
    }
    outcome = model.run(decompose_attention_job, payload, label=f"attention of {name}")
    data = _dataset(outcome.values, names)
    strings = tuple(tuple(row) for row in tokens.strings)
    given = {"head": (layer, number), "pairs": kept, **untold(prompts)}
    task = as_task(prompts, texts, tokens)
    made = provenance_of(
        model, task, method="decompose_attention", arguments=given, outcome=outcome
    )
    return AttentionParts(data, made, strings, (layer, number))


def _names(model: Model, plan: Plan) -> list[str]:
    """The components, in the order in which the job makes them."""
    split = {one["part"] for one in plan.splits}
    names = []
    for name, _ in plan.parts:
        if name not in split:
            names.append(name)
            continue
        layer = parse(name).layer
        names += [Part("head", layer, number).label for number in range(model.n_heads)]
        names.append(bias(name))
    shifted = model.spec.qk_positions is not None
    return [*names, *([Part("pos_embed").label] if shifted else []), Part("bias").label]


def _known(pair: Any, names: Sequence[str]) -> tuple[str, str]:
    if len(pair) != 2 or not set(pair) <= set(names):
        raise TaskError(
            f"{pair!r} is not a pair of components; expected two (query first) of "
            f"{', '.join(names)}."
        )
    return str(pair[0]), str(pair[1])


def _dataset(values: dict[str, Any], names: Sequence[str]) -> xr.Dataset:
    """What the job returned, with names."""
    across = ("query_pos", "key_pos")
    dims = {
        "query": ("component", "pos"),
        "key": ("component", "pos"),
        "spread": ("query_component", "key_component"),
        "scores": ("pair", *across),
        "total": across,
        "pattern": across,
    }
    data = {name: (("example", *own), values[name].numpy()) for name, own in dims.items()}
    examples, longest = values["total"].shape[:2]
    places = np.arange(longest)
    coords = {
        "example": np.arange(examples),
        "component": list(names),
        "query_component": list(names),
        "key_component": list(names),
        "pair": [f"{names[query]} → {names[key]}" for query, key in values["pairs"]],
        "pos": places,
        "query_pos": places,
        "key_pos": places,
    }
    return xr.Dataset(data, coords)
