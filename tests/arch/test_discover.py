"""Discovery: the table bypassed, the structure found from the module tree and then proven."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from nnattr.arch.discover import candidates, discover
from nnattr.arch.spec import ArchSpec
from nnattr.errors import ArchError
from nnattr.model.load import load
from nnattr.model.verify import proven
from tests.tiny import CONFIGS, FAMILIES, randomise, tiny_model, tiny_module, tiny_tokenizer

SMALL = {"vocab_size": 96, "hidden_size": 48, "num_hidden_layers": 4, "pad_token_id": 1}
HEADS_OF_TWO = {"num_attention_heads": 4, "num_key_value_heads": 2}


def small(model_type: str, **sizes: Any) -> Any:
    config = AutoConfig.for_model(model_type, **{**SMALL, **sizes})
    return randomise(AutoModelForCausalLM.from_config(config))


def effective(spec: ArchSpec, config: Any) -> ArchSpec:
    """The spec without constants that the configuration leaves unset.

    With one key/value head there is one group: both packings are the same.
    """
    names = ("residual_scale", "logit_scale", "logit_divisor", "logit_softcap")
    unset: dict[str, Any] = {
        name: None
        for name in names
        if getattr(spec, name) is not None and getattr(config, getattr(spec, name)) is None
    }
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", 0):
        unset["qkv"] = spec.qkv and spec.qkv._replace(packing="blocks")
    return replace(spec, **unset)


@pytest.mark.parametrize("family", FAMILIES)
def test_discovery_and_proof_agree_with_the_table(family: str) -> None:
    model = tiny_model(family)
    found = proven(model, candidates(model.nn._module))
    assert found.spec == effective(model.spec, model.config)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bloom"])
def test_discovery_needs_no_weights(family: str) -> None:
    with_weights = list(candidates(tiny_module(family)))
    with torch.device("meta"):
        model_type, sizes = CONFIGS[family]
        config = AutoConfig.for_model(model_type, **{"vocab_size": 96, **sizes})
        bare = AutoModelForCausalLM.from_config(config)
    assert list(candidates(bare)) == with_weights


def test_a_family_outside_the_table_loads() -> None:
    module = small("glm4", **HEADS_OF_TWO, intermediate_size=64, head_dim=16)
    model = load(module, tokenizer=tiny_tokenizer())
    assert model.spec.attn_out.path == "post_self_attn_layernorm"
    assert model.spec.mlp_out.path == "post_mlp_layernorm"


def test_dense_layers_before_mixtures_of_experts() -> None:
    """No one projection that neurons enter in every layer; the rest is proven all the same."""
    sizes = {"num_experts_per_tok": 2, "n_routed_experts": 4, "moe_intermediate_size": 32}
    module = small(
        "glm4_moe", **HEADS_OF_TWO, **sizes, intermediate_size=64, first_k_dense_replace=1
    )
    model = load(module, tokenizer=tiny_tokenizer())
    assert model.spec.mlp_proj is None
    assert model.spec.qkv is not None


@pytest.mark.parametrize(
    ("model_type", "sizes", "reason"),
    [
        ("mamba", {}, "no attention heads"),
        ("lfm2", {**HEADS_OF_TWO, "layer_types": ["conv", "full_attention"] * 2}, "hybrid"),
        ("bert", {"num_attention_heads": 4, "is_decoder": True}, "nnsight cannot address"),
    ],
)
def test_what_has_no_usable_heads_is_refused(
    model_type: str, sizes: dict[str, Any], reason: str
) -> None:
    with torch.device("meta"):
        config = AutoConfig.for_model(model_type, **{**SMALL, **sizes})
        module = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ArchError, match=reason):
        discover(module)


def test_layers_without_attention_are_named() -> None:
    module = tiny_module("llama")
    module.model.layers[1].self_attn = torch.nn.Identity()
    with pytest.raises(ArchError, match=r"layers \[1\] have no attention output projection"):
        discover(module)


def test_a_model_without_layers_is_told_how_to_go_on() -> None:
    module = tiny_module("llama")
    module.model.layers = torch.nn.Identity()
    with pytest.raises(ArchError, match=r"no list of layers.*spec=ArchSpec\("):
        discover(module)


def test_post_norm_opt_is_refused_with_the_check_that_failed() -> None:
    """OPT-350m normalises the sum: its residual stream is no sum of contributions."""
    module = tiny_module("opt", do_layer_norm_before=False)
    with pytest.raises(ArchError, match="check 'residual sums'"):
        load(module, tokenizer=tiny_tokenizer())
