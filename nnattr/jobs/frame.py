"""The frame of an answer: what its numbers mean, fixed before any number is there.

A job returns bare tensors. The frame holds the names of their axes, which cells a prompt does not
have, how to normalise, and the provenance; it is plain data, so it can wait on disk while
a server works.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from pydantic import BaseModel, ConfigDict

from nnattr.axes import ORDER
from nnattr.backend import Cost
from nnattr.backend.refusals import accepted
from nnattr.errors import BackendError, MetricError, TaskError
from nnattr.jobs.record import ran
from nnattr.results import Provenance, Scores
from nnattr.results.baselines import caution


class Frame(BaseModel):
    """How to read what a job of a causal method returns.

    Attributes:
        layers, units, cells: sizes of the axes of ``change`` after the examples.
        unit: the axis of the units, ``"head"``, ``"kv_head"`` or ``"neuron"``; None for layers.
        places: where each cell is one position: its label and its token; else None.
        absent: for each example the cells that its prompt does not have.
        asked_layers: the layers that were asked about; None for all.
        asked: of these the cells (layer, unit, cell) that were; None for all.
        together: whether all cells were replaced at once, so that there is one number.
        by_position: whether the metric is a number for each of the ``places``.
        direction: which run was patched into.
        normalized: whether values are divided by the gap between the runs.
        contrast: whether every example was read twice, see `nnattr.tasks.contrast`.
        complete: along which way a completeness error was taken (see `nnattr.engine.integrated`):
            ``"inputs"`` or, of each layer, ``"activations"``; empty if none was.
        magnitudes: whether the numbers are magnitudes, without a sign.
        prompts: the clean prompts, for messages.
        provenance: everything but the cost.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int
    units: int
    cells: int
    unit: str | None
    places: tuple[tuple[int, str], ...] | None
    absent: tuple[tuple[bool, ...], ...]
    asked_layers: tuple[int, ...] | None = None
    asked: tuple[tuple[int, int, int], ...] | None = None
    together: bool = False
    by_position: bool = False
    direction: Literal["denoising", "noising"]
    normalized: bool
    contrast: bool = False
    complete: Literal["", "inputs", "activations"] = ""
    magnitudes: bool = False
    prompts: tuple[str, ...]
    provenance: Provenance

    def scores(self, values: dict[str, Any], cost: Cost) -> Scores:
        """Label what the job returned.

        Args:
            values: ``change`` [example, layer, unit, cell]; the metric of the run patched into
                and of the other, ``base`` and ``source`` [example] or, with numbers for positions,
                [example, cell]; the ``engine`` that was used
                and why it ``fell_back``, its ``peak`` of memory, the ``rows`` of its largest pass,
                and the ``dtype`` that was computed in, which on a server is the server's.
            cost: what the job or jobs cost.

        Raises:
            MetricError: the metric was not one finite number per example.
            TaskError: the runs do not differ, so there is nothing to divide by.
            BackendError: the values are not what the job was to return.
        """
        values, baselines, scale, provenance = self.measured(values, cost)
        raw, by_position = self._labelled(values["change"], values["base"]), None
        if self.by_position:
            runs = [raw.copy(data=values[key].double().numpy()) for key in self._order]
            by_position = xr.concat(runs, baselines["run"])
        error = self._completeness(values)
        more = {"by_position": by_position, "completeness": error}
        return Scores.from_arrays(raw, baselines, scale, provenance, **more)

    @property
    def _order(self) -> tuple[str, str]:
        """What jobs call the clean and the corrupted run."""
        return ("source", "base") if self.direction == "denoising" else ("base", "source")

    def measured(
        self, values: dict[str, Any], cost: Cost
    ) -> tuple[dict[str, Any], xr.DataArray, float, Provenance]:
        """What a result has besides its cells: baselines, scale, provenance; see `scores`.

        Returns:
            with these the values, of which two readings have become one.
        """
        values = self._contrasted(values)
        runs = {key: values[key].double() for key in self._order}
        if self.by_position:
            runs = {key: one.nanmean(-1) for key, one in runs.items()}
        base, source = (runs[key].numpy() for key in ("base", "source"))
        self._finite(base, "patched into")
        self._finite(source, "patched from")
        baselines = xr.DataArray(
            np.stack(list(runs.values())),
            dims=("run", "example"),
            coords={"run": ["clean", "corrupted"], "example": np.arange(len(base))},
        )
        scale = self._gap(base, source) if self.normalized else 1.0
        scale = abs(scale) if self.magnitudes else scale
        arguments = {**self.provenance.arguments, "engine": values["engine"]}
        doubt = caution(baselines, self.provenance.metric) if self.normalized else ""
        update = {**ran(values, cost), "arguments": arguments, "caution": doubt}
        return values, baselines, scale, self.provenance.model_copy(update=update)

    @property
    def said(self) -> str:
        """How messages name what was asked."""
        return f"{self.provenance.method} with {self.provenance.metric}"

    def shapes(self, layers: int | None = None) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors that a job returns for so many layers; None means all."""
        n = len(self.prompts) * (2 if self.contrast else 1)
        layers = self.layers if layers is None else layers
        plain = (n, self.cells) if self.by_position else (n,)
        shapes = {"base": plain, "source": plain, "change": (n, layers, self.units, self.cells)}
        return {**shapes, "completeness": (n, layers)} if self.complete else shapes

    def refuse(self, values: dict[str, Any], layers: int | None = None) -> None:
        """Raise what the job refused with, or if these are not values that it returns.

        Args:
            values: what came back.
            layers: how many layers were asked for; None means all.
        """
        said = self.said
        accepted(values, said)
        for key, shape in self.shapes(layers).items():
            value = values.get(key)
            if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape:
                given = tuple(getattr(value, "shape", ())) or type(value).__name__
                raise BackendError(
                    f"{said}: {key!r} came back as {given}, and {shape} was asked for."
                )
        if not all(isinstance(values.get(key), str) for key in ("engine", "dtype")):
            raise BackendError(f"{said}: what came back does not say how it was computed.")

    def _contrasted(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values of the first reading less those of the second, where there are two."""
        if not self.contrast:
            return values
        n = len(self.prompts)
        known = ("base", "source", "change", *(["completeness"] if self.complete else []))
        both = {key: values[key].double() for key in known}
        return {**values, **{key: value[:n] - value[n:] for key, value in both.items()}}

    def _completeness(self, values: dict[str, Any]) -> xr.DataArray | None:
        if not self.complete:
            return None
        error = values["completeness"].float().numpy()
        example = np.arange(len(error))
        if self.complete == "inputs":
            whole = np.nanmean(error, 1)  # the same for every layer
            return xr.DataArray(whole, dims=("example",), coords={"example": example})
        coords = {"example": example, "layer": np.arange(self.layers)}
        return xr.DataArray(error, dims=("example", "layer"), coords=coords)

    def _unasked(self, base: torch.Tensor) -> torch.Tensor:
        """The cells without a number [example, layer, unit, cell]: absent, or not asked for."""
        absent = torch.tensor(self.absent)[:, None, None, :]
        if self.by_position:
            absent = absent | base.isnan()[:, None, None, :]
        asked = torch.ones(self.layers, self.units, self.cells, dtype=torch.bool)
        if self.asked is not None:
            asked[:] = False
            asked[tuple(torch.tensor(self.asked).T)] = True
        elif self.asked_layers is not None:
            asked[[i for i in range(self.layers) if i not in self.asked_layers]] = False
        return absent | ~asked

    def _labelled(self, change: torch.Tensor, base: torch.Tensor) -> xr.DataArray:
        absent = self._unasked(base)
        bad = (~change.isfinite() & ~absent).nonzero()
        if len(bad):
            example, layer, unit, _ = bad[0].tolist()
            raise MetricError(
                f"{self.provenance.metric} is {change[tuple(bad[0])]} for layer {layer}, unit "
                f"{unit} of example {example}, {self.prompts[example]!r}, though it is finite on "
                "both runs. Use dtype='float32', or another metric."
            )
        values = change.float().masked_fill(absent, float("nan")).numpy()
        array = xr.DataArray(
            values,
            dims=("example", "layer", "unit", "pos"),
            coords={
                "example": np.arange(values.shape[0]),
                "layer": np.arange(self.layers),
                "unit": np.arange(self.units),
                "pos": np.arange(self.cells),
            },
        )
        if self.places is None:
            array = array.isel(pos=0, drop=True)
        else:
            labels, tokens = zip(*self.places, strict=True)
            array = array.assign_coords(pos=list(labels), token=("pos", list(tokens)))
        if self.together:
            array = array.isel(layer=0, drop=True)
        if self.unit is None:
            return array.isel(unit=0, drop=True)
        named = array.rename(unit=self.unit)
        return named.transpose(*sorted(map(str, named.dims), key=ORDER.index))

    def _gap(self, base: np.ndarray, source: np.ndarray) -> float:
        """The task's mean change from the run patched into to the other run."""
        gap = float(np.mean(source - base))
        size = float(np.mean(np.abs(source)) + np.mean(np.abs(base)))
        if abs(gap) <= 1e-5 * max(size, 1e-3):
            raise TaskError(
                f"{self.provenance.metric} is {base.mean():.6g} in the run patched into and "
                f"{source.mean():.6g} in the other, on average: there is nothing to attribute. Use "
                "prompts on which the runs differ, another metric, or normalized=False."
            )
        return gap

    def _finite(self, values: np.ndarray, run: str) -> None:
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise MetricError(
                f"{self.provenance.metric} is {values[bad[0]]} on the run {run} of example "
                f"{bad[0]}, {self.prompts[bad[0]]!r}. Check the model's weights for NaN or "
                f"overflow (`nnattr doctor {self.provenance.model}`), or use dtype='float32'."
            )
