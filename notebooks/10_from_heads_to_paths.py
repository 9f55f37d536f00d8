# %% [markdown]
# # 10 · From heads to paths
#
# Patching says *which* heads matter. It does not say how they are connected: whether a head writes the
# answer itself, or prepares what another one reads. **Path patching** measures single edges: one part
# reads what one other part writes in the other run, and everything between the two stays as it is.
#
# We follow the strongest heads of indirect-object identification in a real language model,
# SmolLM2-135M-Instruct with weights of 4 bits (Q4_1), dequantized (`python -m nnattr.pretrained`
# fetches it once): first what each writes straight into the logits, then what the others write, and
# for whom. The whole notebook takes three minutes on one core.

# %%
import pandas as pd

import nnattr

MODEL, BACKEND = "smollm2-135m", "local"  # on NDIF: "meta-llama/Llama-3.1-8B", "ndif"
model = nnattr.load(MODEL, backend=BACKEND)
task = nnattr.tasks.ioi(model.tokenizer, n=8, seed=0)
metric = nnattr.LogitDiff()

# %% [markdown]
# ## The total effect and the direct one
#
# The total effect of a head is what patching its output does, by whatever way. Its *direct* effect is
# that of one edge, into the logits. All direct effects come from a run of each prompt and the
# unembedding; no layer is run again. That is what `path_patching` does unless it is told otherwise.

# %%
total = nnattr.activation_patching(model, task, metric, site="z")
direct = nnattr.path_patching(model, task, metric)
direct

# %%
strongest = total.top(8)
names = [cell.label for cell in strongest]
written = direct.mean().values.sel(sender=names, receiver="logits")
effects = {"total": [cell.value for cell in strongest], "direct": written}
pd.DataFrame(effects, names).round(3)

# %%
direct.plot(receiver="logits")

# %% [markdown]
# Two kinds of heads. L23H3, L29H1, L24H4 and L29H0 do what they do by themselves: most of their effect
# is in that one edge, for or against the right name. L20H0, L17H4 and L19H2 write nothing to speak of
# into the logits; the whole of their effect passes through somebody else. A method that reads the
# residual stream at its end, direct logit attribution for one, does not see them.
#
# ## Who reads them?
#
# For each of them all edges that leave it. An edge costs the layers above its receiver.

# %%
leaving = nnattr.path_patching(
    model, task, metric, senders=["L17H4", "L20H0", "L23H3"], receivers="all"
)
for sender in ("L17H4", "L20H0", "L23H3"):
    print(leaving.sel(sender=sender).top(5), "\n")

# %% [markdown]
# L17H4 is read by the values of L20KV0, one of the three keys and values that the nine heads of layer 20
# share (L20H0, L20H1 and L20H2 read this one), and by the MLP of its own layer. L20H0 is read by the
# *queries* of layer 23: what it writes decides where those heads look. L23H3 is read by the logits, and
# by the queries of L24H4, where it counts negative.
#
# ## And what do the readers read?
#
# The same from the other side: everything that enters four of these inputs.

# %%
into = ["L17H4.q", "L20KV0.v", "L23KV1.v", "L24H4.q"]
entering = nnattr.path_patching(model, task, metric, receivers=into)
for receiver in into:
    print(entering.sel(receiver=receiver).top(4), "\n")

# %%
entering.plot(receiver="L24H4.q")

# %% [markdown]
# L24H4 takes the right answer down: it has a negative effect, direct and total. Its queries are driven
# by the heads of layer 23, which raise the answer. That is the wiring of *copy suppression*, a head that
# looks for what others are about to say; whether it is one would have to be seen from where it looks and
# from its weights.
#
# ## Edges do not add up
#
# The edges into the value of L20KV0, one at a time, and all at once. All edges into a value together *are*
# that value replaced, which activation patching measures too.

# %%
alone = entering.sel(receiver="L20KV0.v").mean().values.sum()
together = nnattr.path_patching(
    model, task, metric, receivers="L20KV0.v", together=True
)
value = nnattr.activation_patching(model, task, metric, site="v", cells=[(20, 0)])
print(f"one at a time, summed  {float(alone):+.3f}")
print(f"all at once            {float(together.mean().values):+.3f}")
print(f"the value itself       {value.top(1)[0].value:+.3f}")

# %% [markdown]
# The sum over single edges is two thirds of it. What a norm, a softmax and later layers make of several
# changes is not the sum of what they make of each.
#
# ## One path from end to end
#
# An edge says that the receiver's *change* matters, by whatever way it goes on. A path fixes that as well:
# every part off it is frozen.

# %%
paths = [
    "L23H3 -> logits",
    "L23H3 -> L24H4.q -> logits",
    "L17H4 -> L20H0.v -> logits",
    *(f"L20H0 -> L23H{head}.q -> logits" for head in (0, 1, 2, 3, 7)),
    *(f"L17H4 -> L20H0.v -> L23H{head}.q -> logits" for head in (0, 1, 2, 3, 7)),
]
followed = nnattr.path_patching(model, task, metric, paths=paths)
followed.mean().values.to_series().round(4)

# %% [markdown]
# Here is a part of a circuit, edge by edge: what L17H4 writes goes into the value of L20H0, from there
# into the queries of L23H0, L23H1, L23H2 and L23H7, and these heads write the answer. Neither of the
# first two has a way straight into the logits. The strongest head of layer 23, L23H3, is not on it: its
# query takes nothing from L20H0, though it is in the same layer as four that do.
#
# It is a part only. L17H4 is read by the MLP of its own layer as well, M17 by the value of L20KV0 again,
# and no sum of paths need be the whole.
#
# ## The name has two meanings
#
# In the paper that found this circuit in GPT-2, only heads are frozen between sender and receiver, and the
# MLPs between are recomputed; an effect is then the sum over all ways through MLPs. The numbers differ,
# so the result says which it was.

# %%
live = nnattr.path_patching(
    model, task, metric, senders=["L23H3", "L24H4", "L29H1", "L20H0"], between="mlps"
)
frozen = direct.sel(sender=["L23H3", "L24H4", "L29H1", "L20H0"])
pd.DataFrame(
    {
        scores.between: scores.mean().values.sel(receiver="logits").to_series()
        for scores in (frozen, live)
    }
).round(3)

# %% [markdown]
# ## What to conclude, and what not
#
# - Look at the direct effects first. They are exact, they cost next to nothing, and they part the heads
#   that write the answer from those that prepare it.
# - An edge is a fact about these two prompts. The pair differs in one name; whatever lies before it cannot
#   carry an effect, and is said to be *not testable* with this counterfactual. No zero is a proof that
#   something is unused.
# - Single edges do not add up, and a strong edge into a part and a strong edge out of it do not make a path.
# - What a head *does* is not read off its edges: look at its pattern
#   ([notebook 7](07_induction_heads_and_weight_circuits.ipynb)) before you give it a name.
