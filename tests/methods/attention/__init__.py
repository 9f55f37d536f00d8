"""Tests of questions about heads: where they look and what they make of it."""
