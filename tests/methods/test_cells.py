"""A chosen few cells: what the whole sweep gives for them, one by one and all at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnattr
from nnattr import LogitDiff, Model, Scores, Simulated
from nnattr.calls.again import python, run_file
from nnattr.errors import ArchError, ArgumentError, NnattrError, TaskError
from nnattr.report import Entry, report_page
from tests.methods.common import (
    TEACHING,
    Forwards,
    assert_far,
    assert_same,
    even_ioi,
    pairs,
    ragged_ioi,
    ragged_tiny,
    raw_module,
    teaching,
    tiny,
)
from tests.oracles.patching import activations, logits_of

CALLS = {
    "patching": nnattr.activation_patching,
    "attribution": nnattr.attribution_patching,
    "ablation": nnattr.ablate,
}


def where(scores: Scores) -> list[tuple[int, ...]]:
    """The cells that have a number, as indices of the array."""
    found = scores.raw.mean("example").notnull().to_numpy()
    return [tuple(map(int, at)) for at in np.argwhere(found)]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", TEACHING)
def test_cells_are_those_of_the_whole_sweep(name: str, call: str) -> None:
    model = teaching(name)
    task = ragged_ioi(model)
    method: Any = CALLS[call]
    whole = method(model, task, LogitDiff())
    wanted = [(0, 1), (1, 2), (1, 0)]
    for given in (wanted, ["L0H1", "1.2", "a1.h0"]):
        some = method(model, task, LogitDiff(), cells=given)
        assert where(some) == sorted(wanted)
        assert some.provenance.asked == f"3 of {whole.mean().raw.size} cells were asked for"
        for layer, head in wanted:
            at = {"layer": layer, "head": head}
            assert_same(some.raw.sel(at), whole.raw.sel(at))
    assert_same(some.baselines.sel(run="clean"), whole.baselines.sel(run="clean"))
    assert some.scale == pytest.approx(whole.scale, rel=1e-5)


@pytest.mark.parametrize("site", ["z", "q", "k", "v", "pattern", "mlp_out", "resid_pre", "neuron"])
@pytest.mark.parametrize("positions", ["all", "each"])
def test_at_every_site_a_layer_is_its_cells(site: Any, positions: Any) -> None:
    model = teaching("teaching-llama")
    task = even_ioi(model, 2)
    whole = nnattr.activation_patching(
        model, task, LogitDiff(), site=site, positions=positions, layers=[0, model.n_layers - 1]
    )
    assert set(whole.raw.mean("example").dropna("layer", how="all")["layer"].to_numpy()) == {
        0,
        model.n_layers - 1,
    }
    best = whole.top(4)
    some = nnattr.activation_patching(
        model, task, LogitDiff(), site=site, positions=positions, cells=best
    )
    assert [cell.index for cell in some.top(9)] == [cell.index for cell in best]
    assert_same([cell.value for cell in some.top(9)], [cell.value for cell in best])


def test_only_what_is_asked_for_is_run() -> None:
    model = teaching("teaching-gpt2")
    task = even_ioi(model, 4)
    costs = []
    for cells in (None, [(1, 0)]):
        with Forwards(model) as passes:
            nnattr.activation_patching(model, task, LogitDiff(), positions="each", cells=cells)
        costs.append(sum(passes.tokens))
    assert costs[1] < 0.5 * costs[0]


def test_full_passes_give_it_to_the_bit() -> None:
    model = teaching("teaching-gpt2")
    task = even_ioi(model, 1)
    full: dict[str, Any] = {"engine": "full", "positions": "last", "layers": [1]}
    whole = nnattr.activation_patching(model, task, LogitDiff(), **full)
    heads = [(1, head) for head in range(model.n_heads)]
    some = nnattr.activation_patching(
        model, task, LogitDiff(), engine="full", positions="last", heads=heads
    )
    assert np.array_equal(some.raw, whole.raw, equal_nan=True)


def test_a_ranking_of_estimates_is_checked_exactly() -> None:
    model = teaching("teaching-gpt2")
    task = even_ioi(model, 4)
    estimate = nnattr.attribution_patching(model, task, LogitDiff(), positions="each")
    checked = nnattr.activation_patching(
        model, task, LogitDiff(), positions="each", cells=estimate.top(20)
    )
    assert len(where(checked)) == 20
    assert nnattr.agreement(checked, estimate).provenance.asked == checked.provenance.asked
    one = nnattr.activation_patching(
        model, task, LogitDiff(), positions="each", cells=estimate.top(20)[0]
    )
    assert one.top(5).indices == [estimate.top(1)[0].index]


def test_positions_of_cells() -> None:
    """Given back as results label them, and by name; without one a cell is all of its positions."""
    model = teaching("teaching-gpt2")
    for task in (even_ioi(model), ragged_ioi(model)):
        whole = nnattr.activation_patching(model, task, LogitDiff(), positions="each")
        last = int(whole.raw["pos"][-1])
        ways: list[Any] = [
            [(1, 2, last)],
            (1, 2, last),
            ("L1H2", last),
            [("L1H2", last)],
            ("1.2", -1),
        ]
        for way in ways:
            some = nnattr.activation_patching(model, task, LogitDiff(), positions="each", cells=way)
            assert [cell.index for cell in some.top(9)] == [(1, 2, last)]
            assert_same(
                some.raw.sel(layer=1, head=2, pos=last), whole.raw.sel(layer=1, head=2, pos=last)
            )
        head = nnattr.activation_patching(model, task, LogitDiff(), positions="each", cells="L1H2")
        np.testing.assert_array_equal(
            head.raw.sel(layer=1, head=2).isnull(), whole.raw.sel(layer=1, head=2).isnull()
        )
        assert head.provenance.asked.startswith(f"{whole.raw.sizes['pos']} of ")


def test_layers_at_sites_that_are_not_split() -> None:
    model = teaching("teaching-gpt2")
    task = even_ioi(model)
    calls: list[dict[str, Any]] = [
        {"cells": [1]},
        {"cells": 1},
        {"cells": "M1"},
        {"cells": [(1,)]},
        {"layers": 1},
    ]
    for given in calls:
        scores = nnattr.activation_patching(model, task, LogitDiff(), site="mlp_out", **given)
        assert where(scores) == [(1,)]


# --- all at once --------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["z", "q", "k", "v", "pattern", "mlp_out", "resid_mid", "neuron"])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_one_cell_together_is_that_cell_alone(site: Any, direction: Any) -> None:
    model = teaching("teaching-llama")
    task = ragged_ioi(model)
    given: dict[str, Any] = {"site": site, "direction": direction, "layers": [1]}
    best = nnattr.activation_patching(model, task, LogitDiff(), **given).top(1)
    given.pop("layers")
    alone = nnattr.activation_patching(model, task, LogitDiff(), cells=best, **given)
    both = nnattr.activation_patching(model, task, LogitDiff(), cells=best, together=True, **given)
    assert both.raw.dims == ("example",)
    assert_same(both.raw, alone.raw.sum([*alone.cell_dims]))
    assert_same(both.baselines, alone.baselines)
    assert both.scale == pytest.approx(alone.scale, rel=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj", "mixtral"])
def test_all_heads_of_a_layer_together_are_its_attention(family: str) -> None:
    model = tiny(family)
    task = ragged_tiny(model)
    layer = nnattr.activation_patching(model, task, LogitDiff(), site="attn_out", cells=1)
    heads = nnattr.activation_patching(model, task, LogitDiff(), layers=1, together=True)
    assert_same(heads.raw, layer.raw.sel(layer=1))
    whole = nnattr.activation_patching(model, task, LogitDiff(), cells="L1H0")
    assert_far(heads.raw, whole.raw.sel(layer=1, head=0), 1e-3)


def test_everything_together_is_the_other_run() -> None:
    model = teaching("teaching-gpt2")
    task = ragged_ioi(model)
    for site in ("resid_pre", "resid_post"):
        found = nnattr.activation_patching(model, task, LogitDiff(), site=site, together=True)
        assert_same(found.values, np.ones(len(task)) * gaps(found) / found.scale)


def gaps(scores: Scores) -> np.ndarray:
    runs = scores.baselines
    return (runs.sel(run="clean") - runs.sel(run="corrupted")).to_numpy()


def test_cells_at_positions_of_their_own_together_are_what_hooks_give() -> None:
    model = teaching("teaching-gpt2")
    task = even_ioi(model)
    length = len(task.clean_tokens.strings[0])
    cells = [(0, 1, length - 3), (1, 2, length - 1), (2, 0, length - 2)]
    ours = nnattr.activation_patching(
        model, task, LogitDiff(), positions="each", cells=cells, together=True
    )
    expected = [by_hooks(model, pair, cells) for pair in pairs(model, task)]
    assert_same(ours.raw, np.array(expected))


def by_hooks(model: Model, pair: Any, cells: list[tuple[int, int, int]]) -> float:
    """The change of the metric with z of these (layer, head, pos) from the source run."""
    module = raw_module(model)
    source = activations(module, pair.source, "z")
    handles = []
    for layer in {layer for layer, *_ in cells}:
        mine = [(head, pos) for at, head, pos in cells if at == layer]

        def patch(_: Any, args: Any, layer: int = layer, mine: Any = mine) -> Any:
            z = args[0].unflatten(-1, (model.n_heads, -1)).clone()
            other = source[layer].unflatten(-1, (model.n_heads, -1))
            for head, pos in mine:
                z[:, pos, head] = other[pos, head]
            return (z.flatten(-2),)

        projection = module.transformer.h[layer].attn.c_proj
        handles.append(projection.register_forward_pre_hook(patch))
    value = pair.metric(logits_of(module, pair.base), pair.base[0])
    for handle in handles:
        handle.remove()
    return float(value - pair.measure(module))


# --- wherever it runs ---------------------------------------------------------------------------


@pytest.mark.parametrize("together", [False, True])
def test_a_serialised_job_and_split_jobs_give_the_same(together: bool) -> None:
    cells = [(0, 1), (2, 2)]
    found = []
    for backend in ("local", "simulated", Simulated(max_job_bytes=1)):
        model = nnattr.load("teaching-llama", backend=backend)
        scores = nnattr.activation_patching(
            model, even_ioi(model), LogitDiff(), cells=cells, together=together
        )
        found.append(scores)
    assert_same(found[1].raw, found[0].raw, 1e-6)
    assert_same(found[2].raw, found[0].raw)
    assert found[2].provenance.jobs == (1 if together else 2)


@pytest.mark.parametrize("together", [False, True])
def test_a_checkpoint_knows_which_cells(tmp_path: Path, together: bool) -> None:
    model = teaching("teaching-gpt2")
    task = even_ioi(model)
    some: Any
    for some in ({"cells": [(0, 1)]}, {"cells": [(0, 2), (2, 1)]}, {"layers": 1}, {}):
        given = {**some, "together": together}
        first = nnattr.activation_patching(model, task, LogitDiff(), checkpoint=tmp_path, **given)
        with Forwards(model) as passes:
            again = nnattr.activation_patching(
                model, task, LogitDiff(), checkpoint=tmp_path, **given
            )
        assert not passes.rows, "what is known is not run again"
        assert first.raw.equals(again.raw)
        assert_same(first.raw, nnattr.activation_patching(model, task, LogitDiff(), **given).raw)
    assert len(list(tmp_path.iterdir())) == 4


def test_under_an_edit_and_within_little_memory() -> None:
    model = teaching("teaching-gpt2")
    edited = nnattr.edited(model, [nnattr.edit.ablate(["L0H1"])])
    task = even_ioi(model, 4)
    whole = nnattr.activation_patching(edited, task, LogitDiff(), normalized=False)
    cells = [(1, 0), (1, 2)]
    some = nnattr.activation_patching(
        edited, task, LogitDiff(), cells=cells, max_memory=1_000_000, normalized=False
    )
    for layer, head in cells:
        at = {"layer": layer, "head": head}
        assert_same(some.raw.sel(at), whole.raw.sel(at))
    one = nnattr.activation_patching(
        edited, task, LogitDiff(), cells=(1, 2), together=True, max_memory=1, normalized=False
    )
    assert_same(one.raw, whole.raw.sel(layer=1, head=2))
    plain = nnattr.activation_patching(model, task, LogitDiff(), cells=(1, 2), normalized=False)
    assert_far(one.raw, plain.raw.sel(layer=1, head=2), 1e-3)


# --- what is said -------------------------------------------------------------------------------


def words(figure: Any) -> str:
    """A figure's heading in one line."""
    return re.sub("(<[^>]*>)+", " ", figure.layout.title.text)


def test_what_was_asked_for_is_said(tmp_path: Path) -> None:
    model = teaching("teaching-gpt2")
    task = even_ioi(model, 4)
    scores = nnattr.activation_patching(model, task, LogitDiff(), cells=[(0, 1), (1, 2), (2, 0)])
    said = f"3 of {model.n_layers * model.n_heads} cells were asked for"
    saved = scores.save(tmp_path / "some.safetensors")
    loaded: Any = nnattr.load_result(saved)
    for one in (scores, loaded, scores.mean()):
        assert said in repr(one)
        assert len(one.top(50)) == 3
    figure: Any = scores.plot()
    assert said in words(figure)
    assert int(np.isfinite(np.array(figure.data[0].z, dtype=float)).sum()) == 3
    both = nnattr.activation_patching(model, task, LogitDiff(), cells=["L0H1"], together=True)
    page = report_page([Entry(one, "some") for one in (scores, both)])
    assert said in page
    assert "1 of 16 cells were replaced at once" in page
    assert "in which all these cells are those of the other run" in page
    estimate = nnattr.attribution_patching(model, task, LogitDiff())
    for pair in ((scores, estimate), (estimate, scores)):
        found = nnattr.agreement(*pair)
        assert said in repr(found)
        assert said in words(found.plot())
    assert (scores.significant(q=0.5) | scores.mean().raw.isnull()).sum() > 0
    assert scores.bootstrap_ci().sel(bound="low").notnull().sum() == 3


def test_a_call_is_found_again(tmp_path: Path) -> None:
    model = teaching("teaching-gpt2")
    task = even_ioi(model)
    given: dict[str, Any] = {"positions": "each", "site": "mlp_out"}
    best = nnattr.attribution_patching(model, task, LogitDiff(), **given).top(2)
    scores = nnattr.activation_patching(model, task, LogitDiff(), cells=best, **given)
    path = str(scores.save(tmp_path / "cells.safetensors"))
    scope: dict[str, Any] = {}
    exec(python(scores, path), scope)
    assert scope["result"].raw.equals(scores.raw)
    assert run_file(scores, path).options["cells"] == [list(cell.index) for cell in best]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"cells": []}, TaskError, "cells is empty; name at least one"),
        ({"layers": []}, TaskError, "layers is empty"),
        ({"heads": []}, TaskError, "heads is empty"),
        ({"cells": [(0, 1), "L0H1"]}, TaskError, "cells has L0H1 twice"),
        ({"layers": [1, 1]}, TaskError, "layers has 1 twice"),
        ({"cells": [(0, 1)], "layers": [1]}, TaskError, "cells= and layers= were given"),
        ({"cells": [(9, 0)]}, ArchError, "has no part .9, 0."),
        ({"cells": [(0, 9)]}, ArchError, "has no part .0, 9."),
        ({"cells": [(-1, 0)]}, ArchError, "has no part"),
        ({"layers": 9}, ArchError, "has no layer 9"),
        ({"cells": ["M1"]}, TaskError, "not a part of the site 'z'"),
        ({"cells": ["L1H0.q"]}, TaskError, "not a part of the site 'z'"),
        ({"cells": [1]}, TaskError, "expected .layer, head. tuples"),
        ({"cells": [(1, 2, 3)]}, TaskError, "a position is named where positions='each'"),
        ({"cells": ["nonsense"]}, ArchError, "not a part of a model"),
        ({"cells": [(1, 2, 99)], "positions": "each"}, TaskError, "no position 99"),
        ({"cells": ["L1H2", (1, 2, 3)], "positions": "each"}, TaskError, "L1H2 pos 3 twice"),
        ({"heads": [(0, 1)], "site": "mlp_out"}, TaskError, "'mlp_out' has no heads"),
        (
            {"cells": (1, 2), "site": "mlp_out", "positions": "each"},
            TaskError,
            "two layers or a layer at a position",
        ),
        ({"cells": 1.5}, ArgumentError, "cells is 1.5"),
        ({"cells": [(True, 1)]}, NnattrError, "cells"),
    ],
)
def test_refusals(call: dict[str, Any], error: Any, message: str) -> None:
    model = teaching("teaching-gpt2")
    task = even_ioi(model)
    for method in CALLS.values():
        with pytest.raises(error, match=message):
            method(model, task, LogitDiff(), **call)


def test_a_ranking_of_another_site_is_refused() -> None:
    model = teaching("teaching-gpt2")
    task = even_ioi(model)
    neurons = nnattr.attribution_patching(model, task, LogitDiff(), site="neuron").top(2)
    with pytest.raises(TaskError, match="not a part of the site 'z'"):
        nnattr.activation_patching(model, task, LogitDiff(), cells=neurons)
    parts = nnattr.direct_logit_attribution(model, task, unit="component").top(2)
    with pytest.raises(TaskError, match="not a part of the site 'mlp_out'"):
        nnattr.activation_patching(model, task, LogitDiff(), site="mlp_out", cells=parts)
