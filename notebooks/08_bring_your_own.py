# %% [markdown]
# # 8 · Bring your own model, task and metric
#
# The other notebooks use a model, prompts and a metric that come with the package. Here each of the
# three is replaced by one of your own, with the mistakes that are easy to make and what nnattr says
# when you make them.
#
# ## Your model
#
# `nnattr.load` takes a Hugging Face id, a local folder, or a module that you have loaded or trained
# yourself together with its tokenizer. The last way is shown here.

# %%
import nnattr

MODEL, BACKEND = "teaching-gpt2", "local"  # on NDIF: "meta-llama/Llama-3.1-8B", "ndif"
model = nnattr.load(MODEL, backend=BACKEND)
model

# %%
from transformers import AutoModelForCausalLM, AutoTokenizer

from nnattr.teaching import folder

# a folder where your training left a model, or a Hugging Face id
place = folder("teaching-gpt2")
module = AutoModelForCausalLM.from_pretrained(place)
mine = nnattr.load(module, tokenizer=AutoTokenizer.from_pretrained(place))
mine.n_layers, mine.n_heads

# %% [markdown]
# Where the heads and the residual stream of a model are is **measured on the model itself**, not
# believed. `verify` shows the proof; for a family that nnattr does not know, the same checks choose
# among candidates, and a model that fails them is refused. `nnattr doctor MODEL` prints this on the
# command line.

# %%
print(nnattr.verify(model))

# %% [markdown]
# ## Your task
#
# A task is pairs of prompts that differ in one thing, with the word that should follow each. The
# question here: how does the model choose *is* or *are*?

# %%
nouns = [("dog", "cars"), ("teacher", "tables"), ("bird", "houses")]
singular = [f"The {noun} near the {others}" for noun, others in nouns]
plural = [f"The {noun}s near the {others}" for noun, others in nouns]

# %%
words = {"answers": [" is"] * 3, "wrong_answers": [" are"] * 3}
spans = {"subject": [noun for noun, _ in nouns]}
task = nnattr.Task.from_pairs(
    singular, plural, **words, tokenizer=model.tokenizer, spans=spans, name="agreement"
)

# %%
task.describe()

# %% [markdown]
# `describe` is worth a look every time: it shows the tokens that the model really gets, where the
# two prompts differ, where the named spans are, and whether a BOS stands in front.
#
# ### What goes wrong
#
# A patch puts position 5 into position 5, so the two prompts must have the same number of tokens;
# and an answer is one token **with its leading space**.


# %%
def attempt(**changes):
    """Make a small task, and print what is wrong with it."""
    pair = {"clean": ["The dog"], "corrupted": ["The dogs"], "answers": [" is"]}
    try:
        nnattr.Task.from_pairs(**{**pair, **changes}, tokenizer=model.tokenizer)
    except nnattr.errors.TaskError as error:
        print(error, end="\n\n")


attempt(corrupted=["The two dogs"])
attempt(answers=["is is"])
attempt(clean=["The chihuahua"])

# %% [markdown]
# Prompts from a file: a `.csv`, `.json` or `.jsonl`, or a DataFrame. Any column names will do.

# %%
import pandas as pd

table = pd.DataFrame(
    {"one": singular, "many": plural, "verb": " is", "other verb": " are"}
)
task_again = nnattr.Task.from_table(
    table,
    tokenizer=model.tokenizer,
    clean="one",
    corrupted="many",
    answer="verb",
    wrong_answer="other verb",
)
print(task.answer_ids == task_again.answer_ids, task.hash, task_again.hash)

# %% [markdown]
# The `hash` digests tokens, answers and named spans, and results record it: so one can tell later
# whether two results speak of the same task. (These two differ in the span alone.)
#
# ### Does the model do it at all?

# %%
prediction = nnattr.inspect_prompt(model, singular[0], " is", top_k=4)
prediction

# %% [markdown]
# With your own prompts, `task.filter(model)` keeps those that the model gets right. Explaining how a
# model does something that it does not do leads nowhere.
#
# ## Your metric
#
# A metric is any function of the logits and the batch that gives one number per example, higher
# where there is more of the behaviour. The last token of every prompt is position -1;
# `batch.answers` are the ids of the answers. Here is one that asks how sure the model is of
# **any** verb form, right or wrong:


# %%
def log_prob_of_either(logits, batch):
    """The log-probability that the next word is the answer or the wrong answer."""
    words = batch.answers[:, :1], batch.wrong_answers[:, :1]
    last = logits[:, -1].float().log_softmax(-1)
    first, second = (last.gather(1, word).squeeze(1) for word in words)
    return (first.exp() + second.exp()).log()


# %% [markdown]
# It is one of the questions that a difference of logits cannot answer: that is large even when
# neither word is probable. Since agreement is all that changes between the prompts, the metric may
# hardly move; then there is nothing to normalise by, and nnattr says so instead of dividing by
# noise. `normalized=False` gives the change in the metric's own unit.

# %%
either = nnattr.activation_patching(
    model, task, log_prob_of_either, site="mlp_out", normalized=False
)
either.baselines.mean("example").to_series()

# %%
metric = nnattr.LogitDiff()
which = nnattr.activation_patching(
    model, task, metric, site="mlp_out", positions="subject"
)
which.plot()

# %% [markdown]
# `positions="subject"` patches the span that we named, wherever it is in each prompt.
#
# A metric travels to the server when the model is there, so it uses torch and nothing else, and is
# defined in the notebook or in a module, not as a lambda. What it returns is checked:


# %%
def mean_metric(logits, batch):
    """Wrong: one number for the whole batch."""
    return logits[:, -1].mean()


try:
    nnattr.activation_patching(model, task, mean_metric)
except nnattr.errors.MetricError as error:
    print(error)

# %% [markdown]
# ## All three in a file
#
# An analysis that is worth keeping fits into a file, and `nnattr run agreement.yaml` runs it.
# (A function of your own has no name that a file could hold, so this works with the metrics of the
# package.)

# %%
from pathlib import Path

task.save("agreement.json")
settings = """
model: teaching-gpt2
task: {file: agreement.json}
method: activation_patching
site: z
output: agreement.safetensors
top: 3
"""
_ = Path("agreement.yaml").write_text(settings)
# %%
import subprocess
import sys

command = [
    sys.executable,
    "-m",
    "nnattr",
    "run",
    "agreement.yaml",
]  # in a shell: nnattr run ...
print(subprocess.run(command, capture_output=True, text=True).stdout)

# %% [markdown]
# ## What to conclude, and what not
#
# - Three pairs are enough to learn the calls and too few to learn about a model: with `n` pairs no
#   permutation test can give a p-value below $2^{1-n}$, and `significant` refuses to try.
# - Choose the corruption with care. *dog → dogs* asks about number; *dog → boy* would ask about
#   dogs.
# - A metric that is easy to move is not a better metric. Say what it measures, with the number.
