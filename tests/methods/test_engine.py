"""The engine gives what full forward passes give, on every family, or says that it stood aside.

Left padding, unequal lengths, a sliding window shorter than the prompts, soft-caps, prompts that
differ at their first or only at their last token, both directions, a metric that reads every
position.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import nnattr
from nnattr import LogitDiff, LogProb, Loss, Model, Prob
from nnattr.engine import memory, passes, sweep
from nnattr.engine.mode import Mode
from nnattr.engine.shortcuts import Scratch, one_step_gelu
from nnattr.errors import ArchError
from nnattr.runs import portions
from nnattr.runs.inputs import cache_argument
from tests.methods.common import assert_same
from tests.support.engine import LayerByLayer, compared, pair, task
from tests.support.families import families
from tests.tiny import FAMILIES, tiny_model

INNER = ("q", "k", "v", "pattern", "neuron")
SITES = ("z", "attn_out", "resid_mid", "mlp_out", "resid_pre", "resid_post", *INNER)
#: Sites that a layout has not, and why.
WITHOUT = {
    "resid_mid": "parallel",
    "neuron": "mixture of experts",
    "pattern": "eager, makes other predictions",
}
#: Families whose attention counts positions by itself (ALiBi), whatever it is told.
BY_INDEX = ("bloom", "falcon-serial", "mpt")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_site_with_padding(family):
    model = tiny_model(family)
    question = task(model, pair(9, 4), pair(6, 3, shift=5))
    missing = {
        "resid_mid": model.spec.parallel,
        "neuron": model.spec.mlp_proj is None,
        "pattern": family == "falcon-serial",
    }
    used = set()
    for site in SITES:
        if missing.get(site):
            with pytest.raises(ArchError, match=WITHOUT[site]):
                compared(model, question, site=site, positions="each")
        else:
            used.add(compared(model, question, site=site, positions="each"))
    assert used == {"suffix"}, f"{family} is served by full passes"


@pytest.mark.parametrize("differs", [0, 3, 8])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("positions", ["all", "each", "last", -2, [0, 3, -1]])
def test_where_the_prompts_differ_and_what_is_patched(differs, direction, positions):
    model = tiny_model("llama")
    question = task(model, pair(9, differs), pair(9, differs, shift=3))
    touched = positions in ("all", "each") or differs < 8 or positions != -2
    if touched:
        found = compared(model, question, positions=positions, direction=direction)
        assert found == "suffix"
    else:  # nothing before the first differing token can matter
        scores = nnattr.activation_patching(
            model, question, LogitDiff(), positions=positions, normalized=False
        )
        assert float(abs(scores.raw).max()) == 0.0


@pytest.mark.parametrize("site", SITES)
def test_a_metric_that_reads_every_position(site):
    model = tiny_model("gpt2")
    question = task(model, pair(9, 4), pair(6, 3, shift=5))
    assert compared(model, question, Loss(), site=site, positions="each") == "suffix"


@pytest.mark.parametrize("metric", [LogProb(), Prob()])
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "granite", "cohere"])
def test_a_metric_that_reads_every_token(family, metric):
    model = tiny_model(family)
    question = task(model, pair(9, 4), pair(6, 3, shift=5))
    assert compared(model, question, metric) == "suffix"


@pytest.mark.parametrize("family", families())
def test_the_last_layer_is_cut_to_what_the_metric_reads(family, monkeypatch):
    """The control: a model that had to run it whole would say so by its mode."""
    asked: list[bool] = []
    run = passes.run

    def watched(*given):
        asked.append(next(one.narrow for one in given if isinstance(one, Mode)))
        return run(*given)

    monkeypatch.setattr(passes, "run", watched)
    model = tiny_model(family)
    compared(model, task(model, pair(9, 4)))
    assert asked
    assert all(asked)


@pytest.mark.parametrize("tokens", [7, 8, 12])
@pytest.mark.parametrize("family", ["bloom", "mpt", "llama"])
def test_layers_go_together_only_if_they_did_when_compared(family, tokens, monkeypatch):
    """Two rows from the first start do not fit a pass; from later ones they do."""
    monkeypatch.setattr(portions, "CPU_TOKENS", tokens)
    model = tiny_model(family)
    question = task(model, pair(9, 2), pair(9, 2, shift=3))
    for site in ("z", "resid_pre"):
        assert compared(model, question, site=site, positions="each") == "suffix"


@pytest.fixture
def laid_out(monkeypatch) -> list[int]:
    """How many rows shared a sequence, pass by pass."""
    sizes: list[int] = []
    run = passes.run

    def watched(*given):
        sizes.append(given[-1])
        return run(*given)

    monkeypatch.setattr(passes, "run", watched)
    return sizes


@pytest.mark.parametrize("family", families())
def test_rows_of_several_layers_share_a_pass(family, monkeypatch):
    """But for bloom, which counts heads and prompts in one axis."""
    together: list[int] = []
    run = passes.run

    def watched(nn, question, base, rows, *rest):
        together.append(len(rows.layer.unique()))
        return run(nn, question, base, rows, *rest)

    monkeypatch.setattr(passes, "run", watched)
    sizes = {"num_layers": 4, "attention_types": [[["global", "local"], 2]]}
    model = tiny_model(family, **(sizes if family == "gpt_neo" else {}))
    question = task(model, pair(9, 4), pair(6, 3, shift=5))
    for site in ("z", "mlp_out", "resid_pre", "resid_post", "v"):
        together.clear()
        assert compared(model, question, site=site, positions="each") == "suffix"
        assert (max(together[2:]) > 1) == (family != "bloom")


@pytest.mark.parametrize("family", families())
def test_behind_a_long_prompt_the_rows_of_an_example_share_its_keys(family, laid_out):
    model = tiny_model(family)
    question = task(model, pair(24, 19), pair(20, 15, shift=5))
    for site in ("z", "q"):
        laid_out.clear()
        assert compared(model, question, site=site) == "suffix"
        assert (laid_out[-1] > 1) == (family not in BY_INDEX)


@pytest.mark.parametrize(
    ("site", "tokens"), [("z", 25), ("z", 200), ("k", 25), ("pattern", 200), ("neuron", 200)]
)
def test_lots_of_rows_when_they_do_not_come_out_even(site, tokens, laid_out, monkeypatch):
    """Passes of few tokens, examples that differ elsewhere, a metric that reads every position."""
    monkeypatch.setattr(portions, "CPU_TOKENS", tokens)
    model = tiny_model("llama")
    question = task(model, pair(24, 19), pair(24, 22, shift=3), pair(21, 17, shift=5))
    compared(model, question, site=site, positions="each")
    compared(model, question, Loss(), site=site, positions=[-5, -1])
    assert max(laid_out) > 1


def test_a_window_shorter_than_some_prompts_keeps_rows_apart(laid_out):
    """The padded prompt fits the window, so the comparison on it alone would not tell."""
    model = tiny_model("mistral", sliding_window=20)
    question = task(model, pair(24, 19), pair(18, 13, shift=5))
    for site in ("z", "q"):
        assert compared(model, question, site=site) == "suffix"
        assert set(laid_out) == {1}


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
def test_a_sliding_window_shorter_than_the_prompt(family):
    model = tiny_model(family, sliding_window=4)
    question = task(model, pair(14, 10), pair(12, 7, shift=2))
    for site in ("z", "resid_pre"):
        assert compared(model, question, site=site, positions="each") == "suffix"


def test_many_small_passes_give_the_same(monkeypatch):
    model = tiny_model("qwen3")
    question = task(model, *[pair(9, 4, shift=i) for i in range(5)])
    whole = nnattr.activation_patching(model, question, LogitDiff(), positions="each")
    monkeypatch.setattr("nnattr.jobs.study.TOKENS_PER_FORWARD", 20)
    parts = nnattr.activation_patching(model, question, LogitDiff(), positions="each")
    torch.testing.assert_close(
        torch.tensor(parts.raw.to_numpy()),
        torch.tensor(whole.raw.to_numpy()),
        rtol=1e-5,
        atol=1e-5,
    )


def forgetful(monkeypatch, model: Model, gives: bool) -> None:
    """Let the model ignore the cache that it is given, or give none."""
    inner, name = model.nn._module.model, cache_argument(model.nn)
    forward = inner.forward

    def changed(*args, **kwargs):
        if gives:
            kwargs.pop(name)
        output = forward(*args, **kwargs)
        if not gives:
            setattr(output, name, None)
        return output

    monkeypatch.setattr(inner, "forward", changed)


@pytest.mark.parametrize("differs", [0, 4])
@pytest.mark.parametrize("gives", [True, False])
def test_a_model_that_cannot_go_on_from_a_cache_is_served_by_full_passes(
    gives, differs, monkeypatch
):
    model = tiny_model("llama")
    question = task(model, pair(9, differs))
    right = nnattr.activation_patching(model, question, LogitDiff(), positions="each")
    without = nnattr.ablate(model, question, LogitDiff(), positions="each")
    forgetful(monkeypatch, model, gives)
    scores = nnattr.activation_patching(model, question, LogitDiff(), positions="each")
    ablated = nnattr.ablate(model, question, LogitDiff(), positions="each")
    for found, expected in ((scores, right), (ablated, without)):
        assert found.provenance.arguments["engine"] == "full"
        assert found.provenance.fell_back
        assert expected.provenance.arguments["engine"] == "suffix"
        assert not expected.provenance.fell_back
        assert_same(found.raw, expected.raw)


@pytest.mark.parametrize("fails", [0, 1, 2])
@pytest.mark.parametrize("parts", ["layers", "examples"])
def test_provenance_names_a_part_that_fell_back(parts, fails, monkeypatch):
    """Of three parts, whichever it is: by layers for a limit, by examples without memory."""
    model = tiny_model("llama")
    question = task(model, *[pair(9, 4, shift=i) for i in range(3)])
    right = nnattr.activation_patching(model, question, LogitDiff())
    if parts == "layers":
        model = replace(model, backend=LayerByLayer())
    seen, fastest = [], sweep.fastest

    def failing(*given):
        seen.append(given)
        return fastest(*given) if len(seen) != fails + 1 else None

    monkeypatch.setattr(sweep, "fastest", failing)
    if parts == "examples":
        monkeypatch.setattr(memory, "bytes_per_example", lambda *_: 1 << 60)
    scores = nnattr.activation_patching(model, question, LogitDiff())
    assert len(seen) == 3
    assert scores.provenance.arguments["engine"] == "full"
    assert scores.provenance.fell_back == sweep.DISAGREES
    assert_same(scores.raw, right.raw)


@pytest.mark.parametrize("limit", [{"window_size": 28}, {"max_position_embeddings": 30}])
def test_no_sequence_is_longer_than_the_model_was_seen_to_serve(limit):
    """GPT-Neo's own masks count keys: by a window that no cache shows, up to its longest prompt."""
    kinds = [[["global", "local"], 2]]
    model = tiny_model("gpt_neo", num_layers=4, attention_types=kinds, **limit)
    for question in (task(model, pair(24, 21)), task(model, pair(24, 16))):
        for positions in ("all", "each"):
            assert compared(model, question, positions=positions) == "suffix"


def test_progress_goes_on_with_every_pass(monkeypatch):
    monkeypatch.setattr(portions, "CPU_TOKENS", 5)
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr("nnattr.progress.ProgressBar.tick", lambda _, *given: seen.append(given))
    model = tiny_model("llama")
    nnattr.activation_patching(model, task(model, pair(9, 4)), LogitDiff())
    done, totals = zip(*seen, strict=True)
    assert len(set(totals)) == 1
    assert done[-1] == totals[0]
    assert list(done) == sorted(set(done))
    assert len(done) > 2 * model.n_layers


def test_gelu_in_one_step_is_gelu():
    x = torch.linspace(-30, 30, 4001).reshape(1, -1)
    exact = torch.nn.functional.gelu(x.double(), approximate="tanh")
    found: dict[str, Any] = {}
    built = torch.nn.Identity()
    module = SimpleNamespace(_module=built, input=x, skip=lambda one: found.update(value=one))
    one_step_gelu(SimpleNamespace(get=lambda _: module), "act", Scratch())
    torch.testing.assert_close(found["value"].double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "bloom", "falcon"])
def test_gradients_after_a_shared_prefix_are_those_of_whole_prompts(family, monkeypatch):
    model = tiny_model(family)
    question = task(model, pair(9, 4), pair(6, 3, shift=5))
    found = {}
    for worth in (0, 10_000):
        monkeypatch.setattr("nnattr.engine.gradients.WORTH_SHARING", worth)
        scores = nnattr.attribution_patching(
            model, question, LogitDiff(), positions="each", normalized=False
        )
        found[scores.provenance.arguments["engine"]] = torch.tensor(scores.raw.to_numpy())
    size = float(found["full"].nan_to_num().abs().max())
    assert size > 0
    torch.testing.assert_close(
        found["suffix"], found["full"], rtol=1e-5, atol=1e-5 * size, equal_nan=True
    )
