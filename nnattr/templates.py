"""HTML from templates, the one place where it is made: whatever a template shows is escaped.

A template is a file ``*.html.jinja``, named by its path in the package. Values are text unless they
are `markupsafe.Markup`, as `piece` makes it: pieces go into pages as they are; prompts, tokens and
names never do. A template says ``verbatim("path")`` for a style or a script of the package.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def fill(name: str, **values: Any) -> str:
    """The template of this name with these values in it: all of a page, as text."""
    return _environment().get_template(name).render(values)


def piece(name: str, macro: str, *values: Any) -> Markup:
    """A piece of a page: one macro of the template of this name, called with these values."""
    return getattr(_environment().get_template(name).module, macro)(*values)


@cache
def _environment() -> Environment:
    loader = PackageLoader("nnattr", "")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def verbatim(name: str) -> Markup:
        """A file of the package as it is."""
        return Markup(loader.get_source(environment, name)[0])

    environment.globals["verbatim"] = verbatim
    return environment
