"""Which estimator a call of attribution patching asks for: checked, and as it travels.

A value of `Estimating` is one of the rows of `nnattr.engine.estimators` with its settings. It knows
what it says in a result's provenance, and what the job is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from nnattr.engine.estimators import ESTIMATORS
from nnattr.errors import ArchError, ArgumentError
from nnattr.jobs.layout import PatchSite
from nnattr.model.model import Model
from nnattr.model.rules import HALF, LackingError, columns

EstimatorName: TypeAlias = Literal["gradient", "half", "relp", "gim", "integrated", "atp*"]
RuleName: TypeAlias = Literal[
    "norms", "activations", "products", "attention", "softmax", "patterns"
]
#: Which points of the way are used: of so many equal steps the middles, the beginnings, the ends,
#: or all of these with those of the whole way counted half.
Points: TypeAlias = Literal["midpoint", "left", "right", "trapezoid"]
#: What goes from one run to the other.
Way: TypeAlias = Literal["inputs", "activations"]

#: What is used where a call leaves it open.
STEPS, POINTS, WAY, TEMPERATURE = 10, "midpoint", "inputs", 2.0


@dataclass(frozen=True)
class Estimating:
    """An estimator with its settings; those that are None are left open.

    Attributes:
        name: which estimator.
        rules: of its backward pass, in the place of its own.
        temperature: of the softmax in the backward pass.
        steps, points, along: of the way between the runs.

    Raises:
        ArgumentError: a setting that this estimator does not have.
    """

    name: EstimatorName = "gradient"
    rules: Sequence[RuleName] | None = None
    temperature: float | None = None
    steps: int | None = None
    points: Points | None = None
    along: Way | None = None

    def __post_init__(self) -> None:
        row = ESTIMATORS[self.name]
        for setting in ("steps", "points", "along"):
            self._allow(setting, row.path, "estimator='integrated'")
        self._allow("rules", bool(row.rules), "estimator='half', 'relp' or 'gim'")
        softens = "softmax" in (self.rules or row.rules)
        self._allow("temperature", softens, "the rule 'softmax', which estimator='gim' has")
        if self.temperature is not None and not self.temperature > 0:
            raise ArgumentError(f"temperature is {self.temperature}; expected more than 0.")
        if self.rules is not None and not self.rules:
            raise ArgumentError("rules is empty; estimator='gradient' is without any.")

    def _allow(self, setting: str, allowed: bool, where: str) -> None:
        value = getattr(self, setting)
        if value is not None and not allowed:
            raise ArgumentError(
                f"{setting}={value!r} is a setting of {where}; estimator={self.name!r} has none."
            )

    def arguments(self, model: Model) -> dict[str, Any]:
        """What a provenance says of it."""
        row, said = ESTIMATORS[self.name], {"estimator": self.name}
        if row.path:
            said |= {
                "steps": self.steps or STEPS,
                "points": self.points or POINTS,
                "along": self.along or WAY,
            }
        if row.rules:
            acting = tuple(dict.fromkeys(one["rule"] for one in self._columns(model)))
            said |= {"rules": acting}
            if "softmax" in acting:
                said |= {"temperature": self.temperature or TEMPERATURE}
        return said

    def payload(self, model: Model, site: PatchSite) -> dict[str, Any]:
        """What the job is told: see `nnattr.engine.estimators.Estimate`."""
        if site in ("q", "k") and "patterns" in (self.rules or ()):
            raise ArgumentError(
                f"The rule 'patterns' holds the attention pattern, so that nothing goes through "
                f"site={site!r}. Use 'v' or 'z', or other rules."
            )
        row, found = ESTIMATORS[self.name], self._columns(model)
        behind = any(one["rule"] == "attention" for one in found)
        return {
            "columns": found,
            # the rule halves what q, k and the pattern give on, behind where they are read
            "own": HALF if behind and site in ("q", "k", "pattern") else 1.0,
            "path": (self.along or WAY) if row.path else "",
            "shares": shares(self.steps or STEPS, self.points or POINTS) if row.path else [],
            "drops": row.drops,
            "through": self.through(site),
        }

    def through(self, site: PatchSite) -> str:
        """Whether queries or keys go through the softmax: ``"q"``, ``"k"`` or nothing."""
        return site if ESTIMATORS[self.name].drops and site in ("q", "k") else ""

    @property
    def complete(self) -> Literal["", "inputs", "activations"]:
        """Along which way its completeness error is taken, if it has one."""
        return (self.along or WAY) if ESTIMATORS[self.name].path else ""

    @property
    def magnitudes(self) -> bool:
        """Whether its numbers are magnitudes, without a sign."""
        return ESTIMATORS[self.name].drops

    def _columns(self, model: Model) -> list[dict[str, Any]]:
        """Where its rules act in this model.

        Raises:
            ArchError: a rule that was asked for, or all of them, have nothing to act on; or nnattr
                does not know where.
        """
        found: list[dict[str, Any]] = []
        for rule in dict.fromkeys(self.rules or ESTIMATORS[self.name].rules):
            try:
                found += columns(model, rule, self.temperature or TEMPERATURE)
            except LackingError as lacking:
                if self.rules is not None or self.name == "half":
                    raise ArchError(self._refusal(model, rule, str(lacking))) from None
            except ArchError as unknown:
                raise ArchError(self._refusal(model, rule, str(unknown))) from None
        return found

    def _refusal(self, model: Model, rule: str, why: str) -> str:
        return (
            f"estimator={self.name!r}: the rule {rule!r} would change nothing in {model.name} "
            f"({model.architecture}): {why}. Leave it out with rules=(...), or use another "
            "estimator."
        )


def shares(steps: int, points: Points) -> list[tuple[float, float]]:
    """How far along the way gradients are taken, each with its weight."""
    if points == "trapezoid":
        ends = (0, steps)
        return [(k / steps, (0.5 if k in ends else 1) / steps) for k in range(steps + 1)]
    first = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[points]
    return [((k + first) / steps, 1 / steps) for k in range(steps)]
