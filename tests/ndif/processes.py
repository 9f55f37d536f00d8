"""The processes of a test server, found by the mark they carry and stopped by their ids.

A server is thirty processes, and some leave their parents: gunicorn's dispatcher outlives it, Ray's
workers belong to a daemon. But all start in the run's folder with an environment that names it, so
the folder's name finds them in ``/proc``, and nothing else. It also tells who started the run: a
later run stops what a killed one left behind, and leaves a neighbour's server alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import time
from pathlib import Path

#: Where the folders of runs are: Ray's sockets lie below and their paths must stay short.
FOLDERS = Path("/tmp")

_MARK = re.compile(rb"nnattr-ndif-(\d+)\.(\d+)\.[0-9a-f]{6}")


def new_mark() -> str:
    """A name for a run of this process, which is also the name of its folder."""
    owner = os.getpid()
    return f"nnattr-ndif-{owner}.{_birth(owner)}.{secrets.token_hex(3)}"


def runs() -> dict[str, list[int]]:
    """The ids of the live processes of every run on this machine, by the run's mark."""
    found: dict[str, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                here = os.fsencode(os.readlink(entry / "cwd"))
                if mark := _MARK.search(here + b"\0" + (entry / "environ").read_bytes()):
                    found.setdefault(mark.group().decode(), []).append(int(entry.name))
    return found


def owner(mark: str) -> int:
    """The id of the process that started a run."""
    return int(mark.split(".")[0].rpartition("-")[2])


def stop(mark: str, deadline: float = 20.0) -> None:
    """Stop every process of a run, at once: nothing in them is worth saving."""
    end = time.monotonic() + deadline
    while pids := runs().get(mark):  # again and again: Ray restarts workers while it lives
        for pid in pids:
            sockets = _sandbox_sockets(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            for path in sockets:
                path.unlink(missing_ok=True)
        if time.monotonic() > end:
            raise RuntimeError(f"processes of {mark} do not end: {pids}")
        time.sleep(0.05)


def stop_leftovers() -> None:
    """Stop the runs whose owner is gone, and delete their folders."""
    folders = [path.name for path in FOLDERS.glob("nnattr-ndif-*")]
    for mark in {*runs(), *folders}:
        if _orphaned(mark):
            stop(mark)
            shutil.rmtree(FOLDERS / mark, ignore_errors=True)


def _orphaned(mark: str) -> bool:
    """Whether the process that started a run no longer exists."""
    parts = _MARK.fullmatch(mark.encode())
    return parts is not None and _birth(int(parts[1])) != int(parts[2])


def _birth(pid: int) -> int | None:
    """When a process started, in clock ticks since boot: with its id, its identity."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


def _sandbox_sockets(pid: int) -> list[Path]:
    """The sockets of NDIF's sandbox runners, which lie outside the run's folder."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
    return [Path(word) for word in words if word.startswith("/tmp/sbx-")]
