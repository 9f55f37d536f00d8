"""TransformerLens's direct path patching as a peer of exact edges, on both teaching models.

Its numbers are the metric after the patch, a mean over the pairs; layers up to the source's are
zeros that stand for nothing. It refuses keys and values where heads share them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nnattr import EdgeScores, LogitDiff, path_patching
from nnattr.graph import parse
from tests.methods.common import TEACHING, assert_far, assert_same, even_ioi, teaching
from tests.support.peers import bridge, difference

patching = pytest.importorskip("transformer_lens.patching", reason="needs transformer-lens")


def theirs(name: str, task: Any, layer: int, head: int, port: str) -> np.ndarray:
    """The change of the mean metric [layer, head], NaN where nothing was measured."""
    model, metric = bridge(name), difference(task)
    base, source = task.corrupted_tokens.ids, task.clean_tokens.ids
    with torch.no_grad():
        _, clean = model.run_with_cache(source)
        before, corrupted = model.run_with_cache(base)
        found = patching.get_act_patch_direct_path(
            model,
            base,
            clean,
            corrupted,
            lambda logits: metric(logits).mean(),
            src_layer=layer,
            src_head=head,
            component=port,
            verbose=False,
        )
    found = found - metric(before).mean()
    found[: layer + 1] = float("nan")
    return found.numpy()


def ours(scores: EdgeScores, sender: str, like: np.ndarray) -> np.ndarray:
    """The mean change of edges out of a head [layer, head], NaN where there is none."""
    found = np.full(like.shape, np.nan)
    change = scores.raw.mean("example").sel(sender=sender)
    for receiver, value in zip(change["receiver"].values, change.values, strict=True):
        part = parse(str(receiver))
        found[part.layer, part.number] = value
    return found


@pytest.mark.parametrize("port", ["q", "k", "v"])
@pytest.mark.parametrize("name", TEACHING)
def test_out_of_the_head_of_each_layer_that_matters_most(name, port):
    model, task = teaching(name), even_ioi(teaching(name), 2)
    if port != "q" and model.n_kv_heads < model.n_heads:
        with pytest.raises(ValueError, match="GQA"):
            theirs(name, task, 0, 1, port)
        return
    scores = path_patching(model, task, LogitDiff(), senders="heads", receivers=port)
    largest = abs(scores.raw.mean("example")).max("receiver")
    for layer in range(model.n_layers - 1):
        strength = [float(largest.sel(sender=f"L{layer}H{i}")) for i in range(model.n_heads)]
        head = int(np.argmax(strength))
        expected = theirs(name, task, layer, head, port)
        found = ours(scores, f"L{layer}H{head}", expected)
        assert_same(found, expected, 1e-4)
        assert_far(found[:, ::-1], expected)
