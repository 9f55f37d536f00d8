"""The oracle of edges against plain patching, which knows nothing of edges.

Patching a part in one pass has no part in how edges are made, so what these say in two ways must
agree: all edges into a part, and out of it, are that part.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from tests.oracles import edges, inside, patching
from tests.oracles.parts import all_edges, head_count, kv_count, layers_of
from tests.oracles.patching import Pair
from tests.support.families import families
from tests.tiny import tiny_module

#: Norms before, behind, and both; parallel; one norm each; residual multiplier; experts; a
#: projection of its own kind with a cap or a window.
LAYOUTS = ("gpt2", "llama", "gemma2", "olmo2", "gpt_neox", "falcon-new", "granite", "mixtral")
POST_NORM = ("gemma2", "olmo2")
TOLERANCE = 2e-5
BASE, SOURCE = [33, 34, 55, 36, 9], [33, 34, 35, 36, 9]


@cache
def module_of(family: str) -> Any:
    return tiny_module(family)


def pair() -> Pair:
    return Pair(
        torch.tensor([BASE]),
        torch.tensor([SOURCE]),
        lambda logits, _: logits[-1, 72] - logits[-1, 81],
    )


def gap(module: Any) -> float:
    with torch.no_grad():
        return float(pair().measure(module, pair().source) - pair().measure(module))


def into(module: Any, *receivers: str, ungrouped: bool = False) -> list[tuple[str, str]]:
    return [one for one in all_edges(module, ungrouped) if one[1] in receivers]


def out_of(module: Any, *senders: str) -> list[tuple[str, str]]:
    return [one for one in all_edges(module) if one[0] in senders]


def patched(module: Any, site: str, layer: int, unit: int = 0, units: int = 1) -> float:
    """A node's effect, all its positions at once, by plain patching."""
    cell = range(len(BASE))
    theirs = patching.activations(module, pair().source, site)
    after = patching.patch_one(module, pair(), site, layer, unit, units, cell, theirs)
    with torch.no_grad():
        return float(after - pair().measure(module))


def patched_inside(module: Any, port: str, layer: int, head: int) -> float:
    theirs = inside.activations(module, pair().source, port)
    with torch.no_grad():
        after = inside.patched(module, pair(), port, layer, head, range(len(BASE)), theirs)
        return float(after - pair().measure(module))


def same(ours: float, theirs: float, module: Any) -> None:
    assert abs(theirs) > 1e-4, "the control: there is an effect"
    assert ours == pytest.approx(theirs, abs=TOLERANCE * max(1.0, abs(gap(module)), abs(theirs)))


@pytest.mark.parametrize("family", families())
def test_all_edges_are_the_other_run_and_none_is_this_one(family):
    module = module_of(family)
    same(edges.together(module, pair(), all_edges(module)), gap(module), module)
    assert edges.together(module, pair(), []) == 0.0


@pytest.mark.parametrize("family", LAYOUTS)
def test_a_circuit_of_nothing_is_the_other_run_and_of_everything_this_one(family):
    module = module_of(family)
    same(edges.circuit(module, pair(), []), gap(module), module)
    assert edges.circuit(module, pair(), all_edges(module)) == 0.0


@pytest.mark.parametrize("port", ["q", "k", "v"])
@pytest.mark.parametrize("family", [one for one in LAYOUTS if not one.startswith("falcon")])
def test_all_edges_into_a_query_key_or_value_are_that_one(family, port):
    module = module_of(family)
    shared = port != "q" and kv_count(module) < head_count(module)
    receiver = f"L1{'KV' if shared else 'H'}1.{port}"
    ours = edges.together(module, pair(), into(module, receiver))
    same(ours, patched_inside(module, port, 1, 1), module)


@pytest.mark.parametrize("family", families())
def test_all_edges_into_what_a_layers_heads_read_are_its_attention(family):
    module = module_of(family)
    receivers = {v for _, v in all_edges(module) if v.startswith("L1")}
    ours = edges.together(module, pair(), into(module, *receivers))
    same(ours, patched(module, "attn_out", 1), module)


@pytest.mark.parametrize("family", families())
def test_all_edges_into_an_mlp_are_the_mlp(family):
    module = module_of(family)
    ours = edges.together(module, pair(), into(module, "M1"))
    same(ours, patched(module, "mlp_out", 1), module)


@pytest.mark.parametrize("family", families())
def test_all_edges_out_of_a_layers_writers_are_that_layer(family):
    """Of its heads taken together, where a norm stands behind them; and of its MLP."""
    module = module_of(family)
    heads = [f"L0H{head}" for head in range(head_count(module))]
    ours = edges.together(module, pair(), out_of(module, *heads))
    same(ours, patched(module, "attn_out", 0), module)
    ours = edges.together(module, pair(), out_of(module, "M0"))
    same(ours, patched(module, "mlp_out", 0), module)


@pytest.mark.parametrize("family", LAYOUTS)
def test_all_edges_out_of_a_head_are_the_head(family):
    """With a norm behind it too: one head alone is all that changes there."""
    module = module_of(family)
    ours = edges.together(module, pair(), out_of(module, "L0H2"))
    same(ours, patched(module, "z", 0, 2, head_count(module)), module)


@pytest.mark.parametrize("family", POST_NORM)
def test_with_a_norm_behind_them_heads_do_not_add(family):
    """Why heads of a layer are taken together: their single changes are not the layer's."""
    module = module_of(family)
    heads = [f"L0H{head}" for head in range(head_count(module))]
    whole = edges.change_of(module, pair(), heads)
    parts = sum(edges.change_of(module, pair(), [one]) for one in heads)
    assert float((whole - parts).abs().max()) > 1e-2 * float(whole.abs().max())


@pytest.mark.parametrize("port", ["k", "v"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
def test_an_edge_into_a_key_value_head_is_that_into_all_its_heads_at_once(family, port):
    module = module_of(family)
    grouped = edges.one_edge(module, pair(), "M0", f"L1KV1.{port}")
    apart = [("M0", f"L1H{head}.{port}") for head in (2, 3)]
    same(edges.together(module, pair(), apart), grouped, module)
    each = sum(edges.one_edge(module, pair(), *one) for one in apart)
    assert abs(each - grouped) > 1e-3 * abs(grouped), "the control: single edges do not add"


@pytest.mark.parametrize("family", ["gpt2", "llama", "olmo2"])
def test_a_pattern_is_query_and_key_at_once(family):
    module = module_of(family)
    ours = edges.one_edge(module, pair(), "M0", "L1H1.qk")
    same(ours, edges.together(module, pair(), [("M0", "L1H1.q"), ("M0", "L1H1.k")]), module)


@pytest.mark.parametrize("family", LAYOUTS)
def test_a_path_that_ends_behind_the_last_layer_is_its_edge(family):
    """Nothing else reads what a last MLP writes; nor what a head does, beside a parallel MLP."""
    module = module_of(family)
    last = layers_of(module) - 1
    ours = edges.chain(module, pair(), ["L0H1", f"M{last}", "logits"])
    same(ours, edges.one_edge(module, pair(), "L0H1", f"M{last}"), module)
    parallel = edges.map_of(module).parallel
    head = f"L{last}H1.q"
    ours = edges.chain(module, pair(), ["M0", head, "logits"])
    edge = edges.one_edge(module, pair(), "M0", head)
    assert (abs(ours - edge) < TOLERANCE) == parallel, "the last MLP reads it, if any does"


@pytest.mark.parametrize("family", LAYOUTS)
def test_mlps_between_matter_where_there_are_some(family):
    """From an MLP to the next layer nothing lies between; from a head to the layer after it, M1."""
    module = module_of(family)
    ours = edges.through_mlps(module, pair(), "M0", "L1H1.q")
    same(ours, edges.one_edge(module, pair(), "M0", "L1H1.q"), module)
    ours = edges.through_mlps(module, pair(), "M1", "M2")
    same(ours, edges.one_edge(module, pair(), "M1", "M2"), module)
    far = edges.through_mlps(module, pair(), "L0H1", "logits")
    assert abs(far - edges.one_edge(module, pair(), "L0H1", "logits")) > 10 * TOLERANCE


@pytest.mark.parametrize("family", LAYOUTS)
def test_a_change_at_some_positions_is_there_alone(family):
    module = module_of(family)
    everywhere = edges.one_edge(module, pair(), "M0", "L1H1.q")
    behind = edges.one_edge(module, pair(), "M0", "L1H1.q", positions=range(2, len(BASE)))
    same(behind, everywhere, module)
    assert edges.one_edge(module, pair(), "M0", "L1H1.q", positions=[0, 1]) == 0.0
    assert edges.one_edge(module, pair(), "L0H1", "M1", positions=[4]) != 0.0
