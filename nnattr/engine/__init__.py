"""How a patched row becomes a number: exact patching that computes only what a patch can change.

A patch at layer *l* and position *p* of a causal model changes nothing below layer *l* and nothing
before position *p*; where the two runs agree there is nothing to patch. So a patched *row* (one
cell of one example) enters the model at its layer with the base run's residual stream, runs only
the positions from the first one that its patch changes, and attends to the base run's keys and
values before that. A row of *t* tokens that enters at layer *l* of *L* costs *t (L - l)* layers,
against *S L* for a full pass of *S* tokens.

::

                0 ............. start ............ last position
      layer L-1 |                 | computed anew    | -> logits -> metric - base run's metric
            ... | keys and values |                  |
            l+1 | of the base run | computed anew    |
              l | (a cache)       | PATCH enters here|
            ... |                 | skipped: stream  |
              0 |                 | of the base run  |

====  ===================================================  ====================================
step  what happens                                         where
====  ===================================================  ====================================
1     a payload of plain values gets names                 `question.question_of`
2     examples go in portions that fit                     `memory`, `nnattr.runs.portions`
3     both plain runs are made; the base run is kept       `base.base_run`, `cache`
4     cells whose patch can matter become rows             `rows.plan`
5     the fastest mode that agrees with full passes        `fastest`, a `mode.Mode`
6     rows that begin near each other go together          `rows.by_start`, `packing`
7     as many as fit are one pass                          `passes.passes`
8     one pass: rows enter, layer by layer                 `forward.run`
9     with what a row enters, and how it joins the others  `patches.enter_patched`, `join`
10    logits become the metric, less the base run's        `measure.measure`, `passes.changes`
11    changes take their places in the answer              `sweep.sweep`
====  ===================================================  ====================================

Nothing is believed. Every job holds the base run that goes on from its keys and values against its
one pass, and two rows of the engine against full passes (`forward.run_full`, the patch written at
its site, every layer run). A model that fails either is served by full passes, and says so.

an estimate                                         where
==================================================  ====================================
which gradients, and what becomes of them           `estimators`, `estimates.attribute`
rules of the backward pass                          `rules`
shown to act on this model                          `proven_rules.require_proven`
one run, forwards and backwards                     `gradients.differentiated`
along the way to the other run                      `integrated`
without a layer at a time                           `graddrop.magnitudes`
queries and keys through their softmax              `qk_fix`
gradients and changes become cells                  `contributions.contributions`
==================================================  ====================================
=======
`edges_job` measures every edge from what one part writes to what another reads, alone, with all
between frozen (`edges`). Its rows are those above, and enter at their receiver's layer:

====  ===================================================  ====================================
1     which parts write and read                           `ends`
2     what each sender changes in the residual stream      `senders`
3     edges whose change can matter become rows            `edge_rows.plan`
4     what a receiver makes of its changed input           `receivers`
5     with what the row enters a pass                      `edge_rows`
6     the same by whole passes, to be held against         `edge_full`
7     a change's way through MLPs, if these are live       `through_mlps`
====  ===================================================  ====================================

Edges need more than one patched row can say where several are patched together, or one after the
other along a path: `joint_edges` and `chains` run the model once with inputs of their own for the
parts that read them.

=============  ==================================================================================
`wiring`       where parts read and write, held against a run
`written`      the two plain runs: what every part writes in them
`edge_sets`    sets of edges: who reads whom, by layer
`moved`        what senders change of the stream, where readers take them from the other run
`joint_pass`   one run in which every reader of a set of edges has an input of its own
`joint_edges`  its job
`chains`       single paths, and their job
`variants`     several sets, or paths, of every example in passes that fit
=============  ==================================================================================

`attribution_job` estimates all cells from gradients:

==================================================  ==============================================
which gradients, and what becomes of them           `estimators`, `estimates.attribute`
rules of the backward pass                          `rules`
shown to act on this model                          `proven_rules.require_proven`
one run, forwards and backwards                     `gradients.differentiated`
along the way to the other run                      `integrated`
without a layer at a time                           `graddrop.magnitudes`
queries and keys through their softmax              `qk_fix`
gradients and changes become cells                  `contributions.contributions`
==================================================  ==============================================

Methods use seven jobs: `patching_job` and `ablation_job` patch every cell by itself, as above
(`cells`); `attribution_job` estimates all cells (`estimates`);
`together_job` replaces several parts in one run (`together`); `edges_job`, `joint_edges_job` and
`chains_job` patch edges. All of this runs inside a job: torch and plain values only.
"""

from __future__ import annotations

from nnattr.engine.chains import chains_job
from nnattr.engine.edges import edges_job
from nnattr.engine.estimates import attribution_job
from nnattr.engine.joint_edges import joint_edges_job
from nnattr.engine.sweep import ablation_job, patching_job
from nnattr.engine.together import together_job

__all__ = [
    "ablation_job",
    "attribution_job",
    "chains_job",
    "edges_job",
    "joint_edges_job",
    "patching_job",
    "together_job",
]
