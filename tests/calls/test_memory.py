"""Every method goes on where memory runs out: fewer examples at a time, and the same answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from nnattr import Model
from nnattr.calls.registry import METHODS
from tests.methods.common import even_ioi, raw_module, teaching
from tests.numbers import arrays
from tests.support.calls import example

#: Asked of weights alone: there are no examples.
OF_WEIGHTS = {"weights.composition", "weights.position_pattern", "weights.head"}
#: Run one prompt at a time, or are given one.
ONE_AT_A_TIME = {"decompose_attention", "inspect_prompt"}


@contextmanager
def tokens_seen(model: Model, most: float = float("inf")) -> Iterator[list[int]]:
    """The tokens of each pass; memory runs out where there are more than ``most``."""
    seen: list[int] = []

    def count(_: Any, __: Any, output: torch.Tensor) -> None:
        seen.append(output.shape[:-1].numel())
        if seen[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    embedding = raw_module(model).get_submodule(model.spec.embed)
    handle = embedding.register_forward_hook(count)
    try:
        yield seen
    finally:
        handle.remove()


def test_the_exceptions_are_methods() -> None:
    assert METHODS.keys() > (OF_WEIGHTS | ONE_AT_A_TIME)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in OF_WEIGHTS])
def test_half_as_many_examples_where_memory_runs_out(name: str) -> None:
    model = teaching("teaching-gpt2")
    arguments = example(name, model, even_ioi(model, 4))
    with tokens_seen(model) as seen:
        whole = arrays(METHODS[name].function(**arguments))
    most = max(seen) if name in ONE_AT_A_TIME else max(seen) // 2
    with tokens_seen(model, most) as again:
        found = arrays(METHODS[name].function(**arguments))
    if name not in ONE_AT_A_TIME:
        assert max(again) > most, "the control: it was tried"
    assert found.keys() == whole.keys()
    for key, numbers in whole.items():
        np.testing.assert_allclose(found[key], numbers, rtol=1e-4, atol=1e-5, err_msg=key)
