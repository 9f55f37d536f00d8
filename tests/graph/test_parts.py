"""Names of parts and edges: read as they are written, ordered as the model runs."""

from __future__ import annotations

import copy
import pickle
import random
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnattr
from nnattr.errors import ArchError
from nnattr.graph import Edge, Part, parse, parse_edge, parse_path
from nnattr.graph.parts import AFTER_LAYERS, BEFORE_LAYERS, IN_LAYER, PORTS, WRITTEN

COUNTS = st.integers(0, 10_000)


@st.composite
def parts(draw: st.DrawFn) -> Part:
    kind = draw(st.sampled_from(list(WRITTEN)))
    layer = draw(COUNTS) if "{layer}" in WRITTEN[kind] else None
    number = draw(COUNTS) if "{number}" in WRITTEN[kind] else None
    return Part(kind, layer, number, draw(st.sampled_from(PORTS.get(kind, (None,)))))


@given(parts())
def test_reading_is_the_inverse_of_writing(part: Part) -> None:
    assert parse(part.name) == part
    assert parse(part.label) == part
    assert parse(part) is part
    assert hash(parse(part.name)) == hash(part)
    assert pickle.loads(pickle.dumps(part)) == copy.deepcopy(part) == part


@given(parts(), parts())
def test_equal_parts_are_those_with_equal_names(one: Part, other: Part) -> None:
    assert (one == other) == (one.name == other.name) == (not (one < other or one > other))
    assert (one <= other) == (one < other or one == other) == (other >= one)


@given(parts(), parts())
def test_an_edge_is_read_as_it_is_written(one: Part, other: Part) -> None:
    if one.port is not None or not one < other:
        with pytest.raises(ArchError, match="There is no edge"):
            Edge(one, other)
    else:
        edge = Edge(one, other)
        assert parse_edge(str(edge)) == edge == parse_edge((one.name, other.label))
        assert hash(parse_edge(str(edge))) == hash(edge)


def test_parts_are_ordered_as_the_model_runs() -> None:
    layers = [
        [
            f"L{layer} pre",
            *(f"L{layer}KV{kv}.{port}" for kv in range(2) for port in "kv"),
            *(f"L{layer}H{head}.{port}" for head in (0, 2, 10) for port in ("q", "k", "v", "qk")),
            *(f"L{layer}H{head}" for head in (0, 2, 10)),
            f"L{layer} attn",
            f"L{layer} attn bias",
            f"L{layer} mid",
            *(f"L{layer}N{neuron}" for neuron in (3, 20, 100)),
            f"M{layer}",
            f"L{layer} mlp bias",
            f"L{layer} steer",
        ]
        for layer in (0, 2, 11)
    ]
    before, after = ["input", "embed", "pos_embed"], ["final", "bias", "softcap", "logits"]
    names = [*before, *chain(*layers), *after]
    shuffled = random.Random(0).sample(names, len(names))
    assert [part.name for part in sorted(map(parse, shuffled))] == names
    assert {parse(name).kind for name in names} == set(WRITTEN)  # every kind is in this test
    assert [*BEFORE_LAYERS, *IN_LAYER, *AFTER_LAYERS] == list(WRITTEN)


def test_what_a_head_writes_comes_after_everything_that_its_layer_reads() -> None:
    reads = [parse(f"L3H{head}.{port}") for head in range(4) for port in "qkv"]
    writes = [parse(f"L3H{head}") for head in range(4)]
    assert max(reads) < min(writes) < max(writes) < parse("M3") < parse("L4H0.q")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ((9, 6), "L9H6"),
        ([9, 6], "L9H6"),
        ((np.int64(9), np.int64(6)), "L9H6"),
        ("9.6", "L9H6"),
        ("a9.h6", "L9H6"),
        (" L9H6 ", "L9H6"),
        ("a9.h6<q>", "L9H6.q"),
        ("9.6.v", "L9H6.v"),
        ("a9.h6<qk>", "L9H6.qk"),
        ("L9KV2<k>", "L9KV2.k"),
        ("m3", "M3"),
        ("L3 mlp", "M3"),
        ("L3 attn", "L3 attn"),
        ("logits", "logits"),
    ],
)
def test_other_ways_of_writing(given: Any, name: str) -> None:
    assert str(parse(given)) == name


@pytest.mark.parametrize(
    "given",
    [
        *(
            "",
            "L9",
            "H6",
            "L9H6.x",
            "L9H6.",
            "L9H6 .q",
            "L9KV2",
            "L9KV2.q",
            "L9KV2.qk",
            "M3.q",
            "mlp",
            "L-1H0",
        ),
        *((9,), (9, 6, 1), (9.5, 6), (-1, 0), ("9", "6"), None, 9, {}),
    ],
)
def test_what_is_not_a_part(given: Any) -> None:
    with pytest.raises(ArchError, match="a part"):
        parse(given)


@pytest.mark.parametrize(
    "fields",
    [
        *(("head",), ("head", 1), ("head", -1, 0), ("input", 0), ("mlp", 1, 1), ("kv", 1, 1)),
        *(("mlp", 1, None, "q"), ("kv", 1, 1, "q"), ("head", 1, 1, "z"), ("tail",)),
    ],
)
def test_what_makes_no_part(fields: Any) -> None:
    with pytest.raises(ArchError, match="do not make a part"):
        Part(*fields)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("a3.h2->a5.h1<q>", "L3H2->L5H1.q"),
        ("L3H2 → M4", "L3H2->M4"),
        (((3, 2), "logits"), "L3H2->logits"),
        (("input", "L0KV1.v"), "input->L0KV1.v"),
    ],
)
def test_edges(given: Any, name: str) -> None:
    assert str(parse_edge(given)) == name


@pytest.mark.parametrize("given", ["L3H2", "a->b->c", "M3->M3", "M4->L4H0.q", 3, ("M3",), (1, 2)])
def test_what_is_not_an_edge(given: Any) -> None:
    with pytest.raises(ArchError):
        parse_edge(given)


@pytest.mark.parametrize(
    ("given", "edges"),
    [
        (
            "L3H2 -> L5H1.k -> L9H6.q -> logits",
            ["L3H2->L5H1.k", "L5H1->L9H6.q", "L9H6->logits"],
        ),
        ("a3.h2->a5.h1<v>->m7->logits", ["L3H2->L5H1.v", "L5H1->M7", "M7->logits"]),
        (["input", "L0H1.qk", "logits"], ["input->L0H1.qk", "L0H1->logits"]),
        (((3, 2), "logits"), ["L3H2->logits"]),
    ],
)
def test_a_path_is_edges_that_join(given: Any, edges: list[str]) -> None:
    assert list(map(str, parse_path(given))) == edges


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("L3H2", "not a path"),
        ("logits", "not a path"),
        ([], "not a path"),
        (3, "not a part"),
        ("L3H2 -> L5H1.k", "to the logits"),
        ("L3H2 -> L5H1 -> logits", "cannot pass through L5H1.*L5H1.q"),
        ("L3H2 -> L5KV1.k -> logits", "cannot pass through L5KV1.k.*name the head"),
        ("L3H2 -> L3H1.k -> logits", "no edge from L3H2 to L3H1.k"),
        ("L3H2 -> M4 -> M4 -> logits", "no edge from M4 to M4"),
        ("L3H2.q -> M4 -> logits", "no edge from L3H2.q"),
        ("L3H2 -> logits -> logits", "no edge from logits"),
        ("L3H2 -> nothing -> logits", "not a part"),
    ],
)
def test_what_is_not_a_path(given: Any, message: str) -> None:
    with pytest.raises(ArchError, match=message):
        parse_path(given)


def test_edges_are_ordered_by_sender_and_then_by_receiver() -> None:
    names = ["input->L0H0.q", "input->logits", "L0H3->M0", "L0H10->M0", "L0H10->L1H0.k", "M0->M1"]
    edges = [parse_edge(name) for name in names]
    assert sorted(reversed(edges)) == edges
    assert all(one < other <= other and other >= other > one for one, other in pairwise(edges))


def names_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """What a job may do with parts: make, sort, compare and write them."""
    heads = [Part("head", layer, 1, port) for layer in payload["layers"] for port in ("q", None)]
    known = {part: part.name for part in heads}
    edges = [Edge(heads[1], heads[2]), parse_edge("input->L0H1.q")]
    return {
        "parts": [known[part] for part in sorted([parse("M0"), *heads]) if part in known],
        "edges": [str(edge) for edge in sorted(edges)],
    }


@pytest.mark.parametrize("backend", ["local", "simulated"])
def test_parts_travel_into_jobs(backend: Any) -> None:
    model = nnattr.load("teaching-gpt2", backend=backend)
    values = model.run(names_job, {"layers": [0, 1]}, label="names").values
    assert values == {
        "parts": ["L0H1.q", "L0H1", "L1H1.q", "L1H1"],
        "edges": ["input->L0H1.q", "L0H1->L1H1.q"],
    }
