"""Slow twins that are obviously right: plain PyTorch, no nnsight and nothing of nnattr."""
