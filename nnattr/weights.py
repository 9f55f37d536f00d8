"""Questions to the weights alone: what heads are wired to do, with no prompt at all.

===================  ===========================================================================
`ov`                 what attending to each token does to the logits
`qk`                 how much each token as a query looks for each token as a key
`position_pattern`   where a head would look if it saw positions alone
`composition`        which heads read what other heads write
`head`               one head's matrices and biases
`answer_direction`   the direction that says the answer rather than the wrong answer
===================  ===========================================================================

`ov` and `qk` give a `WeightCircuit`, which is asked further; `head` gives `HeadWeights`.
"""

from nnattr.methods.weight_circuits.answer_direction import answer_direction
from nnattr.methods.weight_circuits.composition import composition
from nnattr.methods.weight_circuits.head_weights import head
from nnattr.methods.weight_circuits.ov_qk import ov, position_pattern, qk
from nnattr.methods.weight_circuits.weight_circuit import WeightCircuit
from nnattr.results import HeadWeights, WeightMatrix

__all__ = [
    "HeadWeights",
    "WeightCircuit",
    "WeightMatrix",
    "answer_direction",
    "composition",
    "head",
    "ov",
    "position_pattern",
    "qk",
]
