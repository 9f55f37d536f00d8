"""TransformerLens 4.3's own direct logit attribution, on the same weights and tokens.

Its compatibility mode folds norms and centres weights, which changes no share of a logit
*difference*. Value biases are left where they are: folding them moves a part of every head into
attention's output bias. It keeps the unembedding's and the norm's biases out; ours are ``bias``.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnattr import Model, Task, direct_logit_attribution
from tests.methods.common import TEACHING, assert_far, assert_same, even_ioi, teaching
from tests.support.peers import folded

analysis = pytest.importorskip("transformer_lens.tools.analysis", reason="needs transformer-lens")


def ours(name: str) -> tuple[Model, Task]:
    model = teaching(name)
    return model, even_ioi(model, 3)


def theirs(name: str, task: Task, unit: str) -> tuple[np.ndarray, list[str]]:
    """Its shares [example, part] and their names."""
    right, wrong = (
        torch.tensor([row[0] for row in side]) for side in (task.answer_ids, task.wrong_answer_ids)
    )
    with torch.no_grad():
        found = analysis.direct_logit_attribution(
            folded(name), task.clean_tokens.ids, right, wrong, unit=unit
        )
    return found.attribution.T.numpy(), list(found.labels)


@pytest.mark.parametrize("name", TEACHING)
def test_heads(name: str) -> None:
    model, task = ours(name)
    shares, labels = theirs(name, task, "head")
    heads = model.n_layers * model.n_heads
    assert labels[:heads] == [
        f"L{i}H{j}" for i in range(model.n_layers) for j in range(model.n_heads)
    ]
    scores = direct_logit_attribution(model, task, unit="head")
    expected = shares[:, :heads].reshape(scores.raw.shape)
    assert_same(scores.raw, expected, 1e-4)
    assert_far(scores.raw, expected[..., ::-1])


@pytest.mark.parametrize("name", TEACHING)
def test_components(name: str) -> None:
    model, task = ours(name)
    shares, labels = theirs(name, task, "component")
    scores = direct_logit_attribution(model, task)
    names = {"0_attn_out": "L0 attn"} | {
        f"{layer}_{kind}_out": f"L{layer} {kind}"
        for layer in range(model.n_layers)
        for kind in ("attn", "mlp")
    }
    names |= {"embed": "embed", "pos_embed": "pos_embed"}
    known = [i for i, label in enumerate(labels) if label in names]
    assert len(known) >= 2 * model.n_layers + 1
    picked = scores.raw.sel(component=[names[labels[i]] for i in known])
    assert_same(picked, shares[:, known], 1e-4)
