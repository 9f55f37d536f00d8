"""The state of torch in which every number here is computed, whatever the caller's.

Torch keeps switches that change what unrelated code computes: the dtype and the device of new
tensors, autocast, inference mode, whether gradients are taken. A script that has set one of them
for its own sake must get the same numbers, so a public call sets them back for its own time.

All but one are the thread's own. The default dtype is the process's: it is set back only while jobs
run here, which do so one at a time (`nnattr.backend.alone`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

#: The devices whose autocast may be on.
DEVICES = ("cpu", "cuda", "mps", "xpu")

#: Each switch of the thread's: whether it is set, and what sets it back.
SWITCHES: tuple[tuple[Callable[[], bool], Callable[[], AbstractContextManager[Any]]], ...] = (
    (torch.is_inference_mode_enabled, lambda: torch.inference_mode(False)),
    (lambda: not torch.is_grad_enabled(), torch.enable_grad),
    (lambda: torch.get_default_device().type != "cpu", lambda: torch.device("cpu")),
    *(
        (
            lambda device=device: torch.is_autocast_enabled(device),
            lambda device=device: torch.autocast(device, enabled=False),
        )
        for device in DEVICES
    ),
)


@contextmanager
def plain_torch() -> Iterator[None]:
    """Torch as it is when nobody has set anything, in this thread."""
    with ExitStack() as stack:
        for is_set, undone in SWITCHES:
            if is_set():
                stack.enter_context(undone())
        yield


@contextmanager
def plain_dtype() -> Iterator[None]:
    """New tensors in float32, in the whole process."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
