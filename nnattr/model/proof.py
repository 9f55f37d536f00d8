"""A proof of a model's structure: the promises of its spec, and whether the live model keeps them.

`nnattr.model.verify` makes it.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from nnattr.errors import ArchError

#: What to do about a model that cannot be proven.
HOW_TO = (
    "If you know where this model's parts are, pass them: nnattr.load(..., spec=ArchSpec("
    "layers=..., attn_proj=..., ...)); nnattr.arch.table has examples, and the spec is proven "
    "before use. Otherwise this model cannot be analysed with nnattr."
)


@dataclass(frozen=True)
class Check:
    """One promise of a spec: its name, whether the model keeps it, and the measured number."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Proof:
    """What `verify` measured.

    Attributes:
        model: the model's name.
        checks: in the order in which they were made; a spec that fails early is not asked more.
    """

    model: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failed(self) -> Check | None:
        """The first check that failed, or None."""
        return next((check for check in self.checks if not check.passed), None)

    def require(self) -> None:
        """Accept the spec, or say why not.

        Raises:
            ArchError: naming the first check that failed.
        """
        if self.failed is not None:
            raise ArchError(
                f"The structure of {self.model!r} could not be proven: the check "
                f"'{self.failed.name}' failed ({self.failed.detail}). {HOW_TO}"
            )

    def __str__(self) -> str:
        lines = [f"Proof of the structure of {self.model}"[:80]]
        for check in self.checks:
            mark = "ok  " if check.passed else "FAIL"
            text = textwrap.wrap(check.detail, 38) or [""]
            lines.append(f"{mark} {check.name:<35.35} {text[0]}".rstrip())
            lines += [" " * 41 + more for more in text[1:]]
        return "\n".join(lines)
