"""Limits split an analysis by layers; finished parts are kept, found again and never mixed up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import nnattr
from nnattr import LogitDiff, LogProb, Model, Scores, Simulated, Task
from nnattr.backend import JobFunction, Local, Outcome
from nnattr.engine import memory
from nnattr.errors import BackendError, MetricError, ResultError, TooLargeError
from nnattr.jobs import checkpoint
from nnattr.runs import portions
from tests.backend.common import KEY, patch, returning, values
from tests.backend.scripted import Script, serving
from tests.methods.common import assert_same
from tests.tiny import tiny_module, tiny_tokenizer

ROOT = Path(__file__).parents[2]
LAYERS = 6


class InterruptedRunError(Exception):
    """The process was stopped."""


@dataclass
class Watched:
    """A backend that records the layers of each job, and fails where it is told to."""

    inner: Any = field(default_factory=Local)
    stop_after: int | None = None
    most_layers: int = LAYERS
    seconds: float | None = None
    jobs: list[list[int]] = field(default_factory=list)
    cells: set[tuple[int, ...]] = field(default_factory=set)

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def holds_weights(self) -> bool:
        return self.inner.holds_weights

    @property
    def in_process(self) -> bool:
        return self.inner.in_process

    @property
    def max_job_seconds(self) -> float | None:
        return self.inner.max_job_seconds

    @property
    def max_job_bytes(self) -> int | None:
        return self.inner.max_job_bytes

    def run(self, nn: Any, job: JobFunction, payload: Mapping[str, Any], *, label: str) -> Outcome:
        if len(self.jobs) == self.stop_after:
            raise InterruptedRunError
        self.jobs.append(list(payload["layers"]))
        self.cells.add((payload["units"], *payload["spots"].shape))
        if len(payload["layers"]) > self.most_layers:
            raise TooLargeError("CUDA out of memory")
        outcome = self.inner.run(nn, job, payload, label=label)
        seconds = outcome.cost.seconds if self.seconds is None else self.seconds
        return Outcome(outcome.values, replace(outcome.cost, seconds=seconds))


def layers_of(watched: Watched) -> list[int]:
    """The layers of all its jobs, in the order in which they were asked for."""
    return [layer for layers in watched.jobs for layer in layers]


@cache
def module(seed: int = 0) -> Any:
    return tiny_module("llama", seed=seed, num_hidden_layers=LAYERS)


def model(backend: Any = None, seed: int = 0) -> Model:
    return nnattr.load(module(seed), tokenizer=tiny_tokenizer(), backend=backend or Watched())


def task(last: str = "w6") -> Task:
    return Task.from_pairs(
        ["w3 w4 w5 w6", f"w7 w8 w9 {last}"],
        ["w3 w9 w5 w6", f"w7 w3 w9 {last}"],
        ["w70", "w71"],
        ["w80", "w81"],
        tokenizer=tiny_tokenizer(),
    )


def exact(backend: Any, seed: int = 0, checkpoint: Path | None = None, **options: Any) -> Scores:
    given = {"task": task(), "metric": LogitDiff(), "positions": "each", **options}
    return nnattr.activation_patching(model(backend, seed), checkpoint=checkpoint, **given)


def per_layer() -> int:
    """Bytes of the scores of a layer: examples x heads x positions."""
    return exact(None).raw.nbytes // LAYERS


@pytest.mark.parametrize(("share", "jobs"), [(0.1, 6), (1, 6), (2.5, 3), (4, 2), (6, 1), (99, 1)])
def test_a_limit_on_bytes_splits_by_layers(share: float, jobs: int) -> None:
    watched = Watched(Simulated(max_job_bytes=int(share * per_layer())))
    scores = exact(watched)
    assert scores.provenance.jobs == len(watched.jobs) == jobs
    assert layers_of(watched) == list(range(LAYERS))
    assert len(watched.cells) == 1, "heads and positions are never split"
    assert_same(scores.raw, exact(None).raw, 1e-6)


@pytest.mark.parametrize(
    ("limit", "sizes"), [(0.5, [1] * 6), (1.0, [1] * 6), (2.0, [1, 2, 3]), (99.0, [1, 5])]
)
def test_a_limit_on_seconds_starts_with_a_layer_and_adapts(limit: float, sizes: list[int]) -> None:
    """As if every job took a second: the next may have so many times more layers."""
    watched = Watched(Simulated(max_job_seconds=limit), seconds=1.0)
    scores = exact(watched)
    assert [len(layers) for layers in watched.jobs] == sizes
    assert scores.provenance.jobs == len(sizes)
    assert scores.provenance.seconds == len(sizes)


def test_a_backend_that_refuses_big_jobs_gets_halves() -> None:
    watched = Watched(Simulated(), most_layers=2)
    scores = exact(watched)
    assert [len(layers) for layers in watched.jobs] == [6, 3, 1, 1, 1, 1, 1, 1]
    assert scores.provenance.jobs == 6
    assert_same(scores.raw, exact(None).raw, 1e-6)


def test_a_layer_that_is_too_large_is_an_error() -> None:
    watched = Watched(most_layers=0)
    with pytest.raises(BackendError, match="out of memory"):
        exact(watched)
    assert [len(layers) for layers in watched.jobs] == [6, 3, 1]


def needs_memory(logits: Any, batch: Any) -> Any:
    raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")


def ignores_recursion(logits: Any, batch: Any) -> Any:
    raise RecursionError("maximum recursion depth exceeded")


@pytest.mark.parametrize(("metric", "jobs"), [(needs_memory, 3), (ignores_recursion, 1)])
def test_only_a_lack_of_memory_is_tried_again_smaller(metric: Any, jobs: int) -> None:
    watched = Watched()
    with pytest.raises((BackendError, MetricError)):
        exact(watched, metric=metric)
    assert len(watched.jobs) == jobs


def test_attribution_is_one_job_whatever_the_limits() -> None:
    watched = Watched(Simulated(max_job_bytes=1, max_job_seconds=1e-9))
    nnattr.attribution_patching(model(watched), task(), LogitDiff(), positions="each")
    assert watched.jobs == [list(range(LAYERS))]


class Interrupting:
    """A metric that counts its passes, and stops the process' work after some."""

    passes = 0
    stop_after: int | None = None
    seconds = 0.0

    def __call__(self, logits: Any, batch: Any) -> Any:
        if Interrupting.passes == Interrupting.stop_after:
            raise KeyboardInterrupt
        Interrupting.passes += 1
        time.sleep(Interrupting.seconds)
        return logits[:, -1, 20] - logits[:, -1, 30]


def passes(stop_after: int | None = None, **options: Any) -> tuple[Scores | None, int]:
    """The scores, unless they are interrupted after some passes, and how many passes there were."""
    Interrupting.passes, Interrupting.stop_after = 0, stop_after
    try:
        return exact(Local(), metric=Interrupting(), **options), Interrupting.passes
    except KeyboardInterrupt:
        return None, Interrupting.passes


def small_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row or a few in a pass, so that there are many; and all that is found is kept."""
    monkeypatch.setattr(portions, "CPU_TOKENS", 8)
    monkeypatch.setattr(checkpoint, "PAUSE", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)


@pytest.mark.parametrize("engine", ["suffix", "full"])
@pytest.mark.parametrize("by_example", [False, True])
def test_an_interrupted_run_goes_on_where_it_stopped(
    engine: str, by_example: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The passes that were done are not done again, and the numbers are the same to the bit."""
    small_passes(monkeypatch)
    if by_example:
        monkeypatch.setattr(memory, "bytes_per_example", lambda *_: 1 << 60)
    unbroken, most = passes(engine=engine)
    assert unbroken is not None
    assert most > 40
    before = 14 * (len(task()) if by_example else 1)
    for stop_after in (before + 1, most // 2, most - 1):
        folder = tmp_path / str(stop_after)
        assert passes(stop_after=stop_after, engine=engine, checkpoint=folder)[0] is None
        resumed, again = passes(engine=engine, checkpoint=folder)
        assert resumed is not None
        assert resumed.raw.identical(unbroken.raw), "bitwise"
        assert resumed.baselines.identical(unbroken.baselines)
        assert again <= before + most - stop_after, "plain runs, comparison, and what was missing"
        third, none = passes(engine=engine, checkpoint=folder)
        assert none == 0
        assert third is not None
        assert third.raw.identical(unbroken.raw)
        assert third.provenance.seconds == resumed.provenance.seconds, "of both calls"


def test_a_checkpoint_adds_no_pass(tmp_path: Path) -> None:
    """As seconds go: see docs/performance.md."""
    plain, most = passes()
    kept, also = passes(checkpoint=tmp_path)
    assert also == most
    assert plain is not None
    assert kept is not None
    assert kept.raw.identical(plain.raw)


def test_a_job_that_fails_has_kept_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what was found since something was last written."""
    small_passes(monkeypatch)
    monkeypatch.setattr(checkpoint, "PAUSE", 1e9)
    most = passes()[1]
    passes(stop_after=most - 1, checkpoint=tmp_path)
    resumed, again = passes(checkpoint=tmp_path)
    assert resumed is not None
    assert again < most // 2


def test_writing_takes_a_small_share_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[float] = []

    def slowly(*_: Any) -> None:
        written.append(time.perf_counter())
        time.sleep(0.01)

    small_passes(monkeypatch)
    monkeypatch.setattr(checkpoint.storage, "write", slowly)
    monkeypatch.setattr(checkpoint, "SHARE", 0.25)
    monkeypatch.setattr(Interrupting, "seconds", 0.005)
    passes(checkpoint=tmp_path)
    gaps = np.diff(written[:-1])  # the last one is when the job is done
    assert len(gaps) > 2
    assert (gaps > 0.049).all()


def test_a_remote_analysis_keeps_its_jobs(tmp_path: Path) -> None:
    limited = Simulated(max_job_bytes=2 * per_layer())
    with pytest.raises(InterruptedRunError):
        exact(Watched(limited, stop_after=2), checkpoint=tmp_path)
    again = Watched(limited)
    scores = exact(again, checkpoint=tmp_path)
    assert layers_of(again) == [4, 5]
    assert scores.provenance.jobs == 3
    assert scores.raw.identical(exact(Watched(limited)).raw)


def slow(folder: Path) -> None:
    """For a child process: slow passes, on one thread as here, so to the same bits."""
    torch.set_num_threads(1)
    portions.CPU_TOKENS, Interrupting.seconds = 8, 0.05
    checkpoint.PAUSE, checkpoint.SHARE = 0.0, 1e9
    passes(checkpoint=folder)


def test_a_killed_process_loses_only_the_pass_it_was_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.backend.test_chunks import slow; "
        "slow(Path(sys.argv[1]))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, tmp_path / "parts"], cwd=ROOT)
    while unknown(tmp_path / "parts") > 0.3:
        assert child.poll() is None, "the child failed"
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert 0 < unknown(tmp_path / "parts") <= 0.3
    small_passes(monkeypatch)
    unbroken, most = passes()
    resumed, again = passes(checkpoint=tmp_path / "parts")
    assert resumed is not None
    assert unbroken is not None
    assert again < 0.9 * most
    assert resumed.raw.identical(unbroken.raw), "bitwise"


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/found.safetensors"))


def unknown(folder: Path) -> float:
    """The share of the cells that nobody has found yet."""
    files = kept(folder)
    return float(load_file(files[0])["change"].isnan().float().mean()) if files else 1.0


def scaled(factor: float) -> Any:
    """A metric made by a function: the source is the same, the value inside is not."""

    def metric(logits: Any, batch: Any) -> Any:
        return factor * logits[:, -1, 20]

    return metric


def zeroed() -> Any:
    """The same model with one weight changed."""
    import copy

    changed = copy.deepcopy(module())
    with torch.no_grad():
        changed.model.layers[3].mlp.down_proj.weight[5, 7] = 0
    return changed


def test_another_study_never_takes_the_parts(tmp_path: Path) -> None:
    def run(**options: Any) -> int:
        watched = Watched()
        exact(watched, checkpoint=tmp_path, **options)
        return len(watched.jobs)

    assert run() == 1
    different: list[dict[str, Any]] = [
        {"task": task("w40")},
        {"metric": LogProb()},
        {"metric": scaled(1.0)},
        {"metric": scaled(2.0)},
        {"site": "mlp_out"},
        {"positions": "all"},
        {"direction": "noising"},
        {"engine": "full"},
        {"seed": 1},
    ]
    for options in different:
        assert run(**options) == 1, options
    for options in [{}, *different]:
        assert run(**options) == 0, options
    assert run(normalized=False) == 0, "normalising comes after"
    edited = nnattr.load(zeroed(), tokenizer=tiny_tokenizer(), backend=(watched := Watched()))  # type: ignore[arg-type]
    nnattr.activation_patching(edited, task(), LogitDiff(), positions="each", checkpoint=tmp_path)
    assert len(watched.jobs) == 1, "one weight is another model"


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _garbage(path: Path) -> None:
    path.write_bytes(b"scores")


def _no_header(path: Path) -> None:
    save_file(load_file(path), path)


def _other_shape(path: Path) -> None:
    with_header(path, change=torch.zeros(2, 1, 3, 4))


def _too_many_layers(path: Path) -> None:
    with_header(path, change=load_file(path)["change"].repeat(1, 2, 1, 1))


def with_header(path: Path, **changed: torch.Tensor) -> None:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        header = file.metadata()
    save_file({**load_file(path), **changed}, path, metadata=header)


@pytest.mark.parametrize("damage", [_cut, _garbage, _no_header, _other_shape, _too_many_layers])
def test_a_damaged_part_is_refused_by_name(damage: Any, tmp_path: Path) -> None:
    exact(Watched(), checkpoint=tmp_path)
    (path,) = kept(tmp_path)
    damage(path)
    with pytest.raises(ResultError, match=path.name):
        exact(Watched(), checkpoint=tmp_path)
    path.unlink()
    watched = Watched()
    exact(watched, checkpoint=tmp_path)
    assert watched.jobs == [list(range(LAYERS))]


def test_parts_of_a_model_that_has_changed_are_not_joined(tmp_path: Path) -> None:
    """A server may come back with other weights under the same name."""
    limited = Simulated(max_job_bytes=2 * per_layer())
    with pytest.raises(InterruptedRunError):
        exact(Watched(limited, stop_after=1), checkpoint=tmp_path)
    (path,) = kept(tmp_path)
    with_header(path, base=load_file(path)["base"] + 1.0)
    with pytest.raises(ResultError, match="do not belong together"):
        exact(Watched(limited), checkpoint=tmp_path)


def test_a_metric_that_is_not_a_number_ends(tmp_path: Path) -> None:
    """What nobody has found is NaN in the file; a value that is none is not sought forever."""
    with pytest.raises(MetricError, match="nan"):
        exact(Watched(), metric=sometimes_nan, checkpoint=tmp_path)


def sometimes_nan(logits: Any, batch: Any) -> Any:
    gap = logits[:, -1, 20] - batch.clean_logits[:, 20]
    return torch.where(gap.abs() > 2 * gap.abs().mean(), gap / 0 * 0, gap)


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="is not a writable folder"):
        exact(Watched(), checkpoint=tmp_path / "file")


def test_the_key_is_in_no_file_and_no_repr(tmp_path: Path) -> None:
    with serving(Script(talk=returning(values()))) as script:
        scores = patch(script, api_key=KEY, checkpoint=tmp_path)
    scores.save(tmp_path / "scores.safetensors")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path
    shown = f"{scores!r} {scores.provenance!r} {nnattr.NDIF(api_key=KEY)!r}"
    assert KEY not in shown
    assert np.isfinite(scores.raw).all()


class Probed:
    """A metric by a long vector."""

    last_only = True

    def __init__(self, vector: torch.Tensor) -> None:
        self.vector = vector

    def __call__(self, logits: torch.Tensor, batch: Any) -> torch.Tensor:
        return logits[:, -1] @ self.vector


READ = torch.zeros(5000)


def by_a_global(logits: torch.Tensor, batch: Any) -> torch.Tensor:
    return logits[:, -1] @ READ


def test_a_metric_is_told_from_another_by_every_number_that_it_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A long tensor's repr leaves out its middle, and a global is in no source."""
    other = READ.clone()
    other[2500] = 7.0
    assert checkpoint._code(Probed(READ)) != checkpoint._code(Probed(other))
    assert checkpoint._code(Probed(READ)) == checkpoint._code(Probed(READ.clone()))
    assert checkpoint._code(Probed(READ).__call__) != checkpoint._code(Probed(other).__call__)
    layers = [torch.nn.Linear(3, 1) for _ in range(2)]
    by_layers = [lambda logits, _, layer=layer: layer(logits[:, -1, :3])[:, 0] for layer in layers]
    assert checkpoint._code(by_layers[0]) != checkpoint._code(by_layers[1])
    before = checkpoint._code(by_a_global)
    assert before == checkpoint._code(by_a_global)
    monkeypatch.setitem(globals(), "READ", other)
    assert before != checkpoint._code(by_a_global)


def test_a_hook_leaves_its_mark_to_no_other() -> None:
    """Python gives the address of one that was removed to the next."""
    part = torch.nn.Linear(2, 2)
    marks = []
    for scale in (0.5, 0.7, 0.9):
        handle = part.register_forward_hook(lambda _, __, output, scale=scale: output * scale)
        marks.append(checkpoint._done_to(part)[0])
        handle.remove()
    assert len(set(marks)) == 3
