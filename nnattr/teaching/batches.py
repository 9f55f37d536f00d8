"""Training batches: token ids, and for each target token how much it counts.

What a text asks cannot be foretold and counts little; its answer counts in full. Likewise the
first copy of a random sequence counts little, every later copy in full.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from nnattr.teaching.corpus import Document, repeats, texts

PROMPT, ANSWER, TAIL = 0.1, 1.0, 0.2


@dataclass(frozen=True)
class Batch:
    """Right-padded `ids` and the `weights` of the same shape; a weight of 0 is not learnt."""

    ids: Tensor
    weights: Tensor


def encode(tokenizer: PreTrainedTokenizerFast, document: Document) -> tuple[list[int], list[float]]:
    """The ids of a document, closed by the end-of-text token, and their weights."""
    prompt = tokenizer(document.prompt).input_ids
    answer = tokenizer(document.answer, add_special_tokens=False).input_ids
    tail = tokenizer(document.tail, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
    weights = [PROMPT] * len(prompt) + [ANSWER] * len(answer) + [TAIL] * len(tail)
    return prompt + answer + tail, weights


def structured(tokenizer: PreTrainedTokenizerFast, documents: list[Document]) -> Batch:
    """A batch of texts, padded on the right."""
    rows = [encode(tokenizer, document) for document in documents]
    width = max(len(ids) for ids, _ in rows)
    pad = tokenizer.pad_token_id
    return Batch(
        torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows]),
        torch.tensor([weights + [0.0] * (width - len(weights)) for _, weights in rows]),
    )


def repeated(tokenizer: PreTrainedTokenizerFast, rng: random.Random, tokens: int) -> Batch:
    """A batch of repeated random sequences, opened as the tokenizer opens every text."""
    opening = tokenizer("").input_ids
    rows, starts = repeats.rows(rng, ordinary_ids(tokenizer), tokens)
    ids = torch.tensor([opening + row for row in rows])
    positions = torch.arange(ids.shape[1])
    known = positions >= torch.tensor(starts)[:, None] + len(opening)
    return Batch(ids, torch.where(known, ANSWER, PROMPT))


def ordinary_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The ids of everything but the special tokens."""
    special = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids("<|begin|>")}
    return [index for index in range(len(tokenizer)) if index not in special]


def stream(
    tokenizer: PreTrainedTokenizerFast, seed: int, documents: int, tokens: int
) -> Iterator[tuple[Batch, Batch]]:
    """Pairs of batches without end: `documents` texts, and about `tokens` repeated tokens."""
    source, rng = texts(seed), random.Random(seed)
    while True:
        yield (
            structured(tokenizer, list(islice(source, documents))),
            repeated(tokenizer, rng, tokens),
        )


def loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The weighted mean cross-entropy of the next token."""
    logits = model(input_ids=batch.ids).logits[:, :-1]
    targets, weights = batch.ids[:, 1:], batch.weights[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none"
    )
    return (losses * weights.flatten()).sum() / weights.sum()
