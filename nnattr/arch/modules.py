"""What a module is, told by its class and its name alone."""

from __future__ import annotations

import re
from typing import Any

_NORM = re.compile(r"norm|(^|_)ln(_|$|\d)", re.IGNORECASE)


def is_norm(name: str, module: Any) -> bool:
    """Whether a module is a norm, by its class or by the last part of its path."""
    return bool(_NORM.search(type(module).__name__) or _NORM.search(name.rpartition(".")[2]))
