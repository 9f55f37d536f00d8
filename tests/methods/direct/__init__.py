"""Tests of what parts write straight toward the next token."""
