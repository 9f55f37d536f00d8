"""`Scores`: statistics against numpy, labels, and a file that gives back what was put in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from nnattr import Scores
from nnattr.errors import ArgumentError, ResultError
from nnattr.results import cell_label
from tests.support.scores import PROVENANCE, scores


def test_values_are_the_raw_changes_over_the_scale():
    s = scores()
    np.testing.assert_allclose(s.values, s.raw / 2)
    np.testing.assert_allclose(s.mean().values, s.raw.mean("example") / 2, rtol=1e-6)


def test_standard_errors_are_those_of_the_mean():
    s = scores()
    expected = s.values.to_numpy().std(axis=0, ddof=1) / np.sqrt(6)
    np.testing.assert_allclose(s.stderr(), expected, rtol=1e-5)
    np.testing.assert_allclose(s.mean().stderr(), expected, rtol=1e-5)
    assert np.isnan(scores(n=1).stderr()).all()


def test_cells_missing_in_some_examples_are_averaged_over_the_rest():
    s = scores()
    holes = s.raw.copy()
    holes[:3, 0, 0] = np.nan
    holes[:, 1, 1] = np.nan
    got = Scores.from_arrays(holes, s.baselines, 1.0, PROVENANCE)
    np.testing.assert_allclose(got.mean().values[0, 0], s.raw[3:, 0, 0].mean(), rtol=1e-6)
    assert np.isnan(got.mean().values[1, 1])
    assert (1, 1) not in got.top(100).indices


def test_bootstrap_covers_the_mean_and_is_seeded():
    s = scores(n=40)
    ci = s.bootstrap_ci(seed=1, n_resamples=500)
    mean = s.mean().values
    assert ((ci.sel(bound="low") <= mean) & (mean <= ci.sel(bound="high"))).all()
    xr.testing.assert_identical(ci, s.bootstrap_ci(seed=1, n_resamples=500))
    width = float((ci.sel(bound="high") - ci.sel(bound="low")).mean())
    assert width == pytest.approx(2 * 1.96 * float(s.stderr().mean()), rel=0.15)
    with pytest.raises(ArgumentError, match="level is "):
        s.bootstrap_ci(level=95)
    with pytest.raises(ResultError, match="averaged already"):
        s.mean().bootstrap_ci()


def test_top_ranks_by_strength_or_sign():
    s = scores()
    flat = {(i, j): float(s.mean().values[i, j]) for i in range(3) for j in range(4)}
    assert s.top(3).indices == sorted(flat, key=lambda c: -abs(flat[c]))[:3]
    assert s.top(1, by="value").indices == [max(flat, key=flat.__getitem__)]
    assert s.top(1, by="-value").indices == [min(flat, key=flat.__getitem__)]
    best = s.top(1)[0]
    assert best.value == pytest.approx(flat[best.index])
    assert best.label == "L{}H{}".format(*best.index)
    assert len(s.top(100)) == 12
    assert "±" in repr(s.top(2))
    with pytest.raises(ArgumentError, match="by is "):
        s.top(1, by="size")


def test_labels():
    assert cell_label({"layer": 9, "head": 6}) == "L9H6"
    assert cell_label({"layer": 3, "pos": 10}, " John") == "L3 pos 10 ' John'"
    s = scores(dims=("layer", "pos"), token=("pos", ["a", "b", "a", "c"]))
    assert all(cell.label.split("'")[1] in "abc" for cell in s.top(3))


def test_a_part_by_label_keeps_its_labels():
    s = scores().sel(layer=2, head=[0, 3])
    assert dict(s.raw.sizes) == {"example": 6, "layer": 1, "head": 2}
    assert set(s.top(9).indices) == {(2, 0), (2, 3)}
    assert s.mean().sel(head=3).stderr().shape == (1, 1)
    with pytest.raises(ResultError, match="not in these scores"):
        scores().sel(layer=7)


@pytest.mark.parametrize(
    ("chosen", "labels"),
    [(2, [2]), ([4, 1], [4, 1]), ([3, 3], [3, 3]), (slice(1, 3), [1, 2, 3])],  # labels: 3 is in
)
def test_chosen_examples_keep_their_baselines(tmp_path, chosen, labels):
    """In memory, on disk and after the average; of numbers that tell the examples apart."""
    whole = scores()
    runs = whole.baselines + np.arange(6) * np.array([[1.0], [-1.0]])
    whole = whole.with_arrays(baselines=runs)
    part = whole.sel(example=chosen)
    np.testing.assert_array_equal(part.raw, whole.raw.sel(example=labels))
    for kept in (part, part.mean(), Scores.load(part.save(tmp_path / "part.safetensors"))):
        np.testing.assert_array_equal(kept.baselines, whole.baselines.sel(example=labels))
        assert kept.baselines["example"].to_numpy().tolist() == labels
        assert kept.scale == whole.scale
    assert f"clean {float(runs.sel(run='clean', example=labels).mean()):+.4g}" in repr(part)


def test_chosen_cells_keep_all_baselines_and_their_rest():
    whole = scores(dims=("layer", "pos"), token=("pos", ["a", "b", "c", "d"]))
    names = {"example": np.arange(6), "component": ["embed", "bias"], "pos": np.arange(4)}
    rest = xr.DataArray(np.arange(48.0).reshape(6, 2, 4), names)
    whole = whole.with_arrays(rest=rest.assign_coords(token=("pos", ["a", "b", "c", "d"])))
    for part in (whole.sel(pos=[3, 1]), whole.sel(pos=[3, 1]).mean(), whole.mean().sel(pos=[3, 1])):
        xr.testing.assert_identical(part.baselines, whole.baselines)
        assert part.raw["token"].to_numpy().tolist() == ["d", "b"]
        assert part.rest is not None
        assert part.rest["pos"].to_numpy().tolist() == [3, 1]
        assert part.rest["token"].to_numpy().tolist() == ["d", "b"]
    assert whole.sel(layer=1).rest is None, "the rest beside all layers is not that beside one"
    chosen = whole.sel(example=[5, 0])
    np.testing.assert_array_equal(chosen.rest, whole.rest.sel(example=[5, 0]))
    for nothing in ({"example": []}, {"layer": []}, {"layer": slice(7, 9)}):
        with pytest.raises(ResultError, match="leaves nothing"):
            whole.sel(**nothing)


def test_a_table_has_one_row_per_example_and_cell():
    table = scores().to_dataframe()
    assert len(table) == 6 * 3 * 4
    assert {"example", "layer", "head", "value", "raw"} <= set(table.columns)
    np.testing.assert_allclose(table["value"], table["raw"] / 2)


@pytest.mark.parametrize("reduced", [False, True])
def test_a_saved_result_comes_back_identical(tmp_path, reduced):
    s = scores(dims=("layer", "pos"), token=("pos", ["a", "b", "a", "ü"]))
    s = s.mean() if reduced else s
    back = Scores.load(s.save(tmp_path / "r.safetensors"))
    xr.testing.assert_identical(back.raw, s.raw)
    xr.testing.assert_identical(back.baselines, s.baselines)
    assert back.provenance == s.provenance
    assert back.scale == s.scale
    assert (back.error is None) == (s.error is None)


def test_files_that_are_not_results_are_refused(tmp_path):
    path = scores().save(tmp_path / "r.safetensors")
    whole = path.read_bytes()
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ResultError, match="not a complete nnattr result"):
        Scores.load(broken)
    broken.write_bytes(whole.replace(b'\\"schema\\": 3', b'\\"schema\\": 9'))
    with pytest.raises(ResultError, match="schema 9"):
        Scores.load(broken)
    broken.write_bytes(
        whole.replace(
            b'\\"layer\\": [[\\"layer\\"], [0, 1, 2', b'\\"layer\\": [[\\"layer\\"], [0, 1   '
        )
    )
    with pytest.raises(ResultError, match="contradicts its own header"):
        Scores.load(broken)
    with pytest.raises(ResultError, match="no result file"):
        Scores.load(tmp_path / "nowhere.safetensors")
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3)}, str(broken))
    with pytest.raises(ResultError, match="not a complete nnattr result"):
        Scores.load(broken)
    with pytest.raises(ResultError, match="could not be written"):
        scores().save(tmp_path / "no" / "such" / "folder.safetensors")


def test_dimensions_stand_in_the_glossarys_order():
    s = scores()
    with pytest.raises(ResultError, match="order"):
        s.with_arrays(raw=s.raw.transpose("head", "layer", "example"))
    with pytest.raises(ResultError, match="scale of 0"):
        replace(s, scale=0.0)
