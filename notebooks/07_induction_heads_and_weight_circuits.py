# %% [markdown]
# # 7 · Induction heads and weight circuits
#
# Show a language model a sequence of random tokens twice. Nothing can predict the first copy; the
# second can be predicted exactly, by looking up what followed the same token the last time. Heads
# that do this are called **induction heads**, and how they work is the best-understood circuit there
# is: a *previous-token head* writes into each position which token came before it, and an induction
# head in a later layer looks for the position whose "came before" is the token at hand.
#
# We look for both in a real language model, by what they attend to and by what breaks without them.
# Then we turn to a small model, in which the same can be followed to the end, and **read the
# mechanism off its weights**, without running it on anything.
#
# The real one is SmolLM2-135M-Instruct with weights of 4 bits (Q4_1), dequantized; `python -m
# nnattr.pretrained` fetches it once. The small one, `teaching-gpt2`, comes with the package.

# %%
import numpy as np
import pandas as pd

import nnattr

MODEL, BACKEND = "smollm2-135m", "local"  # on NDIF: "meta-llama/Llama-3.1-8B", "ndif"
model = nnattr.load(MODEL, backend=BACKEND)

# %% [markdown]
# ## The behaviour
#
# Ten sequences of random tokens, each twice. `detect_heads` runs them, and reduces every head's
# attention to five numbers: how much it looks at the token itself, at the one before, at the first
# token, at an earlier copy of the token (*duplicate*), and at what followed an earlier copy
# (*induction*).

# %%
found = nnattr.detect_heads(model, n=10, length=50, seed=0)
found

# %%
found.plot_loss()

# %% [markdown]
# In the first copy the loss is above that of guessing (ln 49,152 = 10.8 nats): the model expects text,
# and gets noise. In the second it falls within about ten tokens to two nats: the model does induction.
# Which heads look as if they did it?

# %%
found.plot()

# %%
previous = found.top("previous", 1)[0].index
induction = found.top("induction", 1)[0].index
previous, induction

# %% [markdown]
# There are several of each kind, five for induction alone, and dozens of heads, most of them in the
# upper half, rest on the first token. The scores are means of attention over queries that have
# something to find, and the thresholds are conventions. A head over a threshold *looks* like one of a kind; what it does with what it sees is
# another question. Here is what the two look at, on one short sequence:

# %%
repeated = nnattr.tasks.repeated_tokens(model.tokenizer, n=8, seed=3, length=8)
patterns = nnattr.attention_patterns(model, repeated[:1], [previous, induction])
patterns.plot()

# %% [markdown]
# Rows look, columns are looked at. The previous-token head has its stripe right below the diagonal.
# The induction head rests on the first tokens through most of the first copy. From the third token
# of the second copy on it has its stripe, one place **after** the earlier copy of each token. `patterns.viewer()` is a page on which one can point at tokens.
#
# ## Are they needed?
#
# Looking is not doing. Take each head away (its output set to its mean over all sequences), and see
# what happens to the log-probability of the right token at the end of the second copy.

# %%
without = nnattr.ablate(model, repeated, nnattr.LogProb(), site="z", replacement="mean")
without.top(6)

# %% [markdown]
# Negative means that the model does worse without the head. The previous-token head found above,
# L16H0, is the one missed most, and the induction head, L18H6, is among the first four. (L0H6 may be
# chance: its standard error is as large as its effect.) The other four induction heads are not among
# the first six, though they look the same; they may stand in for each other, which an ablation one by
# one cannot show. So much, and no more, is found here about the real model.
#
# ## A small model, to the end
#
# `teaching-gpt2` has 4 layers of 4 heads and was trained for this task among others. Its head L0H0
# even **began** as a previous-token head, and L1H0 began by looking for what L0H0 writes (see
# `nnattr.teaching.start`): that it has these heads is no discovery. What it is good for is to see
# the whole mechanism, and that the tools find what is known to be there.

# %%
small = nnattr.load("teaching-gpt2")
heads = nnattr.detect_heads(small, n=10, length=25, seed=0)
previous = heads.top("previous", 1)[0].index
induction = heads.top("induction", 1)[0].index
previous, induction

# %%
repeated = nnattr.tasks.repeated_tokens(small.tokenizer, n=16, seed=3, length=8)
without = nnattr.ablate(small, repeated, nnattr.LogProb(), site="z", replacement="mean")
without.top(4)

# %% [markdown]
# Both are needed, and L0H2 as well, to which we come back at the end. Compare with what each part of the model *writes* toward the right token. In the first copy there is nothing to know. In the second, one head
# stands out among the heads, position after position, and the MLPs above it make more of it:

# %%
written = nnattr.next_token_attribution(small, repeated[:1])
nnattr.plots.parts(written, title="What each part writes toward the next token")

# %% [markdown]
# The induction head shows here and the previous-token head does not, although the model fails
# without it. It writes nothing about the next token itself: it leaves a note for the other head.
# That is a claim about how the two are wired together, and the weights can be asked.
#
# ## OV: what is written when a token is attended to
#
# A head's value and output matrices, between embedding and unembedding, say for each token what
# attending to it does to the logits: $W_E W_V W_O W_U$, vocabulary by vocabulary. An induction head
# should raise the token that it looks at. How often is that token the one raised most?

# %%
rows = {
    f"L{layer}H{head}": nnattr.weights.ov(small, (layer, head)).copying_accuracy()
    for layer in range(2)
    for head in range(small.n_heads)
}
pd.Series(rows, name="copying accuracy").round(3).to_frame().T

# %% [markdown]
# ## QK: where a head looks
#
# For the previous-token head the position embeddings alone should decide. This is the attention it
# would pay if it saw positions and no tokens:

# %%
pattern = nnattr.weights.position_pattern(small, previous, fold_norm=True)
print(f"mean attention to the previous position: {np.diag(pattern, -1).mean():.2f}")
print(f"to the one before that:                  {np.diag(pattern, -2).mean():.2f}")

# %% [markdown]
# (The notebook that this one follows computes this for one head and draws its conclusion about
# another; a head number is easily mistyped. Here it comes from the detector above. Position
# embeddings are a table in GPT-2; rotary models such as Llama have none, and `position_pattern` says
# so.)
#
# ## K-composition: the note and its reader
#
# Now the claim itself. Let the induction head's **keys** be made from what the previous-token head
# writes, and its **queries** from the tokens themselves. If the note says "the token before me was
# X", then the query of X should prefer, among all tokens, the key whose note says X: the largest
# entry of each row lies on the diagonal.

# %%
direct = nnattr.weights.qk(small, induction)
through = nnattr.weights.qk(small, induction, key_via=previous)
accuracy = {"tokens alone": direct, "through the previous-token head": through}
pd.Series({name: one.copying_accuracy() for name, one in accuracy.items()}).round(3)

# %% [markdown]
# Is that pair of heads special, or do all pairs compose a little? The composition score compares the
# size of the product of two heads' matrices with the product of their sizes; random matrices give
# the baseline.

# %%
keys = nnattr.weights.composition(small, "K")
keys.plot()

# %%
print(f"random matrices: {keys.baseline:.3f}")
keys.top(4)

# %% [markdown]
# ## And in the activations
#
# The weights say what could happen. On real tokens: split the queries and keys of the induction head
# into what each part of the model wrote, and ask which pair of parts makes its scores vary.

# %%
parts = nnattr.decompose_attention(small, repeated, induction)
parts.top(4)

# %% [markdown]
# Each line is a query part and a key part. The key that matters most is the previous-token head's
# note. The query, the token at hand, can come straight from the embedding or from a head of the first
# layer that looks at the token itself (`current` and `duplicate` above) and says it again; the table
# shows which it is here, and whether that head was among those that ablation found.
#
# ## What to conclude, and what not
#
# - On the small model three kinds of evidence agree: what the heads look at, what breaks without
#   them, and what their weights would do. Each alone has fooled people. On the real one we had the
#   first two, and they agree about one head of each kind.
# - Weight circuits leave out the norms, the MLPs and everything else between two heads. Where a
#   model does much before its first attention layer, the embedding is not what a head sees.
# - Ablation with the mean takes away what a head says about *this* sequence. Zero would also take
#   away what it always says, and can break a model for that reason alone.
# - Induction on random tokens is one use of these heads. On text they do more than that.
