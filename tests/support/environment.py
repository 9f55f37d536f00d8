"""Python environments that tests need besides their own: made once, kept outside the checkout.

They lie in ``${XDG_CACHE_HOME:-~/.cache}/nnattr/``. An interrupted installation is thrown away and
made again, and a second process waits until the first is done.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[2]


class UnavailableError(Exception):
    """Something that an environment needs is missing here; the message says how to get it."""


def folder(name: str) -> Path:
    """Where the environment of this name lies."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nnattr"
    cache.mkdir(parents=True, exist_ok=True)
    return cache / name


def lock(home: Path) -> FileLock:
    """What a process holds while it makes the environment at ``home``."""
    return FileLock(home.with_suffix(".lock"))


def made(home: Path, recipe: str, install: Callable[[Path], None]) -> Path:
    """The interpreter of the environment at ``home``, installed unless it is there by this recipe.

    Whoever calls it holds its `lock`.
    """
    done = home / "complete"
    if not done.exists() or done.read_text() != recipe:
        print(f"making the environment {home}, once ...", file=sys.stderr, flush=True)
        shutil.rmtree(home, ignore_errors=True)
        install(home)
        done.write_text(recipe)
    return home / "bin" / "python"


def run(*command: str | Path, **variables: str) -> None:
    """A step of an installation, from the checkout; at low priority.

    Raises:
        UnavailableError: it failed.
    """
    nice = ["nice", "-n", "10"] if shutil.which("nice") else []
    words, env = [*nice, *map(str, command)], {**os.environ, **variables}
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=env)
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-15:])
        raise UnavailableError(f"an environment for tests could not be made:\n{tail}")


def version(python: str | Path) -> tuple[int, ...]:
    """The version (major, minor) of an interpreter; (0,) when it does not run."""
    ask = "import sys, venv, ensurepip; print(*sys.version_info[:2])"
    try:
        answer = subprocess.run([python, "-c", ask], capture_output=True, text=True, timeout=60)
    except OSError:
        return (0,)
    return tuple(map(int, answer.stdout.split())) if answer.returncode == 0 else (0,)


def interpreters(*names: str) -> Iterator[str]:
    """Pythons of these names, such as ``python3.12``: on the PATH, and those of pyenv."""
    for name in names:
        if found := shutil.which(name):
            yield found
        yield from map(str, sorted(_managed().glob(f"{name.removeprefix('python')}.*/bin/python")))


def _managed() -> Path:
    """Where pyenv keeps its interpreters."""
    return Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
