# %% [markdown]
# # 9 · Large models: memory, chunking, resume
#
# The calls do not change with the size of the model. What changes is what they cost, and that
# something goes wrong in the seventh hour. This notebook shows what to set before a large run: where
# the model lives and in which precision, what an analysis will cost, how it is cut into pieces, and
# how it is taken up again after it stopped.
#
# It is shown on SmolLM2-135M-Instruct, 30 layers of 9 heads, with weights of 4 bits (Q4_1),
# dequantized; `python -m nnattr.pretrained` fetches it once. Four pairs of prompts are few, so that
# all of this takes two minutes on one core; do not quote their scores.

# %%
import pandas as pd

import nnattr

MODEL, BACKEND = "smollm2-135m", "local"  # on NDIF: "meta-llama/Llama-3.1-8B", "ndif"
model = nnattr.load(MODEL, backend=BACKEND)
task = nnattr.tasks.ioi(model.tokenizer, n=4, seed=0)
metric = nnattr.LogitDiff()

# %% [markdown]
# ## Where the model lives
#
# | you have | say |
# | --- | --- |
# | one GPU that holds it | `nnattr.load(name, device="cuda", dtype="bfloat16")` |
# | several GPUs | `nnattr.load(name, device="auto", dtype="bfloat16")` |
# | no GPU, a hosted model | `nnattr.load(name, backend="ndif")` |
# | a server of your own | `nnattr.load(name, backend="http://host:port")` |
#
# With a remote backend no weights are read on this machine.
#
# ## What half precision costs
#
# Large models run in bfloat16, which has three digits. Scores are differences of runs, so some of
# that is lost. How much, for this analysis?

# %%
full = nnattr.activation_patching(model, task, metric, site="z")
half = nnattr.load(MODEL, backend=BACKEND, dtype="bfloat16")
rounded = nnattr.activation_patching(half, task, metric, site="z")
print(nnattr.agreement(full, rounded))
print(
    "largest difference:",
    round(float(abs(full.mean().values - rounded.mean().values).max()), 4),
)

# %% [markdown]
# The ten strongest heads are the same, and no score is off by more than 0.012. The rank correlation
# over all 270 heads is low, because most of them do nothing and what orders those is the rounding.
# Compare that with the standard errors before worrying about it:

# %%
full.top(3)

# %% [markdown]
# ## What an analysis costs
#
# Exact patching needs a run for every cell and example, so its cost grows with the number of heads
# and layers; the estimate needs three passes whatever their number. For a model of 32 layers with
# 32 heads each, and 32 pairs of prompts:

# %%
layers, heads, pairs = 32, 32, 32
counts = {
    "attribution patching": 3 * pairs,
    "activation patching of layers": (2 + layers) * pairs,
    "activation patching of heads": (2 + layers * heads) * pairs,
    "activation patching of heads, each of 15 positions": (2 + layers * heads * 15)
    * pairs,
}
pd.Series(counts, name="forward passes of one prompt").to_frame()

# %% [markdown]
# nnattr does not run all of these in full. A patch in layer 20 changes nothing in the layers below
# it, and nothing at the tokens before it; so only the layers above and the tokens after are
# computed, and many cells share one batch. `engine="full"` switches this off, to compare:

# %%
exact = {
    engine: nnattr.activation_patching(model, task, metric, site="z", engine=engine)
    for engine in ("suffix", "full")
}
difference = abs(exact["suffix"].raw - exact["full"].raw).max()
seconds = {engine: scores.provenance.seconds for engine, scores in exact.items()}
print(f"largest difference: {float(difference):.1e} logits")
print(f"full passes took {seconds['full'] / seconds['suffix']:.1f} times as long")

# %% [markdown]
# The same numbers to rounding. The engine checks itself against full passes on a few rows of every
# job, and falls back to them on a model where it would be wrong; `provenance.arguments["engine"]`
# says which was used. What it saves grows with the depth of the model and with the length of what
# the two prompts of a pair have in common ([measured](../docs/performance.md)).
#
# ## Memory
#
# Many cells are patched in one pass, as the rows of a batch, and how many fit is planned from the
# memory that is free where the job runs. Where it runs out all the same, half as many are tried.
# `max_memory` sets the room by hand, in bytes besides the weights; it changes the time that the work
# takes and not what comes out.

# %%
tight = nnattr.activation_patching(model, task, metric, site="z", max_memory=30_000_000)
for name, scores in (("free memory", full), ("30 MB", tight)):
    print(f"{name}: at most {scores.provenance.rows_per_forward} rows in a pass")
print(f"largest difference: {float(abs(tight.raw - full.raw).max()):.1e}")

# %% [markdown]
# ## Spend exact runs where they matter
#
# The usual way through a large model: estimate everything, then measure exactly what the estimate
# points at. Sites and positions are the handles. First the whole model, coarsely; there are few
# layers, so that we can afford both:

# %%
coarse = {
    "estimate": nnattr.attribution_patching(model, task, metric, site="attn_out"),
    "exact": nnattr.activation_patching(model, task, metric, site="attn_out"),
}
layers = pd.DataFrame({k: v.mean().values.to_series() for k, v in coarse.items()})
layers.loc[[cell.index[0] for cell in coarse["exact"].top(5)]].round(3)

# %%
coarse["exact"].plot()

# %% [markdown]
# The estimate has the two strongest layers, 23 and 24, and misses 17 and 20, which move the answer by
# four tenths of the way. Had we measured only where it points, we would not have looked there. Where
# an exact sweep is affordable, as that of whole layers mostly is, it comes first. By position and
# head there are too many cells, and the estimate has its turn:

# %%
by_span = {
    span: nnattr.attribution_patching(
        model, task, metric, site="z", positions=span
    ).top(1)[0]
    for span in ("IO", "S1", "S2", "end")
}
pd.DataFrame({k: {"head": c.label, "estimate": c.value} for k, c in by_span.items()}).T

# %% [markdown]
# `IO` and `S1` stand before the first token in which a pair differs, where both runs are the same, so
# their scores are exactly zero. Now exactly, at the last token:

# %%
at_the_end = nnattr.activation_patching(model, task, metric, site="z", positions="end")
at_the_end.top(4)

# %% [markdown]
# ## Keep what is finished
#
# With `checkpoint=` every finished part is written to a folder: a layer where the model is local, a
# job where it is on a server. The same call finds them again. A digest of the model, the task, the
# metric and all arguments names the part, so another analysis never takes it by mistake.
#
# Here a metric fails on purpose once two layers are done, as a machine might:

# %%
from pathlib import Path

machine = {"has power": False}


def metric_on_a_bad_machine(logits, batch):
    """The logit difference, while there is power."""
    if not machine["has power"] and len(list(Path("parts").glob("*/*"))) >= 2:
        raise RuntimeError("out of power")
    return nnattr.LogitDiff()(logits, batch)


# %%
work = {"model": model, "task": task, "metric": metric_on_a_bad_machine}
try:
    nnattr.activation_patching(**work, site="z", checkpoint="parts")
except nnattr.NnattrError as error:
    print(type(error).__name__, "-", str(error)[:90])
print(len(list(Path("parts").glob("*/*"))), "of", model.n_layers, "layers are on disk")

# %% [markdown]
# Power is back. The call is the same; what is finished is read, the rest is computed.

# %%
machine["has power"] = True
resumed = nnattr.activation_patching(**work, site="z", checkpoint="parts")
float(abs(resumed.raw - full.raw).max())

# %% [markdown]
# ## Limits of a server
#
# A shared server may refuse jobs that are too long or too large. The backend object holds such
# limits, and an analysis is then sent as several jobs, each a run of layers:
#
# ```python
# backend = nnattr.NDIF(max_job_seconds=60, max_job_bytes=10_000_000)
# model = nnattr.load("meta-llama/Llama-3.1-70B", backend=backend)
# scores = nnattr.activation_patching(model, task, metric, checkpoint="parts")
# ```
#
# A job that the server refuses for its size is halved and sent again without being asked for. A long
# analysis need not be waited for: `nnattr.submit(...)` returns a ticket that another process can
# redeem tomorrow ([notebook 3](03_remote_attribution_patching.ipynb)).
#
# ## How large are results?
#
# One number per example and cell, whatever the size of the model:

# %%
path = full.save("heads.safetensors")
per_example = full.raw.size // full.raw.sizes["example"]
print(
    f"{full.raw.sizes['example']} examples x {per_example} cells: {path.stat().st_size:,} bytes"
)

# %% [markdown]
# ## What to conclude, and what not
#
# - Sweep exactly what is cheap to sweep, layers first; estimate the rest, with room for what an
#   estimate misses; measure exactly what you report.
# - Take a few prompts through the whole pipeline, look at the figures, and only then send many.
# - Rounding, sampling and the choice of prompts all move a score. Of these the prompts usually move
#   it most; a standard error shows it.
