"""Two small causal language models that the project trains itself, and everything they are made of.

`teaching-gpt2` has the GPT-2 architecture, `teaching-llama` the Llama architecture with
grouped-query attention. Both are plain Hugging Face folders inside this package, so they load
without a network. `python -m nnattr.teaching.train` makes them again from the seeded corpus.

This module is light: importing it imports neither torch nor transformers.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["NAMES", "folder"]

#: The two models, in the order in which they are trained.
NAMES = ("teaching-gpt2", "teaching-llama")


def folder(name: str) -> Path:
    """The folder that holds the teaching model `name`, ready for `from_pretrained`."""
    if name not in NAMES:
        raise ValueError(f"no teaching model is called {name!r}; choose one of {', '.join(NAMES)}")
    return Path(__file__).parent / name
