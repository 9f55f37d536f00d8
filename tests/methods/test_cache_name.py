"""Whatever a release of transformers calls keys and values, the engine goes on from them.

A model that is given its cache by a name it does not know ignores it, and one whose cache nnsight
does not know gets a mask without it: full passes then stand in, or numbers are wrong. So this runs
on the oldest and on the newest release as well (`make test-versions`).
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import nnattr
from nnattr import LogitDiff, Loss, Model
from nnattr.runs.inputs import CACHE_NAMES, cache_argument
from tests.methods.common import METHODS, TEACHING, even_ioi, ragged_ioi, teaching
from tests.support.engine import compared, pair, task
from tests.support.families import families
from tests.tiny import tiny_model, tiny_module, tiny_tokenizer

#: Prompts that share enough tokens for the estimate as well to go on from a cache.
MANY = 32


def renamed(module: Any, name: str, known: str) -> Any:
    """The module, calling ``name`` what it calls ``known``, in what it takes and what it gives."""
    kind = type(module)
    signature = inspect.signature(kind.forward)

    def forward(self: Any, **given: Any) -> Any:
        given.pop(known, None)  # as any argument that it does not know
        if name in given:
            given[known] = given.pop(name)
        output = kind.forward(self, **given)
        return SimpleNamespace(logits=output.logits, **{name: getattr(output, known)})

    parameters = signature.parameters.values()
    forward.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[one.replace(name=name) if one.name == known else one for one in parameters]
    )
    module.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return module


class Handing(torch.nn.Module):
    """A module around a model that hands on whatever it is given, as adapters do."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


def both_names(family: str) -> list[Model]:
    """A tiny model as it is, and the same with its cache by the other name."""
    plain = tiny_model(family)
    known = cache_argument(plain.nn)
    (other,) = (name for name in CACHE_NAMES if name != known)
    module = renamed(tiny_module(family), other, known)
    return [plain, nnattr.load(module, tokenizer=tiny_tokenizer())]


@pytest.mark.parametrize("family", families())
def test_the_engine_serves_a_model_by_either_name(family: str) -> None:
    """One prompt is padded, the other not: passes of the second alone have no padding to mask."""
    for model in both_names(family):
        question = task(model, pair(9, 4), pair(6, 3, shift=5))
        for metric in (LogitDiff(), Loss()):
            assert compared(model, question, metric, site="resid_post") == "suffix"


def test_both_names_are_tried() -> None:
    """The control of the test above."""
    assert {cache_argument(model.nn) for model in both_names("llama")} == set(CACHE_NAMES)


def test_the_name_is_found_behind_a_module_that_hands_on_what_it_is_given() -> None:
    for model in both_names("llama"):
        module = model.nn._module
        assert cache_argument(SimpleNamespace(_module=Handing(module))) == cache_argument(model.nn)


@pytest.mark.parametrize("backend", ["local", "simulated"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", TEACHING)
def test_the_teaching_models_are_served_by_the_engine(name: str, method: str, backend: str) -> None:
    model = teaching(name, backend)
    for question in (ragged_ioi(model), even_ioi(model, MANY)):
        provenance = METHODS[method](model, question, LogitDiff(), positions="each").provenance
        assert provenance.fell_back == ""
    assert provenance.arguments["engine"] == "suffix"


@pytest.mark.parametrize("method", METHODS)
def test_a_fall_back_is_told_with_its_reason(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a name that the model does not know. The numbers stay, the record says why."""
    model = teaching("teaching-gpt2")
    question = even_ioi(model, MANY)
    right = METHODS[method](model, question, LogitDiff(), positions="each")
    monkeypatch.setattr("nnattr.engine.question.cache_argument", lambda _: "nobodys")
    found = METHODS[method](model, question, LogitDiff(), positions="each")
    assert found.provenance.arguments["engine"] == "full"
    assert found.provenance.fell_back
    torch.testing.assert_close(
        torch.tensor(found.raw.to_numpy()), torch.tensor(right.raw.to_numpy()), rtol=1e-4, atol=1e-4
    )
