"""Which rules of the backward pass act on a model, found out by estimating with each alone."""

from __future__ import annotations

from nnattr import LogitDiff, Model, Task, attribution_patching
from nnattr.errors import ArchError
from nnattr.model.rules import FOUND, LackingError, columns


def acting(model: Model) -> tuple[str, ...]:
    """The rules that act; one with a ``?`` has something to act on, and cannot be placed."""
    found = []
    for rule in FOUND:
        try:
            columns(model, rule, 2.0)
            attribution_patching(model, _pair(model), LogitDiff(), estimator="relp", rules=(rule,))
            found.append(rule)
        except LackingError:
            continue
        except ArchError:
            found.append(f"{rule}?")
    return tuple(found)


def _pair(model: Model) -> Task:
    """Two prompts of `tests.tiny.tiny_tokenizer`."""
    return Task.from_pairs(
        ["w3 w4 w5 w6 w7"], ["w3 w9 w5 w6 w7"], ["w70"], ["w80"], tokenizer=model.tokenizer
    )
