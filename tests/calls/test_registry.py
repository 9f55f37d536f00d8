"""The registry: every row is a public function, and every method has an example."""

from __future__ import annotations

import inspect
from operator import attrgetter

import pytest

import nnattr
from nnattr.calls.registry import METHODS, named, row_of
from nnattr.errors import ArgumentError
from nnattr.jobs.plain import plain, restored
from tests.methods.common import even_ioi, teaching
from tests.support.calls import EXAMPLES, example


def test_every_method_has_an_example() -> None:
    assert EXAMPLES.keys() == METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_a_public_function_that_takes_a_model_first(name: str) -> None:
    row = METHODS[name]
    assert attrgetter(name)(nnattr) is row.function
    assert next(iter(inspect.signature(row.function).parameters)) == "model"
    assert row_of(row.function) is row
    assert row.question.endswith((".", "?"))


def test_what_is_not_a_method() -> None:
    with pytest.raises(ArgumentError, match="no method 'patching'; expected one of activation_p"):
        named("patching")
    with pytest.raises(ArgumentError, match="is not a method"):
        row_of(print)


@pytest.mark.parametrize("name", METHODS)
def test_arguments_come_back_from_json(name: str) -> None:
    """Written and read again they are written the same, and are accepted by the method."""
    model = teaching("teaching-gpt2")
    given = example(name, model, even_ioi(model))
    written = {key: plain(value) for key, value in given.items() if key != "model"}
    back = {key: restored(value) for key, value in written.items()}
    assert {key: plain(value) for key, value in back.items()} == written
    METHODS[name].function(model, **back)
