"""A model under edits gives what the raw module gives under the same hooks, whatever is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import nnattr
from nnattr import LogitDiff, Model, edit
from nnattr.errors import ArchError, ArgumentError, TaskError
from tests.oracles.patching import (
    activations,
    estimate_every_cell,
    logits_of,
    passed_through,
    patch_every_cell,
)
from tests.support.edits import pairs_of, unequal, vector
from tests.support.engine import compared, pair, task
from tests.support.families import families
from tests.tiny import tiny_model

HEAD, LAYER, STRENGTH = (0, 1), 1, 0.5


def under_edits(model: Model, question: Any) -> Model:
    """A head and an MLP replaced by their means, and a vector added to the residual stream."""
    return nnattr.edited(
        model,
        [
            edit.ablate([HEAD, "M0"], "mean", dataset=question),
            edit.steer(LAYER, vector(model.config.hidden_size), scale=STRENGTH),
        ],
    )


@contextmanager
def the_same_by_hooks(model: Model, question: Any) -> Iterator[None]:
    """The same, by hooks on the raw module; means over the tokens of prompts run alone."""
    module, d = model.module, model.d_head
    prompts = [torch.tensor([row]) for row in question.clean_tokens.rows]
    z, mlp = (
        torch.cat([activations(module, ids, site)[0] for ids in prompts]).mean(0)
        for site in ("z", "mlp_out")
    )
    columns = slice(HEAD[1] * d, (HEAD[1] + 1) * d)

    def without_head(own: Tensor) -> Tensor:
        new = own.clone()
        new[:, columns] = z[columns]
        return new

    with ExitStack() as hooks:
        hooks.enter_context(passed_through(module, "z", HEAD[0], without_head))
        hooks.enter_context(passed_through(module, "mlp_out", 0, mlp.expand_as))
        steered = STRENGTH * vector(model.config.hidden_size)
        hooks.enter_context(passed_through(module, "resid_pre", LAYER, steered.__add__))
        yield


@pytest.fixture(scope="module", params=["teaching-gpt2", "teaching-llama"])
def model(request: pytest.FixtureRequest) -> Model:
    return nnattr.load(request.param)


@pytest.fixture(scope="module")
def question(model: Model) -> Any:
    return unequal(model, 3)


def test_the_edits_do_something(model: Model, question: Any) -> None:
    plain, edited = (
        one.predict(question.clean_tokens, top_k=3).logits
        for one in (model, under_edits(model, question))
    )
    assert (plain - edited).abs().max() > 0.1


def test_logits(model: Model, question: Any) -> None:
    edited = under_edits(model, question)
    found = edited.predict(question.clean_tokens, top_k=5)
    with the_same_by_hooks(model, question), torch.no_grad():
        for i, row in enumerate(question.clean_tokens.rows):
            logits = logits_of(model.module, torch.tensor([row]))[-1]
            assert torch.allclose(found.logits[i, 0], logits[found.ids[i, 0]], atol=1e-4)


def test_generation_token_by_token(model: Model, question: Any) -> None:
    edited = under_edits(model, question)
    texts = nnattr.generate(edited, question, max_new_tokens=6)
    one_by_one = []
    with the_same_by_hooks(model, question), torch.no_grad():
        for row in question.clean_tokens.rows:  # with no cache
            ids = torch.tensor([row])
            for _ in range(6):
                best = logits_of(model.module, ids)[-1].argmax()
                ids = torch.cat([ids, best[None, None]], 1)
                if best == model.tokenizer.eos_token_id:
                    break
            new = ids[0, len(row) :]
            one_by_one.append(model.tokenizer.decode(new, skip_special_tokens=True))
    assert texts == one_by_one
    assert texts != nnattr.generate(model, question, max_new_tokens=6)


@pytest.mark.parametrize("engine", ["suffix", "full"])
def test_exact_patching(model: Model, question: Any, engine: Any) -> None:
    edited = under_edits(model, question)
    scores = nnattr.activation_patching(
        edited, question, LogitDiff(), normalized=False, engine=engine
    )
    with the_same_by_hooks(model, question):
        for i, one in enumerate(pairs_of(question)):
            every = [range(one.base.shape[1])]
            expected = patch_every_cell(model.module, one, "z", model.n_heads, every)[..., 0]
            found = torch.from_numpy(scores.values[i].to_numpy())
            assert torch.allclose(found.double(), expected.double(), atol=1e-4)


def test_attribution(model: Model, question: Any) -> None:
    scores = nnattr.attribution_patching(
        under_edits(model, question), question, LogitDiff(), normalized=False
    )
    with the_same_by_hooks(model, question):
        for i, one in enumerate(pairs_of(question)):
            every = [range(one.base.shape[1])]
            expected = estimate_every_cell(model.module, one, "z", model.n_heads, every)[..., 0]
            found = torch.from_numpy(scores.values[i].to_numpy())
            assert torch.allclose(found.double(), expected.double(), atol=1e-4)


@pytest.mark.parametrize("family", families())
def test_the_engine_on_every_family(family: str) -> None:
    model = tiny_model(family)
    question = task(model, pair(9, 4), pair(6, 3, shift=5))
    added = vector(model.config.hidden_size)
    edits = {
        "parts": [edit.ablate([(0, 1), (1, 0)], "mean", dataset=question)],
        "stream": [edit.steer(1, added), edit.steer(1, added, site="resid_post")],
        "writes": [edit.steer(0, added, site="attn_out"), edit.steer(1, added, site="mlp_out")],
    }
    sites = ("z", "resid_pre", "mlp_out", "attn_out", "resid_post")
    sites += () if model.spec.parallel else ("resid_mid",)
    sites += () if model.spec.qkv is None else ("q", "v")
    for some in edits.values():
        edited = nnattr.edited(model, some)
        for site, positions in product(sites, ("all", "each")):
            assert compared(edited, question, site=site, positions=positions) == "suffix"
    lost = nnattr.edited(model, edit.ablate("M0"))
    scores = nnattr.activation_patching(lost, question, LogitDiff(), site="mlp_out")
    assert float(abs(scores.values.isel(layer=0)).max()) == 0
    assert "M0 ablated" in scores.provenance.fell_back


def test_other_methods_run_under_edits(model: Model, question: Any) -> None:
    edited = nnattr.edited(model, edit.ablate((1, 0)))
    prompt = question.clean[0]
    z = nnattr.capture(edited, prompt, "z").data["z"]
    assert float(abs(z.sel(layer=1, head=0)).max()) == 0 < float(abs(z.sel(layer=1, head=1)).max())
    for method in (nnattr.inspect_prompt, nnattr.logit_lens):
        assert str(method(edited, prompt)) != str(method(model, prompt))
    direct = nnattr.direct_logit_attribution(edited, question, unit="head")
    assert direct.provenance.edits == ("L1H0 ablated (zero)",)
    nothing = direct.values.sel(layer=1, head=0)
    assert float(abs(nothing).max()) == 0
    assert nnattr.detect_heads(edited, n=2, length=5).provenance.edits
    assert nnattr.attention_patterns(edited, prompt, [(2, 0)]).provenance.edits


def test_a_server_would_give_the_same(model: Model, question: Any) -> None:
    there = nnattr.load(model.name, backend="simulated")
    for method in (nnattr.activation_patching, nnattr.attribution_patching):
        here, sent = (
            method(under_edits(one, question), question, LogitDiff()).values
            for one in (model, there)
        )
        assert float(abs(here - sent).max()) < 1e-6
    here, sent = (
        nnattr.generate(under_edits(one, question), question, max_new_tokens=4)
        for one in (model, there)
    )
    assert here == sent


def test_the_model_itself_stays(model: Model, question: Any) -> None:
    before = nnattr.generate(model, question, max_new_tokens=3)
    edited = under_edits(model, question)
    nnattr.activation_patching(edited, question, LogitDiff())
    assert edited.module is model.module
    assert model.edits == ()
    assert nnattr.generate(model, question, max_new_tokens=3) == before


def test_edits_are_appended_and_told(model: Model, question: Any) -> None:
    once = nnattr.edited(model, edit.ablate("L1H0"))
    twice = nnattr.edited(once, edit.steer(2, torch.ones(model.config.hidden_size)))
    assert twice.edits[0].said == once.edits[0].said == "L1H0 ablated (zero)"
    scores = nnattr.activation_patching(twice, question, LogitDiff())
    assert all(said in repr(twice) for said in scores.provenance.edits)
    assert "L1H0 ablated (zero)" in scores.plot().layout.title.text  # type: ignore[attr-defined]
    assert "L1H0 ablated (zero)" in repr(scores)


def test_everything_but_a_set(model: Model, question: Any) -> None:
    kept = nnattr.edited(model, edit.ablate([(1, 0), (2, 1)], keep=True))
    z = nnattr.capture(kept, question.clean[0], "z").data["z"]
    live = abs(z).max([dim for dim in z.dims if dim not in ("layer", "head")])
    assert {tuple(map(int, cell)) for cell in zip(*live.to_numpy().nonzero(), strict=True)} == {
        (1, 0),
        (2, 1),
    }
    together = nnattr.ablate_together(model, question, LogitDiff(), [(1, 0), (2, 1)], keep=True)
    runs = nnattr.attribution_patching(kept, question, LogitDiff()).baselines.sel(run="clean")
    plain = nnattr.attribution_patching(model, question, LogitDiff()).baselines.sel(run="clean")
    assert float(abs((runs - plain) - together.values).max()) < 1e-4


def test_a_checkpoint_knows_its_edits(model: Model, question: Any, tmp_path: Any) -> None:
    results = [
        nnattr.activation_patching(one, question, LogitDiff(), checkpoint=tmp_path)
        for one in (model, nnattr.edited(model, edit.ablate("L1H0")), under_edits(model, question))
    ]
    assert len(list(tmp_path.iterdir())) == 3
    assert float(abs(results[0].values - results[1].values).max()) > 1e-3


def test_what_cannot_be_edited(model: Model) -> None:
    width = model.config.hidden_size
    with pytest.raises(ArchError, match="L9H0"):
        nnattr.edited(model, edit.ablate((9, 0)))
    with pytest.raises(ArchError, match="L0H7"):
        nnattr.edited(model, edit.ablate((0, 7)))
    with pytest.raises(ArchError, match="layer 9"):
        nnattr.edited(model, edit.steer(9, torch.ones(width)))
    with pytest.raises(TaskError, match="vector has 3 numbers"):
        nnattr.edited(model, edit.steer(0, torch.ones(3)))
    with pytest.raises(TaskError, match="finite"):
        edit.steer(0, torch.full((width,), torch.nan))
    with pytest.raises(TaskError, match="a mean needs the prompts"):
        edit.ablate("L0H0", "mean")
    with pytest.raises(TaskError, match="No parts"):
        edit.ablate([])
    with pytest.raises(TaskError, match="No edits"):
        nnattr.edited(model, [])
    with pytest.raises(ArgumentError, match="replacement"):
        edit.ablate("L0H0", "median")  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="cannot be ablated"):
        nnattr.edited(model, edit.ablate("logits"))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1e39])
def test_a_scale_leaves_the_vector_finite(scale: float) -> None:
    with pytest.raises(TaskError, match="scale"):
        edit.steer(0, torch.ones(4), scale=scale)


def test_vectors_of_numpy() -> None:
    backwards = np.arange(4.0)[::-1]  # torch takes no negative strides
    assert edit.steer(0, backwards).vector.tolist() == [3, 2, 1, 0]
    assert edit.steer(0, backwards.astype(np.float16)).vector.tolist() == [3, 2, 1, 0]
    for wrong in (np.array(["a", "b"]), np.array([None, 1.0]), np.arange(4)):
        with pytest.raises(TaskError, match="floating-point"):
            edit.steer(0, wrong)


def test_grouped_keys_are_named_by_their_group() -> None:
    model = nnattr.load("teaching-llama")
    with pytest.raises(ArchError, match=r"L1KV1\.k"):
        nnattr.edited(model, edit.ablate("L1H3.k"))
    nnattr.edited(model, edit.ablate("L1KV1.k"))


def test_positions_zeroed() -> None:
    """Head scores, patches and shares are those of the same weights without the table."""
    model = nnattr.load("teaching-gpt2")
    zeroed = nnattr.edited(model, edit.ablate("pos_embed"))
    question = unequal(model, 3)
    without = deepcopy(model.module)
    with torch.no_grad():
        without.transformer.wpe.weight.zero_()
    other = nnattr.load(without, tokenizer=model.tokenizer)
    for method, given in [
        (nnattr.activation_patching, (question, LogitDiff())),
        (nnattr.attribution_patching, (question, LogitDiff())),
        (nnattr.detect_heads, ()),
        (nnattr.direct_logit_attribution, (question,)),
    ]:
        name = "scores" if method is nnattr.detect_heads else "raw"
        ours, theirs, plain = (getattr(method(one, *given), name) for one in (zeroed, other, model))
        assert float(abs(ours - theirs).max()) < 1e-4 < float(abs(ours - plain).max())
    texts = [nnattr.generate(one, question, max_new_tokens=4) for one in (zeroed, other, model)]
    assert texts[0] == texts[1] != texts[2]
    with pytest.raises(ArchError, match="no learned position embeddings"):
        nnattr.edited(nnattr.load("teaching-llama"), edit.ablate("pos_embed"))
    with pytest.raises(TaskError, match="of their own"):
        edit.ablate(["pos_embed", "L0H0"])
