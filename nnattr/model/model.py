"""The model as nnattr sees it: an nnsight model, the map of its parts, and where it runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from nnattr.arch.discover import outer_widths
from nnattr.arch.spec import ArchSpec
from nnattr.arguments import Positive, checked
from nnattr.backend import Backend, JobFunction, Outcome
from nnattr.backend.refusals import accepted
from nnattr.errors import TaskError
from nnattr.model import sites
from nnattr.model.edits import Edit
from nnattr.model.loan import on_loan
from nnattr.model.marks import marked
from nnattr.model.padding import alone_job, due, padded, require_alike, seen
from nnattr.runs.edits import edited_job
from nnattr.runs.logits import prediction_job
from nnattr.runs.places import raw
from nnattr.runs.portions import TOKENS_PER_FORWARD
from nnattr.tasks import IdGroups, Predictions
from nnattr.tokens import Tokens


@dataclass(frozen=True)
class Model:
    """A causal language model, ready to be asked which of its parts cause a behaviour.

    Made by `nnattr.load`. All arithmetic happens in jobs that run where ``backend`` says.

    Attributes:
        nn: the nnsight model around the raw Hugging Face module; use it freely for anything that
            nnattr does not do (``with model.nn.trace(...)``).
        tokenizer: the Hugging Face tokenizer.
        spec: where the model's parts are.
        backend: where jobs run.
        name: the id, folder or teaching name it was loaded by.
        revision: the Hub revision, if one was asked for.
        edits: what is changed in every run, in this order (see `nnattr.edited`).
    """

    nn: Any
    tokenizer: Any
    spec: ArchSpec
    backend: Backend
    name: str
    revision: str | None = None
    edits: tuple[Edit, ...] = ()

    @property
    def module(self) -> Any:
        """The Hugging Face module, without weights where the model runs on a server."""
        return raw(self.nn)

    @property
    def config(self) -> Any:
        """The Hugging Face configuration (of the text model, where there are several)."""
        return self.nn.config.get_text_config()

    @property
    def n_layers(self) -> int:
        """Number of decoder layers: of those in the list, as many as the configuration lets run."""
        listed = len(self.module.get_submodule(self.spec.layers))
        return min(listed, getattr(self.config, "num_hidden_layers", listed))

    @property
    def n_heads(self) -> int:
        """Number of attention (query) heads."""
        return self.config.num_attention_heads

    @property
    def d_head(self) -> int:
        """Size of a head: of its part of the attention output projection's input."""
        projection = self.module.get_submodule(sites.place(self.spec, "z", 0).path)
        return outer_widths(projection)[0] // self.n_heads

    @property
    def n_kv_heads(self) -> int:
        """Number of key/value heads; each serves the same number of query heads."""
        qkv = self.spec.qkv
        if qkv is None:
            return getattr(self.config, "num_key_value_heads", None) or self.n_heads
        projection = self.module.get_submodule(f"{self.spec.layers}.0.{qkv.v}")
        heads = outer_widths(projection)[1] // self.d_head
        return heads if qkv.packing == "separate" else (heads - self.n_heads) // 2

    @property
    def d_mlp(self) -> int:
        """Number of neurons of a layer: the width of the MLP's output projection's input.

        Raises:
            ArchError: this family has no such projection.
        """
        projection = self.module.get_submodule(sites.place(self.spec, "neuron", 0).path)
        return outer_widths(projection)[0]

    @property
    def vocab_size(self) -> int:
        """Number of tokens that it can read: the rows of its embedding.

        A configuration may say another number where the vocabulary was changed by hand, a
        tokenizer have more tokens, and weights of four bits are packed into fewer rows.
        """
        embedding = self.module.get_submodule(self.spec.embed)
        weight = getattr(embedding, "weight", None)
        if weight is not None and weight.is_floating_point():
            return weight.shape[0]
        return getattr(embedding, "num_embeddings", None) or self.config.vocab_size

    @property
    def architecture(self) -> str:
        """The Hugging Face model type, e.g. ``"gpt2"``."""
        return self.config.model_type

    @property
    def subject(self) -> str:
        """The model in words: its name, and the edits under which it runs."""
        return "; ".join((self.name, *(edit.said for edit in self.edits)))

    @property
    def dtype(self) -> str:
        """The dtype of the weights in this process, e.g. ``"float32"``; a server has its own."""
        return str(self.nn.dtype).removeprefix("torch.")

    @property
    def quantization(self) -> str:
        """How the weights were rounded since training, as far as the configuration says; or ""."""
        said = getattr(self.nn.config, "quantization_config", None) or {}
        said = said if isinstance(said, Mapping) else said.to_dict()
        file = said.get("gguf_file") or getattr(self.nn.config, "dequantized_from", None)
        method = getattr(said.get("quant_method", ""), "value", said.get("quant_method", ""))
        return f"dequantized from {file}" if file else method and f"quantized by {method}"

    @property
    def context_length(self) -> int | None:
        """The longest prompt the model takes, if its configuration says so."""
        return getattr(self.config, "max_position_embeddings", None)

    def require_known(self, ids: Iterable[Sequence[int]]) -> None:
        """Refuse token ids that the model has no embedding for.

        Raises:
            TaskError: there is one.
        """
        size = self.vocab_size
        extremes = (extreme(row) for row in ids if len(row) for extreme in (min, max))
        past = [token for token in extremes if not 0 <= token < size]
        if past:
            raise TaskError(
                f"{self.name} has no token {past[0]}: its embedding has {size} rows, "
                "counted from 0. If the tokenizer got new tokens, resize the model "
                "(resize_token_embeddings), or use other words."
            )

    def accepts(self, argument: str) -> bool:
        """Whether the model's forward pass takes this argument, such as ``"logits_to_keep"``."""
        inside = getattr(self.module, "get_base_model", None)  # PEFT hands on what it is given
        module = self.module if inside is None else inside()
        return argument in inspect.signature(type(module).forward).parameters

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

    def batch(
        self, tokens: Tokens, given: Any = None, *, room: int = 0, readings: int = 1
    ) -> dict[str, Any]:
        """What travels of prompts: see `nnattr.model.marks.marked`."""
        return marked(self.edits, tokens, given, room, readings)

    def portions(
        self, width: int, *, floats: int = 0, max_memory: int | None = None
    ) -> dict[str, Any]:
        """How a job goes through its examples: what `nnattr.runs.portions.Portions` is told.

        Args:
            width: tokens of the longest prompt.
            floats: float32 numbers that an example keeps alive at once, besides the pass itself.
            max_memory: bytes to plan with; by default most of what is free where the job runs.
        """
        return {
            "embed": self.spec.embed,
            "size": max(1, TOKENS_PER_FORWARD // width),
            "need": 4 * floats,
            "max_memory": max_memory,
        }

    def run(
        self, job: JobFunction, payload: Mapping[str, Any], *, label: str, said: str | None = None
    ) -> Outcome:
        """Run ``job(nn, tick, **payload)`` on this model's backend as one session.

        Args:
            job: see `nnattr.backend.seam`.
            payload: what travels to it.
            label: names the job to people.
            said: how the message of a refusal begins; by default the label and the model.

        A module that is here runs in eval mode and is given back as it was: `nnattr.model.loan`.

        Raises:
            ArchError: the module was rebuilt after it was loaded.
            TaskError: a prompt is read otherwise beside a longer one than alone.
            BackendError: the job failed where it ran.
            NnattrError: it refused, see `nnattr.backend.refusals`.
        """
        here = self.backend.holds_weights
        with on_loan(self.nn, self.name, self._streams) if here else nullcontext():
            self._require_alike({**payload, **{one.said: one.dataset for one in self.edits}})
            if edits := [edit.payload for edit in self.edits]:
                job, payload = edited_job, {"job": job, "edits": edits, "asked": payload}
            outcome = self.backend.run(self.nn, job, payload, label=label)
        accepted(outcome.values, said or f"{label} with {self.subject} ({self.architecture})")
        return outcome

    @property
    def _streams(self) -> tuple[str, ...]:
        """The modules at whose input the residual stream itself is read and written."""
        where = self.spec.resid_mid
        if where is None or where.side != "stream":
            return ()
        return tuple(f"{self.spec.layers}.{at}.{where.path}" for at in range(self.n_layers))

    def _require_alike(self, payload: Mapping[str, Any]) -> None:
        """Refuse prompts that this model reads otherwise side by side (`nnattr.model.padding`).

        Raises:
            TaskError: naming their lengths.
        """
        batches = padded(payload)
        width = max((one["mask"].shape[1] for one in batches), default=0)
        here = self.backend.holds_weights
        if batches and due(self.module, self.config, width, here=here):
            options = {"logits_to_keep": 1} if self.accepts("logits_to_keep") else {}
            asked = {"batches": batches, "options": options}
            label = "holding a padded prompt against itself"
            found = self.backend.run(self.nn, alone_job, asked, label=label)
            require_alike(self.name, batches, found.values["same"])
            seen(self.module, self.config)

    @checked
    def predict(
        self,
        tokens: Tokens,
        *,
        asked: IdGroups = (),
        top_k: Positive = 5,
        last: Positive = 1,
        task: Any = None,
    ) -> Predictions:
        """The most probable next tokens after each prompt, in one job.

        Args:
            tokens: encoded prompts (``task.clean_tokens``, or `nnattr.tokens.encode`).
            asked: for each prompt further token ids whose logits are wanted.
            top_k: how many of the most probable tokens.
            last: at how many of the last positions.
            task: whose prompts they are, where edits of the model name its spans.

        Raises:
            TaskError: a prompt is longer than the model's context, or has tokens it does not know.
            BackendError: the job failed where it ran.
        """
        self.require_known([*tokens.rows, *asked])
        width, limit = tokens.ids.shape[1], self.context_length
        if limit is not None and width > limit:
            raise TaskError(f"The longest prompt is {width} tokens, and {self.name} takes {limit}.")
        words = max(map(len, asked), default=0)
        filled = [[*row, *[0] * (words - len(row))] for row in asked] or [[]] * len(tokens)
        payload = {
            "prompts": self.batch(tokens, task),
            "asked": torch.tensor(filled, dtype=torch.long),
            "k": top_k,
            "last": last,
            "portions": self.portions(width),
            "options": {"logits_to_keep": last} if self.accepts("logits_to_keep") else {},
        }
        values = self.run(prediction_job, payload, label="predictions").values
        return Predictions(*(values[name] for name in ("ids", "logits", "asked", "log_norm")))

    def __repr__(self) -> str:
        said = (self.dtype, self.quantization, *(edit.said for edit in self.edits))
        return (
            f"Model({self.name!r}, {self.architecture}: {self.n_layers} layers x {self.n_heads} "
            f"heads, {', '.join(filter(None, said))}, backend={self.backend.name!r})"
        )
