"""The processes of a test server, found by the mark they carry and stopped.

A server is thirty processes, and some leave their parents: gunicorn's dispatcher outlives it, Ray's
workers belong to a daemon. But all start in the run's folder with an environment that names it, so
the folder's name finds them, and nothing else. It also tells who started the run: a later run stops
what a killed one left behind, and leaves a neighbour's server alone.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import time
from pathlib import Path

import psutil

#: Where the folders of runs are. Ray's sockets lie below, and paths of sockets must not exceed 107
#: bytes: 30 are left for a mark.
FOLDERS = Path("/tmp")

_MARK = re.compile(r"nnattr-(\d+)\.([0-9a-f]+)\.[0-9a-f]{4}")


def new_mark() -> str:
    """A name for a run of this process, which is also the name of its folder."""
    owner = psutil.Process()
    return f"nnattr-{owner.pid}.{_birth(owner):x}.{secrets.token_hex(2)}"


def runs() -> dict[str, list[psutil.Process]]:
    """The live processes of every run on this machine, by the run's mark."""
    found: dict[str, list[psutil.Process]] = {}
    for process in psutil.process_iter(["cwd", "environ"]):  # None where it is another user's
        here, inherited = process.info["cwd"] or "", process.info["environ"] or {}
        if mark := _MARK.search("\0".join([here, *inherited.values()])):
            found.setdefault(mark.group(), []).append(process)
    return found


def owner(mark: str) -> int:
    """The id of the process that started a run."""
    return int(mark.split(".")[0].rpartition("-")[2])


def stop(mark: str, deadline: float = 20.0) -> None:
    """Stop every process of a run, at once: nothing in them is worth saving."""
    end = time.monotonic() + deadline
    while members := runs().get(mark):  # again and again: Ray restarts workers while it lives
        for process in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                sockets = _sandbox_sockets(process)
                process.kill()
                for path in sockets:
                    path.unlink(missing_ok=True)
        if time.monotonic() > end:
            raise RuntimeError(f"processes of {mark} do not end: {members}")
        time.sleep(0.05)


def stop_leftovers() -> None:
    """Stop the runs whose owner is gone, and delete their folders."""
    folders = [path.name for path in FOLDERS.glob("nnattr-*")]
    for mark in {*runs(), *folders}:
        if _orphaned(mark):
            stop(mark)
            shutil.rmtree(FOLDERS / mark, ignore_errors=True)


def _orphaned(mark: str) -> bool:
    """Whether the process that started a run no longer exists, or another has its id now."""
    if not (parts := _MARK.fullmatch(mark)):
        return False
    try:
        return abs(_birth(psutil.Process(int(parts[1]))) - int(parts[2], 16)) > 1
    except psutil.NoSuchProcess:
        return True


def _birth(process: psutil.Process) -> int:
    """When a process started, in seconds; a clock that is set meanwhile may move it by one."""
    return int(process.create_time())


def _sandbox_sockets(process: psutil.Process) -> list[Path]:
    """The sockets of NDIF's sandbox runners, which lie outside the run's folder."""
    return [Path(word) for word in process.cmdline() if word.startswith("/tmp/sbx-")]
