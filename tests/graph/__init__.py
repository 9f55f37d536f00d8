"""Tests of the names of parts and edges."""
