"""Captured activations against torch hooks, chosen, reduced where the model is; and raw nnsight."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import nnattr
from nnattr import attention_patterns, capture
from nnattr.errors import ArchError, BackendError, TaskError
from tests.methods.common import ragged_ioi, raw_module, teaching, tiny
from tests.support.engine import pair, task
from tests.tiny import D_MODEL, FAMILIES, HEADS, LAYERS, tiny_model

PROMPTS = ["w3 w4 w5 w6 w7 w8 w9", "w33 w34 w35", "w40 w41 w42 w43 w44 w45"]
SITES = ("resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid", "neuron", "mlp_out")
SITES += ("resid_post",)


def own_sites(model: Any) -> list[str]:
    """The sites that a family has."""
    found = []
    for site in SITES:
        try:
            model.places(site)
        except ArchError:
            continue
        found.append(site)
    return found


def hooked(model: Any, site: str, prompt: str) -> torch.Tensor:
    """A site [layer, pos, width] of one prompt, by torch hooks."""
    module, seen, handles = raw_module(model), [], []
    for path, side, part in model.places(site):
        target = module.get_submodule(path)

        def keep(value: Any, part: Any = part) -> None:
            first = value[0] if isinstance(value, tuple) else value
            first = first.detach().clone()
            if part is not None:
                groups, start, stop = part
                first = first.unflatten(-1, (groups, -1))[..., start:stop].flatten(-2)
            seen.append(first.reshape(-1, first.shape[-1]))

        if side in ("input", "stream"):
            handles.append(
                target.register_forward_pre_hook(
                    lambda _, args, kwargs, keep=keep: keep((args or tuple(kwargs.values()))[0]),
                    with_kwargs=True,
                )
            )
        else:
            handles.append(target.register_forward_hook(lambda _, a, out, keep=keep: keep(out)))
    with torch.no_grad():
        module(torch.tensor([model.tokenizer(prompt)["input_ids"]]), use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack(seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_is_what_hooks_see(family: str) -> None:
    model = tiny(family)
    sites = own_sites(model)
    assert len(sites) >= 8
    found = capture(model, PROMPTS, sites)
    assert list(found) == sites
    for site, values in found.items():
        assert values.dims[:3] == ("example", "layer", "pos")
        for i, prompt in enumerate(PROMPTS):
            expected = hooked(model, site, prompt).float().numpy()
            n = expected.shape[1]
            ours = values[i, :, :n].to_numpy().reshape(expected.shape)
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * abs(expected).max())
            assert np.isnan(values[i, :, n:]).all()
    assert found["z"].sizes["head"] == HEADS
    if "k" in found:
        assert found["k"].sizes["kv_head"] == model.n_kv_heads


def test_chosen_layers_heads_and_positions() -> None:
    model = tiny("llama")
    sites = ["z", "v", "resid_mid", "pattern"]
    every = capture(model, PROMPTS, sites)
    some = capture(model, PROMPTS, sites, positions=[1, -1], layers=[2, 0], heads=[3])
    assert some["z"].dims == ("example", "layer", "pos", "head", "d_head")
    assert some["z"]["layer"].values.tolist() == [0, 2]
    assert some["z"]["head"].values.tolist() == [3]
    assert some["v"]["kv_head"].values.tolist() == [1]
    assert some["z"]["token"].values.tolist() == [["w4", "w9"], ["w34", "w35"], ["w41", "w45"]]
    assert some["z"]["position"].values.tolist() == [[1, 6], [1, 2], [1, 5]]
    for i, last in enumerate((6, 2, 5)):
        where = {"example": i, "layer": [0, 2]}
        z = every["z"].sel(where).isel(pos=[1, last]).sel(head=[3])
        np.testing.assert_allclose(some["z"].sel(example=i), z, rtol=0, atol=1e-6)
        v = every["v"].sel(where).isel(pos=[1, last]).sel(kv_head=[1])
        np.testing.assert_allclose(some["v"].sel(example=i), v, rtol=0, atol=1e-6)
        mid = every["resid_mid"].sel(where).isel(pos=[1, last])
        np.testing.assert_allclose(some["resid_mid"].sel(example=i), mid, rtol=0, atol=1e-6)
        looks = every["pattern"].sel(where).isel(query_pos=[1, last]).sel(head=[3])
        np.testing.assert_allclose(some["pattern"].sel(example=i), looks, rtol=0, atol=1e-6)
    one = capture(model, PROMPTS[0], "resid_post", positions="last", layers=1)
    assert one["resid_post"].shape == (1, 1, 1, D_MODEL)
    neurons = capture(model, PROMPTS[0], "neuron", positions="last")["neuron"]
    assert neurons.dims == ("example", "layer", "pos", "neuron")


def test_patterns_are_those_of_attention_patterns() -> None:
    model = tiny("gpt2")
    found = capture(model, PROMPTS, "pattern")["pattern"]
    expected = attention_patterns(model, PROMPTS).values
    assert found.dims == ("example", "layer", "head", "query_pos", "key_pos")
    np.testing.assert_allclose(
        found.to_numpy().reshape(expected.shape), expected, rtol=0, atol=1e-6
    )


#: Families whose attention does not use transformers' common interface.
OWN_CALL = ("bloom", "falcon", "falcon-new", "falcon-serial", "gpt_neo", "gptj", "mpt")
#: Families without rotary embeddings, whose queries and keys meet as they are projected.
PLAIN = ("gpt2", "gpt_bigcode", "opt")


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in OWN_CALL])
def test_queries_and_keys_as_they_meet(family: str) -> None:
    """Their products are the pattern, up to what the kernel adds alike to a row, and a scale."""
    model = tiny(family)
    found = capture(model, PROMPTS, ["q", "k", "rot_q", "rot_k", "pattern"])
    assert found["rot_q"].dims == found["q"].dims
    assert found["rot_k"].shape == found["k"].shape
    turned = float(abs(found["rot_q"] - found["q"]).max())
    if family in PLAIN:
        scale = float((found["rot_q"] / found["q"]).median())
        np.testing.assert_allclose(found["rot_q"], scale * found["q"], rtol=1e-4, atol=1e-6)
    else:
        assert turned > 0.1
    if family == "gemma2":
        return  # its scores are capped
    shared = model.n_heads // model.n_kv_heads
    q, k = (found[name].to_numpy()[0] for name in ("rot_q", "rot_k"))
    scores = np.einsum("lqhd,lkhd->lhqk", q, k.repeat(shared, 2))
    with np.errstate(divide="ignore"):
        logs = np.log(found["pattern"].to_numpy()[0])
    ours, theirs = (one[..., -1, 1:3] - one[..., -1, :1] for one in (scores, logs))
    scales = theirs / ours
    close = np.isfinite(scales)  # a local layer does not look that far
    spread = scales[close].max() - scales[close].min()
    assert close.any()
    assert spread < 1e-2 * abs(np.median(scales[close]))


#: Learned positions, biases; grouped heads; caps, norms behind attention, a scaled embedding.
DERIVED = {"gpt2": {}, "opt": {}, "llama": {}, "gemma2": {"attn_logit_softcapping": 2.0}}


def before_softmax(model: Any, prompt: str, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """What transformers' plain attention gives to torch's softmax [layer, head, query, key]."""
    module = copy.deepcopy(raw_module(model))
    module.set_attn_implementation("eager")
    seen, real = [], torch.nn.functional.softmax

    def softmax(scores: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(scores.detach().clone())
        return real(scores, *args, **kwargs)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "softmax", softmax)
        module(torch.tensor([model.tokenizer(prompt)["input_ids"]]), use_cache=False)
    return torch.cat(seen).numpy()


@pytest.mark.parametrize("family", DERIVED)
def test_attention_scores_are_what_the_softmax_gets(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family, **DERIVED[family])
    found = capture(model, PROMPTS, ["attn_scores", "pattern"])
    scores, pattern = found["attn_scores"], found["pattern"]
    assert scores.dims == pattern.dims == ("example", "layer", "head", "query_pos", "key_pos")
    for i, prompt in enumerate(PROMPTS):
        expected = before_softmax(model, prompt, monkeypatch)
        n = expected.shape[-1]
        ours = scores[i, :, :, :n, :n].to_numpy()
        seen = np.tril(np.ones((n, n), dtype=bool))
        assert np.isneginf(ours[..., ~seen]).all()
        np.testing.assert_allclose(ours[..., seen], expected[..., seen], rtol=0, atol=1e-4)
        assert np.abs(expected[..., seen]).max() > 0.5
        weights = np.exp(ours) / np.exp(ours).sum(-1, keepdims=True)
        np.testing.assert_allclose(weights, pattern[i, :, :, :n, :n], rtol=0, atol=1e-5)
        assert np.isnan(scores[i, :, :, n:]).all()
        assert np.isnan(scores[i, :, :, :, n:]).all()
    some = capture(model, PROMPTS, "attn_scores", positions=[-1], layers=1, heads=[2])
    last = scores.sel(layer=[1], head=[2])[1].isel(query_pos=[2])
    np.testing.assert_allclose(some["attn_scores"][1], last, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", DERIVED)
def test_results_of_heads_sum_to_attention(family: str) -> None:
    """And each is its z times its rows of the output projection, by plain arithmetic."""
    model = tiny_model(family, **DERIVED[family])
    found = capture(model, PROMPTS, ["result", "attn_out", "z"])
    result, attn_out, z = found["result"], found["attn_out"], found["z"]
    assert result.dims == ("example", "layer", "pos", "head", "d_model")
    for layer in range(model.n_layers):
        path = model.places("z")[layer][0]
        projection = raw_module(model).get_submodule(path)
        weight = projection.weight if family == "gpt2" else projection.weight.T
        parts = weight.detach().unflatten(0, (model.n_heads, -1)).numpy()
        products = np.einsum("ephd,hdm->ephm", z.sel(layer=layer), parts)
        bias = 0.0 if projection.bias is None else projection.bias.detach().numpy()
        whole = attn_out.sel(layer=layer).to_numpy()
        if family == "gemma2":  # a norm without a bias: a factor for every number
            products = products * (whole / products.sum(2))[:, :, None]
        ours = result.sel(layer=layer).to_numpy()
        np.testing.assert_allclose(ours, products, rtol=0, atol=2e-4 * float(np.nanmax(abs(whole))))
        np.testing.assert_allclose(
            ours.sum(2) + bias, whole, rtol=0, atol=2e-5 * float(np.nanmax(abs(whole)))
        )
        assert np.isnan(ours[1, 3:]).all()
    some = capture(model, PROMPTS, "result", positions="last", layers=[1], heads=[3, 0])["result"]
    for i, last in enumerate((6, 2, 5)):
        expected = result.sel(layer=[1], head=[0, 3])[i].isel(pos=[last])
        np.testing.assert_allclose(some[i], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", DERIVED)
def test_embeddings_are_what_tokens_add_to_the_stream(family: str) -> None:
    model = tiny_model(family, **DERIVED[family])
    found = capture(model, PROMPTS, ["embed", "resid_pre"], layers=[0])
    assert found["embed"].dims == ("example", "pos", "d_model")
    module = raw_module(model)
    table = module.get_input_embeddings().weight.detach()
    for i, prompt in enumerate(PROMPTS):
        ids = torch.tensor(model.tokenizer(prompt)["input_ids"])
        n = len(ids)
        expected = table[ids] * (D_MODEL**0.5 if family == "gemma2" else 1.0)
        np.testing.assert_allclose(found["embed"][i, :n], expected, rtol=1e-5, atol=1e-6)
        assert np.isnan(found["embed"][i, n:]).all()
        rest = (found["resid_pre"][i, 0, :n] - found["embed"][i, :n]).to_numpy()
        places = {"gpt2": "transformer.wpe", "opt": "model.decoder.embed_positions"}
        if family in places:
            learned = module.get_submodule(places[family]).weight.detach()
            first = 2 if family == "opt" else 0
            np.testing.assert_allclose(rest, learned[first : first + n], rtol=0, atol=1e-5)
        else:
            np.testing.assert_allclose(rest, 0 * rest, rtol=0, atol=1e-6)


def test_sites_that_no_module_returns_are_kept_and_shown(tmp_path: Any) -> None:
    """Saved and loaded, plotted, reduced and on a simulated server; and not patched."""
    model = tiny("llama")
    sites = ["attn_scores", "result", "embed", "pattern"]
    found = capture(model, PROMPTS, sites)
    again = type(found).load(found.save(tmp_path / "found.safetensors"))
    there = capture(
        nnattr.load(raw_module(model), tokenizer=model.tokenizer, backend="simulated"),
        PROMPTS,
        sites,
    )
    for site in sites:
        assert again[site].identical(found[site])
        assert there[site].identical(found[site])
        assert "length" in str(found.plot(site).to_json())
    unpatched: Any = "result"
    with pytest.raises(nnattr.errors.ArgumentError, match="site is 'result'"):
        nnattr.activation_patching(
            model, task(model, pair(9, 4)), nnattr.LogitDiff(), site=unpatched
        )


def test_chosen_queries_and_keys_as_they_meet() -> None:
    every = capture(tiny("llama"), PROMPTS, ["rot_q", "rot_k"])
    for backend in ("local", "simulated"):
        model = tiny_model("llama", backend=backend)
        some = capture(model, PROMPTS, ["rot_k", "rot_q"], positions=[-1], layers=1, heads=3)
        for i, last in enumerate((6, 2, 5)):
            for name, unit, number in (("rot_q", "head", 3), ("rot_k", "kv_head", 1)):
                where = {"layer": 1, unit: number}
                expected = every[name][i].isel(pos=last).sel(where)
                own = some[name][i].isel(pos=0).sel(where)
                np.testing.assert_allclose(own, expected, rtol=0, atol=1e-5)
    with pytest.raises(ArchError, match="common attention interface"):
        capture(tiny("gptj"), PROMPTS, "rot_q")


def test_spans_of_a_task_and_either_run() -> None:
    model = teaching("teaching-gpt2")
    task = ragged_ioi(model)
    found = capture(model, task, "z", positions="IO")["z"]
    names = [answers[0] for answers in task.answers]
    assert [row[0] for row in found["token"].values.tolist()] == names
    other = capture(model, task, "z", positions="S1", run="corrupted")["z"]
    plain = capture(model, list(task.corrupted), "z")["z"]
    for i, (at,) in enumerate(task.spans["S1"]):
        np.testing.assert_allclose(other[i, :, 0], plain[i, :, at], rtol=0, atol=1e-5)
    model = tiny("gpt2")
    uneven = nnattr.Task.from_prompts(
        PROMPTS, tokenizer=model.tokenizer, spans={"a": [[0], [1, 2], [0]]}
    )
    with pytest.raises(TaskError, match="1 tokens in one prompt and 2 in another"):
        capture(model, uneven, "z", positions="a")


def norms(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a user sends along: the sizes of the heads' outputs, and how they are attended to."""
    return {
        "size": found["z"].norm(dim=-1).sum(2),
        "self": found["pattern"].diagonal(dim1=-2, dim2=-1).sum(-1),
    }


def without_prompts(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"mean": found["z"].mean(0)[0, 0, 0]}


@pytest.mark.parametrize("backend", ["local", "simulated"])
def test_a_function_of_yours_runs_where_the_model_is(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama", backend=backend)
    found = capture(model, PROMPTS, ["z", "pattern"], reduce=norms)
    whole = capture(model, PROMPTS, ["z", "pattern"])
    size = (whole["z"] ** 2).sum("d_head", skipna=False) ** 0.5
    np.testing.assert_allclose(found["size"], size.sum("pos"), rtol=1e-5)
    assert found["size"].shape == (3, LAYERS, HEADS)
    diagonal = np.nansum(np.diagonal(whole["pattern"], axis1=-2, axis2=-1), -1)
    np.testing.assert_allclose(found["self"], diagonal, rtol=1e-5)
    monkeypatch.setattr("nnattr.model.model.TOKENS_PER_FORWARD", 1)
    chunked = capture(model, PROMPTS, ["z", "pattern"], reduce=norms)
    np.testing.assert_allclose(chunked["size"], found["size"], rtol=1e-5)
    with pytest.raises(TaskError, match="first axis must be the prompts"):
        capture(model, PROMPTS, "z", reduce=without_prompts)
    with pytest.raises(BackendError, match="KeyError: 'pattern'"):
        capture(model, PROMPTS, "z", reduce=norms)


def test_a_simulated_server_gives_the_same() -> None:
    sites = [*own_sites(tiny("llama")), "pattern"]
    here = capture(tiny("llama"), PROMPTS, sites)
    there = capture(tiny_model("llama", backend="simulated"), PROMPTS, sites)
    for site in sites:
        assert here[site].identical(there[site])


def test_wrong_questions_are_named() -> None:
    model = tiny("gpt2")
    options: list[tuple[Any, Any, str]] = [
        ("results", {}, "Unknown site 'results'"),
        ([], {}, "No sites"),
        ("z", {"layers": 3}, "no layer 3"),
        ("z", {"heads": [0, 4]}, "no head 4"),
        ("z", {"layers": []}, "No layer"),
    ]
    for sites, more, message in options:
        with pytest.raises(ArchError, match=message):
            capture(model, PROMPTS, sites, **more)
    with pytest.raises(ArchError, match="parallel blocks"):
        capture(tiny("gptj"), PROMPTS, "resid_mid")
    with pytest.raises(ArchError, match="mixture of experts"):
        capture(tiny("mixtral"), PROMPTS, "neuron")
    with pytest.raises(ArchError, match="makes other predictions"):
        capture(tiny("falcon-serial"), PROMPTS, "pattern")
    with pytest.raises(TaskError, match="Position 3 is outside"):
        capture(model, PROMPTS, "z", positions=3)


@pytest.mark.parametrize("backend", ["local", "simulated"])
def test_down_to_nnsight(backend: str) -> None:
    """What docs/concepts/heads.md shows: a trace of one's own, and the same as a job."""
    model = tiny_model("gpt2", backend=backend)
    prompt = PROMPTS[0]
    with model.nn.trace(prompt):
        projected = model.nn.transformer.h[1].attn.c_attn.output.save()
    ours = capture(model, prompt, ["q", "k", "v"], layers=1)
    parts = torch.as_tensor(projected[0]).split(D_MODEL, -1)
    for site, expected in zip(("q", "k", "v"), parts, strict=True):
        flat = ours[site][0, 0].to_numpy().reshape(expected.shape)
        np.testing.assert_allclose(flat, expected.detach(), rtol=0, atol=1e-6)
    there = model.run(own_job, {"prompt": prompt}, label="my job").values["norm"]
    torch.testing.assert_close(there, torch.as_tensor(projected[0, -1]).norm().detach())


def own_job(nn: Any, tick: Any, prompt: str) -> dict[str, Any]:
    with nn.trace(prompt):
        size = nn.transformer.h[1].attn.c_attn.output[0, -1].norm().detach()
    return {"norm": size}
