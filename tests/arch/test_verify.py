"""The proof refuses what is wrong, and says which check failed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from nnattr.arch.spec import QKV, ArchSpec, Place
from nnattr.arch.table import GPT_NEOX, LLAMA
from nnattr.errors import ArchError
from nnattr.model.load import load
from nnattr.model.model import Model
from nnattr.model.proof import Check, Proof
from nnattr.model.verify import verify
from nnattr.runs.places import read, write
from tests.tiny import tiny_model, tiny_module, tiny_tokenizer

ORDER = "sites are met in forward order"

WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "no such module": ("llama", {"attn_proj": "self_attn.nowhere"}, "modules exist"),
    "the MLP's projection": ("llama", {"attn_proj": "mlp.down_proj"}, ORDER),
    "the MLP's projection, serial, all along": (
        "llama",
        {
            "attn_proj": "mlp.down_proj",
            "attn_out": Place("mlp.down_proj", "output"),
            "mlp_out": Place("self_attn.o_proj", "output"),
        },
        ORDER,
    ),
    "the MLP's projection, parallel": (
        "gptj",
        {"attn_proj": "mlp.fc_out", "attn_out": Place("mlp.fc_out", "output")},
        "residual sums",
    ),
    "a projection into the heads": (
        "olmo",
        {"attn_proj": "self_attn.q_proj"},
        "attn_out comes from the projection",
    ),
    "a projection into the heads, all along": (
        "olmo",
        {"attn_proj": "self_attn.q_proj", "attn_out": Place("self_attn.q_proj", "output")},
        "residual sums",
    ),
    "queries, keys and values in the other order": (
        "llama",
        {"qkv": QKV("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj")},
        "heads of q stand apart",
    ),
    "head by head, where they lie in blocks": (
        "gpt2",
        {"qkv": QKV("attn.c_attn", "attn.c_attn", "attn.c_attn", "groups")},
        "heads of q stand apart",
    ),
    "in blocks, where they lie head by head": (
        "gpt_neox",
        {"qkv": GPT_NEOX.qkv and GPT_NEOX.qkv._replace(packing="blocks")},
        "heads of q stand apart",
    ),
    "in front of a norm that mixes the heads": (
        "olmo2",
        {"qkv": QKV("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")},
        "heads of q stand apart",
    ),
    "a projection of the MLP that is not its last": (
        "llama",
        {"mlp_proj": "mlp.up_proj"},
        "neurons W_out = the MLP's output",
    ),
    "resid_mid at the first norm": (
        "llama",
        {"resid_mid": Place("input_layernorm", "stream")},
        ORDER,
    ),
    "resid_mid that only the norm sees": (
        "llama",
        {"resid_mid": Place("post_attention_layernorm", "input")},
        "edits reach the residual stream",
    ),
    "resid_mid behind the norm": (
        "llama",
        {"resid_mid": Place("mlp", "stream")},
        "residual sums",
    ),
    "parallel read as serial": (
        "gpt_neox",
        {"resid_mid": Place("post_attention_layernorm", "stream")},
        "residual sums",
    ),
    "before the post-norm": (
        "gemma2",
        {"attn_out": Place("self_attn.o_proj", "output")},
        "residual sums",
    ),
    "no residual scale": ("granite", {"residual_scale": None}, "residual sums"),
    "no logit divisor": (
        "granite",
        {"logit_divisor": None},
        "logits = unembed(norm(resid_post))",
    ),
    "no logit scale": ("cohere", {"logit_scale": None}, "logits = unembed(norm(resid_post))"),
    "no soft-cap": ("gemma2", {"logit_softcap": None}, "logits = unembed(norm(resid_post))"),
    "no final norm": ("llama", {"final_norm": None}, "residual = hidden_states"),
    "a value that the model overwrites": (
        "falcon",
        {"mlp_out": Place("mlp", "output")},
        "values stay as they were read",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_spec_fails_the_right_check(mistake: str) -> None:
    family, changes, check = WRONG[mistake]
    model = tiny_model(family)
    proof = verify(replace(model, spec=replace(model.spec, **changes)))
    assert proof.failed is not None
    assert proof.failed.name == check, str(proof)


def test_a_serial_block_read_as_parallel_is_true_but_poorer() -> None:
    """resid_pre + attn_out + mlp_out is resid_post in a serial block too: nothing said is false."""
    model = tiny_model("gpt2")
    assert verify(replace(model, spec=replace(model.spec, resid_mid=None))).passed


def test_a_slice_of_the_projections_output_is_no_head() -> None:
    """The output mixes all heads: zeroing a slice of it is not zeroing a head."""
    model = tiny_model("olmo")
    [(path, *_), *_] = model.places("z")

    def zero(nn: Any, tick: Any, where: Any) -> dict[str, Any]:
        with nn.trace(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False):
            value = read(nn, where).clone()
            value[..., :12] = 0
            write(nn, where, value)
            logits = nn.output.logits.clone()
        return {"logits": logits}

    of_input = model.run(zero, {"where": (path, "input", None)}, label="z").values["logits"]
    of_output = model.run(zero, {"where": (path, "output", None)}, label="output").values["logits"]
    assert (of_input - of_output).abs().max() > 0.1


def test_not_a_number_is_reported_as_such() -> None:
    module = tiny_module("llama")
    module.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    proof = verify(load(module, tokenizer=tiny_tokenizer()))
    assert proof.failed == Check(
        "activations are finite", False, "float32, non-finite logits (NaN or infinite weights?)"
    )
    with pytest.raises(ArchError, match="non-finite"):
        proof.require()


def test_a_head_that_cannot_matter_is_noticed() -> None:
    module = tiny_module("llama")
    module.model.layers[2].self_attn.o_proj.weight.zero_()
    failed = verify(load(module, tokenizer=tiny_tokenizer())).failed
    assert failed is not None
    assert failed.name == "editing one head's z"


def test_attention_to_later_tokens_is_noticed() -> None:
    model = tiny_model("llama")
    for layer in model.module.model.layers:
        layer.self_attn.is_causal = False
    failed = verify(model).failed
    assert failed is not None
    assert failed.name == "later tokens reach no earlier one"


def test_positions_shifted_by_padding_are_noticed() -> None:
    model = tiny_model("gpt2")
    model.nn.tokenizer.padding_side = "right"  # nnsight then leaves position ids alone
    failed = verify(model).failed
    assert failed is not None
    assert failed.name == "left padding changes nothing"


def test_another_number_of_heads_is_noticed() -> None:
    model = tiny_model("llama")
    model.config.num_attention_heads = 2
    failed = verify(model).failed
    assert failed is not None
    assert failed.name == "z is heads x d_head"
    assert "says d_head 16" in failed.detail


def test_given_ids_are_used() -> None:
    assert verify(tiny_model("gpt2"), torch.tensor([[5, 9, 30, 7, 12]])).passed


def test_a_proof_prints_within_80_columns() -> None:
    for family in ("llama", "gpt_neox"):
        proof = verify(tiny_model(family))
        assert max(map(len, str(proof).splitlines())) <= 80
    long = Proof("a/very-long-name" * 9, (Check("c" * 60, False, "what was measured " * 9),))
    assert max(map(len, str(long).splitlines())) <= 80


def _unknown(family: str = "llama") -> Any:
    module = tiny_module(family)
    module.config.model_type = "unheard-of"
    return module


def test_your_own_spec_is_proven_and_used() -> None:
    model: Model = load(_unknown(), tokenizer=tiny_tokenizer(), spec=LLAMA)
    assert model.spec == LLAMA


def test_your_own_wrong_spec_is_refused_with_the_next_step() -> None:
    wrong: ArchSpec = replace(LLAMA, final_norm=None)
    with pytest.raises(ArchError, match=r"'residual = hidden_states' failed.*spec=ArchSpec\("):
        load(_unknown(), tokenizer=tiny_tokenizer(), spec=wrong)
