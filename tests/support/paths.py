"""Folders that tests read."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Weights and tokenizers that lie beside the project; without them their tests are skipped.
SHARED = ROOT.parent / "shared" / "models"
STORIES, GPT2 = SHARED / "stories260K", SHARED / "gpt2-tokenizer"

needs_stories = pytest.mark.skipif(
    not STORIES.is_dir(), reason=f"needs the stories260K weights in {STORIES}"
)
needs_gpt2 = pytest.mark.skipif(not GPT2.is_dir(), reason=f"needs the tokenizer of GPT-2 in {GPT2}")
