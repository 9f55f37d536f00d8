"""The server of these tests is real, answers as the local model does and leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nnsight
import pytest
import torch
from nnsight.modeling import huggingface

import nnattr
from nnattr import teaching
from tests.ndif import processes
from tests.ndif.server import Server

ROOT = Path(__file__).parents[2]
TEACHING = "teaching-gpt2"
PROMPT = "The cat sat"


@pytest.fixture(scope="module")
def local() -> nnattr.Model:
    return nnattr.load(TEACHING)


@pytest.fixture(scope="module")
def task(local: nnattr.Model) -> nnattr.Task:
    return nnattr.tasks.ioi(local.tokenizer, n=4, seed=0)


@pytest.fixture
def by_folder(monkeypatch: pytest.MonkeyPatch) -> nnsight.TransformersModel:
    """The teaching model as nnsight's own client knows it, named by its folder without the hub."""
    folder = str(teaching.folder(TEACHING))
    monkeypatch.setitem(huggingface._ID_CACHE, folder, folder)
    return nnsight.TransformersModel(
        folder, tokenizer=nnattr.load(TEACHING).tokenizer, task="text-generation"
    )


def test_it_lists_its_node(server: Server) -> None:
    assert len(server.nodes()) == 1


def test_a_plain_nnsight_job_gives_the_local_logits(
    server: Server, local: nnattr.Model, by_folder: nnsight.TransformersModel
) -> None:
    with torch.no_grad(), local.nn.trace(PROMPT):
        here = local.nn.output.logits.save()
    with by_folder.trace(PROMPT, remote=server.url):
        there = by_folder.output.logits.save()
    torch.testing.assert_close(there, here, rtol=0, atol=0)


def test_it_takes_a_payload_of_several_mebibytes(
    server: Server, by_folder: nnsight.TransformersModel
) -> None:
    noise = torch.randn(1_000_000)
    with by_folder.trace(PROMPT, remote=server.url):
        length = (noise.numel() + 0 * by_folder.output.logits.sum()).save()
    assert length == noise.numel()


def test_the_server_does_not_have_nnattr(
    server: Server, by_folder: nnsight.TransformersModel
) -> None:
    with by_folder.trace(PROMPT, remote=server.url):
        from importlib.util import find_spec

        found = nnsight.save([find_spec("nnattr") is not None])
    assert found == [False]


@pytest.mark.parametrize("method", [nnattr.attribution_patching, nnattr.activation_patching])
def test_an_analysis_is_one_small_job_with_the_local_result(
    server: Server, local: nnattr.Model, task: nnattr.Task, method: Any
) -> None:
    here = method(local, task, nnattr.LogitDiff())
    there = method(nnattr.load(TEACHING, backend=server.url), task, nnattr.LogitDiff())
    assert abs(there.values - here.values).max() < 1e-5
    assert there.provenance.jobs == 1
    assert 0 < there.provenance.bytes_sent < 50_000
    assert 0 < there.provenance.bytes_received < there.values.nbytes + 8192


def test_a_bfloat16_server_agrees_on_the_top_head(
    bfloat16_server: Server, local: nnattr.Model, task: nnattr.Task
) -> None:
    remote = nnattr.load(TEACHING, backend=bfloat16_server.url)
    here, there = (
        nnattr.activation_patching(model, task, nnattr.LogitDiff()).mean()
        for model in (local, remote)
    )
    assert here.values.to_numpy().argmax() == there.values.to_numpy().argmax()


def test_a_sandbox_gives_exact_results_and_no_gradients(
    sandboxed_server: Server, local: nnattr.Model, task: nnattr.Task
) -> None:
    remote = nnattr.load(TEACHING, backend=sandboxed_server.url)
    here, there = (
        nnattr.activation_patching(model, task, nnattr.LogitDiff()) for model in (local, remote)
    )
    assert abs(there.values - here.values).max() < 1e-5
    with pytest.raises(nnattr.errors.BackendError, match="activation_patching"):
        nnattr.attribution_patching(remote, task, nnattr.LogitDiff())


def test_a_killed_server_comes_back_at_its_address(
    server: Server, by_folder: nnsight.TransformersModel
) -> None:
    server.kill()
    assert server.mark not in processes.runs()
    with pytest.raises(OSError, match="refused"), by_folder.trace(PROMPT, remote=server.url):
        _ = by_folder.output.logits.save()
    server.start()
    with by_folder.trace(PROMPT, remote=server.url):
        there = by_folder.output.logits.save()
    assert there.isfinite().all()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_process_that_started_it(
    server: Server, number: signal.Signals
) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-m", "tests.ndif.server"], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    mark = _run_of(starter.pid)
    starter.send_signal(number)
    assert starter.wait(60) == -number
    if number == signal.SIGKILL:  # no program can tidy up after that; the next server does
        assert mark in processes.runs()
        processes.stop_leftovers()
    assert mark not in processes.runs()
    assert not (processes.FOLDERS / mark).exists()
    assert server.nodes(), "a neighbour's server must be left alone"


def _run_of(pid: int) -> str:
    """The run that a process has started, once several parts of it are up."""
    for _ in range(1200):
        for mark, members in processes.runs().items():
            if processes.owner(mark) == pid and len(members) > 5:
                return mark
        time.sleep(0.1)
    raise AssertionError("the server did not start")
