"""Configuration, the backend switch, and loading: every wrong turn gets our own words."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

import nnattr
from nnattr import NnattrError
from nnattr.backend import NDIF, Local, Simulated, resolve
from nnattr.config import RunConfig, TaskConfig
from nnattr.errors import ArchError, BackendError, TaskError
from nnattr.teaching import folder
from tests.tiny import tiny_tokenizer


def test_the_switch(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("NNATTR_BACKEND", raising=False)
    assert resolve(None) == Local()
    (tmp_path / "nnattr").mkdir()
    (tmp_path / "nnattr" / "config.yaml").write_text("backend: simulated\n")
    assert resolve(None) == Simulated()
    monkeypatch.setenv("NNATTR_BACKEND", "http://127.0.0.1:9")
    assert resolve(None) == NDIF(host="http://127.0.0.1:9")
    assert resolve("local") == Local()
    mine = Local()
    assert resolve(mine) is mine
    with pytest.raises(BackendError, match="Unknown backend 'gpu'"):
        resolve("gpu")
    with pytest.raises(BackendError, match="starts with http"):
        NDIF(host="127.0.0.1:9")


def test_a_key_is_never_shown():
    assert "secret" not in repr(NDIF(host="http://h", api_key="secret"))
    assert "secret" not in NDIF(host="http://h", api_key="secret").name


def test_a_run_survives_its_file(tmp_path):
    run = RunConfig(model="m", task=TaskConfig(name="ioi", arguments={"n": 4}), positions=(1, 2))
    run.to_file(tmp_path / "run.yaml")
    assert RunConfig.from_file(tmp_path / "run.yaml") == run


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: m\ntask: {}\ncolour: red", "colour.*The keys are"),
        ("task: {}", "model: Field required"),
        ("model: m\ntask: {}\ndirection: sideways", "direction"),
        ("a: [", "not a readable YAML"),
    ],
)
def test_wrong_files_say_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(NnattrError, match=message):
        RunConfig.from_file(path)
    with pytest.raises(NnattrError, match="no file"):
        RunConfig.from_file(tmp_path / "none.yaml")


def test_loading_from_a_name_a_folder_and_a_module():
    named = nnattr.load("teaching-llama")
    assert (named.n_layers, named.architecture) == (named.config.num_hidden_layers, "llama")
    assert named.config.num_key_value_heads < named.n_heads
    assert "teaching-llama" in repr(named)
    by_path = nnattr.load(folder("teaching-llama"))
    assert by_path.spec == named.spec
    module = named.nn._module.train()
    wrapped = nnattr.load(module, tokenizer=named.tokenizer)
    assert module.training, "a module stays as it was given; jobs run it in eval mode"
    assert wrapped.n_heads == named.n_heads
    module.name_or_path = ""
    with pytest.raises(TaskError, match="pass its tokenizer"):
        nnattr.load(module)


def test_no_weights_are_trainable():
    model = nnattr.load("teaching-gpt2")
    assert not any(p.requires_grad for p in model.nn._module.parameters())


@pytest.mark.parametrize("name", ["no/such-model-anywhere", "./nowhere"])
def test_a_model_that_does_not_exist(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ArchError, match=r"could not be loaded.*teaching-gpt2"):
        nnattr.load(name)


def test_a_loaded_module_does_not_travel():
    model = nnattr.load("teaching-gpt2")
    with pytest.raises(BackendError, match="server uses its own weights"):
        nnattr.load(model.nn._module, tokenizer=model.tokenizer, backend="http://127.0.0.1:9")


def test_a_remote_model_holds_no_weights_and_fails_clearly_without_a_server():
    model = nnattr.load("teaching-gpt2", backend="http://127.0.0.1:9")
    assert all(p.is_meta for p in model.nn._module.parameters())
    task = nnattr.tasks.ioi(model.tokenizer, n=2)
    with pytest.raises(BackendError, match=r"no NDIF server answered at http://127.0.0.1:9"):
        nnattr.activation_patching(model, task, nnattr.LogitDiff())


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    module = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=64))
    module.save_pretrained(tmp_path)
    tiny_tokenizer(64).save_pretrained(tmp_path)
    nnattr.load(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArchError, match=r"no weights for 1 parts.*h\.1\.mlp\.c_fc"):
        nnattr.load(tmp_path)
