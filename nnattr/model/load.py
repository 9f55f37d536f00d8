"""Load a model, here or on a server, and prove its structure where nnattr does not know it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnattr import teaching
from nnattr.arch.discover import candidates
from nnattr.arch.spec import ArchSpec, missing
from nnattr.arch.table import lookup
from nnattr.arguments import checked
from nnattr.backend import Backend, resolve
from nnattr.backend.progress import with_bar
from nnattr.errors import ArchError, BackendError, TaskError
from nnattr.model.model import Model
from nnattr.model.verify import proven
from nnattr.runs.places import raw
from nnattr.tokens import Tokenizer

#: Values of ``device`` by which transformers spreads a model over devices itself.
SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")


@checked
@with_bar("load the model")
def load(
    model: str | Path | Any,
    *,
    tokenizer: str | Path | Tokenizer | None = None,
    backend: str | Backend | None = None,
    device: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    spec: ArchSpec | None = None,
    **kwargs: Any,
) -> Model:
    """Load a causal language model, here or on a server.

    Args:
        model: a teaching model's name (``"teaching-gpt2"``, ``"teaching-llama"``), a Hugging Face
            id, a local folder, or a module that is already loaded (it is put in eval mode: dropout
            would make a run differ from itself).
        tokenizer: a tokenizer, or the id or folder of one; needed with a loaded module.
        backend: ``"local"``, ``"simulated"``, ``"ndif"``, an ``http(s)://host:port``, or a backend
            object. Without it ``NNATTR_BACKEND``, the user's file, then local. With a remote
            backend no weights are loaded here.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"`` to spread over devices; by
            default a GPU if there is one. Local backends only.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``; by default what the checkpoint says.
        revision: a branch, tag or commit on the Hub.
        spec: your own `ArchSpec` for a family that nnattr does not know; it is proven before use.
        **kwargs: passed to ``from_pretrained`` (``trust_remote_code=True``,
            ``attn_implementation="eager"``, ...).

    Raises:
        ArchError: there is no such model, or its structure is unknown and could not be proven.
        TaskError: a loaded module was given without a tokenizer.
        BackendError: the backend, device or dtype is unknown, or a loaded module was given to a
            remote backend.

    Cost: the weights are read once; a family outside the table also costs a few short forward
    passes, on the backend, that prove its discovered structure.
    """
    where = resolve(backend)
    module, source, name = None, model, str(model)
    if not isinstance(model, str | Path):
        module, source = model, getattr(model, "name_or_path", "")
        name = source or type(model).__name__
    elif name in teaching.NAMES:
        source = str(teaching.folder(name))
    if module is not None and not where.holds_weights:
        raise BackendError(
            f"A loaded module cannot run on {where.name}: the server uses its own weights, not "
            "yours. Pass the model's id instead, or use backend='local'."
        )
    tokenizer = _tokenizer(source if tokenizer is None else tokenizer, name, revision, kwargs)
    if where.holds_weights and module is None:
        module = _weights(str(source), name, device, dtype, revision, kwargs)
    nn = _wrap(module if module is not None else str(source), name, tokenizer, revision, kwargs)
    known = lookup(nn.config)
    if spec is None and known is not None and not missing(known, raw(nn)):
        return Model(nn, tokenizer, known, where, name, revision)
    specs = [spec] if spec is not None else list(candidates(raw(nn)))
    return proven(Model(nn, tokenizer, specs[0], where, name, revision), specs)


def _tokenizer(given: Any, name: str, revision: str | None, kwargs: Mapping[str, Any]) -> Any:
    """The tokenizer, with a padding token and left padding (the last token is position -1)."""
    from transformers import AutoTokenizer

    if isinstance(given, str | Path):
        if not str(given):
            raise TaskError(f"{name} was given as a loaded module: pass its tokenizer= as well.")
        trust = {"trust_remote_code": kwargs.get("trust_remote_code", False)}
        try:
            given = AutoTokenizer.from_pretrained(str(given), revision=revision, **trust)
        except Exception as error:
            raise ArchError(_not_found(str(given), "tokenizer", error)) from error
    given.padding_side = "left"
    if given.pad_token is None:
        given.pad_token = given.eos_token or given.bos_token or given.unk_token
    return given


def _weights(
    source: str,
    name: str,
    device: str | None,
    dtype: str | None,
    revision: str | None,
    kwargs: Mapping[str, Any],
) -> Any:
    """The Hugging Face module with its weights, in eval mode and frozen."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    _require_known(device, dtype)
    logging.disable_progress_bar()
    try:
        module = AutoModelForCausalLM.from_pretrained(
            source, revision=revision, dtype=dtype or "auto", device_map=device, **kwargs
        )
    except Exception as error:
        raise ArchError(_not_found(name, "model", error)) from error
    finally:
        logging.enable_progress_bar()
    return module.requires_grad_(False)


def _require_known(device: str, dtype: str | None) -> None:
    """Refuse an unknown device or dtype, before transformers fails on it."""
    import torch

    if device not in SPREAD:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise BackendError(
                f"device is {device!r}, which is not here ({str(error).splitlines()[0]}). Expected "
                "'cpu', 'cuda', 'cuda:1' or 'auto'."
            ) from error
    named = str(dtype or "float32").removeprefix("torch.")
    if named != "auto" and not isinstance(getattr(torch, named, None), torch.dtype):
        raise BackendError(f"dtype is {dtype!r}; expected 'float32', 'bfloat16' or 'float16'.")


def _wrap(
    target: Any, name: str, tokenizer: Any, revision: str | None, kwargs: Mapping[str, Any]
) -> Any:
    """The nnsight model: around a loaded module, or from the configuration alone."""
    from nnsight import TransformersModel

    given = {"tokenizer": tokenizer, "task": "text-generation"}
    try:
        if isinstance(target, str):
            return TransformersModel(target, revision=revision, **given, **kwargs)
        return TransformersModel(target.eval(), **given)
    except Exception as error:
        raise ArchError(_not_found(name, "model", error)) from error


def _not_found(name: str, what: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()
    return (
        f"The {what} {name!r} could not be loaded ({type(error).__name__}: "
        f"{reason[0] if reason else ''}). Expected one of {', '.join(teaching.NAMES)}, a Hugging "
        "Face id of a causal language model, or a local folder."
    )
