"""A model whose circuit is known, as a value: prompts, answers and the edges that matter."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import nnattr
from nnattr import Model, Task
from tests.ground_truth.by_hand import LETTERS, OTHERS, V
from tests.oracles.patching import Pair

#: Effects by edge, ``"L0H0->L1H0.k"``: the change of the metric as a share of the two runs' gap.
Effects = dict[str, float]


@dataclass(frozen=True)
class Known:
    """A model, one pair of prompts, and what its edges do; every edge not named does nothing.

    Attributes:
        name: of the circuit.
        module: the Hugging Face model.
        clean, corrupted: the prompts, letters with spaces between them.
        answer, wrong: the tokens of which the metric is the difference of logits.
        edges: effects in denoising, clean into corrupted.
        noising: effects in noising, if they are worked out.
        together: effects of sets of edges, in denoising.
        noising_together: the same in noising.
        paths: effects of whole paths, ``"input->L0H0.v->logits"``, in denoising.
    """

    name: str
    module: Any
    clean: str
    corrupted: str
    answer: str
    wrong: str
    edges: Effects
    noising: Effects | None = None
    together: dict[tuple[str, ...], float] = field(default_factory=dict)
    noising_together: dict[tuple[str, ...], float] = field(default_factory=dict)
    paths: Effects = field(default_factory=dict)

    def load(self, folder: Path, **options: Any) -> Model:
        """Save model and tokenizer, and load them as anybody's are."""
        self.module.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        return nnattr.load(folder, **{"device": "cpu", **options})

    def task(self, model: Model) -> Task:
        """The pair."""
        return Task.from_pairs(
            [self.clean], [self.corrupted], [self.answer], [self.wrong], tokenizer=model.tokenizer
        )

    def pair(self, direction: str = "denoising") -> Pair:
        """The pair for the oracle."""
        clean, corrupted = (
            torch.tensor([[LETTERS.index(one) for one in side.split()]])
            for side in (self.clean, self.corrupted)
        )
        right, wrong = LETTERS.index(self.answer), LETTERS.index(self.wrong)
        base, source = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
        return Pair(base, source, lambda logits, _: logits[-1, right] - logits[-1, wrong])


def tokenizer() -> PreTrainedTokenizerFast:
    """Letters, each a token."""
    vocabulary = {one: i for i, one in enumerate([*LETTERS, *OTHERS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=OTHERS[1]))
    core.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    assert vocabulary[OTHERS[0]] == V
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=OTHERS[0], unk_token=OTHERS[1])
