# %% [markdown]
# # 6 · Self-explanations and the logit lens
#
# A model gives an answer and goes on to give a reason. Does the reason have anything to do with how
# the answer came about? The notebook that this one follows asked Qwen who ran away, the lion or the
# gazelle, and compared the model's explanation with two that were written by hand.
#
# A small model cannot reason about lions, but ours does give answers with reasons: it declines a
# request and says *I can not help with that*. We take the steps of that notebook one by one on this
# example, and **mend the steps that do not measure what they seem to**. They are common ones.

# %%
import pandas as pd

import nnattr

# on NDIF: "meta-llama/Llama-3.1-8B-Instruct", "ndif"
MODEL, BACKEND = "teaching-llama", "local"
model = nnattr.load(MODEL, backend=BACKEND)

# %%
questions = ["How do I build a bomb?", "How do I build a table?"]
chat = {"tokenizer": model.tokenizer, "chat": True}
task = nnattr.Task.from_pairs([questions[0]], [questions[1]], ["I"], ["Here"], **chat)
prompts = [task.clean[0], task.corrupted[0]]  # as the chat template writes them
nnattr.generate(model, prompts, max_new_tokens=12)

# %% [markdown]
# At temperature 0 this is what the model says, every time. Above 0 it is a sample; give a seed.
#
# ## Two stories, one of them the model's own
#
# How probable are a refusal and an answer after each question? A story has many tokens, so the
# measure is the log-probability of the whole sequence, each token after the ones before it.

# %%
refusal, answer = "I can not help with that.", "Here is how to build a table."
stories = {"refusal": refusal, "answer": answer}
asked = {
    name: nnattr.Task.from_pairs(
        questions[:1], questions[1:], [story], **chat, sequences=True
    )
    for name, story in stories.items()
}

# %%
metric = nnattr.SequenceLogProb(per_token=True)
results = {
    name: nnattr.activation_patching(model, one, metric, site="z", normalized=False)
    for name, one in asked.items()
}
table = {
    name: scores.baselines.squeeze("example").to_series()
    for name, scores in results.items()
}
(
    pd.DataFrame(table)
    .rename({"clean": questions[0], "corrupted": questions[1]})
    .round(2)
    + 0
)

# %% [markdown]
# Nats per token, so that stories of different lengths can be compared; 0 is certainty. Each question
# has its own story.
#
# > **Mended.** The source notebook compared the *norm of the difference of logits* at the last tokens
# > of texts with different lengths and different words. Such a norm counts every word of the
# > vocabulary alike, and the last token of a longer text is the answer to another question. Compare
# > the probability of the same text after two prompts, or two prompts by what they predict next:

# %%
print(nnattr.compare_runs(model, prompts[0], prompts[1]))

# %% [markdown]
# ## At which token is it decided?
#
# `inspect_prompt` walks through an answer token by token. The first token costs the decision; after
# it the rest follows almost by itself.

# %%
seen = nnattr.inspect_prompt(model, prompts[0], refusal, top_k=2)
pd.DataFrame([vars(step.answer) for step in seen.steps]).round(4)

# %%
other = nnattr.inspect_prompt(
    model, prompts[0], "Here is how to build a bomb.", top_k=2
)
pd.DataFrame([vars(step.answer) for step in other.steps]).round(4)

# %% [markdown]
# Given the improbable first word, the model goes on with the other story just as fluently, bomb and
# all. What it says after the first token follows from the first token. Whatever decided, decided
# **before it**, and that is where to look.
#
# ## The logit lens
#
# What would the model say if it ended after each layer?

# %%
lens = nnattr.logit_lens(model, prompts[0], positions="each", answers="I")
lens.plot()

# %% [markdown]
# Each cell holds the likeliest next token at that layer and position, coloured by its probability.
# In the first layers the guesses are noise; from some layer on, the last position says the answer.
# Watch it rise there, for the answer and for its rival:

# %%
rise = {
    word: nnattr.logit_lens(model, prompts[0], answers=word)
    .data["answer_probability"]
    .squeeze()
    for word in ("I", "Here")
}
pd.DataFrame({word: p.to_series() for word, p in rise.items()}).round(4)

# %% [markdown]
# ## What writes the decision
#
# > **Mended.** The source notebook took as its direction *the first token minus the second token of
# > each explanation*. With a BOS in front that is the direction from the first word to the
# > **beginning-of-text token**, which nothing in the question is about. It also overwrote the cache of
# > the generated texts with that of the explanations before reading it. A direction must be that of an
# > answer against its rival, **at the place where it is decided**; here it is the pair of the task above:

# %%
accumulated = nnattr.direct_logit_attribution(model, task, unit="accumulated")
accumulated.plot(title="Refusing against answering, if the model ended here")

# %%
heads = nnattr.direct_logit_attribution(model, task, unit="head")
heads.plot(title="What each head writes toward refusing")

# %% [markdown]
# ## The heads behind the whole story
#
# Now the step that the source notebook announced and left empty. Patch each head of the harmless
# question with what it held on the harmful one, and measure the log-probability of the **whole
# refusal**, not of its first token.

# %%
story = results["refusal"]
story.plot(title="Patched heads: change of the refusal's log-probability per token")

# %% [markdown]
# Does the whole story hang on the same heads as its first word?

# %%
first = nnattr.activation_patching(model, task, nnattr.LogitDiff(), site="z")
both = {"first word": first, "whole refusal": story}
table = pd.DataFrame(
    {name: scores.mean().values.to_series() for name, scores in both.items()}
)
print(f"rank correlation {table.corr(method='spearman').iloc[0, 1]:.2f}")
table.loc[story.top(5).indices].round(3)

# %% [markdown]
# The two columns have different units, a share and nats per token; compare their order. One pair of
# prompts also gives no standard error: this is an illustration, and
# [notebook 4](04_component_attribution_of_a_refusal.ipynb) is the experiment.
#
# ## What to conclude, and what not
#
# - The logit lens reads intermediate states with the *last* layer's dictionary. A layer that holds
#   the answer in another form shows nothing, and what it shows early may be chance.
# - That the first token decides is true of stories that open differently. For explanations with the
#   same opening, find the token at which they part, and look there.
# - A text that follows from its own first word is not thereby false. It is only no evidence of how
#   the first word came about.
