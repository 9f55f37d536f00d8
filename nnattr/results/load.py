"""Opening any result: its file says what kind it is."""

from __future__ import annotations

from pathlib import Path

from nnattr.arguments import checked
from nnattr.results.activations import Activations
from nnattr.results.agreement import Agreement
from nnattr.results.answers import AnswerTable
from nnattr.results.attention_parts import AttentionParts
from nnattr.results.base import Result, read
from nnattr.results.comparison import Comparison
from nnattr.results.composition import Composition
from nnattr.results.head_scores import HeadScores
from nnattr.results.head_weights import HeadWeights
from nnattr.results.inspection import Inspection
from nnattr.results.lens import Lens
from nnattr.results.patterns import Patterns
from nnattr.results.scores import Scores
from nnattr.results.weight_matrix import WeightMatrix

TYPES: tuple[type[Result], ...] = (
    Activations,
    Agreement,
    AnswerTable,
    AttentionParts,
    Comparison,
    Composition,
    HeadScores,
    HeadWeights,
    Inspection,
    Lens,
    Patterns,
    Scores,
    WeightMatrix,
)
#: Every type of result, by the name that its files bear.
KINDS = {kind.__name__: kind for kind in TYPES}


@checked
def load_result(path: str | Path) -> Result:
    """Read the file of any result, as its ``save`` wrote it, now or with schema 1 or 2.

    Reading runs no code. `Scores.load` and its kin do the same and refuse other kinds.

    Raises:
        ResultError: no such file, truncated or not a result, of an unknown schema version, or with
            contents that contradict its header.
    """
    return read(path, KINDS)
