"""The analyses of three notebooks people wrote by hand, end to end, from files like theirs.

A refusal (component attribution), facts with several words for yes (factual knowledge), and looking
into a model's answer (self-explanations), on a teaching model through the public calls alone.
"""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import nnattr
from nnattr import Task
from nnattr.tasks.vocabulary import NO_WORDS, YES_WORDS

YES, NO = [f" {word}" for word in YES_WORDS], [f" {word}" for word in NO_WORDS]


@pytest.fixture(scope="module")
def model():
    return nnattr.load("teaching-llama")


@pytest.fixture
def requests_csv(tmp_path: Path) -> Path:
    """Pairs of a harmful and a harmless request, as a two-column file."""
    words = nnattr.load("teaching-llama").tokenizer
    made = nnattr.tasks.requests(words, n=24, seed=3, chat=False)
    path = tmp_path / "requests.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["harmful", "harmless"])
        rows.writerows(zip(made.clean, made.corrupted, strict=True))
    return path


def test_a_refusal_from_a_csv(model, requests_csv):
    with requests_csv.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    said = [
        nnattr.most_frequent_answers(model, [row[side] for row in rows], chat=True)[0].token
        for side in ("harmful", "harmless")
    ]
    assert said == ["I", "Here"], "the contrast pair, found and not assumed"
    task = Task.from_pairs(
        [row["harmful"] for row in rows],
        [row["harmless"] for row in rows],
        [said[0]] * len(rows),
        [said[1]] * len(rows),
        tokenizer=model.tokenizer,
        chat=True,
    ).filter(model, keep=("I", "Here"))
    assert len(task) + len(task.dropped) == len(rows)
    metric = nnattr.LogitDiff()
    patched = nnattr.activation_patching(model, task, metric, site="z")
    assert (patched.baselines.sel(run="clean") > 0).all()
    assert (patched.baselines.sel(run="corrupted") < 0).all()
    assert patched.top(1)[0].value > 0.1
    by_layer = nnattr.direct_logit_attribution(model, task, unit="accumulated")
    np.testing.assert_allclose(
        by_layer.raw.isel(component=-1), patched.baselines.sel(run="clean"), rtol=1e-4
    )
    heads = nnattr.direct_logit_attribution(model, task, unit="head")
    assert heads.rest is not None
    total = heads.raw.sum(("layer", "head")) + heads.rest.sum("component")
    np.testing.assert_allclose(total, patched.baselines.sel(run="clean"), rtol=1e-4)
    kinds = nnattr.direct_logit_attribution(model, task).by_kind()
    assert {"attention", "mlp", "embedding"} <= set(kinds.raw["component"].to_numpy())


def test_facts_with_groups_of_answers_from_json(model, tmp_path):
    made = nnattr.tasks.facts(model.tokenizer, n=40, seed=5)
    truth = ["True" if row[0] in YES else "False" for row in made.answers]
    path = tmp_path / "facts.json"
    path.write_text(
        json.dumps(
            [
                {"question": question, "twin": twin, "label": label}
                for question, twin, label in zip(made.clean, made.corrupted, truth, strict=True)
            ]
        )
    )
    task = Task.from_table(
        path,
        tokenizer=model.tokenizer,
        clean="question",
        corrupted="twin",
        answer="label",
        answer_map={"True": YES, "False": NO},
    )
    right = task.filter(model)
    assert len(right) > 0.8 * len(task)
    discover, report = right.split(seed=0)
    assert not set(discover.clean) & set(report.clean)
    found = nnattr.attribution_patching(model, discover, nnattr.GroupLogProbDiff())
    exact = nnattr.activation_patching(model, report, nnattr.GroupLogProbDiff())
    strongest = exact.top(3).indices
    assert set(found.top(3).indices) & set(strongest), "what was discovered is there to report"
    assert (exact.permutation_pvalue().stack(cell=("layer", "head")) < 0.05).any()
    mean_logits = nnattr.activation_patching(model, report, nnattr.LogitDiff(), normalized=False)
    assert mean_logits.baselines.sel(run="clean").mean() > 0
    with pytest.raises(nnattr.errors.MetricError, match="LogitDiff"):
        nnattr.direct_logit_attribution(model, report, nnattr.GroupLogProbDiff())


def test_looking_into_an_answer(model):
    clean = "When John and Mary went to the shops, John gave the bag to"
    other = "When John and Mary went to the shops, Mary gave the bag to"
    seen = nnattr.inspect_prompt(model, clean, " Mary")
    assert seen.steps[0].answer is not None
    assert seen.steps[0].answer.rank == 0
    assert " Mary" in str(seen)
    assert nnattr.generate(model, [clean], max_new_tokens=1) == [" Mary"]
    lens = nnattr.logit_lens(model, [clean], answers=" Mary")
    answer = lens.data["answer_probability"].squeeze()
    assert float(answer[-1]) > 0.5 > float(answer[0]), "the answer appears on the way up"
    assert float(answer[-1]) == pytest.approx(seen.steps[0].answer.probability, rel=1e-4)
    difference = nnattr.compare_runs(model, clean, other)
    assert float(difference.data["kl"].max()) > 1.0
    with pytest.raises(nnattr.errors.TaskError):
        nnattr.compare_runs(model, clean, "When John", positions="each")


def test_the_files_order_does_not_matter(model, requests_csv):
    lines = requests_csv.read_text().splitlines()
    shuffled = requests_csv.with_name("shuffled.csv")
    body = lines[1:]
    random.Random(0).shuffle(body)
    shuffled.write_text("\n".join([lines[0], *body]))
    means = []
    for path in (requests_csv, shuffled):
        task = Task.from_table(
            path,
            tokenizer=model.tokenizer,
            clean="harmful",
            corrupted="harmless",
            answer=None,
            chat=True,
        )
        scores = nnattr.activation_patching(model, task, nnattr.KL(), site="z")
        means.append(scores.mean().values)
    xr.testing.assert_allclose(means[0], means[1], atol=1e-4)
