"""Classes of our own inside a job survive the way to a server, as plain as they are."""

from __future__ import annotations

from nnattr.runs import portions
from nnattr.tokens import encode
from tests.support.values import PAYLOAD, check, values_job
from tests.tiny import tiny_model


def test_plain_classes_are_rebuilt_from_their_source() -> None:
    here = tiny_model("llama").run(values_job, PAYLOAD, label="values").values
    there = tiny_model("llama", backend="simulated").run(values_job, PAYLOAD, label="values")
    assert there.cost.bytes_sent > 0
    check(there.values, here)


def test_a_rehearsal_leaves_the_classes_of_this_process_as_they_are() -> None:
    """Reading a class that travelled rebinds the live one; a rehearsal puts its functions back."""
    model = tiny_model("llama", backend="simulated")
    before = dict(vars(portions.Portions))
    model.predict(encode(model.tokenizer, ["w3 w4 w5"]))
    assert dict(vars(portions.Portions)) == before
    assert portions.Portions.__init__.__globals__ is vars(portions)
