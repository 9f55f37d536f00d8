"""Edges patched together, and single paths, against literal passes and what must hold anyway."""

from __future__ import annotations

import pytest
import torch

import nnattr
from nnattr import KL, LogitDiff, Loss
from nnattr.engine import joint_pass
from nnattr.graph import parse
from nnattr.model.graph import graph_of
from tests.methods.common import cells, pairs, ragged_tiny, raw_module, tiny
from tests.oracles import edges as oracle
from tests.support.families import families
from tests.support.joint import along, joint, named, some_edges
from tests.tiny import tiny_model

#: Norms behind a sublayer and in front of nothing; experts; a multiplier; one key for all heads.
LAYOUTS = ("olmo2", "olmoe", "granite", "gpt_bigcode", "qwen3")
EACH = [*families(without=LAYOUTS), *LAYOUTS]
#: Families whose projection makes keys and values for several heads in a way the oracle knows not.
FUSED = ("falcon", "falcon-new", "falcon-serial", "gpt_bigcode")


def close(found, expected, size=1.0):
    expected = torch.as_tensor(expected, dtype=torch.float32)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=3e-6 * max(1.0, size))


@pytest.mark.parametrize("family", EACH)
def test_any_set_is_what_literal_passes_give(family):
    model = tiny(family)
    task, graph = ragged_tiny(model), graph_of(model)
    sets = torch.stack([some_edges(graph, 0.15), some_edges(graph, 0.9, seed=1)])
    found = joint(model, task, graph, sets)["change"]
    example = 1
    pair = pairs(model, task)[example]
    expected = [oracle.together(raw_module(model), pair, named(graph, one)) for one in sets]
    assert min(map(abs, expected)) > 1e-3
    close(found[example], expected)


@pytest.mark.parametrize("family", ["llama", "olmo2", "cohere"])
def test_heads_that_share_a_key_may_each_have_their_own(family):
    model = tiny(family)
    task, graph = ragged_tiny(model), graph_of(model, ungrouped=True)
    edges = some_edges(graph, 0.3, seed=2)
    found = joint(model, task, graph, edges[None])["change"]
    expected = oracle.together(raw_module(model), pairs(model, task)[0], named(graph, edges))
    close(found[0], [expected])


def test_a_serialised_request_gives_the_same():
    model, there = tiny_model("llama"), tiny_model("llama", backend="simulated")
    task, graph = ragged_tiny(model), graph_of(model)
    sets = some_edges(graph, 0.3, seed=2)[None]
    close(joint(there, task, graph, sets)["change"], joint(model, task, graph, sets)["change"])
    paths = [[parse(part) for part in path] for path in PATHS.values()]
    close(along(there, task, paths)["change"], along(model, task, paths)["change"])


@pytest.mark.parametrize("positions", [-2, "where"])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_where_senders_change_and_in_which_direction(positions, direction):
    model = tiny("llama")
    task, graph = ragged_tiny(model), graph_of(model)
    edges = some_edges(graph, 0.5, seed=3)
    found = joint(model, task, graph, edges[None], positions=positions, direction=direction)
    for example, pair in enumerate(pairs(model, task, direction)):
        (where,) = cells(task, example, positions)
        close(
            found["change"][example],
            [oracle.together(raw_module(model), pair, named(graph, edges), where)],
        )


@pytest.mark.parametrize("family", families())
def test_all_edges_of_a_port_are_that_port_patched(family):
    """Into a head's query, key or value; out of a part, where its write is its own."""
    model = tiny(family)
    task, graph = ragged_tiny(model), graph_of(model)
    patched = {
        site: torch.tensor(
            nnattr.activation_patching(
                model, task, LogitDiff(), site=site, normalized=False
            ).raw.to_numpy()
        )
        for site in ("q", "k", "v", "mlp_out", "z")
    }
    sets, expected = [], []
    for column, part in enumerate(graph.receivers):
        if part.layer == 1 and part.port:
            sets.append(graph.mask() & (torch.arange(len(graph.receivers)) == column))
            expected.append(patched[part.port][:, 1, part.number])
    for row, part in enumerate(graph.senders):
        if part.kind == "mlp" or (part.kind == "head" and family != "gemma2"):
            sets.append(graph.mask() & (torch.arange(len(graph.senders)) == row)[:, None])
            site = patched["mlp_out" if part.kind == "mlp" else "z"]
            expected.append(
                site[:, part.layer] if part.kind == "mlp" else site[:, part.layer, part.number]
            )
    found = joint(model, task, graph, torch.stack(sets))
    close(found["change"], torch.stack(expected, 1), float(found["source"].abs().max()))


@pytest.mark.parametrize("family", families())
def test_all_edges_are_the_other_run_and_none_the_base_run(family):
    model = tiny(family)
    task, graph = ragged_tiny(model), graph_of(model)
    found = joint(model, task, graph, torch.stack([graph.mask(), 0 * graph.mask()]).bool())
    close(found["change"][:, 0], found["source"] - found["base"])
    close(found["change"][:, 1], torch.zeros(len(task)))
    assert found["engine"] == "suffix"


def test_a_norm_behind_attention_sees_the_heads_of_a_layer_together():
    """So all heads of a layer are its attention patched, and a head's edges alone its patch."""
    model = tiny("gemma2")
    task, graph = ragged_tiny(model), graph_of(model)
    of_layer = torch.tensor([part.kind == "head" and part.layer == 1 for part in graph.senders])
    found = joint(model, task, graph, (graph.mask() & of_layer[:, None])[None])
    scores = nnattr.activation_patching(model, task, LogitDiff(), site="attn_out", normalized=False)
    close(found["change"][:, 0], scores.raw.sel(layer=1).to_numpy())


@pytest.mark.parametrize("metric", [LogitDiff(), KL(), Loss()])
def test_every_metric_and_full_passes(metric):
    model = tiny("gpt2")
    task, graph = ragged_tiny(model), graph_of(model)
    sets = some_edges(graph, 0.4)[None]
    ours, full = (
        joint(model, task, graph, sets, metric=metric, engine=engine)
        for engine in ("suffix", "full")
    )
    assert (ours["engine"], full["engine"]) == ("suffix", "full")
    assert full["change"].abs().min() > 1e-4
    close(ours["change"], full["change"])


def test_sets_come_in_as_many_passes_as_memory_asks_for():
    model = tiny("llama")
    task, graph = ragged_tiny(model), graph_of(model)
    sets = torch.stack([some_edges(graph, share) for share in (0.1, 0.3, 0.6, 0.9)])
    at_once = joint(model, task, graph, sets)
    apart = joint(model, task, graph, sets, max_memory=1)
    assert apart["rows"] < at_once["rows"]
    close(apart["change"], at_once["change"])


def test_a_projection_that_is_more_than_its_weights_is_called():
    model = tiny_model("llama")
    task, graph = ragged_tiny(model), graph_of(model)
    sets = some_edges(graph, 0.5)[None]
    plain = joint(model, task, graph, sets)["change"]
    attention = raw_module(model).model.layers[1].self_attn
    handles = [
        part.register_forward_hook(lambda _, __, output: 1.5 * output)
        for part in (attention.q_proj, attention.o_proj)
    ]
    try:
        hooked = joint(model, task, graph, sets)["change"]
        pair = pairs(model, task)[0]
        expected = oracle.together(raw_module(model), pair, named(graph, sets[0]))
    finally:
        for handle in handles:
            handle.remove()
    assert (hooked - plain).abs().max() > 1e-3
    close(hooked[0], [expected])


PATHS = {
    "through a key": ("L0H2", "L1H3.k", "L2H1.q", "logits"),
    "through MLPs": ("M0", "L1H2.v", "M2", "logits"),
    "one edge": ("L1H0", "logits"),
    "a pattern": ("input", "L2H2.qk", "logits"),
}


@pytest.mark.parametrize("family", EACH)
def test_a_path_is_what_literal_passes_give(family):
    model = tiny(family)
    task = ragged_tiny(model)
    every = [[parse(part) for part in path] for path in PATHS.values()]
    paths = [path for path in every if max(p.layer or 0 for p in path) < model.n_layers]
    found = along(model, task, paths)["change"]
    pair, example = pairs(model, task)[0], 0
    for column, path in enumerate(paths):
        if family in FUSED and any(part.port in ("k", "v", "qk") for part in path):
            continue
        expected = oracle.chain(raw_module(model), pair, [str(part) for part in path])
        close(found[example, column], expected)
    assert found.abs().amax(0).min() > 1e-5


def test_a_path_from_some_positions_only():
    model = tiny("llama")
    task = ragged_tiny(model)
    path = [parse(part) for part in PATHS["through a key"]]
    found = along(model, task, [path], positions="where")["change"]
    for example, pair in enumerate(pairs(model, task)):
        (where,) = cells(task, example, "where")
        close(found[example, 0], oracle.chain(raw_module(model), pair, list(map(str, path)), where))


def test_a_model_whose_parts_read_something_else_is_refused():
    model = tiny_model("llama")
    task, graph = ragged_tiny(model), graph_of(model)
    layer = raw_module(model).model.layers[1].self_attn
    handle = layer.q_proj.register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    try:
        with pytest.raises(nnattr.errors.ArchError, match="input of its own"):
            joint(model, task, graph, graph.mask()[None])
    finally:
        handle.remove()


def test_only_readers_of_the_set_are_made_anew(monkeypatch):
    """One edge into a late layer runs no layer below it."""
    model = tiny("gpt2")
    task, graph = ragged_tiny(model), graph_of(model)
    edge = torch.zeros_like(graph.mask())
    edge[graph.senders.index(parse("L0H1")), graph.receivers.index(parse("L2H0.q"))] = True
    ran = []
    run = joint_pass.run_layer
    monkeypatch.setattr(
        joint_pass,
        "run_layer",
        lambda nn, own, layer, scratch: (ran.append(layer), run(nn, own, layer, scratch)),
    )
    joint(model, task, graph, edge[None])
    assert ran == [2]
