"""Measurements, printed by scripts that a person runs; not part of the test suite."""
