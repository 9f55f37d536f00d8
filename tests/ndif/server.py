"""A real NDIF server on this machine, without a GPU.

NDIF's own code, as the hosted service runs it: Redis, an object store, Ray with a controller and
model actors, an API. Everything listens on free loopback ports, keeps its files in one temporary
folder and is gone when the server is stopped, or the process that started it ends.

    with serve() as server:
        model = nnattr.load("teaching-gpt2", backend=server.url)

    python -m tests.ndif.server --actor sandboxed       # in the foreground, until Ctrl-C
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from tests.ndif import processes
from tests.ndif.environment import environment
from tests.support.environment import UnavailableError

Actor: TypeAlias = Literal["in_process", "sandboxed"]
DType: TypeAlias = Literal["float32", "bfloat16"]

#: The actor classes, in `on_server/`.
ACTORS: dict[Actor, str] = {
    "in_process": "cpu_actors.InProcess",
    "sandboxed": "cpu_actors.Sandboxed",
}
ON_SERVER = Path(__file__).parent / "on_server"

#: Seconds until each part of a server must be ready.
PATIENCE = 300.0

#: What Ray is told that this node has. The controller places models only where there is a GPU;
#: these are labels, none is touched.
RESOURCES = {"head": 10, "cuda_memory_bytes": 8_000_000_000, "cpu_memory_bytes": 8_000_000_000}

_running: list[Server] = []


class Server:
    """An NDIF server: `start` it, `kill` it, `start` it again at the same address, `stop` it.

    Args:
        actor: whether blocks run in the model's process or in a sandbox of their own.
        dtype: of every model it serves; NDIF's own default is bfloat16.

    Raises:
        UnavailableError: something that it needs is not on this machine; the message says what.
    """

    def __init__(self, actor: Actor = "in_process", dtype: DType = "float32") -> None:
        self.actor, self.dtype = actor, dtype
        self.redis = find_redis()
        self.bin = environment().parent
        self.owner, self.mark = os.getpid(), processes.new_mark()
        self.folder = processes.FOLDERS / self.mark
        self.ports = free_ports("api", "redis", "store", "ray", "client", "dashboard", "agent")
        self.children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        """The address for clients: ``nnattr.load(..., backend=server.url)``."""
        return f"http://127.0.0.1:{self.ports['api']}"

    def start(self) -> Server:
        """Bring every part up and wait until the API answers.

        Raises:
            RuntimeError: it did not, with the ends of the logs.
        """
        processes.stop_leftovers()
        _stop_with_this_process(self)
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        try:
            for part, command in self._commands().items():
                self._launch(part, command)
                self._wait_for(part)
        except BaseException:
            self.stop()
            raise
        return self

    def kill(self) -> None:
        """Stop every process as a crash would; folder and address stay for another `start`."""
        processes.stop(self.mark)
        for child in self.children.values():
            child.wait()
        self.children.clear()

    def stop(self) -> None:
        """Stop every process and delete what they wrote."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self in _running:
            _running.remove(self)

    def nodes(self) -> list[Any]:
        """The nodes that the API says it can place models on; none while it does not answer."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(f"{self.url}/status", timeout=10) as answer:
                status = json.load(answer)
        except (OSError, ValueError):
            return []
        return list((status.get("cluster") or {}).get("nodes") or [])

    def logs(self, lines: int = 15) -> str:
        """The end of every log."""
        files = [*self.folder.glob("logs/*"), *self.folder.glob("ray/session_latest/logs/worker*")]
        tails = ((file, file.read_text(errors="replace").splitlines()) for file in sorted(files))
        return "\n".join(
            f"--- {file.name}\n" + "\n".join(text[-lines:]) for file, text in tails if text
        )

    def _launch(self, part: str, command: list[str]) -> None:
        with (self.folder / "logs" / part).open("ab") as log:
            self.children[part] = subprocess.Popen(
                command,
                cwd=self.folder,  # not the checkout: a server must not be able to import nnattr
                env=self._environment(part),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us; we stop them
            )

    def _wait_for(self, part: str) -> None:
        """Wait until a part is ready."""
        end = time.monotonic() + PATIENCE
        while not self._ready(part):
            code = self.children[part].poll()
            late = time.monotonic() > end
            if late or (code is not None and not (part == "controller" and code == 0)):
                what = f"did not answer in {PATIENCE:.0f} s" if late else f"ended with code {code}"
                raise RuntimeError(f"The NDIF server's {part} {what}.\n{self.logs()}")
            time.sleep(0.1)

    def _ready(self, part: str) -> bool:
        if part == "controller":  # it starts an actor inside Ray and ends
            return self.children[part].poll() == 0
        if part == "api":
            return bool(self.nodes())
        names = ("ray", "client") if part == "ray" else (part,)
        return all(_listens(self.ports[name]) for name in names)

    def _commands(self) -> dict[str, list[str]]:
        """How each part is started, in this order."""
        host, port = "127.0.0.1", {name: str(number) for name, number in self.ports.items()}
        ray = {
            "node-ip-address": host,
            "port": port["ray"],
            "ray-client-server-port": port["client"],
            "dashboard-agent-listen-port": port["agent"],
            "min-worker-port": "0",
            "max-worker-port": "0",
            "dashboard-port": port["dashboard"],  # the controller asks it for the nodes
            "num-cpus": "8",
            "num-gpus": "1",
            "resources": json.dumps(RESOURCES),
            "object-store-memory": "200000000",
            "include-log-monitor": "false",
            "temp-dir": str(self.folder / "ray"),
        }
        tool = {name: str(self.bin / name) for name in ("python", "moto_server", "ray", "gunicorn")}
        controller = "ndif.services.ray.deployments.controller.controller"
        settings = ["--config", "python:ndif.services.api.gunicorn_conf", "--no-control-socket"]
        return {
            "redis": [self.redis, "--bind", host, "--port", port["redis"], "--save", ""],
            "store": [tool["moto_server"], "-H", host, "-p", port["store"]],
            "ray": [tool["ray"], "start", "--head", "--block", *_options(ray)],
            "controller": [tool["python"], "-m", controller],
            "api": [
                tool["gunicorn"],
                *settings,
                "--bind",
                f"{host}:{port['api']}",
                "ndif.services.api.app:app",
            ],
        }

    def _environment(self, part: str) -> dict[str, str]:
        """What the server's processes inherit: none of our own settings, keys or proxies."""
        foreign = ("RAY_", "NDIF_", "NNATTR_", "PYTHON", "PYTEST_", "VIRTUAL_ENV")
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(foreign) and not name.lower().endswith("_proxy")
        }
        port = self.ports
        ours = {
            "PATH": f"{self.bin}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "PYTHONPATH": str(ON_SERVER),
            "TMPDIR": str(self.folder),
            "TORCH_HOME": str(self.folder / "torch"),  # carries the mark into the sandbox
            "SPT_NOENV": "1",  # Ray's and gunicorn's renaming of processes would erase the mark
            "GRPC_ENABLE_FORK_SUPPORT": "0",
            "HF_HUB_OFFLINE": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "NDIF_REDIS_URL": f"redis://127.0.0.1:{port['redis']}",
            "NDIF_OBJECT_STORE_URL": f"http://127.0.0.1:{port['store']}",
            "NDIF_RAY_ADDRESS": f"ray://127.0.0.1:{port['client']}",
            "NDIF_API_PORT": str(port["api"]),
            "NDIF_DEFAULT_DTYPE": self.dtype,
            "NDIF_DEFAULT_PADDING_BIAS": "0",
            "NDIF_DEFAULT_MODEL_ACTOR_CLASS": ACTORS[self.actor],
            "NDIF_SANDBOX_POOL_SIZE": "1",
        }
        if part == "controller":
            ours["RAY_ADDRESS"] = f"127.0.0.1:{port['ray']}"
        return inherited | ours


@contextmanager
def serve(actor: Actor = "in_process", dtype: DType = "float32") -> Iterator[Server]:
    """A running server, stopped at the end whatever happens."""
    server = Server(actor, dtype)
    try:
        yield server.start()
    finally:
        server.stop()


def find_redis() -> str:
    """The Redis server's program.

    Raises:
        UnavailableError: it is not installed.
    """
    if found := shutil.which("redis-server"):
        return found
    raise UnavailableError(
        "NDIF's server needs redis-server, which is not on the PATH. Get it with `apt-get install "
        "redis-server`, `brew install redis` or `conda install redis-server`."
    )


def free_ports(*names: str) -> dict[str, int]:
    """A free loopback port for each name.

    Below the range that systems give to outgoing connections, so that a server that was killed
    finds its ports free when it comes back.
    """
    candidates = iter(random.sample(range(25_000, 32_000), 1_000))
    return {name: next(port for port in candidates if _free(port)) for name in names}


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _options(options: dict[str, str]) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]


def _stop_with_this_process(server: Server) -> None:
    """Stop ``server`` when this process exits or is told to (SIGTERM, SIGHUP)."""
    if not _running:
        atexit.register(_stop_all)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, _stop_and_pass_on(signal.getsignal(number)))
    if server not in _running:
        _running.append(server)


def _stop_all() -> None:
    for server in list(_running):
        if server.owner == os.getpid():  # not in a forked child
            server.stop()


def _stop_and_pass_on(before: Any) -> Callable[[int, Any], None]:
    """A signal handler that stops our servers, then lets the signal do what it did before."""

    def handle(number: int, frame: Any) -> None:
        _stop_all()
        signal.signal(number, before)
        os.kill(os.getpid(), number)

    return handle


def main() -> None:
    """Run a server in the foreground."""
    parser = argparse.ArgumentParser(prog="python -m tests.ndif.server", description=__doc__)
    parser.add_argument("--actor", choices=get_args(Actor), default="in_process")
    parser.add_argument("--dtype", choices=get_args(DType), default="float32")
    given = parser.parse_args()
    try:
        with serve(given.actor, given.dtype) as server:
            print(server.url, flush=True)
            signal.pause()
    except UnavailableError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
