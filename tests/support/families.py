"""Which families differ from the others, and in what."""

from __future__ import annotations

#: Norms of queries and keys inside attention.
NORMED = ("gemma3_text", "olmo2", "olmo3", "olmoe", "qwen3", "qwen3_moe")
#: A bias for the distance, added to attention's scores.
ALIBI = ("bloom", "falcon-serial", "mpt")
#: No rotary embeddings: queries and keys meet as they are projected.
UNTURNED = ("gpt2", "gpt_bigcode", "gpt_neo", "opt")
