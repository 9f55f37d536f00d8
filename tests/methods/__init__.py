"""The methods against their oracles and against what must hold for any weights."""
