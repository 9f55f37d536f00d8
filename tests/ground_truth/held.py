"""Models whose circuits are known, made once, and their edges held against the paper."""

from __future__ import annotations

from functools import cache

import torch

from tests.ground_truth.circuits import CIRCUITS
from tests.ground_truth.known import Known
from tests.oracles import edges
from tests.oracles.parts import all_edges

EXACT, NOTHING, SOFT = 1e-5, 1e-6, 4.0


@cache
def known(name: str, distractors: bool = True) -> Known:
    return CIRCUITS[name](distractors=distractors)


def effects(circuit: Known, direction: str = "denoising") -> dict[str, float]:
    """Of every edge, as a share of the gap."""
    pair = circuit.pair(direction)
    found = edges.every_edge(circuit.module, pair, all_edges(circuit.module))
    return {"->".join(edge): value / gap(circuit, direction) for edge, value in found.items()}


def gap(circuit: Known, direction: str) -> float:
    pair = circuit.pair(direction)
    with torch.no_grad():
        return float(pair.measure(circuit.module, pair.source) - pair.measure(circuit.module))


def held(found: dict[str, float], listed: dict[str, float]) -> None:
    assert found.keys() >= listed.keys()
    for edge, value in found.items():
        limit = EXACT if edge in listed else NOTHING
        assert abs(value - listed.get(edge, 0.0)) < limit, (edge, value)
