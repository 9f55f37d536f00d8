# %% [markdown]
# # 4 · Component attribution of a refusal
#
# A chat model answers *How do I build a table?* and declines *How do I build a bomb?* The two
# requests differ in one word, and so, mostly, does the first token of the reply. **Which parts of
# the model turn one into the other?**
#
# We find the contrast, keep the prompts on which the model shows it, patch every head, and then take
# the answer apart into what each layer and head writes toward it. The plan is that of a notebook
# from the field; at the end we name what that notebook got wrong, so that nobody inherits it.

# %%
import pandas as pd

import nnattr

# on NDIF: "meta-llama/Llama-3.1-8B-Instruct", "ndif"
MODEL, BACKEND = "teaching-llama", "local"
model = nnattr.load(MODEL, backend=BACKEND)

# %% [markdown]
# ## The data
#
# Pairs of a harmful and a harmless request, as one would keep them in a file. Here a generator writes
# it; bring your own with the same two columns.

# %%
made = nnattr.tasks.requests(model.tokenizer, n=48, seed=0, chat=False)
pd.DataFrame({"harmful": made.clean, "harmless": made.corrupted}).to_csv(
    "requests.csv", index=False
)
rows = pd.read_csv("requests.csv")
rows.head(4)

# %% [markdown]
# ## The contrast, found and not assumed
#
# What does this model say first? Ask it, through its own chat template.

# %%
nnattr.most_frequent_answers(model, list(rows["harmful"]), chat=True, top_k=3)

# %%
nnattr.most_frequent_answers(model, list(rows["harmless"]), chat=True, top_k=3)

# %% [markdown]
# Nearly every refusal begins with one token and nearly every answer with another. That pair is the
# contrast; the metric will be the difference of the two logits.
#
# ## Keep what shows the behaviour
#
# A prompt on which the model refuses both, or answers both, has nothing to explain. `filter` keeps
# the pairs where the clean prompt is refused **and** its twin is answered, and records the others.

# %%
refuse, answer = "I", "Here"
task = nnattr.Task.from_pairs(
    rows["harmful"],
    rows["harmless"],
    [refuse] * len(rows),
    [answer] * len(rows),
    tokenizer=model.tokenizer,
    chat=True,
    name="requests.csv",
).filter(model, keep=(refuse, answer))
print(f"kept {len(task)} of {len(rows)}")

# %%
task.describe()

# %% [markdown]
# ## Patch every head
#
# Denoising: the model reads the harmless request, and one head is given what it held on the harmful
# one. 0 means that it still answers as before, 1 that it refuses as on the harmful request.

# %%
metric = nnattr.LogitDiff()
patched = nnattr.activation_patching(model, task, metric, site="z")
patched.plot()

# %%
patched.top(5)

# %% [markdown]
# With dozens of prompts every number has a standard error, and with sixteen heads some would look
# large by chance. `significant` keeps those that survive a permutation test at a false-discovery
# rate of 5 %.

# %%
patched.where(patched.significant(q=0.05)).top(8)

# %% [markdown]
# A score can be certain and small. What is certain is only that the effect is not zero on prompts
# like these.
#
# ## Where in the request?

# %%
one = task[
    2:3
]  # positions mean the same only in one prompt, or in prompts of one layout
where = nnattr.activation_patching(
    model, one, metric, site="resid_pre", positions="each"
)
where.plot()

# %% [markdown]
# Before the first layer the word that differs decides everything. Later the verdict is at the last
# token, where the reply begins. The layers at which the dark cells move to the right are where
# attention carries it there.
#
# ## What each layer writes
#
# **Direct logit attribution** splits the logit difference of the harmful prompts into what each part
# of the model writes straight toward it. First accumulated: what would the model say if it ended
# here?

# %%
accumulated = nnattr.direct_logit_attribution(model, task, unit="accumulated")
accumulated.plot(title="Refusing against answering, if the model ended here")

# %% [markdown]
# The last bar is the model's own logit difference. Now in parts, which add up to it:

# %%
parts = nnattr.direct_logit_attribution(model, task, unit="component")
parts.plot(title="What each component writes toward refusing")

# %%
parts.by_kind().top(4, by="value")

# %% [markdown]
# ## And each head

# %%
heads = nnattr.direct_logit_attribution(model, task, unit="head")
heads.plot(title="What each head writes toward refusing")

# %% [markdown]
# Whether a decomposition is right can be checked: the heads, with everything that is not a head, sum
# to the logit difference of every single prompt.

# %%
total = heads.raw.sum(("layer", "head")) + heads.rest.sum("component")
float(abs(total - heads.baselines.sel(run="clean")).max())

# %% [markdown]
# Compare the two maps of heads. A head that matters when patched and writes nothing by itself works
# through others: it tells a later head or MLP what kind of request this is. A head that writes a
# lot and hardly matters when patched writes the same on both prompts.

# %%
both = {"patched": patched, "writes": heads}
table = pd.DataFrame({k: v.mean().values.to_series() for k, v in both.items()})
table.loc[[*patched.top(4).indices, *heads.top(4).indices]].drop_duplicates().round(3)

# %% [markdown]
# ## What the source notebook got wrong
#
# The notebook that this one follows is a good plan with slips that are easy to make by hand:
#
# - its loop over prompts for the heads reads the **first prompt every time**, so its map of heads is
#   that of one prompt, multiplied;
# - it **sums** over prompts where it says that it averages, so the scale grows with the data;
# - its colour scale is centred on **0.5**, so white does not mean "no effect";
# - it slices prompts by what the model answers to the harmless half only, and never checks that the
#   harmful half is refused.
#
# Here prompts are an axis of the result, means are means, colours are centred on zero, and `filter`
# checks both halves.
#
# ## What to conclude, and what not
#
# - The heads above carry the difference between *these* harmful requests and *these* harmless twins,
#   which differ in one word. They need not be a general detector of harm.
# - Direct attribution sees only the last step. Patching sees the effect and not the route.
# - The first token stands for the reply. Whether the rest of the reply is a refusal is another
#   question: [look into an answer](06_self_explanations_and_logit_lens.ipynb).
