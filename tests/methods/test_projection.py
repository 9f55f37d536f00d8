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
from nnattr.model.projection import called, last_queries, matrix, projected
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
    """A module as a trace shows it, with an input; keeps what it is skipped with."""

    def __init__(self, module: Any, x: torch.Tensor | None = None) -> None:
        self._module, self.weight, self.input = module, module.weight, x
        self.output: Any = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._module(x)

    def skip(self, value: torch.Tensor) -> None:
        self.output = value


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


@pytest.mark.parametrize("tokens", [2, 6])
@pytest.mark.parametrize("part", [None, (1, 0, 4), (2, 0, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_queries_of_the_last_token_beside_all_keys_and_values(kind, part, tokens):
    x = torch.randn(2, 6, 12)
    projection = Seen(made(kind, 12, 12), x)
    last_queries(projection, part, tokens)
    right = projection(x)
    queries = torch.ones(12, dtype=torch.bool)
    if part is not None:
        if kind == "adapted":
            assert projection.output is None
            return
        groups, _, last = part
        queries = (torch.arange(12 // groups) < last).repeat(groups)
    ends = torch.arange(6) % tokens == tokens - 1
    made_for_all = torch.where(ends[:, None] | ~queries, right, torch.zeros(()))
    torch.testing.assert_close(projection.output, made_for_all)


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
