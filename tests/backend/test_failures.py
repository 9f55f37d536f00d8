"""Whatever goes wrong between here and a server is a BackendError that says what to do."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import websocket

import nnattr
from nnattr import NDIF
from nnattr.backend.ndif import RETRIES
from nnattr.errors import BackendError, TooLargeError
from tests.backend.common import KEY, causes, patch, remote, returning, saying, task, values
from tests.backend.scripted import Line, Script, blob, chatter, done, serving, silence, status

TRACEBACK = """Traceback (most recent call last):
  File "job.py", line 3, in metric
ZeroDivisionError: division by zero"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnattr.backend.ndif.PAUSE", 0.01)


def fails(script: Script, **options: Any) -> BackendError:
    with serving(script), pytest.raises(BackendError) as caught:
        patch(script, **options)
    return caught.value


def test_a_server_that_behaves() -> None:
    """The control: without a fault there is no error, and the cost is what it was."""
    with serving(Script(talk=returning(values()))) as script:
        scores = patch(script)
    assert (script.opened, script.posts) == (1, 1)
    torch.testing.assert_close(torch.tensor(scores.raw.to_numpy()), values()["change"][..., 0])
    cost = scores.provenance
    assert (cost.jobs, cost.run_seconds) == (1, 1.5)
    assert cost.bytes_received > scores.raw.nbytes
    assert cost.queue_seconds >= 0


def test_no_server() -> None:
    with pytest.raises(BackendError, match=r"no NDIF server answered at http://127\.0\.0\.1:9"):
        nnattr.activation_patching(remote(), task(), nnattr.LogitDiff())


@pytest.mark.parametrize("code", [429, 503])
def test_a_job_that_no_server_takes_is_sent_again_a_few_times(code: int) -> None:
    detail = '{"detail": "compute backend is reconnecting"}'
    script = Script(post=lambda number: (code, detail))
    assert "reconnecting" in str(fails(script))
    assert script.posts == RETRIES + 1
    script = Script(handshake=(code, detail))
    assert "takes no jobs now" in str(fails(script))
    assert (script.opened, script.posts) == (RETRIES + 1, 0)


def test_a_job_that_is_taken_at_the_second_try_is_sent_twice() -> None:
    def post(number: int) -> tuple[int, str]:
        return (503, "") if number == 1 else (200, status("RECEIVED"))

    talk = returning(values())
    # the first request's websocket stays open without a word: only the second is taken
    with serving(Script(post=post, talk=talk)) as script:
        assert patch(script).provenance.jobs == 1
    assert script.posts == 2


def test_pauses_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("nnattr.backend.ndif.time.sleep", pauses.append)
    fails(Script(handshake=(503, "")))
    assert pauses == [0.01, 0.02]


@pytest.mark.parametrize(
    "reply",
    [
        (401, '{"detail": "Missing or invalid API key."}'),
        (403, '{"detail": "Invalid API key."}'),
        (403, f'{{"detail": "{KEY} is not known"}}'),
        (400, f'{{"detail": "Invalid API key format: \'{KEY}\'. API keys must be ..."}}'),
    ],
)
@pytest.mark.parametrize("where", ["post", "handshake"])
def test_a_wrong_key_is_refused_and_not_repeated(reply: tuple[int, str], where: str) -> None:
    script = Script(post=lambda _: reply) if where == "post" else Script(handshake=reply)
    error = fails(script, api_key=KEY)
    assert "refused the key. Set NDIF_API_KEY" in str(error)
    assert (script.opened, script.posts) == (1, int(where == "post"))
    assert not _seen(error)


def _seen(error: BaseException) -> bool:
    """Whether the key can be seen in an error or in anything it came from."""
    shown = "".join(traceback.format_exception(error))
    return any(KEY in f"{one}{one!r}{one.args}" for one in causes(error)) or KEY in shown


def test_a_key_that_cannot_be_sent_is_not_shown_either() -> None:
    with serving(Script(talk=returning(values()))) as script:
        patch(script, api_key=f"{KEY}\n")  # as read from a file
        with pytest.raises(BackendError, match="line break") as caught:
            patch(script, api_key=f"{KEY}\nX-Other: header")
    assert not _seen(caught.value)


def test_a_version_that_the_server_refuses() -> None:
    detail = "Client nnsight version 0.8.1 is below the minimum supported 0.9. Please upgrade."
    error = fails(Script(post=lambda _: (400, f'{{"detail": "{detail}"}}')))
    assert "refuses this client's version" in str(error)
    assert "minimum supported 0.9" in str(error)


def test_any_other_refusal_says_what_the_server_said() -> None:
    error = fails(Script(post=lambda _: (422, '{"detail": "no such field"}')))
    assert "HTTP status 422" in str(error)
    assert "no such field" in str(error)


def test_a_model_that_is_not_there() -> None:
    said = "Could not deploy this model. No module named 'gpt9'"
    error = fails(Script(talk=saying(status("QUEUED"), status("ERROR", said))))
    assert "nnattr models --backend" in str(error)
    assert "gpt9" in str(error)


def test_a_job_that_fails_says_which_and_shows_the_servers_traceback() -> None:
    script = Script(talk=saying(status("RUNNING"), status("ERROR", TRACEBACK)))
    error = fails(script)
    last = remote().n_layers - 1
    assert str(error).startswith(f"activation patching, layers 0-{last} failed on the server")
    assert "ZeroDivisionError: division by zero" in str(error)
    assert 'File "job.py", line 3, in metric' in str(error.__cause__)
    assert script.posts == 1


@pytest.mark.parametrize(
    "said",
    [
        "torch.OutOfMemoryError: CUDA out of memory.",
        "Your job exceeded the execution timeout of 60s.",
    ],
)
def test_a_job_that_is_too_large_is_told_apart(said: str) -> None:
    script = Script(talk=saying(status("ERROR", said)))
    assert isinstance(fails(script), TooLargeError)
    assert script.posts == remote().n_layers.bit_length(), "all layers, half of them, ... one"


def test_a_connection_that_breaks_while_waiting_is_not_tried_again() -> None:
    script = Script(talk=saying(status("QUEUED"), status("RUNNING")))
    error = fails(script)
    assert "broke while waiting for job job-1" in str(error)
    assert "checkpoint=" in str(error)
    assert script.posts == 1


def test_a_connection_that_breaks_while_sending_is_not_tried_again() -> None:
    script = Script(post=lambda _: None)
    assert "it may be running there" in str(fails(script))
    assert script.posts == 1


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in values().items() if name != key}


WRONG: dict[str, Callable[[], str | bytes]] = {
    "nothing": lambda: status("COMPLETED"),
    "no words": lambda: "{}",
    "no JSON": lambda: "<html>",
    "no message": lambda: b"\x80\x04N.",
    "half a message": lambda: done(blob({"result": values()}))[:-40],
    "half a result": lambda: done(blob({"result": values()})[:-40]),
    "not compressed": lambda: done(b"scores"),
    "a list": lambda: done(blob([1, 2])),
    "another name": lambda: done(blob({"payload": values()})),
    "a tensor": lambda: done(blob({"result": torch.zeros(3)})),
    "an empty dict": lambda: done(blob({"result": {}})),
    "no baseline": lambda: done(blob({"result": without("base")})),
    "no engine": lambda: done(blob({"result": without("engine")})),
    "a layer less": lambda: done(blob({"result": values(layers=1)})),
    "no layer": lambda: done(blob({"result": values(layers=0)})),
    "a number": lambda: done(blob({"result": {**values(), "change": 3.0}})),
    "other examples": lambda: done(blob({"result": {**values(), "base": torch.zeros(5)}})),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_answer_that_is_not_what_was_asked_for(what: str) -> None:
    script = Script(talk=saying(status("RUNNING"), WRONG[what]()))
    error = fails(script)
    assert "activation" in str(error)
    assert script.posts == 1


@pytest.mark.parametrize("talk", [silence, chatter])
def test_the_time_is_over(talk: Callable[[Line], None]) -> None:
    began = time.monotonic()
    script = Script(talk=talk)
    error = fails(script, timeout=0.4)
    assert time.monotonic() - began < 4
    assert "no result after" in str(error)
    assert "NDIF(timeout=" in str(error)
    assert script.posts == 1


def test_a_server_that_takes_connections_and_says_nothing() -> None:
    began = time.monotonic()
    script = Script(handshake=(0, ""))
    assert "no NDIF server answered" in str(fails(script, timeout=0.2))
    assert time.monotonic() - began < 5
    assert script.posts == 0


def test_a_metric_that_cannot_travel_is_not_blamed_on_the_server() -> None:
    import threading
    from dataclasses import replace

    lock = threading.Lock()

    def locked(logits: Any, batch: Any) -> Any:
        with lock:
            return logits[:, -1, 0]

    with serving(Script()) as script:
        model = replace(remote(), backend=NDIF(host=script.url))
        with pytest.raises(BackendError, match="could not be packed"):
            nnattr.activation_patching(model, task(), locked)
    assert script.posts == 0


def test_threads_wait_for_servers_beside_each_other() -> None:
    """Jobs on servers take no turns, and leave the process's time limit for websockets alone."""

    def talk(line: Line) -> None:
        line.say(status("RUNNING"))
        time.sleep(0.5)
        line.say(done(blob({"result": values()})))

    def asked(_: int) -> float:
        with serving(Script(talk=talk)) as script:
            return float(patch(script).raw.sum())

    expected, before = asked(0), websocket.getdefaulttimeout()
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(asked, range(8))) == [expected] * 8
    assert websocket.getdefaulttimeout() == before
