r"""Which heads look at the previous token, at the first, or at what came next before?

For each kind of head (`nnattr.runs.head_kinds`) the score of head h is the attention that it pays
to the keys of that kind, averaged over the queries that have any:

.. math:: s_h = \frac{1}{|Q|} \sum_{i \in Q} \sum_{j \in K(i)} A_{h,ij}

On repeated random tokens only the first copy tells what comes next in the second, so heads that
look there do induction, and the loss falls from the first copy to the second as far as the model
can use that.

It misleads where looking is not doing: a head may look back at a token and write nothing of use
(ablate it to know). Scores depend on the text: on random tokens a head that attends to grammar has
nothing to attend to and may rest on the first token, and in a text without repetitions nothing is
known about ``duplicate`` and ``induction`` (NaN). The thresholds are a convention.

Source: Elhage et al. 2021; Olsson et al. 2022; the thresholds are those of the ARENA course's
exercise. The cost is two forward passes and one more for the loss.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from nnattr.arguments import Positive, Seed, checked
from nnattr.errors import TaskError
from nnattr.jobs.record import as_task, provenance_of, untold
from nnattr.model.model import Model
from nnattr.model.patterns import attention_paths
from nnattr.model.prompts import Prompts, Run, texts_and_tokens
from nnattr.results import HeadScores
from nnattr.runs.head_kinds import KINDS, keys, scores
from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.patterns import patterns
from nnattr.runs.portions import Portions
from nnattr.tokens import BYTE, Tokens, pad_id, token_strings

THRESHOLDS = {
    "previous": 0.35,
    "current": 0.3,
    "first": 0.7,
    "duplicate": 0.5,
    "induction": 0.5,
}


@checked
def detect_heads(
    model: Model,
    prompts: Prompts | None = None,
    *,
    n: Positive = 10,
    length: Positive = 50,
    seed: Seed = 0,
    thresholds: Mapping[str, float] | None = None,
    run: Run = "clean",
) -> HeadScores:
    """How much each head is a previous-token, current-token, ... or induction head.

    Args:
        model: as `nnattr.load` gives it.
        prompts: texts, a task, or the ``tokens`` of another result; by default ``n`` sequences of
            ``length`` random tokens and the same again, after a BOS if the tokenizer has one.
        n: how many random sequences; standard errors are over them.
        length: tokens in one copy.
        seed: which tokens. They are ordinary ones (not special, no bytes), and differ within a
            sequence where the vocabulary is large enough.
        thresholds: for some kinds another score from which on a head counts; the defaults are
            previous 0.35, current 0.3, first 0.7, duplicate and induction 0.5.
        run: which prompts of a task.

    Returns:
        a `HeadScores`: ``.heads("induction")`` lists those over the threshold, ``.plot()`` draws
        all kinds, ``.halves()`` and ``.plot_loss()`` have the loss on both copies.

    Raises:
        ArchError: the model's attention gives no pattern, with what was measured.
        BackendError: where the model runs its attention cannot be switched (a sandboxed server).
        TaskError: prompts that cannot be used, or an unknown kind in ``thresholds``.

    Cost: three forward passes; the patterns are reduced where the model is.
    """
    limits = {**THRESHOLDS, **(thresholds or {})}
    if unknown := set(limits) - set(KINDS):
        raise TaskError(f"There is no kind {unknown.pop()!r} of head; the kinds are {KINDS}.")
    if prompts is None:
        tokens, second = repeated_tokens(model, n, length, seed)
        texts = tuple(map("".join, tokens.strings))
    else:
        (texts, tokens), second = texts_and_tokens(model, prompts, run), None
    width = tokens.ids.shape[1]
    pattern, vocab = model.n_heads * width**2, model.vocab_size
    payload = {
        "prompts": model.batch(tokens, prompts),
        "paths": attention_paths(model),
        "options": {"logits_to_keep": 1} if model.accepts("logits_to_keep") else {},
        "portions": model.portions(width, floats=max(pattern, 3 * width * vocab)),
    }
    outcome = model.run(detection_job, payload, label="head detection")
    values = outcome.values
    dims = ("example", "kind", "layer", "head")
    known = values["scores"].permute(0, 2, 1, 3).numpy()
    coords = {
        "example": np.arange(len(tokens)),
        "kind": list(KINDS),
        "layer": np.arange(model.n_layers),
        "head": np.arange(model.n_heads),
    }
    array = xr.DataArray(known, dims=dims, coords=coords)
    loss = _aligned(values["loss"], tokens)
    given = {"n": n, "length": length, "seed": seed, "thresholds": thresholds, "run": run}
    given |= untold(prompts)
    task = as_task(prompts, texts, tokens)
    made = provenance_of(model, task, method="detect_heads", arguments=given, outcome=outcome)
    return HeadScores.from_arrays(array, limits, tokens, made, loss=loss, second=second)


def detection_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """``scores`` [example, layer, kind, head] and ``loss`` [example, pos] of every prompt."""
    every = PromptBatch(**payload["prompts"])
    portions = Portions(nn, tick, total=len(every), **payload["portions"])
    for some in portions:
        with portions.attempt():
            prompts = every.take(some)
            found = by_kind(nn, prompts, payload["paths"], payload["options"])
            by_head = torch.stack([one.cpu() for one in found], 1)
            portions.keep({"scores": by_head, "loss": token_losses(nn, prompts)})
            portions.tick(1, 1)
    return portions.joined()


def by_kind(
    nn: Any, prompts: PromptBatch, paths: list[list[str]], options: dict[str, Any]
) -> list[Tensor]:
    """Each layer's scores [example, kind, head]; kinds as in `nnattr.runs.head_kinds.KINDS`."""
    attended = keys(prompts.ids, prompts.mask)

    def reduce(pattern: Tensor) -> Tensor:
        """One layer's pattern to its scores."""
        each = [scores(pattern, attended[kind].to(pattern.device)) for kind in KINDS]
        return torch.stack(each, 1)

    return patterns(nn, prompts, paths, None, options, reduce)


def token_losses(nn: Any, prompts: PromptBatch) -> Tensor:
    """Minus the log probability of each token [example, pos]; 0 at the first."""
    with nn.trace(**inputs(prompts)):
        with torch.no_grad():
            logits = nn.output.logits[:, :-1].float()
            ids = prompts.ids.to(logits.device)
            own = logits.gather(-1, ids[:, 1:, None])[..., 0]
            loss = (logits.logsumexp(-1) - own).cpu()
    return torch.nn.functional.pad(loss, (1, 0))


def repeated_tokens(model: Model, n: int, length: int, seed: int) -> tuple[Tokens, int]:
    """``n`` random sequences, each twice, and where the second copy begins.

    Raises:
        TaskError: there is nothing to draw, or too many tokens for the model.
    """
    if n < 1 or length < 2:
        raise TaskError(f"n is {n} and length {length}; expected at least 1 and 2.")
    tokenizer = model.tokenizer
    opening = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    width = len(opening) + 2 * length
    if model.context_length is not None and width > model.context_length:
        raise TaskError(
            f"Two copies of {length} tokens are {width} tokens with the BOS, and {model.name} "
            f"takes {model.context_length}; use a smaller length."
        )
    names = tokenizer.convert_ids_to_tokens(range(min(len(tokenizer), model.vocab_size)))
    special = set(tokenizer.all_special_ids)
    ordinary = [
        i for i, name in enumerate(names) if i not in special and name and not BYTE.fullmatch(name)
    ]
    draw = random.Random(seed)
    some = draw.sample if len(ordinary) >= length else draw.choices
    copies = [some(ordinary, k=length) for _ in range(n)]
    rows = [opening + copy + copy for copy in copies]
    tokens = Tokens.from_rows(rows, token_strings(tokenizer, rows), pad_id(tokenizer))
    return tokens, len(opening) + length


def _aligned(loss: Tensor, tokens: Tokens) -> xr.DataArray:
    """The losses with position 0 at each prompt's first token, NaN there and behind its last."""
    values = torch.full_like(loss, float("nan"))
    for row, pad in enumerate(tokens.padding):
        values[row, 1 : loss.shape[1] - pad] = loss[row, pad + 1 :]
    coords = {"example": np.arange(len(tokens)), "pos": np.arange(loss.shape[1])}
    return xr.DataArray(values.numpy(), dims=("example", "pos"), coords=coords)
