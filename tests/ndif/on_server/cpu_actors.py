"""Model actors of the test server: NDIF's own, on a machine without a GPU.

This folder is on the server's PYTHONPATH, alone: nothing here may import nnattr, which a server
does not have. ``NDIF_DEFAULT_MODEL_ACTOR_CLASS`` names one of the two.
"""

from __future__ import annotations

import gc
from typing import Any

import ray
from ndif.services.ray.deployments.modeling.base import BaseModelDeployment
from ndif.services.ray.sandbox.model import SandboxModelDeployment
from nnsight.modeling.huggingface import HuggingFaceModel


class OnCPU(BaseModelDeployment):
    """What NDIF's actor does, without its CUDA calls."""

    CACHEABLE = False  # parked models wait on the CPU, and that is where this one is

    def load_from_disk(self) -> HuggingFaceModel:
        model = HuggingFaceModel.from_model_key(
            self.model_key, dispatch=True, dtype=self.dtype_name, device="cpu", **self.kwargs
        )
        model._module.requires_grad_(False)
        return model

    def cleanup(self) -> None:
        self.kill_switch.clear()
        self.kill_reason = None
        self.execution_ident = None
        self.model.interleaver.cancel()
        gc.collect()


@ray.remote(num_cpus=0, max_restarts=-1)
class InProcess(OnCPU):
    """Runs a block in the model's own process: gradients exist."""


@ray.remote(num_cpus=0, max_restarts=-1)
class Sandboxed(SandboxModelDeployment, OnCPU):
    """Runs a block in a process of its own, as shared deployments do for keys they do not trust.

    Activations arrive there as copies, so there are no gradients.
    """

    async def run(self, request: Any) -> None:
        request.trusted = False  # without key checking the server trusts everyone
        await super().run(request)
