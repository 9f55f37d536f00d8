"""What is not a causal language model is refused in words that say what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig

from nnattr.errors import ArchError
from nnattr.model.load import load
from tests.tiny import HEADS, VOCAB, tiny_module, tiny_tokenizer

_SIZES = {"vocab_size": VOCAB, "hidden_size": 48, "num_hidden_layers": 2, "pad_token_id": 1}
_LLAMA = {**_SIZES, "num_attention_heads": HEADS, "intermediate_size": 64}
_T5 = {"vocab_size": VOCAB, "d_model": 48, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_heads": 4}
_BART = {
    "vocab_size": VOCAB,
    "d_model": 48,
    **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": HEADS for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 64 for side in ("encoder", "decoder")},
}

#: class -> (model type, its sizes, what the message must say)
OTHERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "T5ForConditionalGeneration": ("t5", _T5, "is an encoder-decoder"),
    "BartForConditionalGeneration": ("bart", _BART, "is an encoder-decoder"),
    "T5EncoderModel": ("t5", _T5, "has no unembedding"),
    "BertForMaskedLM": ("bert", _LLAMA, "is a masked language model"),
    "BertModel": ("bert", _LLAMA, "has no unembedding"),
    "LlamaModel": ("llama", _LLAMA, "has no unembedding"),
    "LlamaForSequenceClassification": ("llama", _LLAMA, "is a classifier"),
    "LlamaForTokenClassification": ("llama", _LLAMA, "is a classifier"),
    "LlamaForQuestionAnswering": ("llama", _LLAMA, "made to choose among spans"),
    "MambaForCausalLM": ("mamba", {**_SIZES, "state_size": 4}, "has no attention heads"),
}
#: What a folder of these is told, where it is something else.
FOLDERS = {
    "T5EncoderModel": "transformers has no causal language model",
    "BertModel": "no weights for 5 parts of BertLMHeadModel.*saved from BertModel",
    "LlamaModel": r"no weights for 1 parts of LlamaForCausalLM \(lm_head.weight\)",
}


def made(name: str) -> Any:
    model_type, sizes, _ = OTHERS[name]
    return getattr(transformers, name)(AutoConfig.for_model(model_type, **sizes)).eval()


@pytest.mark.parametrize("name", OTHERS)
def test_a_module_of_another_kind(name: str) -> None:
    with pytest.raises(ArchError, match=OTHERS[name][2]):
        load(made(name), tokenizer=tiny_tokenizer())


@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_of_another_kind(name: str, tmp_path: Path) -> None:
    """A classifier's checkpoint loads as a language model with a random unembedding: never here."""
    made(name).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ArchError, match=FOLDERS.get(name, OTHERS[name][2])):
        load(tmp_path)


@pytest.mark.parametrize("name", ["LlamaModel", "LlamaForSequenceClassification"])
def test_a_server_would_fill_in_the_unembedding(name: str, tmp_path: Path) -> None:
    made(name).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ArchError, match="unembedding"):
        load(tmp_path, backend="http://127.0.0.1:9")


def test_a_bare_model_whose_unembedding_is_its_embedding_loads(tmp_path: Path) -> None:
    """The original GPT-2 was saved so: nothing of it is random."""
    whole = tiny_module("gpt2", tie_word_embeddings=True)
    whole.transformer.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = load(tmp_path)
    assert torch.equal(model.module.lm_head.weight, whole.transformer.wte.weight)


class Valued(torch.nn.Module):
    """A reward model as libraries for reinforcement learning wrap one."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_model = tiny_module("gpt2")
        self.config = self.pretrained_model.config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: 3, "model is a int; expected"),
        (lambda: torch.nn.Linear(2, 2), "Linear is no Hugging Face model"),
        (Valued, r"no Hugging Face model.*module at \.pretrained_model"),
        (lambda: load("teaching-gpt2"), r"model is a Model; expected.*at \.module"),
        (lambda: load("teaching-gpt2").nn, r"model is a TransformersModel; expected"),
    ],
)
def test_what_is_no_model_of_hugging_face(given: Callable[[], Any], message: str) -> None:
    with pytest.raises(ArchError, match=message):
        load(given(), tokenizer=tiny_tokenizer())
