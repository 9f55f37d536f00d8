"""Which families a test runs over, and which differ from the others, and in what."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tiny import FAMILIES

#: One of each layout: fused and separate projections, norms behind a sublayer and soft-caps, a
#: parallel layer, one projection by groups of heads, learned positions with an offset.
CORE = ("gpt2", "llama", "gemma2", "gpt_neox", "falcon-new", "opt")


def families(*, without: tuple[str, ...] = ()) -> list[Any]:
    """Every family as a test's parameter; those beyond `CORE` only with ``--families=all``, in CI.

    For what is dear and whose other cover runs over every family each time: the engine against full
    passes (test_engine), each family's proof, and every other test over `tests.tiny.FAMILIES`. Held
    beyond the core by CI alone are

    - exact patching and its estimate against one plain pass per cell,
    - that the last layer is cut, that rows of several layers share a pass, and an example's keys,
    - that the plan of a pass is what it takes of memory,
    - that a run patched with itself changes by nothing, and that padding changes nothing.
    """
    beyond = pytest.mark.beyond_core
    return [
        family if family in CORE else pytest.param(family, marks=beyond)
        for family in FAMILIES
        if family not in without
    ]


#: Norms of queries and keys inside attention.
NORMED = ("gemma3_text", "olmo2", "olmo3", "olmoe", "qwen3", "qwen3_moe")
#: A bias for the distance, added to attention's scores.
ALIBI = ("bloom", "falcon-serial", "mpt")
#: No rotary embeddings: queries and keys meet as they are projected.
UNTURNED = ("gpt2", "gpt_bigcode", "gpt_neo", "opt")
