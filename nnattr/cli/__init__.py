"""The command line: ``nnattr demo | run | report | lens | dla | edges | doctor | models``."""

from __future__ import annotations

from nnattr.cli.commands import app, main

__all__ = ["app", "main"]
