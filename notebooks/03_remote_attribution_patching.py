# %% [markdown]
# # 3 · Remote attribution patching on NDIF
#
# The models one would like to study do not fit on the machine one has.
# [NDIF](https://ndif.us) hosts them, and nnattr sends an analysis there as **one job**: the prompts
# go up, the forward and backward passes run next to the weights, the reduction to scores happens
# there too, and only the scores come back. One word decides where things run.
#
# To run this notebook on Llama-3.1-8B, set `NDIF_API_KEY` and start it with
# `NNATTR_BACKEND=ndif NNATTR_MODEL=meta-llama/Llama-3.1-8B`.

# %%
import os

import nnattr

BACKEND = os.environ.get("NNATTR_BACKEND", "simulated")
MODEL = os.environ.get("NNATTR_MODEL", "teaching-llama")
model = nnattr.load(MODEL, backend=BACKEND)

# %%
rehearsal = BACKEND == "simulated"
print(f"{model.name} on {model.backend.name}")
print(
    "A rehearsal in this process: no server was asked."
    if rehearsal
    else "A real server."
)

# %% [markdown]
# Without a server, `backend="simulated"` rehearses one: the job is serialised exactly as for NDIF,
# rebuilt from its text, and run on frozen weights. What would not survive the journey fails here
# already. With a remote backend no weights are loaded on this machine: the model object knows the
# architecture and the tokenizer, and nothing else is needed.
#
# ## The analysis is the same
#
# The prompts are those of the original nnsight tutorial. They are made into a task with this
# model's own tokenizer, so that the answers are this model's token ids.

# %%
stories = [
    ("When John and Mary went to the shops, {} gave the bag to", "John", "Mary"),
    ("When Tom and James went to the park, {} gave the ball to", "James", "Tom"),
    ("When Daniel and Kevin went to the shops, {} gave an apple to", "Kevin", "Daniel"),
    ("After Martin and Amy went to the park, {} gave a drink to", "Amy", "Martin"),
]
pairs = [(text, a, b) for text, *names in stories for a, b in (names, names[::-1])]

# %%
task = nnattr.Task.from_pairs(
    clean=[text.format(subject) for text, subject, _ in pairs],
    corrupted=[text.format(other) for text, _, other in pairs],
    answers=[f" {other}" for _, _, other in pairs],
    wrong_answers=[f" {subject}" for _, subject, _ in pairs],
    tokenizer=model.tokenizer,
)
task

# %%
metric = nnattr.LogitDiff()
scores = nnattr.attribution_patching(model, task, metric, site="z")
scores.baselines.mean("example").to_series()

# %% [markdown]
# The two baselines mirror each other, as they must: every pair also occurs with its roles
# exchanged. They were computed in the same job as the scores.

# %%
scores.plot()

# %% [markdown]
# ## What it cost
#
# Every result records what it moved. The tutorial that this notebook follows downloads all logits
# and the activations and gradients of every layer, some 250 MB for eight prompts on an 8B model.
# What a researcher wants to know is one number per head and prompt.

# %%
cost = scores.provenance
print(
    f"{cost.jobs} job(s), {cost.bytes_sent:,} bytes sent, {cost.bytes_received:,} received"
)
print(f"{cost.queue_seconds:.1f} s in the queue, {cost.run_seconds:.1f} s running")
print(f"the scores themselves: {scores.raw.nbytes:,} bytes")

# %% [markdown]
# A rehearsal counts the bytes that it would have sent, and receives nothing from anywhere. Most of
# what is sent is the code of the analysis.
#
# ## Checking against the exact method
#
# Exact patching is also one job. It runs many passes where the estimate runs three, but all of them
# next to the weights; and it needs no gradients, so it works on servers that give none.

# %%
exact = nnattr.activation_patching(model, task, metric, site="z")
print(nnattr.agreement(exact, scores))
exact.top(5)

# %% [markdown]
# ## Send it, and fetch it tomorrow
#
# `submit` sends a job and comes back at once. The ticket can be saved and taken up by another
# process; the key is not in it.

# %%
if rehearsal:
    print("nnattr.submit needs a real server; a rehearsal runs at once.")
else:
    job = nnattr.submit(nnattr.attribution_patching, model, task, metric, site="z")
    job.save("job.json")
    same = nnattr.Job.load("job.json").result(timeout=300)
    print(job.ticket.job_id, "difference:", float(abs(same.raw - scores.raw).max()))

# %% [markdown]
# ## What to conclude, and what not
#
# - The backend changes where an analysis runs, not what it says: in float32 the scores are those of
#   a local run up to rounding. Hosted models run in bfloat16 by default, whose rounding shows in the
#   third digit.
# - Record the backend with the numbers. Results do: `scores.provenance`.
# - A server may refuse gradients. Then `attribution_patching` says so, and `activation_patching`
#   answers the same question exactly.
#
# Next: [which heads refuse a request](04_component_attribution_of_a_refusal.ipynb).
