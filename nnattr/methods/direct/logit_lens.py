r"""The logit lens: what would the model say if it ended here?

At every point of the residual stream the final norm and the unembedding are applied as at the end:

.. math:: \ell^{(l)} = W_U \, \mathrm{norm}(x^{(l)}), \qquad p^{(l)} = \mathrm{softmax}(\ell^{(l)})

The last point is the model's own output. Norm and unembedding are the model's modules, called where
they are; what comes back is the k likeliest tokens, the entropy, and how the answer fares.

It misleads in early layers, whose residual stream need not be written in the basis of the last one:
a token that does not show may be there in another form, and on some models early predictions are
simply the input token or noise. A tuned lens (Belrose et al. 2023, arXiv:2303.08112) corrects for
that with weights of its own.

Source: nostalgebraist 2020 (interpreting GPT: the logit lens). The cost is one forward pass, and an
unembedding per layer at the positions asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from nnattr.arguments import Positive, checked
from nnattr.errors import TaskError
from nnattr.graph import Part
from nnattr.jobs.record import as_task, provenance_of, untold
from nnattr.model.components import logit_constants
from nnattr.model.model import Model
from nnattr.model.prompts import Prompts, columns, texts_and_tokens
from nnattr.results import Lens
from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.logits import require_number, take, top_tokens
from nnattr.runs.places import read
from nnattr.runs.portions import Portions, RefusedError
from nnattr.runs.tolerance import pass_tolerance
from nnattr.tasks import Task
from nnattr.tasks.positions import Positions
from nnattr.tokens import Tokens, continuation_id, token_texts


@checked
def logit_lens(
    model: Model,
    prompts: Prompts,
    *,
    top_k: Positive = 5,
    positions: Positions = "last",
    answers: str | int | Sequence[str | int] | None = None,
) -> Lens:
    """The likeliest next tokens at each layer, as if the model ended there.

    Args:
        model: as `nnattr.load` gives it.
        prompts: one or several, a task, whose clean prompts are read, or tokens.
        top_k: how many tokens per layer and position.
        positions: ``"last"``, ``"each"``, a position counted from the prompt's first token (or from
            its end, negative), a list of them, or the name of a task's span.
        answers: one word for all prompts or one each, with its leading space (``" Mary"``) or as a
            token id, whose rank and probability are wanted as well; by default the first of a
            task's answers.

    Returns:
        a `Lens`; ``lens.plot()`` shows tokens in cells, ``lens.to_dataframe()`` everything.

    Raises:
        TaskError: prompts, positions or answers that cannot be used as given.

    Cost: one forward pass; the vocabulary is reduced where the model is.
    """
    texts, tokens = texts_and_tokens(model, prompts)
    words, ids = _answers(model, prompts, texts, answers)
    at, present = columns(prompts, texts, tokens, positions)
    places = [*model.places("resid_pre"), model.places("resid_post")[-1]]
    multiplier, cap = logit_constants(model)
    logits = at.shape[1] * model.vocab_size
    payload = {
        "prompts": model.batch(tokens, prompts),
        "columns": at,
        "answers": torch.tensor(ids) if ids else None,
        "question": {
            "places": places,
            "norm": model.spec.final_norm,
            "unembed": model.spec.unembed,
            "multiplier": multiplier,
            "cap": cap,
            "top_k": top_k,
        },
        "portions": model.portions(tokens.ids.shape[1], floats=4 * logits),
    }
    outcome = model.run(lens_job, payload, label="logit lens")
    points = [*(Part("pre", layer) for layer in range(model.n_layers)), Part("final")]
    names = [part.label for part in points]
    data = _data(model, tokens, names, at, present, outcome.values)
    given = {"top_k": top_k, "positions": positions, "answers": answers, **untold(prompts)}
    task = as_task(prompts, texts, tokens)
    made = provenance_of(model, task, method="logit_lens", arguments=given, outcome=outcome)
    return Lens(data, made, texts, words)


class LensQuestion:
    """What is asked at each point of the residual stream.

    Attributes:
        places: where the points are.
        norm, unembed: the paths of the final norm (or None) and of the unembedding.
        multiplier, cap: what logits are multiplied with, and how they are capped (or None).
        top_k: how many tokens are wanted.
    """

    def __init__(
        self,
        places: list[tuple[Any, ...]],
        norm: str | None,
        unembed: str,
        multiplier: float,
        cap: float | None,
        top_k: int,
    ) -> None:
        self.places = places
        self.norm = norm
        self.unembed = unembed
        self.multiplier = multiplier
        self.cap = cap
        self.top_k = top_k


def lens_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """Every point's reduced distributions [example, point, pos, ...]."""
    every, columns = PromptBatch(**payload["prompts"]), payload["columns"]
    question, answers = LensQuestion(**payload["question"]), payload["answers"]
    portions = Portions(nn, tick, total=len(every), **payload["portions"])
    for some in portions:
        with portions.attempt():
            at = columns[some]
            wanted = None if answers is None else answers[some][:, None].expand(at.shape)
            portions.keep(by_point(nn, question, every.take(some), at, wanted))
            portions.tick(1, 1)
    return portions.joined()


def by_point(
    nn: Any, question: LensQuestion, prompts: PromptBatch, at: Tensor, answers: Tensor | None
) -> dict[str, Tensor]:
    """What `top_tokens` gives, at each point of some of the prompts.

    Args:
        nn: the nnsight model.
        question: what is asked.
        prompts: what is run.
        at: the positions read [example, pos].
        answers: the token whose standing is wanted there [example, pos], or None.
    """
    with nn.trace(**inputs(prompts)):
        with torch.no_grad():
            stream = [take(read(nn, where, prompts.width), at) for where in question.places]
            seen = [
                top_tokens(unembedded(nn, question, x), question.top_k, answers)
                for x in stream[:-1]
            ]
            ours, own = unembedded(nn, question, stream[-1]), take(nn.output.logits, at)
            seen.append(top_tokens(ours, question.top_k, answers))
            cpu = [{key: value.cpu() for key, value in one.items()} for one in seen]
    gap = float((ours.float() - own.float()).abs().max() / own.float().abs().max())
    require_number(gap)
    if gap > pass_tolerance(own):
        raise RefusedError(
            "arch",
            "the model's own logits are not its unembedding of the last point of its residual "
            f"stream (they differ by {gap:.1e} of the largest): it does something besides, or "
            "somebody's hook does, that no other point would see.",
        )
    return {key: torch.stack([one[key] for one in cpu], 1) for key in cpu[0]}


def unembedded(nn: Any, question: LensQuestion, x: Tensor) -> Tensor:
    """The logits of a residual stream [example, pos, d_model], made as at the model's end."""
    normed = x if question.norm is None else nn.get(question.norm)(x)
    logits = nn.get(question.unembed)(normed) * question.multiplier
    return logits if question.cap is None else question.cap * torch.tanh(logits / question.cap)


def _answers(
    model: Model,
    prompts: Prompts,
    texts: tuple[str, ...],
    given: str | int | Sequence[str | int] | None,
) -> tuple[tuple[str, ...], list[int]]:
    """One answer per prompt, or none, and their ids."""
    if given is None:
        if not isinstance(prompts, Task) or not prompts.answer_ids or prompts.sequence_ids:
            return (), []
        words = tuple(group[0] for group in prompts.answers)
        return words, [group[0] for group in prompts.answer_ids]
    said = (given,) * len(texts) if isinstance(given, str | int) else tuple(given)
    if len(said) != len(texts):
        raise TaskError(f"There are {len(said)} answers for {len(texts)} prompts.")
    ids = [
        word if isinstance(word, int) else continuation_id(model.tokenizer, text, word)
        for text, word in zip(texts, said, strict=True)
    ]
    model.require_known([ids])
    shown = token_texts(model.tokenizer, ids)
    pairs = zip(said, shown, strict=True)
    return tuple(word if isinstance(word, str) else text for word, text in pairs), ids


def _data(
    model: Model,
    tokens: Tokens,
    names: list[str],
    at: Tensor,
    present: Tensor,
    values: dict[str, Tensor],
) -> xr.Dataset:
    """The job's tensors with names, and the token ids as text."""
    known = present[:, None]  # not at each point apart
    dims = ("example", "component", "pos", "rank")
    ids, place = np.unique(values["token"].numpy(), return_inverse=True)
    text = np.array(token_texts(model.tokenizer, ids.tolist()), dtype=object)[place]
    data: dict[str, Any] = {
        "token": (
            dims,
            np.where(known[..., None].numpy(), text.reshape(values["token"].shape), ""),
        ),
    }
    for name in ("probability", "entropy", "answer_probability", "answer_rank"):
        if name in values:
            shown = known[..., None] if name == "probability" else known
            numbers = values[name].float().masked_fill(~shown, float("nan"))
            data[name] = (dims[: numbers.ndim], numbers.numpy())
    padding = torch.tensor(tokens.padding)[:, None]
    own = (at - padding).double().masked_fill(~present, float("nan"))
    strings = [
        [row[int(i)] if i >= 0 else "" for i in own_row]
        for row, own_row in zip(tokens.strings, own.tolist(), strict=True)
    ]
    coords = {
        "example": np.arange(len(tokens)),
        "component": names,
        "rank": np.arange(values["token"].shape[-1]),
        "position": (("example", "pos"), own.numpy()),
        "prompt_token": (("example", "pos"), np.array(strings, dtype=object)),
    }
    return xr.Dataset(data, coords)
