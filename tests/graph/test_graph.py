"""Which parts and edges a model has: published sizes without weights, and every layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig

import nnattr
from nnattr.arch.table import lookup
from nnattr.graph import Edge, Graph, parse, parse_edge
from nnattr.model.graph import graph_from, graph_of
from tests.tiny import FAMILIES, tiny_model

#: The layouts of published models: what their configurations say, and how many edges they have,
#: with shared keys and values as one receiver and, ungrouped, as one for every head.
PUBLISHED: dict[str, tuple[str, tuple[int, int, int, int], int, int]] = {
    "gpt2": ("gpt2", (12, 12, 12, 768), 32_491, 32_491),
    "pythia-160m": ("gpt_neox", (12, 12, 12, 768), 32_347, 32_347),
    "SmolLM2-135M": ("llama", (30, 9, 3, 576), 70_651, 123_211),
    "Llama-3.2-1B": ("llama", (16, 32, 8, 2048), 195_865, 386_713),
    "Llama-3.1-8B": ("llama", (32, 32, 8, 4096), 805_681, 1_592_881),
    "gemma-2-2b": ("gemma2", (26, 8, 4, 2304), 50_610, 74_218),
    "Qwen2.5-0.5B": ("qwen2", (24, 14, 2, 896), 79_813, 179_749),
}


def published(name: str) -> tuple[Graph, Graph]:
    """The graph of a published model from its configuration, and the ungrouped one."""
    family, (layers, heads, kv_heads, width), *_ = PUBLISHED[name]
    config = AutoConfig.for_model(
        family,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_size=width,
        **({} if kv_heads == heads else {"num_key_value_heads": kv_heads}),
    )
    spec = lookup(config)
    assert spec is not None
    return graph_from(spec, config), graph_from(spec, config, ungrouped=True)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_edges_of_published_models_are_counted_without_weights(name: str) -> None:
    *_, grouped, ungrouped = PUBLISHED[name]
    assert tuple(map(len, published(name))) == (grouped, ungrouped)


def test_a_small_graph_in_full() -> None:
    """Every edge of two layers of two heads that share a key and a value, written out by hand."""
    graph = Graph(2, 2, 1)
    assert " ".join(map(str, graph.senders)) == "input L0H0 L0H1 M0 L1H0 L1H1 M1"
    assert " ".join(map(str, graph.receivers)) == (
        "L0H0.q L0H1.q L0KV0.k L0KV0.v M0 L1H0.q L1H1.q L1KV0.k L1KV0.v M1 logits"
    )
    first, second = "L0H0.q L0H1.q L0KV0.k L0KV0.v M0", "L1H0.q L1H1.q L1KV0.k L1KV0.v M1 logits"
    reached = {
        "input": f"{first} {second}",
        "L0H0": f"M0 {second}",
        "L0H1": f"M0 {second}",
        "M0": second,
        "L1H0": "M1 logits",
        "L1H1": "M1 logits",
        "M1": "logits",
    }
    edges = [f"{sender}->{one}" for sender, into in reached.items() for one in into.split()]
    assert list(map(str, graph.edges())) == edges
    assert len(graph) == len(edges) == 36


def test_in_a_parallel_block_the_mlp_does_not_read_its_own_layers_heads() -> None:
    serial, parallel = (set(Graph(3, 2, 2, parallel=one).edges()) for one in (False, True))
    assert parallel < serial
    assert {str(edge) for edge in serial - parallel} == {
        f"L{layer}H{head}->M{layer}" for layer in range(3) for head in range(2)
    }


def test_without_places_for_what_heads_read_the_other_edges_stay() -> None:
    graph, whole = Graph(3, 2, 2, attends=False), Graph(3, 2, 2)
    assert graph.senders == whole.senders
    assert set(graph.edges()) == {edge for edge in whole.edges() if edge.receiver.port is None}
    assert list(map(str, Graph(2, 1, 1, attends=False, mlps=False).edges())) == [
        "input->logits",
        "L0H0->logits",
        "L1H0->logits",
    ]


@pytest.mark.parametrize("layout", [{}, {"parallel": True}, {"mlps": False}, {"ungrouped": True}])
def test_the_matrix_the_edges_and_the_single_questions_agree(layout: dict[str, bool]) -> None:
    graph = Graph(3, 4, 2, **layout)
    single = [[graph.has(u, v) for v in graph.receivers] for u in graph.senders]
    assert torch.equal(graph.mask(), torch.tensor(single))
    assert len(list(graph.edges())) == len(graph) == int(graph.mask().sum())
    assert all(graph.has(edge.sender, edge.receiver) for edge in graph.edges())
    assert list(graph.senders) == sorted(graph.senders)


def test_a_pattern_is_a_receiver_of_its_own() -> None:
    graph = Graph(2, 4, 2)
    assert graph.has(parse("M0"), parse("L1H3.qk"))
    assert not graph.has(parse("L1H0"), parse("L1H3.qk"))
    assert not graph.has(parse("input"), parse("L1H4.qk"))
    assert parse("L1H3.qk") not in graph.receivers


@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_gives_the_graph_of_the_model(family: str) -> None:
    model = tiny_model(family)
    ours = [graph_of(model), graph_of(model, ungrouped=True)]
    config = model.module.config
    theirs = [graph_from(model.spec, config), graph_from(model.spec, config, ungrouped=True)]
    for one, other in zip(ours, theirs, strict=True):
        assert (one.senders, one.receivers) == (other.senders, other.receivers)
        assert torch.equal(one.mask(), other.mask())


def test_a_served_model_has_the_same_graph() -> None:
    here, served = (nnattr.load("teaching-llama", backend=one) for one in ("local", "simulated"))
    assert list(graph_of(here).edges()) == list(graph_of(served).edges())


def graph_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """What a job may do with a graph."""
    graph = Graph(**payload)
    return {"mask": graph.mask(), "edges": [str(edge) for edge in graph.edges()]}


@pytest.mark.parametrize("backend", ["local", "simulated"])
def test_a_graph_travels_into_jobs(backend: str) -> None:
    model = nnattr.load("teaching-llama", backend=backend)
    sizes: dict[str, Any] = {"layers": 2, "heads": 4, "kv_heads": 2, "parallel": True}
    values = model.run(graph_job, sizes, label="graph").values
    assert [parse_edge(edge) for edge in values["edges"]] == list(Graph(**sizes).edges())
    assert torch.equal(values["mask"], Graph(**sizes).mask())
    assert Edge(parse("input"), parse("logits")) in Graph(**sizes).edges()
