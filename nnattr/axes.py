"""The axis glossary: one name for each axis, used in every signature, docstring and result.

==========  =====================================================================================
example     one clean/corrupted pair of the task
kind        one of several kinds of something (of heads: ``previous``, ``induction``)
sender      a part of the model that writes what another one reads, by its name: ``L0H7``
receiver    a part of the model that reads it
path        a chain of edges, by the parts on it: ``L0H7->L2H1.q->logits``
component   a named part of the residual stream (``embed``, ``L3 attn``) or point of it (``L3 pre``)
layer       decoder layer, from 0
head        attention head (query head); a head's output is its slice of the projection's input
kv_head     key/value head; under grouped-query attention several query heads share one
pos         token position, counted from the prompt's own first token; negative ones count from its
            end (-1 is the last), where prompts of several lengths are lined up there
query_pos   the position that attends
key_pos     the position attended to
neuron      hidden unit of an MLP
d_head      width of one head's z
d_model     width of the residual stream
d_vocab     size of the vocabulary
==========  =====================================================================================
"""

from __future__ import annotations

from typing import TypeAlias

from jaxtyping import Bool, Float, Int
from torch import Tensor

#: The order in which a result's dimensions stand, always.
ORDER = (
    "example",
    "kind",
    "sender",
    "receiver",
    "path",
    "component",
    "layer",
    "head",
    "kv_head",
    "pos",
    "query_pos",
    "key_pos",
    "neuron",
)

Ids: TypeAlias = Int[Tensor, "example pos"]
Mask: TypeAlias = Bool[Tensor, "example pos"]
Logits: TypeAlias = Float[Tensor, "example pos d_vocab"]
PerExample: TypeAlias = Float[Tensor, " example"]
