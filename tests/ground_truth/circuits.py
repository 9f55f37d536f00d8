"""The circuits that are built by hand, and the exact effects of their edges, worked out on paper.

All are for sharp attention, where a head looks at one place. With a small ``sharp`` the same models
attend softly, and then nobody knows the effects but an oracle.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.ground_truth.by_hand import LETTERS, Gpt2ByHand, LlamaByHand, V
from tests.ground_truth.known import Known

SHARP = 40.0
#: Induction: "b c ... b" -> c, and in the other prompt "b e ... b" -> e.
INDUCTION = {
    "clean": "f b c d e a b",
    "corrupted": "f h c d b e b",
    "answer": "c",
    "wrong": "e",
}
#: The last head's values change too: alone, at what the base run looks at, they take away what was
#: wrong and add nothing right.
INDUCTION_EDGES = {
    "input->L0H0.v": 1.0,
    "input->L1H0.v": 0.5,
    "L0H0->L1H0.k": 1.0,
    "L1H0->logits": 1.0,
}


def induction(sharp: float = SHARP, distractors: bool = True) -> Known:
    """GPT-2: a previous-token head, and one that looks for what stood before its own token."""
    made = Gpt2ByHand(2, 2, 40, {"prev": V})
    made.head(0, 0, sharp, *made.back(1), made.reads("tok"), made.writes("prev"))
    ask, key = made.reads("tok"), made.reads("prev")
    made.head(1, 0, sharp, ask, key, made.reads("tok"), 5 * made.writes("out"))
    if distractors:
        made.distract()
    return Known("induction", made.module, **INDUCTION, edges=INDUCTION_EDGES)


def grouped_induction(sharp: float = SHARP, distractors: bool = True) -> Known:
    """The same in Llama: rotary embeddings, two heads to a key and value."""
    made = LlamaByHand(2, 32, {"prev": V})
    ask, key = made.back(1)
    made.query(0, 0, sharp, ask, made.writes("prev"))
    made.kv(0, 0, key, made.reads("tok"))
    made.query(1, 0, sharp, made.meets("tok"), 5 * made.writes("out"))
    made.kv(1, 0, made.meets("prev"), made.reads("tok"))
    if distractors:
        made.distract()
    shared = {"L0H0.v": "L0KV0.v", "L1H0.v": "L1KV0.v", "L1H0.k": "L1KV0.k"}
    edges = {}
    for edge, value in INDUCTION_EDGES.items():
        sender, receiver = edge.split("->")
        edges[f"{sender}->{shared.get(receiver, receiver)}"] = value
    return Known("grouped_induction", made.module, **INDUCTION, edges=edges)


def copy(sharp: float = SHARP, distractors: bool = True) -> Known:
    """One head that says what stands two places back."""
    made = Gpt2ByHand(2, 4, 60, {})
    made.head(0, 1, sharp, *made.back(2), made.reads("tok"), made.writes("out"))
    if distractors:
        made.distract()
    return Known(
        "copy",
        made.module,
        *("a b c d e", "a b f d e", "c", "f"),
        edges={"input->L0H1.v": 1.0, "L0H1->logits": 1.0},
        together={("input->L0H1.v", "L0H1->logits"): 1.0},
        paths={"input->L0H1.v->logits": 1.0},
    )


def two_steps(sharp: float = SHARP, distractors: bool = True) -> Known:
    """A token goes one place on, through an MLP, and two places on: three parts in a row."""
    made = Gpt2ByHand(2, 4, 60, {"first": V, "second": V})
    made.head(0, 0, sharp, *made.back(1), made.reads("tok"), made.writes("first"))
    made.mlp(0, made.reads("first"), torch.zeros(V), made.writes("second"))
    made.head(1, 1, sharp, *made.back(2), made.reads("second"), made.writes("out"))
    if distractors:
        made.distract()
    edges = ("input->L0H0.v", "L0H0->M0", "M0->L1H1.v", "L1H1->logits")
    return Known(
        "two_steps",
        made.module,
        *("a b c d e", "a f c d e", "b", "f"),
        edges=dict.fromkeys(edges, 1.0),
        together={edges: 1.0, edges[:2]: 1.0},
        paths={
            "input->L0H0.v->M0->L1H1.v->logits": 1.0,
            "input->L0H0.v->L1H1.v->logits": 0.0,
            "input->M0->L1H1.v->logits": 0.0,
        },
    )


def negative(sharp: float = SHARP, distractors: bool = True) -> Known:
    """A head copies a token, and one behind it looks for that token and takes half of it back.

    The token stands once more in the prompt, as the other does. The second head's values matter at
    the place that differs, which is half of what it looks at.
    """
    made, taken = Gpt2ByHand(2, 4, 60, {}), 0.5
    made.head(0, 0, sharp, *made.back(1), made.reads("tok"), made.writes("out"))
    ask, key = made.reads("out"), made.reads("tok")
    made.head(1, 1, sharp, ask, key, made.reads("tok"), -taken * made.writes("out"))
    if distractors:
        made.distract()
    share = taken / (1 - taken)
    return Known(
        "negative",
        made.module,
        *("c a b a d", "c a b b d", "a", "b"),
        edges={
            "input->L0H0.v": 1.0,
            "L0H0->logits": 1 + share,
            "L0H0->L1H1.q": -share,
            "input->L1H1.v": -share / 2,
            "L1H1->logits": -share,
        },
        together={("L0H0->logits", "L0H0->L1H1.q"): 1.0},
        paths={"input->L0H0.v->L1H1.q->logits": -share, "input->L0H0.v->logits": 1 + share},
    )


def redundant(sharp: float = SHARP, distractors: bool = True) -> Known:
    """Two heads say the same, and an MLP hears that it was said: either of them is enough.

    Restored alone each does everything; taken away alone, nothing. Only together are they missed.
    """
    made = Gpt2ByHand(2, 4, 60, {"said": V})
    for head in (0, 2):
        made.head(0, head, sharp, *made.back(1), made.reads("tok"), made.writes("said"))
    twice, less = made.reads("said").repeat(1, 2), torch.cat([torch.zeros(V), -torch.ones(V)])
    made.mlp(0, twice, less, torch.cat([made.writes("out"), -made.writes("out")]))
    if distractors:
        made.distract()
    both = ("L0H0->M0", "L0H2->M0")
    return Known(
        "redundant",
        made.module,
        *("c d a e", "c d h e", "a", "b"),
        edges=dict.fromkeys(("input->L0H0.v", "input->L0H2.v", *both, "M0->logits"), 1.0),
        noising={"M0->logits": 1.0},
        together={both: 1.0},
        noising_together={both: 1.0, both[:1]: 0.0},
    )


def backup(sharp: float = SHARP, distractors: bool = True) -> Known:
    """A head copies a token, and another does it in its stead when it has said nothing.

    The second looks where the first does, unless something is said: then it looks at the first
    position. Both say nothing of ``h``. In noising the first head's direct effect is all of it, and
    the second makes good for it: what a patch of the whole head cannot see.
    """
    made = Gpt2ByHand(2, 4, 60, {})
    ask, key = made.back(1)
    silent = torch.eye(V)
    silent[LETTERS.index("h")] = 0
    said = made.reads("tok", silent)
    made.head(0, 0, sharp, ask, key, said, made.writes("out"))
    made.head(1, 1, sharp, ask + 2 * _first(made), key, said, made.writes("out"))
    if distractors:
        made.distract()
    return Known(
        "backup",
        made.module,
        *("h c d a e", "h c d h e", "a", "b"),
        edges=dict.fromkeys(("input->L0H0.v", "L0H0->logits", "input->L1H1.v"), 1.0),
        noising={"L0H0->logits": 1.0, "L0H0->L1H1.q": -1.0},
        noising_together={
            ("input->L0H0.v", "input->L1H1.v"): 1.0,
            ("L0H0->logits", "L0H0->L1H1.q"): 0.0,
        },
    )


def _first(made: Gpt2ByHand) -> Tensor:
    """A query for the first position, as strong as what was said."""
    channels = made.back(1)[0].shape[1]
    return made.reads("out", torch.eye(channels)[:1].expand(V, -1))


CIRCUITS: dict[str, Callable[..., Known]] = {
    made.__name__: made
    for made in (induction, grouped_induction, copy, two_steps, negative, redundant, backup)
}
