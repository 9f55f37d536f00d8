"""The plain runs: shown with every score, and a caution wherever their gap is a bad divisor."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import nnattr
from nnattr import LogitDiff, Scores, Task, plots
from nnattr.report import Entry, report_page
from nnattr.results.baselines import caution, spelled
from tests.methods.common import teaching
from tests.support.command_line import call

FILES = Path(__file__).parent / "files"
METHODS = [nnattr.activation_patching, nnattr.attribution_patching]
SMALL, SWAPPED = "cannot be told from zero", "the wrong way round"


def baselines(clean: list[float], corrupted: list[float]) -> xr.DataArray:
    runs = {"run": ["clean", "corrupted"], "example": np.arange(len(clean))}
    return xr.DataArray([clean, corrupted], runs)


def spread(gap: float, n: int = 8) -> xr.DataArray:
    """Baselines whose gap has this mean and a standard error of 1."""
    noise = np.resize([1.0, -1.0], n) * np.sqrt(n - 1)
    return baselines((gap + noise).tolist(), [0.0] * n)


@pytest.mark.parametrize(
    ("given", "metric", "found"),
    [
        (spread(5), "LogitDiff()", ""),
        (spread(2.01), "LogitDiff()", ""),
        (spread(1.99), "LogitDiff()", SMALL),
        (spread(0), "LogitDiff()", SMALL),
        (spread(-1.99), "KL()", SMALL),
        (spread(-5), "LogitDiff()", SWAPPED),
        (spread(-5), "Prob()", SWAPPED),
        (spread(-5), "SequenceLogProb(per_token=True)", SWAPPED),
        (spread(-5), "Loss(last=3)", ""),
        (spread(5), "Loss(last=3)", SWAPPED),
        (spread(-5), "KL()", ""),
        (spread(5), "my_metric", ""),
        (spread(-5), "my_metric", ""),  # nobody knows which way is better
        (spread(1), "my_metric", SMALL),
        (baselines([0.5], [0.4]), "LogitDiff()", ""),  # one example has no spread
        (baselines([0.4], [0.5]), "LogitDiff()", SWAPPED),
        (baselines([1.0, 1.2], [0.0, 0.0]), "LogitDiff()", ""),
    ],
)
def test_when_a_gap_is_no_divisor(given: xr.DataArray, metric: str, found: str) -> None:
    said = caution(given, metric)
    assert found in said
    assert bool(said) == bool(found)


def test_the_threshold_is_fiellers() -> None:
    """Beyond it a ratio of means has a bounded interval: its ends solve a quadratic equation."""
    rng = np.random.default_rng(0)
    told = []
    for gap in (0.5, 1.5, 1.9, 2.1, 3.0):
        g = (spread(gap, 30).sel(run="clean")).to_numpy()
        x = rng.normal(size=30)
        n, t = len(g), 2.0
        xx, gg = (np.var(one, ddof=1) / n for one in (x, g))
        xg = np.cov(x, g)[0, 1] / n
        # all r with (mean x - r mean g)^2 <= t^2 Var(x - r g): a r^2 + 2 b r + c <= 0
        a = g.mean() ** 2 - t**2 * gg
        b, c = t**2 * xg - x.mean() * g.mean(), x.mean() ** 2 - t**2 * xx
        bounded = a > 0 and b**2 - a * c > 0
        told.append(bounded)
        assert bounded == (not caution(spread(gap, 30), "LogitDiff()"))
    assert any(told)
    assert not all(told)


@cache
def tasks() -> dict[str, Task]:
    """A good one; with the answers swapped; and pairs that differ in what does not matter."""
    tokenizer = teaching("teaching-gpt2").tokenizer
    good = nnattr.tasks.ioi(tokenizer, n=6, seed=0)
    swapped = replace(
        good,
        answers=good.wrong_answers,
        wrong_answers=good.answers,
        answer_ids=good.wrong_answer_ids,
        wrong_answer_ids=good.answer_ids,
    )
    things = ("book", "ball", "ring", "key", "cup", "hat")
    clean, other = (
        [f"When Mary and John went to the {place}, John gave a {thing} to" for thing in things]
        for place in ("store", "park")
    )
    alike = Task.from_pairs(
        [*clean[:3], *other[3:]],
        [*other[:3], *clean[3:]],
        [" Mary"] * 6,
        [" John"] * 6,
        tokenizer=tokenizer,
    )
    return {"good": good, "swapped": swapped, "alike": alike}


@cache
def measured(name: str, method: Any = nnattr.activation_patching, **options: Any) -> Scores:
    return method(teaching("teaching-gpt2"), tasks()[name], LogitDiff(), **options)


def shown(scores: Scores, folder: Path) -> dict[str, str]:
    """Everything that shows scores, as text."""
    path = scores.save(folder / "scores.safetensors")
    again = nnattr.load_result(path)
    page = call("report", path, "-o", folder / "page.html") and (folder / "page.html").read_text()
    return {
        "repr": repr(scores),
        "html": scores._repr_html_(),
        "ranking": repr(scores.top(3)),
        "mean": repr(scores.mean()),
        "part": repr(scores.sel(example=[1])),
        "one layer": repr(scores.sel(layer=1).top(1)),
        "file": repr(again),
        "heat map": scores.plot().layout.title.text,
        "bars": scores.sel(layer=1).plot(title="Mine").layout.title.text,
        "scatter": plots.agreement_scatter(scores, scores).layout.title.text,
        "agreement": repr(nnattr.agreement(scores, scores)),
        "page": page,
    }


def words(text: str) -> str:
    """The text without its line breaks, which stand anywhere."""
    for mark in ("<br>", "\n", "</span>"):
        text = text.replace(mark, " ")
    bare = (piece.rpartition(">")[2] if "<span" in piece else piece for piece in text.split("  "))
    return " ".join(" ".join(bare).split())


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("name", "found"), [("swapped", SWAPPED), ("alike", SMALL)])
def test_a_bad_gap_is_told(name: str, found: str, method: Any, direction: str) -> None:
    scores = measured(name, method, direction=direction)
    assert found in scores.provenance.caution
    assert not measured("good", method, direction=direction).provenance.caution
    plain = method(teaching("teaching-gpt2"), tasks()[name], LogitDiff(), normalized=False)
    assert not plain.provenance.caution, "nothing is divided"
    if name == "swapped":  # and looks perfect
        good = measured("good", method, direction=direction)
        np.testing.assert_allclose(scores.values, good.values, atol=1e-4)


@pytest.mark.parametrize(("name", "found"), [("swapped", SWAPPED), ("alike", SMALL), ("good", "")])
def test_it_is_told_wherever_scores_are_shown(name: str, found: str, tmp_path: Path) -> None:
    for where, text in shown(measured(name), tmp_path).items():
        if found:
            assert found in words(text), where
        assert ("Caution" in text) == bool(found), where


@pytest.mark.parametrize(("name", "found"), [("alike", SMALL), ("good", "")])
def test_the_command_line_tells_it(name: str, found: str, tmp_path: Path) -> None:
    tasks()[name].save(tmp_path / "task.json")
    config = tmp_path / "run.yaml"
    task = {"file": str(tmp_path / "task.json")}
    config.write_text(yaml.safe_dump({"model": "teaching-gpt2", "task": task}))
    text = words(call("run", config))
    assert "LogitDiff(): clean " in text
    assert ("Caution" in text) == bool(found)
    assert found in text


def test_every_text_of_scores_has_the_baselines() -> None:
    scores = measured("good")
    clean, corrupted = (
        f"{run} {float(scores.baselines.sel(run=run).mean()):+.4g} ± "
        for run in ("clean", "corrupted")
    )
    for text in (repr(scores), scores._repr_html_(), repr(nnattr.agreement(scores, scores))):
        assert clean in text
        assert f", {corrupted}" in text
    direct = nnattr.direct_logit_attribution(teaching("teaching-gpt2"), tasks()["good"])
    assert clean in repr(direct)
    assert corrupted in repr(direct)


def test_runs_that_were_not_measured_are_not_named(tmp_path: Path) -> None:
    """An ablation has the clean run alone, direct attribution without pairs as well."""
    model = teaching("teaching-gpt2")
    task = replace(tasks()["good"], corrupted=(), twin_tokens=None)
    for scores in (
        nnattr.ablate(model, tasks()["good"], LogitDiff()),
        nnattr.direct_logit_attribution(model, task),
    ):
        line = repr(scores).splitlines()[1]
        assert line.startswith("LogitDiff(): clean ")
        assert "corrupted" not in line
        page = report_page([Entry(scores, "s.safetensors")])
        assert "Without any patch" in page
        assert "<td>corrupted</td>" not in page


def test_one_example_has_no_standard_error() -> None:
    assert spelled(baselines([0.5], [0.25]), "LogitDiff()") == (
        "LogitDiff(): clean +0.5, corrupted +0.25"
    )


def test_files_of_earlier_schemas_are_judged_when_they_are_read(tmp_path: Path) -> None:
    """By the baselines that they hold, of which there a part of the examples kept all."""
    good = FILES / "scores-2.safetensors"
    assert "Caution" not in repr(nnattr.load_result(good))
    with safe_open(str(good), framework="numpy") as file:
        header = file.metadata()
    tensors = load_file(good)
    swapped = {**tensors, "baselines": np.ascontiguousarray(tensors["baselines"][::-1])}
    save_file(swapped, tmp_path / "old.safetensors", metadata=header)
    assert SWAPPED in repr(nnattr.load_result(tmp_path / "old.safetensors")).replace("\n", " ")
