"""The types of a public call's arguments, checked in one way.

``@checked`` holds every argument of a call against its annotation, all items of a list included,
and raises `ArgumentError` with the function, the argument's name, what was given and what was
expected. Values of numpy (a seed, a position) become Python's own. A bool is no number here: where
an int is expected, ``True`` is a mistake.

Only functions that people call are checked; what runs inside a job is plain and undecorated.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import cache, wraps
from types import UnionType
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from nnattr.errors import ArgumentError

P = ParamSpec("P")
R = TypeVar("R")

#: Characters of a value, and of a type, that a message shows.
LONGEST = 80


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Let ``function`` refuse arguments that are not of their annotated types.

    Raises:
        ArgumentError: when it is called with one that is not, with one too few or too many, or with
            one that it does not know.
    """
    signature = inspect.signature(function)
    parameters = signature.parameters

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            known = ", ".join(name for name in parameters if name not in ("self", "cls"))
            raise ArgumentError(f"{function.__qualname__}: {error}; it takes {known}.") from None
        hints = _hints(function)
        for name, value in bound.arguments.items():
            several = parameters[name].kind in (
                inspect.Parameter.VAR_POSITIONAL,
                inspect.Parameter.VAR_KEYWORD,
            )
            if name in hints and not several:
                bound.arguments[name] = of_type(value, hints[name], function.__qualname__, name)
        return function(*bound.args, **bound.kwargs)

    return call


def of_type(value: Any, hint: Any, where: str, name: str) -> Any:
    """The value, if it is of the annotated type.

    Args:
        value: what was given; a numpy number is given back as Python's own.
        hint: the annotation.
        where: what messages call the place, the function's name.
        name: what messages call the value, the argument's name.

    Raises:
        ArgumentError: it is not of that type.
    """
    if isinstance(value, np.generic):
        value = value.item()
    try:
        check_type(value, hint, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        fits = not isinstance(value, bool) or _admits_bool(hint)
    except TypeCheckError:
        fits = False
    if not fits:
        raise ArgumentError(
            f"{where}: {name} is {shown(value)} ({type(value).__name__}); expected {spelled(hint)}."
        )
    return value


def shown(value: Any) -> str:
    """A value as a message shows it: short, and whatever its own ``repr`` does."""
    try:
        text = " ".join(repr(value).split())
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def spelled(hint: Any) -> str:
    """A type as people write it: ``str | Sequence[int] | None``."""
    if _is_union(hint):
        return " | ".join(map(spelled, get_args(hint)))
    if isinstance(hint, type) and not get_args(hint):
        return "None" if hint is type(None) else hint.__name__
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", str(hint))


@cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function, as types."""
    return get_type_hints(function)


def _admits_bool(hint: Any) -> bool:
    """Whether a type is bool or anything, alone or in a union."""
    if _is_union(hint):
        return any(map(_admits_bool, get_args(hint)))
    return hint in (bool, Any, object) or any(isinstance(one, bool) for one in get_args(hint))


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)
