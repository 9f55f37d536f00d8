"""Where each Hugging Face family keeps what the oracles hook, read off its ``forward``.

Written independently of ``nnattr.arch``, so that a mistake has to be made twice to pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Map:
    """Module names: the decoder layers, and in one layer the parts that are hooked.

    Attributes:
        layers: the list of decoder layers.
        projection: attention's output projection.
        attention: the module whose output is added to the residual stream after attention.
        mlp: the module whose output is added after the MLP.
        scale: what both are multiplied by when they are added.
        parallel: attention and MLP read the same residual stream.
    """

    layers: str
    projection: str
    attention: str
    mlp: str
    scale: float = 1.0
    parallel: bool = False


GPT2 = Map("transformer.h", "attn.c_proj", "attn.c_proj", "mlp")
LLAMA = Map("model.layers", "self_attn.o_proj", "self_attn.o_proj", "mlp")
POST_NORM = replace(LLAMA, attention="post_attention_layernorm", mlp="post_feedforward_layernorm")
NEO = Map("transformer.h", *["attn.attention.out_proj"] * 2, "mlp")
GPTJ = Map("transformer.h", *["attn.out_proj"] * 2, "mlp", parallel=True)
NEOX = Map("gpt_neox.layers", *["attention.dense"] * 2, "mlp")
BLOOM = Map("transformer.h", *["self_attention.dense"] * 2, "mlp.dense_4h_to_h")
FALCON = Map("transformer.h", *["self_attention.dense"] * 2, "mlp")
MPT = Map("transformer.blocks", *["attn.out_proj"] * 2, "ffn.down_proj")
OPT = Map("model.decoder.layers", *["self_attn.out_proj"] * 2, "fc2")
PHI = Map("model.layers", *["self_attn.dense"] * 2, "mlp", parallel=True)

LIKE_LLAMA = (
    *("gemma", "llama", "mistral", "mixtral", "olmo", "olmoe", "phi3", "qwen2", "qwen2_moe"),
    *("qwen3", "qwen3_moe", "smollm3", "starcoder2"),
)


def map_of(module: Any) -> Map:
    """The map of a live model."""
    config = module.config
    parallel = getattr(config, "use_parallel_residual", False)
    falcon = getattr(config, "parallel_attn", False)
    falcon = falcon or getattr(config, "new_decoder_architecture", False)
    maps = {
        **dict.fromkeys(LIKE_LLAMA, LLAMA),
        **dict.fromkeys(("gpt2", "gpt_bigcode"), GPT2),
        **dict.fromkeys(("gemma2", "gemma3_text", "olmo2", "olmo3"), POST_NORM),
        **dict.fromkeys(("cohere", "cohere2"), replace(LLAMA, parallel=True)),
        "granite": replace(LLAMA, scale=getattr(config, "residual_multiplier", 1.0)),
        "stablelm": replace(LLAMA, parallel=parallel),
        "gpt_neo": NEO,
        "gptj": GPTJ,
        "gpt_neox": replace(NEOX, parallel=parallel),
        "bloom": BLOOM,
        "falcon": replace(FALCON, parallel=falcon),
        "mpt": MPT,
        "opt": OPT,
        "phi": PHI,
    }
    return maps[config.model_type]
