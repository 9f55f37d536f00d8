"""`Scores`, the one result type of attribution: labelled numbers per example.

A score is a *change of the metric*. ``raw`` holds it in the metric's own units, ``values`` divided
by ``scale``: with the mean gap between the two runs as the scale, 0 means the run patched into and
1 the other run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr
from pydantic import ValidationError

from nnattr.axes import ORDER
from nnattr.errors import ResultError
from nnattr.results import files, statistics
from nnattr.results.cells import Cell, Ranking, cell_label
from nnattr.results.provenance import Provenance

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from nnattr.tasks import Task


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
        rest: where the cells are parts of a whole, its other parts, by ``component``: a whole is
            ``raw`` summed over its cells plus ``rest`` summed over components. None elsewhere.
    """

    raw: xr.DataArray
    baselines: xr.DataArray
    scale: float
    provenance: Provenance
    error: xr.DataArray | None = None
    rest: xr.DataArray | None = None

    def __post_init__(self) -> None:
        dims = tuple(map(str, self.raw.dims))
        if not set(dims) <= set(ORDER) or list(dims) != sorted(dims, key=ORDER.index):
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

    @property
    def task(self) -> Task:
        """The task that these scores were measured on, prompts and all.

        Raises:
            ResultError: the scores come from a file that does not hold it (schema 1).
        """
        from nnattr.tasks import Task
        from nnattr.tasks.file import unpacked

        if self.provenance.examples is None:
            raise ResultError(
                f"These scores do not hold their task, {self.provenance.task}: they were saved by "
                "an nnattr that did not keep it. Make the task again, or measure again."
            )
        return Task(**unpacked(self.provenance.examples, "The result's task"))

    def mean(self) -> Scores:
        """The average over examples, with its standard error kept in ``error``."""
        if "example" not in self.raw.dims:
            return self
        spread = statistics.standard_error(self.raw)
        rest = None if self.rest is None else self.rest.mean("example")
        return replace(self, raw=self.raw.mean("example"), error=spread, rest=rest)

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
        data = self._per_example("bootstrap_ci")
        if not 0 < level < 1:
            raise ResultError(f"level is {level}; expected a number between 0 and 1, such as 0.95.")
        bounds = statistics.bootstrap_bounds(data, level, n_resamples, seed)
        template = self.values.isel(example=0, drop=True)
        coords = {"bound": ["low", "high"], **template.coords}
        return xr.DataArray(bounds, dims=("bound", *template.dims), coords=coords)

    def permutation_pvalue(self, n_permutations: int = 10_000, seed: int = 0) -> xr.DataArray:
        """How often chance alone would move each cell's mean this far from zero.

        A sign-flip test over examples, exact where ``n_permutations`` patterns cover all of them
        (up to 14 examples), seeded otherwise; see `nnattr.results.statistics`. With many cells
        some are small by chance: `significant` corrects for that.

        Returns:
            two-sided p-values with the dimensions of a cell; NaN where there are no numbers.
        """
        data = self._per_example("permutation_pvalue")
        found = statistics.sign_flip_pvalues(data.reshape(len(data), -1), n_permutations, seed)
        return self._of_cells(found)

    def significant(
        self, q: float = 0.05, n_permutations: int = 10_000, seed: int = 0
    ) -> xr.DataArray:
        """Which cells are not noise: true where the false discovery rate stays below ``q``.

        Benjamini and Hochberg's procedure over all cells of these scores, on the p-values of
        `permutation_pvalue`. ``scores.where(scores.significant())`` keeps those cells alone, for
        ``top`` and ``plot``.

        Args:
            q: the share of false cells among those reported that you accept, on average.
            n_permutations: see `permutation_pvalue`; a thousand cells need ten thousand or more.
            seed: see `permutation_pvalue`.

        Raises:
            ResultError: there are too few examples for any cell to pass.
        """
        if not 0 < q < 1:
            raise ResultError(f"q is {q}; expected a number between 0 and 1, such as 0.05.")
        n = len(self._per_example("significant"))
        least = statistics.smallest_pvalue(n, n_permutations)
        if least > q:
            raise ResultError(
                f"With {n} examples and {n_permutations} permutations no p-value can be below "
                f"{least:.3g}, so no cell can pass q={q}. Use more of them, or a larger q."
            )
        pvalues = self.permutation_pvalue(n_permutations, seed).to_numpy().ravel()
        return self._of_cells(statistics.benjamini_hochberg(pvalues, q))

    def where(self, cells: xr.DataArray) -> Scores:
        """The scores of these cells alone; the others become NaN, grey in figures.

        Args:
            cells: true or false with the dimensions of a cell, such as `significant` gives, or a
                condition of your own: ``scores.mean().values > 0.1``.
        """
        if not set(cells.dims) <= set(self.cell_dims):
            raise ResultError(
                f"The condition has the dimensions {cells.dims}, and a cell of these scores has "
                f"{self.cell_dims}."
            )
        error = None if self.error is None else self.error.where(cells)
        return replace(self, raw=self.raw.where(cells), error=error, rest=None)

    def _per_example(self, wanted: str) -> np.ndarray:
        """The values, examples first, for a statistic over examples."""
        if "example" not in self.raw.dims:
            raise ResultError(
                f"These scores are averaged already; {wanted} needs the ones before mean()."
            )
        return self.values.to_numpy()

    def _of_cells(self, flat: np.ndarray) -> xr.DataArray:
        """One number per cell, labelled."""
        template = self.raw.isel(example=0, drop=True)
        return template.copy(data=flat.reshape(template.shape))

    def sel(self, **indexers: Any) -> Scores:
        """A part of the scores by label, as ``xarray.DataArray.sel`` (``layer=9``, ``pos=[3, 4]``).

        Dimensions stay: ``layer=9`` keeps a layer axis of length 1, so that labels survive.
        """
        wanted = {key: np.atleast_1d(value) for key, value in indexers.items()}
        try:
            error = None if self.error is None else self.error.sel(wanted)
            shared = self.rest is not None and set(wanted) <= set(map(str, self.rest.dims))
            rest = self.rest.sel(wanted) if self.rest is not None and shared else None
            return replace(self, raw=self.raw.sel(wanted), error=error, rest=rest)
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
            index = tuple(value.item() for value in found.values())
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
        arrays = {key: getattr(self, key) for key in ("raw", "baselines", "error", "rest")}
        known = {key: array for key, array in arrays.items() if array is not None}
        header = {"scale": self.scale, "provenance": self.provenance.model_dump(mode="json")}
        return files.write(path, known, header)

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read what `save` wrote.

        Raises:
            ResultError: no such file, truncated or not a result, of an unknown schema version, or
                with shapes that contradict its header.
        """
        arrays, header = files.read(path)
        try:
            provenance = Provenance.model_validate(header["provenance"])
            return cls(scale=header["scale"], provenance=provenance, **arrays)
        except (ValidationError, ValueError, KeyError, TypeError) as error:
            raise ResultError(f"{path} contradicts its own header: {error}") from error

    def __repr__(self) -> str:
        p = self.provenance
        sizes = ", ".join(f"{dim} {size}" for dim, size in self.raw.sizes.items())
        return f"Scores({p.method} of {p.metric} on {p.model}, {p.task}: {sizes})\n{self.top(5)!r}"
