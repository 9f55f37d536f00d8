"""What went wrong with a job on a server, in our own words, and whether to send it again.

A failure is told apart by when it happened: while the job was sent, while it ran, or while its
answer was read. Only the first kind may be tried again, and of it only what shows that no server
took the job. A key that a server repeats, as servers do with a bad one, reaches neither the message
nor its causes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from nnattr.errors import BackendError, TooLargeError

#: Words by which a place says that a job was too large for it.
TOO_LARGE = (
    "out of memory",
    "outofmemory",
    "not enough memory",
    "exceeded the execution timeout",
    "time limit",
    "too large",
)


class Sent(Protocol):
    """What of a request is known when it fails: see `nnattr.backend.client`."""

    host: str
    api_key: str
    job_id: str | None
    posted: bool


def too_large(text: str) -> bool:
    """Whether a failure's text says that the job was too large."""
    return any(mark in text.lower() for mark in TOO_LARGE)


def not_accepted(error: Exception, sent: Sent) -> bool:
    """Whether the job was never accepted, so that sending it again is safe.

    It is where nothing was posted yet and the connection failed, where no connection was made for
    posting, and where the server said that it takes nothing now.
    """
    import httpx
    from websocket import WebSocketConnectionClosedException

    if _status(error) in (429, 503):
        return True
    if not sent.posted:
        return isinstance(
            error, ConnectionError | TimeoutError | WebSocketConnectionClosedException
        )
    return isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout)


def interrupted(error: Exception, sent: Sent) -> bool:
    """Whether asking for a result again may help: asking changes nothing."""
    import httpx

    return isinstance(error, ConnectionError | httpx.TransportError) or _status(error) in (429, 503)


def without_key(error: Exception, sent: Sent) -> Exception | None:
    """The error as the cause of ours, unless it or one of its own causes repeats the key."""
    key = sent.api_key
    return None if key and any(key in f"{one}{one!r}" for one in _causes(error)) else error


def translate(error: Exception, sent: Sent, label: str) -> BackendError:
    """Our error for one that nnsight, the server or the network raised."""
    from nnsight.intervention.backends.remote import RemoteError

    text = str(error).strip()
    if sent.api_key:
        text = text.replace(sent.api_key, "***")
    last = f"{type(error).__name__}: {(text.splitlines() or [''])[-1]}"
    if isinstance(error, TimeoutError) and sent.posted:
        return BackendError(
            f"{label} on {sent.host}: {text}. The job may still be running; raise "
            "NDIF(timeout=...), or submit it with nnattr.submit."
        )
    if sent.job_id is None:
        large = _status(error) == 413
        said = f"{label}: {_refused(error, text, sent)} ({last})."
    elif isinstance(error, RemoteError):
        large = too_large(text)
        said = f"{label} failed on the server at {sent.host}: {_failed(text)}{last}"
    else:
        large = False
        said = (
            f"{label}: {_unread(error, sent)} ({last}). Run it again; with checkpoint= finished "
            "parts are kept."
        )
    return TooLargeError(said) if large else BackendError(said)


def _refused(error: Exception, text: str, sent: Sent) -> str:
    """What we say of a job that no server is known to have taken."""
    from websocket import WebSocketException

    status, said, host = _status(error), text.lower(), sent.host
    if status in (401, 403) or "api key" in said:
        return f"{host} refused the key. Set NDIF_API_KEY, or pass NDIF(api_key=...)"
    if status in (400, 426) and ("version" in said or "upgrade" in said):
        return f"{host} refuses this client's version. Install the version that it names"
    if status in (429, 503):
        return f"{host} takes no jobs now. Try again later"
    if status is not None:
        return f"{host} refused the request, with HTTP status {status}"
    if not sent.posted and not isinstance(error, OSError | WebSocketException):
        return "the job could not be packed; a metric may use plain values and torch only"
    if sent.posted and not not_accepted(error, sent):
        return f"the connection to {host} broke while the job was sent, and it may be running there"
    return (
        f"no NDIF server answered at {host}. Check the address and that the server is up, or use "
        "backend='local'"
    )


def _failed(text: str) -> str:
    """What we say of a job that failed on the server, whose traceback is ``text``."""
    said = text.lower()
    if too_large(said):
        return "it was too large; use fewer or shorter prompts. "
    if "could not deploy" in said:
        return "it could not deploy the model; `nnattr models --backend ...` shows what it has. "
    if "submitting request to model deployment" in said:
        return "the model's process died, and restarts by itself; run the analysis again. "
    return ""


def _unread(error: Exception, sent: Sent) -> str:
    """What we say of an answer that did not come, or could not be used."""
    import pickle

    import httpx
    from websocket import WebSocketException

    if isinstance(error, OSError | WebSocketException | httpx.HTTPError):
        return f"the connection to {sent.host} broke while waiting for job {sent.job_id}"
    hostile = isinstance(error, pickle.UnpicklingError) and "nsupported" in str(error)
    if hostile:
        return (
            f"the answer of {sent.host} holds something other than tensors and plain values, and "
            "was not read"
        )
    return f"the answer of {sent.host} to job {sent.job_id} is truncated, or not what was asked for"


def _status(error: Exception) -> int | None:
    """The HTTP status of a refusal, of a request or of a websocket's handshake."""
    for one in (error, error.__cause__):
        for holder in (one, getattr(one, "response", None)):
            status = getattr(holder, "status_code", None)
            if isinstance(status, int):
                return status
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all that it came from."""
    seen: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop()
        if one is not None and one not in seen:
            seen.append(one)
            todo += [one.__cause__, one.__context__]
    yield from seen
