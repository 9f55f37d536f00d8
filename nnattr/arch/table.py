"""The known model families: one `ArchSpec` per Hugging Face ``model_type``, as data.

Many families share a row. Where a flag of the configuration decides the layout, the row is a small
function of the configuration; it gives None for a layout whose residual stream is not a plain sum,
and that model is then treated like an unknown one: discovered, proven, and refused if that fails.

Every row is proven on a tiny random model by the tests. The truth is the family's ``forward``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nnattr.arch.spec import QKV, ArchSpec, Packing, Place

Row = ArchSpec | Callable[[Any], ArchSpec | None]


def _separate(attention: str) -> QKV:
    """Queries, keys and values from three projections of an attention module."""
    return QKV(f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj")


def _fused(path: str, packing: Packing) -> QKV:
    """Queries, keys and values from one projection."""
    return QKV(path, path, path, packing)


LLAMA = ArchSpec(
    layers="model.layers",
    embed="model.embed_tokens",
    final_norm="model.norm",
    unembed="lm_head",
    attn_proj="self_attn.o_proj",
    attn_out=Place("self_attn.o_proj", "output"),
    mlp_out=Place("mlp", "output"),
    resid_mid=Place("post_attention_layernorm", "stream"),
    qkv=_separate("self_attn"),
    mlp_proj="mlp.down_proj",
)

# Mixtures of experts have no one projection that neurons enter.
EXPERTS = replace(LLAMA, mlp_proj=None)

GPT2 = ArchSpec(
    layers="transformer.h",
    embed="transformer.wte",
    final_norm="transformer.ln_f",
    unembed="lm_head",
    attn_proj="attn.c_proj",
    attn_out=Place("attn.c_proj", "output"),
    mlp_out=Place("mlp", "output"),
    resid_mid=Place("ln_2", "stream"),
    qkv=_fused("attn.c_attn", "blocks"),
    mlp_proj="mlp.c_proj",
)

# Norms on both sides of attention and of the MLP: a contribution is what leaves the second norm.
GEMMA2 = replace(
    LLAMA,
    attn_out=Place("post_attention_layernorm", "output"),
    mlp_out=Place("post_feedforward_layernorm", "output"),
    resid_mid=Place("pre_feedforward_layernorm", "stream"),
    logit_softcap="final_logit_softcapping",
)

# Norms only after attention and after the MLP, which therefore reads the bare residual stream.
OLMO2 = replace(
    GEMMA2,
    resid_mid=Place("mlp", "stream"),
    qkv=_separate("self_attn")._replace(norms=("self_attn.q_norm", "self_attn.k_norm")),
    logit_softcap=None,
)

OLMOE = replace(EXPERTS, qkv=OLMO2.qkv)

COHERE = replace(LLAMA, resid_mid=None, logit_scale="logit_scale")

GRANITE = replace(LLAMA, residual_scale="residual_multiplier", logit_divisor="logits_scaling")

PHI = replace(
    LLAMA,
    final_norm="model.final_layernorm",
    attn_proj="self_attn.dense",
    attn_out=Place("self_attn.dense", "output"),
    resid_mid=None,
    mlp_proj="mlp.fc2",
)

PHI3 = replace(LLAMA, qkv=_fused("self_attn.qkv_proj", "blocks"))

STARCODER2 = replace(LLAMA, mlp_proj="mlp.c_proj")

GPT_NEO = replace(
    GPT2,
    attn_proj="attn.attention.out_proj",
    attn_out=Place("attn.attention.out_proj", "output"),
    qkv=_separate("attn.attention"),
)

GPTJ = replace(
    GPT2,
    attn_proj="attn.out_proj",
    attn_out=Place("attn.out_proj", "output"),
    resid_mid=None,
    qkv=_separate("attn"),
    mlp_proj="mlp.fc_out",
)

GPT_NEOX = ArchSpec(
    layers="gpt_neox.layers",
    embed="gpt_neox.embed_in",
    final_norm="gpt_neox.final_layer_norm",
    unembed="lm_head",
    attn_proj="attention.dense",
    attn_out=Place("attention.dense", "output"),
    mlp_out=Place("mlp", "output"),
    resid_mid=Place("post_attention_layernorm", "stream"),
    qkv=_fused("attention.query_key_value", "groups"),
    mlp_proj="mlp.dense_4h_to_h",
)

# The residual is added inside the attention and MLP modules: their projections' outputs are the
# contributions. OPT, besides, folds batch and position into one axis for its MLP.
BLOOM = replace(
    GPT2,
    embed="transformer.word_embeddings",
    attn_proj="self_attention.dense",
    attn_out=Place("self_attention.dense", "output"),
    mlp_out=Place("mlp.dense_4h_to_h", "output"),
    resid_mid=Place("post_attention_layernorm", "stream"),
    qkv=_fused("self_attention.query_key_value", "groups"),
    mlp_proj="mlp.dense_4h_to_h",
)

MPT = ArchSpec(
    layers="transformer.blocks",
    embed="transformer.wte",
    final_norm="transformer.norm_f",
    unembed="lm_head",
    attn_proj="attn.out_proj",
    attn_out=Place("attn.out_proj", "output"),
    mlp_out=Place("ffn.down_proj", "output"),
    resid_mid=Place("norm_2", "stream"),
    qkv=_fused("attn.Wqkv", "blocks"),
    mlp_proj="ffn.down_proj",
)

OPT = ArchSpec(
    layers="model.decoder.layers",
    embed="model.decoder.embed_tokens",
    final_norm="model.decoder.final_layer_norm",
    unembed="lm_head",
    attn_proj="self_attn.out_proj",
    attn_out=Place("self_attn.out_proj", "output"),
    mlp_out=Place("fc2", "output"),
    resid_mid=Place("final_layer_norm", "stream"),
    qkv=_separate("self_attn"),
    mlp_proj="fc2",
)


def _neox(config: Any) -> ArchSpec:
    """GPT-NeoX and Pythia: parallel blocks unless the configuration says otherwise."""
    return replace(GPT_NEOX, resid_mid=None) if config.use_parallel_residual else GPT_NEOX


def _stablelm(config: Any) -> ArchSpec:
    """StableLM: serial blocks unless the configuration says otherwise."""
    return replace(LLAMA, resid_mid=None) if config.use_parallel_residual else LLAMA


def _falcon(config: Any) -> ArchSpec:
    """Falcon: parallel blocks add attention's output into the MLP's, in place."""
    if config.new_decoder_architecture or config.parallel_attn:
        return replace(BLOOM, mlp_out=Place("mlp", "copied"), resid_mid=None)
    return replace(BLOOM, mlp_out=Place("mlp", "output"))


def _bigcode(config: Any) -> ArchSpec:
    """GPT-BigCode: one key/value head for all queries, or GPT-2's heads packed head by head."""
    return GPT2 if config.multi_query else replace(GPT2, qkv=_fused("attn.c_attn", "groups"))


def _bloom(config: Any) -> ArchSpec | None:
    """BLOOM, unless it takes the residual after the norm or splits its projections."""
    odd = config.apply_residual_connection_post_layernorm or config.slow_but_exact
    return None if odd else BLOOM


def _opt(config: Any) -> ArchSpec | None:
    """OPT, unless it normalises after adding or projects its embeddings (OPT-350m does both)."""
    if not config.do_layer_norm_before or config.word_embed_proj_dim != config.hidden_size:
        return None
    return replace(OPT, final_norm=None) if config._remove_final_layer_norm else OPT


ROWS: dict[str, Row] = {
    "bloom": _bloom,
    "cohere": COHERE,
    "cohere2": COHERE,
    "falcon": _falcon,
    "gemma": LLAMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA2,
    "gpt2": GPT2,
    "gpt_bigcode": _bigcode,
    "gpt_neo": GPT_NEO,
    "gpt_neox": _neox,
    "gptj": GPTJ,
    "granite": GRANITE,
    "llama": LLAMA,
    "mistral": LLAMA,
    "mixtral": EXPERTS,
    "mpt": MPT,
    "olmo": LLAMA,
    "olmo2": OLMO2,
    "olmo3": OLMO2,
    "olmoe": OLMOE,
    "opt": _opt,
    "phi": PHI,
    "phi3": PHI3,
    "qwen2": LLAMA,
    "qwen2_moe": EXPERTS,
    "qwen3": LLAMA,
    "qwen3_moe": EXPERTS,
    "smollm3": LLAMA,
    "stablelm": _stablelm,
    "starcoder2": STARCODER2,
}


def lookup(config: Any) -> ArchSpec | None:
    """The spec of the family that ``config`` belongs to, or None if the table has none for it.

    Args:
        config: a Hugging Face configuration; of a composed model, its text part is used.
    """
    config = config.get_text_config()
    row = ROWS.get(config.model_type)
    return row(config) if callable(row) else row
