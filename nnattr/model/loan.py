"""The user's module, on loan for a job: run as it predicts, and given back as it was.

A module that lives in this process goes on changing after it was loaded. Most changes a job simply
sees, because it runs the module itself: new weights, adapters that are switched on and off, a
resized vocabulary, a forward put in the place of another. The rest is seen to here, for the time
of a job:

==================  ==============================================================================
train mode          every part is put in eval mode: dropout would make a run differ from itself
forward hooks       nnsight sees what a module's forward returns, before any hook. A hook is part
                    of its module, so it runs there: what is read is what goes on
another forward     nnsight wraps it, as it wrapped the first one
other modules       refused: what the map says of this model was found for those that were here
==================  ==============================================================================

Hooks on a module's input need nothing, as nnsight sees what they return; but where the residual
stream is read as it enters a module, what such a hook makes of it is not the stream. Cost: a walk
over the modules, about a millisecond for a large model. One job at a time in a process.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, TypeAlias

from nnattr.backend.alone import alone
from nnattr.errors import ArchError
from nnattr.runs.as_built import is_nnsights, is_users
from nnattr.runs.places import raw

#: Where nnsight keeps what it found on a module.
STATE = "__nnsight__"
#: Where torch keeps a module's hooks: on what it is given, and on what it returns.
BEFORE, AFTER = "_forward_pre_hooks", "_forward_hooks"

Hooks: TypeAlias = Mapping[int, Callable[..., Any]]


@contextmanager
def on_loan(nn: Any, name: str, streams: Collection[str] = ()) -> Iterator[None]:
    """The module inside ``nn`` as a job is to run it.

    Args:
        nn: the nnsight model.
        name: what messages call the model.
        streams: the paths of modules that are given the residual stream itself, where it is read.

    Raises:
        ArchError: modules were added, taken out or moved since the model was loaded.
    """
    with alone(), ExitStack() as given_back:  # two jobs would give it back in the wrong order
        _follow(nn, name)
        for path, part in raw(nn).named_modules():
            if part.training:
                part.training = False
                given_back.callback(setattr, part, "training", True)
            kinds = (AFTER, BEFORE) if path in streams else (AFTER,)
            if any(is_users(hook) for kind in kinds for hook in getattr(part, kind).values()):
                given_back.enter_context(_hooks_inside(part, kinds))
        yield


def _follow(nn: Any, name: str) -> None:
    """Wrap forwards that were replaced, and refuse modules that were not there at ``load``."""
    known = nn.interleaver.envoys
    for path, part in raw(nn).named_modules():
        envoy = known.get(id(part))
        if envoy is None or envoy.path != f"{nn.path}.{path}".rstrip("."):
            raise ArchError(
                f"The module of {name} was rebuilt after nnattr.load: {path or 'the whole'!r} "
                f"({type(part).__name__}) was not there, or stood elsewhere. Load the module again."
            )
        if not is_nnsights(part):
            _wrap_again(nn, envoy, part)


def _wrap_again(nn: Any, envoy: Any, part: Any) -> None:
    """Let nnsight wrap the forward that a part has now, and it alone: it may call the first one."""
    own = vars(part)
    before, forward = own.pop(STATE), own.get("forward")
    if isinstance(getattr(forward, "state", None), type(before)):  # one that it wrapped earlier
        own[STATE] = forward.state
    else:
        nn.interleaver.instrument(envoy)
    own[STATE].routes, before.routes = before.routes, []


@contextmanager
def _hooks_inside(part: Any, kinds: Collection[str]) -> Iterator[None]:
    """The user's hooks of these kinds as a part of ``part``'s forward, which nnsight wraps."""
    state = vars(part)[STATE]
    before = {key: getattr(state, key) for key in ("body", "original", "sourced", "compiled")}
    hooks = {kind: getattr(part, kind) for kind in kinds}
    named = part._forward_pre_hooks_with_kwargs, part._forward_hooks_with_kwargs
    given = hooks.get(BEFORE, {}), hooks[AFTER]
    for kind, own in hooks.items():
        setattr(part, kind, OrderedDict((k, one) for k, one in own.items() if not is_users(one)))
    state.body = _with_hooks(state.body, *given, *named)
    state.original = _with_hooks(state.original, *given, *named)
    try:
        yield
    finally:
        for key, value in before.items():
            setattr(state, key, value)
        for kind, own in hooks.items():
            setattr(part, kind, own)


def _with_hooks(
    forward: Callable[..., Any],
    before: Hooks,
    after: Hooks,
    before_named: Collection[int],
    after_named: Collection[int],
) -> Callable[..., Any]:
    """A module's forward between the user's among these hooks, as torch calls them.

    Those that are ``named`` are given arguments by name as well. A hook may remove itself.
    """

    @wraps(forward)
    def hooked(module: Any, *args: Any, **kwargs: Any) -> Any:
        for key, hook in _users(before):
            if key in before_named:
                args, kwargs = hook(module, args, kwargs) or (args, kwargs)
            elif (changed := hook(module, args)) is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
        result = forward(module, *args, **kwargs)
        for key, hook in _users(after):
            given = (args, kwargs) if key in after_named else (args,)
            changed = hook(module, *given, result)
            result = result if changed is None else changed
        return result

    return hooked


def _users(hooks: Hooks) -> list[tuple[int, Callable[..., Any]]]:
    """The user's among these hooks."""
    return [pair for pair in hooks.items() if is_users(pair[1])]
