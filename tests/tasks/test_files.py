"""Tasks on disk, and in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nnattr import Task, tasks
from nnattr.errors import TaskError
from tests.tasks.common import PROMPTS, pairs, tokenizer_of


@pytest.fixture(scope="module", params=["teaching-gpt2", "teaching-llama"])
def tokenizer(request: Any) -> Any:
    return tokenizer_of(request.param)


def kinds(tokenizer: Any) -> list[Task]:
    return [
        pairs(tokenizer, spans={"who": ["John gave", slice(0, 4)]}),
        tasks.facts(tokenizer, n=3),
        tasks.requests(tokenizer, n=3),
        Task.from_prompts(PROMPTS, tokenizer=tokenizer),
        Task.from_prompts(PROMPTS, [" Mary and", " Tom."], tokenizer=tokenizer, sequences=True),
        Task.from_prompts(
            PROMPTS, [[" Mary", " Mary and"], " Tom"], tokenizer=tokenizer, unusable="drop"
        ),
    ]


def test_what_is_saved_is_loaded(tokenizer, tmp_path):
    for task in kinds(tokenizer):
        again = Task.load(task.save(tmp_path / "task.json"))
        assert again.hash == task.hash
        assert repr(again) == repr(task)
        assert again.describe(9) == task.describe(9)
        assert again.dropped == task.dropped
        assert torch.equal(again.clean_tokens.mask, task.clean_tokens.mask)
        assert again.encoded_by(tokenizer)
        assert again[[0]].hash == task[[0]].hash


def broken(content: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**content, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "schema_version 2 and this nnattr reads 1"),
        ({"answers": [["a"]]}, "different numbers of examples"),
        ({"clean": []}, "different numbers of examples"),
        ({"clean_tokens": {"ids": [[1], [2]], "strings": [["a"], ["b"]]}}, "numbers of tokens"),
        ({"answer_ids": [["1"], [2]]}, "answer_ids"),
        ({"code": "import os"}, "code"),
        ({"name": None}, "name"),
    ],
)
def test_a_file_that_is_not_a_task_is_refused(tokenizer, tmp_path, changes, message):
    path = pairs(tokenizer).save(tmp_path / "task.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(TaskError, match=message):
        Task.load(path)


def test_truncated_missing_and_unwritable_files(tokenizer, tmp_path):
    path = pairs(tokenizer).save(tmp_path / "task.json")
    path.write_text(path.read_text()[:-20])
    for content in (None, "[]", "\x00"):
        if content is not None:
            path.write_text(content)
        with pytest.raises(TaskError, match="not a task's JSON file"):
            Task.load(path)
    with pytest.raises(TaskError, match="cannot be read"):
        Task.load(tmp_path / "none.json")
    with pytest.raises(TaskError, match="cannot be written"):
        pairs(tokenizer).save(tmp_path / "no" / "folder.json")
    path.write_bytes(b"\xff\xfe\xe9")
    with pytest.raises(TaskError, match="not a task's JSON file"):
        Task.load(Path(path))


def test_a_description_shows_every_token_and_marks_the_differences(tokenizer):
    task = pairs(tokenizer)
    text = task.describe(2)
    assert repr(text) == text
    assert max(map(len, text.splitlines())) <= 80
    marked = [line for line in text.splitlines() if "≠" in line]
    assert len(marked) == 2
    assert "' John'" in marked[0]
    assert "' Mary'" in marked[0]
    for token in task.clean_tokens.strings[0]:
        assert repr(token) in text
    assert "answer: ' Mary' = " in text
    assert "wrong: ' John' = " in text


def test_the_bos_policy_is_told():
    said = {
        name: pairs(tokenizer_of(name)).describe() for name in ("teaching-gpt2", "teaching-llama")
    }
    assert "the tokenizer has none" in said["teaching-gpt2"]
    assert "the tokenizer puts '<|begin|>' first" in said["teaching-llama"]
    chat = tasks.requests(tokenizer_of("teaching-llama"), n=1).describe()
    assert "the chat template puts '<|begin|>' first" in chat


def test_descriptions_of_everything_fit_a_terminal(tokenizer):
    for task in [*kinds(tokenizer), tasks.greater_than(tokenizer, n=2)]:
        text = task.describe(3)
        assert max(map(len, text.splitlines())) <= 80
        assert len(text.splitlines()) < 80
