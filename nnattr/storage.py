"""Tensors and plain values in one file: safetensors, with the plain values as JSON in its header.

A file appears whole or not at all, with the permissions of any new file, and reading it runs no
code. What the tensors mean is not known here: results, the parts of a checkpoint and the task
inside a result's file are all read this way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nnattr.errors import ResultError

#: 2 added the task itself to the provenance of scores. 3 made all results alike: a kind, data with
#: named axes, a provenance. What 1 and 2 look like is told in `nnattr.results.legacy`.
SCHEMA, READS = 3, (1, 2, 3)
#: The header's one entry.
KEY = "nnattr"


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A path to write to, which becomes ``path`` once all is written; else nothing is left of it.

    Raises:
        ResultError: the file cannot be written.
    """
    partial = Path(path).with_name(f"{Path(path).name}.{os.getpid()}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # as any new file; safetensors hides its own from others
        yield partial
        partial.chmod(mode)
        os.replace(partial, path)
    except Exception as error:  # safetensors has errors of its own for what the system refuses
        raise ResultError(f"{str(path)!r} could not be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def write(path: str | Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> Path:
    """Write the tensors, and ``header`` as JSON; the folder must exist.

    Raises:
        ResultError: the file cannot be written.
    """
    from safetensors.torch import save_file

    text = json.dumps({"schema": SCHEMA, **header})
    dense = {key: tensor.contiguous() for key, tensor in tensors.items()}
    with whole(path) as partial:
        save_file(dense, str(partial), metadata={KEY: text})
    return Path(path)


def read(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the header that `write` wrote.

    Raises:
        ResultError: no such file, truncated or not one of ours, or of an unknown schema version.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise ResultError(f"There is no result file {str(path)!r}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {})[KEY])
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
            schema = header["schema"]
    except (SafetensorError, KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        raise ResultError(
            f"{path} is not a complete nnattr result ({type(error).__name__}: {error})."
        ) from error
    if schema not in READS:
        raise ResultError(
            f"{path} has schema {schema!r} and this nnattr reads schemas "
            f"{', '.join(map(str, READS))}; load it with the version that wrote it."
        )
    return tensors, header
