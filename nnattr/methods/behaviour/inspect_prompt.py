"""Looking at one prompt: what does the model expect at each token of an answer?

The prompt and the answer are run once, as one text; token by token of the answer, the k likeliest
next tokens are listed with the answer's own rank. This is what TransformerLens prints with
``test_prompt``. The answer's tokens are given to the model one after another (teacher forcing): a
later token's probability is that *after* the earlier ones, whether or not the model would say them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from nnattr.errors import TaskError
from nnattr.model.model import Model
from nnattr.model.prompts import listed, prepared
from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.logits import top_tokens
from nnattr.templates import fill
from nnattr.tokens import prompt_ids

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Guess:
    """One token that might come next, with its rank (0 is the likeliest)."""

    token: str
    logit: float
    probability: float
    rank: int


@dataclass(frozen=True)
class Step:
    """One next-token distribution: the likeliest tokens, and the answer's own if there is one."""

    answer: Guess | None
    top: tuple[Guess, ...]


@dataclass(frozen=True)
class Inspection:
    """What a model expects after a prompt; prints as text, and as a table in a notebook.

    Attributes:
        prompt: the prompt's tokens.
        answer: the answer's tokens; empty without an answer.
        steps: one for each token of the answer, or the one after the prompt.
    """

    prompt: tuple[str, ...]
    answer: tuple[str, ...]
    steps: tuple[Step, ...]

    def to_dataframe(self) -> pd.DataFrame:
        """One row per step and guess; ``answer`` says which guess is the answer's token."""
        import pandas as pd

        rows = [
            {"step": number, **vars(guess), "is_answer": guess is step.answer}
            for number, step in enumerate(self.steps)
            for guess in _rows(step)
        ]
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        lines = [f"Prompt: {list(self.prompt)}"]
        if self.answer:
            lines.append(f"Answer: {list(self.answer)}")
        for step in self.steps:
            lines += ["", *([_headline(step.answer)] if step.answer else [])]
            lines += [
                f"{'>' if guess is step.answer else ' '} {guess.rank:>5}  "
                f"logit {guess.logit:7.2f}  prob {guess.probability:7.2%}  {guess.token!r}"
                for guess in _rows(step)
            ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        tables = [
            {
                "caption": _headline(step.answer) if step.answer else "Next token",
                "rows": [(repr(guess.token), guess, guess is step.answer) for guess in _rows(step)],
            }
            for step in self.steps
        ]
        prompt = " ".join(map(repr, self.prompt))
        return fill("results/inspection.html.jinja", prompt=prompt, tables=tables)


def inspect_prompt(
    model: Model, prompt: str, answer: str | None = None, top_k: int = 10
) -> Inspection:
    """What the model expects after a prompt, at each token of an answer.

    Args:
        model: as `nnattr.load` gives it.
        prompt: the prompt; special tokens are added as the tokenizer does it.
        answer: what is to follow, with its leading space (``" Mary"``); any number of tokens.
            Without it, only the next token is looked at.
        top_k: how many of the likeliest tokens to list.

    Raises:
        TaskError: the prompt or the answer cannot be encoded, or is too long.

    Cost: one forward pass; only the tables come back.
    """
    listed("prompt", [prompt])
    if top_k < 1:
        raise TaskError(f"top_k is {top_k}; expected at least 1.")
    added = _added(model, prompt, answer)
    tokens = prepared(model, [prompt], room=len(added))
    ids = torch.cat([tokens.ids, torch.tensor([added], dtype=torch.long)], 1)
    start = tokens.ids.shape[1] - 1
    payload = {
        "ids": ids,
        "start": start,
        "answer": torch.tensor(added) if added else None,
        "top_k": top_k,
    }
    found = model.run(inspect_job, payload, label="inspecting a prompt").values
    decode = model.tokenizer.decode
    steps = [_step(decode, found, at, added) for at in range(max(1, len(added)))]
    return Inspection(tokens.strings[0], tuple(decode([i]) for i in added), tuple(steps))


def inspect_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """The reduced distribution at each token that is followed by one of the answer."""
    ids = payload["ids"]
    count = 1 if payload["answer"] is None else len(payload["answer"])
    prompts = PromptBatch(ids, torch.ones_like(ids, dtype=torch.bool))
    with nn.trace(**inputs(prompts)):
        with torch.no_grad():
            logits = nn.output.logits[0, payload["start"] : payload["start"] + count]
            found = top_tokens(logits, payload["top_k"], payload["answer"])
    return {key: value.cpu() for key, value in found.items()}


def _added(model: Model, prompt: str, answer: str | None) -> list[int]:
    """The ids that the answer adds behind the prompt's own."""
    if answer is None:
        return []
    before, after = (
        prompt_ids(model.tokenizer, prompt),
        prompt_ids(model.tokenizer, prompt + answer),
    )
    added = after[len(before) :]
    if after[: len(before)] != before:  # the answer merged with the prompt's last word
        added = model.tokenizer(answer, add_special_tokens=False)["input_ids"]
    if not added:
        raise TaskError(f"The answer {answer!r} to {prompt!r} gives no tokens.")
    return list(added)


def _step(decode: Any, found: dict[str, Any], at: int, added: list[int]) -> Step:
    columns = (found[key][at].tolist() for key in ("token", "logit", "probability"))
    guesses = [
        Guess(decode([token]), logit, probability, rank)
        for rank, (token, logit, probability) in enumerate(zip(*columns, strict=True))
    ]
    if not added:
        return Step(None, tuple(guesses))
    rank = int(found["answer_rank"][at])
    logit, probability = (float(found[f"answer_{key}"][at]) for key in ("logit", "probability"))
    own = Guess(decode([added[at]]), logit, probability, rank)
    if rank < len(guesses):
        guesses[rank] = own
    return Step(own, tuple(guesses))


def _rows(step: Step) -> list[Guess]:
    """The guesses, with the answer's own at the end if it is not among them."""
    hidden = step.answer is not None and all(guess is not step.answer for guess in step.top)
    return [*step.top, step.answer] if hidden and step.answer else list(step.top)


def _headline(answer: Guess) -> str:
    return f"{answer.token!r} has rank {answer.rank} with probability {answer.probability:.2%}"
