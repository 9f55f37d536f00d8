"""What a model says next, as far as choosing examples needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from nnattr.tasks.form import IdGroups
from nnattr.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Predictions:
    """The most probable next tokens at the last positions of each prompt.

    Attributes:
        ids: the ``k`` most probable tokens, best first.
        logits: their logits.
        asked: the logits of the tokens that were asked about; a row with fewer of them than others
            is filled up with token 0.
        log_norm: the log of the sum of all exponentiated logits: ``(logits - log_norm).exp()`` is
            a probability.
    """

    ids: Int[Tensor, "example last k"]
    logits: Float[Tensor, "example last k"]
    asked: Float[Tensor, "example last word"]
    log_norm: Float[Tensor, "example last"]

    @property
    def probs(self) -> Float[Tensor, "example last k"]:
        """The probabilities of ``ids``."""
        return (self.logits - self.log_norm[..., None]).exp()


@runtime_checkable
class Predictor(Protocol):
    """What `Task.filter` needs of a model; `nnattr.Model` is one."""

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        ...

    def predict(
        self,
        tokens: Tokens,
        *,
        asked: IdGroups = (),
        top_k: int = 5,
        last: int = 1,
        task: Any = None,
    ) -> Predictions:
        """The most probable next tokens after each prompt."""
        ...
