"""A weight circuit as a value: a description that can be asked questions, one job each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from nnattr.arguments import Positive, checked
from nnattr.backend import Outcome
from nnattr.errors import ResultError
from nnattr.jobs.record import provenance_of
from nnattr.methods.weight_circuits.weight_circuit_job import weight_circuit_job
from nnattr.model.attention_form import layer_form, short_prompt
from nnattr.model.components import logit_constants, position_table
from nnattr.model.model import Model
from nnattr.results import WeightMatrix
from nnattr.tokens import continuation_id, token_texts

By = Literal["row", "column"]


class Side(NamedTuple):
    """One side of a circuit, in plain values (see `side` of the job)."""

    rows: str
    through: tuple[tuple[int, int], ...]
    end: tuple[str, tuple[tuple[int, int], ...]]


@dataclass(frozen=True, eq=False)
class WeightCircuit:
    """A product of weights over the whole vocabulary, not yet computed.

    Made by `nnattr.weights.ov` and `qk`. Its rows are attended tokens and its columns logits (OV),
    or its rows are queries and its columns keys (QK).

    Attributes:
        model: whose weights.
        name: what it is, in words.
        left: what its rows are made of.
        right: what its columns are made of.
        distance: by how many positions the key is before the query (rotary models).
        fold_norm: whether the norms' weights are in the product.
    """

    model: Model = field(repr=False)
    name: str
    left: Side = field(repr=False)
    right: Side = field(repr=False)
    distance: int = 0
    fold_norm: bool = False

    @checked
    def copying_accuracy(self, top_k: Positive = 1, by: By = "row") -> float:
        """How often a token's own entry is among the ``top_k`` largest of its row.

        For an OV circuit: how often the head raises the token it attends to most of all. For a QK
        circuit: how often a query's strongest key is the same token.

        Args:
            top_k: how many of the largest entries count.
            by: ``"row"``, or ``"column"``: how often a key's strongest query is the same token.

        Raises:
            ResultError: the circuit is between positions, ``by`` is unknown or ``top_k`` below 1.
        """
        if by not in ("row", "column") or top_k < 1 or self.left.rows == "positions":
            raise ResultError(
                f"copying_accuracy(top_k={top_k}, by={by!r}) of {self.name}: expected a circuit "
                "between tokens, top_k of at least 1, and by 'row' or 'column'."
            )
        return self.ask("copying", {"top_k": top_k, "by": by})

    @checked
    def eigenvalues(self) -> np.ndarray:
        """The eigenvalues (complex) other than the zeros of a matrix of small rank."""
        return self.ask("eigenvalues", {}).numpy()

    @checked
    def copying_score(self) -> float:
        """The sum of the eigenvalues over the sum of their sizes: 1 copies, -1 suppresses.

        A head that copies in a rotated basis has complex eigenvalues and a low score, though it
        moves the token faithfully; see `copying_accuracy`, and `nnattr.copying_score` for what a
        head does to real activations.
        """
        values = self.eigenvalues()
        return float(np.real(values).sum() / np.abs(values).sum())

    @checked
    def norm(self) -> float:
        """The Frobenius norm."""
        return self.ask("norm", {})

    @checked
    def directions(self, k: Positive = 5, tokens: Positive = 8) -> pd.DataFrame:
        """The strongest singular directions and the tokens (or positions) at their two ends.

        Args:
            k: how many directions.
            tokens: how many tokens at each end.

        Returns:
            a table with the columns ``direction``, ``singular_value``, ``side`` (``"row"`` or
            ``"column"``), ``end`` (``"+"`` or ``"-"``), ``token`` and ``weight``, its entry in the
            singular vector. Tokens at the ends of one sign go together: rows at ``+`` raise columns
            at ``+``. The sign itself is arbitrary.
        """
        found = self.ask("directions", {"k": k, "tokens": tokens})
        table = []
        for side in ("row", "column"):
            numbers, weights = found[f"{side}s"], found[f"{side}s weight"]
            for at in np.ndindex(*numbers.shape):
                direction, end, _ = at
                table.append(
                    {
                        "direction": direction,
                        "singular_value": float(found["values"][direction]),
                        "side": side,
                        "end": "+-"[end],
                        "token": self._label(int(numbers[at]), side),
                        "weight": float(weights[at]),
                    }
                )
        order = ["direction", "end"]
        return pd.DataFrame(table).sort_values(order, kind="stable", ignore_index=True)

    @checked
    def block(
        self, rows: Sequence[str | int], columns: Sequence[str | int] | None = None
    ) -> WeightMatrix:
        """The entries of some rows and columns, with their names.

        Args:
            rows: tokens as text (each one token, with its leading space) or as ids; positions.
            columns: likewise; by default the same.
        """
        columns = rows if columns is None else columns
        ids = [[self._id(one) for one in side] for side in (rows, columns)]
        asked = {"rows": ids[0], "columns": ids[1]}
        outcome = self._run("block", asked)
        dims = ("query", "key") if self.right.end[0] == "k" else ("input", "output")
        labels = [
            [self._label(one, side) for one in own]
            for own, side in zip(ids, ("row", "column"), strict=True)
        ]
        coords = dict(zip(dims, labels, strict=True))
        values = xr.DataArray(outcome.values["block"].numpy(), dims=dims, coords=coords)
        method = "weights.qk" if self.right.end[0] == "k" else "weights.ov"
        given = {**self._arguments(), **asked}
        made = provenance_of(self.model, None, method=method, arguments=given, outcome=outcome)
        return WeightMatrix(values.to_dataset(name="values"), made, self.name)

    def ask(self, question: str, arguments: dict[str, Any]) -> Any:
        """The answer to one question."""
        return self._run(question, arguments).values[question]

    def by_position(self) -> Outcome:
        """All entries between positions, scaled as the head scales its scores, as ``"block"``."""
        return self._run("block", {"rows": None, "columns": None}, scaled=True)

    def _run(self, question: str, arguments: dict[str, Any], *, scaled: bool = False) -> Outcome:
        """One job with one question."""
        return self.model.run(
            weight_circuit_job, self._payload({question: arguments}, scaled), label=self.name
        )

    def _arguments(self) -> dict[str, Any]:
        """What the circuit is made of, as a provenance keeps it."""
        own = self.left.end[1] or self.right.end[1]
        through = {"left_via": self.left.through, "right_via": self.right.through}
        via = {side: [list(head) for head in heads] for side, heads in through.items() if heads}
        told = {"heads": [list(head) for head in own], **via}
        return {**told, "distance": self.distance, "fold_norm": self.fold_norm}

    def _payload(self, questions: dict[str, Any], scaled: bool) -> dict[str, Any]:
        """What travels to the job."""
        model, sides = self.model, (self.left, self.right)
        heads = [head for side in sides for head in (*side.through, *side.end[1])]
        scores = {layer for side in sides for layer, _ in side.end[1] if side.end[0] in ("q", "k")}
        layers = sorted({layer for layer, _ in heads})
        forms = {layer: layer_form(model, layer, scores=layer in scores) for layer in layers}
        table = position_table(model)
        module = None if table is None else model.module.get_submodule(table)
        multiplier, cap = logit_constants(model)
        return {
            "ids": short_prompt(model),
            "weights": {
                "forms": forms,
                "norm": model.spec.final_norm,
                "fold": self.fold_norm,
                "distance": self.distance,
                "scaled": scaled,
            },
            "ends": {
                "embed": model.spec.embed,
                "positions": table,
                "offset": getattr(module, "offset", 0),
                "unembed": model.spec.unembed,
                "multiplier": multiplier,
                "capped": cap is not None,
                "size": model.vocab_size,
                "context": model.context_length or 0,
            },
            "left": self.left._asdict(),
            "right": self.right._asdict(),
            "questions": questions,
        }

    def _label(self, number: int, side: str) -> str:
        kind = (self.left if side == "row" else self.right).rows
        return (
            str(number) if kind == "positions" else token_texts(self.model.tokenizer, [number])[0]
        )

    def _id(self, token: str | int) -> int:
        if isinstance(token, str):
            return continuation_id(self.model.tokenizer, "\n", token)  # in the midst of a text
        size = self.model.vocab_size
        if self.left.rows == "positions":
            size = self.model.context_length or 0
        if not 0 <= token < size:
            raise ResultError(f"{self.name} has no row or column {token}; it has 0 to {size - 1}.")
        return token
