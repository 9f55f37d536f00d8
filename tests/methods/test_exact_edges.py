"""What holds for exact edges: against passes by hand, against patches of parts, and at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import nnattr
from nnattr import EdgeScores, LogitDiff, Model, Task
from nnattr.errors import ArchError, ArgumentError, MetricError
from tests.methods.common import (
    TEACHING,
    assert_far,
    assert_same,
    cells,
    even_ioi,
    pairs,
    ragged_ioi,
    ragged_tiny,
    raw_module,
    teaching,
    tiny,
)
from tests.oracles import edges as oracle
from tests.oracles.parts import reaches
from tests.support.families import CORE
from tests.support.users_modules import DONE
from tests.tiny import tiny_module, tiny_tokenizer

#: Senders of all kinds, before and behind a norm or an MLP, and receivers of all kinds.
SENDERS = ("input", "L0H2", "M0", "L1H1")
HEADS = ("L1H1.q", "L2H3.q")
GROUPED = ("L1KV1.k", "L1KV0.v", "L2KV1.k", "L2KV1.v")
APART = ("L1H2.k", "L1H0.v", "L2H3.k", "L2H3.v")
STREAM = ("M1", "M2", "logits")


def receivers(model: Model, ungrouped: bool = False) -> list[str]:
    grouped = model.n_kv_heads < model.n_heads and not ungrouped
    return [*HEADS, *(GROUPED if grouped else APART), *STREAM]


def measured(model: Model, task: Task, **options: Any) -> EdgeScores:
    options = {"senders": list(SENDERS), "receivers": receivers(model), **options}
    return nnattr.path_patching(model, task, LogitDiff(), normalized=False, **options)


def by_hand(
    model: Model, task: Task, like: xr.DataArray, positions: Any, direction: str = "denoising"
) -> np.ndarray:
    """The oracle's [example, sender, receiver, pos]; NaN where there is no edge or position."""
    module, found = raw_module(model), np.full(like.shape, np.nan)
    for example, pair in enumerate(pairs(model, task, direction)):
        mine = cells(task, example, positions)
        for cell, where in enumerate(mine):
            some = [
                (u, v)
                for u in like["sender"].values
                for v in like["receiver"].values
                if reaches(module, u, v)
            ]
            answers = oracle.every_edge(module, pair, some, where)
            for (u, v), value in answers.items():
                at = (list(like["sender"].values).index(u), list(like["receiver"].values).index(v))
                found[(example, *at, cell - len(mine))] = value
    return found


def with_positions(scores: EdgeScores) -> xr.DataArray:
    return scores.raw if "pos" in scores.raw.dims else scores.raw.expand_dims("pos", axis=-1)


@pytest.mark.parametrize("positions", ["all", "last", "where"])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("family", CORE)
def test_edges_at_positions_are_what_patching_by_hand_gives(family, direction, positions):
    """Prompts of three lengths, so that two are padded on the left."""
    model, task = tiny(family), ragged_tiny(tiny(family))
    scores = measured(model, task, direction=direction, positions=positions)
    assert scores.provenance.arguments["engine"] == "suffix"
    found = with_positions(scores)
    assert_same(found, by_hand(model, task, found, positions, direction))


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_edges_at_each_position_are_what_patching_by_hand_gives(family):
    model, task = tiny(family), ragged_tiny(tiny(family))[[0, 1]]
    options: dict[str, Any] = {"senders": ["L0H2", "M0"], "receivers": ["L2H1.q", "M1", "logits"]}
    found = with_positions(measured(model, task, positions="each", **options))
    assert found.sizes["pos"] == 6
    assert_same(found, by_hand(model, task, found, "each"))


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3", "olmo2", "granite", "mixtral"])
def test_ungrouped_a_head_reads_a_key_and_value_of_its_own(family):
    model, task = tiny(family), ragged_tiny(tiny(family))
    if model.n_kv_heads == model.n_heads:
        pytest.skip("this family has no groups")
    some = [*receivers(model, ungrouped=True), "L2H1.qk"]
    found = with_positions(measured(model, task, receivers=some, ungrouped=True))
    assert_same(found, by_hand(model, task, found, "all"))
    grouped = measured(model, task, senders="M0", receivers=["L1KV1.k", "L1KV1.v"])
    for port in "kv":
        shared = grouped.raw.sel(sender="M0", receiver=f"L1KV1.{port}").values
        apart = [("M0", f"L1H{head}.{port}") for head in (2, 3)]
        once = [oracle.together(raw_module(model), pair, apart) for pair in pairs(model, task)]
        assert_same(shared, np.array(once))


@pytest.mark.parametrize("family", CORE)
def test_a_pattern_is_query_and_key_at_once(family):
    model, task = tiny(family), ragged_tiny(tiny(family))
    if family == "falcon-new":
        pytest.skip("the oracle cannot change a key of this family for one head alone")
    found = with_positions(measured(model, task, receivers=["L1H1.qk", "L2H2.qk"]))
    assert_same(found, by_hand(model, task, found, "all"))
    apart = measured(model, task, receivers=["L1H1.q", "L2H2.q"])
    assert_far(apart.raw, found)


@pytest.mark.parametrize("ungrouped", [False, True])
def test_without_groups_ungrouped_changes_nothing(ungrouped):
    model, task = tiny("gpt2"), ragged_tiny(tiny("gpt2"))
    some = measured(model, task, receivers="all", ungrouped=ungrouped)
    plain = measured(model, task, receivers="all")
    np.testing.assert_array_equal(some.raw, plain.raw)


# Identities.


@pytest.mark.parametrize("port", ["q", "k", "v"])
@pytest.mark.parametrize("family", CORE)
def test_the_one_edge_into_a_first_layers_head_is_that_patch(family, port):
    """Only the input writes before it, so that all that it reads is the other run's."""
    model, task = tiny(family), ragged_tiny(tiny(family))
    edge = measured(model, task, senders="input", receivers=port)
    node = nnattr.activation_patching(model, task, LogitDiff(), site=port, normalized=False)
    first = edge.raw.isel(
        sender=0, receiver=[str(v).startswith("L0") for v in edge.raw.receiver.values]
    )
    assert_same(first, node.raw.sel(layer=0))


@pytest.mark.parametrize("family", CORE)
def test_the_edge_of_a_last_writer_into_the_logits_is_all_of_it(family):
    """Nothing else reads a last MLP, nor beside a parallel one a last head."""
    model, task = tiny(family), ragged_tiny(tiny(family))
    last = model.n_layers - 1
    direct = measured(model, task, senders=[f"M{last}", f"L{last}H1"], receivers="logits").raw
    patch = nnattr.activation_patching
    mlp = patch(model, task, LogitDiff(), site="mlp_out", normalized=False).raw.sel(layer=last)
    assert_same(direct.sel(sender=f"M{last}", receiver="logits"), mlp)
    head = patch(model, task, LogitDiff(), site="z", normalized=False).raw.sel(layer=last, head=1)
    if model.spec.parallel:
        assert_same(direct.sel(sender=f"L{last}H1", receiver="logits"), head)
    else:
        assert_far(direct.sel(sender=f"L{last}H1", receiver="logits"), head, 1e-3)


@pytest.mark.parametrize("name", TEACHING)
def test_edges_into_the_logits_go_with_what_is_attributed_directly(name):
    """They differ by the final norm, which is frozen there: a control of sign, order and scale."""
    model = teaching(name)
    task = even_ioi(model, 3)
    direct = nnattr.path_patching(model, task, LogitDiff(), senders="heads", normalized=False)
    parts = [
        nnattr.direct_logit_attribution(model, task, unit="head", run=run)
        for run in ("clean", "corrupted")
    ]
    heads = (parts[0].raw - parts[1].raw).mean("example").values.ravel()
    ours = direct.raw.mean("example").values.ravel()
    assert np.corrcoef(ours, heads)[0, 1] > 0.95


def test_a_run_patched_with_itself_says_that_it_tests_nothing():
    """The first position is alike in both runs: 0 there is no finding, and is not among values."""
    model, task = tiny("llama"), ragged_tiny(tiny("llama"))
    scores = measured(model, task, positions=[0])
    assert float(abs(scores.raw).max()) == 0.0
    assert scores.testable is not None
    assert not scores.testable.any()
    assert scores.values.isnull().all()
    assert scores.n_untestable == int(scores.raw.notnull().any("example").sum())


# The engine, and where it runs.


@pytest.mark.parametrize("family", CORE)
def test_the_engine_is_what_full_passes_give(family):
    model, task = tiny(family), ragged_tiny(tiny(family))
    ours = measured(model, task, receivers="all", senders="all")
    full = measured(model, task, receivers="all", senders="all", engine="full")
    assert ours.provenance.arguments["engine"] == "suffix"
    assert full.provenance.arguments["engine"] == "full"
    assert_same(ours.raw, full.raw)


@pytest.mark.parametrize("name", TEACHING)
def test_simulated_is_local(name):
    task = ragged_ioi(teaching(name))
    options: dict[str, Any] = {
        "senders": ["input", "L0H1", "M1"],
        "receivers": ["L2H0.q", "M2", "logits"],
    }
    here, there = (
        measured(teaching(name, backend), task, positions="S2", **options)
        for backend in ("local", "simulated")
    )
    assert_same(there.raw, here.raw, 1e-6)
    assert there.raw.coords.identical(here.raw.coords)
    assert (there.provenance.backend, there.provenance.jobs) == ("simulated", 1)


@pytest.mark.parametrize("name", TEACHING)
def test_half_precision_says_the_same(name):
    exact, rounded = (
        nnattr.load(name, device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16")
    )
    task = nnattr.tasks.ioi(exact.tokenizer, n=8, seed=0)
    found = [
        measured(model, task, senders="heads", receivers=["L2H0.q", "L3H1.q", "logits"])
        for model in (exact, rounded)
    ]
    assert found[1].provenance.dtype == "bfloat16"
    right, off = (one.raw.mean("example") for one in found)
    assert 0 < float(abs(right - off).max()) < 0.02 * float(abs(right).max())


def test_a_model_in_training_mode_is_run_without_dropout_and_left_as_it_was():
    module = tiny_module("llama", attention_dropout=0.5)
    model = nnattr.load(module, tokenizer=tiny_tokenizer())
    task = ragged_tiny(model)
    calm = measured(model, task)
    module.train()
    again = measured(model, task)
    np.testing.assert_array_equal(again.raw, calm.raw)
    assert module.training


@pytest.mark.parametrize("engine", ["suffix", "full"])
def test_weights_that_are_not_numbers_are_refused(engine):
    module = tiny_module("llama")
    module.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    model = nnattr.load(module, tokenizer=tiny_tokenizer())
    with pytest.raises(MetricError, match=r"nan on the run.*'w3 w4 w5 w6 w7 w8'"):
        measured(model, ragged_tiny(model), engine=engine)


#: Those of `DONE` under which the stream is a sum of what the oracle's modules add.
SUMS = (
    "output projection scaled",
    "output projection bent",
    "output projection fed",
    "output projection of another class",
    "output projection's forward",
    "MLP bent",
    "down-projection scaled",
    "norm fed",
    "embedding scaled",
    "final norm bent",
    "unembedding's bias",
    "unembedding of another class",
    "unembedding's forward",
    "model's bias",
)
NO_SUMS = ("layer scaled", "last layer bent", "layer fed", "attention scaled")


@pytest.mark.parametrize("done", SUMS)
def test_what_somebody_did_to_a_module_is_part_of_the_model(done):
    module = tiny_module("llama")
    before = measured(tiny("llama"), ragged_tiny(tiny("llama")))
    DONE[done](module)
    model = nnattr.load(module, tokenizer=tiny_tokenizer())
    task = ragged_tiny(model)
    found = with_positions(measured(model, task))
    assert_same(found, by_hand(model, task, found, "all"))
    if "'s bias" not in done:  # a constant is none for a difference of logits
        assert_far(found, with_positions(before), 1e-3)


@pytest.mark.parametrize("engine", ["suffix", "full"])
@pytest.mark.parametrize("done", NO_SUMS)
def test_a_stream_that_is_no_sum_is_refused(done, engine):
    module = tiny_module("llama")
    DONE[done](module)
    model = nnattr.load(module, tokenizer=tiny_tokenizer())
    with pytest.raises(ArchError, match="not the sum of what its parts write"):
        measured(model, ragged_tiny(model), engine=engine)


# What cannot be asked.


@pytest.mark.parametrize(
    ("family", "options", "says"),
    [
        ("gpt2", {"senders": "L3H0"}, "heads L0H0 to L2H3"),
        ("gpt2", {"senders": "L0H9"}, "heads L0H0 to L2H3"),
        ("gpt2", {"senders": "L0H1.q"}, "what a head reads"),
        ("gpt2", {"senders": "logits"}, "does not write"),
        ("gpt2", {"senders": "nonsense"}, "'nonsense'"),
        ("gpt2", {"receivers": "input"}, "does not read"),
        ("gpt2", {"receivers": "L1KV0.k"}, r"L1H0\.k"),
        ("llama", {"receivers": "L1H1.k"}, r"L1KV0\.k.*ungrouped=True"),
        ("gpt2", {"edges": [("L1H0", "L0H1.q")]}, "L1H0.*L0H1"),
        ("gpt2", {"edges": [("L1H0", "L1H1.q")]}, "L1H0.*L1H1"),
        ("gpt2", {"edges": "L2H0->M1"}, "L2H0.*M1"),
        ("gpt_neox", {"edges": [("L1H0", "M1")]}, "L1H0->M1.*parallel"),
        ("gpt2", {"senders": []}, "senders"),
        ("gpt2", {"receivers": []}, "receivers"),
        ("gpt2", {"edges": []}, "edges"),
    ],
)
def test_edges_that_there_are_not(family, options, says):
    model = tiny(family)
    with pytest.raises((ArchError, ArgumentError), match=says):
        nnattr.path_patching(model, ragged_tiny(model), LogitDiff(), **options)


def test_senders_none_of_which_reaches_a_receiver():
    model = tiny("gpt2")
    with pytest.raises(ArchError, match=r"L2H0|edge"):
        nnattr.path_patching(
            model, ragged_tiny(model), LogitDiff(), senders=["L2H0"], receivers=["L1H0.q"]
        )


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_steering_adds_the_same_to_both_runs_and_takes_no_edge_away(family):
    model = tiny(family)
    steered = nnattr.edited(
        model, nnattr.edit.steer(2, torch.linspace(-1, 1, model.config.hidden_size))
    )
    task = ragged_tiny(model)
    ours, full = (measured(steered, task, engine=engine).raw for engine in ("suffix", "full"))
    assert_same(ours, full)
    assert_far(ours, measured(model, task).raw, 1e-3)
