"""One short run of a module that is here, before the table's word about its family is taken.

A table says how a family is built and not what was done to this module: layers may have been cut
from its list, one layer put in twice, its attention opened to later tokens (which makes every
number that is computed from a cached prefix wrong). One pass over two prompts that differ in their
last token shows all of it. A module whose structure is proven anyway needs no such run.

Cost: one forward pass over eight tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nnattr.errors import ArchError
from nnattr.model.model import Model
from nnattr.runs.tolerance import pass_tolerance

#: Tokens of a prompt.
WIDTH = 4


def require_as_known(model: Model) -> None:
    """Hold what the module does against what its family's row promises.

    Args:
        model: with the spec from the table, and its weights here.

    Raises:
        ArchError: it cannot be run, gives no logits, lets a token see later ones, or runs other
            layers than those at ``spec.layers``, each once.
    """
    with counted(list(model.module.get_submodule(model.spec.layers))) as runs:
        logits = _logits(model)
    _require_layers(model, runs)
    _warn_of_numbers(model)
    gap = (logits[0, :-1] - logits[1, :-1]).float().abs().max()
    if gap > pass_tolerance(logits) * logits.float().abs().max():  # no number is left to jobs
        raise ArchError(
            f"{model.name} ({model.architecture}) is no causal language model: when the last token "
            f"of a prompt is changed, the logits of earlier ones change by {float(gap):.1e}. "
            "nnattr needs a model in which a token sees only what comes before it."
        )


def _logits(model: Model) -> Tensor:
    """The logits [2, pos, token] of two prompts that differ in their last token.

    Raises:
        ArchError: the module cannot be run, or gives something else.
    """
    ids = (torch.arange(1, WIDTH + 1) * 37 % model.vocab_size).repeat(2, 1)
    ids[1, -1] = ids[0, 0]
    try:
        with torch.no_grad():
            output = model.module(input_ids=ids.to(_device(model.module)), use_cache=False)
    except Exception as error:
        cause = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        raise ArchError(
            f"{model.name} ({type(model.module).__name__}) could not be run on {WIDTH} tokens "
            f"({cause}). The module has to run by itself before nnattr can look into it."
        ) from error
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[:2] != ids.shape:
        found = "none" if logits is None else f"{list(getattr(logits, 'shape', ()))}"
        raise ArchError(
            f"{model.name} ({type(model.module).__name__}) gives no logits for every position: "
            f"expected [example, pos, token] at its output's .logits, found {found}."
        )
    return logits


def _device(module: Any) -> Any:
    """Where the input goes; a part that is kept on disk is on no device."""
    device = torch.device(getattr(module, "device", "cpu"))
    return torch.device("cpu") if device.type == "meta" else device


@contextmanager
def counted(layers: list[Any]) -> Iterator[list[int]]:
    """How often each of these modules runs; one that stands there twice counts at both places."""
    runs = [0] * len(layers)

    def count(index: int) -> Any:
        def hook(*_: Any) -> None:
            runs[index] += 1

        return hook

    hooks = [layer.register_forward_hook(count(index)) for index, layer in enumerate(layers)]
    try:
        yield runs
    finally:
        for hook in hooks:
            hook.remove()


def _require_layers(model: Model, runs: list[int]) -> None:
    """Refuse a list of layers that is not run from the first to the last, each once."""
    where = f"{model.name} ({model.architecture}) has {len(runs)} layers at {model.spec.layers!r}"
    twice = [index for index, count in enumerate(runs) if count > 1]
    if twice:
        raise ArchError(
            f"{where}, and layers {twice} are run more than once (one module at several places of "
            "the list?). nnattr reads each layer once: put copies there (copy.deepcopy)."
        )
    ran = [index for index, count in enumerate(runs) if count]
    if ran != list(range(model.n_layers)):
        raise ArchError(
            f"{where}, its configuration says {model.config.num_hidden_layers}, and layers {ran} "
            "run. Make them one: config.num_hidden_layers = the length of the list."
        )


def _warn_of_numbers(model: Model) -> None:
    """Say it where layers were moved and still go by their old numbers."""
    attention = model.spec.attn_proj.rpartition(".")[0]
    layers = model.module.get_submodule(model.spec.layers)
    numbers = [
        getattr(layer.get_submodule(attention), "layer_idx", index)
        for index, layer in enumerate(layers)
    ]
    if numbers != list(range(len(numbers))):
        warnings.warn(
            f"The layers of {model.name} number themselves {numbers} (layer_idx of their attention)"
            ", and transformers keeps keys and values by these numbers: patching goes the long way "
            "and generating fails until each layer has the number of its place.",
            stacklevel=3,
        )
