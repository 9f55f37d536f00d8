"""Weight circuits against the dense matrices that they stand for, and on every family."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import nnattr
from nnattr import NnattrError, weights
from nnattr.errors import ArchError, ArgumentError, ResultError, TaskError
from nnattr.maps import attention
from nnattr.maps.linear import by_probing
from nnattr.methods.weight_circuits import weight_circuit_job
from nnattr.model import attention_form
from tests.methods.common import TEACHING, raw_module, teaching, tiny
from tests.methods.weight_circuits.common import dense, ov, qk
from tests.support.families import ALIBI, NORMED, UNTURNED
from tests.tiny import FAMILIES, HEADS, tiny_model

HEAD, PREVIOUS = (1, 0), (0, 0)


def accuracy(matrix: Tensor, top_k: int) -> float:
    best = matrix.topk(top_k, dim=1).indices
    return float((best == torch.arange(len(matrix))[:, None]).any(1).float().mean())


@pytest.mark.parametrize("name", TEACHING)
@pytest.mark.parametrize("head", [(1, 0), (0, 2), (3, 3)])
def test_an_ov_circuit_is_its_dense_matrix(name: str, head: Any) -> None:
    """The notebook's OV circuit: W_E W_V W_O W_U, its diagonal and its accuracy."""
    model, w = teaching(name), dense(name)
    expected = w["E"] @ ov(name, *head) @ w["U"]
    circuit = weights.ov(model, head)
    for top_k in (1, 5):
        assert circuit.copying_accuracy(top_k) == pytest.approx(accuracy(expected, top_k))
    assert circuit.copying_accuracy(by="column") == pytest.approx(accuracy(expected.T, 1))
    assert circuit.norm() == pytest.approx(float(torch.linalg.matrix_norm(expected)), rel=1e-4)
    ids = [5, 700, 9, 1201]
    block = circuit.block(ids).values
    torch.testing.assert_close(
        torch.tensor(block.values), expected[ids][:, ids], rtol=1e-4, atol=1e-4
    )
    assert block.dims == ("input", "output")
    values = torch.linalg.eigvals(expected)
    largest = values[values.abs().argsort(descending=True)][: w["size"]]
    score = float(largest.real.sum() / largest.abs().sum())
    assert circuit.copying_score() == pytest.approx(score, abs=1e-3)
    assert len(circuit.eigenvalues()) == w["size"]


@pytest.mark.parametrize("name", TEACHING)
def test_several_heads_are_summed(name: str) -> None:
    """The notebook's effective OV circuit of two heads that attend alike."""
    model, w = teaching(name), dense(name)
    both = w["E"] @ (ov(name, 1, 0) + ov(name, 1, 2)) @ w["U"]
    circuit = weights.ov(model, [(1, 0), (1, 2)])
    assert circuit.name == "OV circuit of L1H0 + L1H2"
    assert circuit.copying_accuracy() == pytest.approx(accuracy(both, 1))
    assert circuit.norm() == pytest.approx(float(torch.linalg.matrix_norm(both)), rel=1e-4)


@pytest.mark.parametrize("name", TEACHING)
def test_qk_and_composed_circuits_are_their_dense_matrices(name: str) -> None:
    """The notebook's K-composition circuit, W_E W_QK (W_OV)^T W_E^T, and its kin."""
    model, w = teaching(name), dense(name)
    e, inner, before = w["E"], qk(name, *HEAD), ov(name, *PREVIOUS)
    cases = {
        "plain": (weights.qk(model, HEAD), e @ inner @ e.T),
        "key": (weights.qk(model, HEAD, key_via=PREVIOUS), e @ inner @ before.T @ e.T),
        "query": (weights.qk(model, HEAD, query_via=PREVIOUS), e @ before @ inner @ e.T),
        "value": (weights.ov(model, (2, 1), via=HEAD), None),
    }
    behind = e @ ov(name, *HEAD) @ ov(name, 2, 1) @ w["U"]
    cases["value"] = (cases["value"][0], behind)
    for circuit, expected in cases.values():
        assert expected is not None
        assert circuit.norm() == pytest.approx(float(torch.linalg.matrix_norm(expected)), rel=1e-4)
        block = circuit.block([3, 44, 555], [7, 8]).values
        torch.testing.assert_close(
            torch.tensor(block.values),
            expected[[3, 44, 555]][:, [7, 8]],
            rtol=1e-4,
            atol=1e-4 * float(expected.abs().max()),
        )
    circuit, expected = cases["key"]
    assert circuit.copying_accuracy() == pytest.approx(accuracy(expected, 1))
    assert circuit.copying_accuracy(by="column") == pytest.approx(accuracy(expected.T, 1))
    assert circuit.block([3]).values.dims == ("query", "key")


@pytest.mark.parametrize("name", TEACHING)
def test_the_induction_circuit_is_in_the_weights(name: str) -> None:
    """It copies; it looks for the token after its own copy through L0H0, and through no other."""
    model = teaching(name)
    assert weights.ov(model, HEAD).copying_accuracy() > 0.8
    assert weights.ov(model, HEAD).copying_score() > 0.9
    assert weights.ov(model, PREVIOUS).copying_accuracy(5) < 0.01
    assert weights.qk(model, HEAD, key_via=PREVIOUS).copying_accuracy() > 0.85
    assert weights.qk(model, HEAD, key_via=PREVIOUS).copying_accuracy(by="column") > 0.8
    for other in (1, 2, 3):
        assert weights.qk(model, HEAD, key_via=(0, other)).copying_accuracy() < 0.01
    assert weights.qk(model, HEAD).copying_accuracy() < 0.05


def test_the_position_pattern_is_the_notebooks() -> None:
    """softmax of the masked, scaled W_pos W_QK W_pos^T."""
    name = "teaching-gpt2"
    w = dense(name)
    for head in (0, 2):
        scores = w["pos"] @ qk(name, 0, head) @ w["pos"].T / w["size"] ** 0.5
        mask = torch.ones_like(scores).tril().bool()
        expected = scores.masked_fill(~mask, -1e6).softmax(-1)
        found = weights.position_pattern(teaching(name), (0, head)).values
        assert found.dims == ("query_pos", "key_pos")
        torch.testing.assert_close(torch.tensor(found.values), expected, rtol=1e-4, atol=1e-6)
    figure: Any = nnattr.plots.matrix(found[:20, :20])
    assert figure.data[0].z.shape == (20, 20)
    assert "position circuit of L0H2" in figure.layout.title.text


def test_positions_alone_make_a_previous_token_head() -> None:
    """With the norm, whose scale makes short position embeddings count."""
    model = teaching("teaching-gpt2")
    previous = [
        float(np.diag(weights.position_pattern(model, (0, head), fold_norm=True), -1).mean())
        for head in range(4)
    ]
    assert previous[0] > 0.5
    assert max(previous[1:]) < 0.1
    with pytest.raises(ArchError, match="no table of position embeddings"):
        weights.position_pattern(teaching("teaching-llama"), (0, 0))


@pytest.mark.parametrize("family", ["llama", "cohere", "gpt_neox", "phi", "falcon", "stablelm"])
def test_the_circuit_at_a_distance_has_the_models_own_rotation(family: str) -> None:
    """Against the family's rotary module and its own function, also where it turns a part only."""
    model = tiny(family)
    module = raw_module(model)
    backbone = module.get_submodule(model.spec.layers.rpartition(".")[0])
    table = module.get_submodule(model.spec.embed).weight.detach()
    layer = module.get_submodule(model.spec.layers)[1]
    apply = sys.modules[type(module).__module__].apply_rotary_pos_emb
    position, distance = 9, 4
    like = torch.zeros(1, 2, 1)
    cos, sin = backbone.rotary_emb(like, torch.tensor([[position, position - distance]]))
    part = cos.shape[-1]
    qkv = model.spec.qkv
    assert qkv is not None
    ids = [7, 30]
    with torch.no_grad():
        inputs = zip(qkv[:2], ids, strict=True)
        outs = [layer.get_submodule(path)(table[[one]])[0] for path, one in inputs]
        bare = [layer.get_submodule(path)(torch.zeros_like(table[:1]))[0] for path in qkv[:2]]
    heads = []
    for name, out, bias in zip("qk", outs, bare, strict=True):
        place = model.places(name)[1][2]  # type: ignore[arg-type]
        heads.append(attention_heads(out - bias, place, name, model))
    states = torch.stack([heads[0], heads[1]], 1)[None]  # [1, head, (query, key), d_head]
    turned, _ = apply(states[..., :part], states[..., :part], cos, sin)
    whole = torch.cat([turned, states[..., part:]], -1)[0]
    expected = (whole[:, 0] * whole[:, 1]).sum(-1)
    circuits = [
        [
            weights.qk(model, (1, head), distance=far).block([7], [30]).values.item()
            for head in range(HEADS)
        ]
        for far in (distance, 0)
    ]
    torch.testing.assert_close(torch.tensor(circuits[0]), expected, rtol=1e-3, atol=1e-4)
    assert float((torch.tensor(circuits[1]) - expected).abs().max()) > 0.02


def attention_heads(out: Tensor, part: Any, name: str, model: Any) -> Tensor:
    """A projection's output as heads [head, d_head], shared ones repeated."""
    if part is not None:
        groups, first, last = part
        out = out.reshape(groups, -1)[:, first:last].reshape(-1)
    heads = model.n_heads if name == "q" else model.n_kv_heads
    return out.reshape(heads, -1).repeat_interleave(model.n_heads // heads, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_circuits_or_says_what_is_missing(family: str) -> None:
    model = tiny(family)
    for fold_norm in (False, True):
        assert np.isfinite(weights.ov(model, (1, 2), fold_norm=fold_norm).norm())
    if family in NORMED:
        with pytest.raises(ArchError, match="norms its queries and keys inside attention"):
            weights.qk(model, (1, 2))
        return
    circuit = weights.qk(model, (1, 2))
    if family in ALIBI:
        with pytest.raises(ArchError, match="adds a bias for the distance"):
            circuit.norm()
        return
    assert np.isfinite(circuit.norm())
    far = weights.qk(model, (1, 2), distance=3, fold_norm=True)
    if family in UNTURNED:
        with pytest.raises(ArchError, match="not rotary"):
            far.norm()
        return
    near = weights.qk(model, (1, 2), fold_norm=True)
    assert np.abs(far.block([3, 4, 5]).values - near.block([3, 4, 5]).values).max() > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "falcon-new", "gemma2", "gptj"])
def test_a_simulated_server_gives_the_same(family: str) -> None:
    here, there = tiny(family), tiny_model(family, backend="simulated")
    for make in (
        lambda model: weights.ov(model, [(1, 0), (2, 3)], fold_norm=True),
        lambda model: weights.qk(model, (2, 1), key_via=(0, 3)),
    ):
        one, other = make(here), make(there)
        assert other.norm() == pytest.approx(one.norm(), rel=1e-5)
        assert other.copying_accuracy() == one.copying_accuracy()
        np.testing.assert_allclose(other.block([3, 4]), one.block([3, 4]), rtol=1e-4, atol=1e-5)
        assert other.directions(2, 3).equals(other.directions(2, 3))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    circuits = [weights.ov(model, (1, 2)), weights.qk(model, (1, 2), key_via=(0, 1))]
    at_once = [(one.copying_accuracy(3), one.norm()) for one in circuits]
    monkeypatch.setattr(weight_circuit_job, "NUMBERS_AT_ONCE", 300)
    for one, (share, norm) in zip(circuits, at_once, strict=True):
        assert one.copying_accuracy(3) == share
        assert one.norm() == pytest.approx(norm, rel=1e-5)


def test_directions_name_tokens_that_go_together() -> None:
    """Rows and columns at one end: the product of their entries is positive."""
    name = "teaching-gpt2"
    model, w = teaching(name), dense(name)
    table = weights.ov(model, HEAD).directions(k=3, tokens=4)
    assert list(table.columns) == ["direction", "singular_value", "side", "end", "token", "weight"]
    assert len(table) == 3 * 2 * 2 * 4
    s = torch.linalg.svdvals(w["E"] @ ov(name, *HEAD) @ w["U"])
    np.testing.assert_allclose(table["singular_value"].unique(), s[:3], rtol=1e-4)
    for (_, _, end), rows in table.groupby(["direction", "side", "end"]):
        assert (rows["weight"] > 0).all() == (end == "+")
    assert set(table["token"]) <= {model.tokenizer.decode([i]) for i in range(len(w["E"]))}


def test_weights_that_are_not_the_models_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof: with another scale, other heads or another norm nothing is returned."""
    model = tiny("llama")
    monkeypatch.setattr(attention_form, "_scales", lambda *_: (0.9,))
    with pytest.raises(ArchError, match="the heads' outputs differ by"):
        weights.qk(model, (1, 2)).norm()
    monkeypatch.undo()
    monkeypatch.setattr(attention_form, "_norms", lambda *_: ())
    with pytest.raises(ArchError, match="the norm in front differ by"):
        weights.ov(model, (1, 2), fold_norm=True).norm()
    monkeypatch.undo()
    monkeypatch.setattr(type(model), "n_kv_heads", 4)
    with pytest.raises(NnattrError):
        weights.ov(model, (1, 2)).norm()


def test_what_makes_no_sense_is_refused() -> None:
    model = tiny("llama")
    for head in ((9, 0), (0, 9), "head 1", (1, 2, 3), (-1, 0)):
        with pytest.raises(ArchError, match=r"has no head|is not a part"):
            weights.ov(model, [head])  # type: ignore[list-item]
    assert weights.ov(model, "L1H2").name == weights.ov(model, (1, 2)).name
    assert weights.ov(model, ["1.2", (2, 0)]).name == "OV circuit of L1H2 + L2H0"
    with pytest.raises(ArchError, match="No heads were given"):
        weights.ov(model, [])
    with pytest.raises(ArchError, match="not in a layer before"):
        weights.ov(model, (1, 0), via=(1, 2))
    with pytest.raises(ArchError, match="not in a layer before"):
        weights.qk(model, (1, 0), key_via=(2, 2))
    with pytest.raises(ArgumentError, match="distance is "):
        weights.qk(model, (1, 0), distance=-1)
    for options in ({"top_k": 0}, {"by": "diagonal"}):
        with pytest.raises(ArgumentError, match=r"(by|top_k) is "):
            weights.ov(model, (1, 0)).copying_accuracy(**options)
    with pytest.raises(TaskError, match="is not in the tokenizer"):
        weights.ov(model, (1, 0)).block(["nothing"])
    with pytest.raises(ResultError, match="A matrix has two dimensions"):
        nnattr.plots.matrix(weights.ov(model, (1, 0)).block(["w5", "w6"]).values[0])


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_modules_are_asked_where_weights_cannot_be_seen(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a server whose job sees no parameters: what modules make of unit vectors is enough."""
    model = tiny(family)
    circuits = [
        weights.ov(model, (1, 2), fold_norm=True),
        weights.qk(model, (2, 1), key_via=(0, 3)),
    ]
    seen = [one.block([3, 40, 7]).values for one in circuits]
    calls = []

    def probing(*arguments: Any) -> Any:
        calls.append(arguments)
        return by_probing(*arguments)

    for home in (attention, weight_circuit_job):
        monkeypatch.setattr(home, "linear_map", probing)
    for one, expected in zip(circuits, seen, strict=True):
        np.testing.assert_allclose(one.block([3, 40, 7]), expected, rtol=1e-3, atol=1e-4)
    assert len(calls) > 4


def test_half_precision_finds_the_same_circuit() -> None:
    model = nnattr.load("teaching-llama", device="cpu", dtype="bfloat16")
    exact = weights.ov(teaching("teaching-llama"), HEAD).copying_accuracy()
    assert weights.ov(model, HEAD).copying_accuracy() == pytest.approx(exact, abs=0.01)
    found = weights.qk(model, HEAD, key_via=PREVIOUS).copying_accuracy()
    assert found > 0.9


@pytest.mark.parametrize("name", TEACHING)
def test_one_heads_matrices(name: str) -> None:
    """Those of the raw module, shared heads as well, and factored products that agree with jobs."""
    model, w = teaching(name), dense(name)
    for layer, head in ((0, 3), (1, 0), (2, 2)):
        found = weights.head(model, (layer, head))
        for key in "qkvo":
            torch.testing.assert_close(getattr(found, f"W_{key.upper()}"), w[key][layer][head])
        torch.testing.assert_close(found.ov.dense(), ov(name, layer, head))
        torch.testing.assert_close(found.qk.dense(), qk(name, layer, head))
        circuit = w["E"] @ found.ov @ w["U"]
        assert float(circuit.norm()) == pytest.approx(weights.ov(model, (layer, head)).norm())
    assert (found.b_V.abs().max() > 0) == (name == "teaching-gpt2")
    folded = weights.head(model, HEAD, fold_norm=True)
    plain = weights.head(model, HEAD)
    if name == "teaching-gpt2":
        assert float(folded.W_V.mean(0).abs().max()) < 1e-6
        assert float(folded.W_O.mean(1).abs().max()) < 1e-6
    assert not torch.allclose(folded.W_Q, plain.W_Q)
    assert repr(plain) == f"HeadWeights(head={HEAD})"


def test_unknown_projections_are_refused() -> None:
    """As of latent attention, which compresses keys and values before it splits them."""
    model = tiny("llama")
    unknown = replace(model, spec=replace(model.spec, qkv=None))
    for call in (
        lambda: weights.ov(unknown, (1, 0)).norm(),
        lambda: weights.qk(unknown, (1, 0)),
        lambda: nnattr.weights.composition(unknown, "V"),
        lambda: weights.head(unknown, (1, 0)),
        lambda: nnattr.decompose_attention(unknown, "w3 w4", (1, 0)),
    ):
        with pytest.raises(ArchError, match="makes queries, keys and values in a way"):
            call()
