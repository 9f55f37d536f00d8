"""Captured activations against torch hooks, chosen, reduced where the model is; and raw nnsight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import nnattr
from nnattr import attention_patterns, capture
from nnattr.errors import ArchError, BackendError, TaskError
from tests.methods.common import ragged_ioi, raw_module, teaching, tiny
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
        ("result", {}, "Unknown site 'result'"),
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
