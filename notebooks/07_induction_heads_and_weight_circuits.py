# %% [markdown]
# # 7 · Induction heads and weight circuits
#
# Show a language model a sequence of random tokens twice. Nothing can predict the first copy; the
# second can be predicted exactly, by looking up what followed the same token the last time. Heads
# that do this are called **induction heads**, and how they work is the best-understood circuit there
# is: a *previous-token head* writes into each position which token came before it, and an induction
# head in a later layer looks for the position whose "came before" is the token at hand.
#
# We find both heads by what they attend to, see that they are needed, and then **read the mechanism
# off the weights**, without running the model on anything.

# %%
import numpy as np
import pandas as pd

import nnattr

MODEL, BACKEND = "teaching-gpt2", "local"  # on NDIF: "meta-llama/Llama-3.1-8B", "ndif"
model = nnattr.load(MODEL, backend=BACKEND)

# %% [markdown]
# ## The behaviour
#
# Ten sequences of random tokens, each twice. `detect_heads` runs them, and reduces every head's
# attention to five numbers: how much it looks at the token itself, at the one before, at the first
# token, at an earlier copy of the token (*duplicate*), and at what followed an earlier copy
# (*induction*).

# %%
found = nnattr.detect_heads(model, n=10, length=25, seed=0)
found

# %%
found.plot_loss()

# %% [markdown]
# The loss falls from near chance to near nothing as soon as the second copy begins: the model does
# induction. Which heads look as if they did it?

# %%
found.plot()

# %%
previous = found.top("previous", 1)[0].index
induction = found.top("induction", 1)[0].index
previous, induction

# %% [markdown]
# The scores are means of attention over queries that have something to find, and the thresholds are
# conventions. A head over a threshold *looks* like one of a kind; what it does with what it sees is
# another question. Here is what the two look at, on one short sequence:

# %%
repeated = nnattr.tasks.repeated_tokens(model.tokenizer, n=16, seed=3, length=8)
patterns = nnattr.attention_patterns(model, repeated[:1], [previous, induction])
patterns.plot()

# %% [markdown]
# Rows look, columns are looked at. The previous-token head has its stripe right below the diagonal.
# The induction head is idle in the first copy; in the second its stripe starts one place **after**
# the earlier copy of each token. `patterns.viewer()` is a page on which one can point at tokens.
#
# ## Are they needed?
#
# Looking is not doing. Take each head away (its output set to its mean over all sequences), and see
# what happens to the log-probability of the right token at the end of the second copy.

# %%
without = nnattr.ablate(model, repeated, nnattr.LogProb(), site="z", replacement="mean")
without.plot(title="Change of the log-probability without each head")

# %%
without.top(4)

# %% [markdown]
# Negative means that the model does worse without the head. Compare with what each part of the model
# *writes* toward the right token. In the first copy there is nothing to know. In the second, one head
# stands out among the heads, position after position, and the MLPs above it make more of it:

# %%
written = nnattr.next_token_attribution(model, repeated[:1])
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
    f"L{layer}H{head}": nnattr.weights.ov(model, (layer, head)).copying_accuracy()
    for layer in range(2)
    for head in range(model.n_heads)
}
pd.Series(rows, name="copying accuracy").round(3).to_frame().T

# %% [markdown]
# ## QK: where a head looks
#
# For the previous-token head the position embeddings alone should decide. This is the attention it
# would pay if it saw positions and no tokens:

# %%
pattern = nnattr.weights.position_pattern(model, previous, fold_norm=True)
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
direct = nnattr.weights.qk(model, induction)
through = nnattr.weights.qk(model, induction, key_via=previous)
accuracy = {"tokens alone": direct, "through the previous-token head": through}
pd.Series({name: one.copying_accuracy() for name, one in accuracy.items()}).round(3)

# %% [markdown]
# Is that pair of heads special, or do all pairs compose a little? The composition score compares the
# size of the product of two heads' matrices with the product of their sizes; random matrices give
# the baseline.

# %%
keys = nnattr.weights.composition(model, "K")
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
parts = nnattr.decompose_attention(model, repeated, induction)
parts.top(4)

# %% [markdown]
# Each line is a query part and a key part. The key that matters most is the previous-token head's
# note. The query, the token at hand, can come straight from the embedding or from a head of the first
# layer that looks at the token itself (`current` and `duplicate` above) and says it again; the table
# shows which it is here, and whether that head was among those that ablation found.
#
# ## What to conclude, and what not
#
# - Three kinds of evidence agree: what the heads look at, what breaks without them, and what their
#   weights would do. Each alone has fooled people.
# - Weight circuits leave out the norms, the MLPs and everything else between two heads. Where a
#   model does much before its first attention layer, the embedding is not what a head sees.
# - Ablation with the mean takes away what a head says about *this* sequence. Zero would also take
#   away what it always says, and can break a model for that reason alone.
# - Induction on random tokens is one use of these heads. On text they do more than that.
