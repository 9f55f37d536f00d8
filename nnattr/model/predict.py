"""What a model says next: the most probable tokens, never the whole vocabulary."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from nnattr.errors import TaskError
from nnattr.runs.portions import TOKENS_PER_FORWARD
from nnattr.tasks import IdGroups, Predictions
from nnattr.tokens import Tokens

if TYPE_CHECKING:
    from nnattr.model.model import Model


def predictions(model: Model, tokens: Tokens, asked: IdGroups, k: int, last: int) -> Predictions:
    """Run the prompts once, in one job; see `nnattr.model.model.Model.predict`."""
    width = tokens.ids.shape[1]
    limit = model.context_length
    if limit is not None and width > limit:
        raise TaskError(f"The longest prompt is {width} tokens, and {model.name} takes {limit}.")
    forward = type(model.nn._module).forward
    trimmed = "logits_to_keep" in inspect.signature(forward).parameters
    words = max(map(len, asked), default=0)
    filled = [[*row, *[0] * (words - len(row))] for row in asked] or [[]] * len(tokens)
    payload = {
        "ids": tokens.ids,
        "mask": tokens.mask.long(),
        "asked": torch.tensor(filled, dtype=torch.long),
        "k": k,
        "last": last,
        "rows": max(1, TOKENS_PER_FORWARD // width),
        "options": {"use_cache": False, **({"logits_to_keep": last} if trimmed else {})},
    }
    return Predictions(**model.run(prediction_job, payload, label="predictions").values)


def prediction_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """The best tokens, the logits asked for and the normaliser, at the last positions."""
    parts: list[dict[str, Any]] = []
    total, rows = payload["ids"].shape[0], payload["rows"]
    for start in range(0, total, rows):
        ids, mask, asked = (payload[key][start : start + rows] for key in ("ids", "mask", "asked"))
        given = {"input_ids": ids, **({} if mask.all() else {"attention_mask": mask})}
        with nn.trace(given, **payload["options"]):
            with torch.no_grad():
                logits = nn.output.logits[:, -payload["last"] :].float()
        best = logits.topk(min(payload["k"], logits.shape[-1]), -1)
        wanted = asked.to(logits.device)[:, None].expand(-1, logits.shape[1], -1)
        found = {"ids": best.indices, "logits": best.values, "asked": logits.gather(-1, wanted)}
        parts.append({**found, "log_norm": logits.logsumexp(-1)})
        tick(min(start + rows, total), total)
    return {key: torch.cat([part[key] for part in parts]).cpu() for key in parts[0]}
