"""What commands print: paragraphs and tables, for a terminal, a pipe or a file.

Lines have 80 columns, or fewer where the terminal is narrower: paragraphs and cells of several
words break between words. A name is never cut: where one is longer than the line, so is the line.
Where the output is not a terminal it holds no control codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

WIDTH = 80
WIDEST = 10_000  # columns that no line fills

Block: TypeAlias = str | Table


def say(*blocks: Block) -> None:
    """Print each block from a new line."""
    console = Console(markup=False, emoji=False, highlight=False)
    width = min(WIDTH, console.width)
    for block in blocks:
        least = Measurement.get(console, console.options.update(width=WIDEST), block).minimum
        console.width = max(width, least)
        with console.capture() as printed:
            console.print(block)
        for line in printed.get().splitlines():
            typer.echo(line.rstrip())


def table(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> Table:
    """A table without lines around its cells.

    Args:
        header: what stands over each column.
        rows: the cells, row by row.
        texts: how many columns, from the left, are words, and may break between them; the others
            are numbers, which end together and stay whole.
    """
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    rows = list(rows)
    for i, name in enumerate(header):
        cells = [row[i] for row in rows]
        breaks = i < texts and any(" " in cell for cell in cells)
        made.add_column(
            name,
            justify="left" if i < texts else "right",
            overflow="fold",
            no_wrap=not breaks,
            min_width=None if breaks else max(map(cell_len, (name, *cells))),
        )
    for row in rows:
        made.add_row(*row)
    return made


def pairs(rows: Iterable[tuple[str, str]]) -> Table:
    """Names with a text beside each, indented."""
    made = Table(box=None, padding=(0, 0, 0, 2), show_header=False)
    for row in rows:
        made.add_row(*row)
    return made
