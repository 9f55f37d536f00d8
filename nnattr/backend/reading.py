"""Reading what a server sent without running anything in it.

A server's word arrives as pickles, which can name any function to be called on loading. These
readers know tensors and plain containers and refuse every other name, so that a host which you were
merely pointed at cannot run code here. (nnsight's own client loads whatever comes.)
"""

from __future__ import annotations

import io
import pickle
import zipfile
from typing import Any

import torch


class _Plain(pickle.Unpickler):
    """Plain values only; the one name that may stand in a message is that of a job's state."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("nnsight.schema.response", "Status"):
            return str
        raise pickle.UnpicklingError(f"Unsupported global {module}.{name} in a server's message")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("Unsupported global: a tensor in a server's message")


def message(content: bytes) -> dict[str, Any]:
    """The fields of a status message.

    nnsight writes it with a pickle protocol that ``torch.load(weights_only=True)`` cannot read.

    Raises:
        pickle.UnpicklingError, zipfile.BadZipFile, ValueError: it is not such a message.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(records) != 1:
            raise ValueError(f"a message with {len(records)} records")
        fields = _Plain(io.BytesIO(archive.read(records[0]))).load()
    if not isinstance(fields, dict):
        raise ValueError(f"a message that is a {type(fields).__name__}")
    return fields


def result(content: bytes, compressed: bool) -> Any:
    """What a job returned, on the CPU.

    Raises:
        pickle.UnpicklingError, RuntimeError: it holds anything but tensors and plain containers,
            or is not complete.
    """
    if compressed:
        import zstandard

        content = zstandard.ZstdDecompressor().decompress(content)
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
