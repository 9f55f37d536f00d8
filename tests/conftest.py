"""What every test starts from: one thread, no network host of the user's, the local backend."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _nobodys_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user's own configuration must not decide what a test sees."""
    monkeypatch.delenv("NNATTR_BACKEND", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


# no deadline: machines are noisy; the same examples in every run
settings.register_profile("nnattr", deadline=None, derandomize=True)
settings.load_profile("nnattr")
