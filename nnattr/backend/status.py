"""What a server has: its deployed models and their states."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from nnattr.backend import NDIF
from nnattr.errors import BackendError


class Deployment(NamedTuple):
    """A model on a server.

    Attributes:
        model: its Hub id, or a folder of the server.
        revision: the revision that is deployed.
        state: RUNNING, DEPLOYING, UNHEALTHY, or the server's word where no copy runs (COLD, WARM).
        dtype: what it computes in, if the server says so.
        architecture: the ``model_type`` of its configuration, if the server says so.
    """

    model: str
    revision: str
    state: str
    dtype: str
    architecture: str


def deployments(backend: NDIF) -> list[Deployment]:
    """The models that a server has, the running ones first.

    Raises:
        BackendError: no server answers there, or what answers is not an NDIF server.
    """
    import httpx
    from nnsight.schema.config import CONFIG

    host = backend.host or CONFIG.API.HOST
    try:
        answer = httpx.get(f"{host}/status", timeout=httpx.Timeout(10.0, read=60.0))
        answer.raise_for_status()
        listed = answer.json()["deployments"].items()
        found = {_deployment(name, entry) for name, entry in listed}
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        raise BackendError(
            f"{host} does not list its models (HTTP status {code}). Try again later."
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise BackendError(
            f"No NDIF server answered at {host} ({error}). Check the address and that the server "
            "is up."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackendError(
            f"What answers at {host} is not an NDIF server: its /status lists no deployments."
        ) from error
    return sorted(found, key=lambda one: (one.state != "RUNNING", one.model, one.revision))


def _deployment(name: str, entry: dict[str, Any]) -> Deployment:
    config = json.loads(entry.get("config") or "{}")
    return Deployment(
        model=str(entry.get("repo_id") or name),
        revision=str(entry.get("revision") or "main"),
        state=str(entry.get("application_state") or entry.get("deployment_level") or "UNKNOWN"),
        dtype=str(entry.get("dtype") or "").removeprefix("torch."),
        architecture=str((config.get("text_config") or config).get("model_type") or ""),
    )
