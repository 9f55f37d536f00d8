"""The real model where it is not there, GGUF files, and what a result says of rounded weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import nnattr
from nnattr import pretrained
from nnattr.errors import ArchError, BackendError
from tests.tiny import tiny_tokenizer


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_the_real_model_says_how_to_get_it(no_cache: Path) -> None:
    assert str(no_cache) in str(pretrained.folder())
    with pytest.raises(ArchError, match=r"python -m nnattr\.pretrained.*SmolLM2-135M-Instruct"):
        nnattr.load("smollm2-135m")


def test_a_server_is_asked_for_the_original() -> None:
    with pytest.raises(BackendError, match="HuggingFaceTB/SmolLM2-135M-Instruct"):
        nnattr.load("smollm2-135m", backend="http://127.0.0.1:9")


def test_another_file_is_refused(tmp_path: Path) -> None:
    other = tmp_path / pretrained.FILE
    other.write_bytes(b"not these weights")
    with pytest.raises(nnattr.NnattrError, match="SHA-256"):
        pretrained._checked(other)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[LlamaForCausalLM, Path]:
    """A tiny Llama with grouped queries, and the same weights in a GGUF file."""
    gguf = pytest.importorskip("gguf")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64, max_position_embeddings=64, rms_norm_eps=1e-5,
    )  # fmt: skip
    module = LlamaForCausalLM(config).eval()
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(64)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, weight in module.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # llama.cpp turns pairs, not halves
            heads = 4 if "q_proj" in name else 2
            weight = weight.view(heads, 2, 4, 32).transpose(1, 2).reshape(weight.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return module, path


def test_a_gguf_file_is_the_model_it_was_made_from(
    written: tuple[LlamaForCausalLM, Path],
) -> None:
    module, path = written
    model = nnattr.load(path.parent, gguf_file=path.name, tokenizer=tiny_tokenizer(64))
    ids = torch.arange(8)[None]
    assert torch.allclose(model.module(ids).logits, module(ids).logits, atol=1e-5)
    assert model.quantization == "dequantized from tiny.gguf"
    assert "dequantized from tiny.gguf" in repr(model)
    kinds = nnattr.detect_heads(model, n=1, length=4)
    assert kinds.provenance.weights == "float32, dequantized from tiny.gguf"
    assert "dequantized from tiny.gguf" in kinds._repr_html_()


def test_plain_weights_are_called_plain() -> None:
    model = nnattr.load("teaching-llama")
    assert model.quantization == ""
    assert "quantized" not in repr(model)


def test_a_gguf_file_does_not_run_on_a_server(written: tuple[LlamaForCausalLM, Path]) -> None:
    _, path = written
    with pytest.raises(BackendError, match="GGUF"):
        nnattr.load(path.parent, gguf_file=path.name, backend="http://127.0.0.1:9")


def test_without_gguf_the_extra_is_named(
    written: tuple[LlamaForCausalLM, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = written
    monkeypatch.setattr("transformers.modeling_gguf_pytorch_utils.is_gguf_available", lambda: False)
    with pytest.raises(ArchError, match=r"pip install 'nnattr\[gguf\]'"):
        nnattr.load(path.parent, gguf_file=path.name, tokenizer=tiny_tokenizer(64))
