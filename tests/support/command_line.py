"""The command line as a user calls it, and the pages that it writes."""

from __future__ import annotations

import re

from typer.testing import CliRunner

from nnattr import cli


def call(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.output


def is_self_contained(html: str) -> None:
    """A page that loads nothing: plotly is in it, once."""
    assert html.count("plotly.js v") == 1
    outside = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"https?://", outside)
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", html)
    assert "plot.ly" not in re.sub(r"<script>/\*\*.*?</script>", "", html, flags=re.DOTALL)
