r"""Estimators of patching: each a small value, from which one gradient pass makes its numbers.

============== ================================ ================== ================================
name           rules of the backward pass       path               what becomes of the gradients
============== ================================ ================== ================================
``gradient``   -                                the base run       times the change of the cell
``half``       ``products``                     the base run       the same
``relp``       ``norms activations products``   the base run       the same
``gim``        ``norms softmax attention``      the base run       the same
               ``products``
``integrated`` -                                between the runs   their mean, times the change
``atp*``       -                                the base run       magnitudes, over dropped layers;
                                                                   q and k through the softmax
============== ================================ ================== ================================

What a rule does is in `nnattr.engine.rules`. Torch and plain values only.
"""

from __future__ import annotations

from typing import Any

from nnattr.engine.rules import Column


class Estimator:
    """How one estimator is made; see the module.

    Attributes:
        rules: of its backward pass, those of which this model has anything.
        path: whether it goes from one run to the other.
        drops: whether it takes magnitudes over backward passes that drop one layer each.
    """

    def __init__(
        self, rules: tuple[str, ...] = (), path: bool = False, drops: bool = False
    ) -> None:
        self.rules = rules
        self.path = path
        self.drops = drops


#: The estimators by name.
ESTIMATORS = {
    "gradient": Estimator(),
    "half": Estimator(rules=("products",)),
    "relp": Estimator(rules=("norms", "activations", "products")),
    "gim": Estimator(rules=("norms", "softmax", "attention", "products")),
    "integrated": Estimator(path=True),
    "atp*": Estimator(drops=True),
}


class Estimate:
    """What a job is told of its estimator, by names.

    Attributes:
        columns: its rules, where this model has them.
        own: what the site's own gradient is multiplied with: the share of a rule that stands
            behind it.
        path: what goes from one run to the other: ``"inputs"``, ``"activations"``, or nothing.
        shares: how far along that path gradients are taken, each with its weight.
        drops: whether layers are dropped one by one, and magnitudes taken.
        through: ``"q"`` or ``"k"``: their change goes through the softmax, not along its slope; or
            nothing.
    """

    def __init__(
        self,
        *,
        columns: list[dict[str, Any]],
        own: float,
        path: str,
        shares: list[tuple[float, float]],
        drops: bool,
        through: str,
    ) -> None:
        self.columns = [Column(**one) for one in columns]
        self.own = own
        self.path = path
        self.shares = shares
        self.drops = drops
        self.through = through
