"""The arguments of a public call, checked in one way.

``@checked`` holds every argument of a call against its annotation, all items of a list included,
and raises `ArgumentError` with the function, the argument's name, what was given and what was
expected. An annotation says the range of a number as well: `Positive`, `Natural`, `Share`, `Seed`.

Numbers of numpy and torch, alone, in lists and in arrays, become Python's own. A bool is not a
number here, and a string is not a list of strings.

The call then runs with torch's own defaults, whatever the caller has set: see
`nnattr.torch_state`.

Only functions that people call are checked; what runs inside a job is plain and undecorated.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from types import SimpleNamespace, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np
import torch
from typeguard import CollectionCheckStrategy, ForwardRefPolicy, TypeCheckError, check_type

from nnattr.errors import ArgumentError
from nnattr.torch_state import plain_torch

P = ParamSpec("P")
R = TypeVar("R")

#: Characters of a value, and of a type, that a message shows.
LONGEST = 80
#: Where to get what people first do without.
MADE_BY = {
    "Model": "nnattr.load gives one",
    "Task": "nnattr.Task.from_pairs or a generator such as nnattr.tasks.ioi gives one",
    "Tokenizer": "a Hugging Face tokenizer, such as model.tokenizer",
}


@dataclass(frozen=True)
class Between:
    """The range of a number, its ends included; NaN is outside of every range."""

    low: float
    high: float = math.inf

    def holds(self, value: Any) -> bool:
        """Whether the number is in it."""
        return self.low <= value <= self.high

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"at least {self.low}"
        return f"from {self.low} to {self.high}"


@dataclass(frozen=True)
class Writable:
    """A path that can be there: without zero bytes, and a file's with an ending that says what.

    Attributes:
        endings: those of a file, in small letters: an ending decides the format that is written.
            None for a folder.
    """

    endings: tuple[str, ...] = ()

    def holds(self, value: Any) -> bool:
        """Whether the path can be one."""
        known = not self.endings or Path(value).suffix.lower() in self.endings
        return "\0" not in str(value) and known

    def __str__(self) -> str:
        if not self.endings:
            return "that can name a folder"
        return f"that can name a file ending in {' or '.join(self.endings)}"


#: How many there are to be, at least one.
Positive: TypeAlias = Annotated[int, Between(1)]
#: A count or a number counted from 0.
Natural: TypeAlias = Annotated[int, Between(0)]
#: A share of a whole, or a probability.
Share: TypeAlias = Annotated[float, Between(0, 1)]
#: What random numbers start from.
Seed: TypeAlias = Annotated[int, Between(0, 2**63 - 1)]
#: Where to write: a result or its table alone, what is JSON, settings, a page, many files.
ResultFile: TypeAlias = Annotated[str | Path, Writable((".safetensors", ".csv"))]
JsonFile: TypeAlias = Annotated[str | Path, Writable((".json",))]
YamlFile: TypeAlias = Annotated[str | Path, Writable((".yaml", ".yml"))]
Page: TypeAlias = Annotated[str | Path, Writable((".html", ".htm"))]
Folder: TypeAlias = Annotated[str | Path, Writable()]


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
        with plain_torch():
            return function(*bound.args, **bound.kwargs)

    return call


def of_type(value: Any, hint: Any, where: str, name: str) -> Any:
    """The value, if it is of the annotated type and in its range.

    Args:
        value: what was given; numbers of numpy and torch are given back as Python's own where these
            are expected.
        hint: the annotation. A lone ``Callable`` is not looked at: who calls it knows more.
        where: what messages call the place, the function's name.
        name: what messages call the value, the argument's name.

    Raises:
        ArgumentError: it is not.
    """
    if _is_callable(hint) or _fits(value, hint):
        return value
    own = _own(value)
    if _fits(own, hint):
        return own
    raise ArgumentError(
        f"{where}: {name} is {shown(value)} ({type(value).__name__}); expected {spelled(hint)}."
    )


def shown(value: Any) -> str:
    """A value as a message shows it: short, and whatever its own ``repr`` does."""
    try:
        text = " ".join(repr(value).split())
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def spelled(hint: Any) -> str:
    """A type as people write it: ``str | Sequence[int] | None``, ``'clean' or 'corrupted'``."""
    if _is_union(hint):
        return " | ".join(map(spelled, get_args(hint)))
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is Annotated:
        kind, *ranges = get_args(hint)
        return " ".join((spelled(kind), *map(str, ranges)))
    if isinstance(hint, type) and not get_args(hint):
        name = "None" if hint is type(None) else hint.__name__
        return f"{name} ({MADE_BY[name]})" if name in MADE_BY else name
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", str(hint))


@cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function's parameters, as types."""
    named = {name: one for name, one in function.__annotations__.items() if name != "return"}
    scope = inspect.unwrap(function).__globals__  # type: ignore[attr-defined]
    return get_type_hints(SimpleNamespace(__annotations__=named), scope, include_extras=True)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, in its range, and neither a bool nor a string by accident."""
    if _is_union(hint):
        return any(_fits(value, one) for one in get_args(hint))
    if hint in (Any, object):
        return True
    if _is_callable(hint):
        return callable(value)
    kind = _class(hint)
    if isinstance(value, str | bytes) and kind is not str and issubclass(kind, Sequence):
        return False
    if getattr(hint, "_is_protocol", False):
        return isinstance(value, hint) and not isinstance(value, type)
    if not _mentions_bool(hint) and _holds_bool(value):
        return False
    try:
        check_type(
            value,
            hint,
            collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS,
            forward_ref_policy=ForwardRefPolicy.IGNORE,
        )
    except TypeCheckError:
        return False
    ranges = [one for one in get_args(hint) if isinstance(one, Between | Writable)]
    return all(one.holds(value) for one in ranges)


def _own(value: Any) -> Any:
    """Numbers, arrays and columns of tables as Python's own, in lists, tuples and dicts as well."""
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        return value.tolist()
    if type(value) in (list, tuple):
        return type(value)(map(_own, value))
    if type(value) is dict:
        return {key: _own(one) for key, one in value.items()}
    if _is_column(value):
        return list(map(_own, value))
    return value


def _is_column(value: Any) -> bool:
    """Whether a value is a row of things but no list, as a column of a table is (pandas, say)."""
    known = isinstance(value, str | bytes | Mapping | Set | Sequence)
    listed = isinstance(value, Collection) and hasattr(value, "__getitem__")
    return listed and not known and getattr(value, "ndim", 1) == 1


def _class(hint: Any) -> type:
    """The class that a type is, or is made of."""
    found = get_origin(hint) or hint
    return found if isinstance(found, type) else object


def _holds_bool(value: Any) -> bool:
    inside = value if isinstance(value, list | tuple) else ()
    return isinstance(value, bool) or any(map(_holds_bool, inside))


def _mentions_bool(hint: Any) -> bool:
    """Whether bools, or anything, may be in a value of this type."""
    if hint in (bool, Any, object) or isinstance(hint, bool):
        return True
    return issubclass(_class(hint), Mapping) or any(map(_mentions_bool, get_args(hint)))


def _is_callable(hint: Any) -> bool:
    return _class(hint) is Callable


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)
