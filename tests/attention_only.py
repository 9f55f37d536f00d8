"""A transformer of attention alone, as people write one for themselves: no MLP, no final norm.

With ``shortformer`` positions are added to what queries and keys are made of, behind the norm, and
not to the residual stream (Press et al. 2020), as in the attention-only models of TransformerLens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from nnattr.arch import QKV, ArchSpec, Place
from nnattr.model.load import load
from nnattr.model.model import Model
from tests.tiny import CONTEXT, D_MODEL, HEADS, LAYERS, VOCAB, randomise, tiny_tokenizer


class AttentionOnlyConfig(PreTrainedConfig):
    """Sizes by the names that every configuration has."""

    model_type = "attention-only"

    def __init__(
        self,
        shortformer: bool = True,
        normed: bool = False,
        **kwargs: Any,
    ) -> None:
        sizes = {
            "vocab_size": VOCAB,
            "hidden_size": D_MODEL,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "max_position_embeddings": CONTEXT,
        }
        self.shortformer = shortformer
        self.normed = normed
        super().__init__(**sizes, **kwargs)


class Attention(nn.Module):
    """Causal attention; gives its pattern as well."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.layer, self.heads = layer, config.num_attention_heads
        for name in ("w_q", "w_k", "w_v", "w_o"):
            setattr(self, name, nn.Linear(config.hidden_size, config.hidden_size))

    def forward(
        self, x: Tensor, shift: Tensor | None, mask: Tensor, cache: Any = None
    ) -> tuple[Tensor, Tensor]:
        shifted = x if shift is None else x + shift
        q, k, v = self.w_q(shifted), self.w_k(shifted), self.w_v(x)
        q, k, v = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (q, k, v))
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        pattern = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
        return self.w_o((pattern @ v).transpose(1, 2).flatten(2)), pattern


class Layer(nn.Module):
    """The residual stream and what attention adds to it."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size) if config.normed else nn.Identity()
        self.attention = Attention(config, layer)

    def forward(self, x: Tensor, shift: Tensor | None, mask: Tensor, cache: Any = None) -> Tensor:
        return x + self.attention(self.norm(x), shift, mask, cache)[0]


class AttentionOnly(PreTrainedModel, GenerationMixin):
    """Embedding, layers, unembedding."""

    config_class = AttentionOnlyConfig

    def __init__(self, config: AttentionOnlyConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        depth = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in depth)
        self.unembed = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.unembed

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        cache = DynamicCache() if use_cache and past_key_values is None else past_key_values
        past = 0 if cache is None else cache.get_seq_length()
        width = past + input_ids.shape[1]
        if attention_mask is None:
            attention_mask = torch.ones(len(input_ids), width, device=input_ids.device)
        if position_ids is None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
        seen = torch.ones(width, width, dtype=torch.bool, device=input_ids.device).tril()[past:]
        mask = seen & attention_mask.bool()[:, None, None, :]
        shift = self.positions(position_ids)
        x = self.embed(input_ids)
        if not self.config.shortformer:
            x, shift = x + shift, None
        for layer in self.layers:
            x = layer(x, shift, mask, cache)
        return CausalLMOutputWithPast(logits=self.unembed(x), past_key_values=cache)


class Uncached(AttentionOnly):
    """The same without a cache, of which many such models know nothing."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Any:
        return super().forward(input_ids, attention_mask)


def spec(*, shortformer: bool = True) -> ArchSpec:
    """Where its parts are; what it does not have is None."""
    return ArchSpec(
        layers="layers",
        embed="embed",
        final_norm=None,
        unembed="unembed",
        attn_proj="attention.w_o",
        attn_out=Place("attention.w_o", "output"),
        mlp_out=None,
        resid_mid=None,
        qkv=QKV("attention.w_q", "attention.w_k", "attention.w_v"),
        qk_positions="positions" if shortformer else None,
    )


def attention_only(
    kind: type[AttentionOnly] = AttentionOnly, *, backend: str = "local", **options: Any
) -> Model:
    """A random one, loaded by its spec."""
    config = AttentionOnlyConfig(**options)
    module = randomise(kind(config))
    own = spec(shortformer=config.shortformer)
    return load(module, tokenizer=tiny_tokenizer(), spec=own, backend=backend)
