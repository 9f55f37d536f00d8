"""Results: labelled numbers with where they came from, that can be saved, ranked and plotted.

All are a `Result`, and `load_result` opens the file of any. `Scores` is what every attribution
method returns, `EdgeScores` those of edges; `Lens` is what the logit lens saw, `Patterns` where
heads look, `HeadScores` what kinds of heads there are; `Composition` holds pairs of heads,
`AttentionParts` the components of a head's attention scores.
"""

from __future__ import annotations

from nnattr.results.activations import Activations
from nnattr.results.agreement import Agreement, agreement
from nnattr.results.answers import Answer, AnswerTable
from nnattr.results.attention_parts import AttentionParts
from nnattr.results.base import Result
from nnattr.results.cells import Cell, Ranking, cell_label, measured
from nnattr.results.comparison import Comparison
from nnattr.results.composition import Composition
from nnattr.results.edge_scores import EdgeScores
from nnattr.results.head_scores import HeadScores
from nnattr.results.head_weights import HeadWeights
from nnattr.results.inspection import Inspection
from nnattr.results.lens import Lens
from nnattr.results.load import load_result
from nnattr.results.patterns import Patterns
from nnattr.results.provenance import Provenance
from nnattr.results.scores import Scores
from nnattr.results.weight_matrix import WeightMatrix

__all__ = [
    "Activations",
    "Agreement",
    "Answer",
    "AnswerTable",
    "AttentionParts",
    "Cell",
    "Comparison",
    "Composition",
    "EdgeScores",
    "HeadScores",
    "HeadWeights",
    "Inspection",
    "Lens",
    "Patterns",
    "Provenance",
    "Ranking",
    "Result",
    "Scores",
    "WeightMatrix",
    "agreement",
    "cell_label",
    "load_result",
    "measured",
]
