"""The parts of a model and the edges between them: one way to write, read and order them.

=======  ========================================================================================
`parts`  a head, a neuron, an MLP, the input, the logits as values: printed, parsed, sorted
`edges`  what one part writes, as another reads it
=======  ========================================================================================
"""

from nnattr.graph.edges import Edge, parse_edge
from nnattr.graph.parts import Part, parse

__all__ = ["Edge", "Part", "parse", "parse_edge"]
