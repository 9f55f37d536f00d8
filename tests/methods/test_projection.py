"""Products with a part of a projection's weights are parts of the whole product."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from transformers.pytorch_utils import Conv1D

import nnattr
from nnattr import LogitDiff
from nnattr.engine.projection import called, projected
from nnattr.maps.linear import linear_map, matrix
from nnattr.runs.as_built import call_inside
from tests.support.engine import compared, pair, task
from tests.tiny import tiny_module, tiny_tokenizer


class Adapted(nn.Linear):
    """A linear layer whose weights are not the whole of what it does."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 0.5 * input.sum(-1, keepdim=True)


class Clipped(nn.Linear):
    """A linear layer that is none."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).clamp(-0.5, 0.5)


def hooked(n: int, m: int) -> nn.Module:
    """A linear layer with somebody's hook on what it returns."""
    module = nn.Linear(n, m)
    module.register_forward_hook(lambda module, given, output: output * 2)
    return module


def twice_given(module: nn.Module, given: Any) -> Any:
    """A hook on what a module is given."""
    return (given[0] * 2,)


def fed(n: int, m: int) -> nn.Module:
    """A linear layer with somebody's hook on what it is given."""
    module = nn.Linear(n, m)
    module.register_forward_pre_hook(lambda module, given: (given[0] * 2,))
    return module


def replaced(n: int, m: int) -> nn.Module:
    """A linear layer with somebody's forward in the place of its own."""
    module = nn.Linear(n, m)
    forward = module.forward
    module.forward = lambda x: 3 * forward(x)  # type: ignore[method-assign]
    return module


KINDS = {
    "Linear": nn.Linear,
    "without bias": lambda n, m: nn.Linear(n, m, bias=False),
    "Conv1D": lambda n, m: Conv1D(m, n),
    "adapted": Adapted,
    "parametrized": lambda n, m: parametrizations.weight_norm(nn.Linear(n, m)),
    "hooked": hooked,
    "fed": fed,
    "replaced": replaced,
}
#: Those whose weights are all that they do.
PLAIN = ("Linear", "without bias", "Conv1D")


class Seen:
    """A module as a trace shows it."""

    def __init__(self, module: Any) -> None:
        self._module, self.weight = module, module.weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._module(x)


def made(kind: str, n: int, m: int) -> Any:
    torch.manual_seed(0)
    module = KINDS[kind](n, m).requires_grad_(False)
    if getattr(module, "bias", None) is not None:
        module.bias.normal_()
    return module


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_units_change_goes_through_its_own_weights(kind, width):
    units = 12 // width
    projection = Seen(made(kind, 12, 12))
    unit = torch.tensor([0, units - 1, 1, 0])
    change = torch.randn(4, 3, width)
    own, example = torch.randn(2, 3, 12), torch.tensor([1, 0, 1, 1])
    before = own[example]
    after = before.clone().unflatten(-1, (units, width))
    for row, which in enumerate(unit):
        after[row, :, which] += change[row]
    right = call_inside(projection, after.flatten(-2)) - call_inside(projection, before)
    assert (matrix(projection) is None) == (kind not in PLAIN)
    found = projected(projection, own, example, change, unit, units)
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)
    found = called(projection, before, change, unit, units)
    torch.testing.assert_close(found, right)


def test_a_change_goes_through_a_module_that_is_not_linear() -> None:
    torch.manual_seed(0)
    projection = Seen(Clipped(12, 12).requires_grad_(False))
    own, change, unit = torch.randn(2, 3, 12), torch.randn(2, 3, 4), torch.tensor([0, 2])
    after = own.clone().unflatten(-1, (3, 4))
    after[torch.arange(2), :, unit] += change
    right = projection(after.flatten(-2)) - projection(own)
    found = projected(projection, own, torch.arange(2), change, unit, 3)
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("kind", KINDS)
def test_the_matrix_of_a_module_is_what_the_module_does(kind):
    projection = Seen(made(kind, 12, 7))
    nothing, units = (call_inside(projection, x) for x in (torch.zeros(12), torch.eye(12)))
    weight, bias = linear_map(projection, 12, nothing)
    torch.testing.assert_close(weight, units - nothing)
    torch.testing.assert_close(bias, nothing)


def test_a_module_without_weights_of_its_own_is_called():
    assert matrix(SimpleNamespace(_module=nn.Bilinear(2, 2, 2))) is None


@pytest.mark.parametrize("site", ["z", "neuron", "q"])
def test_the_engine_serves_adapted_projections(site):
    module = tiny_module("llama")
    for layer in module.model.layers:
        for parent, name in ((layer.self_attn, "o_proj"), (layer.mlp, "down_proj")):
            old = getattr(parent, name)
            new = Adapted(old.in_features, old.out_features, bias=False)
            new.weight = old.weight
            setattr(parent, name, new)
    model = nnattr.load(module, tokenizer=tiny_tokenizer(), backend="local")
    assert compared(model, task(model, pair(9, 4)), LogitDiff(), site=site) == "suffix"
