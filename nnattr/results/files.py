"""Scores on disk: one safetensors file, with the labels as JSON in its header.

Loading runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nnattr.errors import ResultError

#: 2 added the task itself to the provenance; a file of schema 1 is read as one that lacks it.
SCHEMA, READS = 2, (1, 2)


def write(path: str | Path, arrays: Mapping[str, xr.DataArray], rest: Mapping[str, Any]) -> Path:
    """Write the arrays and what else is known, ``rest``, as plain values.

    Raises:
        ResultError: the file cannot be written.
    """
    from safetensors.numpy import save_file

    header = {
        "schema": SCHEMA,
        "dims": {key: list(array.dims) for key, array in arrays.items()},
        "coords": {key: _coords(array) for key, array in arrays.items()},
        **rest,
    }
    tensors = {key: np.ascontiguousarray(array.to_numpy()) for key, array in arrays.items()}
    try:
        save_file(tensors, str(path), metadata={"nnattr": json.dumps(header)})
    except Exception as error:
        raise ResultError(f"The result could not be written to {str(path)!r}: {error}") from error
    return Path(path)


def read(path: str | Path) -> tuple[dict[str, xr.DataArray], dict[str, Any]]:
    """The arrays and the header that `write` wrote.

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
    if header.get("schema") not in READS:
        raise ResultError(
            f"{path} has schema {header.get('schema')!r} and this nnattr reads schemas "
            f"{' and '.join(map(str, READS))}; load it with the version that wrote it."
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
    except (ValueError, KeyError, TypeError) as error:
        raise ResultError(f"{path} contradicts its own header: {error}") from error
    return arrays, header


def _coords(array: xr.DataArray) -> dict[Hashable, Any]:
    return {
        key: [list(coord.dims), coord.to_numpy().tolist()] for key, coord in array.coords.items()
    }
