"""Whether a prompt beside longer ones is read as it is alone.

Padding changes nothing in the families of transformers: that is tested for every one. A few things
make it otherwise. Rotary embeddings that are scaled by the longest sequence of a batch (LongRoPE,
dynamic NTK) read a short prompt beside a long one with the long one's angles; somebody's hook may
count positions from where a batch begins; an attention of somebody's own may leave the mask out;
and what a family's own code on the Hub does, nobody tested. So the prompt with the most padding is
run beside the longest one and by itself, and must give the same logits:

=======================================  ========================================================
of a model with such parts (`doubtful`)  in every call that pads, wherever it runs
of any other whose module is here        once, and again when its code has changed (`code`)
=======================================  ========================================================

Whether padding matters is decided by code and settings, not by weights, so once is enough where
all of the code is known. In every call it would cost GPT-2 small a seventh of the shortest patching
call and more than a gradient's (two batches of two prompts, two passes each).

Cost: a walk over the modules where a call pads; three prompts a batch where it is tried.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from inspect import isfunction
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from nnattr.errors import TaskError
from nnattr.runs.as_built import as_built
from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.tolerance import same_logits

#: Packages whose modules read a padded prompt as it is alone.
TESTED = ("torch", "transformers", "peft", "bitsandbytes", "torchao", "optimum", "accelerate")
#: With which code each module was last seen to read a padded prompt as it is alone.
SEEN: WeakKeyDictionary[Any, tuple[Any, ...]] = WeakKeyDictionary()


def due(module: Any, config: Any, width: int, *, here: bool) -> bool:
    """Whether prompts of up to ``width`` tokens are to be held against themselves now.

    Args:
        module: the Hugging Face module.
        config: its configuration.
        width: tokens of the longest prompt.
        here: whether the module runs in this process, with whatever code there is.
    """
    unseen = here and SEEN.get(module) != code(module, config)
    return unseen or doubtful(module, config, width)


def seen(module: Any, config: Any) -> None:
    """Keep that the module, as it is, reads a padded prompt as it is alone."""
    SEEN[module] = code(module, config)


def code(module: Any, config: Any) -> tuple[Any, ...]:
    """All that decides what a module does with padding, but hooks and forwards of single parts.

    The functions of the files that its classes are from, among them what a class's forward calls;
    its attention kernel; and its settings.
    """
    kinds = {type(part) for part in module.modules()}
    homes = [sys.modules.get(home) for home in {kind.__module__ for kind in kinds}]
    files = [vars(home).values() for home in homes if home is not None]
    functions = {one for file in files for one in file if isfunction(one)}
    functions |= {kind.forward for kind in kinds}
    return functions, _attention(config), str(config.to_dict())


def _attention(config: Any) -> Any:
    """The function of transformers' registry that computes attention; None of an eager one."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS.get(getattr(config, "_attn_implementation", None))


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
        no_numbers = bool(alone.isnan().any())  # each job says so of what it reads
        same.append(no_numbers or same_logits(beside, alone))
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
