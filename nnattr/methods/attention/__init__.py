"""Where heads look, what they make of it, and what their scores are made of."""
