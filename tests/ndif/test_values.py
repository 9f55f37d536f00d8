"""Classes of our own inside a job on a real server: in its process and in a sandbox."""

from __future__ import annotations

import pytest

import nnattr
from tests.ndif.server import Server
from tests.support.values import PAYLOAD, check, values_job

NAMES = ("teaching-gpt2", "teaching-llama")


def compare(server: Server, name: str) -> None:
    here = nnattr.load(name).run(values_job, PAYLOAD, label="values").values
    remote = nnattr.load(name, backend=nnattr.NDIF(host=server.url))
    check(remote.run(values_job, PAYLOAD, label="values").values, here)


@pytest.mark.parametrize("name", NAMES)
def test_in_the_servers_process(server: Server, name: str) -> None:
    compare(server, name)


@pytest.mark.parametrize("name", NAMES)
def test_in_a_sandbox(sandboxed_server: Server, name: str) -> None:
    compare(sandboxed_server, name)
