"""TransformerLens 4.3 on the weights of a teaching model, or of stories260K."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

from nnattr.teaching import folder
from tests.methods.common import TEACHING
from tests.support.paths import STORIES


@cache
def bridge(name: str) -> Any:
    """TransformerLens's view of the same local folder, frozen and in eval mode."""
    return _booted(name)


@cache
def folded(name: str) -> Any:
    """The same in its compatibility mode: norms folded, weights centred; value biases stay."""
    found = _booted(name)
    found.enable_compatibility_mode(fold_value_biases=False)
    return found


def _booted(name: str) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = folder(name) if name in TEACHING else STORIES
        found = TransformerBridge.boot_transformers(str(path), device="cpu")
    found.eval()
    return found
