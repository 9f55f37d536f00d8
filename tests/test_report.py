"""The report: what it says, that its command makes the scores again, and how a browser shows it."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import yaml

import nnattr
from nnattr import Scores
from nnattr.calls.registry import ANSWERS
from nnattr.errors import ResultError, TaskError
from nnattr.report import Entry, report_page
from nnattr.report.scores import comparable
from tests.browser import CHROMIUM, Tab, browser
from tests.methods.common import even_ioi, teaching
from tests.support.calls import example
from tests.support.command_line import call, is_self_contained

#: Files that earlier versions wrote.
OLD = Path(__file__).parent / "results" / "files"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an exact result, its estimate, one by position and a direct one."""
    folder = tmp_path_factory.mktemp("results")
    model = nnattr.load("teaching-llama")
    task = nnattr.tasks.ioi(model.tokenizer, n=6, seed=1)
    found = {
        "exact": nnattr.activation_patching(model, task, nnattr.LogitDiff()),
        "estimate": nnattr.attribution_patching(model, task, nnattr.LogitDiff()),
        "where": nnattr.activation_patching(
            model, task[:1], nnattr.LogitDiff(), site="resid_pre", positions="each"
        ),
        "direct": nnattr.direct_logit_attribution(model, task, nnattr.LogitDiff(), unit="head"),
    }
    for name, scores in found.items():
        scores.save(folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def page(saved: Path) -> Path:
    path = saved / "report.html"
    names = ("exact", "estimate", "where", "direct")
    files = [saved / f"{name}.safetensors" for name in names]
    call("report", *files, "-o", path, "--model", "teaching-llama")
    return path


def test_a_result_holds_its_task(saved: Path):
    scores = Scores.load(saved / "exact.safetensors")
    task = nnattr.tasks.ioi(nnattr.load("teaching-llama").tokenizer, n=6, seed=1)
    for kept in (scores.task, nnattr.Task.load(saved / "exact.safetensors")):
        assert kept.hash == task.hash == scores.provenance.task_hash
        assert kept.clean == task.clean
        assert kept.answers == task.answers
        assert dict(kept.spans) == dict(task.spans)
    assert "examples" not in repr(scores.provenance)


def test_a_file_of_schema_1_still_loads():
    """As 0.1 wrote them: no task in the provenance."""
    old = OLD / "scores-1.safetensors"
    scores = Scores.load(old)
    with pytest.raises(ResultError, match="does not hold its task"):
        _ = scores.task
    with pytest.raises(TaskError, match="does not hold its task"):
        nnattr.Task.load(old)
    html = report_page([Entry(scores, old.name)])
    assert "does not hold the prompts" in html
    assert "It cannot be made again from its file: The result does not hold its task" in html


def test_the_page_says_what_was_asked_and_found(page: Path):
    html = page.read_text(encoding="utf-8")
    is_self_contained(html)
    assert html.count("<h1>") == 1
    assert "<mark>" in html
    assert "2 more</summary>" in html, "six pairs, four of them open"
    for name in ("result0", "result1", "result2", "result3", "agreement0"):
        assert f'id="{name}"' in html
    assert 'id="agreement1"' not in html, "only two of the results measure the same cells"
    assert "95 % interval" in html
    assert "Pearson r" in html


@pytest.mark.parametrize("name", ["exact", "estimate", "where", "direct"])
def test_the_file_on_the_page_makes_the_scores_again(
    saved: Path, page: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    blocks = re.findall(r"<pre><code>(.*?)</code></pre>", page.read_text("utf-8"), re.DOTALL)
    configs = [yaml.safe_load(unescape(block)) for block in blocks]
    mine = next(one for one in configs if one["task"]["file"] == f"{name}.safetensors")
    monkeypatch.chdir(saved)
    Path(f"{name}.yaml").write_text(yaml.safe_dump({**mine, "output": "again.safetensors"}))
    call("run", f"{name}.yaml")
    before, after = (Scores.load(f"{one}.safetensors") for one in (name, "again"))
    np.testing.assert_array_equal(after.raw, before.raw)
    assert after.provenance.arguments == before.provenance.arguments
    assert after.provenance.task_hash == before.provenance.task_hash


def test_edges_are_shown_with_their_direct_effects(saved: Path, tmp_path: Path):
    task = nnattr.load_result(saved / "exact.safetensors").task
    model = nnattr.load("teaching-llama")
    edges = nnattr.path_patching(model, task, nnattr.LogitDiff(), receivers="all")
    file = edges.save(tmp_path / "edges.safetensors")
    call("report", file, "-o", tmp_path / "edges.html")
    html = unescape((tmp_path / "edges.html").read_text(encoding="utf-8"))
    assert 'id="result0"' in html
    assert 'id="result0-logits"' in html
    assert f"The 10 strongest of {edges.n_cells} edges" in html
    assert "all between sender and receiver is frozen" in html
    assert "Grey: no edge, or not asked for. Sand: not testable with this counterfactual." in html
    assert edges.top(1)[0].label in html


def test_two_meanings_of_path_patching_are_not_compared(saved: Path):
    edges = nnattr.path_patching(
        nnattr.load("teaching-llama"),
        nnattr.load_result(saved / "exact.safetensors").task,
        nnattr.LogitDiff(),
    )
    p = edges.provenance
    other = replace(
        edges, provenance=p.model_copy(update={"arguments": {**p.arguments, "between": "mlps"}})
    )
    for one, n in ((edges, 1), (other, 0)):
        assert len(list(comparable([Entry(edges, "a"), Entry(one, "b")]))) == n


def test_the_strongest_heads_are_looked_at(saved: Path, page: Path):
    html = page.read_text(encoding="utf-8")
    best = Scores.load(saved / "exact.safetensors").top(4)
    headings = re.findall(r"<h3>(L\dH\d)</h3>", html)
    assert headings == [cell.label for cell in best]
    text = call("report", saved / "where.safetensors", "--model", "teaching-llama", code=1)
    assert "None of the results is about the heads of teaching-llama" in text
    text = call("report", saved / "exact.safetensors", "--model", "teaching-gpt2", code=1)
    assert "they are of teaching-llama" in text


def test_run_writes_the_same_kind_of_page(tmp_path: Path):
    config, page = tmp_path / "ioi.yaml", tmp_path / "ioi.html"
    config.write_text("model: teaching-gpt2\ntask: {name: ioi, arguments: {n: 2}}\n")
    call("run", config, "--plot", page)
    html = page.read_text(encoding="utf-8")
    block = unescape(re.findall(r"<pre><code>(.*?)</code></pre>", html, re.DOTALL)[0])
    assert yaml.safe_load(block)["task"] == {"name": "ioi", "arguments": {"n": 2}}


def my_metric(logits, batch):
    return logits[:, -1].float().max(-1).values - logits[:, -1].float().mean(-1)


def test_what_no_file_can_say_is_said_in_python(saved: Path):
    model = nnattr.load("teaching-gpt2")
    task = nnattr.tasks.ioi(model.tokenizer, n=2)
    scores = nnattr.activation_patching(model, task, my_metric, normalized=False)
    html = unescape(report_page([Entry(scores, "mine.safetensors")]))
    assert "To make it again, use Python: The metric" in html
    again = "result = nnattr.activation_patching(\n    model,\n    task=nnattr.Task.load("
    assert f"{again}'mine.safetensors'),\n" in html
    with pytest.raises(ResultError, match="at least one result"):
        report_page([])


def test_prompts_that_look_like_html_do_no_harm():
    model = nnattr.load("teaching-gpt2")
    task = nnattr.tasks.ioi(model.tokenizer, n=2)
    scores = nnattr.attribution_patching(model, task, nnattr.LogitDiff())
    html = report_page([Entry(scores, "<script>alert(1)</script>")])
    assert "<script>alert(1)" not in html


@pytest.fixture(scope="module")
def tab():
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with the result of every method."""
    folder = tmp_path_factory.mktemp("kinds")
    model = teaching("teaching-gpt2")
    for name, row in ANSWERS.items():
        found = row.function(**example(name, model, even_ioi(model)))
        found.save(folder / f"{name}.safetensors")
    call("report", *(folder / f"{name}.safetensors" for name in ANSWERS), "-o", folder / "all.html")
    return folder / "all.html"


def test_a_page_holds_results_of_every_kind(kinds: Path):
    html = unescape(kinds.read_text(encoding="utf-8"))
    is_self_contained(html)
    for i, (name, row) in enumerate(ANSWERS.items()):
        drawn = name != "ablate_together"  # a number for each example
        assert (f'id="result{i}' in html) == drawn
        assert row.question in html, name
        assert row.reading in html
        assert f"save this as {name}.yaml and say: nnattr run {name}.yaml" in html
    assert html.count("The strongest heads of each kind") == 3
    assert html.count("The strongest pairs") == 2
    assert "cannot be made again" not in html


@pytest.mark.parametrize("width", [390, 1440])
def test_a_browser_shows_every_kind(tab: Tab, kinds: Path, width: int):
    tab.open(kinds, width)
    assert tab.complaints == []
    wide, screen = tab.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= screen, "the page scrolls sideways"
    drawn = tab.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot')].map(e => "
        "[(e.closest('.scroll') ?? e).getBoundingClientRect().right, "
        "e.querySelectorAll('svg.main-svg').length])"
    )
    kinds_of_heads, direct_effects = 4 + 2, 1
    assert len(drawn) == len(ANSWERS) - 1 + kinds_of_heads + direct_effects, "no lone number"
    assert all(right <= screen and layers for right, layers in drawn)


@pytest.mark.parametrize("width", [390, 1440])
def test_a_browser_shows_it(tab: Tab, page: Path, width: int):
    tab.requests.clear()
    tab.open(page, width)
    assert [url for url in tab.requests if not url.startswith(("data:", "file:"))] == []
    assert len([url for url in tab.requests if url.startswith("file:")]) == 1, "itself alone"
    assert tab.complaints == []
    wide, screen = tab.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= screen, "the page scrolls sideways"
    drawn = tab.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot')].map(e => "
        "[e.getBoundingClientRect().right, e.querySelectorAll('svg.main-svg').length])"
    )
    assert len(drawn) == 9, "four results, one comparison, four heads"
    assert all(right <= screen and layers for right, layers in drawn)
    small = tab.evaluate(
        "[...document.querySelectorAll('p, td, dd, li, h2')].map(e => "
        "parseFloat(getComputedStyle(e).fontSize)).filter(size => size < 12).length"
    )
    assert small == 0, "text that nobody can read"


def test_pointing_at_a_cell_shows_its_value(tab: Tab, page: Path):
    tab.open(page, 1440)
    assert tab.evaluate("document.querySelectorAll('#result0 .hovertext').length") == 0
    tab.hover("#result0 .nsewdrag", 0.625, 0.375)
    text = tab.evaluate("document.querySelector('#result0 .hovertext').textContent")
    assert "L1H2" in text
    assert "normalised change of LogitDiff" in text
    assert "standard error" in text


def test_it_prints(tab: Tab, page: Path):
    tab.open(page, 1440)
    folded = "document.querySelector('details li').checkVisibility({contentVisibilityAuto: true})"
    closed = "document.querySelector('details').open"
    assert tab.evaluate(closed) is False
    on_screen = tab.evaluate("document.documentElement.scrollHeight")
    tab.tell("Emulation.setEmulatedMedia", media="print")
    assert tab.evaluate("getComputedStyle(document.querySelector('main')).paddingTop") == "0px"
    assert tab.evaluate(folded) is True, "what is folded away is printed"
    tab.tell("Emulation.setEmulatedMedia", media="")
    assert tab.evaluate("document.documentElement.scrollHeight") == on_screen
    assert tab.printed().startswith(b"%PDF")
