"""What nnattr says about a model, held against plain PyTorch hooks that know nothing of nnattr.

Three independent facts decide whether an accepted spec is right:

* zeroing head *h* at the found projection's input, by a forward pre-hook, gives the logits that
  nnattr's own edit of ``z`` gives;
* ``resid_pre`` as nnattr reads it is what Hugging Face returns as ``hidden_states``;
* silencing head *h* inside the attention function itself (its output under sdpa, its pattern under
  eager) changes slice *h* of the projection's input and no other: the slices are the heads. (A
  norm over all heads before the projection, as BitNet has it, may rescale the others together.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nnattr.model.model import Model
from nnattr.runs.places import read, write

IDS = [[5, 17, 42, 8, 61, 23]]
TOLERANCE = 1e-4


def disagreement(model: Model) -> str | None:
    """The first independent fact that contradicts ``model.spec``, in words; None if none does."""
    module = model.nn._module
    places = model.places("z")
    states = module(torch.tensor(IDS), output_hidden_states=True, use_cache=False).hidden_states
    ours = model.run(_residuals, {"places": model.places("resid_pre")}, label="resid_pre").values
    for layer, mine in enumerate(ours["residuals"]):
        if not torch.allclose(mine, states[layer], atol=TOLERANCE):
            return f"resid_pre of layer {layer} is not hidden_states[{layer}]"
    payload = {"places": places, "n_heads": model.n_heads}
    edited = model.run(_zeroed, payload, label="zeroing heads").values["logits"]
    for layer, (path, *_) in enumerate(places):
        for head in range(model.n_heads):
            plain = _hooked(module, path, head, model.n_heads)
            if not torch.allclose(edited[layer][head], plain, atol=TOLERANCE):
                return f"zeroing L{layer}H{head} by a hook gives other logits"
    paths = [path for path, *_ in places]
    return _leak(module, paths, model.n_heads) if traceable(model) else None


def traceable(model: Model) -> bool:
    """Whether the third fact is available: attention runs through sdpa or softmax, once a layer."""
    paths = [path for path, *_ in model.places("z")]
    _, calls = _projection_input(model.nn._module, paths[0], model.n_heads, silence=None)
    return calls == len(paths)


def _residuals(nn: Any, tick: Any, places: list[tuple[str, str]]) -> dict[str, Any]:
    with nn.trace(input_ids=torch.tensor(IDS), use_cache=False):
        residuals = [read(nn, where, len(IDS[0])).clone() for where in places]
    return {"residuals": residuals}


def _zeroed(nn: Any, tick: Any, places: list[tuple[str, str]], n_heads: int) -> dict[str, Any]:
    logits = []
    for where in places:
        logits.append([])
        for head in range(n_heads):
            with nn.trace(input_ids=torch.tensor(IDS), use_cache=False):
                z = read(nn, where).clone()
                z.unflatten(-1, (n_heads, -1))[:, :, head] = 0
                write(nn, where, z)
                found = nn.output.logits.clone()
            logits[-1].append(found)
    return {"logits": logits}


def _hooked(module: Any, path: str, head: int, n_heads: int) -> Tensor:
    """The logits when a plain forward pre-hook zeroes one head."""

    def zero(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        width = inputs[0].shape[-1] // n_heads
        z = inputs[0].clone()
        z[..., head * width : (head + 1) * width] = 0
        return (z, *inputs[1:])

    handle = module.get_submodule(path).register_forward_pre_hook(zero)
    try:
        return module(torch.tensor(IDS), use_cache=False).logits
    finally:
        handle.remove()


def _leak(module: Any, paths: list[str], n_heads: int) -> str | None:
    """Whether silencing a head inside the attention function moves another head's slice."""
    for layer, path in enumerate(paths):
        usual, _ = _projection_input(module, path, n_heads, silence=None)
        for head in range(n_heads):
            seen, _ = _projection_input(module, path, n_heads, silence=(layer, head))
            moved = _moved(
                seen.unflatten(-1, (n_heads, -1)), usual.unflatten(-1, (n_heads, -1)), head
            )
            if moved != [head]:
                return f"silencing L{layer}H{head} moves slices {moved}"
    return None


def _moved(seen: Tensor, usual: Tensor, head: int) -> list[int]:
    """The heads whose slice changed, apart from one factor per position common to the others."""
    others = [h for h in range(usual.shape[2]) if h != head]
    rest, before = seen[:, :, others], usual[:, :, others]
    factor = (rest * before).sum((2, 3), keepdim=True) / before.square().sum((2, 3), keepdim=True)
    change = (seen - factor * usual).abs().amax((0, 1, 3))
    return (change > 1e-5 * usual.abs().max()).nonzero().flatten().tolist()


def _projection_input(
    module: Any, path: str, n_heads: int, silence: tuple[int, int] | None
) -> tuple[Tensor, int]:
    """The projection's input, and how often an attention function ran, with one head silenced."""
    seen: list[Tensor] = []
    hook = module.get_submodule(path).register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    calls = [0]

    def silenced(out: Tensor) -> Tensor:
        if out.ndim != 4 or out.shape[1] != n_heads or out.shape[2] != len(IDS[0]):
            return out
        if silence is not None and silence[0] == calls[0]:
            out = out.clone()
            out[:, silence[1]] = 0
        calls[0] += 1
        return out

    try:
        with _wrapped("scaled_dot_product_attention", silenced), _wrapped("softmax", silenced):
            module(torch.tensor(IDS), use_cache=False)
    finally:
        hook.remove()
    return seen[0].clone(), calls[0]


@contextmanager
def _wrapped(name: str, after: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """`torch.nn.functional` with one function's result passed through ``after``."""
    original = getattr(functional, name)

    def wrapper(*args: Any, **kwargs: Any) -> Tensor:
        return after(original(*args, **kwargs))

    setattr(functional, name, wrapper)
    try:
        yield
    finally:
        setattr(functional, name, original)
