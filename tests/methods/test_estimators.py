"""Every estimator equals its literal twin: plain PyTorch, one example at a time, rules written out.

And what must hold for any weights: sums, completeness, runs that are patched with themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import nnattr
from nnattr import LogitDiff, Model, Task, activation_patching
from nnattr import attribution_patching as attribute
from nnattr.errors import ArchError, ArgumentError
from nnattr.jobs.estimating import shares
from tests.methods.common import (
    assert_far,
    assert_same,
    cells,
    pairs,
    ragged_tiny,
    raw_module,
    tiny,
    units,
)
from tests.oracles import estimates, inside, patching
from tests.oracles.rules import rules
from tests.tiny import tiny_model, tiny_module, tiny_tokenizer

#: One projection for all, grouped heads, norms behind and caps, parallel, one projection by heads,
#: an MLP without a gate, norms of queries and keys of each head and over all, one gate projection.
FAMILIES = ("gpt2", "llama", "gemma2", "gpt_neox", "falcon-new", "opt", "qwen3", "olmo2", "phi3")
GATED = ("llama", "gemma2", "qwen3", "olmo2", "phi3")
#: Families whose attention is one function that can be written out.
PLAIN = ("gpt2", "llama", "gemma2", "gpt_neox", "qwen3", "olmo2")
OWN = {
    "half": ("products",),
    "relp": ("norms", "activations", "products"),
    "gim": ("norms", "softmax", "attention", "products"),
}


def by_hand(
    model: Model, task: Task, site: str, names: tuple[str, ...], positions: Any = "each"
) -> list[np.ndarray]:
    """The estimate of each example under rules that are written out."""
    module, found = raw_module(model), []
    for i, pair in enumerate(pairs(model, task)):
        mine = cells(task, i, positions)
        with rules(module, names):
            if site in ("q", "k", "v", "neuron"):
                one = inside.estimate_every_cell(module, pair, site, mine)
            else:
                one = patching.estimate_every_cell(module, pair, site, units(model, site), mine)
        found.append(one.detach().numpy())
    return found


def unit_first(scores: Any) -> np.ndarray:
    """Raw scores [example, layer, unit, pos]."""
    raw = scores.raw if "pos" in scores.raw.dims else scores.raw.expand_dims("pos", -1)
    named = [dim for dim in raw.dims if dim not in ("example", "layer", "pos")]
    raw = raw if named else raw.expand_dims("unit")
    unit = named[0] if named else "unit"
    return raw.transpose("example", "layer", unit, "pos").to_numpy()


def assert_by_hand(found: np.ndarray, expected: list[np.ndarray], tolerance: float = 2e-5) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours[..., -theirs.shape[-1] :], theirs, tolerance)


@pytest.mark.parametrize("site", ["z", "mlp_out", "resid_pre", "attn_out"])
@pytest.mark.parametrize("family", FAMILIES)
def test_relp_is_its_rules_written_out(family: str, site: Any) -> None:
    model, task = tiny(family), ragged_tiny(tiny(family))
    ours = attribute(model, task, LogitDiff(), site=site, positions="each", estimator="relp")
    acting = tuple(ours.provenance.arguments["rules"])
    expected = by_hand(model, task, site, acting)
    assert_by_hand(unit_first(ours), expected)
    plain = attribute(model, task, LogitDiff(), site=site, positions="each")
    assert_far(unit_first(ours)[0, :-1], unit_first(plain)[0, :-1], 1e-2)


@pytest.mark.parametrize("site", ["z", "neuron", "q"])
@pytest.mark.parametrize("family", GATED)
def test_half_is_half_the_gradient_of_each_factor(family: str, site: Any) -> None:
    model, task = tiny(family), ragged_tiny(tiny(family))
    if family == "qwen3" and site == "q":
        pytest.skip("the hand's queries are behind a norm of each head, ours in front of it")
    if family == "phi3" and site == "q":
        pytest.skip("the hand hooks attention that others share")
    ours = attribute(model, task, LogitDiff(), site=site, positions="each", estimator="half")
    assert_by_hand(unit_first(ours), by_hand(model, task, site, OWN["half"]))


@pytest.mark.parametrize("site", ["z", "resid_pre", "mlp_out", "q", "k", "v"])
@pytest.mark.parametrize("family", PLAIN)
def test_gim_is_its_rules_written_out(family: str, site: Any) -> None:
    """The hand halves each factor where it is multiplied; we do at the projections' outputs."""
    if family == "qwen3" and site in ("q", "k"):
        pytest.skip("the hand's queries are behind a norm of each head, ours in front of it")
    model, task = tiny(family), ragged_tiny(tiny(family))
    ours = attribute(model, task, LogitDiff(), site=site, positions="each", estimator="gim")
    acting = tuple(ours.provenance.arguments["rules"])
    assert set(acting) >= {"norms", "softmax", "attention"}
    assert_by_hand(unit_first(ours), by_hand(model, task, site, acting))


@pytest.mark.parametrize("rule", ["norms", "activations", "products", "attention", "softmax"])
def test_each_rule_alone(rule: Any) -> None:
    model, task = tiny("llama"), ragged_tiny(tiny("llama"))
    ours = attribute(model, task, LogitDiff(), positions="each", estimator="relp", rules=(rule,))
    assert_by_hand(unit_first(ours), by_hand(model, task, "z", (rule,)))


def test_patterns_held_leave_what_goes_through_values() -> None:
    model, task = tiny("llama"), ragged_tiny(tiny("llama"))
    options: dict[str, Any] = {"positions": "each", "estimator": "relp", "rules": ("patterns",)}
    ours = attribute(model, task, LogitDiff(), **options)
    assert_by_hand(unit_first(ours), by_hand(model, task, "z", ("patterns",)))
    with pytest.raises(ArgumentError, match="nothing goes through site='q'"):
        attribute(model, task, LogitDiff(), site="q", **options)


def test_a_temperature_of_one_is_the_softmax() -> None:
    """So the rule changes nothing there, and is refused by its name."""
    model, task = tiny("llama"), ragged_tiny(tiny("llama"))
    with pytest.raises(ArchError, match="'softmax' cannot be used: it changes no gradient"):
        attribute(model, task, LogitDiff(), estimator="gim", temperature=1.0)
    warm = attribute(model, task, LogitDiff(), estimator="gim", temperature=3.0)
    assert warm.provenance.arguments["temperature"] == 3.0
    assert_far(warm.raw, attribute(model, task, LogitDiff(), estimator="gim").raw, 1e-3)


def test_the_pattern_shares_its_product_with_the_values() -> None:
    """Of z's gradient it gets half, as the values do; in the last layer nothing else is changed."""
    model, task = tiny("llama"), ragged_tiny(tiny("llama"))
    options: dict[str, Any] = {"site": "pattern", "positions": "each"}
    whole = attribute(model, task, LogitDiff(), **options).raw
    half = attribute(model, task, LogitDiff(), **options, estimator="gim", rules=("attention",)).raw
    assert_same(half[:, -1], whole[:, -1] / 2)


# --- rules that would do nothing ------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("gpt2", {"estimator": "half"}, "'products' would change nothing .* no product of a gate"),
        ("opt", {"estimator": "relp", "rules": ("activations",)}, "'activations' would change"),
        ("mixtral", {"estimator": "relp"}, "'activations' .* mixture of experts"),
        ("gptj", {"estimator": "gim"}, "'softmax' cannot be used: .* attention interface"),
    ],
)
def test_a_rule_with_nothing_to_act_on_is_refused_by_its_name(
    family: str, options: dict[str, Any], said: str
) -> None:
    model = tiny(family)
    with pytest.raises(ArchError, match=said):
        attribute(model, ragged_tiny(model), LogitDiff(), **options)


def test_a_rule_that_changes_nothing_is_refused_by_its_name() -> None:
    """Norms that divide by a constant are linear: to hold their scale changes no gradient."""
    model = tiny_model("llama", rms_norm_eps=1e10)
    for name, weight in raw_module(model).named_parameters():
        if "norm" in name:
            weight.data *= 1e5
    with pytest.raises(ArchError, match="the rule 'norms' cannot be used: it changes no gradient"):
        attribute(model, ragged_tiny(model), LogitDiff(), estimator="relp")


def test_a_product_of_other_things_is_refused() -> None:
    module = tiny_module("llama")
    mlp = module.model.layers[1].mlp
    mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x) ** 2)
    model = nnattr.load(module, tokenizer=tiny_tokenizer())
    with pytest.raises(ArchError, match=r"layers\.1\.mlp\.down_proj is not an activation times"):
        attribute(model, ragged_tiny(model), LogitDiff(), estimator="half")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 5}, "steps=5 is a setting of estimator='integrated'"),
        ({"estimator": "relp", "points": "left"}, "points='left' is a setting"),
        ({"rules": ("norms",)}, "rules=.* is a setting of estimator='half', 'relp' or 'gim'"),
        ({"estimator": "relp", "temperature": 2.0}, "temperature=2.0 is a setting of the rule"),
        ({"estimator": "gim", "temperature": 0.0}, "expected more than 0"),
        ({"estimator": "relp", "rules": ()}, "rules is empty"),
        ({"estimator": "eap"}, "'gradient' or 'half'"),
    ],
)
def test_settings_of_another_estimator_are_refused(options: dict[str, Any], said: str) -> None:
    model = tiny("llama")
    with pytest.raises(ArgumentError, match=said):
        attribute(model, ragged_tiny(model), LogitDiff(), **options)


# --- integrated gradients -------------------------------------------------------------------


@pytest.mark.parametrize("points", ["midpoint", "left", "right", "trapezoid"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox", "falcon-new", "opt"])
def test_integrated_is_a_sum_written_out(family: str, points: Any) -> None:
    model, task = tiny(family), ragged_tiny(tiny(family))
    module, way = raw_module(model), shares(3, points)
    for along in ("inputs", "activations"):
        for site in ("z", "resid_pre"):
            ours = attribute(
                model,
                task,
                LogitDiff(),
                site=site,
                positions="each",
                estimator="integrated",
                steps=3,
                points=points,
                along=along,
            )
            assert ours.completeness is not None
            for i, pair in enumerate(pairs(model, task)):
                mine, parts = cells(task, i, "each"), units(model, site)
                theirs, error = getattr(estimates, f"along_{along}")(
                    module, pair, site, parts, mine, way
                )
                assert_same(unit_first(ours)[i][..., -len(mine) :], theirs, 2e-5)
                np.testing.assert_allclose(ours.completeness[i], error, atol=1e-4)


def test_weights_of_the_way_sum_to_one_and_name_their_points() -> None:
    assert shares(2, "left") == [(0.0, 0.5), (0.5, 0.5)]
    assert shares(2, "right") == [(0.5, 0.5), (1.0, 0.5)]
    assert shares(2, "midpoint") == [(0.25, 0.5), (0.75, 0.5)]
    assert shares(2, "trapezoid") == [(0.0, 0.25), (0.5, 0.5), (1.0, 0.25)]


def test_the_first_point_of_one_step_is_the_gradient() -> None:
    model, task = tiny("llama"), ragged_tiny(tiny("llama"))
    plain = attribute(model, task, LogitDiff(), positions="each").raw
    for along in ("inputs", "activations"):
        one = attribute(
            model,
            task,
            LogitDiff(),
            positions="each",
            estimator="integrated",
            steps=1,
            points="left",
            along=along,
        )
        assert_same(one.raw, plain)


@pytest.mark.parametrize("site", ["z", "mlp_out", "q", "k", "v", "pattern", "neuron", "resid_mid"])
def test_more_steps_are_nearer_to_the_whole(site: Any) -> None:
    model, task = tiny("llama"), ragged_tiny(tiny("llama"))
    for along in ("inputs", "activations"):
        few, many = (
            attribute(
                model, task, LogitDiff(), site=site, estimator="integrated", steps=n, along=along
            ).completeness
            for n in (2, 16)
        )
        assert few is not None
        assert many is not None
        assert float(abs(many).max()) < 0.2 * float(abs(few).max())


def test_along_activations_one_cell_is_its_exact_effect() -> None:
    """A layer whose stream is one cell: the integral of its gradient is what patching it does."""
    model, task = tiny("llama"), ragged_tiny(tiny("llama"))
    found = attribute(
        model,
        task,
        LogitDiff(),
        site="mlp_out",
        estimator="integrated",
        steps=64,
        along="activations",
    ).raw
    assert_same(found, activation_patching(model, task, LogitDiff(), site="mlp_out").raw, 1e-3)


def test_the_slope_on_the_way_is_a_finite_difference() -> None:
    """Of a layer's cells together, in the middle of the way."""
    model, task = tiny("llama"), ragged_tiny(tiny("llama"))
    options: dict[str, Any] = {"estimator": "integrated", "steps": 1, "along": "activations"}
    ours = attribute(model, task, LogitDiff(), site="attn_out", **options).raw
    module, step = raw_module(model), 0.01
    for i, pair in enumerate(pairs(model, task)):
        own, other = (
            patching.activations(module, ids, "attn_out") for ids in (pair.base, pair.source)
        )
        for layer in range(model.n_layers):
            ends = []
            for share in (0.5 - step, 0.5 + step):
                value = own[layer] + share * (other[layer] - own[layer])
                hook = patching.passed_through(module, "attn_out", layer, lambda _, v=value: v)
                with torch.no_grad(), hook:
                    ends.append(float(pair.measure(module)))
            slope = (ends[1] - ends[0]) / (2 * step)
            assert float(ours[i, layer]) == pytest.approx(slope, rel=1e-2, abs=1e-3)


# --- AtP* -----------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["z", "mlp_out", "resid_pre", "resid_post", "attn_out"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox", "falcon-new", "opt"])
def test_graddrop_is_a_pass_for_each_layer(family: str, site: Any) -> None:
    model, task = tiny(family), ragged_tiny(tiny(family))
    ours = attribute(model, task, LogitDiff(), site=site, positions="each", estimator="atp*")
    assert float(ours.raw.min()) >= 0
    for i, pair in enumerate(pairs(model, task)):
        mine = cells(task, i, "each")
        theirs = estimates.magnitudes(raw_module(model), pair, site, units(model, site), mine)
        assert_same(unit_first(ours)[i][..., -len(mine) :], theirs, 2e-5)


@pytest.mark.parametrize("positions", ["each", "all", "where"])
@pytest.mark.parametrize("site", ["q", "k"])
@pytest.mark.parametrize("family", PLAIN)
def test_queries_and_keys_go_through_their_softmax(family: str, site: Any, positions: Any) -> None:
    """One softmax for each cell, with the model's own scale, cap and mask, in every pass."""
    model, task = tiny(family), ragged_tiny(tiny(family))
    ours = attribute(model, task, LogitDiff(), site=site, positions=positions, estimator="atp*")
    for i, pair in enumerate(pairs(model, task)):
        mine = cells(task, i, positions)
        theirs = estimates.dropped_through_softmax(raw_module(model), pair, site, mine)
        assert_same(unit_first(ours)[i][..., -len(mine) :], theirs, 2e-5)


# --- what must hold for any weights ---------------------------------------------------------

EVERY: tuple[dict[str, Any], ...] = (
    {"estimator": "half"},
    {"estimator": "relp"},
    {"estimator": "gim"},
    {"estimator": "integrated", "steps": 2},
    {"estimator": "integrated", "steps": 2, "along": "activations"},
    {"estimator": "atp*"},
)


@pytest.mark.parametrize("options", EVERY, ids=str)
@pytest.mark.parametrize("site", ["z", "k", "pattern", "mlp_out"])
def test_nothing_before_the_first_difference(site: Any, options: dict[str, Any]) -> None:
    model, task = tiny("llama"), ragged_tiny(tiny("llama"))
    found = attribute(model, task, LogitDiff(), site=site, positions="each", **options)
    raw = unit_first(found)
    assert np.nanmax(np.abs(raw)) > 1e-4
    assert float(np.nanmax(np.abs(raw[0][..., 1:2]))) == 0.0, "the first pair differs at 1"
    alike = attribute(model, task, LogitDiff(), site=site, positions=[0], **options)
    assert float(abs(alike.raw).max()) == 0.0


@pytest.mark.parametrize("options", EVERY, ids=str)
def test_some_layers_are_those_of_all(options: dict[str, Any]) -> None:
    model, task = tiny("llama"), ragged_tiny(tiny("llama"))
    for site in ("z", "k", "resid_pre"):
        whole = attribute(model, task, LogitDiff(), site=site, **options)
        some = attribute(model, task, LogitDiff(), site=site, layers=[0, 2], **options)
        assert_same(some.raw[:, [0, 2]], whole.raw[:, [0, 2]])
        assert bool(some.raw[:, 1].isnull().all())
        if whole.completeness is not None:
            assert some.completeness is not None
            np.testing.assert_allclose(
                some.completeness[..., :1], whole.completeness[..., :1], atol=1e-5
            )


@pytest.mark.parametrize("options", EVERY, ids=str)
def test_simulated_is_local(options: dict[str, Any]) -> None:
    here, there = tiny("llama"), tiny_model("llama", backend="simulated")
    task = ragged_tiny(here)
    for site in ("z", "k"):
        ours, theirs = (
            attribute(model, task, LogitDiff(), site=site, **options) for model in (here, there)
        )
        assert_same(theirs.raw, ours.raw, 1e-6)
        if ours.completeness is not None:
            np.testing.assert_allclose(theirs.completeness, ours.completeness, atol=1e-5)


@pytest.mark.parametrize("options", EVERY, ids=str)
def test_half_precision_is_near(options: dict[str, Any]) -> None:
    """bfloat16 has two digits: within a tenth of the largest estimate."""
    single, half = tiny("llama"), tiny_model("llama")
    raw_module(half).to(torch.bfloat16)
    task = ragged_tiny(single)
    ours, near = (
        attribute(model, task, LogitDiff(), normalized=False, **options).mean().raw.to_numpy()
        for model in (single, half)
    )
    assert np.abs(ours - near).max() < 0.1 * np.abs(ours).max()


@pytest.mark.parametrize("options", EVERY[:4], ids=str)
def test_positions_and_heads_add_up(options: dict[str, Any]) -> None:
    model, task = tiny("llama"), ragged_tiny(tiny("llama"))
    whole = attribute(model, task, LogitDiff(), **options).raw
    each = attribute(model, task, LogitDiff(), positions="each", **options).raw
    assert_same(each.sum("pos"), whole)
    together = attribute(model, task, LogitDiff(), site="attn_out", **options).raw
    assert_same(whole.sum("head"), together)
