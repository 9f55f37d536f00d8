# %% [markdown]
# # 2 · Attribution patching on indirect-object identification
#
# Activation patching needs one run per cell: a head, a layer, a position. A large model has
# thousands of heads, and each can be looked at in every position. **Attribution patching** (Nanda
# 2023) gets all of them from two forward passes and one backward pass, by pretending that the model
# is a straight line between the two runs.
#
# This notebook does it on indirect-object identification, by head and by position, and holds every
# estimate against the exact measurement. On a small model we can afford both, which is how to learn
# when the estimate can be trusted.

# %%
import pandas as pd

import nnattr

MODEL, BACKEND = "teaching-llama", "local"  # on NDIF: "meta-llama/Llama-3.1-8B", "ndif"
model = nnattr.load(MODEL, backend=BACKEND)

# %% [markdown]
# The task: 32 pairs of prompts. In the corrupted prompt the other person gives, so the right answer
# and the wrong one change places. In `denoising`, the default, the model runs on the corrupted
# prompt and gets activations from the clean run.

# %%
task = nnattr.tasks.ioi(model.tokenizer, n=32, seed=0)
metric = nnattr.LogitDiff()
for prompts, answers in (
    (task.clean, task.answers),
    (task.corrupted, task.wrong_answers),
):
    print(prompts[0], "→", *answers[0])

# %% [markdown]
# ## The estimate
#
# For an activation $a$ of the corrupted run with the clean value $a^{clean}$, and a metric $m$,
#
# $$\widehat{\Delta m} \;=\; (a^{clean} - a^{corrupted}) \cdot
#   \left.\frac{\partial m}{\partial a}\right|_{corrupted}$$
#
# is the change of the metric if the model were linear. It has the sign and the unit of what
# activation patching measures, so the two can be laid on top of each other.

# %%
estimate = nnattr.attribution_patching(model, task, metric, site="z")
exact = nnattr.activation_patching(model, task, metric, site="z")
exact.baselines.mean("example").to_series()

# %% [markdown]
# Both baselines belong to this model and this tokenizer, and come from the same job as the scores.
# (A well-known tutorial reuses the answer ids of GPT-2 for a Llama, through a default argument: its
# clean run then scores 0.53 where it should score 1. Baselines that are not 1 and 0 are the first
# thing to look for.)
#
# A common limit makes the two figures comparable by eye.

# %%
estimate.plot(limit=1)

# %%
exact.plot(limit=1)

# %%
nnattr.plots.agreement_scatter(exact, estimate)

# %% [markdown]
# The ranking survives; the size of the strongest effect does not. A head whose patch moves the
# model a long way leaves the neighbourhood in which the gradient was taken: attention saturates,
# and norms rescale.
#
# ## Where the straight line fails
#
# A single head is a small part of what flows through the model, and most heads change little. The
# residual stream holds everything: patching all of it *is* the other run, so its exact score is 1
# at every layer. What does the estimate say?

# %%
rows = []
for site in ("z", "attn_out", "mlp_out", "resid_pre"):
    pair = [
        method(model, task, metric, site=site).mean().values
        for method in (nnattr.activation_patching, nnattr.attribution_patching)
    ]
    rows.append(
        [site, *(float(abs(one).mean()) for one in (pair[0], pair[0] - pair[1]))]
    )
pd.DataFrame(rows, columns=["site", "mean size", "mean error"]).set_index("site").round(
    3
)

# %% [markdown]
# Over all heads the estimate is off by little, because most heads have little to be wrong about. For
# the whole residual stream it misses about half of an effect that is known to be 1. It is best near
# the top of the network, where little is left to bend:

# %%
resid = nnattr.attribution_patching(model, task, metric, site="resid_pre")
resid.plot(limit=1)

# %% [markdown]
# ## By position
#
# One backward pass also holds every position apart. Positions mean the same in all prompts only if
# the prompts share a layout, so we take names in one order and keep the pairs of one template.

# %%
many = nnattr.tasks.ioi(model.tokenizer, n=96, seed=1, order="ABBA")
layouts = [(row[1], len(row)) for row in many.clean_tokens.strings]
common = max(layouts, key=layouts.count)
alike = many[[i for i, layout in enumerate(layouts) if layout == common]]
len(alike), alike.clean[0]

# %%
by_position = nnattr.attribution_patching(
    model, alike, metric, site="z", positions="each"
)
nnattr.plots.strongest(by_position, rows=8)

# %% [markdown]
# Each row is a head, each column a position; `S2` is the second mention of the subject, and an
# ellipsis stands for words that differ between the pairs. The strong heads act in different places:
# one where the differing name has just gone by, the others at the end of the prompt, where the
# answer is given. That division of labour is invisible in the map of heads by layers.
#
# The exact version of this figure would take a run per head and position. It is cheap to **check
# the cells that matter**, and one should:

# %%
exact_positions = nnattr.activation_patching(
    model, alike, metric, site="z", positions="each"
)
print("estimate\n" + repr(by_position.top(4)))
print("exact\n" + repr(exact_positions.top(4)))

# %% [markdown]
# ## The other direction
#
# `noising` asks the opposite question: starting from the clean run, whose *corrupted* activation
# destroys the answer? Denoising finds what suffices, noising what is needed. Where a model has
# backups, the two differ: each of two heads may suffice, and neither be needed.

# %%
noising = nnattr.activation_patching(model, task, metric, site="z", direction="noising")
both = {"denoising": exact, "noising": noising}
table = pd.DataFrame({k: v.mean().values.to_series() for k, v in both.items()})
table.loc[exact.top(5).indices].round(3)

# %% [markdown]
# Here they agree closely: this small model has few backups. Large models have many.
#
# ## What to conclude, and what not
#
# - Use the estimate to search, and the exact method for every number that you report.
# - Trust the ranking more than the size, heads more than whole layers, late layers more than early
#   ones. A metric that is flat at the base run (a probability near 0 or 1) has no gradient there,
#   and its estimate is near zero whatever the truth.
# - A position's score says where information *is read from or written to*, not what it means.
#
# Next: [the same analysis on a server](03_remote_attribution_patching.ipynb).
