"""What is asked of a module by its class and name alone: here and inside jobs."""

from __future__ import annotations

import re
from typing import Any

_NORM = re.compile(r"norm|(^|_)ln(_|$|\d)", re.IGNORECASE)


def raw(envoy: Any) -> Any:
    """The Hugging Face module that an nnsight model, or a part of one, stands for.

    nnsight has no public name for it; this is the one place that uses its private one.
    """
    return envoy._module


def is_norm(name: str, module: Any) -> bool:
    """Whether a module is a norm, by its class or by the last part of its path."""
    return bool(_NORM.search(type(module).__name__) or _NORM.search(name.rpartition(".")[2]))
