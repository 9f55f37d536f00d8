"""How a patched row becomes a number."""
