"""`Result`: what every answer has, whatever the question was.

Data with named axes (`nnattr.axes`), a provenance that says how it was made, one file that keeps
both, a table, a figure, a short text and a short page. A type of result adds its own questions
(which heads, which half, which pair) and the few plain values that are neither data nor provenance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_type_hints

import xarray as xr
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from nnattr import drawing, storage, templates
from nnattr.arguments import ResultFile, checked
from nnattr.errors import ResultError
from nnattr.results import dataset, legacy
from nnattr.results.provenance import Provenance
from nnattr.tasks import Task
from nnattr.tasks.file import unpacked

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """Data with named axes, and how it was made.

    Attributes:
        data: the variables; a subclass says which and with what dimensions.
        provenance: the method and its arguments, the model, the prompts, the place and the cost.
    """

    #: The variables that ``data`` must have, with their dimensions (None: any).
    VARIABLES: ClassVar[Mapping[str, tuple[str, ...] | None]] = {}

    data: xr.Dataset
    provenance: Provenance

    def __post_init__(self) -> None:
        kind = type(self).__name__
        for name, dims in self.VARIABLES.items():
            if name not in self.data:
                raise ResultError(f"{kind} has the variable {name!r}, and this data lacks it.")
            if dims is not None and self.data[name].dims != dims:
                raise ResultError(
                    f"In {kind} the dimensions of {name!r} are {dims}, not {self.data[name].dims}."
                )

    @property
    def model(self) -> str:
        """The name of the model that was asked."""
        return self.provenance.subject

    @property
    def task(self) -> Task:
        """What the model read, prompts and all: the task, or the prompts as one without pairs.

        Raises:
            ResultError: it read nothing (its weights were asked), or the result comes from a file
                that does not hold it (schema 1, and other results than scores before schema 3).
        """
        if self.provenance.examples is None:
            said = f", {self.provenance.task}" if self.provenance.task else ""
            raise ResultError(
                f"This {type(self).__name__} does not hold its task{said}: it was made from "
                "weights alone, or saved by an nnattr that did not keep it. Make the task again, "
                "or measure again."
            )
        return Task(**unpacked(self.provenance.examples, "The result's task"))

    @checked
    def to_dataframe(self) -> pd.DataFrame:
        """The data as a table."""
        return self.data.to_dataframe().reset_index()

    def plot(self, *args: Any, **options: Any) -> go.Figure:
        """The figure that suits this result (see `nnattr.plots`); it is not shown."""
        return self._drawn("plot", *args, **options)

    @checked
    def save(self, path: ResultFile) -> Path:
        """Write one file (the folder must exist) and return its path; the ending says the format.

        Args:
            path: ``.safetensors`` keeps everything, and `nnattr.load_result` opens it; ``.csv`` is
                the table alone, as `to_dataframe` gives it.

        Raises:
            ArgumentError: the path has another ending.
            ResultError: it cannot be written.
        """
        if Path(path).suffix.lower() == ".safetensors":
            return self._save(path)
        with storage.whole(path) as partial:
            self.to_dataframe().to_csv(partial, index=False)
        return Path(path)

    def _save(self, path: str | Path) -> Path:
        """Write everything as a safetensors file."""
        tensors, header = dataset.packed(self.data)
        rest = {
            "kind": type(self).__name__,
            "plain": {name: getattr(self, name) for name in _plain(type(self)).model_fields},
            "provenance": self.provenance.model_dump(mode="json"),
        }
        return storage.write(path, tensors, {**header, **rest})

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote; runs no code. `nnattr.load_result` reads any kind.

        Raises:
            ResultError: no such file, truncated or another kind of result, of an unknown schema
                version, or with contents that contradict its header.
        """
        return read(path, {cls.__name__: cls})

    def _array(self, name: str) -> xr.DataArray | None:
        """One variable without its name in ``data``, or None."""
        return self.data[name].rename(None) if name in self.data else None

    def _variable(self, name: str) -> xr.DataArray:
        return self.data[name].rename(None)

    def _example(self, number: int) -> int:
        """``number``, if there is such an example.

        Raises:
            ResultError: there is none.
        """
        n = self.data.sizes["example"]
        if not 0 <= number < n:
            raise ResultError(f"There is no example {number}; expected 0 to {n - 1}.")
        return number

    def _drawn(self, view: str, *args: Any, **options: Any) -> Any:
        return drawing.drawer(type(self), view)(self, *args, **options)

    def _repr_html_(self) -> str:
        head, _, rest = repr(self).partition("\n")
        p = self.provenance
        where = f"{p.backend}, {p.weights}, {p.seconds:.2f} s" if p.method else ""
        made = " · ".join(part for part in (p.method, p.task, where) if part)
        return templates.fill("results/result.html.jinja", head=head, rest=rest, made=made)


def read(path: str | Path, kinds: Mapping[str, type[Any]]) -> Any:
    """The result in a file, if it is of one of the ``kinds``, which are known by their names.

    Raises:
        ResultError: see `Result.load`.
    """
    tensors, header = storage.read(path)
    try:
        tensors, header = legacy.upgraded(tensors, header)
        kind = header["kind"]
        if kind not in kinds:
            raise ResultError(
                f"{path} holds a result of the kind {kind!r} and not {' or '.join(kinds)}; "
                "nnattr.load_result(path) reads any that this nnattr knows."
            )
        plain = _plain(kinds[kind]).model_validate_json(json.dumps(header["plain"]), strict=True)
        provenance = Provenance.model_validate(header["provenance"])
        return kinds[kind](dataset.unpacked(tensors, header), provenance, **dict(plain))
    except (ValidationError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultError(f"{path} contradicts its own header: {error}") from error


@cache
def _plain(kind: type[Result]) -> type[BaseModel]:
    """The fields of a type of result besides data and provenance, as a form that checks a file."""
    hints = get_type_hints(kind)
    own = [one.name for one in fields(kind) if one.name not in ("data", "provenance")]
    given: dict[str, Any] = {name: (hints[name], ...) for name in own}
    return create_model(kind.__name__, __config__=ConfigDict(extra="forbid"), **given)
