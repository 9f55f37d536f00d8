"""People's own files: what is read, and what is said about a file that is wrong."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnattr import Task, tasks
from nnattr.errors import ArgumentError, TaskError
from tests.tasks.common import text_at, tokenizer_of

MAP = {"True": [" Yes", " Sure", " Correct"], "False": [" No", " Wrong"]}
ROWS = [
    {
        "question": "Question: Is Paris the capital of France? Answer:",
        "twin": "Question: Is Rome the capital of France? Answer:",
        "label": True,
        "who": "Paris",
    },
    {
        "question": "Question: Is Paris the capital of Italy? Answer:",
        "twin": "Question: Is Rome the capital of Italy? Answer:",
        "label": False,
        "who": "Paris",
    },
]
NAMES: dict[str, Any] = {"clean": "question", "corrupted": "twin", "answer": "label"}


@pytest.fixture(scope="module", params=["teaching-gpt2", "teaching-llama"])
def tokenizer(request: Any) -> Any:
    return tokenizer_of(request.param)


def read(source: Any, tokenizer: Any, **more: Any) -> Task:
    return Task.from_table(source, tokenizer=tokenizer, **{**NAMES, "answer_map": MAP, **more})


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in the format that the file's name asks for."""
    if path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    elif path.stem == "columns":
        path.write_text(json.dumps({key: [row[key] for row in rows] for key in rows[0]}))
    else:
        path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("name", ["fk.csv", "fk.json", "columns.json", "fk.jsonl"])
def test_all_formats_give_the_same_task(tokenizer, tmp_path, name):
    task = read(write(tmp_path / name, ROWS), tokenizer, spans=["who"])
    frame = read(pd.DataFrame(ROWS), tokenizer, spans=["who"])
    assert task.hash == frame.hash == read(ROWS, tokenizer, spans=["who"]).hash
    assert task.name == name
    assert task.answers == (tuple(MAP["True"]), tuple(MAP["False"]))
    assert task.wrong_answers == (tuple(MAP["False"]), tuple(MAP["True"]))
    assert text_at(task, "who").strip() == "Paris"


def test_a_table_without_twins_and_with_plain_answers(tokenizer, tmp_path):
    rows = [{"clean": "The capital of France is", "answer": " Paris", "other": " Rome"}]
    path = write(tmp_path / "capitals.csv", rows)
    task = Task.from_table(path, tokenizer=tokenizer, corrupted=None, wrong_answer="other")
    assert not task.paired
    assert task.answers == ((" Paris",),)
    assert task.wrong_answers == ((" Rome",),)
    with pytest.raises(TaskError, match="no corrupted prompts"):
        _ = task.corrupted_tokens


def test_a_column_of_wrong_labels_is_mapped_too(tokenizer):
    groups = {**MAP, "Maybe": [" Never"]}
    rows = [{**row, "not": "Maybe"} for row in ROWS]
    task = read(rows, tokenizer, answer_map=groups, wrong_answer="not")
    assert task.wrong_answers == ((" Never",),) * 2
    assert read(rows, tokenizer, answer_map=groups).wrong_answers[0] == (" No", " Wrong", " Never")


def test_words_of_several_tokens_are_refused_or_dropped_with_a_record(tokenizer):
    groups = {"True": [" Yes", " Sure thing"], "False": [" No", " zzgrumph"]}
    with pytest.raises(TaskError, match=r"row 0, column 'label'.*' Sure thing'.*2 tokens"):
        read(ROWS, tokenizer, answer_map=groups)
    task = read(ROWS, tokenizer, answer_map=groups, unusable="drop")
    assert task.answers == ((" Yes",), (" No",))
    assert {(drop.what, drop.count) for drop in task.dropped} == {
        (" Sure thing", 2),
        (" zzgrumph", 2),
    }
    assert "Sure thing" in task.describe()
    with pytest.raises(TaskError, match=r"row 1, column 'label': none of the words"):
        read(ROWS, tokenizer, answer_map={**groups, "False": [" zzgrumph"]}, unusable="drop")
    with pytest.raises(ArgumentError, match="unusable is "):
        read(ROWS, tokenizer, unusable="ignore")


def without(key: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != key} for row in ROWS]


def changed(key: str, value: Any) -> list[dict[str, Any]]:
    return [ROWS[0], {**ROWS[1], key: value}]


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        (without("twin"), {}, r"line 2 of bad.csv has no column 'twin'; it has 'question'"),
        (changed("question", ""), {}, r"line 3, column 'question' of bad.csv is empty"),
        (changed("label", "Perhaps"), {}, r"line 3, column 'label' is 'Perhaps'.*'True', 'False'"),
        (changed("question", "Is zzgrumph?"), {}, r"line 3, column 'question'.*'zzgrumph"),
        (changed("twin", "Is Rome?"), {}, r"Pair 1 is misaligned \(line 3, column 'twin'\)"),
        (changed("who", "Berlin"), {"spans": ["who"]}, r"line 3, column 'who'.*occurs 0 times"),
        (ROWS, {"answer_map": {"True": [" Yes"], "False": []}}, r"answer_map\['False'\] is \[\]"),
        (ROWS, {"answer_map": {"True": " Yes", "False": [" No"]}}, "expected a list of words"),
        (ROWS, {"answer_map": {"True": [" Yes"]}}, "expected at least two"),
        (
            ROWS,
            {"answer_map": {"True": [" Yes", " No"], "False": [" No"]}},
            r"' No' twice, in 'True' and 'False'",
        ),
        (ROWS, {"encoding": "no-such-code"}, "no encoding 'no-such-code'"),
        (
            [{**ROWS[0], "label": "Yes No"}],
            {"answer_map": None},
            r"line 2, column 'label'.*'Yes No' to 'Question: Is Paris.* is 2 tokens",
        ),
    ],
)
def test_a_bad_table_is_told_its_line_and_column(tokenizer, tmp_path, rows, more, message):
    with pytest.raises(TaskError, match=message):
        read(write(tmp_path / "bad.csv", rows), tokenizer, **more)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.csv", b"question,twin\nIs caf\xe9?,x\n", r"line 2, byte 7 of bad.csv is 0xe9"),
        ("bad.csv", b"question,twin\na,b,c\n", r"line 2 of bad.csv has more cells"),
        ("bad.csv", b'question,twin\n"a,b\n', r"line 2 of bad.csv is not CSV"),
        ("bad.csv", b"question,twin\n", "bad.csv has no rows"),
        ("bad.json", b'[{"question": ]', r"line 1, column 15 of bad.json is not JSON"),
        ("bad.json", b'{"question": ["a"], "twin": []}', "lists of one length"),
        ("bad.json", b"3", "bad.json is a int"),
        ("bad.json", b"[3]", "row 0 of bad.json is 3"),
        ("bad.jsonl", b'{"question": "a"}\nnot json\n', r"line 2, column 1 of bad.jsonl"),
        ("bad.jsonl", b"[1]\n", r"line 1 of bad.jsonl is '\[1\]'"),
        ("bad.xlsx", b"", r"expected one of .csv, .json, .jsonl"),
    ],
)
def test_a_file_that_is_no_table_is_told_where(tokenizer, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError, match=message):
        read(tmp_path / name, tokenizer)


def test_a_missing_file_and_something_else(tokenizer, tmp_path):
    with pytest.raises(TaskError, match="cannot be read"):
        read(tmp_path / "none.csv", tokenizer)
    with pytest.raises(TaskError, match="expected a path, a data frame, a data set or a list"):
        read(7, tokenizer)
    with pytest.raises(TaskError, match=r"row 0, column 'label' is True; expected a word"):
        read(ROWS, tokenizer, answer_map=None)


def test_an_encoding_and_a_byte_order_mark(tokenizer, tmp_path):
    path = tmp_path / "data.csv"
    text = "clean,answer\nThe capital of France is, Paris\n"
    for encoding, more in (("utf-8-sig", {}), ("utf-16", {"encoding": "utf-16"})):
        path.write_text(text, encoding=encoding)
        task = Task.from_table(path, tokenizer=tokenizer, corrupted=None, **more)
        assert task.answers == ((" Paris",),)


def test_an_empty_cell_of_a_data_frame(tokenizer):
    frame = pd.DataFrame(changed("question", None), index=["first", "second"])
    with pytest.raises(TaskError, match="row second, column 'question'"):
        read(frame, tokenizer)


def test_ten_thousand_rows(tokenizer, tmp_path):
    path = write(tmp_path / "large.csv", ROWS * 5000)
    started = time.process_time()
    task = read(path, tokenizer)
    assert len(task) == 10_000
    assert time.process_time() - started < 30


LABELS = st.sampled_from(["True", "False"])


@settings(max_examples=25, deadline=None)
@given(labels=st.lists(LABELS, min_size=1, max_size=6), sizes=st.tuples(*[st.integers(1, 2)] * 2))
def test_groups_of_any_size_go_to_the_side_of_their_label(labels, sizes):
    groups = {label: MAP[label][:size] for label, size in zip(MAP, sizes, strict=True)}
    rows = [{**ROWS[i % 2], "label": label} for i, label in enumerate(labels)]
    task = read(rows, tokenizer_of("teaching-gpt2"), answer_map=groups)
    for i, label in enumerate(labels):
        other = "False" if label == "True" else "True"
        assert task.answers[i] == tuple(groups[label])
        assert task.wrong_answers[i] == tuple(groups[other])


def test_pairs_are_taken_from_columns_of_tables() -> None:
    """A pandas column, with any index, and numpy arrays are lists of texts as any other."""
    tokenizer = tokenizer_of("teaching-gpt2")
    task = tasks.ioi(tokenizer, n=3)
    lists = [
        list(task.clean),
        list(task.corrupted),
        *map(firsts, (task.answers, task.wrong_answers)),
    ]
    series = [pd.Series(one, index=[5, 6, 7]) for one in lists]
    expected = Task.from_pairs(*lists, tokenizer=tokenizer)
    for columns in (series, list(map(np.array, lists))):
        assert Task.from_pairs(*columns, tokenizer=tokenizer).hash == expected.hash


def firsts(groups):
    return [group[0] for group in groups]


PAIRS = [
    {
        "clean": "When John and Mary went to the shops, John gave the bag to",
        "corrupted": "When John and Mary went to the shops, Mary gave the bag to",
        "answer": [" Mary", " Amy"],
        "wrong": " John",
    }
]


def kinds_of_tables() -> dict[str, Any]:
    """The same rows as people hold them, by what makes them."""

    def arrays() -> Any:
        frame = pd.DataFrame(PAIRS)
        frame["answer"] = [np.array(cell, dtype=object) for cell in frame["answer"]]
        return frame  # as pandas.read_parquet gives it

    return {
        "list": lambda: PAIRS,
        "arrays": arrays,
        "polars": lambda: pytest.importorskip("polars").DataFrame(PAIRS),
        "datasets": lambda: pytest.importorskip("datasets").Dataset.from_list(PAIRS),
        "pyarrow": lambda: pytest.importorskip("pyarrow").Table.from_pylist(PAIRS),
    }


@pytest.mark.parametrize("kind", kinds_of_tables())
def test_tables_of_other_libraries_are_read(tokenizer, kind):
    told = {"wrong_answer": "wrong", "tokenizer": tokenizer}
    expected = Task.from_table(PAIRS, **told)
    assert Task.from_table(kinds_of_tables()[kind](), **told).hash == expected.hash


def test_a_set_of_tables_names_its_parts(tokenizer):
    datasets = pytest.importorskip("datasets")
    parts = datasets.DatasetDict(train=datasets.Dataset.from_list(PAIRS))
    with pytest.raises(TaskError, match="Give one of its parts, 'train'"):
        Task.from_table(parts, tokenizer=tokenizer)


def test_parquet_is_read_by_pandas(tokenizer, tmp_path):
    with pytest.raises(TaskError, match=r"ends in '.parquet'.*pandas.read_parquet"):
        Task.from_table(tmp_path / "a.parquet", tokenizer=tokenizer)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_a_line_break_ends_a_line_of_jsonl(tmp_path, separator):
    """For `str.splitlines` all of these do; above U+001F they stand in JSON as they are."""
    tokenizer = tokenizer_of("teaching-gpt2")
    row = {"text": "When John", "note": f"one{separator}two"}
    path = tmp_path / "a.jsonl"
    path.write_text("\r\n".join([json.dumps(row, ensure_ascii=False)] * 2), encoding="utf-8")
    task = Task.from_table(path, tokenizer=tokenizer, clean="text", corrupted=None, answer=None)
    assert task.clean == ("When John", "When John")


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl"])
def test_two_columns_of_one_name_are_refused(tokenizer, tmp_path, name):
    path = tmp_path / name
    one, other = json.dumps(PAIRS[0]["clean"]), json.dumps(PAIRS[0]["corrupted"])
    row = f'{{"clean": {one}, "clean": {other}, "corrupted": {other}, "answer": " Mary"}}'
    texts = {
        "a.csv": f"clean,clean,corrupted,answer\n{one},{other},{other}, Mary\n",
        "a.json": f"[{row}]",
        "a.jsonl": row,
    }
    path.write_text(texts[name])
    with pytest.raises(TaskError, match=r"has 2 columns named 'clean'"):
        Task.from_table(path, tokenizer=tokenizer)


def test_a_data_frame_with_two_columns_of_one_name_is_refused(tokenizer):
    frame = pd.DataFrame([["a", "b", "c"]], columns=["clean", "clean", "answer"])
    with pytest.raises(TaskError, match="2 columns named 'clean'"):
        Task.from_table(frame, tokenizer=tokenizer, corrupted=None)


def test_bare_words_get_their_leading_space(tokenizer):
    rows = [{**PAIRS[0], "answer": ["Mary", " Amy"], "wrong": "John"}]
    told = {"wrong_answer": "wrong", "tokenizer": tokenizer}
    task = Task.from_table(rows, leading_space=True, **told)
    assert task.hash == Task.from_table(PAIRS, **told).hash
    assert task.answers == ((" Mary", " Amy"),)
    texts = {side: [rows[0][side]] for side in ("clean", "corrupted")}
    pairs = Task.from_pairs(
        **texts, answers=["Mary"], tokenizer=tokenizer, leading_space=True, sequences=True
    )
    assert pairs.answers == ((" Mary",),)


def test_a_number_in_a_table_is_no_token(tokenizer):
    rows = [{**PAIRS[0], "answer": 7}]
    with pytest.raises(TaskError, match=r"column 'answer' is 7; expected a word.*'7', with quotes"):
        Task.from_table(rows, tokenizer=tokenizer)


@pytest.mark.parametrize("row", [1, [1, 2], np.int64(1), np.array([1, 2]), [np.int64(1)]])
def test_spans_are_positions_of_any_integer_type(tokenizer, row):
    rows = [{**PAIRS[0], "who": row}]
    task = Task.from_table(rows, tokenizer=tokenizer, spans=["who"])
    assert task.spans["who"] == ((1, 2) if np.size(row) == 2 else (1,),)


@pytest.mark.parametrize("empty", [None, "", float("nan"), pd.NA, pd.NaT, np.nan])
def test_an_empty_cell_is_one_however_it_is_written(tokenizer, empty):
    frame = pd.DataFrame({**PAIRS[0], "answer": [empty]}, dtype=object)
    with pytest.raises(TaskError, match=r"row 0, column 'answer' of the data frame is empty"):
        Task.from_table(frame, tokenizer=tokenizer)
