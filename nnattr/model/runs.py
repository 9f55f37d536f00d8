"""Forward runs inside a job: plain functions that travel to a server.

A method's payload is cut into *asks*, chunks of examples that fit one forward pass. Rows of a batch
are ordered cell by cell: ``copies`` of the examples, one copy for each cell that is patched, so
``[copies * example, ...]`` unflattens to ``[copies, example, ...]``.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nnattr.model.sites import read

#: Tokens in one forward pass, unless a single example already has more.
TOKENS_PER_FORWARD = 4096


def asks(payload: dict[str, Any]) -> list[SimpleNamespace]:
    """The payload in chunks of at most ``payload["rows"]`` examples, each with its count ``n``."""
    total, rows = payload["base"]["ids"].shape[0], payload["rows"]
    found = []
    for start in range(0, total, rows):
        part = dict(payload, n=min(rows, total - start))
        for name in ("base", "source", "answers"):
            part[name] = {k: value[start : start + rows] for k, value in payload[name].items()}
        part["spots"] = payload["spots"][:, start : start + rows]
        found.append(SimpleNamespace(**part))
    return found


def gather(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The chunks' results as one, on the CPU."""
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}


def inputs(prompts: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's inputs for the prompts; a mask only where there is padding."""
    given = {"input_ids": prompts["ids"]}
    if not prompts["mask"].all():
        given["attention_mask"] = prompts["mask"].long()
    return given


def repeated(tensors: dict[str, Tensor], copies: int) -> dict[str, Tensor]:
    """``copies`` of the examples, one copy after another."""
    return {name: value.repeat(copies, *[1] * (value.dim() - 1)) for name, value in tensors.items()}


def run(
    nn: Any, prompts: dict[str, Tensor], places: list[tuple[str, str]], options: dict[str, Any]
) -> tuple[list[Tensor], Tensor]:
    """One forward without gradients: the activations at ``places`` (in order) and the logits."""
    width = prompts["ids"].shape[1]
    with nn.trace(inputs(prompts), **options):
        with torch.no_grad():
            # clones: a later in-place addition of the model would change what was read
            found = [read(nn, where, width).clone() for where in places]
            logits = nn.output.logits
    return found, logits


def measure(
    ask: SimpleNamespace, prompts: dict[str, Tensor], logits: Tensor, clean: Tensor, copies: int = 1
) -> Tensor:
    """The metric of ``copies`` of the prompts, as [copies * example].

    ``clean`` are the clean run's logits at the last position [example, d_vocab].
    """
    fields = repeated({**ask.answers, **prompts, "clean_logits": clean}, copies)
    batch = SimpleNamespace(**{name: value.to(logits.device) for name, value in fields.items()})
    return ask.metric(logits, batch)


def refusal(value: Any, n: int) -> dict[str, Any] | None:
    """What a job returns when the metric is not one number per example; None when it is."""
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if shape == (n,):
        return None
    return {"refused": ("metric", f"expected one number for each of {n} examples, got {shape}")}
