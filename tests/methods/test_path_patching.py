"""Every edge with all else frozen, against whole passes of the raw module with plain hooks."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch

import nnattr
from nnattr import LogitDiff, Model, Task
from nnattr import edit as edit_
from nnattr.errors import ArchError
from tests.methods.common import assert_same, pairs, raw_module
from tests.oracles import edges as oracle
from tests.oracles.parts import all_edges
from tests.support.engine import LayerByLayer, pair, task
from tests.tiny import FAMILIES, tiny_model

#: Norms before, behind, and both; parallel; one norm each; residual multiplier; experts; grouped.
LAYOUTS = ("gpt2", "llama", "gemma2", "olmo2", "gpt_neox", "falcon-new", "granite", "mixtral")
TOLERANCE = 1e-5


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def question(model: Model) -> Task:
    """Two pairs of unequal lengths, so that one is padded."""
    return task(model, pair(9, 4), pair(6, 3, shift=5))


def scored(model: Model, asked: Task, **options: Any) -> nnattr.EdgeScores:
    found = nnattr.path_patching(model, asked, LogitDiff(), normalized=False, **options)
    assert isinstance(found, nnattr.EdgeScores)
    return found


def assert_agrees(scores: nnattr.EdgeScores, model: Model, asked: Task, n: int, **options: Any):
    """A sample of edges against the oracle, all layers and ports in it."""
    module, raw = raw_module(model), scores.raw
    every = [
        (str(u), str(v))
        for u in raw["sender"].values
        for v in raw["receiver"].values
        if not np.isnan(raw.sel(sender=u, receiver=v)).all()
    ]
    some = every if len(every) <= n else random.Random(0).sample(every, n)
    size = float(np.nanmax(np.abs(raw)))
    assert size > 1e-3, "the control: there is an effect"
    for example, one in enumerate(pairs(model, asked, **options)):
        theirs = oracle.every_edge(module, one, some)
        for (sender, receiver), value in theirs.items():
            ours = float(raw.sel(example=example, sender=sender, receiver=receiver))
            gap = abs(ours - value)
            assert gap <= TOLERANCE * max(1.0, size), (sender, receiver, ours, value)


@pytest.mark.parametrize("family", FAMILIES)
def test_edges_of_every_family(family):
    model = tiny_model(family)
    asked = question(model)
    scores = scored(model, asked, receivers="all")
    assert scores.provenance.arguments["engine"] == "suffix"
    expected = set(all_edges(raw_module(model)))
    there = {
        (str(u), str(v))
        for u in scores.raw["sender"].values
        for v in scores.raw["receiver"].values
        if not np.isnan(scores.raw.sel(sender=u, receiver=v)).all()
    }
    assert there == expected
    assert_agrees(scores, model, asked, 24)


@pytest.mark.parametrize("family", LAYOUTS)
@pytest.mark.parametrize("asked_for", ["each", "noising", "late"])
def test_positions_and_directions(family, asked_for):
    model = tiny_model(family)
    asked = question(model)
    some = {"each": "each", "noising": "all", "late": [-2, -1]}[asked_for]
    direction = "noising" if asked_for == "noising" else "denoising"
    parts = {"senders": ["input", "L0H1", "M1"], "receivers": ["L1H2", "L2H3", "M2", "logits"]}
    scores = scored(model, asked, positions=some, direction=direction, **parts)
    full = scored(model, asked, positions=some, direction=direction, engine="full", **parts)
    assert scores.provenance.arguments["engine"] == "suffix"
    assert full.provenance.arguments["engine"] == "full"
    assert_same(scores.raw.to_numpy(), full.raw.to_numpy())
    module = raw_module(model)
    for example, one in enumerate(pairs(model, asked, direction)):
        length = one.base.shape[1]
        for sender, receiver in (("M1", "logits"), ("L0H1", "M2"), ("input", "L2H3.q")):
            ours = scores.raw.sel(example=example, sender=sender, receiver=receiver)
            for at in range(-length, 0) if asked_for == "each" else [None]:
                cell = {"each": [at], "late": [-2, -1], "noising": None}[asked_for]
                cell = None if cell is None else [length + position for position in cell]
                theirs = oracle.one_edge(module, one, sender, receiver, cell)
                value = float(ours if at is None else ours[at])
                assert value == pytest.approx(theirs, abs=TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2", "gpt_bigcode", "cohere"])
def test_heads_that_share_a_key_one_by_one(family):
    """Ungrouped, that head's scores alone change; a pattern is its query and key at once."""
    model = tiny_model(family)
    asked, module = question(model), raw_module(model)
    receivers = ["L1H1.k", "L1H1.v", "L2H3.k", "L1H1.qk"]
    found = [
        scored(model, asked, receivers=receivers, ungrouped=True, engine=engine)
        for engine in ("suffix", "full")
    ]
    assert_same(found[0].raw, found[1].raw)
    for example, one in enumerate(pairs(model, asked)):
        edges = [("M0", receiver) for receiver in receivers]
        for (sender, receiver), value in oracle.every_edge(module, one, edges).items():
            ours = found[0].raw.sel(example=example, sender=sender, receiver=receiver)
            assert float(ours) == pytest.approx(value, abs=TOLERANCE)
    shared = scored(model, asked, senders="M0", receivers="L1H1.qk")
    assert_same(shared.raw, found[0].raw.sel(sender=["M0"], receiver=["L1H1.qk"]))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_what_reads_the_input_alone_is_patched_with_it(family):
    """The first layer's queries, keys and values have one sender."""
    model = tiny_model(family)
    asked = question(model)
    ports: tuple[Literal["q", "k", "v"], ...] = ("q", "k", "v")
    for port in ports:
        edges = scored(model, asked, senders="input", receivers=port)
        nodes = nnattr.activation_patching(model, asked, LogitDiff(), site=port, normalized=False)
        first = nodes.raw.isel(layer=0).to_numpy()
        assert_same(edges.raw.isel(sender=0)[:, : first.shape[1]].to_numpy(), first)


@pytest.mark.parametrize("metric", [nnattr.KL(), nnattr.Loss()])
def test_metrics_that_read_all_tokens_or_positions(metric):
    model = tiny_model("llama")
    asked = question(model)
    found = [
        nnattr.path_patching(
            model, asked, metric, receivers=["logits", "M2", "L2H1"],
            normalized=False, engine=engine,
        )
        for engine in ("suffix", "full")
    ]  # fmt: skip
    assert_same(found[0].raw, found[1].raw)


def test_what_the_two_runs_do_not_differ_in_is_not_testable():
    model = tiny_model("gpt2")
    scores = scored(model, task(model, pair(9, 4)), receivers="all", positions="each")
    assert scores.testable is not None
    assert not scores.testable.sel(pos=[0, 1, 2, 3]).any()
    assert scores.testable.sel(sender="input", receiver="L0H0.q", pos=4)
    assert not scores.testable.sel(sender="input", receiver="logits").any()
    assert float(abs(scores.raw.where(~scores.testable)).max()) == 0.0
    assert scores.raw.sel(sender="M1", receiver="M1").isnull().all()


def test_chosen_edges_alone():
    model = tiny_model("llama")
    asked = question(model)
    every = scored(model, asked, receivers="all")
    some = scored(model, asked, edges=["L0H2->L1KV0.k", ("M0", "L2H1.q"), ("M2", "logits")])
    assert int(some.raw.notnull().any("example").sum()) == 3
    for sender, receiver in (("L0H2", "L1KV0.k"), ("M0", "L2H1.q"), ("M2", "logits")):
        one = some.raw.sel(sender=sender, receiver=receiver)
        assert_same(one, every.raw.sel(sender=sender, receiver=receiver))
    for wrong, said in (
        ({"receivers": "L1H1.k"}, "L1KV0"),
        ({"edges": [("L2H0", "L1H1.q")]}, "no edge"),
        ({"edges": []}, "No edges"),
        ({"senders": "L7H0"}, "does not write"),
    ):
        with pytest.raises(ArchError, match=said):
            scored(model, asked, **wrong)


def test_elsewhere_the_numbers_are_the_same():
    here, there = tiny_model("gemma2"), tiny_model("gemma2", backend="simulated")
    found, expected = (scored(one, question(one), receivers="all") for one in (there, here))
    assert_same(found.raw, expected.raw)


def test_few_bytes_and_a_reduced_answer():
    model = tiny_model("gpt2")
    asked = question(model)
    whole = scored(model, asked, receivers="all")
    small = scored(model, asked, receivers="all", max_memory=200_000)
    assert small.provenance.rows_per_forward < whole.provenance.rows_per_forward
    assert_same(small.raw, whole.raw)
    mean = scored(model, asked, receivers="all", per_example=False)
    assert "example" not in mean.raw.dims
    assert_same(mean.raw, whole.mean().raw)
    assert mean.error is not None
    assert_same(mean.error, whole.mean().error)
    assert mean.provenance.arguments["per_example"] is False


def test_jobs_of_some_receivers_and_a_checkpoint(tmp_path, monkeypatch):
    model = tiny_model("llama")
    asked = question(model)
    whole = scored(model, asked, receivers="all")
    parts = replace(model, backend=LayerByLayer())
    some = scored(parts, asked, receivers="all", checkpoint=tmp_path)
    assert_same(some.raw, whole.raw)
    assert (some.testable == whole.testable).all()
    monkeypatch.setattr("nnattr.engine.edges.passes", lambda *_: pytest.fail("all of it is known"))
    again = scored(parts, asked, receivers="all", checkpoint=tmp_path)
    assert_same(again.raw, whole.raw)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox"])
def test_under_edits(family):
    """A head and an MLP that say nothing, and a vector: each edge against a full pass."""
    model = tiny_model(family)
    vector = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(3))
    for edit, silent in (
        (edit_.steer(1, vector), None),
        (edit_.ablate("L0H1"), "L0H1"),
        (edit_.ablate("M0"), "M0"),
    ):
        edited = nnattr.edited(model, edit)
        ours, full = (
            scored(edited, question(model), receivers=["L1H2", "M2", "logits"], engine=engine)
            for engine in ("suffix", "full")
        )
        assert_same(ours.raw, full.raw)
        if silent:
            assert float(abs(ours.raw.sel(sender=silent)).max()) == 0.0
    with pytest.raises(ArchError, match="sum of what its parts write"):
        scored(nnattr.edited(model, edit_.ablate("L1 attn")), question(model))


@pytest.mark.parametrize("hooked", ["mlp", "attn.c_proj", "attn.c_attn", "ln_1", "attn", ""])
def test_hooks_of_users_are_a_part_of_the_model(hooked):
    model = tiny_model("gpt2")
    module = raw_module(model)
    target = module.get_submodule(f"transformer.h.1{'.' * bool(hooked)}{hooked}")

    def louder(_: Any, __: Any, output: Any) -> Any:
        return (1.5 * output[0], *output[1:]) if isinstance(output, tuple) else 1.5 * output

    with target.register_forward_hook(louder):
        asked, some = question(model), ["L1H2", "L2H1", "M1", "logits"]
        if hooked not in ("attn", ""):
            assert_agrees(scored(model, asked, receivers=some), model, asked, 20)
            return
        for engine in ("suffix", "full"):  # what parts write is scaled once more, behind them
            with pytest.raises(ArchError, match="is not the sum of what its parts write"):
                scored(model, asked, receivers=some, engine=engine)


@pytest.mark.parametrize("port", ["k", "v"])
def test_one_receiver_in_the_last_layer_is_not_taken_for_another_by_full_passes(port):
    """Its positions change before the last one, where alone its rows are wanted."""
    model = tiny_model("llama")
    last = f"L{model.n_layers - 1}KV0.{port}"
    asked = task(model, pair(9, 3), pair(9, 4, shift=5))
    scores = scored(model, asked, receivers=last)
    assert scores.provenance.arguments["engine"] == "suffix", scores.provenance.fell_back
    assert_agrees(scores, model, asked, 12)
