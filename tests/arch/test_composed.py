"""Models with a vision tower: their text part is analysed as a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

import nnattr
from nnattr import Task
from nnattr.model.components import position_table
from nnattr.model.load import load
from tests.oracles.heads import patch_every_head
from tests.tiny import CONTEXT, VOCAB, randomise, tiny_tokenizer

BASE, OTHER = "w5 w6 w7 w8 w9 w30", "w5 w6 w40 w8 w9 w30"
#: As many layers in the tower as in the text, which must not be mistaken for each other.
_TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": VOCAB,
    "max_position_embeddings": CONTEXT,
}
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
_TURNED = {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2], "rope_type": "default"}}
_QWEN = {"depth": 2, "num_heads": 4, "patch_size": 14}
COMPOSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "llava": ({"model_type": "llama", **_TEXT}, _TOWER, "model.language_model.layers"),
    "gemma3": ({**_TEXT, "head_dim": 8}, _TOWER, "model.language_model.layers"),
    "qwen2_vl": (
        {**_TEXT, **_TURNED},
        {**_QWEN, "embed_dim": 32, "hidden_size": 32},
        "model.language_model.layers",
    ),
    "idefics3": ({"model_type": "llama", **_TEXT}, _TOWER, "model.text_model.layers"),
}


def composed(model_type: str) -> Any:
    text, tower, _ = COMPOSED[model_type]
    config = AutoConfig.for_model(
        model_type, text_config=text, vision_config=tower, image_token_index=VOCAB - 1
    )
    return randomise(AutoModelForImageTextToText.from_config(config))


@pytest.mark.parametrize("model_type", COMPOSED)
@torch.no_grad()
def test_the_text_part_against_plain_hooks(model_type: str) -> None:
    module = composed(model_type)
    model = load(module, tokenizer=tiny_tokenizer())
    assert model.spec.layers == COMPOSED[model_type][2]
    assert position_table(model) is None, "the tower's table is of patches"
    task = Task.from_pairs([BASE], [OTHER], [" w31"], [" w32"], tokenizer=model.tokenizer)
    scores = nnattr.activation_patching(model, task, nnattr.LogitDiff(), normalized=False)
    path = f"{model.spec.layers}.{{}}.{model.spec.attn_proj}"
    clean, cells = patch_every_head(module, task, [path.format(layer) for layer in range(2)], 4)
    np.testing.assert_allclose(scores.values.values[0], cells, atol=2e-5)
    assert np.abs(cells).max() > 1e-3
    parts = nnattr.direct_logit_attribution(model, task)
    np.testing.assert_allclose(parts.values.values.sum(), clean, atol=2e-5)
    assert nnattr.next_token_attribution(model, BASE).values.notnull().any()


@pytest.mark.parametrize("model_type", COMPOSED)
def test_a_folder_loads_whole(model_type: str, tmp_path: Path) -> None:
    module = composed(model_type)
    module.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = load(tmp_path)
    assert type(model.module) is type(module)
    for name, weight in module.state_dict().items():
        assert torch.equal(model.module.state_dict()[name], weight), name
