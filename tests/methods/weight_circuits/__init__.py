"""Tests of what weights say with no prompt at all."""
