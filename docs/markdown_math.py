"""Equations of the pages and docstrings as MathML, made when the site is built.

Browsers draw MathML by themselves, so that the site needs no script and no network for it. Pages
write ``$x$`` and ``$$x$$`` (as code-hosting sites show them), docstrings the field's usual
``:math:`x``` and ``.. math::``; the latter are turned into the former first.
"""

from __future__ import annotations

import re
from html import unescape
from textwrap import dedent

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.postprocessors import Postprocessor
from markdown.preprocessors import Preprocessor

INLINE = re.compile(r":math:`([^`]+)`")
BLOCK = re.compile(r"^\.\. math::((?:.*\n?)(?:[ \t]+.*\n?|\n(?=[ \t]))*)", re.MULTILINE)
LITERAL = re.compile(r"(?<!:)::$", re.MULTILINE)
RENDERED = re.compile(r'<(span|div) class="arithmatex">\\([(\[])\s*(.*?)\s*\\[)\]]</\1>', re.DOTALL)


class FromDocstrings(Preprocessor):
    """Sphinx's way of writing mathematics and literal blocks, as Markdown."""

    def run(self, lines: list[str]) -> list[str]:
        """Rewrite the text."""
        text = INLINE.sub(lambda found: f"${' '.join(found[1].split())}$", "\n".join(lines))
        text = BLOCK.sub(lambda found: f"$$\n{dedent(found[1]).strip()}\n$$\n\n", text)
        return LITERAL.sub(":", text).split("\n")


class ToMathML(Postprocessor):
    """What the math extension marked, as MathML."""

    def run(self, text: str) -> str:
        """Replace every equation."""

        def drawn(found: re.Match[str]) -> str:
            display = "block" if found[2] == "[" else "inline"
            return convert(unescape(found[3]), display=display)

        return RENDERED.sub(drawn, text)


class MathExtension(Extension):
    """Both steps around ``pymdownx.arithmatex``."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - the base class's name
        """Register them."""
        md.preprocessors.register(FromDocstrings(md), "docstring_math", 100)
        md.postprocessors.register(ToMathML(md), "mathml", 1)


def makeExtension(**options: object) -> MathExtension:  # noqa: N802 - the name Markdown looks for
    """What Markdown calls."""
    return MathExtension(**options)
