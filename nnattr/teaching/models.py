"""The two architectures: small enough for 5 MB, deep enough for the circuits they are to show.

Four layers: induction takes two (a previous-token head, then a head that uses it), indirect-object
identification a few more (find the repeated name, keep away from it, move the other one).
"""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from nnattr.teaching import tokenizer as words
from nnattr.teaching.start import give_a_start


def gpt2_config(vocab_size: int) -> GPT2Config:
    """GPT-2: learned positions, LayerNorm, fused q/k/v in a Conv1D; the unembedding is its own."""
    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=128,
        n_embd=128,
        n_layer=4,
        n_head=4,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
    )


def llama_config(vocab_size: int) -> LlamaConfig:
    """Llama: rotary positions, RMSNorm, gated MLP, and two key/value heads for four heads."""
    return LlamaConfig(
        vocab_size=vocab_size,
        max_position_embeddings=256,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )


def build(name: str, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """An untrained model and its tokenizer, with the special tokens set in the configurations."""
    llama = name == "teaching-llama"
    tokenizer = words.build(begin=llama, max_length=256 if llama else 128)
    config = (llama_config if llama else gpt2_config)(len(tokenizer))
    config.bos_token_id = token_id(words.BOS) if llama else None
    config.eos_token_id = token_id(words.EOS)
    config.pad_token_id = token_id(words.PAD)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config) if llama else GPT2LMHeadModel(config)
    give_a_start(model)
    generation = model.generation_config
    generation.bos_token_id = config.bos_token_id
    generation.eos_token_id = [token_id(words.EOS), token_id("<|end|>")]
    generation.pad_token_id = config.pad_token_id
    return model, tokenizer


def token_id(special: str) -> int:
    """The id of a special token, the same in both models."""
    return words.SPECIAL_TOKENS.index(special)
