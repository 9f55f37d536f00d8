"""The calls that docs/coming_from.md puts side by side, run on the same weights."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import nnattr
from nnattr.teaching import folder

PAGE = Path(__file__).parents[2] / "docs" / "coming_from.md"


def tables() -> list[list[list[str]]]:
    """The page's tables: rows of cells, the header first."""
    found: list[list[list[str]]] = []
    for block in re.findall(r"(?:^\|.*\|\n)+", PAGE.read_text(encoding="utf-8"), re.MULTILINE):
        lines = [line for line in block.splitlines() if not set(line) <= set("|- ")]
        found.append([[cell.strip() for cell in line.strip("|").split("|")] for line in lines])
    return found


def calls(column: str) -> list[str]:
    """The pieces of code in a column, of all tables that have it."""
    cells = []
    for header, *rows in tables():
        if column in header:
            cells += [row[header.index(column)] for row in rows]
    pieces = [piece for cell in cells for piece in re.findall(r"`([^`]+)`", cell)]
    return [piece for piece in pieces if set("([") & set(piece)]


@pytest.fixture(scope="module")
def namespace() -> dict[str, Any]:
    model = nnattr.load("teaching-llama")
    task = nnattr.tasks.ioi(model.tokenizer, n=4, seed=0, order="ABBA")[:1]
    return {
        "nnattr": nnattr,
        "model": model,
        "task": task,
        "metric": nnattr.LogitDiff(),
        "prompt": task.clean[0],
        "answer": task.answers[0][0],
    }


NNATTR = [call for call in calls("nnattr") if not call.startswith("(patched")]
LENS = calls("TransformerLens 4.3")


def test_the_tables_are_found() -> None:
    assert len(NNATTR) >= 15
    assert len(LENS) >= 10


@pytest.mark.parametrize("call", NNATTR)
def test_the_calls_of_nnattr(call: str, namespace: dict[str, Any]) -> None:
    exec(call, dict(namespace))


def test_the_calls_of_transformer_lens(
    namespace: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    patching = pytest.importorskip("transformer_lens.patching", reason="needs transformer-lens")
    import transformer_lens.head_detector
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.tools import analysis
    from transformer_lens.utilities import test_prompt

    task = namespace["task"]
    right, wrong = task.answer_ids[0][0], task.wrong_answer_ids[0][0]

    def metric_fn(logits: torch.Tensor, *_: Any) -> torch.Tensor:
        return logits[0, -1, right] - logits[0, -1, wrong]

    theirs: dict[str, Any] = {
        "patching": patching,
        "TransformerBridge": TransformerBridge,
        "detect_head": transformer_lens.head_detector.detect_head,
        "attribution_patch": analysis.attribution_patch,
        "direct_logit_attribution": analysis.direct_logit_attribution,
        "logit_lens": analysis.logit_lens,
        "test_prompt": test_prompt,
        "path": str(folder("teaching-llama")),
        "clean": task.clean_tokens.ids,
        "corrupted": task.corrupted_tokens.ids,
        "right": torch.tensor([right]),
        "wrong": torch.tensor([wrong]),
        "prompt": namespace["prompt"],
        "answer": namespace["answer"],
        "metric_fn": metric_fn,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for call in LENS:
            exec(call, theirs)
    assert namespace["answer"] in capsys.readouterr().out
