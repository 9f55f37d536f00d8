"""Finished parts of a study on disk, in a folder named by a digest of all that they depend on.

The same study finds its parts again, and another task, metric, model or argument never takes them.
Loading a part runs no code.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nnattr import storage
from nnattr.backend import Cost
from nnattr.errors import BackendError, ResultError
from nnattr.jobs.frame import Frame
from nnattr.jobs.study import Study
from nnattr.metrics import describe
from nnattr.model.edits import Edit
from nnattr.runs.as_built import is_users, runs_its_class

#: What a part holds besides plain values.
TENSORS = ("change", "base", "source")
#: What says how an adapter of PEFT's is switched.
ADAPTER = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")
#: Arguments that finished parts do not depend on.
FREE = ("normalized", "max_memory")


@dataclass(frozen=True)
class Part:
    """What one job returned, and what it cost."""

    values: dict[str, Any]
    cost: Cost

    @property
    def layers(self) -> int:
        """How many layers it covers."""
        return self.values["change"].shape[1]


class Store:
    """Finished parts of one study in a folder.

    Args:
        folder: where; made if needed. Parts of several studies may share it.
        study: whose parts; a digest of its content names its own folder.
        frame: what a part must look like.

    Raises:
        ResultError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path, study: Study, frame: Frame) -> None:
        self.folder = Path(folder) / digest(study)
        self.frame = frame
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResultError(
                f"The checkpoint {str(folder)!r} is not a writable folder."
            ) from error

    def read(self) -> dict[int, Part]:
        """Finished parts by first layer; where two overlap, the one that starts lower.

        Raises:
            ResultError: a file is damaged, or not a part of this study.
        """
        parts: dict[int, Part] = {}
        end = 0
        for path in sorted(self.folder.glob("layer-*.safetensors"), key=_layer):
            part, first = self._part(path), _layer(path)
            if first >= end:
                parts[first] = part
                end = first + part.layers
        return parts

    def write(self, layer: int, part: Part) -> None:
        """Keep a part: a whole file appears at once, or none.

        Raises:
            ResultError: it cannot be written.
        """
        tensors = {key: part.values[key] for key in TENSORS}
        plain = {key: value for key, value in part.values.items() if key not in tensors}
        header = {"cost": asdict(part.cost), "plain": plain}
        storage.write(self.folder / f"layer-{layer}.safetensors", tensors, header)

    def _part(self, path: Path) -> Part:
        try:
            tensors, header = storage.read(path)
            values = {key: tensors[key] for key in TENSORS}
            part = Part(values | header["plain"], Cost(**header["cost"]))
            self.frame.refuse(part.values, min(part.layers, self.frame.layers - _layer(path)))
        except (ResultError, KeyError, TypeError, ValueError, BackendError) as error:
            raise ResultError(
                f"{path} is not a finished part of this study; delete it to compute it again."
            ) from error
        return part


def _layer(path: Path) -> int:
    """The first layer of the part in a file, from its name ``layer-N.safetensors``."""
    number = path.stem.partition("-")[2]
    return int(number) if number.isdecimal() else -1


def digest(study: Study) -> str:
    """A digest of everything that a study's numbers depend on, except the backend."""
    provenance = study.frame().provenance
    content = [
        provenance.method,
        {k: v for k, v in provenance.arguments.items() if k not in FREE},
        study.engine,
        describe(study.metric),
        _code(study.metric),
        [provenance.model, provenance.revision, provenance.architecture, provenance.dtype],
        [*_weights(study.model.module), *_done_to(study.model.module)],
        [_edit(edit) for edit in study.model.edits],
        provenance.task_hash,
        provenance.versions,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _edit(edit: Edit) -> list[Any]:
    """What an edit does: in words, and its numbers."""
    given = [*edit.dataset.values(), *(one for *_, one in edit.places), edit.vector]
    return [edit.said, edit.sites, [one.tolist() for one in given if one is not None]]


def _code(metric: Any) -> list[str]:
    """What a metric does: its source, and the values that it was made with."""
    function = metric if inspect.isfunction(metric) else type(metric)
    made_with = [vars(metric)] if hasattr(metric, "__dict__") else []
    if inspect.isfunction(metric):
        cells = metric.__closure__ or ()
        made_with += [metric.__defaults__, [cell.cell_contents for cell in cells]]
    found = [repr(made_with)]
    with contextlib.suppress(OSError, TypeError):  # no source at hand: the name has to do
        found.append(inspect.getsource(function))
    return found


def _done_to(module: Any) -> list[str]:
    """What tells a module from the same weights with other hooks, forwards or adapters.

    What a hook does, no file can say: parts made with one are found again by this process alone.
    """
    marks = []
    for name, part in module.named_modules():
        hooks = (*part._forward_pre_hooks.values(), *part._forward_hooks.values())
        own = [hook for hook in hooks if is_users(hook)]
        own += [] if runs_its_class(part) else [vars(part)["__nnsight__"].original]
        marks += [f"{name} {os.getpid()} {id(one)}" for one in own]
        switches = {key: repr(getattr(part, key)) for key in ADAPTER if hasattr(part, key)}
        marks += [f"{name} {switches}"] if switches else []
    return marks


def _weights(module: Any) -> list[str]:
    """Samples of the weights that are loaded here, which tell apart two models of one name."""
    marks = []
    for name, value in module.named_parameters():
        if value.device.type != "meta":
            few = value.detach().flatten()[:: max(1, value.numel() // 16)].tolist()
            marks.append(f"{name} {value.sum(dtype=torch.float64).item():.6e} {few}")
    return [hashlib.sha256(mark.encode()).hexdigest()[:16] for mark in marks]
