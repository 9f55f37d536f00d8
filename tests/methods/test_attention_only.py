"""A transformer of attention alone, loaded by its spec: what exists for it, against plain torch.

Its layers have no MLP and there is no final norm, so the logits are a sum over heads; with
``shortformer`` queries and keys are made of more than values are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import nnattr
from nnattr import LogitDiff, Model, Task
from nnattr.errors import ArchError
from nnattr.model.load import load
from nnattr.tokens import encode
from tests.attention_only import AttentionOnly, AttentionOnlyConfig, Uncached, attention_only, spec
from tests.oracles.heads import patch_every_head
from tests.tiny import HEADS, LAYERS, randomise, tiny_tokenizer

#: How it may be built.
KINDS: dict[str, dict[str, Any]] = {
    "shortformer": {},
    "normed": {"normed": True},
    "positions in the stream": {"shortformer": False},
    "without a cache": {"kind": Uncached},
}
SITES = ("q", "k", "v", "z", "pattern", "attn_out", "resid_pre", "resid_post")
CLOSE = 2e-5


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Model:
    return attention_only(**KINDS[request.param])


def pairs(model: Model) -> Task:
    """Of unequal length, so that one is padded."""
    return Task.from_pairs(
        ["w5 w6 w7 w8 w9 w30", "w5 w6 w7 w9 w30"],
        ["w5 w6 w40 w8 w9 w30", "w5 w41 w7 w9 w30"],
        [" w31", " w31"],
        [" w32", " w33"],
        tokenizer=model.tokenizer,
    )


def seen_by(module: Any, ids: Tensor) -> dict[str, list[Tensor]]:
    """What every layer of the plain module held: its input, z, what attention gave, its pattern."""
    kept: dict[str, list[Tensor]] = {name: [] for name in ("pre", "z", "out", "pattern")}
    hooks = []
    for layer in module.layers:
        attention = layer.attention
        hooks += [
            layer.register_forward_pre_hook(lambda _, x: kept["pre"].append(x[0][0])),
            attention.w_o.register_forward_pre_hook(lambda _, x: kept["z"].append(x[0][0])),
            attention.register_forward_hook(lambda _, x, y: kept["out"].append(y[0][0])),
            attention.register_forward_hook(lambda _, x, y: kept["pattern"].append(y[1][0])),
        ]
    with torch.no_grad():
        kept["logits"] = [module(input_ids=ids).logits[0]]
    for hook in hooks:
        hook.remove()
    return kept


def direction(module: Any, task: Task, example: int = 0) -> Tensor:
    """The unembedding of the answer less that of the wrong one."""
    right, wrong = task.answer_ids[example][0], task.wrong_answer_ids[example][0]
    return module.unembed.weight[right] - module.unembed.weight[wrong]


def test_heads_patched_against_plain_hooks(model: Model) -> None:
    task = pairs(model)
    scores = nnattr.activation_patching(model, task, LogitDiff(), normalized=False)
    paths = [f"layers.{layer}.attention.w_o" for layer in range(LAYERS)]
    clean, cells = patch_every_head(model.module, task, paths, HEADS)
    assert abs(scores.baselines.sel(run="clean").values[0] - clean) < CLOSE
    np.testing.assert_allclose(scores.values.values[0], cells, atol=CLOSE)
    assert np.abs(cells).max() > 1e-2, "a patch that changes nothing tests nothing"


@pytest.mark.parametrize("site", SITES)
def test_the_engine_against_full_passes(model: Model, site: Any) -> None:
    task, given = pairs(model), {"site": site, "normalized": False}
    fast = nnattr.activation_patching(model, task, LogitDiff(), **given)
    full = nnattr.activation_patching(model, task, LogitDiff(), engine="full", **given)
    np.testing.assert_allclose(fast.values.values, full.values.values, atol=CLOSE)
    assert np.abs(full.values.values).max() > 1e-3
    cached = not isinstance(model.module, Uncached)
    assert fast.provenance.arguments["engine"] == ("suffix" if cached else "full")


def test_an_estimate_is_the_patch_where_nothing_follows(model: Model) -> None:
    """From the last layer's z to the logits everything is linear: both methods agree."""
    task = pairs(model)
    exact = nnattr.activation_patching(model, task, LogitDiff(), normalized=False)
    estimate = nnattr.attribution_patching(model, task, LogitDiff(), normalized=False)
    last = [one.values.sel(layer=LAYERS - 1).values for one in (exact, estimate)]
    np.testing.assert_allclose(*last, atol=CLOSE)


def test_components_and_heads_sum_to_the_logits(model: Model) -> None:
    task, module = pairs(model), model.module
    seen = seen_by(module, torch.tensor(task.clean_tokens.rows[:1]))
    toward = direction(module, task)
    logits = seen["logits"][0][-1]
    whole = float(logits[task.answer_ids[0][0]] - logits[task.wrong_answer_ids[0][0]])
    parts = nnattr.direct_logit_attribution(model, task).values.sel(example=0)
    assert abs(float(parts.sum()) - whole) < CLOSE
    for layer, out in enumerate(seen["out"]):
        named = float(parts.sel(component=f"L{layer} attn"))
        assert abs(named - float(out[-1] @ toward)) < CLOSE
    assert not [name for name in parts.component.values if "mlp" in str(name)]
    assert ("pos_embed" in parts.component) == (model.spec.qk_positions is None)
    heads = nnattr.direct_logit_attribution(model, task, unit="head").values.sel(example=0)
    for layer, z in enumerate(seen["z"]):
        columns = z[-1].view(HEADS, -1)
        matrix = module.layers[layer].attention.w_o.weight.T.view(HEADS, -1, z.shape[-1])
        own = torch.einsum("hd,hdm->hm", columns, matrix) @ toward
        np.testing.assert_allclose(heads.sel(layer=layer).values, own, atol=CLOSE)


def test_patterns_and_the_lens(model: Model) -> None:
    prompt = "w5 w6 w7 w8 w9 w30"
    ids = torch.tensor([encode(model.tokenizer, [prompt]).rows[0]])
    seen = seen_by(model.module, ids)
    found = nnattr.attention_patterns(model, prompt)
    for layer, pattern in enumerate(seen["pattern"]):
        for head in range(HEADS):
            np.testing.assert_allclose(found.of(layer, head), pattern[head], atol=CLOSE)
    lens = nnattr.logit_lens(model, prompt)
    for layer, stream in enumerate(seen["pre"]):
        likeliest = model.module.unembed(stream[-1]).softmax(-1).max()
        top = lens.data["probability"].sel(component=f"L{layer} pre", rank=0)
        assert abs(float(top.values.ravel()[-1]) - float(likeliest)) < CLOSE


def test_kinds_of_heads(model: Model) -> None:
    """How much each head looks at the token before is what its pattern says."""
    found = nnattr.detect_heads(model, length=12, n=2)
    for example, row in enumerate(found.tokens.rows):
        seen = seen_by(model.module, torch.tensor([row]))
        looks = torch.stack([one.diagonal(-1, 1, 2).mean(-1) for one in seen["pattern"]])
        own = found.scores.sel(kind="previous").values[example]
        np.testing.assert_allclose(own, looks, atol=CLOSE)


def test_circuits_are_the_weights(model: Model) -> None:
    module, head = model.module, (1, 2)
    attention = module.layers[1].attention
    size = attention.w_q.out_features // HEADS
    own = slice(2 * size, 3 * size)
    embed, unembed = module.embed.weight, module.unembed.weight
    value, output = attention.w_v.weight[own].T, attention.w_o.weight[:, own].T
    rows = [31, 32, 33]
    ov = nnattr.weights.ov(model, head).block(rows).values.values
    np.testing.assert_allclose(ov, (embed @ value @ output @ unembed.T)[rows][:, rows], atol=CLOSE)
    query, key = attention.w_q.weight[own].T, attention.w_k.weight[own].T
    qk = nnattr.weights.qk(model, head).block(rows).values.values
    np.testing.assert_allclose(qk, (embed @ query @ key.T @ embed.T)[rows][:, rows], atol=CLOSE)
    places = module.positions.weight
    scores = places @ query @ key.T @ places.T * size**-0.5
    past = torch.ones_like(scores, dtype=torch.bool).tril()
    expected = scores.masked_fill(~past, float("-inf")).softmax(-1)
    found = nnattr.weights.position_pattern(model, head).values.values
    np.testing.assert_allclose(found, expected, atol=CLOSE)


def test_folding_leaves_positions_that_come_behind_the_norm_alone() -> None:
    model = attention_only(normed=True)
    plain = nnattr.weights.position_pattern(model, (1, 2))
    folded = nnattr.weights.position_pattern(model, (1, 2), fold_norm=True)
    np.testing.assert_allclose(folded.values.values, plain.values.values, atol=1e-7)


@pytest.mark.parametrize("kind", ["Q", "K", "V"])
def test_composition_is_of_the_weights(model: Model, kind: Any) -> None:
    found = nnattr.weights.composition(model, kind, samples=2).pair((0, 1), (2, 3))
    size = model.d_head
    earlier, later = (model.module.layers[layer].attention for layer in (0, 2))
    first, own = slice(size, 2 * size), slice(3 * size, 4 * size)
    written = earlier.w_v.weight[first].T @ earlier.w_o.weight[:, first].T
    query, key = later.w_q.weight[own].T, later.w_k.weight[own].T
    value, output = later.w_v.weight[own].T, later.w_o.weight[:, own].T
    read = {"Q": query @ key.T, "K": key @ query.T, "V": value @ output}[kind]
    expected = (written @ read).norm() / written.norm() / read.norm()
    assert abs(found - float(expected)) < CLOSE


def test_scores_taken_apart(model: Model) -> None:
    """Positions are a component of their own, wherever they are added."""
    prompt, head = "w5 w6 w7 w8 w9 w30", (1, 2)
    every = [("pos_embed", "pos_embed")]
    parts = nnattr.decompose_attention(model, prompt, head, pairs=every)
    ids = torch.tensor([encode(model.tokenizer, [prompt]).rows[0]])
    pattern = seen_by(model.module, ids)["pattern"][1][2]
    np.testing.assert_allclose(parts.data["pattern"].values[0], pattern, atol=CLOSE)
    if model.spec.qk_positions is None:
        return
    attention, size = model.module.layers[1].attention, model.d_head
    own = slice(2 * size, 3 * size)
    places = model.module.positions.weight[: ids.shape[1]]
    q, k = places @ attention.w_q.weight[own].T, places @ attention.w_k.weight[own].T
    found = parts.data["scores"].values[0, 0]
    seen = np.tril(np.ones_like(found, dtype=bool))
    np.testing.assert_allclose(found[seen], (q @ k.T * size**-0.5).numpy()[seen], atol=CLOSE)


def test_ablation_by_zero_against_a_hook(model: Model) -> None:
    task = pairs(model)
    scores = nnattr.ablate(model, task, LogitDiff(), replacement="zero")
    module, size = model.module, model.d_head
    ids = torch.tensor(task.clean_tokens.rows[:1])

    def without(_: Any, given: Any) -> Any:
        value = given[0].clone()
        value[..., size : 2 * size] = 0
        return (value,)

    def metric() -> float:
        logits = module(input_ids=ids).logits[0, -1]
        return float(logits[task.answer_ids[0][0]] - logits[task.wrong_answer_ids[0][0]])

    def positionless() -> float:
        table = module.positions.weight.clone()
        module.positions.weight.zero_()
        value = metric()
        module.positions.weight.copy_(table)
        return value

    before = metric()
    hook = module.layers[1].attention.w_o.register_forward_pre_hook(without)
    changed = metric() - before
    hook.remove()
    found = float(scores.values.sel(example=0, layer=1, head=1))
    assert abs(found - changed) < CLOSE
    whole = nnattr.ablate_together(model, task, LogitDiff(), "pos_embed", replacement="zero")
    assert abs(float(whole.values.values.ravel()[0]) - (positionless() - before)) < CLOSE


def test_what_it_says_is_the_likeliest_at_every_step(model: Model) -> None:
    """Without a cache every step reads the whole text, not the newest token alone."""
    prompt = "w5 w6 w7 w8 w9 w30"
    ids = torch.tensor([encode(model.tokenizer, [prompt]).rows[0]])
    for _ in range(5):
        with torch.no_grad():
            newest = model.module(input_ids=ids).logits[:, -1:].argmax(-1)
        ids = torch.cat([ids, newest], 1)
    (said,) = nnattr.generate(model, prompt, max_new_tokens=5)
    assert said.strip() == model.tokenizer.decode(ids[0, -5:])


@pytest.mark.parametrize("site", ["mlp_out", "neuron", "resid_mid"])
def test_what_attention_alone_does_not_have_is_refused(site: Any) -> None:
    model = attention_only()
    with pytest.raises(ArchError, match=rf"no '{site}': its layers are attention alone"):
        nnattr.activation_patching(model, pairs(model), LogitDiff(), site=site)


def test_neurons_are_refused() -> None:
    model = attention_only()
    with pytest.raises(ArchError, match="no 'neuron': its layers are attention alone"):
        nnattr.direct_logit_attribution(model, pairs(model), unit="neuron")


def test_it_travels() -> None:
    here, there = attention_only(), attention_only(backend="simulated")
    for ask in (
        lambda m: nnattr.activation_patching(m, pairs(m), LogitDiff()).values.values,
        lambda m: nnattr.decompose_attention(m, "w5 w6 w7", (1, 2)).data["total"].values,
    ):
        np.testing.assert_allclose(ask(there), ask(here), atol=CLOSE)


def test_without_a_spec_its_positions_are_not_taken_for_a_part_of_the_stream() -> None:
    """Its table stands beside the embedding, as in GPT-2, and is not added there."""
    module = randomise(AttentionOnly(AttentionOnlyConfig()))
    model = load(module, tokenizer=tiny_tokenizer())
    assert model.spec.mlp_out is None
    with pytest.raises(ArchError, match=r"not the token embedding and the position.*qk_positions"):
        nnattr.direct_logit_attribution(model, pairs(model))


def test_a_wrong_claim_about_positions_is_found_out() -> None:
    module = randomise(AttentionOnly(AttentionOnlyConfig()))
    model = load(module, tokenizer=tiny_tokenizer(), spec=spec(shortformer=False))
    with pytest.raises(ArchError, match="not the product of weights"):
        nnattr.weights.qk(model, (1, 2)).block([31, 32])
