"""Jobs that are fetched later, and the list of what a server has, on a scripted server."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import nnattr
from nnattr import NDIF, LogitDiff, edit
from nnattr.cli import app
from nnattr.errors import BackendError, ResultError
from tests.backend.common import KEY, remote, task, values
from tests.backend.scripted import JOB, Script, blob, serving, status

ROOT = Path(__file__).parents[2]
RESPONSE = f"/response/{JOB}"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnattr.backend.ndif.PAUSE", 0.01)
    monkeypatch.setattr("nnattr.calls.submit.PATIENCE", (0.01, 0.02))


def submit(script: Script, **options: object) -> nnattr.Job:
    model = replace(remote(), backend=NDIF(host=script.url, **options))  # type: ignore[arg-type]
    return nnattr.submit(nnattr.activation_patching, model, task(), LogitDiff())


def answers(script: Script, *states: tuple[int, str]) -> None:
    """Let the job's page show these one after the other, then the result."""

    def page(path: str, number: int) -> tuple[int, str | bytes]:
        if path == RESPONSE:
            final = (200, status("COMPLETED", data=f"{script.url}/result", meta={"runtime": 2.0}))
            return [*states, final][min(number, len(states) + 1) - 1]
        return 200, blob({"result": values()})

    script.page = page


def test_a_job_is_sent_and_fetched() -> None:
    with serving(Script()) as script:
        answers(script, (404, ""), (200, status("QUEUED")), (503, ""), (200, status("RUNNING")))
        job = submit(script)
        assert (script.posts, script.opened) == (1, 0)
        assert [job.status(), job.status(), job.status()] == ["UNKNOWN", "QUEUED", "RUNNING"]
        scores = job.result(timeout=10)
    np.testing.assert_array_equal(scores.raw, values()["change"][..., 0])
    assert scores.provenance.jobs == 1
    assert scores.provenance.bytes_sent > 0
    assert scores.provenance.bytes_received == len(blob({"result": values()}))
    assert scores.provenance.run_seconds == 2.0


def test_a_result_that_does_not_come_in_time_can_be_asked_for_again() -> None:
    with serving(Script()) as script:
        answers(script, *[(200, status("RUNNING"))] * 20)
        job = submit(script)
        with pytest.raises(BackendError, match=r"not done after .* \(state: RUNNING\)"):
            job.result(timeout=0.05)
        assert job.result(timeout=10).provenance.jobs == 1


def test_a_job_that_failed() -> None:
    with serving(Script()) as script:
        answers(script, (200, status("ERROR", "Traceback ...\nValueError: no")))
        with pytest.raises(BackendError, match=r"activation patching failed .* ValueError: no"):
            submit(script).result()


def test_a_job_that_the_server_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnattr.calls.submit.LOST", 0.05)
    with serving(Script()) as script, pytest.raises(BackendError, match=f"not know job {JOB}"):
        submit(script).result()


def test_a_server_that_is_gone_when_the_result_is_asked_for() -> None:
    with serving(Script()) as script:
        job = submit(script)
    with pytest.raises(BackendError, match="broke while waiting for job"):
        job.result()


def test_a_wrong_key_at_fetching_is_not_shown() -> None:
    with serving(Script()) as script:
        answers(script, (401, f"{KEY} is not known"))
        job = submit(script, api_key=KEY)
        with pytest.raises(BackendError) as caught:
            job.result()
    assert KEY not in str(caught.value)


def test_another_process_fetches_what_was_saved(tmp_path: Path) -> None:
    with serving(Script()) as script:
        answers(script, (200, status("RUNNING")))
        job = submit(script, api_key=KEY)
        path = job.save(tmp_path / "job.json")
        assert KEY not in path.read_text()
        code = (
            "import sys, nnattr; nnattr.Job.load(sys.argv[1]).result(timeout=60).save(sys.argv[2])"
        )
        out = tmp_path / "scores.safetensors"
        command = [sys.executable, "-c", code, path, out]
        subprocess.run(command, cwd=ROOT, check=True, timeout=120)
        assert nnattr.Scores.load(out).raw.equals(job.result().raw)


def test_the_edits_of_the_model_are_kept_with_the_job(tmp_path: Path) -> None:
    made = edit.ablate("L0H1", positions=[1])
    with serving(Script()) as script:
        answers(script)
        model = replace(remote(), backend=NDIF(host=script.url))
        given = nnattr.edited(model, made), task(), LogitDiff()
        path = nnattr.submit(nnattr.activation_patching, *given).save(tmp_path / "job.json")
        scores = nnattr.Job.load(path).result(timeout=10)
    assert scores.provenance.edits == ("L0H1 ablated (zero) at position 1",)
    assert scores.provenance.jobs == 1  # the one that was sent


def test_files_that_hold_no_job(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"ticket": ["a"]}')
    for path in (tmp_path / "job.json", tmp_path / "none.json"):
        with pytest.raises(ResultError, match="is not the file of"):
            nnattr.Job.load(path)
    with serving(Script()) as script:
        job = submit(script)
    with pytest.raises(ResultError, match="could not be written"):
        job.save(tmp_path / "nowhere" / "job.json")


def test_jobs_cannot_be_cancelled_and_say_so() -> None:
    with serving(Script()) as script, pytest.raises(BackendError, match="no way to cancel"):
        submit(script).cancel()


def listed(script: Script, code: int = 0) -> str:
    """What ``nnattr models --backend`` says of the server."""
    done = CliRunner().invoke(app, ["models", "--backend", script.url])
    assert done.exit_code == code, done.output
    return done.output


def test_the_models_of_a_server() -> None:
    entries = {
        "a": {
            "repo_id": "openai-community/gpt2",
            "application_state": "RUNNING",
            "deployment_level": "HOT",
            "dtype": "torch.bfloat16",
            "config": json.dumps({"model_type": "gpt2"}),
        },
        "b": {
            "repo_id": "x/new",
            "application_state": "DEPLOYING",
            "config": '{"model_type": "q"}',
        },
        "meta/cold": {"repo_id": "meta/cold", "deployment_level": "COLD"},
    }
    page = (200, json.dumps({"deployments": entries}))
    with serving(Script(page=lambda *_: page)) as script:
        lines = [" ".join(line.split()) for line in listed(script).splitlines()]
    assert "openai-community/gpt2 RUNNING bfloat16 gpt2 known" in lines
    assert "x/new DEPLOYING q discovered on loading" in lines
    assert "meta/cold COLD not said by the server" in lines


@pytest.mark.parametrize(
    "page", [(503, ""), (200, "<html>"), (200, "[]"), (200, '{"deployments": 3}')]
)
def test_a_server_that_does_not_list_its_models(page: tuple[int, str]) -> None:
    with serving(Script(page=lambda *_: page)) as script:
        assert listed(script, code=1).startswith("Error: ")


def test_no_server_to_list() -> None:
    assert "No NDIF server answered" in listed(Script(url="http://127.0.0.1:9"), code=1)
    assert "is not a server" in listed(Script(url="local"), code=1)
