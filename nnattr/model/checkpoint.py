"""A checkpoint by its id or folder: what it is for, and its weights as a module.

transformers loads almost any checkpoint into almost any class: what the class needs and the file
does not have is filled with random numbers, and a line is logged. Numbers of such a model mean
nothing, so here it is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from logging import CRITICAL
from typing import Any

from nnattr import teaching
from nnattr.arch.kind import NEXT, require_causal
from nnattr.errors import ArchError, BackendError

#: Values of ``device`` by which transformers spreads a model over devices itself.
SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")
#: What of the arguments of ``from_pretrained`` says where a configuration is.
_WHERE = ("trust_remote_code", "token", "cache_dir", "subfolder", "local_files_only", "gguf_file")


def described(source: str, name: str, revision: str | None, kwargs: Mapping[str, Any]) -> Any:
    """The configuration of a checkpoint of a causal language model.

    Raises:
        ArchError: there is none, or it is of another kind of model.
    """
    from transformers import AutoConfig, PreTrainedConfig

    config = kwargs.get("config")
    if not isinstance(config, PreTrainedConfig):
        where = {key: kwargs[key] for key in _WHERE if key in kwargs}
        try:
            config = AutoConfig.from_pretrained(config or source, revision=revision, **where)
        except Exception as error:
            raise ArchError(not_found(name, "model", error)) from error
    require_causal(name, getattr(config, "architectures", None) or (), config)
    if not getattr(config, "auto_map", None) and task(config) is None:
        raise ArchError(
            f"{name} is of type {config.model_type!r}, of which transformers has no causal "
            f"language model. {NEXT}"
        )
    return config


def task(config: Any) -> str | None:
    """The task by which transformers loads a model of this configuration.

    One with a vision tower may have no class for text alone. None: it has neither.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "text-generation"
    return "image-text-to-text" if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING else None


def weights(
    source: str,
    name: str,
    config: Any,
    device: str | None,
    dtype: str | None,
    revision: str | None,
    kwargs: Mapping[str, Any],
) -> Any:
    """The Hugging Face module with its weights, in eval mode and frozen.

    Raises:
        ArchError: it could not be loaded, or the checkpoint lacks weights of it.
        BackendError: the device or dtype is unknown.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    _require_known(device, dtype)
    composed = task(config) == "image-text-to-text"
    auto: Any = AutoModelForImageTextToText if composed else AutoModelForCausalLM
    options = {"revision": revision, "dtype": dtype or "auto", "device_map": device, **kwargs}
    with quiet():
        try:
            module, report = auto.from_pretrained(source, output_loading_info=True, **options)
        except Exception as error:
            raise ArchError(not_found(name, "model", error)) from error
    _require_complete(name, module, config, report["missing_keys"])
    return module.requires_grad_(False)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers, nor its list of a hundred and eighty other models."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def _require_complete(name: str, module: Any, config: Any, absent: Iterable[str]) -> None:
    """Refuse a module some of whose weights were not in the checkpoint, and are random."""
    own = dict(module.named_parameters())
    lacking = sorted(key for key in absent if key in own)
    if lacking:
        kind, made_for = type(module).__name__, getattr(config, "architectures", None) or ()
        other = f" It was saved from {', '.join(made_for)}. {NEXT}" if kind not in made_for else ""
        raise ArchError(
            f"The checkpoint {name!r} has no weights for {len(lacking)} parts of {kind} "
            f"({', '.join(lacking[:3])}): these would be random.{other or ' Is it whole?'}"
        )


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


def not_found(name: str, what: str, error: Exception) -> str:
    """What to say where transformers could not load a model or a tokenizer."""
    if isinstance(error, ImportError) and "gguf" in str(error):
        return f"Reading {name!r} needs the package gguf: `pip install 'nnattr[gguf]'`."
    reason = str(error).strip().splitlines()
    return (
        f"The {what} {name!r} could not be loaded ({type(error).__name__}: "
        f"{reason[0] if reason else ''}). Expected one of {', '.join(teaching.NAMES)}, a Hugging "
        "Face id of a causal language model, or a local folder."
    )
