"""What a script has set in its process changes no number: dtypes, modes, threads, forks."""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import nnattr
from nnattr import LogitDiff, Model, Task
from nnattr.calls.registry import METHODS
from nnattr.results import Result
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


def heads(model: Model, task: Task) -> np.ndarray:
    return nnattr.activation_patching(model, task, LogitDiff()).values.values


@pytest.mark.parametrize("backend", ["local", "simulated"])
def test_threads_take_turns(backend: str) -> None:
    model = teaching("teaching-llama", backend)
    task = even_ioi(model)
    alone = heads(model, task)
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: heads(model, task), range(6)))
    for one in found:
        np.testing.assert_allclose(one, alone, atol=1e-6)


def test_threads_of_another_default_dtype_leave_it_as_it_was() -> None:
    model = teaching("teaching-llama")
    task = even_ioi(model)
    alone = heads(model, task)
    with default_dtype(torch.float64), ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: heads(model, task), range(6)))
        assert torch.get_default_dtype() is torch.float64
    for one in found:
        np.testing.assert_allclose(one, alone, atol=1e-6)


def test_inside_an_event_loop_and_in_its_threads() -> None:
    model = teaching("teaching-llama")
    task = even_ioi(model)

    async def asked() -> list[np.ndarray]:
        others = [asyncio.to_thread(heads, model, task) for _ in range(3)]
        return [heads(model, task), *await asyncio.gather(*others)]

    for one in asyncio.run(asked()):
        np.testing.assert_allclose(one, heads(model, task), atol=1e-6)


def answer(queue: Any, model: Model, task: Task) -> None:
    torch.set_num_threads(1)
    queue.put(heads(model, task))


def in_a_child(kind: str, model: Model, task: Task) -> np.ndarray:
    start: Any = multiprocessing.get_context(kind)
    queue = start.Queue()
    child = start.Process(target=answer, args=(queue, model, task), daemon=True)
    child.start()
    try:
        return queue.get(timeout=120)
    finally:
        child.terminate()


@pytest.mark.parametrize("kind", ["fork", "spawn"])
def test_in_a_child_process(kind: str) -> None:
    """A spawned one gets the model as a pickle."""
    model = teaching("teaching-llama")
    task = even_ioi(model)
    np.testing.assert_allclose(in_a_child(kind, model, task), heads(model, task), atol=1e-6)


def test_a_child_forked_while_a_job_runs_does_not_wait_for_it() -> None:
    model = teaching("teaching-llama")
    task = even_ioi(model)
    alone = heads(model, task)
    started, go_on = threading.Event(), threading.Event()

    def slow(logits: torch.Tensor, batch: Any) -> torch.Tensor:
        started.set()
        go_on.wait(120)
        return logits[:, -1, 5]

    with ThreadPoolExecutor(1) as threads:
        job = threads.submit(nnattr.activation_patching, model, task, slow, normalized=False)
        assert started.wait(60)
        try:
            found = in_a_child("fork", model, task)
        finally:
            go_on.set()
        job.result()
    np.testing.assert_allclose(found, alone, atol=1e-6)


def test_a_model_is_pickled_with_its_weights_as_they_are() -> None:
    model = nnattr.load("teaching-llama", device="cpu")
    with torch.no_grad():
        model.module.lm_head.weight.mul_(1.5)  # no file has these
    again = pickle.loads(pickle.dumps(model))
    assert (again.name, again.spec, again.backend) == (model.name, model.spec, model.backend)
    task = even_ioi(model)
    np.testing.assert_array_equal(heads(again, task), heads(model, task))
    with torch.no_grad():
        again.module.lm_head.weight.zero_()
    assert heads(model, task).any()


def test_a_model_on_a_server_says_why_it_is_not_pickled() -> None:
    model = teaching("teaching-llama")
    there = replace(model, backend=nnattr.NDIF(host="http://127.0.0.1:1"))
    with pytest.raises(
        nnattr.errors.BackendError, match=r"no weights here.*nnattr\.load\('teaching-llama'"
    ):
        pickle.dumps(there)


def test_an_edited_model_stays_edited_in_a_pickle() -> None:
    model = teaching("teaching-llama")
    task = even_ioi(model)
    edited = nnattr.edited(model, nnattr.edit.ablate((1, 2)))
    again = pickle.loads(pickle.dumps(edited))
    np.testing.assert_array_equal(heads(again, task), heads(edited, task))
    assert (heads(edited, task) != heads(model, task)).any()
