"""What a model says next: continuations of prompts, generated in one trace."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import torch
from torch import Tensor

from nnattr.arguments import Between, Positive, Seed, Share, checked
from nnattr.errors import TaskError
from nnattr.model.model import Model
from nnattr.model.prompts import Prompts, texts_and_tokens
from nnattr.runs.edits import generating
from nnattr.runs.inputs import PromptBatch
from nnattr.runs.logits import require_numbers
from nnattr.runs.portions import Portions
from nnattr.tokens import pad_id

#: Beyond a million times the usual one all tokens are equally likely.
Temperature: TypeAlias = Annotated[float, Between(0, 1e6)]
#: Below it only the likeliest token has a chance, and logits divided by it overflow.
COLDEST = 1e-6

#: Every option by which a checkpoint's generation_config would change what is likely or how it is
#: chosen, and the value at which it does nothing: a temperature is all that is applied here.
PLAIN: dict[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "renormalize_logits": False,
    "remove_invalid_values": False,
    "token_healing": False,
    **dict.fromkeys(
        (
            "top_k",
            "min_p",
            "top_h",
            "epsilon_cutoff",
            "eta_cutoff",
            "min_new_tokens",
            "max_time",
            "stop_strings",
            "bad_words_ids",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "exponential_decay_length_penalty",
            "suppress_tokens",
            "begin_suppress_tokens",
            "sequence_bias",
            "guidance_scale",
            "watermarking_config",
            "prompt_lookup_num_tokens",
        )
    ),
}


@checked
def generate(
    model: Model,
    prompts: Prompts,
    *,
    max_new_tokens: Positive = 20,
    temperature: Temperature = 0.0,
    top_k: Positive | None = None,
    top_p: Share | None = None,
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
        top_k: tokens are drawn from this many of the likeliest.
        top_p: tokens are drawn from the fewest whose probabilities sum to at least this.
        seed: of the draws; the same seed on the same machine gives the same text. (A sandboxed
            NDIF draws in another process, where no seed of ours reaches: it differs every time.)

    Returns:
        what was added to each prompt, without special tokens, so that ``prompt + added`` is the
        whole text: plain text, for text is all that it is; prompts, options and seed, which make it
        again, are your own.

    A checkpoint's own sampling options (``generation_config``: a repetition penalty, top-k, words
    that may not be said, ...) are not applied; its end-of-text tokens are.

    Raises:
        TaskError: prompts that cannot be encoded, no room in the context, or ``top_k`` or ``top_p``
            where nothing is drawn.

    Cost: one forward pass of the prompts and one per new token, in one job.
    """
    if 0 < temperature < COLDEST:
        raise TaskError(
            f"temperature is {temperature:g}, and logits divided by it are more than float32 "
            "holds; say 0, which takes the likeliest token."
        )
    if temperature == 0 and (top_k, top_p) != (None, None):
        raise TaskError(
            f"top_k is {top_k!r} and top_p {top_p!r}, and at temperature 0 the likeliest token is "
            "taken: nothing is drawn. Give a temperature, such as 1.0."
        )
    _, tokens = texts_and_tokens(model, prompts, room=max_new_tokens, alone=True)
    drawn = {"do_sample": True, "temperature": temperature, "top_k": top_k or 0}
    drawn["top_p"] = 1.0 if top_p is None else top_p
    options: dict[str, Any] = {
        **PLAIN,
        "max_new_tokens": max_new_tokens,
        **(drawn if temperature else {}),
        "pad_token_id": pad_id(model.tokenizer),
    }
    if not (model.accepts("past_key_values") or model.accepts("cache")):
        options["use_cache"] = False  # transformers would hand on the newest token alone
    payload = {
        "prompts": model.batch(tokens, prompts, room=max_new_tokens),
        "options": options,
        "head": model.spec.unembed,
        "seed": seed,
        "portions": model.portions(tokens.ids.shape[1] + max_new_tokens),
    }
    found = model.run(generate_job, payload, label="generating").values["ids"]
    rows = [[token for token in row if token >= 0] for row in found.tolist()]
    return [_added(model.tokenizer, *pair) for pair in zip(tokens.rows, rows, strict=True)]


def _added(tokenizer: Any, prompt: list[int], new: list[int]) -> str:
    """The text that new tokens add to a prompt's; a text's first space may be lost in decoding."""

    def text(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    before, whole = text(prompt), text([*prompt, *new])
    return whole[len(before) :] if whole.startswith(before) else text(new)


def generate_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """``ids`` [example, new token], -1 behind where all prompts of a portion have ended."""
    every, options = PromptBatch(**payload["prompts"]), payload["options"]
    portions = Portions(nn, tick, total=len(every), **payload["portions"])
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        torch.manual_seed(payload["seed"])
        for some in portions:
            with portions.attempt():
                found = continued(nn, every.take(some), options, payload["head"])
                missing = options["max_new_tokens"] - found.shape[1]
                portions.keep({"ids": torch.nn.functional.pad(found, (0, missing), value=-1)})
                portions.tick(1, 1)
    return portions.joined()


def continued(nn: Any, prompts: PromptBatch, options: dict[str, Any], head: str) -> Tensor:
    """The new tokens of each prompt [example, new token].

    Whether there are numbers is seen at the unembedding: an adapter around a model is not run when
    it generates, but what is inside of it.
    """
    given = {"input_ids": prompts.ids, "attention_mask": prompts.mask.long()}
    generating(nn, prompts)
    with nn.generate(given, **options) as tracer:
        first = nn.get(head).output[:, -1].amax(-1).cpu()  # NaN if one of them is
        text = tracer.result.cpu()
    require_numbers(first)
    return text[:, prompts.width :]
