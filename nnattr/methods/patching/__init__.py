"""Patching and ablation: what changes when a part is replaced by another run or taken out."""
