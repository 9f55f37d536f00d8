"""Looking at one prompt: what does the model expect at each token of an answer?

The prompt and the answer are run once, as one text; token by token of the answer, the k likeliest
next tokens are listed with the answer's own rank. This is what TransformerLens prints with
``test_prompt``. The answer's tokens are given to the model one after another (teacher forcing): a
later token's probability is that *after* the earlier ones, whether or not the model would say them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from nnattr.arguments import Positive, checked
from nnattr.errors import TaskError
from nnattr.jobs.record import as_task, provenance_of, untold
from nnattr.model.model import Model
from nnattr.model.prompts import Prompts, texts_and_tokens
from nnattr.results import Inspection
from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.logits import require_numbers, top_tokens
from nnattr.tasks import Task
from nnattr.tokens import continuations, token_strings, token_texts


@checked
def inspect_prompt(
    model: Model,
    prompt: Prompts,
    answer: str | int | Sequence[int] | None = None,
    *,
    top_k: Positive = 10,
) -> Inspection:
    """What the model expects after a prompt, at each token of an answer.

    Args:
        model: as `nnattr.load` gives it.
        prompt: the prompt; a BOS is put before it as the tokenizer does it. Or a list, a task
            (its clean prompt) or tokens of one prompt.
        answer: what is to follow, with its leading space (``" Mary"``); any number of tokens, or
            their ids. Without it, and without a task that has one, only the next token is shown.
        top_k: how many of the likeliest tokens to list.

    Raises:
        TaskError: the prompt or the answer cannot be encoded, or is too long.

    Cost: one forward pass; only the tables come back.
    """
    texts, tokens = texts_and_tokens(model, prompt, what="prompt")
    if len(texts) != 1:
        raise TaskError(f"There are {len(texts)} prompts; one is inspected, such as task[[0]].")
    if answer is None and isinstance(prompt, Task) and not prompt.sequence_ids:
        added = [group[0] for group in prompt.answer_ids]
    else:
        added = _added(model, texts[0], answer)
    texts_and_tokens(model, tokens, room=len(added))
    ids = torch.cat([tokens.ids, torch.tensor([added], dtype=torch.long)], 1)
    whole = {"ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool)}
    start = tokens.ids.shape[1] - 1
    payload = {
        "prompts": model.batch(tokens, prompt, room=len(added)) | whole,
        "start": start,
        "answer": torch.tensor(added) if added else None,
        "top_k": top_k,
    }
    outcome = model.run(inspect_job, payload, label="inspecting a prompt")
    said = tuple(token_texts(model.tokenizer, added))
    given = {"answer": answer, "top_k": top_k, **untold(prompt, "prompt")}
    task = as_task(prompt, texts, tokens)
    made = provenance_of(model, task, method="inspect_prompt", arguments=given, outcome=outcome)
    return Inspection(
        _data(model.tokenizer, outcome.values, added), made, tuple(tokens.strings[0]), said
    )


def inspect_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """The reduced distribution at each token that is followed by one of the answer."""
    prompts = PromptBatch(**payload["prompts"])
    count = 1 if payload["answer"] is None else len(payload["answer"])
    with nn.trace(**inputs(prompts)):
        with torch.no_grad():
            logits = nn.output.logits[0, payload["start"] : payload["start"] + count]
            found = top_tokens(logits, payload["top_k"], payload["answer"])
    require_numbers(found["logit"])
    return {key: value.cpu() for key, value in found.items()}


def _added(model: Model, prompt: str, answer: str | int | Sequence[int] | None) -> list[int]:
    """The ids that the answer adds behind the prompt's own."""
    if answer is None:
        return []
    if isinstance(answer, str):
        (added,) = continuations(model.tokenizer, [prompt], [answer])
    else:
        added = [answer] if isinstance(answer, int) else list(answer)
    if not added:
        raise TaskError(f"The answer {answer!r} to {prompt!r} gives no tokens.")
    model.require_known([added])
    return added


def _data(tokenizer: Any, found: dict[str, Any], added: list[int]) -> xr.Dataset:
    """The job's tensors with names, and token ids also as text."""
    ids = found["token"].tolist()
    text = np.array(token_strings(tokenizer, ids), dtype=object)
    data: dict[str, Any] = {"token": (("step", "rank"), text), "token_id": (("step", "rank"), ids)}
    for name in ("logit", "probability"):
        data[name] = (("step", "rank"), found[name].numpy())
    if added:
        said = np.array(token_texts(tokenizer, added), dtype=object)
        data |= {"answer_token": ("step", said), "answer_id": ("step", added)}
        for name in ("logit", "probability", "rank"):
            data[f"answer_{name}"] = ("step", found[f"answer_{name}"].numpy())
    steps, ranks = found["token"].shape
    return xr.Dataset(data, {"step": np.arange(steps), "rank": np.arange(ranks)})
