"""Products with a part of a projection's weights are parts of the whole product."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import nnattr
from nnattr import LogitDiff
from nnattr.engine.projection import called, projected
from nnattr.maps.linear import linear_map, matrix
from tests.support.engine import compared, pair, task
from tests.tiny import tiny_module, tiny_tokenizer


class Adapted(nn.Linear):
    """A linear layer whose weights are not the whole of what it does."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 0.5 * input.sum(-1, keepdim=True)


KINDS = {
    "Linear": nn.Linear,
    "without bias": lambda n, m: nn.Linear(n, m, bias=False),
    "Conv1D": lambda n, m: Conv1D(m, n),
    "adapted": Adapted,
}


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
    whole = torch.zeros(4, 3, units, width)
    for row, which in enumerate(unit):
        whole[row, :, which] = change[row]
    module = projection._module
    right = module(whole.flatten(-2)) - module(torch.zeros(12))
    assert (matrix(projection) is None) == (kind == "adapted")
    for way in (projected, called):
        torch.testing.assert_close(way(projection, change, unit, units), right)


@pytest.mark.parametrize("kind", KINDS)
def test_the_matrix_of_a_module_is_what_the_module_does(kind):
    projection = Seen(made(kind, 12, 7))
    nothing, units = projection(torch.zeros(12)), projection(torch.eye(12))
    weight, bias = linear_map(projection, 12, nothing)
    torch.testing.assert_close(weight, units - nothing)
    torch.testing.assert_close(bias, nothing)


def test_a_module_without_weights_of_its_own_is_called():
    assert matrix(SimpleNamespace()) is None


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
