"""Its numbers: signs and order of the named heads, and values to 2 % of the largest.

float32 on a processor. A number here stands in docs/models.md; whoever changes one changes both.
"""

from __future__ import annotations

import numpy as np
import pytest

import nnattr
from nnattr import LogitDiff, Model, Scores, Task, pretrained

#: Exact heads for IOI (n=16, seed=0): z, all positions, denoising.
EXACT = {
    (23, 3): 0.437, (20, 0): 0.400, (24, 4): -0.317, (17, 4): 0.310, (29, 1): 0.300,
    (29, 0): -0.244, (19, 2): 0.136,
}  # fmt: skip
#: Mean ablation for IOI (n=8, seed=1), in logits.
ABLATED = {
    (23, 3): -2.692, (20, 0): -1.576, (29, 1): -1.471, (17, 4): -1.299, (24, 4): 1.201,
    (29, 0): 1.142,
}  # fmt: skip
#: Kinds of heads, on random repeated tokens (n=10, length=50, seed=0).
KINDS = {
    "previous": {(16, 0): 0.89, (11, 1): 0.85},
    "induction": {(18, 6): 0.88, (17, 3): 0.76, (17, 4): 0.70},
    "duplicate": {(8, 0): 0.66, (14, 3): 0.65},
}
#: Right of 16 pairs (seed=0), and the mean logit difference of both runs.
TASKS = {
    "ioi": (16, 4.470, -4.681),
    "subject_verb": (15, 2.521, -2.578),
    "gendered_pronoun": (10, 0.768, -0.860),
}


def same_heads(scores: Scores, expected: dict[tuple[int, int], float]) -> None:
    """These heads are the strongest, in this order, each to 2 % of the largest."""
    found = scores.top(len(expected))
    assert [cell.index for cell in found] == list(expected)
    values = np.array([cell.value for cell in found])
    largest = max(map(abs, expected.values()))
    assert np.abs(values - list(expected.values())).max() <= 0.02 * largest


def test_the_file_and_the_folder_are_one_model(model: Model, ioi: Task) -> None:
    read = nnattr.load(pretrained.folder(), gguf_file=pretrained.FILE)
    assert read.quantization == model.quantization == f"dequantized from {pretrained.FILE}"
    same = nnattr.tasks.ioi(read.tokenizer, n=16, seed=0)
    assert same.clean_tokens.rows == ioi.clean_tokens.rows
    ours, theirs = (nnattr.inspect_prompt(m, "The capital of France is") for m in (model, read))
    assert str(ours) == str(theirs)


@pytest.mark.parametrize("name", TASKS)
def test_which_tasks_it_does(model: Model, name: str) -> None:
    right, clean, corrupted = TASKS[name]
    task = getattr(nnattr.tasks, name)(model.tokenizer, n=16, seed=0)
    runs = nnattr.attribution_patching(model, task, LogitDiff()).baselines
    assert int((runs.sel(run="clean") > 0).sum()) == right
    assert runs.mean("example").to_numpy() == pytest.approx([clean, corrupted], abs=0.02 * clean)


def test_the_heads_of_ioi(exact: Scores) -> None:
    same_heads(exact, EXACT)
    assert exact.provenance.fell_back == ""


def test_the_estimate_misses_two_of_them(exact: Scores, estimate: Scores) -> None:
    agreement = nnattr.agreement(exact, estimate)
    assert agreement.pearson == pytest.approx(0.883, abs=0.01)
    assert agreement.spearman == pytest.approx(0.948, abs=0.01)
    assert agreement.overlap == pytest.approx(0.9)
    mean = estimate.mean().values.to_numpy()
    assert mean[20, 0] == pytest.approx(0.096, abs=0.01)  # exactly 0.400
    assert mean[17, 4] == pytest.approx(0.038, abs=0.01)  # exactly 0.310


def test_without_a_head(model: Model) -> None:
    task = nnattr.tasks.ioi(model.tokenizer, n=8, seed=1)
    same_heads(nnattr.ablate(model, task, LogitDiff(), replacement="mean"), ABLATED)


def test_kinds_of_heads(model: Model) -> None:
    scores = nnattr.detect_heads(model)
    for kind, heads in KINDS.items():
        found = scores.top(kind, len(heads))
        assert [cell.index for cell in found] == list(heads)
        assert [cell.value for cell in found] == pytest.approx(list(heads.values()), abs=0.02)


def test_it_knows_the_capital_of_france(model: Model) -> None:
    guesses = nnattr.inspect_prompt(model, "The capital of France is", top_k=2).data.isel(step=0)
    assert guesses.token.to_numpy()[0] == " Paris"
    assert guesses.logit.to_numpy() == pytest.approx([17.4, 14.9], abs=0.1)
