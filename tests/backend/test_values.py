"""Classes of our own inside a job survive the way to a server, as plain as they are."""

from __future__ import annotations

from tests.support.values import PAYLOAD, check, values_job
from tests.tiny import tiny_model


def test_plain_classes_are_rebuilt_from_their_source() -> None:
    here = tiny_model("llama").run(values_job, PAYLOAD, label="values").values
    there = tiny_model("llama", backend="simulated").run(values_job, PAYLOAD, label="values")
    assert there.cost.bytes_sent > 0
    check(there.values, here)
