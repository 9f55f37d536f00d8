"""Quantized modules whose numbers for a prompt depend on the prompts beside it.

Weights in int8 or four bits are weights like others, as long as each token is computed by itself:
torchao's and bitsandbytes' are. Torch's own dynamic int8 rounds activations to a scale that is read
off the whole batch, so no two passes with other rows can be compared, and every method does that.
"""

from __future__ import annotations

from typing import Any

from nnattr.errors import ArchError

#: Where torch keeps the modules that scale a whole batch at once.
WHOLE_BATCH = ("torch.ao.nn.quantized", "torch.nn.quantized")


def require_rows_apart(module: Any, name: str) -> None:
    """Refuse a module whose rows depend on each other.

    Raises:
        ArchError: with the first part that makes them.
    """
    for path, part in module.named_modules():
        if type(part).__module__.startswith(WHOLE_BATCH):
            raise ArchError(
                f"{name} was quantized by torch.ao ({path!r} is a {type(part).__module__}."
                f"{type(part).__name__}), which rounds activations to a scale of the whole batch: "
                "what a prompt gives depends on the prompts beside it, so patched runs cannot be "
                "compared. Use the float model, or one whose weights alone are rounded, such as "
                "torchao's Int8WeightOnlyConfig or bitsandbytes' four bits."
            )
