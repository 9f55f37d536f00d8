"""Find the parts of a decoder-only transformer in its module tree."""

from __future__ import annotations

from typing import Any

from nnattr.arch.spec import ArchSpec
from nnattr.errors import ArchError


def discover(module: Any) -> ArchSpec:
    """The structure of ``module``, found from its module tree alone."""
    raise ArchError(f"{type(module).__name__} is not in nnattr's table; pass spec=ArchSpec(...).")
