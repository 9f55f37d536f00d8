"""What an example and a row take of memory: an estimate, from the sizes of the model's parts.

====================  ===========================================================================
kept for an example   the base run's residual streams, what attention returned, both runs' site;
                      keys and values of every layer; logits
needed by a row       the activations of one layer for its tokens, their attention scores; one
                      layer's keys and values; the site as it was and patched; logits
====================  ===========================================================================

Inside a job: plain values.
"""

from __future__ import annotations

from typing import Any

from nnattr.engine.question import Question
from nnattr.runs.portions import Portions

#: Floats per token that a layer holds at once: so many residual streams, and widest activations.
STREAMS, WIDEST = 8, 5
#: Bytes of a float as we count them.
FLOAT = 4


def portions_for(
    nn: Any,
    tick: Any,
    payload: dict[str, Any],
    question: Question,
    backward: bool = False,
    streams: int = 0,
) -> Portions:
    """The way through the examples of a question, in portions whose plain runs fit.

    With ``backward`` they are differentiated; besides so many ``streams`` of an example are kept.
    """
    kept = FLOAT * streams * question.layout.sizes.stream * question.base.width
    return Portions(
        nn,
        tick,
        question.layout.embed,
        len(question),
        payload["rows"],
        need=bytes_per_example(question, backward) + kept,
        max_memory=payload["max_memory"],
        tokens=payload["tokens"],
    )


def bytes_per_example(question: Question, backward: bool = False) -> int:
    """The bytes that an example keeps alive, or needs while the plain runs are made.

    With ``backward`` it keeps what a backward pass needs as well.
    """
    layout, sizes, width = question.layout, question.layout.sizes, question.base.width
    layers, asked = layout.depth, len(question.layers)
    kept = (2 * layers + 1) * sizes.stream + 3 * asked * sizes.site
    kept += 2 * 2 * layers * sizes.keys  # of the whole run, and a copy that goes on
    kept += STREAMS * sizes.stream + WIDEST * sizes.widest  # while a plain run is made
    if backward:
        kept += layers * (STREAMS * sizes.stream + WIDEST * sizes.widest)
    scores = width * sizes.heads * (1 + 2 * asked * bool(layout.pattern_paths))
    return FLOAT * width * (kept + 2 * scores) + FLOAT * 6 * logits_per_row(question)


def bytes_per_row(question: Question, start: int, kept: int, size: int = 1) -> int:
    """The bytes that a row needs while it runs from ``start`` on, one of ``size`` in its sequence.

    ``kept`` is the position from which the plain runs are kept.
    """
    width, sizes = question.base.width, question.layout.sizes
    tokens = width - start
    floats = tokens * (STREAMS * sizes.stream + WIDEST * sizes.widest)
    floats += (width - kept) * 6 * sizes.site
    floats += 4 * (start // size + tokens) * sizes.keys
    floats += 3 * tokens * (start + size * tokens) * sizes.heads
    return FLOAT * (floats + 6 * logits_per_row(question))


def logits_per_row(question: Question) -> int:
    """How many logits a row has."""
    read = question.read_tokens
    words = question.layout.sizes.vocab if read is None else len(read)
    return words * (1 if question.last_only else question.base.width)
