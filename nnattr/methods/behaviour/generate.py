"""What a model says next: continuations of prompts, generated in one trace."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import torch
from torch import Tensor

from nnattr.arguments import Between, Positive, Seed, checked
from nnattr.model.model import Model
from nnattr.model.prompts import Prompts, asked
from nnattr.runs.portions import TOKENS_PER_FORWARD

#: Beyond a million times the usual one all tokens are equally likely.
Temperature: TypeAlias = Annotated[float, Between(0, 1e6)]


@checked
def generate(
    model: Model,
    prompts: Prompts,
    *,
    max_new_tokens: Positive = 20,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
) -> list[str]:
    """Continue each prompt.

    Args:
        model: as `nnattr.load` gives it.
        prompts: one or several, a task, whose clean prompts are read, or tokens; unequal lengths
            are padded on the left.
        max_new_tokens: the most tokens to add; a prompt ends earlier with the end-of-text token.
        temperature: 0 takes the likeliest token at every step; above 0 tokens are drawn at random,
            the more evenly the higher.
        seed: of the draws; the same seed on the same machine gives the same text. (A sandboxed
            NDIF draws in another process, where no seed of ours reaches: it differs every time.)

    Returns:
        what was added to each prompt, without special tokens: plain text, for text is all that it
        is; prompts, options and seed, which make it again, are your own.

    Raises:
        TaskError: prompts that cannot be encoded, no room in the context, or a negative
            temperature.

    Cost: one forward pass of the prompts and one per new token, in one job.
    """
    _, tokens = asked(model, prompts, room=max_new_tokens)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
    if temperature > 0:
        options |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
    payload = {
        "prompts": tokens.tensors,
        "options": {**options, "pad_token_id": model.tokenizer.pad_token_id},
        "seed": seed,
        "rows": max(1, TOKENS_PER_FORWARD // (tokens.ids.shape[1] + max_new_tokens)),
    }
    found = model.run(generate_job, payload, label="generating").values["ids"]
    return [model.tokenizer.decode(row, skip_special_tokens=True) for row in found]


def generate_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """The new tokens of every prompt, as lists."""
    rows, ids = payload["rows"], payload["prompts"]["ids"]
    found: list[list[int]] = []
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        torch.manual_seed(payload["seed"])
        for start in range(0, len(ids), rows):
            chunk = {key: value[start : start + rows] for key, value in payload["prompts"].items()}
            found += continued(nn, chunk, payload["options"])
            tick(min(start + rows, len(ids)), len(ids))
    return {"ids": found}


def continued(nn: Any, prompts: dict[str, Tensor], options: dict[str, Any]) -> list[list[int]]:
    """The same for one chunk of prompts."""
    given = {"input_ids": prompts["ids"], "attention_mask": prompts["mask"].long()}
    with nn.generate(given, **options) as tracer:
        text = tracer.result.cpu()
    return text[:, prompts["ids"].shape[1] :].tolist()
