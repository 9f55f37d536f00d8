"""``nnattr models``: the models at hand, the known families, and what a server has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnattr import pretrained
from nnattr.arch.table import ROWS
from nnattr.backend import NDIF, resolve
from nnattr.backend.status import Deployment, deployments
from nnattr.cli.console import Block, table
from nnattr.errors import BackendError
from nnattr.teaching import NAMES, folder

#: Rows of the table: what they say, and the keys of a configuration that say it.
SIZES = {
    "layers": ("num_hidden_layers", "n_layer"),
    "heads": ("num_attention_heads", "n_head"),
    "key/value heads": ("num_key_value_heads", "num_attention_heads", "n_head"),
    "d_model": ("hidden_size", "n_embd"),
}


def here() -> list[Block]:
    """The teaching models, the real one, and the known families."""
    found = {name: _about(folder(name)) for name in NAMES}
    found[pretrained.NAME] = _about(pretrained.folder())
    known = {name: about for name, about in found.items() if about}
    missing = [name for name in NAMES if name not in known]
    blocks: list[Block] = [_side_by_side(known)] if known else []
    if missing:
        blocks.append(f"Not here: {', '.join(missing)}; `python -m nnattr.teaching.train` makes it")
    if not pretrained.is_here():
        blocks.append(pretrained.how_to_get())
    return [
        *blocks,
        "",
        f"{len(ROWS)} known families, by the model_type of their configuration:",
        ", ".join(sorted(ROWS)),
        "",
        "Other causal language models are discovered and proven when they are loaded; "
        "`nnattr doctor MODEL` shows the proof.",
    ]


def on_server(name: str) -> list[Block]:
    """The models of the server that ``name`` names: ``"ndif"`` or an address.

    Raises:
        BackendError: it names no server, or as `deployments`.
    """
    backend = resolve(name)
    if not isinstance(backend, NDIF):
        raise BackendError(f"{name!r} is not a server; expected 'ndif' or an http(s) address.")
    found = deployments(backend)
    if not found:
        return [
            f"{backend.name} has no models yet; a model is deployed when it is first asked for."
        ]
    header = ("model", "state", "dtype", "architecture", "to nnattr")
    rows = [(one.model, one.state, one.dtype, one.architecture, _known(one)) for one in found]
    return [table(header, rows, texts=len(header))]


def _known(one: Deployment) -> str:
    """Whether nnattr has a map of a deployed model's architecture."""
    if not one.architecture:
        return "not said by the server"
    return "known" if one.architecture in ROWS else "discovered on loading"


def _about(folder: Path) -> dict[str, str]:
    """A model's size and, of a teaching model, held-out accuracies; nothing where it is not."""
    config = _json(folder / "config.json")
    if not config:
        return {}
    about = {
        row: str(next((config[key] for key in keys if key in config), "?"))
        for row, keys in SIZES.items()
    }
    weights = folder / "model.safetensors"
    about["MB"] = f"{weights.stat().st_size / 1e6:.1f}" if weights.exists() else "-"
    for key, value in _json(folder / "metrics.json").get("metrics", {}).items():
        if key.endswith("_accuracy"):
            about[f"held out: {key.removesuffix('_accuracy').replace('_', ' ')}"] = f"{value:.1%}"
    return about


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _side_by_side(found: Mapping[str, Mapping[str, str]]) -> Block:
    """A column for each model, a row for whatever one of them says."""
    rows = dict.fromkeys(row for about in found.values() for row in about)
    cells = [(row, *(about.get(row, "") for about in found.values())) for row in rows]
    return table(("", *found), cells)
