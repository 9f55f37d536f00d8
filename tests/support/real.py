"""The real model in tests: they are skipped where it has not been fetched, saying how to get it.

With ``NNATTR_REQUIRE_REAL=1``, as in ``make test-real``, they fail instead.
"""

from __future__ import annotations

import os

import pytest

from nnattr import pretrained


def needs_real_model() -> None:
    """Go on only where the real model is."""
    if not pretrained.is_here():
        required = os.environ.get("NNATTR_REQUIRE_REAL") == "1"
        (pytest.fail if required else pytest.skip)(pretrained.how_to_get())
