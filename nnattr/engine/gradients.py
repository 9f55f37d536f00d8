"""The base run with its gradients at a site, and the source run beside it.

Only the positions from the first one at which the runs differ are differentiated: before it there
is no difference to multiply a gradient with. The source run has a pass of its own: in one batch
with the base run the backward pass would go through its rows as well, for nothing.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnattr.engine.base import SITE, first_difference, observe
from nnattr.engine.cache import fork, inputs_from, prefix
from nnattr.engine.measure import measured, require_own_numbers
from nnattr.engine.mode import reason
from nnattr.engine.question import Question, every_example, sandboxed
from nnattr.engine.rules import Column, needs_patterns, ruled
from nnattr.engine.shortcuts import read_logits
from nnattr.runs.as_built import touched
from nnattr.runs.patterns import go_back, go_eager
from nnattr.runs.places import cut, raw, read
from nnattr.runs.portions import RefusedError
from nnattr.runs.tolerance import same_logits

#: Shared tokens below which a cache of them costs more passes than it saves.
WORTH_SHARING = 256
#: Why runs begin at the first token though they share more than that.
DISAGREES = "an example's logits are others when it goes on from its keys and values"
#: Steps of a run (see `nnattr.engine.base.observe`) that read the residual stream between layers.
STREAMS = ("stream", "end")


class Backward:
    """The model as its gradients are taken.

    Attributes:
        nn: the nnsight model, under the rules of the backward pass.
        eager: whether these need attention's plain implementation.
    """

    def __init__(self, nn: Any, columns: list[Column]) -> None:
        self.nn = ruled(nn, columns)
        self.eager = needs_patterns(columns)


class SourceRun:
    """The source run, and where both runs begin.

    Attributes:
        start: that position.
        because: why that is the first one, though it would pay to begin later.
        cache: the base run's keys and values before it.
        before: the base run's logits there, if the metric reads them, else None.
        site: the site in each asked layer [example, pos, width].
        logits: of the source run [example, pos, token], from position 0 on if the metric reads all.
    """

    def __init__(
        self,
        *,
        start: int,
        because: str,
        cache: Any,
        before: Tensor | None,
        site: list[Tensor],
        logits: Tensor,
    ) -> None:
        self.start = start
        self.because = because
        self.cache = cache
        self.before = before
        self.site = site
        self.logits = self.whole(logits)

    def whole(self, logits: Tensor) -> Tensor:
        """Logits from ``start`` on, behind those before it."""
        return logits if self.before is None else torch.cat([self.before, logits], 1)


class Differentiated:
    """A run of the base prompts with its gradients, from the source run's ``start`` on.

    Attributes:
        own: the site, by asked layer [example, pos, width].
        slopes: the gradient of the metric there, by layer [example, pos, width].
        entered: the gradient at the token embeddings that it was given [example, pos, d_model].
        taken: what was made of the gradients while the run could be differentiated.
        metric: of the run [example].
        logits: of the run, from position 0 on if the metric reads all.
        clean: the clean run's logits at the last position [example, token].
    """

    def __init__(
        self,
        *,
        own: list[Tensor],
        slopes: list[Tensor],
        entered: Tensor,
        taken: Any,
        metric: Tensor,
        logits: Tensor,
        clean: Tensor,
    ) -> None:
        self.own = own
        self.slopes = slopes
        self.entered = entered
        self.taken = taken
        self.metric = metric
        self.logits = logits
        self.clean = clean


def source_run(nn: Any, question: Question) -> SourceRun:
    """The source run, from where both runs have to begin."""
    start, because = resumable(nn, question)
    cache, before = prefix(nn, question, start)
    every = every_example(question)
    theirs = observe(nn, question, question.source, SITE, start, fork(cache, every))
    require_passed_back(nn, question.layout.embed)
    return SourceRun(
        start=start,
        because=because,
        cache=cache,
        before=before,
        site=theirs.site,
        logits=theirs.logits,
    )


def differentiated(
    backward: Backward,
    question: Question,
    source: SourceRun,
    *,
    entering: Tensor | None = None,
    clean: Tensor | None = None,
    take: Callable[[Tensor, list[Tensor], list[Tensor]], Any] | None = None,
) -> Differentiated:
    """A run of the base prompts, and the gradients of its metric.

    Args:
        backward: the model whose gradients are taken.
        question: what is asked.
        source: the source run.
        entering: token embeddings in the place of the base run's own [example, pos, d_model].
        clean: the clean run's logits at the last position, if this run may be neither of the two.
        take: is told the metric, the site in each asked layer and the residual stream between
            layers, while these can be differentiated.
    """
    before = go_eager(backward.nn) if backward.eager else []
    try:
        found = run_back(backward.nn, question, source, entering, clean, take)
    finally:
        go_back(before)
    if clean is None:
        require_own_numbers(question, found.logits, found.clean, found.metric)
    return found


def run_back(
    nn: Any,
    question: Question,
    source: SourceRun,
    entering: Tensor | None,
    clean: Tensor | None,
    take: Callable[[Tensor, list[Tensor], list[Tensor]], Any] | None,
) -> Differentiated:
    """The pass of `differentiated`, forwards and backwards."""
    layout, start, taken = question.layout, source.start, None
    slopes: list[Tensor] = []
    cache = fork(source.cache, every_example(question))
    parts = [layout.places[layer][2] for layer in question.layers]
    with nn.trace(**inputs_from(layout, question.base, start, cache)):
        entered = enter(nn.get(layout.embed), entering)
        live, versions, streams = read_live(nn, question, start, take is not None)
        # of a part of an output there is no gradient: take it of the whole, and cut
        own = [cut(value.detach(), part).clone() for value, part in zip(live, parts, strict=True)]
        logits = read_logits(nn, question)
        written = [value._version for value in live] != versions
        # a sandbox, which has no weights, gives copies that lead nowhere
        tracked = logits.grad_fn is not None and not sandboxed(nn, layout)
        logits = source.whole(logits)
        if clean is None:
            clean = (logits.detach() if question.base_is_clean else source.logits)[:, -1]
        metric, problem = measured(question, question.base, logits, clean)
        if tracked and metric.requires_grad and not problem:
            asked = live if entering is None else [*live, entered]
            keep = take is not None
            slopes = list(torch.autograd.grad(metric.sum(), asked, retain_graph=keep))
            if take is not None:
                taken = take(metric.sum(), live, streams)
    if written and touched(nn, layout.layers) is not None:
        raise RefusedError(
            "arch",
            "somebody's hook writes into an activation that is differentiated (x.mul_(2), say), "
            "and the gradient would be that of what it becomes. Let the hook return a new tensor, "
            "or use activation_patching.",
        )
    if problem:
        raise RefusedError("metric", problem)
    require_gradients(tracked, slopes)
    return Differentiated(
        own=own,
        slopes=[cut(slope, part) for slope, part in zip(slopes, parts, strict=False)],
        entered=slopes[-1],
        taken=taken,
        metric=metric.detach(),
        logits=logits.detach(),
        clean=clean,
    )


def enter(embed: Any, entering: Tensor | None) -> Tensor:
    """Open the graph at the token embeddings, whose weights are frozen, inside a trace."""
    if entering is None:
        embed.output.requires_grad_(True)
    else:
        embed.output = entering.detach().to(embed.output).requires_grad_(True)
    return embed.output


def read_live(
    nn: Any, question: Question, start: int, with_streams: bool
) -> tuple[list[Tensor], list[int], list[Tensor]]:
    """The whole of what the site is a part of, its version then, and the residual stream."""
    live: list[Tensor] = []
    versions: list[int] = []
    streams: list[Tensor] = []
    for layer, there in enumerate(question.layout.steps):
        for name, where in there:
            if name == "site" and layer in question.layers:
                live.append(read(nn, (*where[:2], None), question.base.width - start))
                versions.append(live[-1]._version)
            elif with_streams and name in STREAMS:
                streams.append(read(nn, where, question.base.width - start))
    return live, versions, streams


def require_passed_back(nn: Any, embed: str) -> None:
    """Refuse a linear module that passes no gradient on: the residual stream goes round it.

    Kernels of quantized weights often do not, and the estimate would silently lack that path.
    """
    like = nn.get(embed).weight
    for path, part in raw(nn).named_modules():
        width = getattr(part, "in_features", None)
        usual = type(part) is torch.nn.Linear and type(part.weight) in (Tensor, torch.nn.Parameter)
        if width is None or usual or like.is_meta or _reads_tokens(part):
            continue
        probe = torch.zeros(1, width, dtype=like.dtype, device=like.device, requires_grad=True)
        if not passes_back(part, probe):
            raise RefusedError(
                "arch",
                f"{path} ({type(part).__name__}) passes no gradients back, as kernels of quantized "
                "weights often do not; use activation_patching, which needs none.",
            )


def _reads_tokens(part: Any) -> bool:
    """Whether it is an embedding, perhaps inside an adapter that counts its tokens as features."""
    return any(isinstance(inside, torch.nn.Embedding) for inside in part.modules())


def passes_back(part: Any, probe: Tensor) -> bool:
    """Whether a gradient reaches what the module is given; some kernels only say that it does."""
    made = part(probe).sum()
    if not made.requires_grad:
        return False
    return torch.autograd.grad(made, probe, allow_unused=True)[0] is not None


def require_gradients(tracked: bool, slopes: list[Tensor]) -> None:
    """Refuse where the logits, or the metric, lead nowhere back."""
    instead = "use activation_patching, which needs none"
    if not tracked:
        raise RefusedError("backend", f"this deployment gives no gradients; {instead}")
    if not slopes:
        raise RefusedError("metric", f"it has no gradient; {instead}")


def resumable(nn: Any, question: Question) -> tuple[int, str]:
    """Where runs may begin: after what all pairs share, if that pays and the model allows it.

    It does where one example gives the same logits when it goes on from a cache; else this is 0,
    with the reason.
    """
    start = first_difference(question)
    if len(question) * start < WORTH_SHARING:
        return 0, ""
    one = question.take(slice(1))
    whole = observe(nn, one, one.base).logits
    try:
        cache, _ = prefix(nn, one, start)
        resumed = observe(nn, one, one.base, (), start, cache).logits
    except Exception as error:  # whatever the model's own code has against a cache
        return 0, reason(error)
    return (start, "") if same_logits(resumed[:, -1], whole[:, -1]) else (0, DISAGREES)
