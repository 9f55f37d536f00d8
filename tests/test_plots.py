"""Figures by their structure: axes, scales, hover text and headings."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.io as pio
import pytest
import xarray as xr

from nnattr import plots
from nnattr.errors import ResultError
from nnattr.results import Provenance, Scores

TOKENS = ["When", " Mary", " and", " John", " went", ",", " John"]
SIZES = {"layer": 4, "head": 8, "pos": len(TOKENS)}


def make(*dims: str, n: int = 5, sizes: dict[str, int] = SIZES, **arguments: Any) -> Scores:
    rng = np.random.default_rng(0)
    shape = [sizes[dim] for dim in dims]
    raw = xr.DataArray(
        rng.normal(size=shape) + 0.1 * rng.normal(size=(n, *shape)),
        dims=("example", *dims),
        coords={dim: np.arange(sizes[dim]) for dim in dims},
    )
    if "pos" in dims:
        raw = raw.assign_coords(token=("pos", TOKENS))
    baselines = xr.DataArray(
        np.ones((2, n)), dims=("run", "example"), coords={"run": ["clean", "corrupted"]}
    )
    given = {"site": "z", "positions": "all", "direction": "denoising", "normalized": True}
    provenance = Provenance(
        method="activation_patching",
        arguments={**given, **arguments},
        metric="LogitDiff()",
        model="org/tiny",
        architecture="gpt2",
        backend="local",
        dtype="float32",
        task="pairs",
        task_hash="0",
    )
    return Scores.from_arrays(raw, baselines, 2.0, provenance)


def test_heat_map_of_heads():
    scores = make("layer", "head")
    figure = scores.plot()
    (trace,) = figure.data
    np.testing.assert_allclose(trace.z, scores.mean().values)
    assert figure.layout.yaxis.autorange == "reversed"  # layer 0 at the top
    assert list(figure.layout.yaxis.ticktext) == ["0", "1", "2", "3"]
    assert list(figure.layout.xaxis.ticktext) == [str(head) for head in range(8)]
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("Head", "Layer")


def test_colours_are_centred_on_zero_and_blue_is_positive():
    scores = make("layer", "head")
    (trace,) = scores.plot().data
    largest = float(np.abs(scores.mean().values).max())
    assert (trace.zmin, trace.zmid, trace.zmax) == (-largest, 0, largest)
    red, blue = (eval(trace.colorscale[end][1].removeprefix("rgb")) for end in (0, -1))
    assert red[0] > red[2]
    assert blue[2] > blue[0]


def test_a_common_limit():
    (trace,) = make("layer", "head").plot(limit=3).data
    assert (trace.zmin, trace.zmax) == (-3, 3)


def test_nothing_but_zeros_still_has_a_scale():
    scores = make("layer", "head")
    scores.raw[:] = 0
    (trace,) = scores.plot().data
    assert trace.zmax == 1


def test_hover_names_the_cell_and_gives_value_and_standard_error():
    scores = make("layer", "head")
    text = scores.plot().data[0].text[3][6]
    mean, error = scores.mean().values[3, 6].item(), scores.stderr()[3, 6].item()
    assert "L3H6" in text
    assert f"{mean:+.4g} ± {error:.2g} (standard error)" in text
    assert "normalised change of LogitDiff" in text


def test_one_pair_has_no_standard_error():
    for dims in (("layer", "head"), ("layer",), ("layer", "head", "pos")):
        figure = make(*dims, n=1).plot()
        texts = figure.data[0].text if figure.data[0].text is not None else figure.data[0].hovertext
        assert not any("±" in str(text) or "nan" in str(text) for text in np.ravel(texts))


def test_the_same_token_twice_keeps_two_positions():
    figure = make("layer", "pos", site="resid_pre", positions="each").plot()
    axis = figure.layout.xaxis
    assert list(axis.tickvals) == list(range(len(TOKENS)))
    assert [text.split()[0] for text in axis.ticktext].count("John") == 2
    assert "pos 6 ' John'" in figure.data[0].text[0][6]


def test_text_from_a_tokenizer_is_shown_as_it_is():
    scores = make("layer", "pos", positions="each")
    odd = ["<|end|>", "\n", " ", "$$x$$", "&amp;", "a" * 40, " b"]
    scores = Scores.from_arrays(
        scores.raw.assign_coords(token=("pos", odd)), scores.baselines, 1.0, scores.provenance
    )
    ticks = scores.plot().layout.xaxis.ticktext
    assert ticks[0].startswith("&lt;|end|&gt; ")
    assert ticks[1].startswith("\\n ")
    assert ticks[2].startswith("␣ ")
    assert "$" not in ticks[3]
    assert ticks[4].startswith("&amp;amp; ")
    assert len(ticks[5].split()[0]) < 20


def test_positions_that_a_prompt_lacks_are_left_out():
    scores = make("layer", "pos", positions="each")
    scores.raw[:, :, :2] = np.nan
    (trace,) = scores.plot().data
    assert np.isnan(np.array(trace.z, dtype=float)[:, :2]).all()
    assert np.isfinite(trace.zmax)
    assert trace.hoverongaps is False


def test_the_heading_says_what_was_done():
    text = make("layer", "head").plot().layout.title.text
    for word in ("Activation patching", "(z)", "denoising", "all positions", "org/tiny", "n = 5"):
        assert word in text


def test_titles_can_be_set_and_left_out():
    assert "Mine" in make("layer").plot(title="Mine").layout.title.text
    assert make("layer").plot(title="").layout.title.text == ""


@pytest.mark.parametrize("positions", [3, (3, 5), "S2"])
def test_the_heading_names_the_positions(positions: Any):
    text = make("layer", positions=positions).plot().layout.title.text
    assert {3: "position 3", (3, 5): "positions 3, 5", "S2": "at S2"}[positions] in text


def test_unit_of_scores_that_are_not_normalised():
    (trace,) = make("layer", "head", normalized=False).plot().data
    assert trace.colorbar.title.text == "change of LogitDiff"


def test_bars_of_layers_with_errors():
    scores = make("layer", site="mlp_out")
    (trace,) = scores.plot().data
    assert trace.type == "bar"
    np.testing.assert_allclose(trace.error_y.array, scores.stderr())
    assert make("layer", n=1).plot().data[0].error_y.array is None


def test_a_chosen_layer_becomes_bars_that_name_it():
    figure = make("layer", "head").sel(layer=2).plot()
    assert figure.data[0].type == "bar"
    assert figure.layout.xaxis.title.text == "Head (layer 2)"
    assert "L2H0" in figure.data[0].hovertext[0]


def test_layer_head_and_position():
    scores = make("layer", "head", "pos", positions="each")
    figure = plots.strongest(scores, rows=6)
    first = figure.data[0]
    assert np.shape(first.z) == (6, len(TOKENS))
    best = scores.top(1)[0]
    assert figure.layout.yaxis.ticktext[0] == "L{}H{}".format(*best.index[:2])
    buttons = figure.layout.updatemenus[0].buttons
    assert [button.label for button in buttons][:2] == ["strongest rows", "layer 0"]
    visible, ticks = buttons[2].args
    assert visible["visible"] == [False, False, True, False, False]
    assert list(ticks["yaxis.ticktext"]) == [f"L1H{head}" for head in range(8)]
    np.testing.assert_allclose(figure.data[2].z, scores.mean().values[1])


@pytest.mark.parametrize(("layers", "heads"), [(4, 8), (12, 12), (32, 32), (80, 64)])
def test_sizes_from_small_to_large(layers: int, heads: int):
    figure = make("layer", "head", sizes={"layer": layers, "head": heads}).plot()
    assert 300 <= figure.layout.width <= 1300
    assert 300 <= figure.layout.height <= 1600
    assert len(figure.layout.xaxis.ticktext) <= 32


def test_colours_of_a_matrix_begin_at_zero_where_nothing_is_negative():
    numbers = np.random.default_rng(0).random((3, 5))
    (trace,) = plots.matrix(xr.DataArray(numbers, dims=("a", "b"))).data
    assert (trace.zmin, trace.zmax) == (0, numbers.max())
    assert trace.zmid is None
    white, blue = (eval(trace.colorscale[end][1].removeprefix("rgb")) for end in (0, -1))
    assert min(white) > 200
    assert blue[2] > blue[0]
    (trace,) = plots.matrix(xr.DataArray(numbers - 0.1, dims=("a", "b"))).data
    assert trace.zmin == -trace.zmax < 0


@pytest.mark.parametrize("n", [4, 30, 128, 512])
def test_a_matrix_of_the_same_things_is_square_and_fits_a_screen(n: int):
    figure = plots.matrix(xr.DataArray(np.eye(n), dims=("query_pos", "key_pos")), title="")
    wide, tall = figure.layout.width - 170, figure.layout.height
    assert tall <= 1200
    assert wide <= 1200
    if n > 4:
        assert abs(wide - (tall - 16 - 60 - 16)) < 1
    assert list(figure.layout.xaxis.tickvals) == list(figure.layout.yaxis.tickvals)


def test_agreement_scatter():
    exact = make("layer", "head")
    estimate = exact.with_arrays(raw=exact.raw * 0.9)
    figure = plots.agreement_scatter(exact, estimate)
    (points,) = figure.data
    np.testing.assert_allclose(points.x, exact.mean().values.to_numpy().ravel())
    np.testing.assert_allclose(points.y, np.array(points.x) * 0.9)
    assert "Pearson r 1.000, Spearman rho 1.000" in figure.layout.title.text
    (line,) = figure.layout.shapes
    assert (line.x0, line.x1) == (line.y0, line.y1)
    assert figure.layout.xaxis.range == figure.layout.yaxis.range
    strongest = exact.top(1)[0].label
    assert strongest in [note.text for note in figure.layout.annotations]
    assert points.hovertext[0].count("±") == 2


def test_scatter_refuses_two_units():
    with pytest.raises(ResultError, match="one unit"):
        plots.agreement_scatter(make("layer", "head"), make("layer", "head", normalized=False))


def test_scatter_refuses_other_cells():
    with pytest.raises(ResultError, match="different cells"):
        plots.agreement_scatter(make("layer", "head"), make("layer"))


@pytest.mark.parametrize("draw", [plots.bars, plots.heatmap, plots.strongest])
def test_figures_refuse_the_wrong_number_of_dimensions(draw: Any):
    dims = ("layer",) if draw is not plots.bars else ("layer", "head")
    with pytest.raises(ResultError, match="dimension"):
        draw(make(*dims))


def test_four_dimensions_ask_for_a_choice():
    sizes = {"layer": 2, "head": 2, "query_pos": 3, "key_pos": 3}
    with pytest.raises(ResultError, match=r"sel\(layer=0\)"):
        make(*sizes, sizes=sizes).plot()


def test_nothing_is_set_globally():
    before = pio.templates.default
    figure = make("layer", "head").plot()
    assert pio.templates.default == before
    assert not figure.layout.template.data.heatmap
