"""Which edges are meant: every way of naming them, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nnattr.errors import ArchError
from nnattr.graph import Choice, Edge, Graph, chosen, parse, parse_edge

GROUPED = Graph(3, 4, 2)
PLAIN = Graph(3, 2, 2)
PARALLEL = Graph(3, 2, 2, parallel=True)
HEADLESS = Graph(3, 2, 2, attends=False)
UNGROUPED = Graph(3, 4, 2, ungrouped=True)


def said(choice: Choice) -> tuple[str, str]:
    return " ".join(map(str, choice.senders)), " ".join(map(str, choice.receivers))


def edges_of(choice: Choice) -> set[str]:
    return {
        f"{choice.senders[row]}->{choice.receivers[column]}"
        for row, column in choice.wanted.nonzero().tolist()
    }


@pytest.mark.parametrize("graph", [GROUPED, PLAIN, PARALLEL, HEADLESS, UNGROUPED])
def test_all_is_the_whole_graph(graph: Graph) -> None:
    choice = chosen(graph)
    assert (choice.senders, choice.receivers) == (graph.senders, graph.receivers)
    assert choice.wanted.equal(graph.mask())
    assert len(choice) == len(graph)


@pytest.mark.parametrize(
    ("senders", "receivers", "rows", "columns"),
    [
        ("all", "logits", "input L0H0 L0H1 M0 L1H0 L1H1 M1 L2H0 L2H1 M2", "logits"),
        ("heads", "logits", "L0H0 L0H1 L1H0 L1H1 L2H0 L2H1", "logits"),
        ("mlps", "mlps", "M0 M1", "M1 M2"),
        ("heads", "q", "L0H0 L0H1 L1H0 L1H1", "L1H0.q L1H1.q L2H0.q L2H1.q"),
        ("input", "k", "input", "L0H0.k L0H1.k L1H0.k L1H1.k L2H0.k L2H1.k"),
        ("mlps", ["v", "logits"], "M0 M1 M2", "L1H0.v L1H1.v L2H0.v L2H1.v logits"),
        ((0, 1), (2, 0), "L0H1", "L2H0.q L2H0.k L2H0.v"),
        ((np.int64(0), np.int64(1)), "2.0", "L0H1", "L2H0.q L2H0.k L2H0.v"),
        ([(0, 1), "m0"], "a2.h0<v>", "L0H1 M0", "L2H0.v"),
        (["M0", "heads", "M0"], "M1", "L0H0 L0H1 M0 L1H0 L1H1", "M1"),
        ("all", "L1H1.qk", "input L0H0 L0H1 M0", "L1H1.qk"),
        ("all", ["L1H1.qk", "L1H0.v", "L1H0.q"], "input L0H0 L0H1 M0", "L1H0.q L1H0.v L1H1.qk"),
        (parse("M1"), [parse("logits")], "M1", "logits"),
    ],
)
def test_senders_and_receivers(senders: Any, receivers: Any, rows: str, columns: str) -> None:
    choice = chosen(PLAIN, senders, receivers)
    assert said(choice) == (rows, columns)
    assert edges_of(choice) == {
        f"{u}->{v}" for u in choice.senders for v in choice.receivers if PLAIN.has(u, v)
    }


def test_a_grouped_head_is_read_into_by_the_key_and_value_it_shares() -> None:
    assert said(chosen(GROUPED, "input", "L2H3"))[1] == "L2H3.q L2KV1.k L2KV1.v"
    assert said(chosen(GROUPED, "input", ["L2H2", "L2H3"]))[1] == "L2H2.q L2H3.q L2KV1.k L2KV1.v"
    assert said(chosen(GROUPED, "input", "heads")) == said(chosen(GROUPED, "input", [*"qkv"]))
    assert said(chosen(UNGROUPED, "input", "L2H3"))[1] == "L2H3.q L2H3.k L2H3.v"


def test_single_edges_are_what_is_wanted_of_their_matrix() -> None:
    given = ["M0->logits", ("L0H1", "L2H3.q"), "a0.h0->a2.h3<q>", parse_edge("M0->L1KV0.v")]
    choice = chosen(GROUPED, edges=given)
    assert said(choice) == ("L0H0 L0H1 M0", "L1KV0.v L2H3.q logits")
    assert edges_of(choice) == {"M0->logits", "L0H1->L2H3.q", "L0H0->L2H3.q", "M0->L1KV0.v"}
    into_a_head = chosen(GROUPED, edges=["M0->L2H3"])
    assert edges_of(into_a_head) == {"M0->L2H3.q", "M0->L2KV1.k", "M0->L2KV1.v"}
    assert edges_of(chosen(PLAIN, edges="M0->M2")) == {"M0->M2"}
    assert edges_of(chosen(PLAIN, edges=Edge(parse("M0"), parse("M2")))) == {"M0->M2"}


@pytest.mark.parametrize(
    ("graph", "asked", "message"),
    [
        (GROUPED, {"receivers": "L2H3.k"}, "share keys and values.*L2KV1.k.*ungrouped=True"),
        (GROUPED, {"edges": ["M0->L2H3.v"]}, "what reads is L2KV1.v"),
        (PLAIN, {"receivers": "L2KV1.k"}, "of its own.*L2H1.k"),
        (UNGROUPED, {"receivers": "L2KV1.k"}, "of its own.*L2H2.k"),
        (PLAIN, {"senders": "L3H0"}, "L3H0 does not write.*heads L0H0 to L2H1 and MLPs M0 to M2"),
        (PLAIN, {"receivers": (2, 2)}, "L2H2.q does not read.*heads L0H0 to L2H1"),
        (PLAIN, {"receivers": "L2KV5.v"}, "L2KV5.v does not read.*heads L0H0 to L2H1"),
        (PLAIN, {"senders": "M3"}, "M3 does not write"),
        (PLAIN, {"senders": "logits"}, "logits does not write"),
        (PLAIN, {"senders": "L1 attn"}, "L1 attn does not write"),
        (PLAIN, {"senders": "L1H0.q"}, "what a head reads"),
        (PLAIN, {"receivers": "input"}, "input does not read"),
        (PLAIN, {"senders": "q"}, "not a part.*'all', 'heads', 'mlps'"),
        (PLAIN, {"receivers": "keys"}, "not a part.*'all', 'heads', 'mlps', 'q', 'k', 'v'"),
        (PLAIN, {"senders": 3}, "not a part"),
        (PLAIN, {"senders": []}, "names no senders"),
        (PLAIN, {"receivers": ()}, "names no receivers"),
        (PLAIN, {"edges": []}, "No edges were given"),
        (PLAIN, {"edges": 3}, "not an edge"),
        (PLAIN, {"edges": ["L0H0"]}, "not an edge"),
        (PLAIN, {"edges": ["M1->L1H0.q"]}, "no edge from M1 to L1H0.q"),
        (PLAIN, {"edges": ["L1H0->L1H1"]}, "no edge from L1H0 to L1H1.q"),
        (PLAIN, {"edges": ["M0->L5H0.q"]}, "L5H0.q does not read"),
        (PLAIN, {"senders": "M1", "receivers": "L1H0"}, "between M1 and any of the receivers"),
        (PLAIN, {"senders": "heads", "receivers": "L0H1.v"}, "between L0H1.v and any of the send"),
        (PLAIN, {"senders": ["input", "M2"], "receivers": "q"}, "between M2 and any of the rec"),
        (Graph(1, 2, 2), {"senders": "heads", "receivers": "heads"}, "no edge from 'heads' to"),
        (PARALLEL, {"edges": ["L1H0->M1"]}, "no edge L1H0->M1.*parallel block"),
        (HEADLESS, {"receivers": "heads"}, "names no receivers"),
        (HEADLESS, {"receivers": "L1H0"}, "does not know, so only MLPs and the logits"),
        (HEADLESS, {"receivers": "L1H0.qk"}, "does not know, so only MLPs and the logits"),
        (Graph(2, 2, 2, mlps=False), {"senders": "mlps"}, "names no senders.*no MLPs"),
    ],
)
def test_what_is_refused(graph: Graph, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchError, match=message):
        chosen(graph, **asked)
