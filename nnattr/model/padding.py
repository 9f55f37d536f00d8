"""Whether a prompt beside longer ones is read as it is alone.

Padding changes nothing in the families of transformers: that is tested for every one. A few things
make it otherwise. Rotary embeddings that are scaled by the longest sequence of a batch (LongRoPE,
dynamic NTK) read a short prompt beside a long one with the long one's angles; somebody's hook may
count positions from where a batch begins; and what a family's own code on the Hub does, nobody
tested. Where a model has such, and a call pads, the prompt with the most padding is run beside the
longest one and by itself before anything is computed, and must give the same logits.

Cost: nothing for other models, and a walk over the modules where a call pads; three prompts where
it is tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from nnattr.errors import TaskError
from nnattr.runs.as_built import as_built
from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.tolerance import same_logits

#: Packages whose modules read a padded prompt as it is alone.
TESTED = ("torch", "transformers", "peft", "bitsandbytes", "torchao", "optimum", "accelerate")


def doubtful(module: Any, config: Any, width: int) -> bool:
    """Whether padding may change what a model does with prompts of up to ``width`` tokens."""
    parts = list(module.modules())
    foreign = any(type(part).__module__.partition(".")[0] not in TESTED for part in parts)
    return foreign or not all(map(as_built, parts)) or any(_scales_by_length(config, width))


def _scales_by_length(config: Any, width: int) -> Iterator[bool]:
    """Of each kind of rotary embedding whether the longest sequence, if so long, decides on it."""
    told = getattr(config, "rope_parameters", None) or {}
    kinds = [told, *(one for one in told.values() if isinstance(one, dict))]
    for one in kinds:
        kind = one.get("rope_type") or ""
        limit = one.get("original_max_position_embeddings") or 0
        yield (kind == "longrope" or "dynamic" in kind) and width > limit


def padded(payload: Mapping[str, Any]) -> list[dict[str, Tensor]]:
    """Of each batch of prompts in a job's payload that has padding the longest and the shortest."""
    found = []
    for one in payload.values():
        if isinstance(one, dict) and {"ids", "mask"} <= one.keys() and not one["mask"].all():
            lengths = one["mask"].sum(1)
            two = torch.stack([lengths.argmax(), lengths.argmin()])
            found.append({"ids": one["ids"][two], "mask": one["mask"][two]})
    return found


def alone_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """Of some batches of two prompts whether the second, shorter one is read there as alone."""
    same = []
    for one in payload["batches"]:
        both = PromptBatch(**one)
        short = both.take(slice(1, 2)).cut(int((~both.mask[1]).sum()))
        with nn.trace(**inputs(both, payload["options"])):
            with torch.no_grad():
                beside = nn.output.logits[1:, -1].clone()
        with nn.trace(**inputs(short, payload["options"])):
            with torch.no_grad():
                alone = nn.output.logits[:, -1].clone()
        same.append(same_logits(beside, alone))
    return {"same": same}


def require_alike(name: str, batches: list[dict[str, Tensor]], same: list[bool]) -> None:
    """Refuse prompts that the model reads otherwise beside each other.

    Raises:
        TaskError: naming their lengths.
    """
    for one, alike in zip(batches, same, strict=True):
        long, short = one["mask"].sum(1).tolist()
        if not alike:
            raise TaskError(
                f"{name} reads a prompt of {short} tokens otherwise beside one of {long} than "
                "alone: what it does with positions depends on the batch (rotary embeddings scaled "
                "by the longest prompt, or somebody's hook). Give prompts of equal length, or "
                "those on either side of the model's limit in calls of their own."
            )
