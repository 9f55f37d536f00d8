"""`Scores`, the one result type: labelled numbers per example, with where they came from.

A score is a *change of the metric*. ``raw`` holds it in the metric's own units, ``values`` divided
by ``scale``: with the mean gap between the two runs as the scale, 0 means the run patched into and
1 the other run. On disk a result is one safetensors file with the rest as JSON in its header;
loading runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nnattr.axes import ORDER
from nnattr.errors import ResultError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

SCHEMA = 1
#: Dimensions that name a cell, as against those that repeat its measurement.
CELL_DIMS = tuple(dim for dim in ORDER if dim != "example")


class Provenance(BaseModel):
    """What a result was made from, and how; enough to make it again.

    ``arguments`` are the method's own. ``task`` says how the task was made, ``task_hash`` digests
    its tokens. ``seconds`` is wall time; ``jobs``, bytes, queue and run seconds speak of requests to a
    server (0 if local).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    metric: str
    model: str
    revision: str | None = None
    architecture: str
    backend: str
    dtype: str
    task: str
    task_hash: str
    versions: dict[str, str] = Field(default_factory=dict)
    created: str = ""
    seconds: float = 0.0
    jobs: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    queue_seconds: float = 0.0
    run_seconds: float = 0.0


@dataclass(frozen=True)
class Cell:
    """One cell of a result: its index along the cell dimensions, label, value, standard error."""

    index: tuple[int, ...]
    label: str
    value: float
    stderr: float


class Ranking(tuple[Cell, ...]):
    """Cells in order; prints as a table, ``indices`` gives the bare ``(layer, head)`` tuples."""

    @property
    def indices(self) -> list[tuple[int, ...]]:
        """The cells' indices, best first."""
        return [cell.index for cell in self]

    def __repr__(self) -> str:
        width = max((len(cell.label) for cell in self), default=4)
        rows = [
            f"{cell.label:<{width}}  {cell.value:+8.4f}"
            + ("" if np.isnan(cell.stderr) else f"  ± {cell.stderr:.4f}")
            for cell in self
        ]
        return "\n".join(rows) or "no cells"


@dataclass(frozen=True, eq=False)
class Scores:
    """Change of the metric for every example and cell.

    Attributes:
        raw: the change in the metric's own units; dims in the glossary's order, ``example`` first
            unless reduced. NaN where there was nothing to patch (a position that a shorter prompt
            does not have).
        baselines: the metric of the two runs, dims ``("run", "example")``, runs ``"clean"`` and
            ``"corrupted"``; from the same job as the scores.
        scale: what ``values`` are divided by: the runs' mean gap when normalised, else 1.
        provenance: how this was made.
        error: standard errors of ``raw`` once the examples have been averaged, else None.
    """

    raw: xr.DataArray
    baselines: xr.DataArray
    scale: float
    provenance: Provenance
    error: xr.DataArray | None = None

    def __post_init__(self) -> None:
        dims = tuple(map(str, self.raw.dims))
        if list(dims) != sorted(dims, key=ORDER.index):
            raise ResultError(f"The dimensions {dims} are not in the order {ORDER}.")
        if not (np.isfinite(self.scale) and self.scale != 0):
            raise ResultError(f"Scores cannot be divided by a scale of {self.scale}.")

    @property
    def values(self) -> xr.DataArray:
        """The scores as asked for: normalised (0 = the run patched into, 1 = the other), or raw."""
        return self.raw / self.scale

    @property
    def cell_dims(self) -> tuple[str, ...]:
        """The dimensions that name a cell, e.g. ``("layer", "head")``."""
        return tuple(str(dim) for dim in self.raw.dims if dim != "example")

    def mean(self) -> Scores:
        """The average over examples, with its standard error kept in ``error``."""
        if "example" not in self.raw.dims:
            return self
        spread = _stderr(self.raw)
        return replace(self, raw=self.raw.mean("example"), error=spread)

    def stderr(self) -> xr.DataArray:
        """Standard error of the mean over examples, in the unit of ``values``; NaN for one example.

        It speaks of the spread over the task's examples, not over other tasks.
        """
        error = self.mean().error
        if error is None:
            raise ResultError("These scores hold no examples and no errors, so no standard error.")
        return error / abs(self.scale)

    def bootstrap_ci(
        self, level: float = 0.95, n_resamples: int = 2000, seed: int = 0
    ) -> xr.DataArray:
        """Percentile interval of the mean over examples, by resampling examples with replacement.

        Returns:
            an array with a leading dimension ``bound`` (``"low"``, ``"high"``). With few examples
            (below about 20) it is too narrow.
        """
        if "example" not in self.raw.dims:
            raise ResultError(
                "These scores are averaged already; bootstrap the ones before mean()."
            )
        if not 0 < level < 1:
            raise ResultError(f"level is {level}; expected a number between 0 and 1, such as 0.95.")
        draw = np.random.default_rng(seed)
        n = self.raw.sizes["example"]
        data = self.values.to_numpy()
        means = np.stack(
            [np.nanmean(data[draw.integers(n, size=n)], axis=0) for _ in range(n_resamples)]
        )
        tail = (1 - level) / 2
        bounds = np.nanquantile(means, [tail, 1 - tail], axis=0)
        template = self.values.isel(example=0, drop=True)
        coords = {"bound": ["low", "high"], **template.coords}
        return xr.DataArray(bounds, dims=("bound", *template.dims), coords=coords)

    def sel(self, **indexers: Any) -> Scores:
        """A part of the scores by label, as ``xarray.DataArray.sel`` (``layer=9``, ``pos=[3, 4]``).

        Dimensions stay: ``layer=9`` keeps a layer axis of length 1, so that labels survive.
        """
        wanted = {key: np.atleast_1d(value) for key, value in indexers.items()}
        try:
            error = None if self.error is None else self.error.sel(wanted)
            return replace(self, raw=self.raw.sel(wanted), error=error)
        except (KeyError, ValueError) as problem:
            raise ResultError(
                f"{indexers} is not in these scores, whose dimensions are {dict(self.raw.sizes)}."
            ) from problem

    def top(self, k: int = 10, by: Literal["abs", "value", "-value"] = "abs") -> Ranking:
        """The ``k`` strongest cells of the mean over examples.

        Args:
            k: how many.
            by: ``"abs"`` largest effect either way, ``"value"`` most positive, ``"-value"`` most
                negative.
        """
        keys = {"abs": np.abs, "value": lambda x: x, "-value": lambda x: -x}
        if by not in keys:
            raise ResultError(f"by is {by!r}; expected one of {', '.join(map(repr, keys))}.")
        mean = self.mean()
        values = mean.values.to_numpy()
        errors = np.full_like(values, np.nan) if mean.error is None else mean.stderr().to_numpy()
        finite = np.isfinite(values)
        keyed = np.where(finite, keys[by](values), -np.inf).ravel()
        order = np.argsort(-keyed, kind="stable")[: min(k, int(finite.sum()))]
        cells = []
        for flat in order:
            at = np.unravel_index(flat, values.shape)
            found = {
                dim: mean.raw[dim].to_numpy()[i] for dim, i in zip(self.cell_dims, at, strict=True)
            }
            index = tuple(int(value) for value in found.values())
            text = cell_label(found, mean._token(found))
            cells.append(Cell(index, text, float(values[at]), float(errors[at])))
        return Ranking(cells)

    def _token(self, cell: Mapping[str, Any]) -> str | None:
        """The text at the cell's position, where the scores know it."""
        if "pos" not in cell or "token" not in self.raw.coords:
            return None
        return str(self.raw["token"].sel(pos=cell["pos"]).item())

    def to_dataframe(self) -> pd.DataFrame:
        """One row per example and cell, with the columns ``value`` and ``raw``."""
        return xr.Dataset({"value": self.values, "raw": self.raw}).to_dataframe().reset_index()

    def plot(self, **options: Any) -> go.Figure:
        """A plotly figure of the mean over examples (see `nnattr.plots.plot`); it is not shown."""
        from nnattr import plots  # the one upward import: results know how to ask for a picture

        return plots.plot(self, **options)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file (the folder must exist) and return its path."""
        from safetensors.numpy import save_file

        tensors = {"raw": self.raw.to_numpy(), "baselines": self.baselines.to_numpy()}
        if self.error is not None:
            tensors["error"] = self.error.to_numpy()
        header = {
            "schema": SCHEMA,
            "scale": self.scale,
            "dims": {key: list(self._array(key).dims) for key in tensors},
            "coords": {key: _coords(self._array(key)) for key in tensors},
            "provenance": self.provenance.model_dump(mode="json"),
        }
        contiguous = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
        try:
            save_file(contiguous, str(path), metadata={"nnattr": json.dumps(header)})
        except Exception as error:
            raise ResultError(
                f"The result could not be written to {str(path)!r}: {error}"
            ) from error
        return Path(path)

    def _array(self, key: str) -> xr.DataArray:
        return getattr(self, key)

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read what `save` wrote.

        Raises:
            ResultError: no such file, truncated or not a result, of an unknown schema version, or
                with shapes that contradict its header.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise ResultError(f"There is no result file {str(path)!r}.")
        try:
            with safe_open(str(path), framework="numpy") as file:
                header = json.loads((file.metadata() or {})["nnattr"])
                tensors = {key: file.get_tensor(key) for key in header["dims"]}
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise ResultError(
                f"{path} is not a complete nnattr result ({type(error).__name__}: {error})."
            ) from error
        if header.get("schema") != SCHEMA:
            raise ResultError(
                f"{path} has schema {header.get('schema')!r} and this nnattr reads schema "
                f"{SCHEMA}; load it with the version that wrote it."
            )
        try:
            arrays = {
                key: xr.DataArray(
                    value,
                    dims=header["dims"][key],
                    coords={name: tuple(coord) for name, coord in header["coords"][key].items()},
                )
                for key, value in tensors.items()
            }
            provenance = Provenance.model_validate(header["provenance"])
            return cls(scale=header["scale"], provenance=provenance, **arrays)
        except (ValidationError, ValueError, KeyError, TypeError) as error:
            raise ResultError(f"{path} contradicts its own header: {error}") from error

    def __repr__(self) -> str:
        p = self.provenance
        sizes = ", ".join(f"{dim} {size}" for dim, size in self.raw.sizes.items())
        return f"Scores({p.method} of {p.metric} on {p.model}, {p.task}: {sizes})\n{self.top(5)!r}"


def cell_label(cell: Mapping[str, Any], token: str | None = None) -> str:
    """The name of a cell in text and figures: ``L9H6``, ``L3 pos 10 ' John'``."""
    parts = []
    if "layer" in cell:
        head = next((cell[key] for key in ("head", "kv_head") if key in cell), None)
        parts.append(f"L{cell['layer']}" + ("" if head is None else f"H{head}"))
    if "pos" in cell:
        parts.append(f"pos {cell['pos']}" + ("" if token is None else f" {token!r}"))
    return " ".join(parts) or "all"


def _stderr(raw: xr.DataArray) -> xr.DataArray:
    """Standard error of the mean over the examples that have a value; NaN below two."""
    count = raw.notnull().sum("example")
    squares = ((raw - raw.mean("example")) ** 2).sum("example")
    return (squares / (count - 1).where(count > 1) / count) ** 0.5


def _coords(array: xr.DataArray) -> dict[Hashable, Any]:
    return {
        key: [list(coord.dims), coord.to_numpy().tolist()] for key, coord in array.coords.items()
    }
