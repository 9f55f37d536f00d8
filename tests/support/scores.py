"""Scores of random numbers, for what needs no model."""

from __future__ import annotations

import numpy as np
import xarray as xr

from nnattr import Scores
from nnattr.results import Provenance

PROVENANCE = Provenance(
    method="activation_patching",
    metric="LogitDiff()",
    model="m",
    architecture="gpt2",
    backend="local",
    dtype="float32",
    task="pairs",
    task_hash="0123",
)


def scores(n=6, shape=(3, 4), dims=("layer", "head"), scale=2.0, seed=0, **coords):
    data = np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)
    names = ("example", *dims)
    raw = xr.DataArray(
        data, dims=names, coords={d: np.arange(k) for d, k in zip(names, data.shape, strict=True)}
    ).assign_coords(coords)
    base = xr.DataArray(
        np.stack([np.full(n, 3.0), np.full(n, 1.0)]),
        dims=("run", "example"),
        coords={"run": ["clean", "corrupted"], "example": np.arange(n)},
    )
    return Scores.from_arrays(raw, base, scale, PROVENANCE)
