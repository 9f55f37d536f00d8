"""The server of these tests is real, answers as the local model does and leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

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
