"""How good a teaching model is, on what training never showed it, and whether it has its circuits.

Every number comes from held-out data: names that never met in training, entities that were only
stated and never asked about, requests whose verb and object never came together, and random
sequences of a fresh seed. `evaluate` gives them all in one flat dictionary.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from nnattr.tasks.vocabulary import NO_WORDS, YES_WORDS
from nnattr.teaching import circuits
from nnattr.teaching.batches import ordinary_ids
from nnattr.teaching.corpus import Document, facts, ioi, requests, small

#: metric -> what a shipped model must reach; every one is "at least".
REQUIRED = {
    "ioi_accuracy": 0.99,
    "ioi_logit_difference": 3.0,
    "notebook_accuracy": 1.0,
    "repeat_loss_ratio": 10.0,
    "facts_accuracy": 0.95,
    "requests_accuracy": 0.95,
    "induction_head_score": 0.5,
    "ioi_strongest_head_effect": 0.1,
}


@torch.no_grad()
def last_logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[str]
) -> Tensor:
    """The logits of the token after each prompt: [prompt, vocabulary]."""
    rows = tokenizer(prompts).input_ids
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    logits = model(input_ids=ids).logits
    return logits[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]


def token_ids(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """The single token of each text."""
    rows = tokenizer(texts, add_special_tokens=False).input_ids
    return torch.tensor([row for [row] in rows])


def differences(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, documents: list[Document]
) -> Tensor:
    """Logit of the answer minus logit of the wrong answer, for each document."""
    logits = last_logits(model, tokenizer, [document.prompt for document in documents])
    right = token_ids(tokenizer, [document.answer for document in documents])
    wrong = token_ids(tokenizer, [document.wrong for document in documents])
    rows = torch.arange(len(documents))
    return logits[rows, right] - logits[rows, wrong]


def group_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, documents: list[Document]
) -> float:
    """Share of yes/no questions for which all words of the right side together win."""
    logits = last_logits(model, tokenizer, [document.prompt for document in documents])
    yes, no = (
        logits[:, token_ids(tokenizer, [f" {word}" for word in words])].logsumexp(-1)
        for words in (YES_WORDS, NO_WORDS)
    )
    truth = torch.tensor([document.answer.strip() in YES_WORDS for document in documents])
    return ((yes > no) == truth).float().mean().item()


def greater_than_mass(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, documents: list[Document]
) -> float:
    """Mean probability of a two-digit number greater than the one in the text."""
    logits = last_logits(model, tokenizer, [document.prompt for document in documents])
    numbers = token_ids(tokenizer, [f"{number:02d}" for number in range(100)])
    probabilities = logits.softmax(-1)[:, numbers]
    years = torch.tensor([int(document.prompt.split(" to the ")[0][-2:]) for document in documents])
    return (probabilities * (torch.arange(100) > years[:, None])).sum(-1).mean().item()


@torch.no_grad()
def repeat_metrics(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rng: random.Random, rows: int = 8
) -> dict[str, float]:
    """Loss on the first and on the second copy of random sequences of 10 to 40 tokens.

    Both losses are means over all tokens of a copy (the very first token of a text without
    an opening token has no prediction).
    """
    opening = tokenizer("").input_ids
    first, second = [], []
    for length in range(10, 41, 5):
        sequences = [rng.choices(ordinary_ids(tokenizer), k=length) for _ in range(rows)]
        ids = torch.tensor([opening + sequence * 2 for sequence in sequences])
        logits = model(input_ids=ids).logits[:, :-1].transpose(1, 2)
        losses = nn.functional.cross_entropy(logits, ids[:, 1:], reduction="none")
        second.append(losses[:, -length:].flatten())
        first.append(losses[:, :-length].flatten())
    before, after = torch.cat(first).mean().item(), torch.cat(second).mean().item()
    return {
        "repeat_first_loss": before,
        "repeat_second_loss": after,
        "repeat_loss_ratio": before / after,
    }


def draw(maker: Callable[[random.Random], Document], seed: int, count: int) -> list[Document]:
    """`count` documents of a generator, from its own stream of random numbers."""
    rng = random.Random(f"evaluate {seed}")
    return [maker(rng) for _ in range(count)]


def evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seed: int = 0
) -> dict[str, float | str]:
    """All held-out metrics, and the evidence for the circuits behind them."""
    model.eval()

    def gaps(documents: list[Document]) -> Tensor:
        return differences(model, tokenizer, documents)

    def accuracy(documents: list[Document]) -> float:
        return (gaps(documents) > 0).float().mean().item()

    pairs = draw(ioi.heldout, seed, 500)
    return {
        "ioi_accuracy": accuracy(pairs),
        "ioi_logit_difference": gaps(pairs).mean().item(),
        "notebook_accuracy": accuracy(list(ioi.NOTEBOOK)),
        "notebook_logit_difference": gaps(list(ioi.NOTEBOOK)).mean().item(),
        **repeat_metrics(model, tokenizer, random.Random(f"repeats {seed}")),
        "facts_accuracy": group_accuracy(model, tokenizer, draw(facts.heldout, seed, 1000)),
        "requests_accuracy": accuracy(draw(requests.heldout, seed, 200)),
        "greater_than_probability": greater_than_mass(
            model, tokenizer, draw(small.greater_than, seed, 200)
        ),
        "pronoun_accuracy": accuracy(draw(small.pronoun, seed, 200)),
        "agreement_accuracy": accuracy(draw(small.agreement, seed, 200)),
        **circuits.attention_scores(model, tokenizer, random.Random(f"heads {seed}")),
        **circuits.strongest_heads(model, lambda: gaps(pairs[:50]).mean().item()),
    }


def missed(metrics: dict[str, float | str]) -> dict[str, float]:
    """The required metrics that were not reached, with what was required."""
    return {name: least for name, least in REQUIRED.items() if float(metrics[name]) < least}
