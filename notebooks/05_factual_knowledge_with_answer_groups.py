# %% [markdown]
# # 5 · Factual knowledge, with groups of answers
#
# *Is Paris the capital of France?* A model may say *Yes*, *Sure*, *Correct* or *Certainly*, and mean
# the same. So one word's logit does not measure what it thinks, and one has to compare **groups** of
# words. How, decides what is found.
#
# This notebook goes through the three ways to compare two groups, shows where the usual one misleads,
# and then finishes what the notebook that it follows announced and did not get to: activation
# patching with corrupted facts, from layers and positions down to the heads, discovered on one half
# of the data and reported on the other.

# %%
import json

import pandas as pd

import nnattr

MODEL, BACKEND = "teaching-llama", "local"  # on NDIF: "meta-llama/Llama-3.1-8B", "ndif"
model = nnattr.load(MODEL, backend=BACKEND)

# %% [markdown]
# ## Questions from a file
#
# Each row holds a question, a twin that makes the opposite claim about the same thing, and a label.
# The corrupted prompt changes **only the claim**: *Is the robin a bird?* against *Is the robin a
# tool?* Whatever a patch restores is then knowledge about the robin and the claim, not about how
# questions are asked.

# %%
made = nnattr.tasks.facts(model.tokenizer, n=80, seed=5)
says_yes = [" Yes" in group for group in made.answers]
rows = [
    {"question": q, "twin": t, "label": str(yes)}
    for q, t, yes in zip(made.clean, made.corrupted, says_yes)
]
json.dump(rows, open("facts.json", "w"))
pd.DataFrame(rows).head(4)

# %% [markdown]
# ## What does the model say?

# %%
nnattr.inspect_prompt(model, rows[0]["question"], " Yes", top_k=7)

# %% [markdown]
# The probability of *yes* is spread over several words, none of which has most of it. An answer map
# says which words stand for which label. The words of the other label are the wrong answers.

# %%
answer_map = {
    "True": [" Yes", " Sure", " Correct", " Right", " True", " Certainly"],
    "False": [" No", " Never", " Wrong", " False", " Nope"],
}
columns = {"clean": "question", "corrupted": "twin", "answer": "label"}
task = nnattr.Task.from_table(
    "facts.json", tokenizer=model.tokenizer, answer_map=answer_map, **columns
).filter(model)
print(f"the model is right on {len(task)} of {len(rows)}")

# %% [markdown]
# ## Three ways to compare groups
#
# | metric | what it is | what it is good for |
# | --- | --- | --- |
# | `LogitDiff` | difference of mean logits | linear, so direct attribution can use it |
# | `GroupLogProbDiff` | log-odds of the groups | what the model will say |
# | `GroupProbDiff` | difference of probabilities | the same sign, but saturates near 0 and 1 |
#
# The notebook that we follow argued that the mean of logits stands for the probability of a group,
# *if the logits are spread alike in both*. Its own groups broke that: they listed every spelling that
# came to mind, among them words that the model never says. Each of those pulls the mean down and
# leaves the probability as it is. Here are our groups with such spellings added:

# %%
spellings = {
    "True": [*answer_map["True"], "Yes", "True", " true"],
    "False": answer_map["False"],
}
wide = nnattr.Task.from_table(
    "facts.json", tokenizer=model.tokenizer, answer_map=spellings, **columns
).filter(model)

# %%
table = {}
for metric in (
    nnattr.LogitDiff(),
    nnattr.GroupLogProbDiff(),
    nnattr.GroupProbDiff(),
):
    for name, words in (("words it says", task), ("with other spellings", wide)):
        parts = nnattr.attribution_patching(model, words, metric, normalized=False)
        clean = parts.baselines.sel(run="clean")
        table[type(metric).__name__, name] = float((clean < 0).mean())
pd.Series(table, name="share of right answers scored as wrong").unstack().round(2)

# %% [markdown]
# Every prompt in both tasks is answered correctly: the right group is the more probable one. With
# the wider lists the mean of logits calls some of them wrong all the same; the other two metrics
# cannot. **Use the log-odds to say what the model answers and for patching. Use mean logits where
# linearity is needed, with words that the model really says, and check the sign.**
#
# ## Discover on one half, report on the other
#
# Choosing the strongest of many cells and then quoting their scores overstates them. `split` gives
# two halves that share no prompt.

# %%
discover, report = task.split(seed=0)
metric = nnattr.GroupLogProbDiff()
found = nnattr.attribution_patching(model, discover, metric, site="z")
found.top(5)

# %% [markdown]
# ## Where the fact is looked up
#
# First the coarse map, exactly: the residual stream by layer and position, for one question.

# %%
one = report[:1]
where = nnattr.activation_patching(
    model, one, metric, site="resid_pre", positions="each"
)
where.plot()

# %% [markdown]
# In the first layers the claim decides, in the last ones the last token. Which sublayers do the moving?
# Attention can move information between positions, MLPs cannot; so we patch each at the last token
# and at the claim.

# %%
spanned = made.filter(model)  # the same questions, with the places of subject and claim
list(spanned.spans)

# %%
table = {
    (site, span): nnattr.activation_patching(
        model, spanned, metric, site=site, positions=span
    )
    .mean()
    .values.to_series()
    for site in ("attn_out", "mlp_out")
    for span in ("claim", "end")
}
pd.DataFrame(table).round(2)

# %% [markdown]
# Read the table as a path. At the claim, the first MLP works out what is claimed; attention then
# carries it to the last token, and there the MLPs of the upper layers turn it into an answer.
#
# ## The heads, reported on fresh questions

# %%
exact = nnattr.activation_patching(model, report, metric, site="z")
exact.plot()

# %%
kept = exact.where(exact.significant(q=0.05))
kept.top(6)

# %%
interval = exact.bootstrap_ci()
strongest = {cell.label: cell.index for cell in exact.top(4)}
pd.DataFrame(
    {
        name: interval.sel(layer=l, head=h).to_series()
        for name, (l, h) in strongest.items()
    }
).T.round(3)

# %% [markdown]
# The heads that the estimate named on the first half are there on the second:

# %%
shared = set(found.top(3).indices) & set(exact.top(3).indices)
print(f"{len(shared)} of the 3 strongest heads are the same: {sorted(shared)}")

# %% [markdown]
# ## What is written toward the answer
#
# Direct attribution needs the linear metric, and so the short lists of words.

# %%
parts = nnattr.direct_logit_attribution(model, report, nnattr.LogitDiff())
parts.plot(title="What each component writes toward the right group")

# %%
parts.by_kind().top(4, by="value")

# %% [markdown]
# The source notebook read such a plot, made of ten prompts, as a hint that MLPs are where the facts
# are. It shows who *writes* the answer at the last token. Who *knew* it earlier, at another token, does not
# show here; the patching table above speaks of that.
#
# ## What to conclude, and what not
#
# - The metric is part of the question. Say which one was used, and with which words.
# - The path above is a sketch made of single patches: cell by cell, it says what suffices. That one
#   component acts *through* another needs path patching, which patches one component and lets only
#   the named one see it.
# - These are yes-no questions about categories. That a model answers them does not show that it would
#   say the fact unasked.
