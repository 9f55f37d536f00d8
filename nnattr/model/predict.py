"""What a model says next: the most probable tokens, never the whole vocabulary."""

from __future__ import annotations

from typing import Any

import torch


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
