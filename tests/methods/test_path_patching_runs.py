"""`path_patching` where a run has more than one patched edge: sets of edges, paths, live MLPs."""

from __future__ import annotations

import random

import numpy as np
import pytest

import nnattr
from nnattr import LogitDiff
from nnattr.errors import ArchError, TaskError
from nnattr.graph import parse_edge
from tests.methods.common import assert_far, cells, pairs, ragged_tiny, raw_module, tiny
from tests.oracles import edges as oracle
from tests.support.families import families

#: Norms behind a sublayer alone; a multiplier.
LAYOUTS = ("olmo2", "granite")
EACH = [*families(without=LAYOUTS), *LAYOUTS]
#: Families whose rows through MLPs alone are not what literal passes give: whole passes serve them.
WHOLE = ("bloom",)
PATH = "L0H2 -> L1H3.k -> L2H1.q -> logits"


def asked(model, task, **options):
    return nnattr.path_patching(model, task, LogitDiff(), normalized=False, **options)


@pytest.mark.parametrize("family", EACH)
def test_heads_frozen_and_mlps_live_is_what_literal_passes_give(family):
    model = tiny(family)
    task = ragged_tiny(model)
    scores = asked(model, task, receivers="all", between="mlps")
    served = "full" if family in WHOLE else "suffix"
    assert scores.provenance.arguments["engine"] == served
    assert scores.between == "mlps"
    known = np.argwhere(~np.isnan(scores.raw.to_numpy()[0])).tolist()
    direct = [cell for cell in known if scores.raw.receiver[cell[1]] == "logits"]
    some = [*random.Random(0).sample(known, 8), *random.Random(1).sample(direct, 3)]
    pair = pairs(model, task)[1]
    ours, theirs = [], []
    for sender, receiver in some:
        names = [str(scores.raw[dim].values[at]) for dim, at in
                 (("sender", sender), ("receiver", receiver))]  # fmt: skip
        ours.append(float(scores.raw[1, sender, receiver]))
        theirs.append(oracle.through_mlps(raw_module(model), pair, *names))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-6 * max(1, np.abs(theirs).max()))
    assert_far(scores.raw.fillna(0), asked(model, task, receivers="all").raw.fillna(0))


def test_live_mlps_from_some_positions_and_by_full_passes():
    model = tiny("llama")
    task = ragged_tiny(model)
    options = {"senders": ["L0H1", "M0"], "receivers": ["L2H0", "M2", "logits"], "between": "mlps"}
    ours, full = (
        asked(model, task, positions=-2, engine=engine, **options) for engine in ("suffix", "full")
    )
    np.testing.assert_allclose(ours.raw, full.raw, rtol=0, atol=3e-6)
    for example, pair in enumerate(pairs(model, task)):
        (where,) = cells(task, example, -2)
        theirs = oracle.through_mlps(raw_module(model), pair, "L0H1", "L2H0.q", where)
        found = ours.raw.sel(example=example, sender="L0H1", receiver="L2H0.q")
        np.testing.assert_allclose(float(found), theirs, rtol=0, atol=3e-6)


def test_a_model_without_mlps_has_the_same_effects_either_way():
    from tests.attention_only import attention_only

    model = attention_only()
    task = ragged_tiny(model)
    frozen, live = (
        asked(model, task, receivers="all", between=between) for between in ("frozen", "mlps")
    )
    np.testing.assert_allclose(live.raw, frozen.raw, rtol=0, atol=1e-6)


def test_edges_together_and_a_set_that_is_named():
    model = tiny("gpt2")
    task, edges = ragged_tiny(model), ["L0H1->L1H2.q", "M0->M1", "L1H2->L2H0.v", "input->logits"]
    scores = asked(model, task, edges=edges, together=True)
    assert scores.raw.dims == ("example",)
    pair = pairs(model, task)[0]
    names = [(str(one.sender), str(one.receiver)) for one in map(parse_edge, edges)]
    theirs = oracle.together(raw_module(model), pair, names)
    np.testing.assert_allclose(float(scores.raw[0]), theirs, rtol=0, atol=3e-6)
    apart = asked(model, task, edges=edges).raw.sum(("sender", "receiver"))
    assert_far(scores.raw, apart, share=1e-3)  # effects of edges do not add up


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_edge_together_is_the_other_run(family):
    model = tiny(family)
    task = ragged_tiny(model)
    scores = asked(model, task, receivers="all", together=True, direction="noising")
    gap = scores.baselines.sel(run="corrupted") - scores.baselines.sel(run="clean")
    np.testing.assert_allclose(scores.raw, gap, rtol=0, atol=3e-6)


def test_a_pattern_where_heads_share_keys():
    model = tiny("llama")
    task = ragged_tiny(model)
    scores = asked(model, task, edges="L0H1->L1H2.qk", together=True)
    alone = asked(model, task, edges="L0H1->L1H2.qk").raw.squeeze()
    np.testing.assert_allclose(scores.raw, alone, rtol=0, atol=3e-6)


def test_paths_are_named_and_have_one_number_each():
    model = tiny("llama")
    task = ragged_tiny(model)
    scores = asked(model, task, paths=[PATH, ["L1H0", "logits"]])
    assert list(scores.raw.path.values) == ["L0H2->L1H3.k->L2H1.q->logits", "L1H0->logits"]
    assert scores.mean().top(1)[0].label == "L1H0->logits"
    alone = asked(model, task, paths=PATH)
    np.testing.assert_array_equal(alone.raw[:, 0], scores.raw[:, 0])
    edge = asked(model, task, senders="L1H0")
    np.testing.assert_allclose(scores.raw[:, 1], edge.raw[:, 0, 0], rtol=0, atol=1e-6)


def test_a_checkpoint_and_a_file_of_paths(tmp_path):
    model = tiny("llama")
    task = ragged_tiny(model)
    first = asked(model, task, paths=[PATH], checkpoint=tmp_path)
    again = asked(model, task, paths=[PATH], checkpoint=tmp_path)
    assert again.raw.identical(first.raw)
    again.save(tmp_path / "paths.safetensors")
    assert nnattr.load_result(tmp_path / "paths.safetensors").raw.identical(first.raw)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"paths": []}, ArchError, "No paths"),
        ({"paths": "L0H1 -> L1H0 -> logits"}, ArchError, "L1H0.q"),
        ({"paths": "L2H1 -> L1H0.q -> logits"}, ArchError, "no edge"),
        ({"paths": "L0H9 -> logits"}, ArchError, "L0H9"),
        ({"paths": PATH, "together": True}, TaskError, "one by one"),
        ({"paths": PATH, "between": "mlps"}, TaskError, "off a path is frozen"),
        ({"together": True, "between": "mlps"}, TaskError, "nothing is frozen"),
        ({"together": True, "positions": "each"}, TaskError, "not each"),
    ],
)
def test_what_cannot_be_asked_is_refused(options, error, says):
    model = tiny("llama")
    with pytest.raises(error, match=says):
        asked(model, ragged_tiny(model), **options)
