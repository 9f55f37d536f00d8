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

#: Standard deviation of the embeddings at the start; at this scale a copied token already wins.
EMBEDDING_SCALE = 0.12


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


@torch.no_grad()
def give_a_start(model: PreTrainedModel) -> None:
    """Initial values from which copying and looking back are easy to find.

    The embeddings start large, and the unembedding as a rotation of them, so that copying is one
    map for all tokens. Head L0H0 starts as a previous-token head, the first half of induction.
    In Llama the second half, heads that look for it, then forms within 200 steps; GPT-2, whose
    positions share the residual stream with the tokens, needs thousands, so there L1H0 is given
    a start too. What these heads copy, and everything else, starts at random, and training is
    free to change all of it.
    """
    embedding = model.get_input_embeddings().weight
    embedding.mul_(EMBEDDING_SCALE / model.config.initializer_range)
    turn = torch.linalg.qr(torch.randn(embedding.shape[1], embedding.shape[1])).Q
    model.lm_head.weight.copy_(embedding @ turn)
    if isinstance(model, LlamaForCausalLM):
        look_back_rotary(model)
    else:
        look_back_learned(model)
        match_previous(model)


def look_back_learned(model: PreTrainedModel) -> None:
    """Positions as sinusoids in 16 dimensions; L0H0 matches a position with the one before."""
    half, width = 8, model.config.n_embd
    size, head = 2 * half, width // model.config.n_head
    frequencies = 2.0 * 0.0125 ** (torch.arange(half) / (half - 1))
    angles = torch.arange(model.config.n_positions)[:, None] * frequencies
    table = torch.cat([angles.sin(), angles.cos()], dim=1)
    model.transformer.wte.weight[:, :size] = 0
    model.transformer.wpe.weight.zero_()
    model.transformer.wpe.weight[:, :size] = EMBEDDING_SCALE * table
    cos, sin = frequencies.cos().diag(), frequencies.sin().diag()
    one_back = torch.cat([torch.cat([cos, sin], dim=1), torch.cat([-sin, cos], dim=1)])
    weight = model.transformer.h[0].attn.c_attn.weight  # [d_model, q + k + v]
    for start, matrix in ((0, one_back), (width, torch.eye(size))):
        weight[:, start : start + head] = 0
        weight[:size, start : start + size] = 6.0 * matrix


def match_previous(model: PreTrainedModel) -> None:
    """L0H0 copies a code of the token it sees; L1H0 looks for the code of its own token."""
    width, head = model.config.n_embd, model.config.n_embd // model.config.n_head
    code = torch.linalg.qr(torch.randn(width, head)).Q
    place = torch.linalg.qr(torch.randn(width, head)).Q
    first, second = (model.transformer.h[layer].attn for layer in (0, 1))
    first.c_attn.weight[:, 2 * width : 2 * width + head] = code
    first.c_proj.weight[:head] = EMBEDDING_SCALE * place.T
    second.c_attn.weight[:, :head] = 1.6 * code
    second.c_attn.weight[:, width : width + head] = 1.6 * place


def look_back_rotary(model: PreTrainedModel) -> None:
    """A constant in dimension 0, from which L0H0 makes a query one rotary step behind its key."""
    half = model.config.hidden_size // model.config.num_attention_heads // 2
    model.model.embed_tokens.weight[:, 0] = 4 * EMBEDDING_SCALE
    frequencies = 10000.0 ** (-torch.arange(5) / half)
    attention = model.model.layers[0].self_attn
    query, key = attention.q_proj.weight, attention.k_proj.weight  # [heads * d_head, d_model]
    query[: 2 * half] = 0
    key[: 2 * half] = 0
    query[:5, 0] = 1.7 * frequencies.cos()
    query[half : half + 5, 0] = -1.7 * frequencies.sin()
    key[:5, 0] = 1.7


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
    give_a_start(model)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    return model, tokenizer
