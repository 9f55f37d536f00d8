"""What a model says and holds, with nothing changed in it."""
