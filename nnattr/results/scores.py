"""`Scores`, the one result type of attribution: labelled numbers per example.

A score is a *change of the metric*. ``raw`` holds it in the metric's own units, ``values`` divided
by ``scale``: with the mean gap between the two runs as the scale, 0 means the run patched into and
1 the other run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import xarray as xr

from nnattr.arguments import Positive, Seed, Share, checked
from nnattr.axes import ORDER
from nnattr.errors import ResultError
from nnattr.graph import parse
from nnattr.results import statistics
from nnattr.results.base import Result
from nnattr.results.baselines import spelled
from nnattr.results.cells import By, Ranking, ranking
from nnattr.results.dataset import dataset, ordered
from nnattr.results.provenance import Provenance
from nnattr.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

#: What kinds of components are called together; the others keep their names.
KINDS = {"attn": "attention", "embed": "embedding", "pos_embed": "embedding"}


@dataclass(frozen=True, eq=False, repr=False)
class Scores(Result):
    """Change of the metric for every example and cell.

    Attributes:
        data: the variables below, by their names.
        provenance: how this was made.
        scale: what ``values`` are divided by: the runs' mean gap when normalised, else 1.
    """

    VARIABLES: ClassVar = {"raw": None, "baselines": ("run", "example")}
    #: What a cell is called.
    NOUN: ClassVar[str] = "cell"
    #: The variables that it may have besides.
    OTHERS: ClassVar[tuple[str, ...]] = ("error", "rest", "by_position", "completeness")

    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        dims = tuple(map(str, self.raw.dims))
        if not set(dims) <= set(ORDER) or list(dims) != sorted(dims, key=ORDER.index):
            raise ResultError(f"The dimensions {dims} are not in the order {ORDER}.")
        if not (np.isfinite(self.scale) and self.scale != 0):
            raise ResultError(f"Scores cannot be divided by a scale of {self.scale}.")

    @classmethod
    def from_arrays(
        cls,
        raw: xr.DataArray,
        baselines: xr.DataArray,
        scale: float,
        provenance: Provenance,
        **others: xr.DataArray | None,
    ) -> Self:
        """Scores from their arrays; of the baselines those of the examples of ``raw`` are kept.

        Args:
            raw: this and the others are described by the properties of their names.
            baselines: likewise.
            scale: likewise.
            provenance: likewise.
            **others: arrays that it may have besides, by the names in ``OTHERS``.

        Raises:
            ResultError: the arrays do not belong together, or have other dimensions or names.
        """
        for name, array in others.items():
            if array is not None and name not in cls.OTHERS:
                raise ResultError(f"{cls.__name__} have no {name!r}, only {cls.OTHERS}.")
        if "example" in raw.dims and "example" in raw.coords:
            baselines = baselines.sel(example=raw["example"])
        arrays = {"raw": raw, "baselines": baselines, **others}
        return cls(dataset(arrays), provenance, scale)

    def with_arrays(self, **arrays: xr.DataArray | None) -> Self:
        """The same scores with some of their arrays exchanged; None takes one away."""
        names = ("raw", "baselines", *self.OTHERS)
        known: dict[str, Any] = {name: self._array(name) for name in names} | arrays
        return self.from_arrays(scale=self.scale, provenance=self.provenance, **known)

    @property
    def task(self) -> Task:
        """What the model read, of the examples that are here.

        Raises:
            ResultError: see `Result.task`.
        """
        whole, here = super().task, self.baselines["example"].to_numpy().tolist()
        return whole if here == list(range(len(whole))) else whole[here]

    @property
    def raw(self) -> xr.DataArray:
        """The change in the metric's own units.

        Dimensions in the glossary's order, ``example`` first unless reduced; NaN where there was
        nothing to patch (a position that a shorter prompt does not have).
        """
        return self._variable("raw")

    @property
    def baselines(self) -> xr.DataArray:
        """The metric of the two runs, dims ``("run", "example")``, from the same job as the scores.

        The runs are ``"clean"`` and ``"corrupted"``; an ablation has the first alone.
        """
        return self._variable("baselines")

    @property
    def error(self) -> xr.DataArray | None:
        """Standard errors of ``raw`` once the examples have been averaged, else None."""
        return self._array("error")

    @property
    def rest(self) -> xr.DataArray | None:
        """Where the cells are parts of a whole, its other parts, by ``component``; else None.

        A whole is ``raw`` summed over its cells plus ``rest`` summed over components.
        """
        return self._array("rest")

    @property
    def completeness(self) -> xr.DataArray | None:
        """How far an estimate along a way between the runs is from the whole of it, else None.

        In the metric's own units. Along the inputs, per example: what the embeddings' own part adds
        up to, less the gap between the runs. Along activations, per example and layer: what the
        layer's cells add up to, less what replacing all of them at once changes. It falls with the
        number of steps.
        """
        return self._array("completeness")

    @property
    def by_position(self) -> xr.DataArray | None:
        """The metric of the plain runs at every position, dims ``("run", "example", "pos")``.

        None but for a metric that is a number for every position (``Loss(per_position=True)``). Its
        ``baselines`` are the means over positions, and
        ``scores.by_position.sel(run="clean") + scores.raw`` is the metric with the cells replaced.
        """
        return self._array("by_position")

    @property
    def values(self) -> xr.DataArray:
        """The scores as asked for: normalised (0 = the run patched into, 1 = the other), or raw."""
        return self.raw / self.scale

    @property
    def cell_dims(self) -> tuple[str, ...]:
        """The dimensions that name a cell, e.g. ``("layer", "head")``."""
        return tuple(str(dim) for dim in self.raw.dims if dim != "example")

    @property
    def n_cells(self) -> int:
        """How many cells have a number in any example."""
        return int(self.mean().raw.notnull().sum())

    @checked
    def mean(self) -> Self:
        """The average over examples, with its standard error kept in ``error``."""
        if "example" not in self.raw.dims:
            return self
        known = {name: self._array(name) for name in ("raw", "rest", "completeness")}
        means = {name: one.mean("example") for name, one in known.items() if one is not None}
        return self.with_arrays(error=statistics.standard_error(self.raw), **means)

    @checked
    def stderr(self) -> xr.DataArray:
        """Standard error of the mean over examples, in the unit of ``values``; NaN for one example.

        It speaks of the spread over the task's examples, not over other tasks.
        """
        error = self.mean().error
        if error is None:
            raise ResultError("These scores hold no examples and no errors, so no standard error.")
        return error / abs(self.scale)

    @checked
    def bootstrap_ci(
        self, level: Share = 0.95, n_resamples: Positive = 2000, seed: Seed = 0
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

    @checked
    def permutation_pvalue(self, n_permutations: Positive = 10_000, seed: Seed = 0) -> xr.DataArray:
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

    @checked
    def significant(
        self, q: Share = 0.05, n_permutations: Positive = 10_000, seed: Seed = 0
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

    @checked
    def where(self, cells: xr.DataArray) -> Self:
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
        return self.with_arrays(raw=self.raw.where(cells), error=error, rest=None)

    def _per_example(self, wanted: str) -> np.ndarray:
        """The values, examples first, for a statistic over examples."""
        if "example" not in self.raw.dims:
            again = self.provenance.arguments.get("per_example", True)
            ones = "those before mean()" if again else "one per example: ask with per_example=True"
            raise ResultError(f"These scores are averaged already; {wanted} needs {ones}.")
        return self.values.to_numpy()

    def _of_cells(self, flat: np.ndarray) -> xr.DataArray:
        """One number per cell, labelled."""
        template = self.raw.isel(example=0, drop=True)
        return template.copy(data=flat.reshape(template.shape))

    def sel(self, **indexers: Any) -> Self:
        """A part of the scores by label, as ``xarray.DataArray.sel`` (``layer=9``, ``pos=[3, 4]``).

        Dimensions stay: ``layer=9`` keeps a layer axis of length 1, so that labels survive. Of
        chosen examples the baselines come with them, and `task` holds these alone; the scale stays
        that of all examples.

        Raises:
            ResultError: there is no such label, or nothing is left.
        """
        try:
            wanted = {
                key: value if isinstance(value, slice) else np.atleast_1d(value)
                for key, value in indexers.items()
            }
            others = {name: self._part(name, wanted) for name in self.OTHERS}
            raw = self.raw.sel(wanted)
        except (KeyError, ValueError, TypeError, IndexError) as problem:
            raise ResultError(
                f"{indexers} is not in these scores, whose dimensions are {dict(self.raw.sizes)}."
            ) from problem
        if not raw.size:
            raise ResultError(f"{indexers} leaves nothing of these scores.")
        return self.with_arrays(raw=raw, **others)

    def _part(self, name: str, wanted: Mapping[str, Any]) -> xr.DataArray | None:
        """A part of one of ``OTHERS``; the rest of a whole belongs to no part of its cells."""
        array = self._array(name)
        own = {} if array is None else {dim: wanted[dim] for dim in wanted if dim in array.dims}
        if array is None or (name == "rest" and len(own) < len(wanted)):
            return None
        return array.sel(own)

    @checked
    def by_kind(self) -> Self:
        """How much of the whole comes from attention, the MLPs, the embedding and the biases.

        Returns:
            the shares of ``direct_logit_attribution(..., unit="component")`` with their components
            added up by kind.

        Raises:
            ResultError: other scores.
        """
        if self.provenance.arguments.get("unit") != "component" or "component" not in self.raw.dims:
            raise ResultError(
                f"These scores are {self.provenance.method} by "
                f"{self.provenance.arguments.get('unit', 'other parts')!r}; expected "
                "direct_logit_attribution(..., unit='component')."
            )
        parts = [parse(str(name)).kind for name in self.raw["component"].to_numpy()]
        labels = np.array([KINDS.get(kind, kind) for kind in parts])
        named = {label: np.flatnonzero(labels == label) for label in dict.fromkeys(labels.tolist())}
        sums = [self.raw.isel(component=at).sum("component", skipna=False) for at in named.values()]
        raw = ordered(xr.concat(sums, xr.IndexVariable("component", list(named))))
        if "example" not in self.raw.dims:
            return self.with_arrays(raw=raw, error=None)
        return self.with_arrays(raw=raw)

    @checked
    def top(self, k: Positive = 10, by: By = "abs") -> Ranking:
        """The ``k`` strongest cells of the mean over examples.

        Args:
            k: how many.
            by: ``"abs"`` largest effect either way, ``"value"`` most positive, ``"-value"`` most
                negative.
        """
        mean = self.mean()
        spread = None if mean.error is None else mean.stderr()
        return ranking(mean.values, spread, k, by, self.provenance.caution)

    @checked
    def to_dataframe(self) -> pd.DataFrame:
        """One row per example and cell, with the columns ``value`` and ``raw``."""
        return xr.Dataset({"value": self.values, "raw": self.raw}).to_dataframe().reset_index()

    def __repr__(self) -> str:
        p = self.provenance
        sizes = ", ".join(f"{dim} {size}" for dim, size in self.raw.sizes.items())
        head = f"{type(self).__name__}({p.method} of {p.metric} on {p.subject}, {p.task}: {sizes})"
        said = [f"{p.asked}."] if p.asked else []
        return "\n".join([head, spelled(self.baselines, p.metric), *said, repr(self.top(5))])
