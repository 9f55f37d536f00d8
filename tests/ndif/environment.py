"""The Python environment of the test server, made once and kept outside the checkout.

NDIF's server needs Python 3.12 or newer and its own pins, so it cannot live in the environment that
runs the tests. It is made in ``${XDG_CACHE_HOME:-~/.cache}/nnattr/ndif-<hash>/``, where the hash is
that of the pins and the Python version: new pins make a new environment, and an interrupted
installation is thrown away and made again. About 6 GB (pip takes torch's CUDA build) and a few
minutes, once.

    python -m tests.ndif.environment    # make it, print its interpreter
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.environment import (
    ROOT,
    UnavailableError,
    folder,
    interpreters,
    lock,
    made,
    run,
    version,
)

PINS = (
    "torch==2.13.0",
    "ndif[api,ray]==0.1.2",
    "ray==2.60.0",
    "moto[server]==5.2.5",
    "nnsight==0.8.0",  # ndif 0.1.2 calls what 0.8.1 dropped
    "transformers==5.22.2",
)

#: Read by every interpreter of the environment at its start. nnsight breaks the modules that anyio
#: imports late, and uploads over 1 MiB with them, unless they are imported before it.
STARTUP = "import anyio.abc, anyio.streams.file, anyio.streams.tls; anyio.abc.SocketAttribute\n"
#: The file in its packages that holds this.
STARTUP_FILE = "nnattr_tests.pth"

#: Names an interpreter to use instead of the first suitable one.
PYTHON = "NNATTR_NDIF_PYTHON"


def environment() -> Path:
    """The interpreter of the server's environment, which is made if it is not there yet.

    Raises:
        UnavailableError: there is no Python 3.12 or newer, or the installation failed.
    """
    base = find_python()
    return _made("ndif", (PINS, STARTUP, version(base)), base, PINS)


def client() -> Path:
    """The interpreter of a client that has the server's Python, made if it is not there yet.

    It takes the large packages from the server's environment; nnsight, and whatever else is not
    there or not as in ``constraints.txt``, is its own.

    Raises:
        UnavailableError: as `environment`.
    """
    server = environment()
    theirs = next(server.parents[1].glob("lib/python*/site-packages"))
    constraints, project = ROOT / "constraints.txt", ROOT / "pyproject.toml"
    wanted = ("-c", str(constraints), "-e", str(ROOT))
    recipe = (str(server), constraints.read_text(), project.read_text())
    return _made("client", recipe, server, wanted, f"import site; site.addsitedir({str(theirs)!r})")


def find_python() -> Path:
    """A Python that can run the server: the preferred one, on the PATH, or one of pyenv's.

    Raises:
        UnavailableError: there is none.
    """
    for candidate in _candidates():
        if version(candidate) >= (3, 12):
            return Path(candidate)
    raise UnavailableError(
        "NDIF's server needs Python 3.12 or newer, and none was found on the PATH or in pyenv. "
        "Get one with `pyenv install 3.12`, `uv python install 3.12` or `apt-get install "
        f"python3.12-venv`, or name one: {PYTHON}=/path/to/python3.12."
    )


def _candidates() -> Iterator[str]:
    if PYTHON in os.environ:
        yield os.environ[PYTHON]
        return
    yield from interpreters("python3.12", "python3.13")
    yield sys.executable


def _made(
    kind: str, recipe: object, base: Path, wanted: Sequence[str], startup: str = STARTUP
) -> Path:
    """The interpreter of the environment with this recipe, whose hash is in its name."""
    home = folder(f"{kind}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]}")

    def install(home: Path) -> None:
        run(base, "-m", "venv", home)
        packages = next(home.glob("lib/python*/site-packages"))
        (packages / STARTUP_FILE).write_text(startup)
        run(home / "bin" / "python", "-m", "pip", "install", "--quiet", *wanted)

    with lock(home):
        return made(home, "", install)


if __name__ == "__main__":
    try:
        print(environment())
    except UnavailableError as error:
        sys.exit(str(error))
