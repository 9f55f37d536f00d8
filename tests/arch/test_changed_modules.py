"""Modules that were changed before they were loaded: what is there counts, not what was said."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nnattr
from nnattr import Model, Task
from nnattr.errors import ArchError
from nnattr.model.load import load
from tests.methods.common import assert_same, expected, ragged_tiny
from tests.oracles.heads import patch_every_head
from tests.tiny import VOCAB, tiny_module, tiny_tokenizer

BASE, OTHER = "w5 w6 w7 w8 w9 w30", "w5 w6 w40 w8 w9 w30"


def task_for(model: Model) -> Task:
    return Task.from_pairs([BASE], [OTHER], [" w31"], [" w32"], tokenizer=model.tokenizer)


def llama_cut(module: Any) -> None:
    module.model.layers = module.model.layers[:2]


def llama_popped_and_told(module: Any) -> None:
    module.model.layers = nn.ModuleList([module.model.layers[0], module.model.layers[2]])
    module.config.num_hidden_layers = 2


def llama_told_alone(module: Any) -> None:
    module.config.num_hidden_layers = 2


def gpt2_cut(module: Any) -> None:
    module.transformer.h = module.transformer.h[:2]


def gpt2_popped(module: Any) -> None:
    module.transformer.h = nn.ModuleList([module.transformer.h[0], module.transformer.h[2]])


def llama_swapped(module: Any) -> None:
    """The first two layers change places, and still keep keys and values by their old numbers."""
    layers = module.model.layers
    layers[0], layers[1] = layers[1], layers[0]


def gpt2_swapped(module: Any) -> None:
    layers = module.transformer.h
    layers[0], layers[1] = layers[1], layers[0]


def mixtral_cut(module: Any) -> None:
    module.model.layers = module.model.layers[:2]


def resized(module: Any) -> None:
    module.resize_token_embeddings(VOCAB + 9)


def resized_by_hand(module: Any) -> None:
    """A new embedding and unembedding, of which nobody told the configuration."""
    rows, width = VOCAB + 9, module.config.hidden_size
    module.set_input_embeddings(nn.Embedding(rows, width))
    module.set_output_embeddings(nn.Linear(width, rows, bias=False))


#: name -> (family, whether the embedding is the unembedding too, the change)
CHANGES: dict[str, tuple[str, bool, Callable[[Any], None]]] = {
    "llama, the last layer cut": ("llama", False, llama_cut),
    "llama, a layer popped": ("llama", False, llama_popped_and_told),
    "llama, fewer layers said": ("llama", False, llama_told_alone),
    "gpt2, the last layer cut": ("gpt2", True, gpt2_cut),
    "gpt2, a layer popped": ("gpt2", True, gpt2_popped),
    "llama, layers swapped": ("llama", False, llama_swapped),
    "gpt2, layers swapped": ("gpt2", True, gpt2_swapped),
    "mixtral, the last layer cut": ("mixtral", False, mixtral_cut),
    "llama, resized": ("llama", False, resized),
    "gpt2, resized and tied": ("gpt2", True, resized),
    "llama, resized by hand": ("llama", False, resized_by_hand),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_changed_module_gives_its_own_numbers(change: str) -> None:
    family, tied, alter = CHANGES[change]
    module = tiny_module(family, tie_word_embeddings=tied)
    alter(module)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The layers of")
        model = load(module, tokenizer=tiny_tokenizer())
    task = task_for(model)
    scores = nnattr.activation_patching(model, task, nnattr.LogitDiff(), normalized=False)
    path = f"{model.spec.layers}.{{}}.{model.spec.attn_proj}"
    paths = [path.format(layer) for layer in range(model.n_layers)]
    clean, cells = patch_every_head(module, task, paths, model.n_heads)
    np.testing.assert_allclose(scores.baselines.sel(run="clean").values[0], clean, atol=2e-5)
    np.testing.assert_allclose(scores.values.values[0], cells, atol=2e-5)
    assert np.abs(cells).max() > 1e-3, "a patch that changes nothing tests nothing"
    parts = nnattr.direct_logit_attribution(model, task)
    np.testing.assert_allclose(parts.values.values.sum(), clean, atol=2e-5)


@pytest.mark.parametrize("change", [llama_swapped, gpt2_swapped, llama_popped_and_told])
@pytest.mark.parametrize("site", ["z", "resid_pre"])
def test_rows_do_not_go_on_from_another_layers_keys(change: Any, site: Any) -> None:
    """Prompts of unequal lengths, each position by itself: rows begin everywhere."""
    module = tiny_module(change.__name__.partition("_")[0])
    change(module)
    with pytest.warns(UserWarning, match="number themselves"):
        model = load(module, tokenizer=tiny_tokenizer())
    task = ragged_tiny(model)
    found = nnattr.activation_patching(
        model, task, nnattr.LogitDiff(), site=site, positions="each", normalized=False
    )
    assert found.provenance.arguments["engine"] == "full"
    assert_same(found.raw, expected("activation", model, task, site=site, positions="each"))


@pytest.mark.parametrize("change", [llama_swapped, gpt2_swapped, llama_popped_and_told])
def test_edges_do_not_go_on_from_another_layers_keys(change: Any) -> None:
    module = tiny_module(change.__name__.partition("_")[0])
    change(module)
    with pytest.warns(UserWarning, match="number themselves"):
        model = load(module, tokenizer=tiny_tokenizer())
    asked = {"receivers": "all", "normalized": False}
    found, whole = (
        nnattr.path_patching(model, ragged_tiny(model), nnattr.LogitDiff(), engine=engine, **asked)
        for engine in ("suffix", "full")
    )
    assert found.provenance.arguments["engine"] == "full"
    np.testing.assert_allclose(found.raw, whole.raw, atol=2e-5)
    assert np.nanmax(np.abs(whole.raw)) > 1e-3


def test_an_unknown_family_without_its_last_layer_is_discovered() -> None:
    module = tiny_module("llama")
    module.config.model_type = "unheard-of"
    module.model.layers = module.model.layers[:2]
    assert load(module, tokenizer=tiny_tokenizer()).n_layers == 2


def twice(module: Any) -> None:
    layers = module.model.layers
    module.model.layers = nn.ModuleList([layers[0], layers[1], layers[1]])


def open_attention(module: Any) -> None:
    for layer in module.model.layers:
        layer.self_attn.is_causal = False


def open_by_configuration(module: Any) -> None:
    module.config.is_causal = False


def more_than_told(module: Any) -> None:
    module.config.n_layer = 2


def broken(module: Any) -> None:
    module.model.layers[1].mlp.down_proj = nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("family", "alter", "message"),
    [
        ("llama", twice, r"layers \[1, 2\] are run more than once.*copy.deepcopy"),
        ("llama", open_attention, "no causal language model.*logits of earlier ones change"),
        ("llama", open_by_configuration, "by its configuration a token sees what comes after it"),
        ("gpt2", more_than_told, r"3 layers at 'transformer.h', its configuration says 2"),
        ("llama", broken, r"could not be run on 4 tokens \(RuntimeError"),
    ],
)
@torch.no_grad()
def test_a_module_that_is_not_what_its_family_is(
    family: str, alter: Callable[[Any], None], message: str
) -> None:
    """Wrong numbers without a word, each of them: the table says how a family is built."""
    module = tiny_module(family)
    alter(module)
    with pytest.raises(ArchError, match=message):
        load(module, tokenizer=tiny_tokenizer())


def test_copies_of_one_layer_are_layers() -> None:
    module = tiny_module("llama")
    layers = module.model.layers
    module.model.layers = nn.ModuleList([layers[0], layers[1], copy.deepcopy(layers[1])])
    with pytest.warns(UserWarning, match=r"number themselves \[0, 1, 1\]"):
        assert load(module, tokenizer=tiny_tokenizer()).n_layers == 3


def test_layers_that_go_by_old_numbers_are_told() -> None:
    module = tiny_module("llama")
    llama_popped_and_told(module)
    with pytest.warns(UserWarning, match=r"number themselves \[0, 2\] \(layer_idx"):
        load(module, tokenizer=tiny_tokenizer())
