"""Models that accelerate spreads over several places, as ``device="auto"`` does: the same numbers.

Here the places are memory and disk. Weights on disk are brought when their module runs, and stand
on no device meanwhile, which is also how weights look in a sandbox.
"""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM

import nnattr
from nnattr import LogitDiff, Model
from nnattr.errors import ArchError
from tests.methods.common import METHODS, assert_same
from tests.support.engine import pair, task
from tests.tiny import tiny_model


def spread(model: Model, folder, on_disk: list[str]) -> Model:
    """The model's weights again, with those modules on disk."""
    module = model.nn._module
    module.save_pretrained(folder / "model")
    layers = [f"model.layers.{layer}" for layer in range(model.n_layers)]
    modules = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", *layers]
    places = {name: "disk" if name in on_disk else "cpu" for name in modules}
    again = AutoModelForCausalLM.from_pretrained(
        folder / "model", device_map=places, offload_folder=folder / "offload"
    )
    assert {value.device.type for value in again.parameters()} == {"cpu", "meta"}
    return nnattr.load(again, tokenizer=model.tokenizer)


@pytest.mark.parametrize("site", ["z", "v", "neuron", "resid_mid"])
@pytest.mark.parametrize("method", METHODS)
def test_a_spread_model_gives_the_same(method, site, tmp_path):
    model = tiny_model("llama")
    question = task(model, pair(9, 4), pair(6, 3, shift=5))
    there = spread(model, tmp_path, ["model.layers.1", "lm_head"])
    whole = METHODS[method](model, question, LogitDiff(), site=site)
    parts = METHODS[method](there, question, LogitDiff(), site=site)
    assert_same(parts.raw, whole.raw)
    assert parts.provenance.arguments["engine"] == whole.provenance.arguments["engine"]
    assert float(abs(whole.raw).max()) > 0


def test_an_embedding_on_disk_is_refused_in_our_words(tmp_path):
    model = tiny_model("llama")
    with pytest.raises(ArchError, match="could not be loaded"):
        spread(model, tmp_path, ["model.embed_tokens"])
