"""A metric that is a number for every position, with parts of the model replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nnattr
from nnattr import Loss, Simulated, Task
from nnattr.errors import MetricError
from tests.methods.common import (
    TEACHING,
    assert_same,
    even_ioi,
    ragged_ioi,
    raw_module,
    silenced,
    teaching,
)

HEADS = [(0, 1), (1, 2), (2, 0)]


def losses(name: str, task: Task) -> list[np.ndarray]:
    """Each example's loss at every position with the heads silenced, a prompt at a time."""
    model, found = teaching(name), []
    module = raw_module(model)
    for row in task.clean_tokens.rows:
        handles = []
        for layer, head in HEADS:
            block = getattr(module, "transformer", None)
            part = (
                block.h[layer].attn.c_proj if block else module.model.layers[layer].self_attn.o_proj
            )
            handles.append(
                part.register_forward_pre_hook(
                    lambda _, args, head=head: silenced(args[0], head, model.n_heads)
                )
            )
        with torch.no_grad():
            logits = module(torch.tensor([row])).logits[0]
        for handle in handles:
            handle.remove()
        lost = torch.nn.functional.cross_entropy(
            logits[:-1], torch.tensor(row[1:]), reduction="none"
        )
        found.append(lost.numpy())
    return found


@pytest.mark.parametrize("name", TEACHING)
def test_the_loss_at_every_position_is_what_hooks_give(name: str) -> None:
    model = teaching(name)
    for task in (even_ioi(model), ragged_ioi(model)):
        scores = nnattr.ablate_together(model, task, Loss(per_position=True), HEADS)
        assert scores.raw.dims == ("example", "pos")
        assert scores.by_position is not None
        ablated = scores.by_position.sel(run="clean") + scores.raw
        for i, expected in enumerate(losses(name, task)):
            own = ablated[i].dropna("pos")
            assert_same(own, expected)
            first = int(scores.raw["pos"][0])
            n = len(expected)
            labels = range(n) if first == 0 else range(-n - 1, -1)
            assert own["pos"].to_numpy().tolist() == list(labels)
        whole = nnattr.ablate_together(model, task, Loss(), HEADS)
        assert_same(scores.raw.mean("pos"), whole.raw)
        assert_same(scores.baselines, whole.baselines)


def test_the_second_copy_needs_the_induction_circuit(tmp_path: Path) -> None:
    """The loss by position with heads ablated, as ARENA's notebook draws it."""
    model = teaching("teaching-gpt2")
    task = nnattr.tasks.repeated_tokens(model.tokenizer, n=8, seed=1, length=10)
    metric = Loss(per_position=True)
    scores = nnattr.ablate_together(
        model, task, metric, [(0, 0), (1, 0), (1, 1)], replacement="mean"
    )
    change = scores.mean().raw
    assert change.sel(pos=slice(11, 18)).min() > change.sel(pos=slice(0, 8)).max()
    figure: Any = scores.plot()
    assert len(figure.data[0].x) == len(change)
    loaded: Any = nnattr.load_result(scores.save(tmp_path / "loss.safetensors"))
    assert loaded.by_position.equals(scores.by_position)
    some = scores.sel(pos=[12, 13], example=[0])
    assert some.by_position is not None
    assert some.by_position.sizes == {"run": 1, "example": 1, "pos": 2}
    last = nnattr.ablate_together(model, task, Loss(last=4, per_position=True), [(0, 0)])
    assert last.raw.notnull().sum("pos").to_numpy().tolist() == [4] * 8
    assert repr(Loss(last=4, per_position=True)) == "Loss(last=4, per_position=True)"


def entropy(logits: Any, batch: Any) -> Any:
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def test_a_metric_of_ones_own_and_patching_together() -> None:
    def own(logits: Any, batch: Any) -> Any:
        return entropy(logits, batch)

    own.per_position = True  # type: ignore[attr-defined]
    found = []
    for backend in ("local", "simulated", Simulated(max_job_bytes=1)):
        model = nnattr.load("teaching-llama", backend=backend)
        task = even_ioi(model)
        found.append(
            nnattr.activation_patching(
                model, task, own, cells=HEADS, together=True, normalized=False
            )
        )
    length = len(task.clean_tokens.strings[0])
    assert found[0].raw.shape == (3, length)
    assert found[0].raw.notnull().all()
    assert_same(found[1].raw, found[0].raw, 1e-6)
    assert_same(found[2].raw, found[0].raw, 1e-6)
    first = (task.clean_tokens.ids != task.corrupted_tokens.ids).int().argmax(1)
    for i, at in enumerate(first.tolist()):
        assert (abs(found[0].raw[i, :at]) < 1e-4).all()
        runs = found[0].by_position.sel(example=i)  # type: ignore[union-attr]
        assert abs(runs.sel(run="clean") - runs.sel(run="corrupted"))[:at].max() < 1e-4


def test_it_is_refused_where_there_is_one_number_for_a_cell() -> None:
    model = teaching("teaching-gpt2")
    task, metric = even_ioi(model), Loss(per_position=True)
    for method in (nnattr.ablate, nnattr.activation_patching, nnattr.attribution_patching):
        with pytest.raises(MetricError, match="a number for every position"):
            method(model, task, metric)  # type: ignore[operator]
    with pytest.raises(MetricError, match="expected True or False"):
        Loss(per_position=1)  # type: ignore[arg-type]

    def wrong(logits: Any, batch: Any) -> Any:
        return logits[:, -1, 0]

    wrong.per_position = True  # type: ignore[attr-defined]
    with pytest.raises(MetricError, match=r"at each of \d+ positions"):
        nnattr.ablate_together(model, task, wrong, HEADS)
