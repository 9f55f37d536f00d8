"""The command line, through its own runner, on the teaching model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from nnattr import Scores, cli, teaching
from nnattr.cli import commands, console
from nnattr.config import RunConfig
from tests.support.command_line import call, is_self_contained

NEEDS_MODEL = pytest.mark.skipif(
    not (teaching.folder("teaching-gpt2") / "model.safetensors").exists(),
    reason="teaching-gpt2 has not been trained",
)


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    path = tmp_path_factory.mktemp("demo") / "page.html"
    return call("demo", "--n", 4, "--output", path), path.read_text(encoding="utf-8")


@NEEDS_MODEL
def test_demo_prints_what_it_found(demonstrated: tuple[str, str]):
    text, _ = demonstrated
    assert "right name preferred" in text
    assert "activation patching (exact)" in text
    assert len(re.findall(r"L\dH\d +[+-]\d\.\d{4} ±", text)) == 16
    assert "Pearson r" in text
    assert "Activation patching took" in text
    assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith("Wrote"))


@NEEDS_MODEL
def test_demo_page_opens_without_a_network(demonstrated: tuple[str, str]):
    _, html = demonstrated
    is_self_contained(html)
    for name in ("exact", "estimate", "agreement", "positions"):
        assert f'id="{name}"' in html
    assert html.count("<h1>") == 1
    assert "<mark>" in html
    assert "teaching-llama" in html


@NEEDS_MODEL
def test_run_saves_and_draws(tmp_path: Path):
    config, saved, figure = (tmp_path / name for name in ("a.yaml", "a.safetensors", "a.html"))
    settings = {"model": "teaching-gpt2", "task": {"name": "ioi", "arguments": {"n": 3}}, "top": 4}
    config.write_text(yaml.safe_dump({**settings, "output": str(saved)}))
    text = call("run", config, "--plot", figure)
    sizes = dict(Scores.load(saved).raw.sizes)
    assert f"The 4 strongest of {sizes['layer'] * sizes['head']} (± standard error):" in text
    assert "LogitDiff(): clean" in text
    assert sizes["example"] == 3
    is_self_contained(figure.read_text(encoding="utf-8"))


@NEEDS_MODEL
def test_run_takes_pairs(tmp_path: Path):
    ends = ("John gave a ball to", "Mary gave a ball to")
    clean, corrupted = (f"When Mary and John went to the store, {end}" for end in ends)
    task = {"clean": [clean], "corrupted": [corrupted], "answers": [" Mary"]}
    settings = {"model": "teaching-gpt2", "task": {**task, "wrong_answers": [[" John"]]}}
    config = tmp_path / "pairs.json"
    config.write_text(json.dumps({**settings, "site": "resid_pre", "positions": "each"}))
    assert "John| Mary'" in call("run", config)


@NEEDS_MODEL
def test_run_takes_a_table_and_direct_logit_attribution(tmp_path: Path):
    table = tmp_path / "pairs.csv"
    table.write_text(
        "prompt,right,wrong\n"
        '"When Mary and John went to the store, John gave a ball to", Mary, John\n'
        '"When Mary and John went to the store, Mary gave a ball to", John, Mary\n'
    )
    columns = {"clean": "prompt", "corrupted": None, "answer": "right", "wrong_answer": "wrong"}
    settings = {
        "model": "teaching-gpt2",
        "task": {"table": str(table), "columns": columns},
        "method": "direct_logit_attribution",
        "options": {"unit": "head"},
    }
    config = tmp_path / "table.yaml"
    config.write_text(yaml.safe_dump(settings))
    assert "direct_logit_attribution(unit='head'" in call("run", config)


def test_the_example_is_a_valid_file(tmp_path: Path):
    path = tmp_path / "example.yaml"
    path.write_text(call("run", "--example"))
    assert RunConfig.from_file(path).task.name == "ioi"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": {"name": "nope"}}, "no task called 'nope'"),
        ({"task": {}}, "described by nothing"),
        ({"task": {"name": "ioi", "clean": ["a"]}}, "described by name and clean"),
        ({"task": {"table": "x.csv", "columns": {"question": "q"}}}, "'question'"),
        ({"task": {"name": "ioi"}, "options": {"unit": "head"}}, "does not take 'unit'; it takes"),
        ({"task": {"name": "ioi"}, "method": "patching"}, "can name activation_patching, attrib"),
        ({"task": {"name": "ioi"}, "method": "generate"}, "method is 'generate'"),
        ({"prompts": ["a"]}, "attribution_patching reads a task, and the file has prompts"),
        ({"method": "logit_lens"}, "reads a task or prompts, and the file has neither"),
        ({"method": "logit_lens", "prompts": ["a"], "task": {"name": "ioi"}}, "a task and prompts"),
        ({"method": "detect_heads", "metric": "LogProb"}, "measures with no metric"),
        ({"method": "detect_heads", "site": "z"}, "does not take 'site'; it takes prompts, n"),
        ({"method": "compare_runs", "prompts": ["a"]}, "needs 'b', which is given under options"),
        ({"task": {"name": "ioi"}, "metric_arguments": {"k": 1}}, "unexpected keyword"),
        ({"task": {"name": "ioi", "arguments": {"m": 3}}}, "unexpected keyword"),
        ({"task": {"name": "ioi"}, "metric": "Accuracy"}, "LogitDiff"),
        ({"task": {"name": "ioi"}, "sight": "z"}, "sight"),
        ({"task": {"name": "ioi"}, "output": "/no/such/folder/a.safetensors"}, "no folder"),
        (
            {"task": {"name": "ioi"}, "output": "scores.xlsx"},
            "output is 'scores.xlsx' (str); expected str | Path that can name a file ending in "
            ".safetensors or .csv.",
        ),
        ({"task": {"name": "ioi"}, "output": "scores"}, "ending in .safetensors or .csv."),
    ],
)
def test_a_wrong_file_is_refused_in_one_message(tmp_path: Path, settings: dict, message: str):
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({"model": "teaching-gpt2", **settings}))
    text = call("run", path, code=1)
    assert text.startswith("Error: ")
    assert message in text
    assert "Traceback" not in text


def test_run_without_a_file():
    assert "--example" in call("run", code=1)


def test_output_is_checked_before_the_work(tmp_path: Path):
    assert "no folder" in call("demo", "--output", tmp_path / "no" / "page.html", code=1)
    (tmp_path / "page.html").mkdir()
    assert "is a folder" in call("demo", "--output", tmp_path / "page.html", code=1)
    for words in (
        ["demo", "--output", "page.pdf"],
        ["report", "scores.safetensors", "-o", "page.png"],
        ["lens", "no/model", "a b", "--plot", "page"],
        ["dla", "no/model", "a b", " c", " d", "--output", "scores.json"],
    ):
        assert re.search(r"(output|plot) is .* ending in \.\w+ or \.\w+\.", call(*words, code=1))


@NEEDS_MODEL
def test_an_outputs_ending_decides_its_format(tmp_path: Path):
    config, table = tmp_path / "a.yaml", tmp_path / "a.csv"
    settings = {"model": "teaching-gpt2", "task": {"name": "ioi", "arguments": {"n": 2}}}
    config.write_text(yaml.safe_dump({**settings, "output": str(table)}))
    assert f"Wrote {table}" in call("run", config)
    assert table.read_text().splitlines()[0] == "example,layer,head,value,raw"
    direct = ("When Mary and John went to the store, John gave a ball to", " Mary", " John")
    call("dla", "teaching-gpt2", *direct, "--output", tmp_path / "b.CSV")
    assert (tmp_path / "b.CSV").read_text().startswith("example,component,value,raw\n")


def test_debug_shows_the_error_itself():
    result = CliRunner().invoke(cli.app, ["--debug", "run"])
    assert type(result.exception).__name__ == "NnattrError"


def test_interruption_is_quiet(monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "_check_output", interrupted)
    assert call("demo", code=130) == ""


@NEEDS_MODEL
def test_doctor_proves_a_teaching_model():
    assert "teaching-gpt2" in call("doctor", "teaching-gpt2")


def test_doctor_of_a_model_that_is_not_there(tmp_path: Path):
    assert call("doctor", tmp_path, code=1).startswith("Error: ")


def test_models():
    text = call("models")
    for name in (*teaching.NAMES, "gpt_neox", "known families"):
        assert name in text
    assert all(len(line) <= 80 for line in text.splitlines())


@NEEDS_MODEL
@pytest.mark.parametrize("columns", [60, 80, 200])
def test_what_is_printed_fits_and_is_whole_in_a_pipe(tmp_path: Path, columns: int):
    config = tmp_path / "a.yaml"
    config.write_text("{model: teaching-gpt2, task: {name: ioi, arguments: {n: 2}}, top: 3}")
    narrow = {"COLUMNS": str(columns)}
    for words in (["models"], ["run", config], ["demo", "--n", 2, "--output", tmp_path / "d.html"]):
        text = CliRunner().invoke(cli.app, [str(word) for word in words], env=narrow).output
        lines = [line for line in text.splitlines() if not line.startswith("Wrote")]
        assert len(lines) > 8, text
        assert max(map(len, lines)) <= min(columns, 80)
        assert not re.search(r"[\x1b…]", text), "control codes, or cells that were cut"
        assert not [line for line in lines if line != line.rstrip()]


def test_long_names_stay_whole_and_words_break_between_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "60")
    names = ("m" * 40, "[bold]x[/bold]", "y" * 70)
    note = "not known, discovered on loading"
    for some in (names[:2], names):
        console.say(console.table(("model", "state", ""), [(n, "COLD", note) for n in some], 3))
        text = capsys.readouterr().out
        assert all(name in text.split() for name in some)
        assert text.count("COLD") == len(some)
        assert [word for word in text.split() if word in note.split()] == note.split() * len(some)
        assert max(map(len, text.splitlines())) <= max(60, max(map(len, some)) + 2 + 5 + 2 + 10)


def test_numbers_end_together(capsys: pytest.CaptureFixture[str]):
    console.say(console.table(("cell", "score"), [("L0H1", "+1.0 ± 0.1"), ("L10H11", "-1.0")]))
    assert capsys.readouterr().out.splitlines() == [
        "cell         score",
        "L0H1    +1.0 ± 0.1",
        "L10H11        -1.0",
    ]


def test_help_does_not_wait_for_torch():
    code = "import sys, nnattr.cli; print('torch' in sys.modules, 'plotly' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]


def test_python_dash_m():
    command = [sys.executable, "-m", "nnattr", "models"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "teaching-llama" in found.stdout
