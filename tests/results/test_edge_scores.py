"""`EdgeScores`: the matrix of edges, its statistics, what could not be tested, and its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import nnattr
from nnattr import EdgeScores, Scores
from nnattr.errors import ArchError, ResultError
from nnattr.graph import Graph
from tests.support.edges import MADE, edge_scores
from tests.support.scores import scores

GRAPH = Graph(3, 2, 2)
UNTESTED = ("input->L0H0.q", "M0->logits")


def test_there_are_numbers_where_there_are_edges_and_nowhere_else() -> None:
    edges = edge_scores(GRAPH)
    assert edges.cell_dims == ("sender", "receiver")
    assert (edges.mean().values.notnull().to_numpy() == GRAPH.mask().numpy()).all()
    assert edges.n_cells == len(GRAPH)
    assert edges.n_untestable == 0
    assert set(edges.top(1000).indices) == {
        tuple(
            end if "." in end or end[0] != "L" else tuple(map(int, end[1:].split("H")))
            for end in (str(edge.sender), str(edge.receiver))
        )
        for edge in GRAPH.edges()
    }


def test_what_could_not_be_tested_is_no_zero() -> None:
    edges = edge_scores(GRAPH, untestable=UNTESTED)
    whole = edge_scores(GRAPH)
    assert (edges.n_cells, edges.n_untestable) == (len(GRAPH), 2)
    cell = {"sender": "M0", "receiver": "logits"}
    assert (edges.raw.sel(cell) == 0).all()
    for found in (edges, edges.mean(), edges.sel(receiver="logits")):
        assert np.isnan(found.values.sel(cell)).all()
    assert ("M0", "logits") not in edges.top(1000).indices
    assert ("M0", "logits") in whole.top(1000).indices
    assert len(whole.top(1000)) - len(edges.top(1000)) == 2
    assert "2 not testable with this counterfactual" in " ".join(repr(edges).split())
    assert "not testable" not in repr(whole)
    others = ~np.isnan(edges.values)
    xr.testing.assert_equal(edges.values.where(others), whole.values.where(others))
    table = edges.to_dataframe()
    assert len(table) == 6 * len(GRAPH)
    testable = table["testable"].to_numpy()
    assert testable.sum() == 6 * (len(GRAPH) - 2)
    assert (table["value"].isna().to_numpy() == ~testable).all()


def test_statistics_are_those_of_scores() -> None:
    """The same numbers as a result without names, cell by cell."""
    edges = edge_scores(GRAPH, n=30)
    there = GRAPH.mask().numpy()
    flat = edges.values.to_numpy()[:, there]
    bare = xr.DataArray(flat * 2, dims=("example", "neuron"), coords={"example": np.arange(30)})
    plain = Scores.from_arrays(bare, edges.baselines, 2.0, MADE)
    assert plain.raw.shape[1] == len(GRAPH)
    for name in ("stderr", "bootstrap_ci", "permutation_pvalue", "significant"):
        one, other = getattr(edges, name)().to_numpy(), getattr(plain, name)().to_numpy()
        np.testing.assert_allclose(one[..., there], other, rtol=1e-5, err_msg=name)
        assert not one[..., ~there].any() or np.isnan(one[..., ~there]).all()
    assert edges.where(edges.values.mean("example") > 0).n_cells < len(GRAPH)


def test_means_that_were_reduced_where_the_model_is_say_how_to_keep_examples() -> None:
    edges = edge_scores(GRAPH)
    mean = edges.mean()
    again = MADE.model_copy(update={"arguments": {**MADE.arguments, "per_example": False}})
    reduced = EdgeScores.from_arrays(
        mean.raw, mean.baselines, 2.0, again, error=mean.error, testable=mean.testable
    )
    xr.testing.assert_identical(reduced.stderr(), edges.stderr())
    assert repr(reduced.top(5)) == repr(edges.top(5))
    for ask in (reduced.bootstrap_ci, reduced.permutation_pvalue, reduced.significant):
        with pytest.raises(ResultError, match="per_example=True"):
            ask()
    with pytest.raises(ResultError, match="before mean"):
        mean.bootstrap_ci()


def test_parts_are_chosen_by_any_of_their_names() -> None:
    edges = edge_scores(GRAPH, untestable=UNTESTED)
    for sender in ("L1H0", (1, 0), "1.0", "a1.h0"):
        part = edges.sel(sender=sender, receiver="a2.h1<k>")
        assert dict(part.raw.sizes) == {"example": 6, "sender": 1, "receiver": 1}
        assert part.top(1)[0].label == "L1H0 → L2H1.k"
    several = edges.sel(sender=[(0, 1), "m0", "input"], receiver="logits", example=[1, 3])
    assert several.raw["sender"].to_numpy().tolist() == ["L0H1", "M0", "input"]
    assert several.n_untestable == 1
    assert several.baselines.sizes["example"] == 2
    with pytest.raises(ResultError, match="is not in these scores"):
        edges.sel(sender="M7")
    with pytest.raises(ArchError, match="not a part"):
        edges.sel(receiver="key")


def test_a_file_gives_back_everything(tmp_path: Path) -> None:
    edges = edge_scores(GRAPH, untestable=UNTESTED, positions=["a", "b"])
    assert edges.cell_dims == ("sender", "receiver", "pos")
    for found in (edges, edges.mean(), edges.sel(pos=1)):
        path = found.save(tmp_path / "edges.safetensors")
        again = nnattr.load_result(path)
        assert type(again) is EdgeScores
        xr.testing.assert_identical(again.data, found.data)
        xr.testing.assert_identical(again.values, found.values)
        assert repr(again) == repr(found)
    with pytest.raises(ResultError, match="'EdgeScores' and not Scores"):
        Scores.load(path)
    lines = edges.save(tmp_path / "edges.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 6 * len(GRAPH)


@pytest.mark.parametrize("between", ["frozen", "mlps"])
def test_the_text_fits_a_terminal_and_says_what_was_frozen(between: str) -> None:
    update = {
        "arguments": {**MADE.arguments, "between": between},
        "model": "someone/a-model-with-a-rather-long-name-0.5b-instruct",
        "task": "ioi(n=8, seed=0)",
    }
    text = repr(edge_scores(Graph(12, 12, 12), n=2, made=MADE.model_copy(update=update)))
    assert max(map(len, text.splitlines())) <= 80
    assert {"frozen": "all between", "mlps": "MLPs and norms are not"}[between] in text
    assert "clean +3" in text
    assert "corrupted +1" in text
    assert "32491 edges" in text


def test_estimates_are_compared_on_cells_that_both_know() -> None:
    exact, estimate = edge_scores(GRAPH, untestable=UNTESTED), edge_scores(GRAPH, seed=1)
    same = nnattr.agreement(exact, exact, k=5)
    assert (same.pearson, same.overlap) == (pytest.approx(1), 1)
    other = nnattr.agreement(exact, estimate)
    there = GRAPH.mask().numpy() & ~np.isnan(exact.mean().values.to_numpy())
    x, y = (one.mean().values.to_numpy()[there] for one in (exact, estimate))
    assert other.pearson == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)
    assert len(x) == len(GRAPH) - 2
    assert isinstance(same.exact, EdgeScores)


def test_what_is_no_matrix_of_edges_is_refused() -> None:
    plain = scores()
    with pytest.raises(ResultError, match="Edges have the dimensions"):
        EdgeScores.from_arrays(plain.raw, plain.baselines, 1.0, MADE)
    edges = edge_scores(GRAPH)
    with pytest.raises(ResultError, match="have no 'rest'"):
        edges.with_arrays(rest=edges.raw)
