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
from nnattr.teaching.tokenizer import SPECIAL_TOKENS

PROMPT, ANSWER, TAIL = 0.03, 1.0, 0.1


@dataclass(frozen=True)
class Course:
    """One course of training, with its own optimizers: what is learnt, how long and how fast."""

    mixture: str
    steps: int
    easy_steps: int
    documents: int
    tokens: int
    muon_rate: float
    adamw_rate: float
    warmup: int = 50
    last_rate: float = 0.02
    weight_decay: float = 0.03


@dataclass(frozen=True)
class Batch:
    """Right-padded `ids` and the `weights` of the same shape; a weight of 0 is not learnt."""

    ids: Tensor
    weights: Tensor


def encode(tokenizer: PreTrainedTokenizerFast, document: Document) -> tuple[list[int], list[float]]:
    """The ids of a document, closed by the end-of-text token, and their weights."""
    prompt = tokenizer(document.prompt).input_ids
    answer = tokenizer(document.answer, add_special_tokens=False).input_ids
    tail = [*tokenizer(document.tail, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
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


def repeated(
    tokenizer: PreTrainedTokenizerFast, rng: random.Random, tokens: int, *, easy: bool
) -> Batch:
    """A batch of repeated random sequences, opened as the tokenizer opens every text."""
    opening = tokenizer("").input_ids
    rows, starts = repeats.rows(rng, ordinary_ids(tokenizer), tokens, easy=easy)
    ids = torch.tensor([opening + row for row in rows])
    positions = torch.arange(ids.shape[1])
    known = positions >= torch.tensor(starts)[:, None] + len(opening)
    return Batch(ids, torch.where(known, ANSWER, PROMPT))


def ordinary_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The ids of everything but the special tokens, which come first."""
    return list(range(len(SPECIAL_TOKENS), len(tokenizer)))


def stream(tokenizer: PreTrainedTokenizerFast, course: Course, seed: int) -> Iterator[list[Batch]]:
    """The batches of each step of a course.

    The first `easy_steps` steps have only about `tokens` repeated tokens, of few kinds: copying
    is learnt first, and the other tasks build on it. Then come `documents` texts and half as
    many repeated tokens.
    """
    source, rng = texts(seed, course.mixture), random.Random(seed)
    for _ in range(course.easy_steps):
        yield [repeated(tokenizer, rng, course.tokens, easy=True)]
    while True:
        documents = list(islice(source, 4 * course.documents))
        for chunk in of_like_length(documents, course.documents, rng):
            repeats_too = repeated(tokenizer, rng, course.tokens // 2, easy=False)
            yield [repeats_too, structured(tokenizer, chunk)]


def of_like_length(
    documents: list[Document], size: int, rng: random.Random
) -> list[list[Document]]:
    """Chunks of documents of like length, so that little padding is computed, in random order."""
    ordered = sorted(documents, key=lambda document: len(document.text))
    chunks = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    rng.shuffle(chunks)
    return chunks


def loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The weighted mean cross-entropy of the next token."""
    logits = model(input_ids=batch.ids).logits[:, :-1]
    targets, weights = batch.ids[:, 1:], batch.weights[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none"
    )
    return (losses * weights.flatten()).sum() / weights.sum()
