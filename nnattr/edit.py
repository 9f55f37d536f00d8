"""What `nnattr.edited` can do to every run of a model.

`ablate` parts, `replace` them by those of another run, `steer` by a vector.
"""

from nnattr.model.edit_kinds import Ablation, Steering, Swap, ablate, replace, steer

__all__ = ["Ablation", "Steering", "Swap", "ablate", "replace", "steer"]
