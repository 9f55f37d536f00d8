# %% [markdown]
# # 2 · Attribution patching on indirect-object identification
#
# Activation patching needs one run per cell: a head, a layer, a position. A large model has
# thousands of heads, and each can be looked at in every position. **Attribution patching** (Nanda
# 2023) gets all of them from two forward passes and one backward pass, by pretending that the model
# is a straight line between the two runs.
#
# This notebook does it on indirect-object identification, by head and by position, and holds every
# estimate against the exact measurement. On a model of 270 heads we can afford both, which is how to
# learn when the estimate can be trusted.
#
# The model is SmolLM2-135M-Instruct with weights of 4 bits (Q4_1), dequantized; `python -m
# nnattr.pretrained` fetches it once. The whole notebook takes two minutes on one core.

# %%
import pandas as pd

import nnattr

MODEL, BACKEND = "smollm2-135m", "local"  # on NDIF: "meta-llama/Llama-3.1-8B", "ndif"
model = nnattr.load(MODEL, backend=BACKEND)

# %% [markdown]
# The task: 16 pairs of prompts. In the corrupted prompt the other person gives, so the right answer
# and the wrong one change places. In `denoising`, the default, the model runs on the corrupted
# prompt and gets activations from the clean run.

# %%
task = nnattr.tasks.ioi(model.tokenizer, n=16, seed=0)
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
estimate.plot(limit=0.5)

# %%
exact.plot(limit=0.5)

# %%
nnattr.plots.agreement_scatter(exact, estimate)

# %% [markdown]
# Most heads lie on the line, those of the last layer to a hundredth: behind them there is little left
# to bend. Two of the strongest do not. L20H0, exactly 0.40, is estimated at a quarter of that,
# and L17H4, exactly 0.31, at an eighth. What an earlier head writes is read by gated MLPs, by
# softmaxes and norms; a patch that moves these a long way leaves the neighbourhood in which the
# gradient was taken. Nothing in the estimate warns of it.
#
# ## Where the straight line fails
#
# A single head is a small part of what flows through the model, and most heads change little. The
# residual stream holds everything: patching all of it *is* the other run, so its exact score is 1
# at every layer. What does the estimate say?

# %%
both = {"z": (exact, estimate)}
for site in ("attn_out", "mlp_out", "resid_pre"):
    both[site] = (
        nnattr.activation_patching(model, task, metric, site=site),
        nnattr.attribution_patching(model, task, metric, site=site),
    )
rows = {}
for site, pair in both.items():
    right, guess = (scores.mean().values for scores in pair)
    sizes = {"mean size": abs(right), "mean error": abs(right - guess)}
    rows[site] = {name: float(values.mean()) for name, values in sizes.items()}
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# The mean error over all heads is a quarter of their mean size, and much of it is the two heads' above.
# MLP outputs are worse: the MLP of layer 0, whose exact effect is 1, gets 0.07, because everything
# that the model does lies behind it. For the whole residual stream the estimate misses seven tenths
# of an effect that is known to be 1. It is good near the top of the network only:

# %%
both["resid_pre"][1].mean().values.to_series().iloc[::5].round(2)

# %% [markdown]
# ## By position
#
# One backward pass also holds every position apart. Positions mean the same in all prompts only if
# the prompts share a layout, so we take names in one order and keep the pairs of one template.

# %%
many = nnattr.tasks.ioi(model.tokenizer, n=96, seed=1, order="ABBA")
layouts = [(row[1], len(row)) for row in many.clean_tokens.strings]
common = max(layouts, key=layouts.count)
alike = many[[i for i, layout in enumerate(layouts) if layout == common]][:8]
len(alike), alike.clean[0]

# %%
by_position = nnattr.attribution_patching(
    model, alike, metric, site="z", positions="each"
)
nnattr.plots.strongest(by_position, rows=8)

# %% [markdown]
# Each row is a head, each column a position; `S2` is the second mention of the subject, and an
# ellipsis stands for words that differ between the pairs. By this figure all that matters happens at
# the end of the prompt, where the answer is given. That cannot be all: the two prompts differ at
# `S2`, and somebody must bring the news from there.
#
# The exact version of this figure would take a run per head and position. The cells that one means
# to rely on are checked exactly in one call: a ranking says which, and nothing else is run.

# %%
checked = nnattr.activation_patching(
    model, alike, metric, site="z", positions="each", cells=by_position.top(8)
)
print(checked.provenance.asked)
checked.top(8)

# %% [markdown]
# What the estimate does not name is not among them. So it is worth it to **check the positions that
# matter** as well, with all their heads:

# %%
methods = {
    "estimate": nnattr.attribution_patching,
    "exact": nnattr.activation_patching,
}
for span in ("S2", "end"):
    for name, method in methods.items():
        top = method(model, alike, metric, site="z", positions=span).top(3)
        print(f"{span}, {name}\n{top}")

# %% [markdown]
# At `S2` there is one strong head, L17H4. The estimate puts it first there as well, with a ninth of
# its effect, so that beside the heads at the end it does not show. At the end it puts L20H0 fifth
# instead of third. That division of labour, one head where the name is repeated and the others where
# the answer is given, is invisible in the map of heads by layers.
#
# ## The other direction
#
# `noising` asks the opposite question: starting from the clean run, whose *corrupted* activation
# destroys the answer? Denoising finds what suffices, noising what is needed. Where a model has
# backups, the two differ: each of two heads may suffice, and neither be needed.

# %%
noising = nnattr.activation_patching(model, task, metric, site="z", direction="noising")
directions = {"denoising": exact, "noising": noising}
table = pd.DataFrame({k: v.mean().values.to_series() for k, v in directions.items()})
table.loc[exact.top(5).indices].round(3)

# %% [markdown]
# Here the two agree on the first two heads, in order and nearly in size. The largest difference is
# L17H4's, which brings 0.31 back and takes only 0.23 away, as it would if something else could do a
# part of its work.
#
# ## What to conclude, and what not
#
# - Use the estimate to search, and the exact method for every number that you report.
# - Trust the ranking more than the size, heads more than whole layers, late layers more than early
#   ones. Keep more candidates than you mean to report: L17H4 is the fourth of the exact heads and not
#   among the estimate's first ten. A metric that is flat at the base run (a probability near 0 or 1) has no gradient there,
#   and its estimate is near zero whatever the truth.
# - A position's score says where information *is read from or written to*, not what it means.
#
# Next: [the same analysis on a server](03_remote_attribution_patching.ipynb).
