"""The oldest and the newest libraries that nnattr is for, each in an environment of its own.

    python -m tests.versions              # all of them (make test-versions)
    python -m tests.versions oldest       # one

Each has its exact versions from a constraints file and is made once, in
``${XDG_CACHE_HOME:-~/.cache}/nnattr/versions-<name>/``; new pins make it anew. Then it runs what
`make quick` runs, the engine against full passes, and jobs that travel (`tests.support.quick`).

Tests compute on the processor. pip takes torch's CPU build where an index that it is told of has
one, as an index of torch's own has (``PIP_EXTRA_INDEX_URL``); else the build with CUDA, 6 GB each:
which it was is said. What could not be installed is said as well, with pip's reason, and fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
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


@dataclass(frozen=True)
class Combination:
    """Libraries that are tested together.

    Attributes:
        name: what it is called.
        python: the version of Python, such as ``"3.12"``.
        constraints: the file with the exact version of each library.
    """

    name: str
    python: str
    constraints: str


COMBINATIONS = (
    Combination("oldest", "3.11", "constraints-oldest.txt"),
    Combination("pinned", "3.12", "constraints.txt"),
    Combination("newest", "3.13", "constraints-newest.txt"),
)

TESTS = ("-m", "pytest", "tests", "-m", "quick or versions", "-rs", "-p", "no:cacheprovider")
#: The tests compute on the processor, each process with one thread.
ALONE = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

#: Prints what an interpreter has.
ASK = """
import platform, nnsight, torch, transformers
build = f"CUDA {torch.version.cuda}, no CPU build was found" if torch.version.cuda else "CPU"
print(f"Python {platform.python_version()}, torch {torch.__version__} ({build}), "
      f"transformers {transformers.__version__}, nnsight {nnsight.__version__}")
"""


def requirements() -> list[str]:
    """What nnattr needs, and what its tests need, as ``pyproject.toml`` has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["test"]]


def environment(combination: Combination, home: Path) -> Path:
    """The combination's interpreter, with this checkout's nnattr in it.

    Raises:
        UnavailableError: there is no such Python here, or something could not be installed.
    """
    pins = (ROOT / combination.constraints).read_text(encoding="utf-8")
    recipe = "\n".join([combination.python, *requirements(), pins])
    python = made(home, recipe, partial(install, combination))
    pip(python, "--no-deps", "--no-build-isolation", ".")  # this checkout's, not the last one's
    return python


def install(combination: Combination, home: Path) -> None:
    """Make the combination's environment, without nnattr itself."""
    run(interpreter(combination.python), "-m", "venv", home)
    python = home / "bin" / "python"
    pip(python, *requirements(), PIP_CONSTRAINT=combination.constraints)


def pip(python: Path, *words: str, **variables: str) -> None:
    """Install with an environment's pip; a constraint that is told replaces the machine's own."""
    said = ("--quiet", "--disable-pip-version-check", "--no-compile")  # most is never imported
    run(python, "-m", "pip", "install", *said, *words, **variables)


def interpreter(wanted: str) -> str:
    """A Python of this version.

    Raises:
        UnavailableError: there is none.
    """
    for candidate in (*interpreters(f"python{wanted}"), sys.executable):
        if version(candidate) == tuple(map(int, wanted.split("."))):
            return candidate
    raise UnavailableError(
        f"no Python {wanted} was found on the PATH or in pyenv; get one with "
        f"`pyenv install {wanted}` or `uv python install {wanted}`"
    )


def tested(combination: Combination) -> bool:
    """Run the tests with a combination, print what came of it, and say whether they passed."""
    home, begun = folder(f"versions-{combination.name}"), time.monotonic()
    with lock(home):  # nobody makes it anew meanwhile
        try:
            python = environment(combination, home)
        except UnavailableError as error:
            print(f"\n{combination.name}: NOT TESTED: {error}", flush=True)
            return False
        installed = time.monotonic()
        has = output(python, "-c", ASK)
        ran = output(python, *TESTS)
    took = f"installed in {installed - begun:.0f} s, tested in {time.monotonic() - installed:.0f} s"
    print(
        f"\n{combination.name}: {has.stdout.strip() or has.stderr.strip()}",
        f"{combination.constraints}: {took}",
        f"{ran.stdout if ran.returncode else closing(ran.stdout)}{ran.stderr}",
        sep="\n",
        flush=True,
    )
    return ran.returncode == 0


def output(python: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What an interpreter says, run from the checkout."""
    env = {**os.environ, **ALONE}
    return subprocess.run([python, *words], cwd=ROOT, env=env, capture_output=True, text=True)


def closing(text: str) -> str:
    """The end of what pytest says: which tests were skipped and why, and how many passed."""
    return text[text.find("= short test summary") :].partition("\n")[2]


def main(names: list[str]) -> int:
    """Test the combinations of these names, or all; two at a time, where there are processors."""
    chosen = [one for one in COMBINATIONS if one.name in names or not names]
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        passed = list(pool.map(tested, chosen))
    return 0 if passed and all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
