"""Figures of edges: what stands where, what is left out and that it is said."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from nnattr.graph import Graph
from nnattr.plots.edges import COLUMNS, EDGES, ROWS, SAND
from tests.support.edges import MADE, edge_scores

SMALL = Graph(3, 4, 2)
LARGE = Graph(12, 12, 12)


def heading(figure: Any) -> str:
    """The words above a figure, without their markup."""
    return " ".join(re.sub("<[^>]*>", " ", figure.layout.title.text).split())


def ticks(figure: Any, axis: str) -> list[str]:
    return list(figure.layout[axis].ticktext)


def test_a_matrix_has_senders_down_and_receivers_across() -> None:
    edges = edge_scores(SMALL)
    figure: Any = edges.plot()
    np.testing.assert_allclose(figure.data[0].z, edges.mean().values)
    assert ticks(figure, "yaxis") == [str(part) for part in SMALL.senders]
    assert ticks(figure, "xaxis") == [str(part) for part in SMALL.receivers]
    assert figure.layout.yaxis.autorange == "reversed"
    assert (
        "L0H1 → L1KV0.k"
        in figure.data[0].text[2][list(edges.raw["receiver"].to_numpy()).index("L1KV0.k")]
    )
    assert len(figure.data) == 1
    assert "grey: no edge" in heading(figure)
    assert "sand" not in heading(figure)


@pytest.mark.parametrize(
    ("between", "said"), [("frozen", "all between sender"), ("mlps", "MLPs and norms are not")]
)
def test_a_figure_says_what_was_frozen(between: str, said: str) -> None:
    arguments = {**MADE.arguments, "between": between}
    edges = edge_scores(SMALL, made=MADE.model_copy(update={"arguments": arguments}))
    for figure in (edges.plot(), edges.plot(receiver="logits"), edges.plot(sender="M0")):
        assert said in heading(figure)


def test_a_large_matrix_shows_its_strongest_edges_and_says_so() -> None:
    edges = edge_scores(LARGE, n=2)
    figure: Any = edges.plot()
    shown = np.array(figure.data[0].z, dtype=float)
    assert shown.shape[0] <= ROWS
    assert shown.shape[1] <= COLUMNS
    assert max(shown.shape) >= 38
    best = edges.top(1)[0]
    assert np.nanmax(np.abs(shown)) == pytest.approx(abs(best.value), rel=1e-6)
    found = re.search(r"the (\d+) strongest of 32491 edges", heading(figure))
    assert found is not None
    k = int(found[1])
    names = {cell.label for cell in edges.top(k)}
    texts = "".join(str(text) for row in figure.data[0].text for text in row)
    assert all(f"<b>{name}</b>" in texts for name in names)
    assert k >= ROWS


def test_what_could_not_be_tested_has_its_own_colour_and_words() -> None:
    figure: Any = edge_scores(SMALL, untestable=["M0->logits", "input->L0H0.q"]).plot()
    values, sand = (np.array(trace.z, dtype=float) for trace in figure.data)
    assert np.isfinite(sand).sum() == 2
    assert np.isnan(values[np.isfinite(sand)]).all()
    at = tuple(np.argwhere(np.isfinite(sand))[0])
    assert figure.data[1].text[at[0]][at[1]] == (
        "<b>input → L0H0.q</b><br>not testable with this counterfactual"
    )
    assert figure.data[1].colorscale[0][1] == SAND
    assert not figure.data[1].showscale
    assert "sand: not testable" in heading(figure)


def test_senders_of_one_receiver_stand_by_layer_and_head() -> None:
    edges = edge_scores(SMALL)
    for figure in (edges.plot(receiver="logits"), edges.sel(receiver="logits").plot()):
        text: Any = figure
        assert ticks(text, "yaxis") == ["input", "0", "1", "2"]
        assert ticks(text, "xaxis") == ["0", "1", "2", "3", "MLP"]
        assert "edges into logits" in heading(text)
        into = edges.mean().values.sel(receiver="logits")
        values = np.array(text.data[0].z, dtype=float)
        assert values.shape == (4, 6)
        assert values[2, 3] == pytest.approx(float(into.sel(sender="L1H3")))
        assert values[2, 5] == pytest.approx(float(into.sel(sender="M1")))
        assert values[0, 5] == pytest.approx(float(into.sel(sender="input")))
        assert np.isnan(values[0, :5]).all()
        assert np.isnan(values[:, 4]).all()
        assert np.isfinite(values).sum() == len(SMALL.senders)


def test_receivers_of_one_sender_stand_by_layer_and_port() -> None:
    edges = edge_scores(SMALL)
    figure: Any = edges.plot(sender=(0, 2))
    assert ticks(figure, "yaxis") == ["0", "1", "2", "logits"]
    ports = [*(f"q{head}" for head in range(4)), "k0", "k1", "v0", "v1", "MLP"]
    assert ticks(figure, "xaxis") == ports
    out = edges.mean().values.sel(sender="L0H2")
    values = np.array(figure.data[0].z, dtype=float)
    assert np.isfinite(values).sum() == int(out.notnull().sum())
    assert values[1, 5] == pytest.approx(float(out.sel(receiver="L1KV0.k")))
    assert values[0, -1] == pytest.approx(float(out.sel(receiver="M0")))
    assert values[3, -1] == pytest.approx(float(out.sel(receiver="logits")))


def test_one_edge_and_mlps_alone_have_a_figure() -> None:
    edges = edge_scores(SMALL)
    one: Any = edges.plot(sender="M0", receiver="logits")
    assert np.array(one.data[0].z).shape == (1, 1)
    mlps: Any = edges.sel(sender=["M0", "M1", "M2"]).plot(receiver="logits")
    assert ticks(mlps, "xaxis") == ["MLP"]
    assert mlps.layout.xaxis.title.text == ""


def test_positions_show_the_strongest_edges() -> None:
    edges = edge_scores(SMALL, positions=["a", "b", "c"], untestable=["M0->logits"])
    figure: Any = edges.plot()
    values = np.array(figure.data[0].z, dtype=float)
    assert values.shape == (EDGES, 3)
    assert np.abs(values).max() == pytest.approx(abs(edges.top(1)[0].value), rel=1e-6)
    assert ticks(figure, "yaxis")[0] == edges.top(1)[0].label.split(" pos")[0]
    assert f"the {EDGES} strongest of {len(SMALL)} edges" in heading(figure)
    into: Any = edges.plot(receiver="logits")
    rows = ticks(into, "yaxis")
    assert all(row.endswith("→ logits") for row in rows)
    one: Any = edges.sel(pos=1).plot(receiver="logits")
    assert ticks(one, "yaxis") == ["input", "0", "1", "2"]
