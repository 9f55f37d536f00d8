"""The page of methods has all of them, as the registry says."""

from __future__ import annotations

from docs.methods import PAGE, page
from nnattr.calls.registry import METHODS


def test_the_table_is_that_of_the_registry():
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "run `make methods`"
    assert all(f"| [`{name}`](#nnattr.{name}) |" in text for name in METHODS)


def test_every_method_is_described_below_it():
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in METHODS if f"\n::: nnattr.{name}\n" not in text + "\n"] == []
