"""Jobs on a real server survive their client, and its failures are told in our words."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import nnattr
from nnattr import NDIF, LogitDiff, Model, Scores, Task, teaching
from nnattr.calls.registry import METHODS
from nnattr.errors import BackendError, MetricError
from tests.methods.common import assert_same
from tests.ndif import processes
from tests.ndif.server import Server
from tests.numbers import arrays
from tests.support.calls import example

ROOT = Path(__file__).parents[2]
NAME = "teaching-llama"
KEY = "3f2504e0-4f89-11d3-9a0c-0305e82c3301"


@cache
def local() -> Model:
    return nnattr.load(NAME)


@cache
def task(seed: int = 0) -> Task:
    return nnattr.tasks.ioi(local().tokenizer, n=4, seed=seed)


@cache
def expected(seed: int = 0) -> Scores:
    return nnattr.activation_patching(local(), task(seed), LogitDiff())


def remote(server: Server, **options: Any) -> Model:
    return nnattr.load(NAME, backend=NDIF(host=server.url, **options))


def test_several_jobs_in_flight(server: Server) -> None:
    model = remote(server)
    jobs = [
        nnattr.submit(nnattr.activation_patching, model, task(seed), LogitDiff())
        for seed in range(3)
    ]
    estimate = nnattr.submit(nnattr.attribution_patching, model, task(), LogitDiff())
    for seed, job in reversed(list(enumerate(jobs))):
        assert_same(job.result(timeout=300).raw, expected(seed).raw)
    here = nnattr.attribution_patching(local(), task(), LogitDiff())
    assert_same(estimate.result(timeout=300).raw, here.raw)
    assert estimate.status() == "COMPLETED"


#: All but what this model, which is rotary, has not: a table of positions.
SUBMITTED = [name for name in METHODS if name != "weights.position_pattern"]


@pytest.mark.parametrize("name", SUBMITTED)
def test_every_method_can_be_submitted(server: Server, name: str, tmp_path: Path) -> None:
    """Sent, written, read again, fetched: the numbers of a call that waited here."""
    given = example(name, remote(server), task())
    row = METHODS[name]
    path = nnattr.submit(row.function, **given).save(tmp_path / "job.json")
    fetched = nnattr.Job.load(path, model=remote(server)).result(timeout=300)
    here = row.function(**{**given, "model": local()})
    ours, theirs = arrays(fetched), arrays(here)
    assert ours.keys() == theirs.keys()
    for key, array in ours.items():
        np.testing.assert_allclose(array, theirs[key], atol=1e-5, err_msg=f"{name} {key}")


def test_a_job_survives_its_client(server: Server, tmp_path: Path) -> None:
    """Sent and saved by one process, fetched by this one."""
    code = f"""
import sys, nnattr
model = nnattr.load({NAME!r}, backend=nnattr.NDIF(host=sys.argv[1], api_key={KEY!r}))
task = nnattr.tasks.ioi(model.tokenizer, n=4, seed=0)
nnattr.submit(nnattr.activation_patching, model, task, nnattr.LogitDiff()).save(sys.argv[2])
"""
    path = tmp_path / "job.json"
    command = [sys.executable, "-c", code, server.url, path]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    assert KEY not in path.read_text()
    scores = nnattr.Job.load(path).result(timeout=300)
    assert_same(scores.raw, expected().raw)
    assert scores.provenance.jobs == 1
    assert scores.provenance.bytes_received > 0


def finished(folder: Path) -> int:
    """How many layers are kept there."""
    files = list(folder.glob("*/found.safetensors"))
    return int(load_file(files[0])["finished"].sum()) if files else 0


def slow_entropy(logits: Any, batch: Any) -> Any:
    """A metric that gives a test the time to interrupt a job."""
    time.sleep(0.1)
    return torch.special.entr(logits[:, -1].softmax(-1)).sum(-1)


def very_slow_metric(logits: Any, batch: Any) -> Any:
    time.sleep(2)
    return logits[:, -1, 0]


def sweep(folder: Path, url: str) -> Scores:
    """A job per layer, kept in a folder; also what the child process of a test runs."""
    limit = 4 * len(task()) * local().n_heads
    model = nnattr.load(NAME, backend=NDIF(host=url, max_job_bytes=limit, api_key=KEY))
    return nnattr.activation_patching(model, task(), slow_entropy, checkpoint=folder)


def interrupt(folder: Path, url: str, least: int, stop: Any) -> None:
    """Start a sweep in a process of its own and stop something when some layers are there."""
    code = (
        "import sys; from pathlib import Path; from tests.ndif.test_jobs import sweep; "
        "sweep(Path(sys.argv[1]), sys.argv[2])"
    )
    child = subprocess.Popen([sys.executable, "-c", code, folder, url], cwd=ROOT)
    try:
        while finished(folder) < least:
            assert child.poll() is None, "the sweep ended before it was stopped"
            time.sleep(0.005)
        stop(child)
        assert child.wait(120) != 0
    finally:
        child.kill()
    assert finished(folder) < local().n_layers


def test_a_killed_client_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    unbroken = sweep(tmp_path / "unbroken", server.url)
    assert_same(unbroken.raw, nnattr.activation_patching(local(), task(), slow_entropy).raw)
    assert unbroken.provenance.jobs == local().n_layers
    interrupt(tmp_path / "parts", server.url, 1, lambda child: os.kill(child.pid, signal.SIGKILL))
    assert finished(tmp_path / "parts") >= 1
    resumed = sweep(tmp_path / "parts", server.url)
    np.testing.assert_array_equal(resumed.raw, unbroken.raw)
    assert resumed.provenance.jobs == local().n_layers, "of both processes, none twice"
    for path in (tmp_path / "parts").rglob("*.safetensors"):
        assert KEY.encode() not in path.read_bytes()


def fails(logits: Any, batch: Any) -> Any:
    raise RuntimeError("this metric gave up")


def gives_up(tensors: Any) -> Any:
    raise RuntimeError("this function gave up")


def test_a_metric_that_fails_on_the_server_shows_its_line(server: Server) -> None:
    with pytest.raises(MetricError, match=r"this metric gave up, in line \d+: raise RuntimeError"):
        nnattr.activation_patching(remote(server), task(), fails)


def test_a_failure_on_the_server_shows_its_traceback(server: Server) -> None:
    with pytest.raises(BackendError, match="this function gave up") as caught:
        nnattr.capture(remote(server), task(), "z", reduce=gives_up)
    assert f"failed on the server at {server.url}" in str(caught.value)
    cause = str(caught.value.__cause__)
    assert "Traceback" in cause
    assert "test_jobs.py" in cause, "the server's traceback names the user's own file"


def test_a_model_that_the_server_cannot_load(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(teaching.folder(NAME), folder)
    model = nnattr.load(folder, backend=server.url)
    (folder / "config.json").write_text('{"model_type": "gpt9"}')
    with pytest.raises(BackendError, match=r"nnattr models --backend"):
        nnattr.activation_patching(model, task(), LogitDiff())


def test_the_time_is_over(server: Server) -> None:
    with pytest.raises(BackendError, match=r"no result after .*NDIF\(timeout="):
        nnattr.activation_patching(remote(server, timeout=3.0), task(), very_slow_metric)
    again = nnattr.activation_patching(remote(server), task(), LogitDiff())
    assert_same(again.raw, expected().raw)  # the server is none the worse


def test_a_job_that_the_server_does_not_know(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnattr.calls.submit.LOST", 1.0)
    job = nnattr.submit(nnattr.attribution_patching, remote(server), task(), LogitDiff())
    lost = replace(job, ticket=job.ticket._replace(job_id="00000000"))
    assert lost.status() == "UNKNOWN"
    with pytest.raises(BackendError, match="does not know job 00000000"):
        lost.result(timeout=60)


def test_a_killed_server_loses_only_the_job_it_was_at(server: Server, tmp_path: Path) -> None:
    """It is killed half-way, comes back at its address, and finishes the work."""
    unbroken = sweep(tmp_path / "unbroken", server.url)
    interrupt(tmp_path / "parts", server.url, 1, lambda child: server.kill())
    assert server.mark not in processes.runs()
    left = finished(tmp_path / "parts")
    with pytest.raises(BackendError, match="no NDIF server answered"):
        sweep(tmp_path / "parts", server.url)
    assert finished(tmp_path / "parts") == left
    server.start()
    resumed = sweep(tmp_path / "parts", server.url)
    np.testing.assert_array_equal(resumed.raw, unbroken.raw)
