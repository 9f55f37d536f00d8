"""What a server sends is read without running anything in it."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from nnsight.schema.response import ResponseModel, Status

from nnattr.backend import reading
from nnattr.errors import BackendError
from tests.backend.common import patch, saying, values
from tests.backend.scripted import Script, blob, done, serving, status


class Evil:
    """Whoever unpickles this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def saved(content: Any, **options: Any) -> bytes:
    with io.BytesIO() as file:
        torch.save(content, file, **options)
        return file.getvalue()


def compressed(content: Any, **options: Any) -> bytes:
    return zstandard.compress(saved(content, **options))


def fields(data: Any) -> dict[str, Any]:
    return {"id": "job-1", "status": Status.COMPLETED, "data": data}


#: Each makes, of something evil, what a hostile server may send as its last message.
MESSAGES: dict[str, Callable[[Evil], bytes]] = {
    "in the message": lambda evil: saved(fields(evil), pickle_protocol=4),
    "as the message": lambda evil: saved(evil, pickle_protocol=4),
    "as a bare pickle": lambda evil: pickle.dumps(fields(evil)),
    "in torch's old format": lambda evil: saved(fields(evil), _use_new_zipfile_serialization=False),
    "in the result": lambda evil: done(compressed({"result": {**values(), "engine": evil}})),
    "as the result": lambda evil: done(compressed(evil)),
    "in a result in torch's old format": lambda evil: done(
        compressed({"result": evil}, _use_new_zipfile_serialization=False)
    ),
    "as a result that is a bare pickle": lambda evil: done(zstandard.compress(pickle.dumps(evil))),
}


@pytest.mark.parametrize("where", MESSAGES)
def test_a_hostile_server_runs_nothing_here(where: str, tmp_path: Path) -> None:
    path = tmp_path / "made"
    talk = saying(status("RUNNING"), MESSAGES[where](Evil(path)))
    with serving(Script(talk=talk)) as script, pytest.raises(BackendError) as caught:
        patch(script)
    assert not path.exists()
    assert "activation patching" in str(caught.value)


def test_nor_does_a_hostile_download(tmp_path: Path) -> None:
    path = tmp_path / "made"
    script = Script(page=lambda *_: (200, compressed({"result": Evil(path)})))
    with serving(script):
        script.talk = saying(status("COMPLETED", data=f"{script.url}/result"))
        with pytest.raises(BackendError, match="other than tensors and plain values"):
            patch(script)
    assert script.pages == {"/result": 1}
    assert not path.exists()


def test_the_evil_is_real(tmp_path: Path) -> None:
    """The control: nnsight's own reading would have run it."""
    ResponseModel.unpickle(MESSAGES["in the message"](Evil(tmp_path / "made")))
    assert (tmp_path / "made").exists()


def test_an_honest_download_is_read() -> None:
    script = Script(page=lambda *_: (200, blob({"result": values()})))
    with serving(script):
        script.talk = saying(status("COMPLETED", data=f"{script.url}/result"))
        scores = patch(script)
    assert scores.provenance.bytes_received == len(blob({"result": values()}))


def test_a_download_that_fails() -> None:
    script = Script(page=lambda *_: (500, "no such key"))
    with serving(script):
        script.talk = saying(status("COMPLETED", data=f"{script.url}/result"))
        with pytest.raises(BackendError, match="broke while waiting for job"):
            patch(script)


def test_messages_are_those_that_servers_write() -> None:
    message = ResponseModel(id="1", status=Status.COMPLETED, data=b"x" * 300, meta={"runtime": 2.0})
    assert ResponseModel(**reading.message(message.pickle())) == message


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_cut_message_is_refused(cut: int) -> None:
    whole = ResponseModel(id="1", status=Status.COMPLETED, data=b"x" * 300).pickle()
    with pytest.raises((zipfile.BadZipFile, ValueError)):
        reading.message(whole[:-cut])


@pytest.mark.parametrize("content", [{}, {"a": torch.ones(2)}, [torch.zeros(1), "text", 3.5, None]])
def test_results_of_tensors_and_plain_values_are_read(content: Any) -> None:
    read = reading.result(zstandard.compress(saved(content)), True)
    assert str(read) == str(content)
    assert str(reading.result(saved(content), False)) == str(content)
