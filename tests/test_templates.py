"""Templates: what they show is escaped, pieces are not escaped twice, and nothing is left out."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

import nnattr
from nnattr.report import html
from nnattr.templates import fill

ROOT = Path(nnattr.__file__).parent
HOSTILE = "<b onclick='x'>&amp;</b> {{ 7 * 7 }} {% raw %}"


@pytest.mark.parametrize(
    "block",
    [
        html.section(HOSTILE),
        html.heading(HOSTILE),
        html.paragraph(HOSTILE),
        html.paragraph("text", HOSTILE),
        html.table(HOSTILE, [], []),
        html.table("", [HOSTILE], []),
        html.table("", [], [[HOSTILE]]),
        html.facts({HOSTILE: ""}),
        html.facts({"": HOSTILE}),
        html.definitions({HOSTILE: ""}),
        html.definitions({"": HOSTILE}),
        html.code(HOSTILE),
        html.folded(HOSTILE, Markup()),
        html.pairs([[(HOSTILE, Markup(), "")]]),
        html.pairs([[("", Markup(), HOSTILE)]]),
        html.marked([HOSTILE], ["other"]),
        html.marked([HOSTILE], [HOSTILE]),
    ],
)
def test_text_is_text(block: Markup) -> None:
    assert isinstance(block, Markup)
    assert "<b" not in block
    assert HOSTILE in unescape(block)


def test_a_piece_goes_into_another_as_it_is() -> None:
    inner = html.paragraph("a & b")
    assert inner.strip() == "<p>a &amp; b</p>"
    for outer in (html.section("h", inner), html.side_by_side(inner), html.folded("f", inner)):
        assert inner in outer
    page = html.document("t", html.paragraph("lead"), [inner])
    assert inner in page
    assert type(page) is str, "text to its readers: markup would escape what is put beside it"


def test_tokens_that_differ_are_marked_without_their_spaces() -> None:
    found = html.marked(["When", " Mary", "  <x>\n"], ["When", " John", "  <x>\n"])
    assert found == "When <mark>Mary</mark>  &lt;x&gt;\n"


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        fill("report/templates/page.html.jinja", title="t")


def test_html_is_made_by_templates_alone() -> None:
    """But for what plotly reads, whose small HTML is `nnattr.plots`' own."""
    for path in ROOT.rglob("*.py"):
        if path.relative_to(ROOT).parts[0] == "plots":
            continue
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"</(p|div|table|td|pre|code|body|html|span)>", text), path
        assert "Markup(f" not in text, path
