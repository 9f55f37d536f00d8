"""Every method, through a real server, is one small job that gives what the local model gives."""

from __future__ import annotations

import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import nnattr
from nnattr import LogitDiff, Model, Scores, Task
from nnattr.cli import app
from nnattr.errors import BackendError
from tests.methods.common import METHODS, SITES, assert_same, ragged_ioi
from tests.ndif import processes
from tests.ndif.environment import STARTUP_FILE, client
from tests.ndif.server import ON_SERVER, Server
from tests.support.environment import version
from tests.support.metrics import entropy

ROOT = Path(__file__).parents[2]
TEACHING = ("teaching-gpt2", "teaching-llama")
#: What a job may send down besides the numbers of its scores.
OVERHEAD = 8192


@cache
def model(name: str, backend: str = "local") -> Model:
    return nnattr.load(name, backend=backend)


@cache
def task(name: str, n: int = 3) -> Task:
    """Prompts of unequal lengths, so that the batch is padded."""
    return ragged_ioi(model(name), n)


def both(server: Server, name: str, method: str, **options: Any) -> tuple[Scores, Scores]:
    """The same question here and there."""
    given = {"metric": LogitDiff(), **options}
    here, there = (
        METHODS[method](model(name, where), given.get("task") or task(name), **_rest(given))
        for where in ("local", server.url)
    )
    return here, there


def _rest(given: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key != "task"}


def assert_one_small_job(scores: Scores) -> None:
    cost = scores.provenance
    assert cost.jobs == 1
    assert 0 < cost.bytes_sent < 50_000
    held = scores.raw.astype("float32").nbytes + scores.baselines.astype("float32").nbytes
    assert 0 < cost.bytes_received <= held + OVERHEAD
    assert cost.run_seconds > 0


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", TEACHING)
def test_every_site_of_both_models(server: Server, name: str, method: str, site: Any) -> None:
    here, there = both(server, name, method, site=site)
    assert_same(there.raw, here.raw)
    assert_same(there.baselines, here.baselines)
    assert there.raw.coords.identical(here.raw.coords)
    assert there.provenance.arguments == here.provenance.arguments, "by the same engine"
    assert_one_small_job(there)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", TEACHING)
def test_positions_directions_and_a_metric_of_ones_own(
    server: Server, name: str, method: str
) -> None:
    for options in (
        {"positions": "each", "direction": "noising"},
        {"positions": "S2", "metric": nnattr.metrics.LogProb()},
        {"positions": "last", "metric": entropy},
    ):
        here, there = both(server, name, method, **options)
        assert_same(there.raw, here.raw)
        assert_one_small_job(there)


def test_full_passes(server: Server) -> None:
    here, there = both(server, TEACHING[0], "activation", engine="full")
    assert there.provenance.arguments["engine"] == "full"
    assert_same(there.raw, here.raw)


CLIENT = """
import sys, nnattr
url, teaching, folder = sys.argv[1:]
model = nnattr.load(teaching, backend=url)
task = nnattr.tasks.ioi(model.tokenizer, n=3, seed=0)
for method in (nnattr.activation_patching, nnattr.attribution_patching):
    method(model, task, nnattr.LogitDiff()).save(f"{folder}/{method.__name__}.safetensors")
print(*sys.version_info[:2])
"""


@pytest.mark.parametrize("name", TEACHING)
def test_a_client_with_the_servers_python(server: Server, name: str, tmp_path: Path) -> None:
    """These tests run on the oldest Python that nnattr supports, which is the stricter mix."""
    words = [server.url, name, str(tmp_path)]
    command = [client(), "-c", CLIENT, *words]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert tuple(map(int, told.stdout.split())) == version(server.bin / "python")
    few = nnattr.tasks.ioi(model(name).tokenizer, n=3, seed=0)
    for method in METHODS.values():
        here = method(model(name), few, LogitDiff())
        there = Scores.load(tmp_path / f"{method.__name__}.safetensors")
        assert_same(there.raw, here.raw)


def test_limits_split_by_layers(server: Server) -> None:
    name = TEACHING[1]
    here = nnattr.activation_patching(model(name), task(name), LogitDiff())
    limit = 2 * 4 * len(task(name)) * model(name).n_heads
    backend = nnattr.NDIF(host=server.url, max_job_bytes=limit)
    there = nnattr.activation_patching(nnattr.load(name, backend=backend), task(name), LogitDiff())
    assert there.provenance.jobs == model(name).n_layers // 2
    assert_same(there.raw, here.raw)


@pytest.mark.parametrize("name", TEACHING)
def test_the_doctor_and_the_list_of_models(
    server: Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[str] = []
    run = nnattr.NDIF.run

    def counted(*args: Any, label: str) -> Any:
        jobs.append(label)
        return run(*args, label=label)

    monkeypatch.setattr(nnattr.NDIF, "run", counted)
    proof = _call("doctor", name, "--backend", server.url)
    assert "FAIL" not in proof
    assert "float32" in proof
    assert len(jobs) == 1
    line = _listed(server, name)
    family = model(name).architecture
    assert line.split()[1:] == ["RUNNING", "float32", family, "known"]


def _listed(server: Server, name: str) -> str:
    """The model's line in the list; NDIF makes a new list once a minute."""
    until = time.monotonic() + 90
    while True:
        lines = _call("models", "--backend", server.url).splitlines()
        found = [line for line in lines if name in line]
        if found or time.monotonic() > until:
            assert found, lines
            return found[0]
        time.sleep(5)


def _call(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", TEACHING)
def test_bfloat16_agrees_on_the_order(bfloat16_server: Server, name: str, method: str) -> None:
    # enough examples that heads with next to no effect keep their order
    many = nnattr.tasks.ioi(model(name).tokenizer, n=32, seed=0)
    here, there = (scores.mean() for scores in both(bfloat16_server, name, method, task=many))
    ours, theirs = (np.asarray(scores.values).ravel() for scores in (here, there))
    assert np.corrcoef(_ranks(ours), _ranks(theirs))[0, 1] >= 0.99, "Spearman's correlation"
    assert ours.argmax() == theirs.argmax()
    assert (here.provenance.dtype, there.provenance.dtype) == ("float32", "bfloat16")
    assert not np.allclose(ours, theirs, rtol=0, atol=1e-6), "this server is not in bfloat16"


def _ranks(values: np.ndarray) -> np.ndarray:
    return values.argsort().argsort()


@pytest.mark.parametrize("site", ["z", "attn_out", "mlp_out", "resid_pre", "resid_post"])
@pytest.mark.parametrize("name", TEACHING)
def test_a_sandbox_gives_exact_results(sandboxed_server: Server, name: str, site: Any) -> None:
    few = task(name, 2)
    here, there = both(sandboxed_server, name, "activation", site=site, task=few)
    assert_same(there.raw, here.raw)
    assert_one_small_job(there)


@pytest.mark.parametrize("name", TEACHING)
def test_a_sandbox_cannot_edit_in_place_and_says_so(sandboxed_server: Server, name: str) -> None:
    """An edit of its copy of what enters a norm does not reach the stream that goes around it."""
    remote = model(name, sandboxed_server.url)
    with pytest.raises(BackendError, match=r"sandboxed .* cannot edit this site; use resid_pre"):
        nnattr.activation_patching(remote, task(name, 2), LogitDiff(), site="resid_mid")


def test_the_doctor_in_a_sandbox_finds_just_that(sandboxed_server: Server) -> None:
    done = CliRunner().invoke(app, ["doctor", TEACHING[1], "--backend", sandboxed_server.url])
    failed = [line.split("  ")[0] for line in done.output.splitlines() if "FAIL" in line]
    assert failed == ["FAIL editing resid_mid", "FAIL edits reach the residual stream"]
    assert done.exit_code == 1


@pytest.mark.parametrize("name", TEACHING)
def test_a_sandbox_has_no_gradients_and_says_what_to_use(
    sandboxed_server: Server, name: str
) -> None:
    remote = model(name, sandboxed_server.url)
    with pytest.raises(BackendError, match=r"no gradients; use activation_patching"):
        nnattr.attribution_patching(remote, task(name, 2), LogitDiff())


def test_the_checkout_is_not_on_the_server(server: Server) -> None:
    """All of the above was shipped by value."""
    packages = server.bin.parent.glob("lib/python*/site-packages/*nnattr*")
    assert [path.name for path in packages] == [STARTUP_FILE]
    for process in processes.runs()[server.mark]:
        paths = process.environ().get("PYTHONPATH", "")
        assert str(ROOT) not in paths.replace(str(ON_SERVER), "")
