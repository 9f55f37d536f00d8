"""Metrics: one number per example, read from the logits; higher means more of the behaviour.

A metric is any function ``metric(logits, batch) -> [example]`` with ``logits`` of shape
[example, pos, d_vocab] (the last token of every prompt is position -1). ``batch`` has the
attributes

- ``answers``, ``wrong_answers``: token ids [example, word]; rows with fewer words are filled up,
  and ``answers_mask``, ``wrong_answers_mask`` say which entries count;
- ``ids``, ``mask``: the tokens of the run [example, pos], and which are not padding;
- ``clean_logits``: the clean run's own logits at the last position [example, d_vocab].

The classes here are such functions with a name. Metrics travel to the server: torch and the
standard library only. They compute in float32 whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch

from nnattr.axes import Logits, PerExample

Metric: TypeAlias = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class LogitDiff:
    r"""How much the model prefers the answer to the wrong answer.

    :math:`m = \ell(\text{answer}) - \ell(\text{wrong})` at the last position, in logits; a group of
    answers counts with the mean of its logits. Linear in the residual stream up to the final norm,
    which makes it the field's usual choice (Wang et al. 2022). It does not see whether either
    answer is probable at all.
    """

    last_only: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("answers", "wrong_answers")

    def __call__(self, logits: Logits, batch: Any) -> PerExample:
        """Measure each example."""
        last = logits[:, -1].float()
        right = group_mean(last, batch.answers, batch.answers_mask)
        return right - group_mean(last, batch.wrong_answers, batch.wrong_answers_mask)


@dataclass(frozen=True)
class LogProb:
    r"""The log-probability of the answer (of the whole group of answers, where it is one), in nats.

    :math:`m = \log \sum_{a} p(a)` at the last position.
    """

    last_only: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("answers",)

    def __call__(self, logits: Logits, batch: Any) -> PerExample:
        """Measure each example."""
        return group_log_prob(logits[:, -1].float(), batch.answers, batch.answers_mask)


@dataclass(frozen=True)
class Prob:
    """The probability of the answer (or of the group of answers), between 0 and 1.

    Saturates: near 0 and 1 its gradient vanishes, and attribution patching underestimates.
    """

    last_only: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("answers",)

    def __call__(self, logits: Logits, batch: Any) -> PerExample:
        """Measure each example."""
        return group_log_prob(logits[:, -1].float(), batch.answers, batch.answers_mask).exp()


@dataclass(frozen=True)
class KL:
    r"""The divergence of the run from the clean run at the last position, in nats.

    :math:`m = \sum_v p_{clean}(v) \log (p_{clean}(v) / p(v))`; 0 for the clean run itself. Its
    gradient at the clean run is 0, so attribution patching in the noising direction says 0
    everywhere; use denoising there.
    """

    last_only: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, logits: Logits, batch: Any) -> PerExample:
        """Measure each example."""
        run = logits[:, -1].float().log_softmax(-1)
        clean = batch.clean_logits.float().log_softmax(-1)
        return (clean.exp() * (clean - run)).sum(-1)


@dataclass(frozen=True)
class Loss:
    """Mean next-token cross-entropy over the prompt's own tokens, in nats per token.

    Higher is *worse* for the model, unlike the other metrics.
    """

    last_only: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, logits: Logits, batch: Any) -> PerExample:
        """Measure each example."""
        predicted = logits[:, :-1].float().log_softmax(-1)
        loss = -predicted.gather(-1, batch.ids[:, 1:, None])[..., 0]
        counted = batch.mask[:, 1:] & batch.mask[:, :-1]
        return (loss * counted).sum(-1) / counted.sum(-1)


#: The metrics by name, as the command line and configuration files know them.
METRICS: dict[str, Callable[[], Metric]] = {
    "LogitDiff": LogitDiff,
    "LogProb": LogProb,
    "Prob": Prob,
    "KL": KL,
    "Loss": Loss,
}


def group_mean(logits: torch.Tensor, words: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean logit of each example's words [example, word]."""
    found = logits.gather(-1, words).where(mask, torch.zeros((), device=logits.device))
    return found.sum(-1) / mask.sum(-1)


def group_log_prob(logits: torch.Tensor, words: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The log-probability that the next token is one of each example's words."""
    found = logits.log_softmax(-1).gather(-1, words)
    return found.masked_fill(~mask, float("-inf")).logsumexp(-1)


def describe(metric: Metric) -> str:
    """The metric's name as results record it."""
    return (
        repr(metric)
        if type(metric).__name__ in METRICS
        else getattr(metric, "__qualname__", repr(metric))
    )
