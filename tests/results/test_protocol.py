"""What every result has: data, a provenance, a file, a table, a figure, a text and a page."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import xarray as xr
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import nnattr
from nnattr.errors import ResultError
from nnattr.results import Provenance, Result, Scores
from nnattr.results.load import kinds
from tests.methods.common import teaching
from tests.support.results import PROMPTS, made

KINDS = kinds()
FILES = Path(__file__).parent / "files"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_result_comes_back_from_its_file(kind: str, tmp_path: Path) -> None:
    """By its own ``load`` and by the one that opens any; nothing is lost."""
    found = made(kind)
    path = found.save(tmp_path / "r.safetensors")
    for again in (nnattr.load_result(path), KINDS[kind].load(path)):
        assert type(again) is type(found) is KINDS[kind]
        assert again.provenance == found.provenance
        xr.testing.assert_identical(again.data, found.data)
        for name, variable in found.data.variables.items():
            kinds = again.data[name].dtype.kind, variable.dtype.kind
            assert kinds in (("U", "U"), ("O", "O")) or again.data[name].dtype == variable.dtype
        assert repr(again) == repr(found)
        own = [name for name in vars(found) if name not in ("data", "provenance")]
        assert {name: getattr(again, name) for name in own} == {
            name: getattr(found, name) for name in own
        }


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_result_says_how_it_was_made(kind: str) -> None:
    found = made(kind)
    p = found.provenance
    model = teaching("teaching-gpt2")
    assert found.model == p.model == model.name
    assert (p.architecture, p.backend, p.dtype) == ("gpt2", "local", "float32")
    assert callable(attrgetter(p.method)(nnattr))
    assert p.versions["nnattr"] == nnattr.__version__
    assert p.created
    # the one compares what is there already, the other asks `Model.predict`
    assert p.seconds > 0 or kind in ("Agreement", "AnswerTable")
    json.dumps(p.arguments)
    if kind in ("Composition", "HeadWeights", "WeightMatrix"):  # of weights alone
        assert (p.task, p.task_hash, p.examples) == ("", "", None)
        with pytest.raises(ResultError, match="does not hold its task"):
            _ = found.task
        return
    assert p.task
    assert found.task.hash == p.task_hash
    if kind not in ("AnswerTable", "Comparison", "Inspection"):
        assert len(found.task) == found.data.sizes["example"]
    if kind in ("Activations", "AttentionParts", "Comparison", "Lens", "Patterns"):
        assert found.task.clean == tuple(PROMPTS)
        assert (
            found.task.clean_tokens.strings
            == nnattr.tokens.encode(model.tokenizer, PROMPTS).strings
        )


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_result_shows_itself(kind: str) -> None:
    found = made(kind)
    table = found.to_dataframe()
    assert isinstance(table, pd.DataFrame)
    assert len(table)
    assert isinstance(found.plot(), go.Figure)
    head = repr(found).splitlines()[0]
    assert kind in head
    assert len(repr(found)) < 2500
    page = found._repr_html_()
    if kind == "Inspection":
        assert page.count("<table>") == len(found.steps)
        return
    assert page.count("<pre>") == page.count("</pre>") == (len(repr(found).splitlines()) > 1)
    assert found.provenance.method in page


def test_what_a_model_says_is_never_html() -> None:
    found = made("Lens")
    told = found.provenance.model_copy(update={"model": "<script>"})
    page = nnattr.results.Lens(found.data, told, ("<b>", "<i>"), found.answers)._repr_html_()
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;" in page
    assert not {"<script>", "<b>'", "<i>"} & set(page.split())


def test_a_type_opens_its_own_files_only(tmp_path: Path) -> None:
    path = made("Composition").save(tmp_path / "c.safetensors")
    with pytest.raises(ResultError, match=r"'Composition' and not Scores.*load_result"):
        Scores.load(path)


def test_a_figure_needs_no_import_of_plots(tmp_path: Path) -> None:
    """And plotly is not loaded before it."""
    path = made("Scores").save(tmp_path / "s.safetensors")
    code = (
        "import sys, nnattr\n"
        f"found = nnattr.load_result({str(path)!r})\n"
        "print('plotly' in sys.modules, type(found.plot()).__name__)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "Figure"]


def test_data_that_lacks_a_variable_or_a_dimension_is_refused() -> None:
    found = made("Composition")
    rest = {name: getattr(found, name) for name in ("kind", "baseline", "spread", "fold_norm")}
    with pytest.raises(ResultError, match="Composition has the variable 'values'"):
        nnattr.results.Composition(xr.Dataset(), found.provenance, **rest)
    with pytest.raises(ResultError, match="dimensions of 'values'"):
        nnattr.results.Composition(found.data.transpose(), found.provenance, **rest)
    bare = xr.DataArray(np.zeros((2, 3)), {"example": [0, 1], "layer": [0, 1, 2]})
    longer = xr.DataArray(np.zeros((2, 4)), {"example": [0, 1], "layer": [0, 1, 2, 3]})
    base = xr.DataArray(np.zeros((2, 2)), {"run": ["clean", "corrupted"], "example": [0, 1]})
    with pytest.raises(ResultError, match="do not fit together"):
        Scores.from_arrays(bare, base, 1.0, found.provenance, rest=longer)


def test_pairs_of_parts_are_scores_too(tmp_path: Path) -> None:
    """Edges: a sender and a receiver, any part of a model by its name."""
    senders, receivers = ["input", "L0H1", "M0"], ["L1H0.q", "M1", "L1H2", "logits"]
    numbers = np.arange(24.0).reshape(2, 3, 4)
    raw = xr.DataArray(
        numbers, {"example": [0, 1], "sender": senders, "receiver": receivers}, name="x"
    )
    base = xr.DataArray(np.ones((2, 2)), {"run": ["clean", "corrupted"], "example": [0, 1]})
    edges = Scores.from_arrays(raw, base, 1.0, made("Scores").provenance)
    assert edges.top(4).indices == [
        ("M0", "logits"),
        ("M0", (1, 2)),
        ("M0", "M1"),
        ("M0", "L1H0.q"),
    ]
    assert edges.sel(sender="L0H1").top(1)[0].index == ((0, 1), "logits")
    assert edges.top(1)[0].label == "M0 → logits"
    again = nnattr.load_result(edges.save(tmp_path / "edges.safetensors"))
    xr.testing.assert_identical(again.raw, edges.raw)
    figure: Any = again.plot()
    assert list(figure.layout.yaxis.ticktext) == senders
    assert "<b>M0 → L1H2</b>" in figure.data[0].text[2][2]


# --- files of earlier schemas ---------------------------------------------------------------------


def old(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What a file of an earlier schema holds, read by its own rules."""
    with safe_open(str(FILES / name), framework="numpy") as file:
        return load_file(FILES / name), json.loads(file.metadata()["nnattr"])


@pytest.mark.parametrize("name", sorted(path.name for path in FILES.iterdir()))
def test_files_of_earlier_schemas_still_load(name: str, tmp_path: Path) -> None:
    tensors, header = old(name)
    assert header["schema"] < 3
    found = nnattr.load_result(FILES / name)
    named = {"head_scores": "HeadScores", "patterns": "Patterns"}
    assert type(found).__name__ == named.get(name.split("-")[0], "Scores")
    for key, array in tensors.items():
        if key == "baselines" and "one-example" in name:
            array = array[:, [1]]  # a part of the examples once kept the baselines of all
        np.testing.assert_array_equal(found.data[key], array)
        for coord, (_, values) in header["coords"][key].items():
            expected = [1] if coord == "example" and "one-example" in name else values
            assert found.data[key][coord].to_numpy().tolist() == expected
    xr.testing.assert_identical(
        nnattr.load_result(found.save(tmp_path / "now.safetensors")).data, found.data
    )
    assert isinstance(found.plot(), go.Figure)
    assert "teaching-gpt2" in repr(found)


def test_what_earlier_schemas_did_not_know_is_empty() -> None:
    scores = nnattr.load_result(FILES / "scores-2.safetensors")
    assert len(scores.task) == 2
    assert nnattr.Task.load(FILES / "scores-2.safetensors").hash == scores.task.hash
    assert scores.provenance.method == "attribution_patching"
    with pytest.raises(ResultError, match="does not hold its task, ioi"):
        _ = nnattr.load_result(FILES / "scores-1.safetensors").task
    with pytest.raises(nnattr.errors.TaskError, match="does not hold its task"):
        nnattr.Task.load(FILES / "scores-1.safetensors")
    heads = nnattr.results.HeadScores.load(FILES / "head_scores-2.safetensors")
    _, header = old("head_scores-2.safetensors")
    assert heads.thresholds == header["head_scores"]["thresholds"]
    assert [list(row) for row in heads.tokens.strings] == header["head_scores"]["strings"]
    assert heads.second == header["head_scores"]["second"]
    empty = Provenance(model="teaching-gpt2", method="", architecture="", backend="", dtype="")
    assert heads.provenance == empty


# --- damaged files --------------------------------------------------------------------------------


def changed(value: Any, draw: random.Random) -> Any:
    """The same plain value with one thing in it replaced by something else."""
    other = draw.choice([None, -1, 10**9, 1.5, "x", [], {}, [["pos"], [1]], True, {"a": None}])
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice([*value])
        if draw.random() < 0.2:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: changed(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.85:
        at = draw.randrange(len(value))
        return [*value[:at], changed(value[at], draw), *value[at + 1 :]]
    return other


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_damaged_header_gives_our_error_or_a_result(kind: str, tmp_path: Path) -> None:
    path = made(kind).save(tmp_path / "r.safetensors")
    tensors, header = load_file(path), json.loads(safe_open(path, "np").metadata()["nnattr"])
    draw = random.Random(0)
    refused = 0
    for _ in range(150):
        save_file(tensors, path, metadata={"nnattr": json.dumps(changed(header, draw))})
        try:
            found = nnattr.load_result(path)
        except nnattr.NnattrError:
            refused += 1
        else:
            assert isinstance(found, Result)
    assert refused > 50


@pytest.mark.parametrize("name", sorted(path.name for path in FILES.iterdir()))
def test_a_damaged_file_of_an_earlier_schema_too(name: str, tmp_path: Path) -> None:
    tensors, header = old(name)
    draw, path = random.Random(0), tmp_path / name
    for _ in range(60):
        save_file(tensors, path, metadata={"nnattr": json.dumps(changed(header, draw))})
        try:
            nnattr.load_result(path)
        except nnattr.NnattrError:
            continue


def test_truncated_files(tmp_path: Path) -> None:
    whole = made("Patterns").save(tmp_path / "r.safetensors").read_bytes()
    for end in range(0, len(whole), 97):
        (tmp_path / "cut.safetensors").write_bytes(whole[:end])
        with pytest.raises(ResultError, match="not a complete nnattr result"):
            nnattr.load_result(tmp_path / "cut.safetensors")
