"""Files: an ending decides the format, and permissions are those of any new file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import nnattr
from nnattr import LogitDiff, storage
from nnattr.config import RunConfig
from nnattr.errors import ArgumentError, ResultError
from nnattr.report import Entry, report_page
from nnattr.results.load import kinds
from tests.methods.common import even_ioi, teaching
from tests.support.results import made

KINDS = kinds()


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_follow_the_umask(umask: int, tmp_path: Path) -> None:
    model = teaching("teaching-gpt2")
    task = even_ioi(model)
    nnattr.activation_patching(model, task, LogitDiff(), checkpoint=tmp_path / "parts")
    made("Scores").save(tmp_path / "r.safetensors")
    made("Scores").save(tmp_path / "r.safetensors")  # over another
    made("Scores").save(tmp_path / "r.csv")
    made("Patterns").to_html(tmp_path / "p.html")
    task.save(tmp_path / "t.json")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 5
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_table_of_every_kind(kind: str, tmp_path: Path) -> None:
    found = made(kind)
    table, again = found.to_dataframe(), pd.read_csv(found.save(tmp_path / "t.csv"))
    assert list(again) == list(map(str, table))
    assert len(again) == len(table)
    for name in table.select_dtypes("number"):
        pd.testing.assert_series_equal(again[name], table[name], check_dtype=False)


@pytest.mark.parametrize("name", ["r.st", "r", "r.csv.gz", "csv", ".csv", "r.json", "r.html"])
def test_an_unknown_ending_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"save: path is .* ending in \.safetensors or \.csv"):
        made("Scores").save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_other_outputs_have_endings_of_their_own(tmp_path: Path) -> None:
    model = teaching("teaching-gpt2")
    run = RunConfig(model="teaching-gpt2")
    viewer = made("Patterns").viewer()
    outputs: list[tuple[Any, str, str]] = [
        (even_ioi(model).save, "t.csv", "t.json"),
        (made("Patterns").to_html, "p.pdf", "p.html"),
        (viewer.save, "p.png", "p.htm"),
        (run.to_file, "r.txt", "r.yaml"),
    ]
    for write, wrong, right in outputs:
        with pytest.raises(ArgumentError, match="that can name a file ending in"):
            write(tmp_path / wrong)
        write(str(tmp_path / right))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(one[2] for one in outputs)


def test_what_fails_on_the_way_leaves_what_was_there(tmp_path: Path) -> None:
    path = made("Scores").save(tmp_path / "r.safetensors")
    before = path.read_bytes()
    with pytest.raises(ResultError, match="could not be written"):
        storage.write(path, dict.fromkeys("ab", torch.zeros(2)), {})  # two names of one memory
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_part_of_the_examples_holds_their_prompts(tmp_path: Path) -> None:
    """And says of itself what is true: the page shows these prompts, the hash is the whole's."""
    model = teaching("teaching-gpt2")
    task = nnattr.tasks.ioi(model.tokenizer, n=4, seed=2)
    whole = nnattr.attribution_patching(model, task, LogitDiff())
    part = whole.sel(example=[3, 1])
    again = nnattr.load_result(part.save(tmp_path / "part.safetensors"))
    for scores in (part, part.mean(), again):
        assert scores.task.clean == (task.clean[3], task.clean[1])
        assert scores.provenance.task_hash == task.hash
    assert whole.task.hash == task.hash
    page = report_page([Entry(again, "part.safetensors")])
    assert "2 examples on teaching-gpt2" in page
    assert page.count('<span class="tag">clean</span>') == 2
    same = nnattr.attribution_patching(
        model, nnattr.Task.load(tmp_path / "part.safetensors"), LogitDiff()
    )
    assert (same.raw == whole.raw).all(), "the file can still make the whole again"
