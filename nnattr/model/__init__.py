"""The live model: its view, its sites, its runs, and the proof of its map."""
