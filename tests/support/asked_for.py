"""Folders whose tests need a while, and run when they are asked for alone."""

from __future__ import annotations

from pathlib import Path

import pytest


def left_out(folder: Path, config: pytest.Config) -> bool | None:
    """What ``pytest_ignore_collect`` says of a folder: True unless it, or part of it, was named."""
    asked = (Path(arg.partition("::")[0]).resolve() for arg in config.args)
    return None if any(path.is_relative_to(folder) for path in asked) else True
