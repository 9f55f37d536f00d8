"""What the engine is asked, and where it finds things in the model: values made inside a job.

A payload is plain values and tensors; `question_of` gives them names. Nothing here is changed once
it is made. Torch and plain values only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnattr.runs.inputs import PromptBatch, cache_argument
from nnattr.runs.portions import RefusedError


class Sizes:
    """Floats per token of what takes memory.

    Attributes:
        stream: the residual stream.
        widest: the widest activation of a layer.
        site: the site that is patched.
        keys: the keys of a layer, or its values.
        heads: one for each head: attention scores are [head, query_pos, key_pos].
        vocab: the logits of all tokens.
    """

    def __init__(
        self, stream: int, widest: int, site: int, keys: int, heads: int, vocab: int
    ) -> None:
        self.stream = stream
        self.widest = widest
        self.site = site
        self.keys = keys
        self.heads = heads
        self.vocab = vocab


class Layout:
    """Where the engine finds things in this model, and how a patch of the site enters it.

    Lists have an entry for each layer of the model. A place is ``(path, side, part)``, see
    `nnattr.arch.spec.Place`.

    Attributes:
        embed, unembed: the paths of the token embedding and of the unembedding.
        layers: the paths of the layers.
        steps: what may be read or done in a layer while it runs, in forward order: pairs of a name
            and a place or path; see `nnattr.engine.base.observe`.
        attention: the paths of the attention modules.
        norms: the paths of what stands behind them: a norm, or the projection itself.
        gelus: the paths of GELUs that torch computes faster in one step.
        tail: the modules of the last layer whose input may be cut to the last position.
        site: what is patched, by name.
        places: where that is.
        entry: how its patch enters the model: ``"before"`` a layer, ``"after"`` it, ``"added"``
            to the stream after it, through ``"attention"``, or ``"inside"`` it.
        mixes_positions: whether later positions read it within its own layer.
        out_path: the modules between it and what is added to the residual stream.
        behind_norm: whether a change of what attention contributes is added behind a norm.
        scale: what a branch is multiplied with before it is added to the residual stream.
        pattern_paths, value_places: where attention patterns and values are, if patterns are
            patched, else empty.
        kv_heads: how many key/value heads there are.
        options: further arguments of every pass.
        takes_positions: whether the model can be told positions.
        cache_name: what the model calls the keys and values that it is given.
        sizes: of what takes memory.
    """

    def __init__(self, plain: dict[str, Any], cache_name: str) -> None:
        self.embed: str = plain["embed"]
        self.unembed: str = plain["unembed"]
        self.layers: list[str] = plain["layers"]
        self.steps: list[list[tuple[str, Any]]] = plain["steps"]
        self.attention: list[str] = plain["attention"]
        self.norms: list[str] = plain["norms"]
        self.gelus: list[list[str]] = plain["gelus"]
        self.tail: list[str] = plain["tail"]
        self.site: str = plain["site"]
        self.places: list[tuple[Any, ...]] = plain["places"]
        self.entry: str = plain["entry"]
        self.mixes_positions: bool = plain["mixes_positions"]
        self.out_path: list[list[str]] = plain["out_path"]
        self.behind_norm: bool = plain["behind_norm"]
        self.scale: float = plain["scale"]
        self.pattern_paths: list[list[str]] = plain["pattern_paths"]
        self.value_places: list[tuple[Any, ...]] = plain["value_places"]
        self.kv_heads: int = plain["kv_heads"]
        self.options: dict[str, Any] = plain["options"]
        self.takes_positions: bool = plain["takes_positions"]
        self.cache_name = cache_name
        self.sizes = Sizes(**plain["sizes"])

    @property
    def depth(self) -> int:
        """How many layers the model has."""
        return len(self.layers)


class Question:
    """What is asked of some examples: which cells are patched, from what, and what is measured.

    A cell is a layer, a unit of the site and a *spot*: a set of positions.

    Attributes:
        base: the prompts that are patched into.
        source: the prompts that activations come from.
        base_is_clean: which of the two the clean run is.
        replacements: for an ablation what the site of every asked layer becomes, [1 or example, 1
            or pos, 1 or width]; None where it comes from the source run.
        metric: ``metric(logits, batch) -> [example]``.
        answers: what it is told besides the prompts, by name [example, ...].
        last_only: whether it reads the last position alone.
        places: where a metric that gives a number for every position is read [place, example, pos],
            bool; None for one that gives one number.
        read_tokens: the tokens whose logits it reads [token]; None for all.
        layers: the layers that are asked about, in ascending order.
        units: how many parts of a layer's site are patched apart.
        spots: which positions each spot has [spot, example, pos], bool.
        asked: which cells of the asked layers are asked about [layer, unit, spot], bool; None for
            all.
        full_passes: whether every patched row is to run through the whole model.
        layout: where things are.
    """

    def __init__(
        self,
        *,
        base: PromptBatch,
        source: PromptBatch,
        base_is_clean: bool,
        replacements: list[Tensor] | None,
        metric: Callable[..., Any],
        answers: dict[str, Tensor],
        last_only: bool,
        places: Tensor | None,
        read_tokens: Tensor | None,
        layers: list[int],
        units: int,
        spots: Tensor,
        asked: Tensor | None,
        full_passes: bool,
        layout: Layout,
    ) -> None:
        self.base = base
        self.source = source
        self.base_is_clean = base_is_clean
        self.replacements = replacements
        self.metric = metric
        self.answers = answers
        self.last_only = last_only
        self.places = places
        self.read_tokens = read_tokens
        self.layers = layers
        self.units = units
        self.spots = spots
        self.asked = asked
        self.full_passes = full_passes
        self.layout = layout

    def __len__(self) -> int:
        return len(self.base)

    def take(self, some: slice) -> Question:
        """The same question about some of the examples."""
        return Question(
            base=self.base.take(some),
            source=self.source.take(some),
            base_is_clean=self.base_is_clean,
            replacements=self.replacements,
            metric=self.metric,
            answers={name: value[some] for name, value in self.answers.items()},
            last_only=self.last_only,
            places=None if self.places is None else self.places[:, some],
            read_tokens=self.read_tokens,
            layers=self.layers,
            units=self.units,
            spots=self.spots[:, some],
            asked=self.asked,
            full_passes=self.full_passes,
            layout=self.layout,
        )


def question_of(
    nn: Any, payload: dict[str, Any], replacements: list[Tensor] | None = None
) -> Question:
    """The question that a payload puts about all of its examples."""
    return Question(
        base=PromptBatch(**payload["base"]),
        source=PromptBatch(**payload["source"]),
        base_is_clean=payload["base_is_clean"],
        replacements=replacements,
        metric=payload["metric"],
        answers=payload["answers"],
        last_only=payload["last_only"],
        places=payload["places"],
        read_tokens=payload["read_tokens"],
        layers=payload["layers"],
        units=payload["units"],
        spots=payload["spots"],
        asked=asked_cells(payload),
        full_passes=payload["engine"] == "full",
        layout=Layout(payload["layout"], cache_argument(nn)),
    )


def asked_cells(payload: dict[str, Any]) -> Tensor | None:
    """Which cells are asked about [layer, unit, spot], from a list of them; None for all."""
    layers, cells = payload["layers"], payload["cells"]
    if cells is None:
        return None
    asked = torch.zeros(len(layers), payload["units"], len(payload["spots"]), dtype=torch.bool)
    layer, unit, spot = cells.T.contiguous()
    asked[torch.searchsorted(torch.tensor(layers), layer), unit, spot] = True
    return asked


def sandboxed(nn: Any, layout: Layout) -> bool:
    """Whether the job runs in a sandbox, which has no weights and gets copies of activations."""
    return nn.get(layout.embed).weight.is_meta


def require_edits_in_place(nn: Any, layout: Layout) -> None:
    """Refuse a site that must be edited in place where the job gets copies of what it edits.

    The edit would reach the norm that reads the residual stream, and not the stream itself.
    """
    if any(side == "stream" for _, side, _ in layout.places) and sandboxed(nn, layout):
        raise RefusedError(
            "backend", "a sandboxed deployment cannot edit this site; use resid_pre or resid_post"
        )


def every_example(question: Question) -> list[Tensor]:
    """For each layer all examples: whose keys and values a plain run goes on from."""
    return [torch.arange(len(question))] * question.layout.depth
