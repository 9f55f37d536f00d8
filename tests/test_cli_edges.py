"""``nnattr edges`` and run files of path patching, through the command line's own runner."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import nnattr
from nnattr import LogitDiff, load_result
from nnattr.cli import run
from nnattr.config import RunConfig
from nnattr.graph import Edge, parse
from nnattr.jobs.plain import plain, restored
from nnattr.results.edge_scores import BETWEEN
from tests.methods.common import even_ioi, teaching
from tests.support.command_line import call

CLEAN = "When John and Mary went to the shops, John gave the bag to"
CORRUPTED = "When John and Mary went to the shops, Mary gave the bag to"
ASKED = (CLEAN, CORRUPTED, "--answer", " Mary", "--wrong", " John")
ROW = re.compile(r"(\S+) → (\S+) +([+-]\d\.\d{4}) +([+-]\d\.\d{4})$", re.MULTILINE)


def rows(text: str) -> dict[tuple[str, str], tuple[float, float]]:
    """The printed effects and total effects, by sender and receiver."""
    return {(one, other): (float(a), float(b)) for one, other, a, b in ROW.findall(text)}


def written(folder: Path, options: dict[str, Any]) -> tuple[Any, str]:
    """What a run file of path patching writes, and what it prints."""
    path, saved = folder / "edges.yaml", folder / "edges.safetensors"
    task = {"name": "ioi", "arguments": {"n": 3}}
    settings = {"model": "teaching-gpt2", "task": task, "method": "path_patching"}
    path.write_text(yaml.safe_dump({**settings, "options": options, "output": str(saved)}))
    text = call("run", path)
    return load_result(saved), text


def one_pair(model: nnattr.Model) -> nnattr.Task:
    return nnattr.Task.from_pairs(
        [CLEAN], [CORRUPTED], [" Mary"], [" John"], tokenizer=model.tokenizer
    )


@pytest.mark.parametrize("name", ["teaching-gpt2", "teaching-llama"])
def test_direct_effects_stand_beside_total_effects(name: str) -> None:
    text = call("edges", name, *ASKED, "--top", 40)
    model = teaching(name)
    task, found = one_pair(model), rows(text)
    direct = nnattr.path_patching(model, task, LogitDiff()).mean().values
    heads, mlps = (
        nnattr.activation_patching(model, task, LogitDiff(), site=site).mean().values
        for site in ("z", "mlp_out")
    )
    assert len(found) == int(direct.notnull().sum())
    assert max(abs(effect) for effect, _ in found.values()) > 0.1, "the control"
    for (sender, receiver), (effect, total) in found.items():
        part = parse(sender)
        whole = 1.0  # all that enters the first layer
        if part.kind != "input":
            at = {"layer": part.layer, **({"head": part.number} if part.kind == "head" else {})}
            whole = float((heads if part.kind == "head" else mlps).sel(**at))
        assert abs(effect - float(direct.sel(sender=sender, receiver=receiver))) < 1e-4
        assert abs(total - whole) < 1e-4, sender
    assert "direct effect" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_what_the_last_mlp_does_is_its_direct_effect_and_what_the_first_does_is_not() -> None:
    found = rows(call("edges", "teaching-llama", *ASKED, "--senders", "M0, M3"))
    assert list(found) == [("M3", "logits"), ("M0", "logits")]
    effect, total = found["M3", "logits"]
    assert effect == total != 0
    effect, total = found["M0", "logits"]
    assert abs(effect) < 0.1 < total


def test_edges_into_chosen_parts_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "edges.safetensors"
    asked = ("--receivers", "L2KV0.v,M3", "--top", 3, "--output", path)
    text = call("edges", "teaching-llama", *ASKED, *asked)
    scores = load_result(path)
    assert isinstance(scores, nnattr.EdgeScores)
    assert list(scores.raw["receiver"].values) == ["L2KV0.v", "M3"]
    assert [f"{u} → {v}" for u, v in rows(text)] == [cell.label for cell in scores.top(3)]
    assert "direct effect" not in text
    assert f"{scores.n_cells} edges; all between sender and receiver is frozen; 2 not" in text


def test_mistakes_are_found_before_a_model_is_loaded() -> None:
    for words, message in (
        (["--receivers", "L2X0.k"], "'L2X0.k' is not a part.*As receivers also 'all'"),
        (["--senders", "heads,q"], "'q' is not a part.*As senders also"),
        (["--senders", ""], "'' is not a part"),
        (["--output", "edges.json"], r"output is .*edges\.json.* ending in \.safetensors or"),
    ):
        assert re.search(message, call("edges", "no/model", *ASKED, *words, code=1))


def test_mistakes_about_the_model_are_one_message() -> None:
    for words, message in (
        (["--receivers", "L2H0.k"], "share keys and values.*L2KV0.k"),
        (["--receivers", "M9"], "M9 does not read"),
        (["--senders", "M3", "--receivers", "L1H0.q"], "no edge"),
    ):
        text = call("edges", "teaching-llama", *ASKED, *words, code=1)
        assert text.startswith("Error: ")
        assert re.search(message, text)


@pytest.mark.parametrize(
    "options",
    [
        {"receivers": ["L2H1.q", "M3"], "senders": ["heads", [0, 1], "input"]},
        {"edges": [["L1H2", "L2H1.q"], "M0->logits", [[0, 3], "M2"]]},
        {"edges": ["M0->logits", "L0H1->L2H2"], "between": "mlps"},
        {"receivers": "q", "senders": "M0", "ungrouped": True},
    ],
)
def test_a_run_file_says_what_a_call_does(tmp_path: Path, options: dict[str, Any]) -> None:
    found, text = written(tmp_path, options)
    given = {key: restored(value) for key, value in options.items()}
    model = teaching("teaching-gpt2")
    pairs = nnattr.tasks.ioi(model.tokenizer, n=3)
    expected = nnattr.path_patching(model, pairs, LogitDiff(), **given)
    assert isinstance(found, nnattr.EdgeScores)
    np.testing.assert_array_equal(found.raw.values, expected.raw.values)
    assert f"{expected.n_cells} edge" in text
    assert BETWEEN[options.get("between", "frozen")] in " ".join(text.split())
    assert expected.top(1)[0].label in text


@pytest.mark.parametrize(
    "options",
    [
        {"edges": ["M0->logits", "L0H1->M2"], "together": True},
        {"paths": ["L0H1->L2H2.k->logits", ["M0", "M2", "logits"]]},
    ],
)
def test_a_run_file_of_sets_and_paths(tmp_path: Path, options: dict[str, Any]) -> None:
    found, text = written(tmp_path, options)
    model = teaching("teaching-gpt2")
    pairs = nnattr.tasks.ioi(model.tokenizer, n=3)
    expected = nnattr.path_patching(model, pairs, LogitDiff(), **options)
    assert type(found) is type(expected) is nnattr.Scores
    np.testing.assert_array_equal(found.raw.values, expected.raw.values)
    assert all(cell.label in text for cell in expected.top(2))


def test_a_wrong_run_file_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "edges.yaml"
    settings = {"model": "teaching-gpt2", "task": {"name": "ioi"}, "method": "path_patching"}
    for options, message in (
        ({"edges": ["M0->logits"], "senders": "M0"}, "senders= and edges= were given"),
        ({"between": "nothing"}, "between is 'nothing'"),
        ({"receivers": ["L9H9.q"]}, "L9H9.q does not read"),
    ):
        path.write_text(yaml.safe_dump({**settings, "options": options}))
        assert message in " ".join(call("run", path, code=1).split())


def test_an_edge_as_a_value_is_written_and_read() -> None:
    edges = [Edge(parse("L0H1"), parse("M2")), ("M0", parse("logits"))]
    written = plain({"edges": edges})
    assert written == {"edges": ["L0H1->M2", ["M0", "logits"]]}
    model = teaching("teaching-gpt2")
    task = even_ioi(model)
    found = [
        nnattr.path_patching(model, task, LogitDiff(), edges=given).raw.values
        for given in (edges, restored(written)["edges"])
    ]
    np.testing.assert_array_equal(*found)
    assert RunConfig(model="m", options=written).options == written
    assert "path_patching" in "".join(run.methods())
