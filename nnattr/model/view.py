"""The model as nnattr sees it: an nnsight model, the map of its parts, and where it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnattr import teaching
from nnattr.arch.discover import candidates
from nnattr.arch.spec import ArchSpec, missing
from nnattr.arch.table import lookup
from nnattr.backend import Backend, JobFunction, Outcome, resolve
from nnattr.errors import ArchError, BackendError, TaskError
from nnattr.model import sites
from nnattr.model.predict import predictions
from nnattr.tasks import IdGroups, Predictions
from nnattr.tokens import Tokens

#: Values of ``device`` by which transformers spreads a model over devices itself.
SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclass(frozen=True)
class Model:
    """A causal language model, ready to be asked which of its parts cause a behaviour.

    Made by `load`. All arithmetic happens in jobs that run where ``backend`` says.

    Attributes:
        nn: the nnsight model around the raw Hugging Face module; use it freely for anything that
            nnattr does not do (``with model.nn.trace(...)``).
        tokenizer: the Hugging Face tokenizer.
        spec: where the model's parts are.
        backend: where jobs run.
        name: the id, folder or teaching name it was loaded by.
        revision: the Hub revision, if one was asked for.
    """

    nn: Any
    tokenizer: Any
    spec: ArchSpec
    backend: Backend
    name: str
    revision: str | None = None

    @property
    def config(self) -> Any:
        """The Hugging Face configuration (of the text model, where there are several)."""
        return self.nn.config.get_text_config()

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return self.config.num_hidden_layers

    @property
    def n_heads(self) -> int:
        """Number of attention (query) heads."""
        return self.config.num_attention_heads

    @property
    def d_head(self) -> int:
        """Size of a head: of its part of the attention output projection's input."""
        projection = self.nn._module.get_submodule(sites.place(self.spec, "z", 0).path)
        width = getattr(projection, "in_features", getattr(projection, "nx", None))
        return (width or projection.weight.shape[-1]) // self.n_heads

    @property
    def n_kv_heads(self) -> int:
        """Number of key/value heads; each serves the same number of query heads."""
        qkv = self.spec.qkv
        if qkv is None:
            return getattr(self.config, "num_key_value_heads", None) or self.n_heads
        projection = self.nn._module.get_submodule(f"{self.spec.layers}.0.{qkv.v}")
        width = getattr(projection, "out_features", getattr(projection, "nf", None))
        heads = (width or projection.weight.shape[0]) // self.d_head
        return heads if qkv.packing == "separate" else (heads - self.n_heads) // 2

    @property
    def d_mlp(self) -> int:
        """Number of neurons of a layer: the width of the MLP's output projection's input.

        Raises:
            ArchError: this family has no such projection.
        """
        projection = self.nn._module.get_submodule(sites.place(self.spec, "neuron", 0).path)
        return getattr(projection, "in_features", None) or projection.weight.shape[0]

    @property
    def architecture(self) -> str:
        """The Hugging Face model type, e.g. ``"gpt2"``."""
        return self.config.model_type

    @property
    def dtype(self) -> str:
        """The dtype of the weights in this process, e.g. ``"float32"``; a server has its own."""
        return str(self.nn.dtype).removeprefix("torch.")

    @property
    def context_length(self) -> int | None:
        """The longest prompt the model takes, if its configuration says so."""
        return getattr(self.config, "max_position_embeddings", None)

    def places(self, site: sites.SiteName) -> list[tuple[Any, ...]]:
        """Where ``site`` is found in each layer, as plain values that can travel.

        Raises:
            ArchError: the site is unknown or this family does not have it.
        """
        part = None
        if site in ("q", "k", "v") and self.spec.qkv is not None:
            part = sites.part(self.spec.qkv, site, self.n_heads, self.n_kv_heads, self.d_head)
        found = (sites.place(self.spec, site, layer) for layer in range(self.n_layers))
        return [(place.path, place.side, part) for place in found]

    def run(self, job: JobFunction, payload: Mapping[str, Any], *, label: str) -> Outcome:
        """Run ``job(nn, tick, **payload)`` on this model's backend as one session."""
        return self.backend.run(self.nn, job, payload, label=label)

    def predict(
        self, tokens: Tokens, *, asked: IdGroups = (), k: int = 5, last: int = 1
    ) -> Predictions:
        """The most probable next tokens after each prompt, in one job.

        Args:
            tokens: encoded prompts (``task.clean_tokens``, or `nnattr.tokens.encode`).
            asked: for each prompt further token ids whose logits are wanted.
            k: how many of the most probable tokens.
            last: at how many of the last positions.

        Raises:
            TaskError: a prompt is longer than the model's context.
            BackendError: the job failed where it ran.
        """
        return predictions(self, tokens, asked, k, last)

    def __repr__(self) -> str:
        return (
            f"Model({self.name!r}, {self.architecture}: {self.n_layers} layers x {self.n_heads} "
            f"heads, {self.dtype}, backend={self.backend.name!r})"
        )


def load(
    model: str | Path | Any,
    *,
    tokenizer: Any = None,
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
    tokenizer = _tokenizer(tokenizer or source, name, revision, kwargs)
    if where.holds_weights and module is None:
        module = _weights(str(source), name, device, dtype, revision, kwargs)
    nn = _wrap(module if module is not None else str(source), name, tokenizer, revision, kwargs)
    known = lookup(nn.config)
    if spec is None and known is not None and not missing(known, nn._module):
        return Model(nn, tokenizer, known, where, name, revision)
    from nnattr.model.verify import proven

    specs = [spec] if spec is not None else list(candidates(nn._module))
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
    _known(device, dtype)
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


def _known(device: str, dtype: str | None) -> None:
    """Refuse a device or dtype that there is not, before transformers fails on it."""
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
