"""What a model does not have, in words: its parts, and edges between them."""

from __future__ import annotations

from nnattr.errors import ArchError
from nnattr.graph.edges import Edge
from nnattr.graph.graph import Graph
from nnattr.graph.parts import Part

#: Why there is no edge from one part of a model to another.
ORDER = (
    "a part is read by what comes after it, and the heads of a layer come after all that its "
    "heads read and before its MLP, or beside it in a parallel block"
)
#: Why there is no edge into heads.
PLACELESS = (
    "the attention of this family makes queries, keys and values in a way that nnattr does not "
    "know, so only MLPs and the logits are receivers"
)


def inventory(graph: Graph) -> str:
    """What parts a model has."""
    mlps = f" and MLPs M0 to M{graph.layers - 1}" if graph.mlps else ", and no MLPs"
    last = Part("head", graph.layers - 1, graph.heads - 1)
    return f"it has heads L0H0 to {last}{mlps}"


def require_part(graph: Graph, role: str, part: Part) -> None:
    """Refuse what is none of a model's senders, or of its receivers.

    Args:
        graph: of the model.
        role: ``"senders"`` or ``"receivers"``.
        part: the part.

    Raises:
        ArchError: saying what to name instead.
    """
    if role == "senders" and not graph.sends(part):
        raise ArchError(f"{part} does not write in this model: {_no_sender(graph, part)}.")
    if role == "receivers" and not graph.receives(part):
        raise ArchError(f"{part} does not read in this model: {_no_receiver(graph, part)}.")


def require_edge(graph: Graph, edge: Edge) -> None:
    """Refuse an edge that a model does not have.

    Raises:
        ArchError: saying why.
    """
    require_part(graph, "senders", edge.sender)
    require_part(graph, "receivers", edge.receiver)
    if not graph.has(edge.sender, edge.receiver):
        raise ArchError(f"This model has no edge {edge}: {ORDER}.")


def _no_sender(graph: Graph, part: Part) -> str:
    if part.kind in ("head", "kv") and part.port is not None:
        return "it is what a head reads. Senders are heads, such as L3H2, MLPs and the input"
    return f"{inventory(graph)}; these and 'input' are its senders"


def _no_receiver(graph: Graph, part: Part) -> str:
    if part.kind in ("head", "kv") and not graph.attends:
        return PLACELESS
    if (shared := _shared(graph, part)) is not None:
        return (
            f"its heads share keys and values, so what reads is {shared}; ungrouped=True gives "
            "every head its own"
        )
    if (own := _own(graph, part)) is not None:
        return f"here every head has a key and a value of its own, so name a head's, such as {own}"
    return f"{inventory(graph)}; heads read by .q, .k and .v, and 'logits' reads at the end"


def _shared(graph: Graph, part: Part) -> Part | None:
    """What reads instead of a head's own key or value, where heads share them."""
    head = Part("head", part.layer, part.number) if part.kind == "head" else None
    if head is None or not graph.sends(head):
        return None
    return next((one for one in graph.ports(head) if one.port == part.port), None)


def _own(graph: Graph, part: Part) -> Part | None:
    """The key or value of a key/value head's first head, where every head has its own."""
    if part.kind != "kv" or part.number is None:
        return None
    first = Part("head", part.layer, part.number * graph.heads // graph.kv_heads, part.port)
    return first if graph.receives(first) else None
