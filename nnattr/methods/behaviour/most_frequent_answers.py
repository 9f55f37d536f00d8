"""Which words does the model begin its answers with? The contrast is read off, not guessed.

Asked harmful and harmless things, a chat model begins with a few words only, such as ``I`` and
``Here``; these make the answers and wrong answers of a task. The count is of the single most
probable first token, so a group of words that share the probability shows up as several rows.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import xarray as xr

from nnattr.arguments import Positive, checked
from nnattr.errors import TaskError
from nnattr.jobs.record import as_task, provenance_of
from nnattr.model.model import Model
from nnattr.model.prompts import Prompts, as_prompts, texts_and_tokens
from nnattr.results import AnswerTable
from nnattr.tasks import Task
from nnattr.tasks.form import Form, encodable
from nnattr.tokens import Tokens, encode, token_texts


@checked
def most_frequent_answers(
    model: Model,
    prompts: Prompts,
    *,
    top_k: Positive = 5,
    chat: bool = False,
    system: str | None = None,
    answer_prefix: str = "",
) -> AnswerTable:
    """The most frequent first tokens of the model's answers.

    ``most_frequent_answers(model, harmful, chat=True)[0].token`` is ``"I"`` for many a chat model.
    As answers of a task take the ``id``, or this text as it is shown, its leading space included:
    it is what the token adds to the prompt.

    Args:
        model: from `nnattr.load`.
        prompts: what it is asked: one or several, a task, whose clean prompts are read, or tokens;
            the latter two are read as they are.
        top_k: how many rows at most.
        chat: put each prompt as a user's turn into the chat template.
        system: the system prompt of the chat.
        answer_prefix: text after the prompt, where the answer is awaited.

    Raises:
        TaskError: no prompts, one that the tokenizer or model cannot take, or no chat template.
        BackendError: the job failed where it ran.

    Cost: one forward pass of the prompts, in one job.
    """
    if isinstance(prompts, Task | Tokens):
        if chat or system is not None or answer_prefix:
            raise TaskError(
                "A task's prompts, and tokens, are encoded already: no chat, no prefix."
            )
        texts, tokens = texts_and_tokens(model, prompts, alone=True)
    else:
        form = Form(model.tokenizer, chat, system, answer_prefix)
        asked = as_prompts("prompts", prompts)
        texts = form.written(asked)
        tokens = encode(model.tokenizer, encodable(asked, texts), verbatim=chat)
    found = model.predict(tokens, top_k=1, task=prompts)
    probs: dict[int, list[float]] = defaultdict(list)
    for token, prob in zip(
        found.ids[:, -1, 0].tolist(), found.probs[:, -1, 0].tolist(), strict=True
    ):
        probs[token].append(prob)
    rows = [(token, len(some), sum(some) / len(some)) for token, some in probs.items()]
    best = sorted(rows, key=lambda row: (-row[1], -row[2]))[:top_k]
    given = {
        "prompts": prompts,
        "top_k": top_k,
        "chat": chat,
        "system": system,
        "answer_prefix": answer_prefix,
    }
    task = as_task(prompts, texts, tokens)
    made = provenance_of(model, task, method="most_frequent_answers", arguments=given)
    return AnswerTable(_data(model, best), made)


def _data(model: Model, rows: list[tuple[int, int, float]]) -> xr.Dataset:
    """Tokens' ids, counts and mean probabilities with names, and the tokens as text."""
    ids, counts, probs = zip(*rows, strict=True)
    words = np.array(token_texts(model.tokenizer, ids), dtype=object)
    columns = {"token": words, "id": list(ids), "count": list(counts), "prob": list(probs)}
    data = {name: ("answer", column) for name, column in columns.items()}
    return xr.Dataset(data, {"answer": np.arange(len(rows))})
