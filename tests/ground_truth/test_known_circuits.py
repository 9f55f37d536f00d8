"""The oracle gives each hand-built model the edges that were worked out on paper, and no others."""

from __future__ import annotations

import pytest
import torch

from tests.ground_truth.circuits import CIRCUITS
from tests.ground_truth.held import EXACT, SOFT, effects, gap, held, known
from tests.oracles import edges, patching
from tests.oracles.parts import all_edges


@pytest.mark.parametrize(("name", "number"), [("induction", 37), ("grouped_induction", 67)])
def test_the_number_of_edges_into_heads_and_logits(name, number):
    into = [receiver for _, receiver in all_edges(known(name).module) if receiver[0] != "M"]
    assert len(into) == number


@pytest.mark.parametrize("distractors", [True, False])
@pytest.mark.parametrize("name", CIRCUITS)
def test_every_listed_edge_and_no_other(name, distractors):
    circuit = known(name, distractors)
    held(effects(circuit), circuit.edges)
    assert abs(gap(circuit, "denoising")) > 0.99, "the control: it does what it should"


@pytest.mark.parametrize("name", CIRCUITS)
def test_with_soft_attention_the_listed_edges_are_the_largest(name):
    circuit = CIRCUITS[name](sharp=SOFT)
    found = effects(circuit)
    listed = {edge: found.pop(edge) for edge in circuit.edges}
    others = [abs(value) for value in found.values()]
    assert min(map(abs, listed.values())) > 2 * max(others), (listed, max(others))
    moved = [abs(value - circuit.edges[edge]) for edge, value in listed.items()]
    moved.append(abs(gap(circuit, "denoising") / gap(known(name), "denoising") - 1))
    assert max(moved) > 0.01, "the control: it is soft"


@pytest.mark.parametrize("name", [name for name in CIRCUITS if known(name).noising is not None])
def test_the_other_direction(name):
    circuit = known(name)
    assert circuit.noising is not None
    held(effects(circuit, "noising"), circuit.noising)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("name", CIRCUITS)
def test_sets_of_edges(name, direction):
    circuit = known(name)
    sets = circuit.together if direction == "denoising" else circuit.noising_together
    for some, value in sets.items():
        pairs = [tuple(edge.split("->")) for edge in some]
        found = edges.together(circuit.module, circuit.pair(direction), pairs)
        assert found / gap(circuit, direction) == pytest.approx(value, abs=EXACT), some


@pytest.mark.parametrize("name", [name for name in CIRCUITS if known(name).paths])
def test_paths(name):
    circuit = known(name)
    for path, value in circuit.paths.items():
        found = edges.chain(circuit.module, circuit.pair(), path.split("->"))
        assert found / gap(circuit, "denoising") == pytest.approx(value, abs=EXACT), path


@pytest.mark.parametrize("name", CIRCUITS)
def test_it_is_loaded_from_a_folder_as_any_model_is(name, tmp_path):
    """Its structure is proven on the live model, and it is the same model."""
    circuit = known(name)
    model = circuit.load(tmp_path)
    task = circuit.task(model)
    for side, ids in ((task.clean_tokens, "source"), (task.corrupted_tokens, "base")):
        assert torch.equal(side.ids, getattr(circuit.pair(), ids))
    ours = patching.logits_of(model.nn._module, circuit.pair().base)
    torch.testing.assert_close(ours, patching.logits_of(circuit.module, circuit.pair().base))


@pytest.mark.parametrize("name", CIRCUITS)
def test_distractors_change_and_matter_for_nothing(name):
    """A control of the zeros: what distractors write differs between the runs."""
    circuit = known(name)
    named = " ".join(circuit.edges)
    idle = next(f"L0H{head}" for head in (1, 2, 3) if f"L0H{head}" not in named)
    assert float(edges.change_of(circuit.module, circuit.pair(), [idle]).abs().max()) > 1e-2
