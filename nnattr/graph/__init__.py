"""The parts of a model and the edges between them: one way to write, read and order them."""

from nnattr.graph.edges import Edge, parse_edge
from nnattr.graph.parts import Part, parse

__all__ = ["Edge", "Part", "parse", "parse_edge"]
