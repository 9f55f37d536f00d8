"""Tiny configurations for any class of transformers' causal-LM mapping, from its own defaults.

A default configuration is built first; every attribute of it that `SIZES` names is then given the
small value. What a family needs besides stands in `FIXUPS`, as data. Layer types are kept: each
kind of layer that the default has appears in the small one, so a hybrid stays a hybrid.
"""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING

LAYERS = 4
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
VOCAB = 96

#: attribute -> small value; names of many families for the same thing.
SIZES: dict[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "embed_dim", "emb_dim", "embedding_size"), 48
    ),
    **dict.fromkeys(("word_embed_proj_dim", "hidden_dim"), 48),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"), LAYERS
    ),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_encoder_layers"), LAYERS),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "num_decoder_attention_heads"), 4
    ),
    **dict.fromkeys(
        ("encoder_attention_heads", "decoder_attention_heads", "num_encoder_attention_heads"), 4
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "v_head_dim", "attention_head_size", "global_head_dim"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim"), 8),
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff"), 64
    ),
    **dict.fromkeys(("ffn_hidden_size", "dim_ff", "dff", "n_inner", "d_inner"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("expert_ffn_hidden_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts"), 1),
    "first_k_dense_replace": 1,
    "vocab_size": VOCAB,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 64),
    "mamba_n_heads": 6,
    "mamba_d_head": 16,
    "mamba_num_heads": 6,
    "mamba_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "is_decoder": True,
    "use_cache": False,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 2,
}

#: Set even where the default is None.
_UNSET = ("head_dim", "num_key_value_heads", "pad_token_id", "bos_token_id", "eos_token_id")

#: model type -> what its configuration needs besides.
FIXUPS: dict[str, dict[str, Any]] = {
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "cohere_compass_text": {
        "rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), ROPE)
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon_h1": {"mamba_d_ssm": 96},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_text": {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB},
    "helium": {"head_dim": 12},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "lfm2": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
    "mamba2": {"num_heads": 6},
    "zaya": {"num_experts_per_tok": 1},
    "reformer": {"axial_pos_embds": False},
    "stablelm": {"partial_rotary_factor": 0.5},
}


def tiny_config(model_type: str) -> Any:
    """A small configuration of ``model_type``."""
    return _shrunken(CONFIG_MAPPING[model_type])


def _shrunken(kind: Any) -> Any:
    default = kind()
    stated = {**default.to_dict(), **vars(default)}
    small = {
        name: value
        for name, value in SIZES.items()
        if name in stated and (stated[name] is not None or name in _UNSET)
    }
    if (
        "qk_rope_head_dim" in stated
    ):  # latent attention: no shared heads; head_dim is the rotary one
        small |= {"head_dim": SIZES["qk_rope_head_dim"], "num_key_value_heads": 4}
    types = stated.get("layer_types")
    if types:
        distinct = list(dict.fromkeys(types))
        small["layer_types"] = [distinct[i % len(distinct)] for i in range(LAYERS)]
    part = getattr(default, "text_config", None)
    if part is not None and hasattr(part, "to_dict"):
        small["text_config"] = _shrunken(type(part)).to_dict()
    return kind(**{**small, **FIXUPS.get(default.model_type, {})})
