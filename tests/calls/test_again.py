"""Every result says how to make it again, as a file and as code, and both are executed."""

from __future__ import annotations

import dataclasses
import linecache
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
import yaml

import nnattr
from nnattr import LogitDiff, edit, load_result
from nnattr.calls import again
from nnattr.calls.registry import ANSWERS, METHODS
from nnattr.errors import MetricError, ResultError
from nnattr.results import Result, legacy
from tests.methods.common import even_ioi, teaching
from tests.support.calls import example
from tests.support.command_line import call

FILES: Iterator[int] = count()
#: Arguments that no provenance keeps: what is asked, where parts are kept, code that runs there.
APART = ("task", "metric", "checkpoint", "max_memory", "reduce")
#: Arguments that narrow the question, ask of a set, or are one estimator's: kept where given.
WHERE_GIVEN = (
    *("cells", "layers", "heads", "together", "paths"),
    *("rules", "temperature", "steps", "points", "along"),
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(name: str, **more: Any) -> Result:
    """The result of a method's example, saved as ``before.safetensors``."""
    model = teaching("teaching-gpt2")
    found = METHODS[name].function(**{**example(name, model, even_ioi(model)), **more})
    found.save("before.safetensors")
    return found


def executed(code: str) -> Result:
    """What a piece of code calls ``result``; its lines are known to whom looks for them."""
    name = f"<made again {next(FILES)}>"
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    names: dict[str, Any] = {}
    exec(compile(code, name, "exec"), names)
    return names["result"]


def ran(result: Result) -> Result:
    """What `nnattr run` makes of the run file, and says of it in 80 columns."""
    config = again.run_file(result, "before.safetensors")
    config.model_copy(update={"output": "after.safetensors"}).to_file("again.yaml")
    lines = call("run", "again.yaml").splitlines()
    assert lines[0].startswith(f"{result.provenance.method}(")
    assert max(map(len, lines)) <= 80
    return load_result("after.safetensors")


def is_the_same(after: Result, before: Result) -> None:
    xr.testing.assert_identical(after.data, before.data)
    assert type(after) is type(before)
    for key in ("method", "arguments", "metric", "task_hash", "model", "dtype"):
        assert getattr(after.provenance, key) == getattr(before.provenance, key), key


@pytest.mark.parametrize("name", ANSWERS)
def test_the_file_and_the_code_make_the_same_result(name: str):
    made(name)
    before = load_result("before.safetensors")
    assert before.provenance.method == name
    is_the_same(ran(before), before)
    is_the_same(executed(again.python(before, "before.safetensors")), before)


@pytest.mark.parametrize("name", ANSWERS)
def test_every_argument_is_kept(name: str):
    row, p = ANSWERS[name], made(name).provenance
    read = {row.reads} if p.examples is not None else set()
    assert {key for key in row.arguments if key not in (*APART, *WHERE_GIVEN)} - read <= set(
        p.arguments
    )


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("activation_patching", {"cells": ["M0", "M2"]}),
        ("activation_patching", {"layers": [1], "together": True}),
        ("attribution_patching", {"heads": [(0, 1), "L1H0"]}),
        ("attribution_patching", {"estimator": "gim", "temperature": 1.5}),
        ("attribution_patching", {"estimator": "relp", "rules": ["norms"]}),
        ("attribution_patching", {"estimator": "integrated", "steps": 2, "along": "activations"}),
        ("ablate", {"layers": 1}),
        ("path_patching", {"senders": "all", "receivers": "logits", "edges": [((0, 1), "M2")]}),
        ("path_patching", {"between": "mlps", "ungrouped": True}),
        ("path_patching", {"together": True}),
        (
            "path_patching",
            {"senders": "all", "receivers": "logits", "paths": ["L0H1 -> L2H2.k -> logits"]},
        ),
    ],
)
def test_what_is_asked_for_alone_is_kept(name: str, more: dict[str, Any]):
    before = made(name, **more)
    given = {key for key, value in more.items() if value not in ("all", "logits")}
    assert given <= set(before.provenance.arguments)
    is_the_same(ran(before), before)
    is_the_same(executed(again.python(before, "before.safetensors")), before)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("activation_patching", {"positions": [1, 2], "max_memory": 10**9, "engine": "full"}),
        ("ablate", {"dataset": "task"}),
        ("attention_patterns", {"prompts": "tokens", "run": "clean"}),
        ("detect_heads", {"prompts": "tokens", "thresholds": {"induction": 0.1}}),
        ("copying_score", {"prompts": "task", "positions": "IO", "run": "corrupted"}),
        ("most_frequent_answers", {"prompts": ["When Mary and John went to the store,"] * 12}),
    ],
)
def test_what_is_long_or_more_than_texts_is_read_from_the_file(name: str, more: dict[str, Any]):
    model = teaching("teaching-gpt2")
    random = nnattr.detect_heads(model, n=2, length=6).tokens
    kinds = {"task": even_ioi(model), "tokens": random}
    before = made(name, **{key: kinds.get(str(value), value) for key, value in more.items()})
    is_the_same(ran(before), before)
    is_the_same(executed(again.python(before, "before.safetensors")), before)


def test_edits_are_made_again():
    model = teaching("teaching-gpt2")
    question = even_ioi(model)
    vector = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    edited = nnattr.edited(
        model,
        [
            edit.ablate(["L0H1", "M0"], "mean", dataset=list(question.clean), positions=[1, -1]),
            edit.ablate("L1H2", "resample", dataset=question, seed=4),
            edit.replace((2, 1), task=question, direction="noising"),
            edit.steer(1, vector, site="attn_out", positions="last", scale=0.3),
        ],
    )
    plain = nnattr.activation_patching(model, question, LogitDiff())
    found = nnattr.activation_patching(edited, question, LogitDiff())
    assert float(abs(found.raw - plain.raw).max()) > 1e-2
    found.save("before.safetensors")
    before = load_result("before.safetensors")
    assert before.provenance.edits == found.provenance.edits
    for after in (ran(before), executed(again.python(before, "before.safetensors"))):
        is_the_same(after, before)
        assert after.provenance.edits == before.provenance.edits
    words = before.provenance.model_copy(update={"edits_given": ()})
    old = dataclasses.replace(before, provenance=words)
    with pytest.raises(ResultError, match="older nnattr, which kept edits in words"):
        again.run_file(old, "before.safetensors")


def test_the_code_says_what_differs_from_the_defaults():
    code = again.python(made("ablate_together"), "before.safetensors")
    assert code.splitlines()[-7:] == [
        "result = nnattr.ablate_together(",
        "    model,",
        "    task=nnattr.Task.load('before.safetensors'),",
        "    metric=metric,",
        "    parts=((0, 1), (1, 0)),",
        "    keep=True,",
        ")",
    ]
    config = again.run_file(made("compare_runs"), "before.safetensors")
    assert config.task is None
    assert len(config.prompts) == len(config.options["b"])


def my_metric(logits, batch):
    return logits[:, -1].float().max(-1).values - logits[:, -1].float().mean(-1)


def test_a_metric_of_ones_own_needs_python():
    before = made("activation_patching", metric=my_metric, normalized=False)
    with pytest.raises(MetricError, match="function of your own"):
        again.run_file(before, "before.safetensors")
    code = again.python(before, "before.safetensors")
    named = f"metric = {before.provenance.metric}  # a function of your own: import it"
    assert named in code
    is_the_same(
        executed(code.replace(named, f"from {__name__} import my_metric as metric")), before
    )


def test_what_cannot_be_made_again_says_why():
    exact = made("ablate")
    assert isinstance(exact, nnattr.Scores)
    with pytest.raises(ResultError, match="not the result of one method alone: it is of 'agreem"):
        again.call_of(nnattr.agreement(exact, exact), "x")
    old = {**exact.provenance.model_dump(), "method": "ablation"}
    old["arguments"] = {"site": "z", "fill": "mean", "dataset": "4 prompts, 0123"}
    told = legacy.renamed(old)
    assert told["method"] == "ablate"
    assert told["arguments"]["replacement"] == "mean"
    update = {"arguments": told["arguments"]}
    older = exact.provenance.model_copy(update=update)
    with pytest.raises(ResultError, match="does not hold its dataset, 4 prompts, 0123"):
        again.call_of(nnattr.Scores(exact.data, older), "x")
    bare = exact.provenance.model_copy(update={"examples": None})
    with pytest.raises(ResultError, match="does not hold its task"):
        again.call_of(nnattr.Scores(exact.data, bare), "x")


@pytest.mark.parametrize(
    ("name", "said"),
    [("ndif", "ndif"), ("ndif (http://127.0.0.1:8001)", "http://127.0.0.1:8001")],
)
def test_a_server_is_named_as_load_takes_it(name: str, said: str):
    scores = made("attribution_patching", metric=LogitDiff())
    update = {"backend": name, "metric": "Loss(last=3)"}
    remote = type(scores)(scores.data, scores.provenance.model_copy(update=update))
    config = again.run_file(remote, "exact.safetensors")
    assert (config.backend, config.metric, config.metric_arguments) == (said, "Loss", {"last": 3})
    assert yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))["backend"] == said
