"""A server that answers as a test tells it to: NDIF's protocol on a loopback socket, without NDIF.

A script says what happens at each step; whatever it leaves out goes well. The well-behaved server
takes the job and returns scores of the right shape.
"""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
import zstandard
from nnsight.schema.response import ResponseModel, Status
from websockets.datastructures import Headers
from websockets.http11 import Request
from websockets.server import ServerProtocol

JOB = "job-1"


def status(state: str, text: str = "", **more: Any) -> str:
    """A status message."""
    return ResponseModel(id=JOB, status=Status(state), description=text, **more).model_dump_json()


def blob(values: Any) -> bytes:
    """A result as a server packs it."""
    with io.BytesIO() as file:
        torch.save(values, file)
        return zstandard.compress(file.getvalue())


def done(content: bytes) -> bytes:
    """The message that a job is done, with its result in it."""
    fields: dict[str, Any] = {"meta": {"runtime": 1.5}, "data": content}
    return ResponseModel(id=JOB, status=Status.COMPLETED, **fields).pickle()


class Line:
    """The server's end of a websocket, behind a request that asks for one."""

    def __init__(self, path: str, headers: Headers, write: Callable[[bytes], Any]) -> None:
        self._protocol, self._write = ServerProtocol(), write
        self._protocol.send_response(self._protocol.accept(Request(path, headers)))
        self._flush()

    def say(self, message: str | bytes) -> None:
        """Send one message."""
        if isinstance(message, str):
            self._protocol.send_text(message.encode())
        else:
            self._protocol.send_binary(message)
        self._flush()

    def _flush(self) -> None:
        self._write(b"".join(self._protocol.data_to_send()))


@dataclass
class Script:
    """What the server does.

    Attributes:
        handshake: HTTP status and body that answer the websocket's opening; 101 opens it.
        post: from the number of the request its HTTP status and body; None hangs up unanswered.
        talk: what is said on the websocket once a request was taken.
        page: from a path and the number of its requests the HTTP status and body of other pages.
        opened, posts, pages: how often each was asked for.
    """

    handshake: tuple[int, str] = (101, "")
    post: Callable[[int], tuple[int, str] | None] = lambda number: (200, status("RECEIVED"))
    talk: Callable[[Line], None] = lambda line: None
    page: Callable[[str, int], tuple[int, str | bytes]] = lambda path, number: (404, "")
    opened: int = 0
    posts: int = 0
    pages: dict[str, int] = field(default_factory=dict)
    url: str = ""


@contextmanager
def serving(script: Script) -> Iterator[Script]:
    """The script's server, at ``script.url``."""
    server = _Server(script)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield script
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.taken = threading.Semaphore(0)
        self.over = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        script = self.server.script
        if self.path == "/subscribe":
            script.opened += 1
            self._subscribe(*script.handshake)
            return
        script.pages[self.path] = script.pages.get(self.path, 0) + 1
        self._answer(*script.page(self.path, script.pages[self.path]))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.script.posts += 1
        answer = self.server.script.post(self.server.script.posts)
        self.close_connection = True
        if answer is not None:
            self._answer(*answer)
            self.server.taken.release()

    def _answer(self, code: int, body: str | bytes) -> None:
        content = body.encode() if isinstance(body, str) else body
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _subscribe(self, code: int, body: str) -> None:
        self.close_connection = True
        if code == 0:  # takes the connection and says nothing
            self.server.over.wait(20)
            return
        if code != 101:
            self._answer(code, body)
            return
        line = Line(self.path, Headers(self.headers.items()), self.wfile.write)
        line.say(json.dumps({"session_id": "session-1"}))
        if self.server.taken.acquire(timeout=20):
            with suppress(OSError):  # the client has had enough
                self.server.script.talk(line)

    def log_message(self, *args: Any) -> None:
        pass


def silence(line: Line) -> None:
    """Say that the job runs, then nothing."""
    line.say(status("RUNNING"))
    time.sleep(5)


def chatter(line: Line) -> None:
    """Report progress without end."""
    for step in range(1000):
        line.say(status("LOG", f"nnattr-progress {step}/1000"))
        time.sleep(0.005)
