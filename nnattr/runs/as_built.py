"""Whether a module does what its class does, and nothing besides.

A module is more than its weights: it may carry hooks, or a forward that somebody put in its place.
Where a product of weights, or another way to compute the same, is to stand in for a call of a
module, that module has to be as it was built; any other is called.

Inside a job: torch and plain values. nnsight keeps its own forward on every module, and what it
found there in the module's ``__nnsight__``.
"""

from __future__ import annotations

from typing import Any

from nnattr.runs.places import raw

#: Packages whose hooks watch or move tensors, and change none.
WATCHING = ("transformers", "accelerate", "nnsight")


def as_built(module: Any) -> bool:
    """Whether a call of this Hugging Face module is its class's forward and nothing else."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return runs_its_class(module) and not any(map(is_users, hooks))


def runs_its_class(module: Any) -> bool:
    """Whether nobody put another forward in the place of the one of the module's class."""
    state = vars(module).get("__nnsight__")
    if state is None:
        return "forward" not in vars(module)
    return is_nnsights(module) and state.original is type(module).forward


def is_nnsights(module: Any) -> bool:
    """Whether the module's forward is the one that nnsight put there, around what it found."""
    own = vars(module)
    return getattr(own.get("forward"), "state", None) is own["__nnsight__"] or "_hf_hook" in own


def is_users(hook: Any) -> bool:
    """Whether a hook is of somebody who may change what the module returns."""
    inner = getattr(hook, "func", hook)  # of a functools.partial
    home = getattr(inner, "__module__", None) or ""
    return home.partition(".")[0] not in WATCHING


def call_inside(envoy: Any, x: Any) -> Any:
    """What a module, as nnsight gives it, makes of an ``x`` that hooks on its input have seen.

    Such as its input as it was read: hooks on what a module is given come before that.
    """
    module = raw(envoy)
    hooks = module._forward_pre_hooks
    module._forward_pre_hooks = {}
    try:
        return envoy(x)
    finally:
        module._forward_pre_hooks = hooks


def around(nn: Any, path: str) -> list[Any]:
    """The Hugging Face modules that the one at ``path`` is inside of, the whole model first."""
    names = path.split(".")
    return [raw(nn), *(raw(nn.get(".".join(names[:depth]))) for depth in range(1, len(names)))]


def touched(nn: Any, paths: list[str]) -> list[int] | None:
    """Which of these layers have a part that is not as it was built; None if no module is."""
    if all(map(as_built, raw(nn).modules())):
        return None
    return [
        layer
        for layer, path in enumerate(paths)
        if not all(map(as_built, raw(nn.get(path)).modules()))
    ]
