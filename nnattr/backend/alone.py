"""One job at a time in this process, with torch as it is when nobody has set anything.

nnsight runs a job by hooks in the model's own modules and by what it keeps for the whole process,
so two threads that trace at once get each other's values, or errors. A second thread waits here
until the first one's job is done; what is not a job runs beside it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from nnattr.torch_state import plain_dtype, plain_torch


class _Turn:
    """The lock, and a fresh one in a forked child, where nobody is left to release the old one."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        self.lock = threading.RLock()


_TURN = _Turn()


@contextmanager
def alone() -> Iterator[None]:
    """Wait for other threads' jobs, and have torch's own defaults meanwhile."""
    with _TURN.lock, plain_torch(), plain_dtype():
        yield
