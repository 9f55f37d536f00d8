"""What these tests share: a small analysis on a model whose server is scripted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

import nnattr
from nnattr import NDIF, LogitDiff, Model, Scores, Task
from nnattr.teaching import folder
from tests.backend.scripted import Line, Script, blob, done, status

#: A key that must never be seen again.
KEY = "3f2504e0-4f89-11d3-9a0c-0305e82c3301"


@cache
def remote() -> Model:
    """A model of which only the outline is here."""
    return nnattr.load(folder("teaching-gpt2"), backend=NDIF(host="http://127.0.0.1:9"))


@cache
def task() -> Task:
    return nnattr.tasks.ioi(remote().tokenizer, n=2, seed=0)


def patch(script: Script, *, checkpoint: Path | None = None, **options: Any) -> Scores:
    """Activation patching on the scripted server; the options are those of `NDIF`."""
    model = replace(remote(), backend=NDIF(host=script.url, **options))
    return nnattr.activation_patching(model, task(), LogitDiff(), checkpoint=checkpoint)


def values(layers: int | None = None) -> dict[str, Any]:
    """What the job of `patch` returns when all goes well."""
    layers = remote().n_layers if layers is None else layers
    shape = (len(task()), layers, remote().n_heads, 1)
    return {
        "change": torch.arange(float(torch.tensor(shape).prod())).view(shape),
        "base": torch.tensor([-1.0, -2.0]),
        "source": torch.tensor([1.0, 2.0]),
        "engine": "suffix",
        "dtype": "torch.float32",
    }


def saying(*messages: str | bytes) -> Callable[[Line], None]:
    """A talk of these messages, after which the server hangs up."""

    def talk(line: Line) -> None:
        for message in messages:
            line.say(message)

    return talk


def returning(result: Any) -> Callable[[Line], None]:
    """A talk that ends well, with this as what the job saved."""
    return saying(status("QUEUED"), status("RUNNING"), done(blob({"result": result})))


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and everything that Python keeps with it."""
    todo: list[BaseException | None] = [error]
    seen: list[BaseException] = []
    while todo:
        one = todo.pop()
        if one is not None and one not in seen:
            seen.append(one)
            yield one
            todo += [one.__cause__, one.__context__]
