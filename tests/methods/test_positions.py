"""A position means one thing: the label of a cell, given back, is that cell, in every method.

On batches that are padded on the left, with prompts of several lengths, where columns of the batch
and positions of a prompt are not the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnattr
from nnattr import LogitDiff, Model, Task
from nnattr.calls.registry import METHODS
from nnattr.errors import TaskError
from tests.methods.common import even_ioi, expected, ragged_ioi, ragged_tiny, teaching, tiny

#: Methods whose cells can be positions: ``raw`` has the dimension pos.
CELLS: dict[str, Callable[..., nnattr.Scores]] = {
    "activation_patching": partial(nnattr.activation_patching, metric=LogitDiff()),
    "attribution_patching": partial(nnattr.attribution_patching, metric=LogitDiff()),
    "ablate": partial(nnattr.ablate, metric=LogitDiff(), replacement="mean"),
    "direct_logit_attribution": nnattr.direct_logit_attribution,
    "path_patching": partial(nnattr.path_patching, metric=LogitDiff(), receivers="mlps"),
}
#: The others that take positions, each tested by itself below.
READERS = {"logit_lens", "capture", "copying_score", "compare_runs", "ablate_together"}
LENGTHS = (6, 4, 7)  # of `ragged_tiny`


def test_every_method_that_takes_positions_is_tested_here() -> None:
    takes = {name for name, row in METHODS.items() if "positions" in row.arguments}
    assert takes == {*CELLS, *READERS}


@pytest.mark.parametrize("name", CELLS)
def test_a_label_given_back_is_its_cell(name: str) -> None:
    """Prompts of several lengths are lined up at their ends, and their labels say so."""
    model = tiny("gpt2")
    task = ragged_tiny(model)
    given = {"positions": "each"}
    if name == "ablate":  # a mean over all prompts, whichever examples are asked about
        given["dataset"] = list(task.clean)
    each = CELLS[name](model, task, **given).raw
    labels = each["pos"].to_numpy().tolist()
    assert labels == [-7, -6, -5, -4, -3, -2, -1]
    for label in labels:
        having = [i for i, length in enumerate(LENGTHS) if -length <= label]
        again = {**given, "positions": [label]}
        if len(having) < len(LENGTHS):
            with pytest.raises(TaskError, match=f"Position {label} is outside the prompt"):
                CELLS[name](model, task, **again)
        alone = CELLS[name](model, task[having], **again).raw
        cell = each.sel(pos=label)
        np.testing.assert_allclose(alone, cell.isel(example=having), atol=2e-5)
        missing = [i for i in range(len(LENGTHS)) if i not in having]
        assert np.isnan(cell.isel(example=missing)).all()
    assert float(abs(each.sel(pos=-2) - each.sel(pos=-3)).max()) > 1e-3  # cells are not alike


@pytest.mark.parametrize("name", CELLS)
def test_prompts_of_one_length_count_from_their_first_token(name: str) -> None:
    """Whatever other prompts the batch was padded for before."""
    model = tiny("gpt2")
    task = ragged_tiny(model)[[1, 1]]
    each = CELLS[name](model, task, positions="each").raw
    assert each["pos"].to_numpy().tolist() == [0, 1, 2, 3]
    for label in range(4):
        for same in (label, label - 4):
            alone = CELLS[name](model, task, positions=same).raw
            np.testing.assert_allclose(alone, each.sel(pos=label), atol=2e-5)


def test_labels_are_the_positions_of_hooks() -> None:
    """Against the oracle, which runs every prompt by itself and knows no padding."""
    model = tiny("gpt2")
    task = ragged_tiny(model)
    each = nnattr.activation_patching(
        model, task, LogitDiff(), site="resid_pre", positions="each", normalized=False
    ).raw
    for label in (-4, -1):
        theirs = expected("activation", model, task, site="resid_pre", positions=label)
        mine = each.sel(pos=label).to_numpy()
        np.testing.assert_allclose(mine, theirs[..., 0, 0], atol=1e-4)
        assert np.abs(mine).max() > 1e-3


def test_labels_stay_in_tables_files_names_and_figures(tmp_path: Path) -> None:
    model = tiny("gpt2")
    scores = nnattr.activation_patching(
        model, ragged_tiny(model), LogitDiff(), site="mlp_out", positions="each"
    )
    again = nnattr.load_result(scores.save(tmp_path / "s.safetensors"))
    assert again.raw["pos"].to_numpy().tolist() == list(range(-7, 0))
    assert set(scores.to_dataframe()["pos"]) == set(range(-7, 0))
    best = scores.top(1)[0]
    assert best.index[1] < 0
    assert f"pos {best.index[1]} " in best.label
    figure: Any = scores.plot()
    assert [text.split(">")[1].split("<")[0] for text in figure.layout.xaxis.ticktext] == [
        str(label) for label in range(-7, 0)
    ]
    assert figure.layout.xaxis.title.text == "Position from the end"
    part = scores.sel(pos=[-1, -3])
    assert part.top(1)[0].index[1] in (-1, -3)


def test_next_token_attribution_names_positions_as_direct_attribution_does() -> None:
    """Its cells are those of the tokens before the last, whose position is -1."""
    model = tiny("gpt2")
    task = ragged_tiny(model)
    each = nnattr.next_token_attribution(model, task, unit="component").raw
    assert each["pos"].to_numpy().tolist() == list(range(-7, -1))
    for i, length in enumerate(LENGTHS):
        alone = nnattr.next_token_attribution(model, task[[i]], unit="component").raw
        assert alone["pos"].to_numpy().tolist() == list(range(length - 1))
        padded = each.isel(example=i).dropna("pos")
        assert padded["pos"].to_numpy().tolist() == [at - length for at in range(length - 1)]
        np.testing.assert_allclose(padded, alone[0], atol=2e-5)


@pytest.fixture
def model() -> Model:
    return teaching("teaching-gpt2")


PROMPTS = ["Mary gave the book to", "John gave", "When Mary and John went home, John gave it to"]


@pytest.mark.parametrize("read", ["lens", "capture"])
def test_a_position_that_was_read_can_be_read_again(read: str, model: Model) -> None:
    """`position` counts from the first token; where a prompt has none it is not a number."""

    def numbers(positions: Any, prompts: list[str] = PROMPTS) -> Any:
        if read == "lens":
            data = nnattr.logit_lens(model, prompts, positions=positions).data
            return data["entropy"].transpose("example", "pos", "component")
        return nnattr.capture(model, prompts, "resid_pre", positions=positions)["resid_pre"]

    each = numbers("each")
    where = each["position"].to_numpy()
    assert np.isnan(where).any()
    for i, prompt in enumerate(PROMPTS):
        known = np.flatnonzero(~np.isnan(where[i]))
        length = len(known)
        assert where[i][known].tolist() == list(range(length))
        for at in known:
            row = each.isel(example=i, pos=int(at))
            for label in (int(where[i][at]), int(where[i][at]) - length):
                again = numbers(label, [prompt]).isel(example=0, pos=0)
                np.testing.assert_allclose(again, row, atol=1e-4)


def test_positions_that_were_read_are_named_in_tables_and_figures(model: Model) -> None:
    found = nnattr.capture(model, PROMPTS, ["z", "pattern"], positions=[-1, 0])
    table = found.to_dataframe()
    lengths = [len(row) for row in found.task.clean_tokens.strings]
    for site, axis in (("z", "pos"), ("pattern", "query_pos")):
        for i, length in enumerate(lengths):
            here = table[(table["site"] == site) & (table["example"] == i)]
            assert set(here[axis]) == {length - 1, 0}
            figure: Any = found.plot(site, example=i)
            assert list(figure.layout.xaxis.ticktext) == [str(length - 1), "0"]
    whole = nnattr.capture(model, PROMPTS, "z").plot("z", example=1)
    assert list(whole.layout.xaxis.ticktext) == ["0", "1"], "nothing where the prompt has ended"
    lens = nnattr.logit_lens(model, PROMPTS, positions="each").to_dataframe()
    assert "pos" not in lens
    assert set(lens[lens["example"] == 1]["position"]) == {0, 1}


def test_copying_reads_the_same_tokens(model: Model) -> None:
    task = ragged_ioi(model)
    alone = [nnattr.copying_score(model, one, positions=-3).scores for one in task]
    together = nnattr.copying_score(model, task, positions=-3).scores
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)


def test_a_comparison_position_by_position(model: Model) -> None:
    a = ["Mary gave the book to", "John gave the"]
    b = ["John gave the ball to", "Mary took a"]
    found = nnattr.compare_runs(model, a, b, positions="each").data["kl"]
    assert found["pos"].to_numpy().tolist() == [-5, -4, -3, -2, -1]
    last = nnattr.compare_runs(model, a, b).data["kl"]
    np.testing.assert_allclose(found.sel(pos=-1), last, atol=1e-6)
    assert np.isnan(found.sel(pos=-4)[1])
    one = nnattr.compare_runs(model, a[:1], b[:1], positions="each").data["kl"]
    assert one["pos"].to_numpy().tolist() == [0, 1, 2, 3, 4]


def test_parts_ablated_together_at_a_label(model: Model) -> None:
    task = even_ioi(model)
    each = nnattr.ablate(model, task, LogitDiff(), positions="each").raw
    for label in (1, 10):
        both = nnattr.ablate_together(model, task, LogitDiff(), [(1, 2)], positions=label).raw
        np.testing.assert_allclose(both, each.sel(layer=1, head=2, pos=label), atol=1e-4)


@pytest.mark.parametrize("method", ["logit_lens", "capture", "copying_score"])
def test_the_last_position_is_the_prompts_where_an_answer_stands_behind(
    method: str, model: Model
) -> None:
    """As in patching; an answer's own tokens go on counting from the first token."""
    prompts = ["Mary gave the book to", "John gave the ball to"]
    answers = [" Tom and went", " Mary"]
    make = partial(Task.from_prompts, prompts, tokenizer=model.tokenizer)
    long, plain = make(answers, sequences=True), make()
    assert long.appended == (2, 0)
    extra = {"sites": "resid_pre"} if method == "capture" else {}
    call = partial(getattr(nnattr, method), model)
    for where in ("last", -1, 4, -2):
        one, other = (call(task, positions=where, **extra) for task in (long, plain))
        for name, variable in other.data.data_vars.items():
            if variable.dtype.kind == "f":
                np.testing.assert_allclose(one.data[name], variable, atol=1e-4)


def test_what_comes_after_a_prompt_is_not_read_behind_its_answer(model: Model) -> None:
    prompts = ["When Mary and John went to the store, John gave a ball to", "Mary gave the book to"]
    make = partial(Task.from_prompts, prompts, tokenizer=model.tokenizer)
    long, plain = make([" Mary and went home", " Tom"], sequences=True), make()
    assert long.appended == (3, 0)
    said = nnattr.generate(model, plain, max_new_tokens=3)
    assert nnattr.generate(model, long, max_new_tokens=3) == said
    both = [nnattr.most_frequent_answers(model, task) for task in (long, plain)]
    assert str(both[0]) == str(both[1])
    found = nnattr.compare_runs(model, long, plain).data
    np.testing.assert_allclose(found["kl"], 0, atol=1e-6)
    assert float(nnattr.compare_runs(model, long, plain[[1, 0]]).data["kl"].min()) > 1e-3
