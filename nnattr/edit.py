"""What `nnattr.edited` can do to every run of a model: `ablate` parts, `steer` by a vector."""

from nnattr.model.edited import Ablation, Steering, ablate, steer

__all__ = ["Ablation", "Steering", "ablate", "steer"]
