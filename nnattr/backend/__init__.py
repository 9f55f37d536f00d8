"""Where a job runs: in this process, in a rehearsal of a server, or on NDIF.

These are the only files that know about remote execution.

===================  ===========================================================================
`Local`              this process, on the weights that are loaded here
`Simulated`          this process, by way of the serialised and rebuilt request
`NDIF`               the hosted service, or a server of your own; no weights are loaded here
===================  ===========================================================================
"""

from __future__ import annotations

import os
from collections.abc import Callable

from nnattr.backend.local import Local, Simulated
from nnattr.backend.ndif import NDIF
from nnattr.backend.seam import Backend, Cost, JobFunction, Outcome, Tick
from nnattr.config import UserConfig
from nnattr.errors import BackendError

__all__ = [
    "NDIF",
    "Backend",
    "Cost",
    "JobFunction",
    "Local",
    "Outcome",
    "Simulated",
    "Tick",
    "resolve",
]


def resolve(backend: str | Backend | None) -> Backend:
    """The backend that ``backend`` names.

    ``None`` falls back to the environment variable ``NNATTR_BACKEND``, then to the user's
    configuration file, then to ``"local"``.

    Raises:
        BackendError: the name is none of ``"local"``, ``"simulated"``, ``"ndif"`` or a URL.
    """
    if backend is None:
        backend = os.environ.get("NNATTR_BACKEND") or UserConfig.read().backend
    if not isinstance(backend, str):
        return backend
    named: dict[str, Callable[[], Backend]] = {"local": Local, "simulated": Simulated, "ndif": NDIF}
    if backend in named:
        return named[backend]()
    if backend.startswith(("http://", "https://")):
        return NDIF(host=backend)
    raise BackendError(
        f"Unknown backend {backend!r}; expected 'local', 'simulated', 'ndif' or the "
        "http(s)://host:port of an NDIF server."
    )
