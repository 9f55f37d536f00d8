"""One result of a report: what the page calls it, and what it says of every kind of result."""

from __future__ import annotations

from dataclasses import dataclass
from html import unescape
from typing import Generic, TypeVar

import yaml
from markupsafe import Markup

from nnattr.calls.again import python, run_file
from nnattr.calls.registry import METHODS
from nnattr.config import RunConfig
from nnattr.errors import MetricError, ResultError
from nnattr.plots import words
from nnattr.report import html, sections
from nnattr.results import Result, Scores

TOP = 10


R_co = TypeVar("R_co", bound=Result, covariant=True)


@dataclass(frozen=True)
class Entry(Generic[R_co]):
    """One result of a report.

    Attributes:
        result: any that `nnattr.load_result` opens.
        name: what the page calls it: its file's name.
        config: the file that makes it again, if one is known; else it is found from the result.
    """

    result: R_co
    name: str
    config: RunConfig | None = None

    @property
    def title(self) -> str:
        """The method and what it was applied to."""
        if isinstance(self.result, Scores):
            return unescape(words.title(self.result))
        method = self.result.provenance.method.rpartition(".")[2]
        return method.replace("_", " ").capitalize() or type(self.result).__name__

    @property
    def question(self) -> str:
        """What the method asks; empty where there is no one method."""
        row = METHODS.get(self.result.provenance.method)
        return "" if row is None else row.question

    @property
    def reading(self) -> str:
        """What to keep in mind when reading the method's numbers."""
        p = self.result.provenance
        row = METHODS.get(p.method)
        if row is None:
            return ""
        return row.together if p.arguments.get("together") else row.reading

    @property
    def subject(self) -> tuple[str, ...]:
        """What two results must share to have been measured on the same thing."""
        p = self.result.provenance
        return p.subject, p.weights, p.metric, p.task_hash


def answer(entry: Entry[Result], name: str) -> Markup:
    """Any result: its question, its figure, its strongest entries and its reading.

    Args:
        entry: the result.
        name: an id, unique on the page.
    """
    result = entry.result
    about = f"{entry.question} {entry.reading}".strip()
    return html.section(
        entry.title,
        html.paragraph(f"{result.model} · {entry.name}", "soft"),
        *([html.paragraph(about)] if about else []),
        *sections.caution(result),
        sections.pictures(result, name),
        *sections.rankings(result, TOP),
    )


def origin(entry: Entry[Result]) -> Markup:
    """Where a result comes from, and how to make it again."""
    blocks = [html.heading(entry.name), sections.origin(entry.result)]
    try:
        config = entry.config or run_file(entry.result, entry.name)
        file = f"{entry.name.removesuffix('.safetensors')}.yaml"
        said = f"To make it again, save this as {file} and say: nnattr run {file}"
        blocks += [html.paragraph(said, "next"), html.code(_text(config))]
    except MetricError as error:
        blocks.append(html.paragraph(f"To make it again, use Python: {error}", "next"))
        blocks.append(html.code(python(entry.result, entry.name)))
    except ResultError as error:
        blocks.append(html.paragraph(f"It cannot be made again from its file: {error}", "next"))
    return Markup("\n").join(blocks)


def _text(config: RunConfig) -> str:
    """The file, with everything that was said and nothing that was left empty."""
    said = config.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    said = {key: value for key, value in said.items() if value != {}}
    return yaml.safe_dump(said, sort_keys=False, allow_unicode=True).rstrip()
