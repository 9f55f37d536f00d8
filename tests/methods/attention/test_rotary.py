"""Rotary modules give cosine and sine in either order, each angle once or twice: all are read."""

from __future__ import annotations

import pytest
import torch

from nnattr.maps.attention import angles_of

FREQUENCIES = 10_000.0 ** -(torch.arange(3) / 3)
LAYOUTS = {
    "once": lambda value: value,
    "in halves": lambda value: torch.cat([value, value], -1),
    "in pairs": lambda value: value.repeat_interleave(2, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sine_first", [False, True])
@pytest.mark.parametrize("positions", [[0], [7], [0, 1, 5]])
def test_every_layout_gives_the_same(layout: str, sine_first: bool, positions: list[int]) -> None:
    def module(x: torch.Tensor, asked: torch.Tensor) -> tuple[torch.Tensor, ...]:
        angles = asked[..., None] * FREQUENCIES
        both = tuple(LAYOUTS[layout](one) for one in (angles.cos(), angles.sin()))
        return both[::-1] if sine_first else both

    cos, sin = angles_of(module, torch.tensor(positions), ())
    angles = torch.tensor(positions)[:, None] * FREQUENCIES
    torch.testing.assert_close((cos, sin), (angles.cos(), angles.sin()))
