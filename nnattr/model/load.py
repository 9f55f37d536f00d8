"""Load a model, here or on a server, and prove its structure where nnattr does not know it."""

from __future__ import annotations

import copyreg
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

from nnattr import pretrained, teaching
from nnattr.arch.discover import candidates
from nnattr.arch.kind import (
    require_causal,
    require_generating,
    require_head,
    require_module,
    require_unembedding,
)
from nnattr.arch.spec import ArchSpec, missing
from nnattr.arch.table import lookup
from nnattr.arguments import checked
from nnattr.backend import Backend, resolve
from nnattr.backend.alone import alone
from nnattr.errors import ArchError, BackendError, TaskError
from nnattr.model.checkpoint import described, not_found, quiet, task, weights
from nnattr.model.first_run import require_as_known
from nnattr.model.loan import on_loan
from nnattr.model.model import Model
from nnattr.model.quantized import require_rows_apart
from nnattr.model.verify import proven
from nnattr.progress import with_bar
from nnattr.runs.places import raw
from nnattr.tokens import Tokenizer


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
        model: a teaching model's name (``"teaching-gpt2"``, ``"teaching-llama"``),
            ``"smollm2-135m"`` (see `nnattr.pretrained`), a Hugging Face id, a local folder, or a
            module that is already loaded. Jobs run that as it is at the time, with its hooks and
            adapters, but in eval mode: dropout would make a run differ from itself.
        tokenizer: a tokenizer, or the id or folder of one; needed with a loaded module. The model
            gets a copy, which pads on the left: yours is not changed.
        backend: ``"local"``, ``"simulated"``, ``"ndif"``, an ``http(s)://host:port``, or a backend
            object. Without it ``NNATTR_BACKEND``, the user's file, then local. With a remote
            backend no weights are loaded here.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"`` to spread over devices; by
            default a GPU if there is one. Local backends only.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``; by default what the checkpoint says.
        revision: a branch, tag or commit on the Hub.
        spec: your own `ArchSpec` for a family that nnattr does not know; it is proven before use.
        **kwargs: passed to ``from_pretrained`` (``trust_remote_code=True``,
            ``attn_implementation="eager"``, ...). With ``gguf_file="x.gguf"`` weights and tokenizer
            are read from that file of the folder, and rounded weights dequantized.

    Threads may share what is returned, their jobs here taking turns, and it is pickled with its
    weights as they are, to be had by another process.

    Raises:
        ArchError: there is no such model; it is not a causal language model, or its checkpoint
            lacks weights; its structure is unknown and could not be proven; the module was changed
            into something that its family is not, or its rows depend on each other (dynamic int8 of
            ``torch.ao``).
        TaskError: a loaded module was given without a tokenizer.
        BackendError: the backend, device or dtype is unknown, or a loaded module was given to a
            remote backend.

    A model with a vision tower is loaded whole, and its text part analysed.

    Cost: the weights are read once, and one forward pass over eight tokens shows whether the module
    is what its family is; a family outside the table costs a few more, on the backend, that prove
    its discovered structure.
    """
    where = resolve(backend)
    module, source, name = _meant(model, where, spec)
    if kwargs.get("gguf_file") and not where.holds_weights:
        raise BackendError(
            f"A GGUF file cannot run on {where.name}: servers load models by their id. Pass the id "
            "of the model it was made from, or use backend='local'."
        )
    tokenizer = _tokenizer(source if tokenizer is None else tokenizer, name, revision, kwargs)
    config = module.config if module is not None else described(source, name, revision, kwargs)
    if module is not None:
        require_rows_apart(module, name)
    elif not where.holds_weights:
        require_head(name, config)
    with alone():
        if where.holds_weights and module is None:
            module = weights(source, name, config, device, dtype, revision, kwargs)
        target = source if module is None else module
        nn = _wrap(target, name, tokenizer, task(config) or "text-generation", revision, kwargs)
    known = lookup(nn.config)
    if spec is None and known is not None and not missing(known, raw(nn)):
        found = Model(nn, tokenizer, known, where, name, revision)
        if where.holds_weights:
            with on_loan(nn, name):
                require_as_known(found)
        return found
    specs = [spec] if spec is not None else list(candidates(raw(nn)))
    return proven(Model(nn, tokenizer, specs[0], where, name, revision), specs)


def _meant(model: Any, where: Backend, spec: ArchSpec | None) -> tuple[Any, str, str]:
    """The module if one was given, what its tokenizer or it is loaded from, and its name."""
    if isinstance(model, str | Path):
        name = str(model)
        if name in teaching.NAMES:
            return None, str(teaching.folder(name)), name
        return None, _fetched(where) if name == pretrained.NAME else name, name
    require_module(model)
    source = str(getattr(model, "name_or_path", ""))
    name = source or type(model).__name__
    require_causal(name, [type(model).__name__], model.config)
    if spec is None:
        require_unembedding(model)
    require_generating(model)
    if not where.holds_weights:
        raise BackendError(
            f"A loaded module cannot run on {where.name}: the server uses its own weights, not "
            "yours. Pass the model's id instead, or use backend='local'."
        )
    return model, source, name


def _tokenizer(given: Any, name: str, revision: str | None, kwargs: Mapping[str, Any]) -> Any:
    """The tokenizer, with a padding token and left padding (the last token is position -1)."""
    from transformers import AutoTokenizer

    if isinstance(given, str | Path):
        if not str(given):
            raise TaskError(f"{name} was given as a loaded module: pass its tokenizer= as well.")
        passed = {key: kwargs[key] for key in ("trust_remote_code", "gguf_file") if key in kwargs}
        try:
            given = AutoTokenizer.from_pretrained(str(given), revision=revision, **passed)
        except Exception as error:
            raise ArchError(not_found(str(given), "tokenizer", error)) from error
    else:
        given = _copied(given, name)
    given.padding_side = "left"
    if given.pad_token is None:
        given.pad_token = given.eos_token or given.bos_token or given.unk_token
    return given


def _copied(tokenizer: Any, name: str) -> Any:
    """A copy of a tokenizer, so that the caller's own stays as it is, and changes nothing later."""
    try:
        return deepcopy(tokenizer)
    except Exception as error:  # one of somebody's own code may hold what cannot be copied
        raise TaskError(
            f"The tokenizer given for {name} cannot be copied ({type(error).__name__}: {error}). "
            "Pass its id or folder instead."
        ) from error


def _wrap(
    target: Any,
    name: str,
    tokenizer: Any,
    task: str,
    revision: str | None,
    kwargs: Mapping[str, Any],
) -> Any:
    """The nnsight model: around a loaded module, or from the configuration alone."""
    from nnsight import TransformersModel

    try:
        with quiet(), warnings.catch_warnings():
            # of forwards that were replaced: a job follows them
            warnings.filterwarnings("ignore", message=".*after nnsight wrapped this module")
            if isinstance(target, str):
                given = {"tokenizer": tokenizer, "task": task, "revision": revision}
                return TransformersModel(target, **given, **kwargs)
            return TransformersModel(target, tokenizer=tokenizer, task="text-generation")
    except Exception as error:
        raise ArchError(not_found(name, "model", error)) from error


def _parts(model: Model) -> tuple[Callable[..., Model], tuple[Any, ...]]:
    """What a `Model` is pickled as: the Hugging Face module, which nnsight wraps anew.

    Raises:
        BackendError: its weights are on a server.
    """
    if not model.backend.holds_weights:
        raise BackendError(
            f"{model.name} runs on {model.backend.name} and has no weights here, so there is "
            f"nothing to pickle: call nnattr.load({model.name!r}, backend=...) where you want it."
        )
    kept = {one.name: getattr(model, one.name) for one in fields(model) if one.name != "nn"}
    return _from_parts, (model.module, kept)


def _from_parts(module: Any, kept: dict[str, Any]) -> Model:
    nn = _wrap(module, kept["name"], kept["tokenizer"], "text-generation", kept["revision"], {})
    return Model(nn, **kept)


copyreg.pickle(Model, _parts)  # here, where models are made; also for copy.deepcopy


def _fetched(where: Backend) -> str:
    """The folder of the real model."""
    if not where.holds_weights:
        raise BackendError(
            f"{pretrained.NAME!r} is a folder here, which {where.name} does not have; load "
            f"{pretrained.ORIGINAL!r} there."
        )
    if not pretrained.is_here():
        raise ArchError(pretrained.how_to_get())
    return str(pretrained.folder())
