"""A real NDIF server for the tests of this folder.

They run when the folder is asked for (``pytest tests/ndif``), not with the other tests: a server
takes a while to start and needs an environment of its own. A test asks for one of the servers below
by the name of its fixture; the tests of one server run together, and one is up at a time.

Where something that the server needs is missing the tests are skipped with what it is and how to
get it; with ``NNATTR_REQUIRE_NDIF=1``, as in CI, they fail.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ndif.server import Server, serve
from tests.support.asked_for import left_out
from tests.support.environment import UnavailableError

HERE = Path(__file__).parent

#: fixture -> how its server is started
SERVERS: dict[str, dict[str, Any]] = {
    "server": {"actor": "in_process", "dtype": "float32"},
    "bfloat16_server": {"actor": "in_process", "dtype": "bfloat16"},
    "sandboxed_server": {"actor": "sandboxed", "dtype": "float32"},
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ndif: needs a real NDIF server on this machine")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave this folder out unless it, or something in it, was asked for."""
    return left_out(HERE, config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("ndif")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make the server a parameter of the session, by which pytest groups the tests."""
    if names := [name for name in SERVERS if name in metafunc.fixturenames]:
        metafunc.parametrize("running", names, indirect=True, scope="session")


@pytest.fixture(scope="session")
def running(request: pytest.FixtureRequest) -> Iterator[Server]:
    try:
        with serve(**SERVERS[request.param]) as server:
            yield server
    except UnavailableError as error:
        required = os.environ.get("NNATTR_REQUIRE_NDIF") == "1"
        (pytest.fail if required else pytest.skip)(f"the remote tests did not run: {error}")


@pytest.fixture(scope="session")
def server(running: Server) -> Server:
    """A float32 server that runs jobs in the model's process."""
    return running


@pytest.fixture(scope="session")
def bfloat16_server(running: Server) -> Server:
    """The same in bfloat16, as the hosted service computes."""
    return running


@pytest.fixture(scope="session")
def sandboxed_server(running: Server) -> Server:
    """A float32 server that runs jobs in a sandbox: no gradients."""
    return running
