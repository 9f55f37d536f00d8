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


def gpt2_config(vocab_size: int) -> GPT2Config:
    """GPT-2: learned positions, LayerNorm, fused q/k/v in a Conv1D, tied unembedding."""
    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=128,
        n_embd=128,
        n_layer=4,
        n_head=8,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )


def llama_config(vocab_size: int) -> LlamaConfig:
    """Llama: rotary positions, RMSNorm, gated MLP, and four key/value heads for eight heads."""
    return LlamaConfig(
        vocab_size=vocab_size,
        max_position_embeddings=256,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )


def build(name: str, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """An untrained model and its tokenizer, with the special tokens set in the configurations."""
    llama = name == "teaching-llama"
    tokenizer = words.build(begin=llama, max_length=256 if llama else 128)
    config = (llama_config if llama else gpt2_config)(len(tokenizer))
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config) if llama else GPT2LMHeadModel(config)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    return model, tokenizer
