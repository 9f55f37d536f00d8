"""The logit lens: its last point is the model, its others are the modules called by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nnattr import logit_lens
from nnattr.errors import ArgumentError, ResultError, TaskError
from nnattr.results import Lens
from tests.methods.common import TEACHING, ragged_ioi, teaching, tiny
from tests.tiny import FAMILIES, LAYERS, tiny_model

PROMPTS = ["w3 w4 w5 w6 w7 w8", "w33 w34 w35"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_point_is_the_models_own_output(family: str) -> None:
    model = tiny(family)
    lens = logit_lens(model, PROMPTS, top_k=4, answers="w70")
    assert lens.points == [*(f"L{i} pre" for i in range(model.n_layers)), "final"]
    final = lens.data.sel(component="final").isel(pos=0)
    for i, prompt in enumerate(PROMPTS):
        ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            logits = model.nn._module(ids).logits[0, -1].float()
        shares = logits.softmax(-1)
        best = shares.topk(4)
        row = final.isel(example=i)
        np.testing.assert_allclose(row["probability"], best.values, rtol=1e-4)
        assert row["token"].values.tolist() == [f"w{token}" for token in best.indices]
        entropy = float(-(shares * shares.log()).sum())
        assert float(row["entropy"]) == pytest.approx(entropy, rel=1e-4)
        assert float(row["answer_probability"]) == pytest.approx(float(shares[70]), rel=1e-4)
        assert int(row["answer_rank"]) == int((logits > logits[70]).sum())


def test_early_points_are_the_norm_and_the_unembedding() -> None:
    model = tiny("gpt2")
    module = model.nn._module
    ids = torch.tensor([model.tokenizer(PROMPTS[0])["input_ids"]])
    with torch.no_grad():
        hidden = module(ids, output_hidden_states=True).hidden_states[:-1]
        expected = [module.lm_head(module.transformer.ln_f(h)).softmax(-1)[0] for h in hidden]
    lens = logit_lens(model, PROMPTS[0], positions="each", top_k=1)
    for layer in range(LAYERS):
        found = lens.data["probability"].sel(component=f"L{layer} pre")[0, :, 0]
        np.testing.assert_allclose(found, expected[layer].max(-1).values, rtol=1e-4)


@pytest.mark.parametrize("name", TEACHING)
def test_a_padded_batch_is_its_prompts_one_by_one(name: str) -> None:
    model = teaching(name)
    prompts = list(ragged_ioi(model).clean)
    together = logit_lens(model, prompts, positions="each")
    for i, prompt in enumerate(prompts):
        alone = logit_lens(model, prompt, positions="each").data
        row = together.data.isel(example=[i])
        row = row.isel(pos=np.flatnonzero(row["position"].values[0] >= 0))
        np.testing.assert_allclose(row["probability"], alone["probability"], atol=1e-5)
        assert row["prompt_token"].values.tolist() == alone["prompt_token"].values.tolist()
        assert row["position"].values.tolist() == alone["position"].values.tolist()


def test_chosen_positions_are_those_of_all() -> None:
    model = tiny("llama")
    every = logit_lens(model, PROMPTS, positions="each").data
    some = logit_lens(model, PROMPTS, positions=[1, -1]).data
    assert some["prompt_token"].values.tolist() == [["w4", "w8"], ["w34", "w35"]]
    np.testing.assert_allclose(some["entropy"][0], every["entropy"][0].isel(pos=[1, 5]), rtol=1e-5)
    np.testing.assert_allclose(some["entropy"][1], every["entropy"][1].isel(pos=[4, 5]), rtol=1e-5)
    assert np.isnan(every["entropy"][1].values[:, :3]).all()
    assert set(every["token"][1].values[:, :3].ravel()) == {""}


def test_a_simulated_server_gives_the_same_and_chunks_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments: dict[str, Any] = {"positions": "each", "answers": ["w70", "w71"]}
    here = logit_lens(tiny("gemma2"), PROMPTS, **arguments).to_dataframe()
    there = logit_lens(tiny_model("gemma2", backend="simulated"), PROMPTS, **arguments)
    assert here.equals(there.to_dataframe())
    monkeypatch.setattr("nnattr.model.model.TOKENS_PER_FORWARD", 1)
    chunked = logit_lens(tiny("gemma2"), PROMPTS, **arguments).to_dataframe()
    np.testing.assert_allclose(chunked["probability"], here["probability"], atol=1e-6)


def test_a_table_a_text_and_a_figure() -> None:
    lens = logit_lens(tiny("gpt2"), PROMPTS, positions="each", top_k=3, answers="w70")
    table = lens.to_dataframe()
    assert len(table) == (6 + 3) * (LAYERS + 1) * 3
    assert {"token", "probability", "entropy", "answer_rank", "prompt_token"} <= set(table.columns)
    assert repr(lens).count("\n") == LAYERS + 2
    assert "answer rank" in repr(lens)
    for colour in ("probability", "entropy"):
        figure = lens.plot(1, colour=colour)  # type: ignore[arg-type]
        (trace,) = figure.data
        assert trace.text.shape == (LAYERS + 1, 3)
        assert trace.text[-1, -1] == lens.data["token"][1, -1, -1, 0].item()
        assert "answer: rank" in trace.customdata[0, 0]
    assert isinstance(lens, Lens)
    with pytest.raises(ResultError, match="no example 2"):
        lens.plot(2)
    with pytest.raises(ArgumentError, match="colour is "):
        lens.plot(colour="loss")  # type: ignore[arg-type]


def test_wrong_questions_are_named() -> None:
    model = tiny("gpt2")
    for options, message in (
        ({"top_k": 0}, "top_k is 0"),
        ({"positions": "all"}, "positions is 'all'"),
        ({"positions": []}, "name at least one"),
        ({"positions": 4}, "Position 4 is outside"),
        ({"answers": ["w70"]}, "1 answers for 2 prompts"),
        ({"answers": "w70 w71"}, "2 tokens"),
    ):
        with pytest.raises((ArgumentError, TaskError), match=message):
            logit_lens(model, PROMPTS, **options)  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="prompts is"):
        logit_lens(model, [])
    with pytest.raises(TaskError, match="takes 64"):
        logit_lens(model, " ".join(["w3"] * 70))
