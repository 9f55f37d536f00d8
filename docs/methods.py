"""The table of methods in ``docs/api/methods.md``: ``python -m docs.methods`` writes it anew.

Its rows are those of `nnattr.calls.registry`; a test compares them.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from nnattr.calls.registry import ROWS, Method

PAGE = Path(__file__).parent / "api" / "methods.md"
#: What stands around the table on its page.
MARKS = ("<!-- methods: made by `make methods` -->\n", "<!-- end of methods -->\n")
HEADER = "| Method | Question | Returns |\n|---|---|---|\n"


def table() -> str:
    """The methods by kind, as Markdown."""
    kinds = groupby(ROWS, key=lambda row: row.kind)
    return "\n".join(
        f"**{kind.capitalize()}**\n\n{HEADER}{''.join(map(_line, rows))}" for kind, rows in kinds
    )


def _line(row: Method) -> str:
    returned = "texts" if row.result is None else f"`{row.result.__name__}`"
    name = f"[`{row.name}`](#nnattr.{row.name})"
    return f"| {name} | {row.question} | {returned} |\n"


def page(text: str) -> str:
    """The page with the table as it is now."""
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}\n{table()}\n{MARKS[1]}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
