"""Kinds of heads: by loops over the model's own patterns, and what the teaching models have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnattr import Task, attention_patterns, capture, detect_heads
from nnattr.errors import ArchError, ArgumentError, ResultError, TaskError
from nnattr.methods.attention.detect_heads import THRESHOLDS, repeated_tokens
from nnattr.results import HeadScores
from nnattr.runs.head_kinds import KINDS
from tests.methods.common import TEACHING, raw_module, stories, teaching, tiny
from tests.oracles import attention
from tests.support.paths import needs_stories
from tests.tiny import FAMILIES, tiny_model

PROMPTS = ["w3 w4 w5 w3 w4 w3 w9", "w33 w34 w33", "w40 w41"]


def loss(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits = raw_module(model)(torch.tensor([ids])).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "falcon-serial"])
def test_they_are_what_loops_find(family: str) -> None:
    model = tiny(family)
    found = detect_heads(model, PROMPTS)
    assert found.kinds == list(KINDS)
    for i, prompt in enumerate(PROMPTS):
        ids = model.tokenizer(prompt)["input_ids"]
        every = attention.patterns(raw_module(model), torch.tensor([ids]))
        for layer, pattern in enumerate(every):
            expected = attention.kind_scores(pattern, ids)
            for kind in KINDS:
                own = found.scores.sel(example=i, kind=kind, layer=layer)
                np.testing.assert_allclose(own, expected[kind], rtol=1e-4, atol=1e-6)
        assert found.loss is not None
        np.testing.assert_allclose(found.loss[i, 1 : len(ids)], loss(model, ids), rtol=1e-4)
        assert np.isnan(found.loss[i, 0])
        assert np.isnan(found.loss[i, len(ids) :]).all()
    assert np.isnan(found.scores.sel(example=2, kind="induction")).all()
    assert np.isfinite(found.mean()).all()
    with pytest.raises(ResultError, match="Only detect_heads on repeated tokens"):
        found.halves()


@pytest.mark.parametrize("name", TEACHING)
def test_the_teaching_models_have_an_induction_circuit(name: str) -> None:
    """The notebook's sections on detectors and on the loss of repeated tokens."""
    model = teaching(name)
    found = detect_heads(model, length=30, seed=1)
    induction, previous = found.heads("induction"), found.heads("previous")
    assert induction[0].value > 0.9
    assert previous[0].value > 0.9
    assert min(cell.index[0] for cell in previous) < min(cell.index[0] for cell in induction)
    assert all(cell.stderr < 0.05 for cell in (*induction, *previous))
    assert {cell.index for cell in found.heads("duplicate")}.isdisjoint(induction.indices)
    first, second = found.halves()
    assert first > 5
    assert second < 1
    ids = found_ids(model, found)
    rows = torch.stack([loss(model, row) for row in ids])  # the i-th predicts token i + 1
    cut = len(ids[0]) - 30 - 1
    assert first == pytest.approx(float(rows[:, :cut].mean()), rel=1e-4)
    assert second == pytest.approx(float(rows[:, cut:].mean()), rel=1e-4)


def found_ids(model: Any, found: HeadScores) -> list[list[int]]:
    tokens, second = repeated_tokens(model, n=10, length=30, seed=1)
    assert torch.equal(tokens.ids, found.tokens.ids)
    assert second == found.second
    return tokens.rows


@pytest.mark.parametrize("name", TEACHING)
def test_random_sequences(name: str) -> None:
    model = teaching(name)
    tokens, second = repeated_tokens(model, n=3, length=20, seed=0)
    bos = model.tokenizer.bos_token_id
    for row in tokens.rows:
        opening = [] if bos is None else [bos]
        copy = row[second:]
        assert row == opening + copy + copy
        assert len(set(copy)) == 20
        assert not set(copy) & set(model.tokenizer.all_special_ids)
    again, _ = repeated_tokens(model, n=3, length=20, seed=0)
    other, _ = repeated_tokens(model, n=3, length=20, seed=1)
    assert again.rows == tokens.rows != other.rows


def test_a_small_vocabulary_repeats_within_a_sequence() -> None:
    model = tiny_model("llama", max_position_embeddings=512)
    tokens, _ = repeated_tokens(model, n=1, length=120, seed=0)
    assert len(tokens.rows[0]) == 241
    assert detect_heads(model, n=1, length=120).scores.shape == (1, 5, 3, 4)


def test_on_a_task_and_on_either_run() -> None:
    model = teaching("teaching-gpt2")
    task = Task.from_pairs(
        ["When Mary and John"], ["When John and Mary"], tokenizer=model.tokenizer
    )
    clean, other = (detect_heads(model, task, run=run) for run in ("clean", "corrupted"))
    plain = detect_heads(model, list(task.corrupted))
    np.testing.assert_allclose(other.scores, plain.scores, atol=1e-6)
    assert float(abs(clean.scores - other.scores).max()) > 1e-3


def test_the_same_tokens_again_and_for_the_other_methods() -> None:
    model = tiny("llama")
    found = detect_heads(model, n=3, length=8)
    again = detect_heads(model, found.tokens)
    np.testing.assert_allclose(again.scores, found.scores, atol=1e-6)
    looks = attention_patterns(model, found.tokens)
    assert looks.tokens == found.tokens.strings
    z = capture(model, found.tokens, "z", positions="last")["z"]
    assert z["token"].values[:, 0].tolist() == [row[-1] for row in found.tokens.strings]
    with pytest.raises(TaskError, match="its embedding has"):
        attention_patterns(tiny_model("gpt2", vocab_size=32), found.tokens)
    with pytest.raises(TaskError, match="takes 16"):
        detect_heads(tiny_model("gpt2", n_positions=16), found.tokens)


def test_a_simulated_server_gives_the_same_and_chunks_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = detect_heads(tiny("gpt2"), n=3, length=8)
    there = detect_heads(tiny_model("gpt2", backend="simulated"), n=3, length=8)
    assert here.scores.equals(there.scores)
    assert here.loss is not None
    assert there.loss is not None
    assert here.loss.equals(there.loss)
    monkeypatch.setattr("nnattr.model.model.TOKENS_PER_FORWARD", 1)
    chunked = detect_heads(tiny("gpt2"), n=3, length=8)
    np.testing.assert_allclose(chunked.scores, here.scores, rtol=0, atol=1e-6)
    np.testing.assert_allclose(chunked.loss, here.loss, rtol=1e-5)


def test_thresholds_lists_and_tables() -> None:
    model = teaching("teaching-gpt2")
    found = detect_heads(model, n=4, length=20)
    assert found.thresholds == THRESHOLDS
    best = found.top("induction", 1)[0]
    loose = detect_heads(model, n=4, length=20, thresholds={"induction": 0.0})
    assert len(loose.heads("induction")) == model.n_layers * model.n_heads
    assert loose.heads("induction")[0] == best
    strict = detect_heads(model, n=4, length=20, thresholds={"induction": 1.01})
    assert strict.heads("induction") == ()
    mean = found.scores.sel(kind="induction").mean("example").to_numpy()
    assert best.index == np.unravel_index(mean.argmax(), mean.shape)
    spread = found.scores.sel(kind="induction").std("example", ddof=1)[best.index] / 2
    assert best.stderr == pytest.approx(float(spread))
    table = found.to_dataframe()
    assert len(table) == 5 * model.n_layers * model.n_heads
    listed = table[table["found"] & (table["kind"] == "induction")]
    rows = list(zip(listed["layer"], listed["head"], strict=True))
    assert sorted(rows) == sorted(found.heads("induction").indices)
    assert "second" in repr(found)
    assert best.label in repr(found)


def test_they_are_kept_in_a_file(tmp_path: Path) -> None:
    found = detect_heads(tiny("gpt2"), n=3, length=8, thresholds={"first": 0.1})
    again = HeadScores.load(found.save(tmp_path / "h.safetensors"))
    assert again.scores.identical(found.scores)
    assert again.loss is not None
    assert again.loss.identical(found.loss)
    assert repr(again) == repr(found)
    assert again.thresholds == found.thresholds
    assert torch.equal(again.tokens.ids, found.tokens.ids)
    assert torch.equal(again.tokens.mask, found.tokens.mask)
    assert again.tokens.strings == found.tokens.strings
    looks = attention_patterns(tiny("gpt2"), again.tokens)
    with pytest.raises(ResultError, match="'Patterns' and not HeadScores"):
        HeadScores.load(looks.save(tmp_path / "p.safetensors"))


def test_figures() -> None:
    found = detect_heads(tiny("gpt2"), n=3, length=8, thresholds={"first": 0.1})
    figure = found.plot()
    assert len(figure.data) == len(KINDS)
    np.testing.assert_allclose(figure.data[0].z, found.mean().sel(kind="previous"))
    framed = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert len(framed) == sum(len(found.heads(kind)) for kind in KINDS)
    assert len(found.plot("first").data) == 1
    line = found.plot_loss()
    assert found.loss is not None
    np.testing.assert_allclose(line.data[-1].y[1:], found.loss.mean("example")[1:])
    with pytest.raises(ResultError, match="no kind 'x'"):
        found.plot("x")
    with pytest.raises(ResultError, match="no kind 'x'"):
        found.heads("x")


def test_wrong_questions_are_named() -> None:
    model = tiny("gpt2")
    for options, message in (
        ({"thresholds": {"copying": 1}}, "no kind 'copying'"),
        ({"n": 0}, "n is 0"),
        ({"length": 1}, "length 1"),
        ({"length": 40}, "takes 64"),
    ):
        with pytest.raises((ArgumentError, TaskError), match=message):
            detect_heads(model, **options)  # type: ignore[arg-type]
    with pytest.raises(ArchError, match="makes other predictions"):
        detect_heads(tiny("falcon-serial"), PROMPTS)


@needs_stories
def test_a_real_model_without_induction() -> None:
    found = detect_heads(stories(), length=40)
    best = found.top("previous", 3)
    assert best.indices == [(3, 6), (1, 3), (1, 6)]
    for cell, value in zip(best, (0.75, 0.63, 0.51), strict=True):
        assert cell.value == pytest.approx(value, abs=0.03)
    assert found.heads("induction") == ()
    assert found.top("induction", 1)[0].value < 0.05
