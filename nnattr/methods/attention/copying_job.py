"""The job behind `copying_score` and `name_mover_score`: each head alone with each token.

Everything here travels to where the model is: torch and plain values only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.maps.linear import linear_map
from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.logits import take
from nnattr.runs.patterns import patterns
from nnattr.runs.places import read, write
from nnattr.runs.portions import Portions


class CopyingQuestion:
    """Which heads are asked about, and where their path leads.

    Attributes:
        after: where layer 0 leaves the residual stream.
        before, z: where each layer's residual stream and its heads' z are.
        heads: how many heads a layer has.
        norms: for each layer the path of the norm behind attention, or None.
        norm, unembed: the paths of the final norm (or None) and of the unembedding.
        sign: -1 where the heads' outputs are turned round, else 1.
        logit_sign: -1 where the model turns its logits round, else 1.
        top_k: among how many tokens a copied one is.
        options: further arguments of a pass.
    """

    def __init__(
        self,
        *,
        after: tuple[Any, ...],
        before: list[tuple[Any, ...]],
        z: list[tuple[Any, ...]],
        heads: int,
        norms: list[str | None],
        norm: str | None,
        unembed: str,
        sign: float,
        logit_sign: float,
        top_k: int,
        options: dict[str, Any],
    ) -> None:
        self.after = after
        self.before = before
        self.z = z
        self.heads = heads
        self.norms = norms
        self.norm = norm
        self.unembed = unembed
        self.sign = sign
        self.logit_sign = logit_sign
        self.top_k = top_k
        self.options = options


def copying_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """``copied`` [example, layer, head, pos], and ``attention`` [example, layer, head] if asked."""
    every, columns = PromptBatch(**payload["prompts"]), payload["columns"]
    question, looked_at = CopyingQuestion(**payload["question"]), payload["looked_at"]
    portions = Portions(nn, tick, total=len(every), **payload["portions"])
    for some in portions:
        with portions.attempt():
            prompts, at = every.take(some), columns[some]
            streams, tokens = left_by_layer_0(nn, question, prompts, at), prompts.alone(at)
            alone = copied_alone(nn, question, streams, tokens)
            values = {"copied": alone.unflatten(0, at.shape).permute(0, 2, 3, 1)}
            if looked_at is not None:
                looks = (payload["paths"], looked_at[some], question.options)
                values["attention"] = last_looks(nn, prompts, *looks)
            portions.keep(values, rows=max(len(prompts), len(tokens)))
            portions.tick(1, 1)
    return portions.joined()


def left_by_layer_0(nn: Any, question: CopyingQuestion, prompts: PromptBatch, at: Tensor) -> Tensor:
    """What layer 0 leaves at each token [token, d_model]."""
    with nn.trace(**inputs(prompts, question.options)):
        with torch.no_grad():
            stream = take(read(nn, question.after, prompts.width), at).clone()
    return stream.flatten(0, 1)


def copied_alone(
    nn: Any, question: CopyingQuestion, streams: Tensor, tokens: PromptBatch
) -> Tensor:
    """Whether each head, looking at each token alone, predicts it [token, layer, head]."""
    found: list[Tensor] = []
    ids = tokens.ids[:, 0]
    with nn.trace(**inputs(tokens, question.options)):
        with torch.no_grad():
            for layer, where in enumerate(question.before):
                live = read(nn, where, 1)
                write(nn, where, streams[:, None].to(live))
                z = read(nn, question.z[layer], 1)[:, 0]
                heads = contributions(nn, question, layer, z)
                found.append(torch.stack([predicts(nn, question, one, ids) for one in heads], 1))
    return torch.stack([one.cpu() for one in found], 1)


def contributions(nn: Any, question: CopyingQuestion, layer: int, z: Tensor) -> list[Tensor]:
    """What each head adds to the residual stream [token, d_model], inside a trace."""
    path, heads = question.z[layer][0], question.heads
    with torch.autocast(z.device.type, enabled=False):
        weight, _ = linear_map(nn.get(path), z.shape[-1], z[:, None])
        parts = zip(z.float().chunk(heads, -1), weight.chunk(heads), strict=True)
        outputs = [(part @ matrix).to(z.dtype) for part, matrix in parts]
    norm = question.norms[layer]
    return outputs if norm is None else [nn.get(norm)(one) for one in outputs]


def predicts(nn: Any, question: CopyingQuestion, output: Tensor, ids: Tensor) -> Tensor:
    """Whether the tokens are among the first k that this output alone would predict [token]."""
    signed = question.sign * output[:, None]
    normed = signed if question.norm is None else nn.get(question.norm)(signed)
    logits = nn.get(question.unembed)(normed)[:, 0] * question.logit_sign
    own = logits.gather(-1, ids.to(logits.device)[:, None])
    return ((logits > own).sum(-1) < question.top_k).float()


def last_looks(
    nn: Any, prompts: PromptBatch, paths: list[list[str]], looked_at: Tensor, options: Any
) -> Tensor:
    """The attention from the last position to some keys [example, layer, head].

    Args:
        nn: the nnsight model.
        prompts: what is run.
        paths: see `nnattr.model.patterns.attention_paths`.
        looked_at: the keys [example, key_pos].
        options: further arguments of the pass.
    """

    def reduce(pattern: Tensor) -> Tensor:
        """One layer's."""
        return (pattern[:, :, -1].float() * looked_at[:, None].to(pattern.device)).sum(-1)

    found = patterns(nn, prompts, paths, None, options, reduce)
    return torch.stack([one.cpu() for one in found], 1)
