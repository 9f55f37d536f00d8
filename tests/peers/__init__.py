"""Other libraries on the same weights and tokens: their numbers are ours."""
