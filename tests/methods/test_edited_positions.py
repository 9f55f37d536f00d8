"""Edits at chosen positions, and of single prompts: what plain hooks on the raw module give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import nnattr
from nnattr import LogitDiff, Model, Task, edit
from nnattr.errors import ArchError, TaskError
from tests.oracles.patching import (
    activations,
    estimate_every_cell,
    logits_of,
    passed_through,
    patch_every_cell,
)
from tests.support.edits import pairs_of, unequal, vector
from tests.support.engine import compared, pair, task
from tests.support.families import families
from tests.tiny import tiny_model

HEAD, LAYER, NEW = (1, 0), 1, 5
#: A site, a layer, and what its activation [pos, width] becomes, given the positions of these.
Step = tuple[str, int, Callable[[Tensor, list[int]], Tensor]]


@dataclass
class Hooks:
    """Some steps by hooks; ``first`` is the position at which the pass at hand begins."""

    steps: list[Step]
    first: int = field(default=0)

    @contextmanager
    def on(self, module: Any) -> Iterator[None]:
        with ExitStack() as hooks:
            for site, layer, change in self.steps:

                def at_positions(own: Tensor, change: Any = change) -> Tensor:
                    return change(own.clone(), list(range(self.first, self.first + len(own))))

                hooks.enter_context(passed_through(module, site, layer, at_positions))
            yield


@dataclass(frozen=True)
class Case:
    """Edits, and the same by hooks for one example of a task."""

    edits: Callable[[Model, Task], list[Any]]
    steps: Callable[[Model, Task, int], list[Step]]


def added(model: Model, positions: Callable[[int], list[int]]) -> Callable[[Task, int], Step]:
    """The vector at some positions, given the length of the prompt."""

    def step(question: Task, i: int) -> Step:
        chosen = positions(len(question.clean_tokens.rows[i]))

        def change(own: Tensor, where: list[int]) -> Tensor:
            for at, position in enumerate(where):
                if position in chosen:
                    own[at] += vector(own.shape[-1])
            return own

        return "resid_pre", LAYER, change

    return step


def put(model: Model, head: tuple[int, int], values: Tensor, chosen: list[int] | None) -> Step:
    """A head's values [pos, d_head] at positions, or at all that there are values for."""
    columns = slice(head[1] * model.d_head, (head[1] + 1) * model.d_head)

    def change(own: Tensor, where: list[int]) -> Tensor:
        for at, position in enumerate(where):
            if position in (range(len(values)) if chosen is None else chosen):
                own[at, columns] = values[position]
        return own

    return "z", head[0], change


def z_of(model: Model, row: list[int], head: tuple[int, int], before: list[Step] = ()) -> Tensor:  # type: ignore[assignment]
    """A head's z in a run of one prompt, under what is edited before [pos, d_head]."""
    with Hooks(list(before)).on(model.module):
        z = activations(model.module, torch.tensor([row]), "z")[head[0]]
    return z[:, head[1] * model.d_head : (head[1] + 1) * model.d_head]


def other_prompts(model: Model, question: Task) -> list[list[int]]:
    """One prompt of each length of the task's, none of them the task's own."""
    lengths = {len(row) for row in question.clean_tokens.rows}
    many = unequal(model, 60).clean_tokens.rows
    known = [*question.clean_tokens.rows, *question.corrupted_tokens.rows]
    found = {len(row): row for row in many if len(row) in lengths and row not in known}
    assert set(found) == lengths
    return list(found.values())


def one_length(question: Task) -> Task:
    length = len(question.clean_tokens.rows[0])
    return question[[i for i, row in enumerate(question.clean_tokens.rows) if len(row) == length]]


def steered_somewhere(model: Model, question: Task, i: int) -> list[Step]:
    return [added(model, lambda n: [2, n - 1])(question, i)]


def mean_at_last(model: Model, question: Task, i: int) -> list[Step]:
    mean = torch.cat([z_of(model, row, HEAD) for row in question.clean_tokens.rows]).mean(0)
    length = len(question.clean_tokens.rows[i])
    return [put(model, HEAD, mean.expand(length, -1), [length - 1])]


def resampled(model: Model, question: Task, i: int) -> list[Step]:
    length = len(question.clean_tokens.rows[i])
    (mate,) = (row for row in other_prompts(model, question) if len(row) == length)
    return [put(model, HEAD, z_of(model, mate, HEAD), None)]


def swapped(model: Model, question: Task, i: int) -> list[Step]:
    """A head of the corrupted run, run under the vector that is added before it."""
    before = steered_somewhere(model, question, i)
    values = z_of(model, question.corrupted_tokens.rows[i], (2, 1), before)
    return [*before, put(model, (2, 1), values, None)]


def at_span(model: Model, question: Task, i: int) -> list[Step]:
    return [added(model, lambda n: list(question.spans["S2"][i]))(question, i)]


def width(model: Model) -> int:
    return model.config.hidden_size


CASES = {
    "steer": Case(
        lambda m, t: [edit.steer(LAYER, vector(width(m)), positions=[2, -1])], steered_somewhere
    ),
    "span": Case(lambda m, t: [edit.steer(LAYER, vector(width(m)), positions="S2")], at_span),
    "mean at last": Case(
        lambda m, t: [edit.ablate(HEAD, "mean", dataset=t, positions="last")], mean_at_last
    ),
    "resample": Case(
        lambda m, t: [edit.ablate(HEAD, "resample", dataset=other_prompts(m, t))], resampled
    ),
    "replace": Case(
        lambda m, t: [
            edit.steer(LAYER, vector(width(m)), positions=(2, -1)),
            edit.replace((2, 1), task=t, direction="noising"),
        ],
        swapped,
    ),
}


@pytest.fixture(scope="module", params=["teaching-gpt2", "teaching-llama"])
def model(request: pytest.FixtureRequest) -> Model:
    return nnattr.load(request.param)


@pytest.fixture(scope="module")
def question(model: Model) -> Task:
    found = unequal(model, 4)
    assert len({len(row) for row in found.clean_tokens.rows}) > 1
    return found


@pytest.mark.parametrize("name", CASES)
def test_logits(model: Model, question: Task, name: str) -> None:
    case = CASES[name]
    edited = nnattr.edited(model, case.edits(model, question))
    found = edited.predict(question.clean_tokens, top_k=5, task=question)
    plain = model.predict(question.clean_tokens, top_k=5)
    assert (found.logits - plain.logits).abs().max() > 0.01
    for i, row in enumerate(question.clean_tokens.rows):
        with Hooks(case.steps(model, question, i)).on(model.module), torch.no_grad():
            logits = logits_of(model.module, torch.tensor([row]))[-1]
        assert torch.allclose(found.logits[i, 0], logits[found.ids[i, 0]], atol=1e-4)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("cached", [True, False])
def test_generation_token_by_token(
    model: Model, question: Task, name: str, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    edited = nnattr.edited(model, case.edits(model, question))
    if not cached:
        monkeypatch.setattr(Model, "accepts", lambda self, argument: False)
    texts = nnattr.generate(edited, question, max_new_tokens=NEW)
    by_hand = [
        by_hooks(model, question, i, Hooks(case.steps(model, question, i)), cached)
        for i in range(len(question))
    ]
    assert texts == by_hand


def by_hooks(model: Model, question: Task, i: int, hooks: Hooks, cached: bool) -> str:
    """One continuation, a token at a time."""
    row, module = question.clean_tokens.rows[i], model.module
    ids, cache, hooks.first = torch.tensor([row]), None, 0
    with hooks.on(module), torch.no_grad():
        for _ in range(NEW):
            hooks.first = 0 if cache is None else ids.shape[1] - 1
            given = ids[:, hooks.first :]
            output = module(given, past_key_values=cache, use_cache=cached)
            cache = output.past_key_values if cached else None
            best = output.logits[0, -1].argmax()
            ids = torch.cat([ids, best[None, None]], 1)
            if best == model.tokenizer.eos_token_id:
                break
    return model.tokenizer.decode(ids[0, len(row) :], skip_special_tokens=True)


def test_new_tokens_have_the_positions_after_the_prompt(model: Model) -> None:
    question = one_length(nnattr.tasks.ioi(model.tokenizer, n=4, seed=0))
    length = len(question.clean_tokens.rows[0])
    strong = 20 * vector(width(model))
    new = nnattr.edited(model, edit.steer(LAYER, strong, positions=[length, length + 1]))
    every = nnattr.edited(model, edit.steer(LAYER, strong))
    prompt = nnattr.edited(model, edit.steer(LAYER, strong, positions=range(length)))
    texts = [
        nnattr.generate(one, question, max_new_tokens=NEW) for one in (model, new, every, prompt)
    ]
    assert len({tuple(some) for some in texts}) == 4
    hooks = Hooks([])
    for i, text in enumerate(texts[1]):
        doubled = [added(model, lambda n: [n, n + 1])(question, i)] * 20
        hooks.steps = doubled
        assert by_hooks(model, question, i, hooks, True) == text
    with pytest.raises(TaskError, match="outside the prompt"):
        nnattr.activation_patching(new, question, LogitDiff())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("engine", ["suffix", "full"])
def test_exact_patching(model: Model, question: Task, name: str, engine: Any) -> None:
    case = CASES[name]
    edited = nnattr.edited(model, case.edits(model, question))
    scores = nnattr.activation_patching(
        edited, question, LogitDiff(), normalized=False, engine=engine
    )
    assert scores.provenance.arguments["engine"] == engine
    for i, one in enumerate(pairs_of(question)):
        every = [range(one.base.shape[1])]
        with Hooks(case.steps(model, question, i)).on(model.module):
            expected = patch_every_cell(model.module, one, "z", model.n_heads, every)[..., 0]
        found = torch.from_numpy(scores.values[i].to_numpy())
        assert torch.allclose(found.double(), expected.double(), atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_attribution(model: Model, question: Task, name: str) -> None:
    case = CASES[name]
    edited = nnattr.edited(model, case.edits(model, question))
    scores = nnattr.attribution_patching(edited, question, LogitDiff(), normalized=False)
    for i, one in enumerate(pairs_of(question)):
        every = [range(one.base.shape[1])]
        with Hooks(case.steps(model, question, i)).on(model.module):
            expected = estimate_every_cell(model.module, one, "z", model.n_heads, every)[..., 0]
        found = torch.from_numpy(scores.values[i].to_numpy())
        assert torch.allclose(found.double(), expected.double(), atol=1e-4)


def test_means_by_position(model: Model, question: Task) -> None:
    same = one_length(nnattr.tasks.ioi(model.tokenizer, n=8, seed=0))
    edited = nnattr.edited(model, edit.ablate(HEAD, "mean_positional", dataset=same))
    mean = torch.stack([z_of(model, row, HEAD) for row in same.clean_tokens.rows]).mean(0)
    z = nnattr.capture(edited, same, "z", layers=HEAD[0], heads=HEAD[1]).data["z"]
    assert torch.allclose(torch.from_numpy(z[0].to_numpy()).squeeze(), mean, atol=1e-5)
    assert float(abs(z - z[0]).max()) == 0
    alone = nnattr.ablate_together(
        model, same, LogitDiff(), [HEAD], replacement="mean_positional", dataset=same
    )
    runs, plain = (
        nnattr.attribution_patching(one, same, LogitDiff()).baselines.sel(run="clean")
        for one in (edited, model)
    )
    assert float(abs((runs - plain) - alone.values).max()) < 1e-4
    with pytest.raises(TaskError, match="mean_positional"):
        nnattr.edited(model, edit.ablate(HEAD, "mean_positional", dataset=question))
    with pytest.raises(TaskError, match="same length"):
        nnattr.logit_lens(edited, question)


@pytest.mark.parametrize("family", families())
def test_the_engine_on_every_family(family: str) -> None:
    model = tiny_model(family)
    question = task(model, pair(9, 4), pair(6, 3, shift=5))
    mates = task(model, pair(9, 2, shift=3), pair(6, 1, shift=9))
    some = vector(model.config.hidden_size)
    edits = {
        "parts": [
            edit.ablate([(0, 1), (1, 0)], "mean", dataset=question, positions=[1, -1]),
            edit.replace((0, 0), task=question, direction="noising", positions=[-3, -2]),
        ],
        "stream": [
            edit.steer(1, some, positions=[3, -1]),
            edit.ablate((1, 1), "resample", dataset=mates),
        ],
    }
    for made in edits.values():
        edited = nnattr.edited(model, made)
        for site, positions in product(("z", "resid_pre", "mlp_out", "attn_out"), ("all", "each")):
            assert compared(edited, question, site=site, positions=positions) == "suffix"


def test_every_method(model: Model, question: Task) -> None:
    """What each reads is what hooks leave; here and where a server would be."""
    swap = edit.replace(HEAD, task=question, direction="noising")
    here = nnattr.edited(model, [swap, edit.steer(LAYER, vector(width(model)), positions="last")])
    there = nnattr.edited(
        nnattr.load(model.name, backend="simulated"),
        [swap, edit.steer(LAYER, vector(width(model)), positions="last")],
    )
    z = nnattr.capture(here, question, "z", layers=HEAD[0], heads=HEAD[1]).data["z"]
    other = nnattr.capture(
        model, question, "z", layers=HEAD[0], heads=HEAD[1], run="corrupted"
    ).data["z"]
    own = nnattr.capture(model, question, "z", layers=HEAD[0], heads=HEAD[1]).data["z"]
    assert float(abs(z - other).max()) < 1e-5 < float(abs(own - other).max())
    assert nnattr.generate(here, question, max_new_tokens=3) == nnattr.generate(
        there, question, max_new_tokens=3
    )
    for method in (nnattr.logit_lens, nnattr.next_token_attribution, nnattr.copying_score):
        one, two = (method(some, question) for some in (here, there))
        assert one.provenance.edits == two.provenance.edits
        assert str(one) != str(method(model, question))
    patterns = nnattr.attention_patterns(here, question, [(2, 0)])
    assert patterns.provenance.edits
    assert str(nnattr.compare_runs(here, question, question)) is not None
    with pytest.raises(TaskError, match="4 of these, and 1 examples"):
        nnattr.inspect_prompt(here, question.clean[0])
    with pytest.raises(TaskError, match="4 of these, and 2 examples"):
        nnattr.detect_heads(here, n=2, length=5)
    last = nnattr.edited(model, edit.steer(LAYER, vector(width(model)), positions="last"))
    prompt, answer = question.clean[0], question.answers[0][0]
    told = nnattr.inspect_prompt(last, prompt, answer).data.isel(step=0, rank=0)
    length = len(question.clean_tokens.rows[0])
    with Hooks([added(model, lambda n: [n - 1])(question, 0)]).on(model.module), torch.no_grad():
        logits = logits_of(model.module, question.clean_tokens.ids[:1, -length:])[-1]
    assert abs(float(told.logit) - float(logits.max())) < 1e-4
    assert nnattr.detect_heads(last, n=2, length=5).provenance.edits


def test_direct_attribution_has_the_vector_as_a_component(model: Model, question: Task) -> None:
    for layer, site, positions in [
        (2, "resid_pre", "last"),
        (0, "resid_pre", "all"),
        (1, "resid_mid", [1, -1]),
    ]:
        edited = nnattr.edited(
            model, edit.steer(layer, vector(width(model)), site=site, positions=positions)
        )
        name = f"L{layer} steer"
        for unit in ("component", "head"):
            direct = nnattr.direct_logit_attribution(edited, question, unit=unit)
            values = [direct.raw, *([] if direct.rest is None else [direct.rest])]
            whole = sum(one.sum([dim for dim in one.dims if dim != "example"]) for one in values)
            assert float(abs(whole - direct.baselines.sel(run="clean")).max()) < 1e-3
            assert float(abs(values[-1].sel(component=name)).max()) > 1e-3
    elsewhere = nnattr.edited(model, edit.steer(2, vector(width(model)), positions=[1]))
    direct = nnattr.direct_logit_attribution(elsewhere, question)
    assert float(abs(direct.raw.sel(component="L2 steer")).max()) == 0
    every = nnattr.next_token_attribution(elsewhere, question)
    assert every.rest is not None
    shares = every.rest.sel(component="L2 steer")
    assert int((abs(shares).fillna(0) > 1e-6).sum()) == len(question)
    parts = nnattr.decompose_attention(elsewhere, question, (2, 0))
    lengths = parts.data["query"].sel(component="L2 steer")
    assert int((lengths.fillna(0) > 0).sum()) == len(question)
    replaced = nnattr.edited(model, edit.ablate("L1 pre"))
    with pytest.raises(ArchError, match="not the sum of what its parts write"):
        nnattr.direct_logit_attribution(replaced, question)


def test_what_does_not_fit_is_refused(model: Model, question: Task) -> None:
    metric = LogitDiff()
    swap = nnattr.edited(model, edit.replace(HEAD, task=question))
    with pytest.raises(TaskError, match="4 of these, and 2 examples"):
        nnattr.activation_patching(swap, question[[0, 1]], metric)
    with pytest.raises(TaskError, match="same length"):
        nnattr.activation_patching(swap, question[[1, 0, 3, 2]], metric)
    refused = {
        "no other prompt": edit.ablate(HEAD, "resample", dataset=list(question.clean[:1])),
        "no positions named 'verb'": edit.ablate(HEAD, positions="verb"),
        "outside the prompt": edit.ablate(HEAD, positions=400),
    }
    for words, one in refused.items():
        with pytest.raises(TaskError, match=words):
            nnattr.activation_patching(nnattr.edited(model, one), question[[0]], metric)
    far = nnattr.edited(model, edit.ablate(HEAD, positions=22))
    with pytest.raises(TaskError, match="With up to 5 tokens behind it"):
        nnattr.generate(far, question.clean[1], max_new_tokens=5)
    with pytest.raises(TaskError, match="'each'"):
        edit.ablate(HEAD, positions="each")
    with pytest.raises(TaskError, match="No positions"):
        edit.steer(0, torch.ones(3), positions=[])
    with pytest.raises(TaskError, match="a zero needs none"):
        edit.ablate(HEAD, "zero", dataset=question)
    only = nnattr.Task.from_prompts(question.clean, tokenizer=model.tokenizer)
    with pytest.raises(TaskError, match="corrupted"):
        edit.replace(HEAD, task=only, direction="noising")
    last = nnattr.edited(model, edit.ablate(HEAD, positions="last"))
    with pytest.raises(ArchError, match="without that edit"):
        nnattr.weights.head(last, (1, 0))


def test_draws_are_another_prompt_and_the_same_for_both_runs(model: Model) -> None:
    same = one_length(nnattr.tasks.ioi(model.tokenizer, n=12, seed=0))
    drawn = {}
    for seed in (0, 1):
        edited = nnattr.edited(model, edit.ablate(HEAD, "resample", dataset=same, seed=seed))
        sides = (same.clean_tokens, same.corrupted_tokens)
        clean, corrupted = (edited.batch(side, same)["marks"]["source"][0] for side in sides)
        assert clean.tolist() == corrupted.tolist()
        for i, mate in enumerate(clean.tolist()):
            assert same.clean_tokens.rows[mate] != same.clean_tokens.rows[i]
        drawn[seed] = clean.tolist()
    assert drawn[0] != drawn[1]
    scores = nnattr.activation_patching(edited, same, LogitDiff())
    assert float(abs(scores.values.sel(layer=HEAD[0], head=HEAD[1])).max()) == 0


def test_what_edits_say(model: Model, question: Task) -> None:
    v = vector(width(model))
    made = [
        edit.steer(1, v),
        edit.steer(1, -v),
        edit.steer(1, v, positions=[2, -1]),
        edit.ablate(HEAD, "mean", dataset=question),
        edit.ablate(HEAD, "mean", dataset=list(question.corrupted)),
        edit.ablate(HEAD, "mean", dataset=question, positions="last"),
        edit.ablate(HEAD, "resample", dataset=question, seed=3),
        edit.replace(HEAD, task=question),
        edit.replace(HEAD, task=question, direction="noising"),
    ]
    said = [nnattr.edited(model, one).edits[0].said for one in made]
    assert len(set(said)) == len(made)
    assert said[2].endswith("at positions 2, -1")
    assert question.hash[:8] in said[3]
    assert "L1H0 as in the corrupted run of 4 prompts of pairs" in said[8]
