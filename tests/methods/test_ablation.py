"""Ablation against forward passes with hooks, one cell at a time; and what sets of heads do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import nnattr
from nnattr import LogitDiff, Loss, Model, Task
from nnattr.errors import ArchError, ArgumentError, TaskError
from nnattr.jobs.plain import restored
from tests.methods.common import (
    TEACHING,
    assert_same,
    even_ioi,
    pairs,
    ragged_ioi,
    ragged_tiny,
    raw_module,
    silenced,
    teaching,
    tiny,
    units,
)
from tests.oracles.patching import activations, logits_of, patch_one

KINDS = ("zero", "mean", "mean_positional", "resample")


def blanks(model: Model, task: Task, site: str, method: str) -> list[list[Tensor]]:
    """For each example what each layer's site becomes [pos, width], from single prompts."""
    seen = [
        activations(raw_module(model), pair.base, site) for pair in pairs(model, task, "noising")
    ]
    found = []
    for own in seen:
        row = []
        for layer, value in enumerate(own):
            if method == "zero":
                row.append(torch.zeros_like(value))
            elif method == "mean":
                every = torch.cat([prompt[layer] for prompt in seen])
                row.append(every.mean(0).expand_as(value))
            else:
                row.append(torch.stack([prompt[layer] for prompt in seen]).mean(0))
        found.append(row)
    return found


def by_hooks(model: Model, task: Task, site: str, method: str) -> np.ndarray:
    """The change of the metric [example, layer, unit], one forward pass for each."""
    module, parts = raw_module(model), units(model, site)
    rows = []
    for pair, blank in zip(
        pairs(model, task, "noising"), blanks(model, task, site, method), strict=True
    ):
        everywhere = range(pair.base.shape[1])
        with torch.no_grad():
            before = pair.measure(module)
            rows.append(
                [
                    [
                        patch_one(module, pair, site, layer, unit, parts, everywhere, blank)
                        - before
                        for unit in range(parts)
                    ]
                    for layer in range(model.n_layers)
                ]
            )
    return np.array(rows, dtype=float)


@pytest.mark.parametrize("method", ["zero", "mean", "mean_positional"])
@pytest.mark.parametrize("site", ["z", "mlp_out", "resid_post"])
@pytest.mark.parametrize("name", TEACHING)
def test_each_cell_is_what_hooks_give(name: str, site: Any, method: Any) -> None:
    model = teaching(name)
    task = even_ioi(model) if method == "mean_positional" else ragged_ioi(model)
    scores = nnattr.ablate(model, task, LogitDiff(), site=site, replacement=method)
    assert_same(scores.raw, by_hooks(model, task, site, method))
    assert scores.provenance.arguments["engine"] == "suffix"


@pytest.mark.parametrize("family", ["gemma2", "falcon", "opt", "mixtral", "gptj"])
def test_other_families(family: str) -> None:
    model = tiny(family)
    task = ragged_tiny(model)
    scores = nnattr.ablate(model, task, LogitDiff(), replacement="mean")
    assert_same(scores.raw, by_hooks(model, task, "z", "mean"))


@pytest.mark.parametrize("method", KINDS)
def test_full_passes_and_a_serialised_job_give_the_same(method: Any) -> None:
    task = even_ioi(teaching("teaching-llama"), 4)
    calls = {"local": "suffix", "simulated": "suffix", "full": "full"}
    found = {
        key: nnattr.ablate(
            teaching("teaching-llama", "simulated" if key == "simulated" else "local"),
            task,
            LogitDiff(),
            replacement=method,
            engine=engine,  # type: ignore[arg-type]
        )
        for key, engine in calls.items()
    }
    assert_same(found["simulated"].raw, found["local"].raw, 1e-6)
    assert_same(found["full"].raw, found["local"].raw)


@pytest.mark.parametrize("site", ["q", "k", "v", "neuron"])
@pytest.mark.parametrize("name", TEACHING)
def test_inside_attention_and_mlp(name: str, site: Any) -> None:
    """By the engine and by full passes; without a value head there is no z of its queries."""
    model = teaching(name)
    task = even_ioi(model)
    scores = nnattr.ablate(model, task, LogitDiff(), site=site, replacement="mean")
    full = nnattr.ablate(model, task, LogitDiff(), site=site, replacement="mean", engine="full")
    assert_same(scores.raw, full.raw, 3e-5)  # of logit differences of about 10
    alone = nnattr.ablate_together(
        model, task, LogitDiff(), [(1, 1)], site=site, replacement="mean"
    )
    assert_same(alone.raw, scores.raw[:, 1, 1])
    if site == "v":
        group = model.n_heads // model.n_kv_heads
        heads = [(1, group + i) for i in range(group)]
        silent = nnattr.ablate_together(model, task, LogitDiff(), heads)
        assert_same(
            nnattr.ablate(model, task, LogitDiff(), site="v").raw[:, 1, 1], silent.raw, 1e-5
        )


def test_resampling_is_patching_from_another_prompt() -> None:
    model = teaching("teaching-gpt2")
    task = even_ioi(model, 1)
    other = even_ioi(model, 2)[[1]]
    pair = Task.from_pairs(
        task.clean, other.clean, task.answers, task.wrong_answers, tokenizer=model.tokenizer
    )
    ablated = nnattr.ablate(model, task, LogitDiff(), replacement="resample", dataset=other)
    patching = nnattr.activation_patching(
        model, pair, LogitDiff(), direction="noising", normalized=False
    )
    assert_same(ablated.raw, patching.raw, 1e-6)


def test_resampling_is_seeded() -> None:
    model = teaching("teaching-gpt2")
    task = even_ioi(model, 6)
    one, same, other = (
        nnattr.ablate(model, task, LogitDiff(), replacement="resample", seed=seed)
        for seed in (0, 0, 1)
    )
    assert one.raw.equals(same.raw)
    assert not one.raw.equals(other.raw)


def test_a_dataset_decides_the_mean() -> None:
    model = teaching("teaching-llama")
    task = even_ioi(model)
    facts = nnattr.tasks.facts(model.tokenizer, n=4, seed=0)
    own = nnattr.ablate(model, task, LogitDiff(), replacement="mean")
    as_task = nnattr.ablate(model, task, LogitDiff(), replacement="mean", dataset=task)
    others = nnattr.ablate(model, task, LogitDiff(), replacement="mean", dataset=facts)
    assert own.raw.equals(as_task.raw)
    assert not np.allclose(own.raw, others.raw, atol=1e-3)
    assert restored(others.provenance.arguments["dataset"]).hash == facts.hash


@pytest.mark.parametrize("method", KINDS)
def test_a_set_of_one_is_a_cell(method: Any) -> None:
    model = teaching("teaching-llama")
    task = even_ioi(model)
    scores = nnattr.ablate(model, task, LogitDiff(), replacement=method)
    alone = nnattr.ablate_together(model, task, LogitDiff(), [(1, 2)], replacement=method)
    assert alone.raw.dims == ("example",)
    assert_same(alone.raw, scores.raw.sel(layer=1, head=2))


def test_keeping_everything_changes_nothing_and_keeping_nothing_is_losing_all() -> None:
    model = teaching("teaching-gpt2")
    task = ragged_ioi(model)
    every = [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    kept = nnattr.ablate_together(model, task, LogitDiff(), every, keep=True, replacement="mean")
    assert (kept.raw == 0).all()
    lost = nnattr.ablate_together(model, task, LogitDiff(), every)
    none = nnattr.ablate_together(model, task, LogitDiff(), [], keep=True)
    assert_same(lost.raw, none.raw, 0)
    assert float(lost.raw.mean()) < -0.5 * float(lost.baselines.mean())


def test_a_set_is_what_hooks_give() -> None:
    """Three heads silenced by hand: later ones see what the earlier ones no longer say."""
    model = teaching("teaching-llama")
    task = even_ioi(model)
    heads = [(0, 1), (1, 2), (2, 0)]
    ours = nnattr.ablate_together(model, task, LogitDiff(), heads)
    module = raw_module(model)
    expected = []
    for pair in pairs(model, task, "noising"):
        handles = [
            layer.self_attn.o_proj.register_forward_pre_hook(
                lambda _, args, head=head: silenced(args[0], head, model.n_heads)
            )
            for index, head in heads
            for layer in [module.model.layers[index]]
        ]
        ablated = pair.metric(logits_of(module, pair.base), pair.base[0])
        for handle in handles:
            handle.remove()
        expected.append(float(ablated - pair.measure(module)))
    assert_same(ours.raw, np.array(expected))


@pytest.mark.parametrize("method", ["zero", "mean"])
def test_position_embeddings(method: Any) -> None:
    model = teaching("teaching-gpt2")
    task = ragged_ioi(model)
    ours = nnattr.ablate_together(model, task, LogitDiff(), "pos_embed", replacement=method)
    module = raw_module(model)
    expected = []
    for pair in pairs(model, task, "noising"):

        def blank(_: Any, __: Any, out: Tensor) -> Tensor:
            return torch.zeros_like(out) if method == "zero" else out.mean(1, True).expand_as(out)

        handle = module.transformer.wpe.register_forward_hook(blank)
        ablated = pair.metric(logits_of(module, pair.base), pair.base[0])
        handle.remove()
        expected.append(float(ablated - pair.measure(module)))
    assert_same(ours.raw, np.array(expected), 1e-4)


def repeats(model: Model, length: int = 12) -> tuple[Task, Loss]:
    """Random words twice, and the loss where the second copy can be known from the first."""
    task = nnattr.tasks.repeated_tokens(model.tokenizer, n=24, seed=1, length=length)
    return task, Loss(last=length - 2)


@pytest.mark.parametrize("name", TEACHING)
def test_the_induction_circuit_of_the_notebook(name: str) -> None:
    """The heads that hurt the repetition most are its induction heads, and they are enough."""
    model = teaching(name)
    task, metric = repeats(model)
    scores = nnattr.ablate(model, task, metric)
    strongest = scores.top(4, by="value").indices
    assert {(0, 0), (1, 0)} <= set(strongest)  # the previous-token head and an induction head
    circuit = [(int(layer), int(head)) for layer, head in {(0, 0), (1, 1), *strongest}]
    lost = nnattr.ablate_together(model, task, metric, circuit, replacement="mean").raw.mean()
    kept = nnattr.ablate_together(
        model, task, metric, circuit, keep=True, replacement="mean"
    ).raw.mean()
    assert lost > 5  # nats: without the circuit the repetition is as good as unknown
    assert kept < 0.2 * lost


def test_scores_save_load_and_plot(tmp_path: Any) -> None:
    model = teaching("teaching-gpt2")
    scores = nnattr.ablate(
        model, even_ioi(model), LogitDiff(), replacement="mean", positions="each"
    )
    loaded = nnattr.Scores.load(scores.save(tmp_path / "ablation.safetensors"))
    assert loaded.raw.equals(scores.raw)
    assert loaded.baselines["run"].to_numpy().tolist() == ["clean"]
    assert "blation" in scores.mean().sel(layer=[0]).plot().layout.title.text  # type: ignore[union-attr]


def test_a_checkpoint_is_taken_up_and_not_mixed_up(tmp_path: Any) -> None:
    model = teaching("teaching-gpt2")
    task = even_ioi(model)
    for method in ("zero", "mean"):
        first = nnattr.ablate(model, task, LogitDiff(), replacement=method, checkpoint=tmp_path)
        again = nnattr.ablate(model, task, LogitDiff(), replacement=method, checkpoint=tmp_path)
        plain = nnattr.ablate(model, task, LogitDiff(), replacement=method)
        assert first.raw.equals(again.raw)
        assert_same(first.raw, plain.raw, 1e-6)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"site": "pattern"}, ArgumentError, "expected 'q' or 'k' or 'v' or 'z'"),
        ({"replacement": "median"}, ArgumentError, "expected 'zero' or 'mean'"),
        ({"replacement": "mean_positional"}, TaskError, "position by position"),
        ({"replacement": "mean", "dataset": []}, TaskError, "expected a prompt or a list"),
        ({"replacement": "resample", "dataset": "Then"}, TaskError, "no other prompt of"),
    ],
)
def test_bad_input_is_named(call: dict[str, Any], error: Any, message: str) -> None:
    model = teaching("teaching-gpt2")
    with pytest.raises(error, match=message):
        nnattr.ablate(model, ragged_ioi(model), LogitDiff(), **call)


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ([], TaskError, "name at least one"),
        ([3], TaskError, "expected .layer, head. tuples"),
        ([(9, 0)], ArchError, "has no part"),
        ("positions", ArchError, "is not a part of a model"),
    ],
)
def test_parts_that_are_not_there(parts: Any, error: Any, message: str) -> None:
    model = teaching("teaching-gpt2")
    with pytest.raises(error, match=message):
        nnattr.ablate_together(model, even_ioi(model), LogitDiff(), parts)


def test_rotary_models_have_no_position_embeddings() -> None:
    model = teaching("teaching-llama")
    with pytest.raises(ArchError, match="no learned position embeddings"):
        nnattr.ablate_together(model, even_ioi(model), LogitDiff(), "pos_embed")
