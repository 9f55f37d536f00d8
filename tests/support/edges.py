"""Scores of edges, of random numbers, for what needs no model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from nnattr import EdgeScores
from nnattr.graph import Graph, parse_edge
from nnattr.results import Provenance
from tests.support.scores import PROVENANCE

MADE = PROVENANCE.model_copy(
    update={
        "method": "path_patching",
        "arguments": {
            "between": "frozen",
            "direction": "denoising",
            "normalized": True,
            "per_example": True,
            "positions": "all",
        },
    }
)


def edge_scores(
    graph: Graph,
    *,
    n: int = 6,
    scale: float = 2.0,
    seed: int = 0,
    untestable: Sequence[str] = (),
    positions: Sequence[str] = (),
    made: Provenance = MADE,
) -> EdgeScores:
    """Every edge of a graph with a random number per example; 0 where it cannot be tested."""
    names = [[str(part) for part in parts] for parts in (graph.senders, graph.receivers)]
    dims = ("example", "sender", "receiver", "pos")
    shape = (n, *map(len, names), len(positions) or 1)
    numbers = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    numbers[:, ~graph.mask().numpy()] = np.nan
    coords = {"example": np.arange(n), "sender": names[0], "receiver": names[1]}
    raw = xr.DataArray(numbers, dims=dims, coords=coords)
    testable = raw.notnull().all("example")
    for edge in map(parse_edge, untestable):
        at = {"sender": str(edge.sender), "receiver": str(edge.receiver)}
        raw.loc[at], testable.loc[at] = 0.0, False
    base = xr.DataArray(
        np.stack([np.full(n, 3.0), np.full(n, 1.0)]),
        dims=("run", "example"),
        coords={"run": ["clean", "corrupted"], "example": np.arange(n)},
    )
    if not positions:
        raw, testable = (one.isel(pos=0, drop=True) for one in (raw, testable))
    else:
        places = {"pos": np.arange(len(positions)), "token": ("pos", list(positions))}
        raw, testable = (one.assign_coords(places) for one in (raw, testable))
    return EdgeScores.from_arrays(raw, base, scale, made, testable=testable)
