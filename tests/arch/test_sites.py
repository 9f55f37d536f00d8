"""Reading a site gives a tensor whose gradient is the site's, even where a model plays tricks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nnattr.model.load import load
from nnattr.runs.places import read, write
from tests.tiny import FAMILIES, tiny_module, tiny_tokenizer

IDS = [[5, 17, 42, 8]]


def derivative(nn: Any, tick: Any, embed: str, where: Any, direction: Any) -> dict[str, Any]:
    """The derivative of a logit along ``direction`` at a site: by autograd and by differences."""
    with nn.trace(input_ids=torch.tensor(IDS), use_cache=False):
        nn.get(embed).output.requires_grad_(True)
        value = read(nn, where, 4)
        target = nn.output.logits[0, -1, 3]
        gradient = torch.autograd.grad(target, value)[0]
    moved = []
    for step in (1e-3, -1e-3):
        with nn.trace(input_ids=torch.tensor(IDS), use_cache=False):
            write(nn, where, read(nn, where, 4).clone() + step * direction)
            logit = nn.output.logits[0, -1, 3].clone()
        moved.append(logit)
    return {"auto": (gradient * direction).sum().detach(), "plain": (moved[0] - moved[1]) / 2e-3}


@pytest.mark.parametrize("site", ["z", "attn_out", "resid_mid", "mlp_out", "resid_pre"])
@pytest.mark.parametrize("family", ["llama", "opt", "falcon", "gemma2"])
def test_gradient_of_a_site(family: str, site: Any) -> None:
    model = load(tiny_module(family).double(), tokenizer=tiny_tokenizer())
    if site == "resid_mid" and model.spec.parallel:
        pytest.skip("parallel blocks have no resid_mid")
    direction = torch.randn(1, 4, 48, generator=torch.Generator().manual_seed(1)).double()
    where = model.places(site)[1]
    if site == "z":
        width = model.nn._module.get_submodule(where[0]).in_features
        direction = torch.randn(1, 4, width, generator=torch.Generator().manual_seed(1)).double()
    payload = {"embed": model.spec.embed, "where": where, "direction": direction}
    found = model.run(derivative, payload, label="derivative").values
    assert found["plain"].abs() > 1e-3
    torch.testing.assert_close(found["auto"], found["plain"], rtol=1e-2, atol=1e-4)


def test_folded_positions_need_their_length() -> None:
    model = load(tiny_module("opt"), tokenizer=tiny_tokenizer())

    def job(nn: Any, tick: Any, where: Any) -> dict[str, Any]:
        with nn.trace(input_ids=torch.tensor(IDS), use_cache=False):
            value = read(nn, where).clone()
        return {"value": value}

    with pytest.raises(Exception, match="read it with pos="):
        model.run(job, {"where": model.places("mlp_out")[0]}, label="read")


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_of_q_k_and_v_are_what_attention_computes_with(family: str) -> None:
    """By hand: k and v of one position, read at the sites, attend to themselves: z is v there."""
    model = load(tiny_module(family), tokenizer=tiny_tokenizer())

    def job(nn: Any, tick: Any, v: Any, z: Any) -> dict[str, Any]:
        with nn.trace(input_ids=torch.tensor(IDS), use_cache=False):
            values = read(nn, v).clone()
            heads = read(nn, z).clone()
        return {"v": values, "z": heads}

    where = {"v": model.places("v")[1], "z": model.places("z")[1]}
    found = model.run(job, where, label="values").values
    values = found["v"].unflatten(-1, (model.n_kv_heads, model.d_head))
    heads = found["z"].unflatten(-1, (model.n_heads, model.d_head))
    mine = values.repeat_interleave(model.n_heads // model.n_kv_heads, -2)
    torch.testing.assert_close(heads[:, 0], mine[:, 0], rtol=1e-4, atol=1e-5)
