"""A dataset with named axes as bare tensors and plain values, the way it lies in a file, and back.

Numbers become tensors; texts, dimensions and coordinates become JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr

from nnattr.axes import ORDER
from nnattr.errors import ResultError


def dataset(arrays: Mapping[str, xr.DataArray | None]) -> xr.Dataset:
    """Arrays that agree on the coordinates they share, side by side; None stands for nothing.

    Raises:
        ResultError: they do not agree.
    """
    known = [array.rename(name) for name, array in arrays.items() if array is not None]
    try:
        return xr.merge(known, compat="broadcast_equals", join="exact", combine_attrs="drop")
    except ValueError as error:
        said = ", ".join(f"{one.name} {dict(one.sizes)}" for one in known)
        raise ResultError(f"These arrays do not fit together: {said} ({error}).") from error


def packed(data: xr.Dataset) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The numbers by variable, and everything else as plain values."""
    numbers = {str(key): one for key, one in data.data_vars.items() if one.dtype.kind in "fiub"}
    texts = {str(key): one for key, one in data.data_vars.items() if str(key) not in numbers}
    tensors = {key: torch.from_numpy(np.array(one.to_numpy())) for key, one in numbers.items()}
    return tensors, {
        "dims": {key: list(map(str, one.dims)) for key, one in numbers.items()},
        "texts": {key: _plain(one) for key, one in texts.items()},
        "coords": {str(key): _plain(one) for key, one in data.coords.items()},
    }


def unpacked(tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> xr.Dataset:
    """What `packed` took apart.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: the tensors contradict the header.
    """
    numbers = {key: (dims, tensors[key].numpy()) for key, dims in header["dims"].items()}
    texts = {key: _read(*one) for key, one in header["texts"].items()}
    coords = {key: _read(*one) for key, one in header["coords"].items()}
    return xr.Dataset({**numbers, **texts}, coords)


def _plain(array: xr.DataArray) -> list[Any]:
    """Dimensions, values, and whether these are Python's own objects (texts of any length)."""
    return [list(map(str, array.dims)), array.to_numpy().tolist(), array.dtype.kind == "O"]


def _read(dims: list[str], values: Any, own: bool) -> tuple[list[str], np.ndarray]:
    return dims, np.array(values, dtype=object if own else None)


def ordered(values: xr.DataArray) -> xr.DataArray:
    """The dimensions in the glossary's order."""
    return values.transpose(*[dim for dim in ORDER if dim in values.dims])
