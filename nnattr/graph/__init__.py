"""The parts of a model and the edges between them: one way to write, read and order them.

=========  ========================================================================================
`parts`    a head, a neuron, an MLP, the input, the logits as values: printed, parsed, sorted
`edges`    what one part writes, as another reads it; and paths of edges
`graph`    which parts of a model write, which read, and which edges exist
`missing`  what a model does not have, in words
`choice`   which edges are meant
=========  ========================================================================================
"""

from nnattr.graph.choice import Choice, chosen
from nnattr.graph.edges import Edge, parse_edge, parse_path
from nnattr.graph.graph import Graph
from nnattr.graph.parts import Part, is_one, parse

__all__ = [
    "Choice",
    "Edge",
    "Graph",
    "Part",
    "chosen",
    "is_one",
    "parse",
    "parse_edge",
    "parse_path",
]
