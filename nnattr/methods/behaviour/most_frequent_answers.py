"""Which words does the model begin its answers with? The contrast is read off, not guessed.

Asked harmful and harmless things, a chat model begins with a few words only, such as ``I`` and
``Here``; these make the answers and wrong answers of a task. The count is of the single most
probable first token, so a group of words that share the probability shows up as several rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from nnattr.arguments import Positive, checked
from nnattr.errors import TaskError
from nnattr.model.model import Model
from nnattr.tasks.form import Form
from nnattr.tokens import encode


@dataclass(frozen=True)
class Answer:
    """A first token of answers.

    Attributes:
        token: the token as text.
        id: its id.
        count: after how many prompts it is the most probable one.
        prob: its mean probability there.
    """

    token: str
    id: int
    count: int
    prob: float


class AnswerTable(tuple[Answer, ...]):
    """Answers, most frequent first; prints as a table."""

    def __repr__(self) -> str:
        rows = [
            f"{one.token!r:<16} {one.count:>5} times, mean probability {one.prob:.2f}"
            for one in self
        ]
        return "\n".join(rows)


@checked
def most_frequent_answers(
    model: Model,
    prompts: Sequence[str],
    *,
    top_k: Positive = 5,
    chat: bool = False,
    system: str | None = None,
    answer_prefix: str = "",
) -> AnswerTable:
    """The most frequent first tokens of the model's answers.

    ``most_frequent_answers(model, harmful, chat=True)[0].token`` is ``"I"`` for many a chat model.

    Args:
        model: from `nnattr.load`.
        prompts: what it is asked.
        top_k: how many rows at most.
        chat: put each prompt as a user's turn into the chat template.
        system: the system prompt of the chat.
        answer_prefix: text after the prompt, where the answer is awaited.

    Raises:
        TaskError: no prompts, one that the tokenizer or model cannot take, or no chat template.
        BackendError: the job failed where it ran.

    Cost: one forward pass of the prompts, in one job.
    """
    if isinstance(prompts, str):
        raise TaskError(f"prompts is one string, {prompts[:40]!r}; expected a list of prompts.")
    texts = Form(model.tokenizer, chat, system, answer_prefix).written(prompts)
    found = model.predict(encode(model.tokenizer, texts, verbatim=chat), top_k=1)
    probs: dict[int, list[float]] = defaultdict(list)
    for token, prob in zip(
        found.ids[:, -1, 0].tolist(), found.probs[:, -1, 0].tolist(), strict=True
    ):
        probs[token].append(prob)
    rows = [
        Answer(model.tokenizer.decode([token]), token, len(some), sum(some) / len(some))
        for token, some in probs.items()
    ]
    return AnswerTable(sorted(rows, key=lambda row: (-row.count, -row.prob))[:top_k])
