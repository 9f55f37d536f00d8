"""Files of schemas 1 and 2, told as files of schema 3.

There only `Scores`, `HeadScores` and `Patterns` could be saved. Each array had its own coordinates
and what was not an array lay under a name of its own; the latter two knew of their provenance
nothing but the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import xarray as xr

from nnattr.results import dataset
from nnattr.results.baselines import caution
from nnattr.results.provenance import Provenance

Tensors = Mapping[str, torch.Tensor]


def upgraded(tensors: Tensors, header: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and header as schema 3 writes them.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, ResultError: they contradict each other.
    """
    if header["schema"] >= 3:
        return tensors, header
    arrays = {key: _array(tensors[key], header, key) for key in header["dims"]}
    if "head_scores" in header:
        told = _head_scores(arrays, header["head_scores"])
    elif "patterns" in header:
        told = _patterns(arrays, header["patterns"])
    else:
        told = _scores(arrays, header)
    kind, data, plain, provenance = told
    packed, rest = dataset.packed(data)
    return packed, {**rest, "kind": kind, "plain": plain, "provenance": provenance}


def _array(values: torch.Tensor, header: dict[str, Any], key: str) -> xr.DataArray:
    coords = {name: tuple(coord) for name, coord in header["coords"][key].items()}
    return xr.DataArray(values.numpy(), dims=header["dims"][key], coords=coords)


def _scores(arrays: dict[str, xr.DataArray], header: dict[str, Any]) -> tuple[Any, ...]:
    made = renamed(header["provenance"])
    if made["arguments"].get("normalized"):
        made = {**made, "caution": caution(arrays["baselines"], made["metric"])}
    if "example" in arrays["raw"].dims:  # a part of the examples kept the baselines of all
        arrays["baselines"] = arrays["baselines"].sel(example=arrays["raw"]["example"])
    plain = {"scale": header["scale"]}
    return "Scores", dataset.dataset(arrays), plain, made


def renamed(provenance: dict[str, Any]) -> dict[str, Any]:
    """The provenance of an ablation by today's names; of its dataset there was a hash alone."""
    if provenance.get("method") != "ablation":
        return provenance
    names = {"fill": "replacement", "dataset": "dataset_hash"}
    given = {names.get(key, key): value for key, value in provenance["arguments"].items()}
    method = "ablate_together" if "parts" in given else "ablate"
    return {**provenance, "method": method, "arguments": given}


def _head_scores(arrays: dict[str, xr.DataArray], known: dict[str, Any]) -> tuple[Any, ...]:
    kinds = arrays["scores"]["kind"].to_numpy().tolist()
    limits = [float(known["thresholds"][kind]) for kind in kinds]
    for name in ("ids", "mask"):
        arrays[name] = arrays[name].rename({"dim_0": "example", "dim_1": "column"})
    data = dataset.dataset({**arrays, "threshold": xr.DataArray(limits, {"kind": kinds})})
    plain = {"strings": known["strings"], "second": known["second"]}
    return "HeadScores", data, plain, _only(known["model"])


def _patterns(arrays: dict[str, xr.DataArray], known: dict[str, Any]) -> tuple[Any, ...]:
    plain = {key: known[key] for key in ("tokens", "prompts", "weighted")}
    return "Patterns", dataset.dataset(arrays), plain, _only(known["model"])


def _only(model: str) -> dict[str, Any]:
    """A provenance that knows the model's name alone."""
    known = dict.fromkeys(("method", "architecture", "backend", "dtype"), "")
    return Provenance(model=model, **known).model_dump(mode="json")
