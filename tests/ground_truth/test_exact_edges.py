"""`path_patching` on models whose circuits are known, loaded from a folder as any model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nnattr
from nnattr import EdgeScores, LogitDiff
from tests.ground_truth.circuits import CIRCUITS
from tests.ground_truth.held import EXACT, SOFT, effects, held, known
from tests.ground_truth.known import Known
from tests.oracles.parts import all_edges


def measured(circuit: Known, folder: Path, **options: Any) -> dict[str, float]:
    """Every edge's share of the gap."""
    model = circuit.load(folder)
    scores = nnattr.path_patching(
        model, circuit.task(model), LogitDiff(), receivers="all", **options
    )
    assert scores.provenance.arguments["engine"] == "suffix"
    return by_name(scores)


def by_name(scores: EdgeScores) -> dict[str, float]:
    share = scores.raw.isel(example=0) / scores.scale
    stacked = share.stack(edge=("sender", "receiver")).dropna("edge")
    return {
        f"{u}->{v}": float(value)
        for (u, v), value in zip(stacked.edge.values, stacked.values, strict=True)
    }


@pytest.mark.parametrize("name", CIRCUITS)
def test_every_listed_edge_and_no_other(name, tmp_path):
    circuit = known(name)
    found = measured(circuit, tmp_path)
    assert found.keys() == {"->".join(edge) for edge in all_edges(circuit.module)}
    held(found, circuit.edges)


@pytest.mark.parametrize("name", [name for name in CIRCUITS if known(name).noising is not None])
def test_the_other_direction(name, tmp_path):
    """Where two directions say different things: what one can do, and what one is needed for."""
    circuit = known(name)
    assert circuit.noising is not None
    held(measured(circuit, tmp_path, direction="noising"), circuit.noising)


@pytest.mark.parametrize("name", CIRCUITS)
def test_soft_attention_against_the_oracle(name, tmp_path):
    circuit = CIRCUITS[name](sharp=SOFT)
    found, theirs = measured(circuit, tmp_path), effects(circuit)
    assert found.keys() == theirs.keys()
    for edge, value in theirs.items():
        assert abs(found[edge] - value) < EXACT, edge
    largest = sorted(found, key=lambda edge: abs(found[edge]))[-len(circuit.edges) :]
    assert set(largest) == set(circuit.edges)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("name", CIRCUITS)
def test_sets_of_edges(name, direction, tmp_path):
    circuit = known(name)
    sets = circuit.together if direction == "denoising" else circuit.noising_together
    if not sets:
        pytest.skip("no sets are worked out for this one")
    model, options = circuit.load(tmp_path), {"together": True, "direction": direction}
    for some, value in sets.items():
        found = nnattr.path_patching(
            model, circuit.task(model), LogitDiff(), edges=list(some), **options
        )
        assert float(found.values.squeeze()) == pytest.approx(value, abs=EXACT), some


@pytest.mark.parametrize("name", [name for name in CIRCUITS if known(name).paths])
def test_paths(name, tmp_path):
    circuit = known(name)
    model = circuit.load(tmp_path)
    for path, value in circuit.paths.items():
        found = nnattr.path_patching(model, circuit.task(model), LogitDiff(), paths=[path])
        assert float(found.values.squeeze()) == pytest.approx(value, abs=EXACT), path
