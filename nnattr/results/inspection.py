"""What a model expects after a prompt, token by token of an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import xarray as xr

from nnattr.arguments import Natural, checked
from nnattr.errors import ResultError
from nnattr.results.base import Result
from nnattr.results.cells import counted
from nnattr.templates import fill

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Guess:
    """One token that might come next, with its rank: how many tokens are likelier.

    Equally likely tokens share a rank; in half precision there are many.
    """

    token: str
    logit: float
    probability: float
    rank: int


@dataclass(frozen=True)
class Step:
    """One next-token distribution: the likeliest tokens, and the answer's own if there is one."""

    answer: Guess | None
    top: tuple[Guess, ...]

    @property
    def rows(self) -> tuple[Guess, ...]:
        """The guesses, with the answer's own at the end if it is not among them."""
        if self.answer is None or any(guess is self.answer for guess in self.top):
            return self.top
        return (*self.top, self.answer)


@dataclass(frozen=True, eq=False, repr=False)
class Inspection(Result):
    """What a model expects after a prompt; prints as text, and as a table in a notebook.

    Made by `nnattr.inspect_prompt`.

    Attributes:
        data: by ``step``, one for each token of the answer or the one after the prompt, and
            ``rank``, the place in the list: ``token`` (text), ``token_id``, ``logit`` and
            ``probability``; of the answer's own tokens by ``step``: ``answer_token``,
            ``answer_id``, ``answer_logit``, ``answer_probability``, and ``answer_rank``, how many
            tokens are likelier (equally likely ones are not).
        provenance: how this was made.
        prompt: the prompt's tokens.
        answer: the answer's tokens; empty without an answer.
    """

    VARIABLES: ClassVar = {
        "token": ("step", "rank"),
        "logit": ("step", "rank"),
        "probability": ("step", "rank"),
    }

    prompt: tuple[str, ...]
    answer: tuple[str, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """The distributions, one for each token of the answer, or the one after the prompt."""
        return tuple(self._step(at) for at in range(self.data.sizes["step"]))

    @checked
    def to_dataframe(self) -> pd.DataFrame:
        """One row per step and guess; ``is_answer`` says which guess is the answer's token."""
        rows = [
            {"step": number, **vars(guess), "is_answer": guess is step.answer}
            for number, step in enumerate(self.steps)
            for guess in step.rows
        ]
        return pd.DataFrame(rows)

    @checked
    def plot(self, step: Natural = 0, *, title: str | None = None) -> go.Figure:
        """The probabilities of one step's tokens as bars, the answer's own marked.

        Args:
            step: which token of the answer.
            title: the first line above the figure; None writes one, ``""`` leaves it out.

        Raises:
            ResultError: there is no such step.
        """
        if not 0 <= step < len(self.steps):
            raise ResultError(f"There is no step {step}; expected 0 to {len(self.steps) - 1}.")
        return self._drawn("plot", self.steps[step], title=title)

    def _step(self, at: int) -> Step:
        here = self.data.isel(step=at)
        texts, logits, probabilities = (
            here[name].to_numpy().tolist() for name in ("token", "logit", "probability")
        )
        ranks = [sum(other > logit for other in logits) for logit in logits]
        guesses = list(map(Guess, texts, logits, probabilities, ranks))
        if not self.answer:
            return Step(None, tuple(guesses))
        own = Guess(
            *(here[f"answer_{name}"].item() for name in ("token", "logit", "probability", "rank"))
        )
        listed = self._place(here, own)
        if listed is not None:
            guesses[listed] = own
        return Step(own, tuple(guesses))

    def _place(self, here: xr.Dataset, own: Guess) -> int | None:
        """Where in the list of likeliest tokens the answer's own stands, if it does."""
        if "token_id" not in here:  # a file of before there were ids
            return own.rank if own.rank < here.sizes["rank"] else None
        ids, token = here["token_id"].to_numpy().tolist(), here["answer_id"].item()
        return ids.index(token) if token in ids else None

    def __str__(self) -> str:
        lines = [f"Prompt: {list(self.prompt)}"]
        if self.answer:
            lines.append(f"Answer: {list(self.answer)}")
        for step in self.steps:
            lines += ["", *([_headline(step.answer)] if step.answer else [])]
            lines += [
                f"{'>' if guess is step.answer else ' '} {guess.rank:>5}  "
                f"logit {guess.logit:7.2f}  prob {guess.probability:7.2%}  {guess.token!r}"
                for guess in step.rows
            ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Inspection({self.model}, {counted(len(self.steps), 'step')})\n{self}"

    def _repr_html_(self) -> str:
        tables: list[dict[str, Any]] = [
            {
                "caption": _headline(step.answer) if step.answer else "Next token",
                "rows": [(repr(guess.token), guess, guess is step.answer) for guess in step.rows],
            }
            for step in self.steps
        ]
        prompt = " ".join(map(repr, self.prompt))
        return fill("results/inspection.html.jinja", prompt=prompt, tables=tables)


def _headline(answer: Guess) -> str:
    return f"{answer.token!r} has rank {answer.rank} with probability {answer.probability:.2%}"
