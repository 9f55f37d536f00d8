"""Results as plotly figures: returned, never shown, with nothing set globally.

`plot` looks at the dimensions that name a cell and chooses:

============================  ==================================================================
layer, head                   heat map, layer 0 at the top
layer, pos                    heat map with the tokens along the axis
layer, head, pos              heat map of the strongest heads over positions, and a menu of layers
one dimension                 bars with standard errors
sender, receiver              heat map; of one receiver its senders, layer by head
sender, receiver, pos         heat map of the strongest edges over positions
============================  ==================================================================

`parts` shows the parts of a whole together, also those beside the cells; `matrix` any labelled
matrix, such as an attention pattern or a block of a circuit.

A dimension of length 1 takes no axis; hover text and axis title name it. Colours diverge from zero,
the same distance both ways: blue is a positive change, red a negative one, grey means that there
was nothing to patch. Every figure shows the mean over examples.
"""

from __future__ import annotations

import plotly.graph_objects as go

from nnattr.arguments import checked
from nnattr.drawing import Drawers
from nnattr.errors import ResultError
from nnattr.plots.bars import bars
from nnattr.plots.edges import edges_figure
from nnattr.plots.head_scores import kinds_figure, loss_figure
from nnattr.plots.heat import heatmap, strongest
from nnattr.plots.lens import lens_figure
from nnattr.plots.matrix import attention_figure, composition_figure, matrix
from nnattr.plots.parts import parts
from nnattr.plots.patterns import patterns_figure
from nnattr.plots.plain import (
    activations_figure,
    answers_figure,
    comparison_figure,
    head_weights_figure,
    inspection_figure,
    weight_matrix_figure,
)
from nnattr.plots.scatter import agreement_figure, agreement_scatter
from nnattr.plots.viewer import viewer
from nnattr.plots.words import open_dims
from nnattr.results import (
    Activations,
    Agreement,
    AnswerTable,
    AttentionParts,
    Comparison,
    Composition,
    EdgeScores,
    HeadScores,
    HeadWeights,
    Inspection,
    Lens,
    Patterns,
    Scores,
    WeightMatrix,
)

__all__ = ["agreement_scatter", "bars", "heatmap", "matrix", "parts", "plot", "strongest"]


@checked
def plot(scores: Scores, *, title: str | None = None, limit: float | None = None) -> go.Figure:
    """The figure that suits the scores' dimensions; what ``Scores.plot`` returns.

    Args:
        scores: per example or averaged; averaged here if need be.
        title: the first line above the figure; None writes one, ``""`` leaves the heading out.
        limit: the value at which the colours (or the axis of bars) end, both ways; None means the
            strongest cell. Give two figures the same limit to compare them by eye.

    Returns:
        a plotly figure; show it with ``.show()`` or keep it with ``.write_html(path)``.

    Raises:
        ResultError: the scores have more than three dimensions to draw.
    """
    dims = open_dims(scores)
    drawers = {1: bars, 2: heatmap, 3: strongest}
    if len(dims) not in drawers:
        raise ResultError(
            f"These scores have the dimensions {dict(scores.raw.sizes)}, and a figure shows one to "
            "three of them besides example; choose a part first, such as scores.sel(layer=0)."
        )
    return drawers[len(dims)](scores, title=title, limit=limit)


#: What draws each type of result: the rows that `nnattr.drawing` hands to results.
FIGURES: Drawers = {
    (Activations, "plot"): activations_figure,
    (Agreement, "plot"): agreement_figure,
    (AnswerTable, "plot"): answers_figure,
    (AttentionParts, "plot"): attention_figure,
    (Comparison, "plot"): comparison_figure,
    (Composition, "plot"): composition_figure,
    (EdgeScores, "plot"): edges_figure,
    (HeadScores, "loss"): loss_figure,
    (HeadScores, "plot"): kinds_figure,
    (HeadWeights, "plot"): head_weights_figure,
    (Inspection, "plot"): inspection_figure,
    (Lens, "plot"): lens_figure,
    (Patterns, "plot"): patterns_figure,
    (Patterns, "viewer"): viewer,
    (Scores, "plot"): plot,
    (WeightMatrix, "plot"): weight_matrix_figure,
}
