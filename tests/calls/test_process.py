"""What a script has set in its process changes no number: dtypes, devices, modes, threads, forks."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import nnattr
from nnattr import LogitDiff, Model, Task
from nnattr.calls.registry import METHODS
from nnattr.results import Result
from nnattr.torch_state import plain_torch
from tests.methods.common import even_ioi, teaching
from tests.support.calls import example

#: The methods that serve a rotary model: a table of positions it has none of.
NAMES = [name for name in METHODS if name != "weights.position_pattern"]
Context = Callable[[], AbstractContextManager[Any]]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def no_gradients_at_all() -> Iterator[None]:
    torch.set_grad_enabled(False)
    try:
        yield
    finally:
        torch.set_grad_enabled(True)


STATES: dict[str, Context] = {
    "default float64": lambda: default_dtype(torch.float64),
    "default bfloat16": lambda: default_dtype(torch.bfloat16),
    "default float16": lambda: default_dtype(torch.float16),
    "default device": lambda: default_device("meta"),
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "gradients off": no_gradients_at_all,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def plain(found: Any) -> dict[str, Any]:
    """The numbers of whatever a method returns."""
    if isinstance(found, Result):
        return {str(name): values.values for name, values in found.data.items()}
    return {"": found}


@cache
def expected(name: str) -> dict[str, Any]:
    model = teaching("teaching-llama")
    return plain(METHODS[name].function(**example(name, model, even_ioi(model))))


def same(found: Any, name: str) -> None:
    values = plain(found)
    assert values.keys() == expected(name).keys()
    for key, value in expected(name).items():
        np.testing.assert_equal(values[key], value, err_msg=f"{name} {key}")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("when", ["around the call", "around everything"])
def test_what_is_set_in_torch_changes_no_number(state: str, when: str) -> None:
    model = teaching("teaching-llama")
    task = even_ioi(model)
    for name in NAMES:
        expected(name)  # before anything is set
    with STATES[state]():
        if when == "around everything":
            model = nnattr.load("teaching-llama", device="cpu")
            task = even_ioi(model)
        for name in NAMES:
            same(METHODS[name].function(**example(name, model, task)), name)
