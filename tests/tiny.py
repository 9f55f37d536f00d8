"""Tiny random models, one per family of the table, built from their configurations: no downloads.

The sizes are chosen so that mistakes show: ``d_head`` is not ``d_model / n_heads`` where a family
allows that, there are fewer key/value heads than heads where it has them, biases and norm weights
are random, and all weights are large enough for every edit to matter.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from nnattr.model.load import load
from nnattr.model.model import Model

VOCAB = 96
LAYERS, HEADS, KV_HEADS, D_MODEL, D_HEAD, D_MLP, CONTEXT = 3, 4, 2, 48, 16, 64, 64

_LLAMA: dict[str, Any] = {
    "hidden_size": D_MODEL,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "intermediate_size": D_MLP,
    "max_position_embeddings": CONTEXT,
}
_WIDE = {**_LLAMA, "head_dim": D_HEAD}
_PLAIN = {name: value for name, value in _LLAMA.items() if name != "num_key_value_heads"}
_GPT2 = {"n_embd": D_MODEL, "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT}
_FALCON = {**_PLAIN, "ffn_hidden_size": D_MLP}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

#: family -> (model_type, configuration); a family is a model type or a layout of one.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("bloom", {"hidden_size": D_MODEL, "n_layer": LAYERS, "n_head": HEADS}),
    "cohere": ("cohere", {**_LLAMA, "logit_scale": 0.25}),
    "cohere2": ("cohere2", {**_WIDE, "logit_scale": 0.25}),
    "falcon": ("falcon", {**_FALCON, "parallel_attn": True}),
    "falcon-new": (
        "falcon",
        {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": KV_HEADS},
    ),
    "falcon-serial": ("falcon", {**_FALCON, "parallel_attn": False, "alibi": True, "bias": True}),
    "gemma": ("gemma", _WIDE),
    "gemma2": ("gemma2", {**_WIDE, "final_logit_softcapping": 5.0}),
    "gemma3_text": ("gemma3_text", _WIDE),
    "gpt2": ("gpt2", _GPT2),
    "gpt_bigcode": ("gpt_bigcode", _GPT2),
    "gpt_neo": (
        "gpt_neo",
        {
            "hidden_size": D_MODEL,
            "num_layers": 2,
            "num_heads": HEADS,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": CONTEXT,
        },
    ),
    "gpt_neox": ("gpt_neox", _PLAIN),
    "gpt_neox-serial": ("gpt_neox", {**_PLAIN, "use_parallel_residual": False}),
    "gptj": ("gptj", {**_GPT2, "rotary_dim": 8}),
    "granite": (
        "granite",
        {**_LLAMA, "residual_multiplier": 0.5, "logits_scaling": 4.0, "embedding_multiplier": 3.0},
    ),
    "llama": ("llama", _WIDE),
    "mistral": ("mistral", _WIDE),
    "mixtral": ("mixtral", {**_WIDE, "num_local_experts": 4}),
    "mpt": (
        "mpt",
        {"d_model": D_MODEL, "n_layers": LAYERS, "n_heads": HEADS, "max_seq_len": CONTEXT},
    ),
    "olmo": ("olmo", _LLAMA),
    "olmo2": ("olmo2", _LLAMA),
    "olmo3": ("olmo3", _LLAMA),
    "olmoe": ("olmoe", {**_LLAMA, "num_experts": 4, "num_experts_per_tok": 2}),
    "opt": ("opt", {**_PLAIN, "ffn_dim": D_MLP, "word_embed_proj_dim": D_MODEL}),
    "phi": ("phi", _LLAMA),
    "phi3": ("phi3", _LLAMA),
    "qwen2": ("qwen2", _LLAMA),
    "qwen2_moe": ("qwen2_moe", {**_LLAMA, **_MOE, "shared_expert_intermediate_size": 32}),
    "qwen3": ("qwen3", _WIDE),
    "qwen3_moe": ("qwen3_moe", {**_WIDE, **_MOE}),
    "smollm3": ("smollm3", _LLAMA),
    "stablelm": ("stablelm", {**_LLAMA, "partial_rotary_factor": 0.5}),
    "stablelm-parallel": (
        "stablelm",
        {**_LLAMA, "partial_rotary_factor": 0.5, "use_parallel_residual": True},
    ),
    "starcoder2": ("starcoder2", _LLAMA),
}
FAMILIES: tuple[str, ...] = tuple(CONFIGS)

_SPECIAL = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2}


def tiny_tokenizer(size: int = VOCAB) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over ``w0 w1 ...``; ``w0`` is unknown, ``w1`` pads, ``w2`` begins."""
    core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="w0", pad_token="w1", bos_token="w2", eos_token="w2"
    )


def tiny_module(family: str, *, seed: int = 0, **overrides: Any) -> Any:
    """The raw Hugging Face module of ``family``, in eval mode, with random weights."""
    model_type, sizes = CONFIGS[family]
    config = AutoConfig.for_model(
        model_type, **{"vocab_size": VOCAB, **_SPECIAL, **sizes, **overrides}
    )
    return randomise(AutoModelForCausalLM.from_config(config), seed)


def randomise(module: Any, seed: int = 0) -> Any:
    """Give every parameter a random value that matters: no zero bias, no norm weight of one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
    return module.eval().requires_grad_(False)


def tiny_model(family: str, *, backend: str = "local", seed: int = 0, **overrides: Any) -> Model:
    """A tiny random `Model` of ``family`` (one of `FAMILIES`), the same for the same seed."""
    return load(
        tiny_module(family, seed=seed, **overrides), tokenizer=tiny_tokenizer(), backend=backend
    )
