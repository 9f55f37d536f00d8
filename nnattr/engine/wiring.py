"""Where the parts of this model read and write: named, and proven on a run.

Between the residual stream and what attention or an MLP is given there may be a norm, and which it
is no table says: of the layer's norms it is the one that makes of the stream what enters there. A
model in which none does is refused: with a hook or an edit in between, say.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.maps.linear import matrix
from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.places import cut, raw, read
from nnattr.runs.portions import RefusedError
from nnattr.runs.tolerance import weights_tolerance


class Port:
    """How a layer makes the queries, the keys or the values of all its heads.

    Attributes:
        name: ``"q"``, ``"k"`` or ``"v"``.
        place: where they are read and written.
        made_by: the paths of the modules that make them: a projection, and a norm behind it if
            that runs over all heads.
        heads: how many heads there are at the place.
    """

    def __init__(self, name: str, place: tuple[Any, ...], made_by: list[str], heads: int) -> None:
        self.name = name
        self.place = place
        self.made_by = made_by
        self.heads = heads

    @property
    def module(self) -> str:
        """The path of the module whose output they are."""
        return self.place[0]

    def by_head(self, value: Tensor) -> Tensor:
        """Of something like that output [..., width] what belongs to each head [..., head, d_head].

        A view, unless a module makes several heads' for each of several groups.
        """
        return cut(value, self.place[2]).unflatten(-1, (self.heads, -1))

    def columns(self, width: int) -> Tensor:
        """Which columns of that output, of so many, belong to each head [head, d_head]."""
        return self.by_head(torch.arange(width))


class Wiring:
    """Where the parts of this model read and write.

    Lists have an entry for each layer. A place is ``(path, side, part)``.

    Attributes:
        layers: the paths of the layers.
        heads, kv_heads: how many heads there are, and how many of keys and values.
        scale: what a branch is multiplied with before it is added to the residual stream.
        norms: the paths of the layer's own norms.
        ports: by q, k and v how they are made; empty where nnattr cannot place them.
        shifted: whether q and k are made of more than v: position embeddings are added for them.
        z: where attention's output projection is entered.
        behind: the path of the norm behind that projection, or None.
        mlp_in: the path of the module that the MLP's input enters, or None without an MLP: in
            serial blocks the residual stream enters it, in parallel ones what the norm made of it.
        mlp_out: where the MLP's contribution is; empty without MLPs.
        parallel: whether attention and MLP read the same residual stream.
        fronts: the path of the norm in front of attention, and of that in front of the MLP's
            ``mlp_in``; None where there is none. Empty until `proven`.
    """

    def __init__(self, plain: dict[str, Any]) -> None:
        self.layers: list[str] = plain["layers"]
        self.heads: int = plain["heads"]
        self.kv_heads: int = plain["kv_heads"]
        self.scale: float = plain["scale"]
        self.norms: list[list[str]] = plain["norms"]
        self.shifted: bool = plain["shifted"]
        self.z: list[tuple[Any, ...]] = plain["z"]
        self.behind: list[str | None] = plain["behind"]
        self.mlp_in: list[str | None] = plain["mlp_in"]
        self.mlp_out: list[tuple[Any, ...]] = plain["mlp_out"]
        self.parallel: bool = plain["parallel"]
        count = {"q": self.heads, "k": self.kv_heads, "v": self.kv_heads}
        self.ports = [
            {name: Port(name, heads=count[name], **one) for name, one in ports.items()}
            for ports in plain["ports"]
        ]
        self.fronts: list[tuple[str | None, str | None]] = []

    @property
    def depth(self) -> int:
        """How many layers the model has."""
        return len(self.layers)


def wiring_of(nn: Any, payload: dict[str, Any], prompts: PromptBatch) -> Wiring:
    """The wiring that a payload names, with its norms found and all of it held against a run.

    Args:
        nn: the nnsight model.
        payload: see `nnattr.jobs.wiring`.
        prompts: of which the longest is run.

    Raises:
        RefusedError: what a part reads is not one of the layer's norms of the residual stream, or
            what is made of that is not what the model has there.
    """
    found, problems = Wiring(payload), list[str]()
    longest = int(prompts.mask.sum(1).argmax())
    one = prompts.take(slice(longest, longest + 1))
    with nn.trace(**inputs(one)):
        with torch.no_grad():
            fronts = [prove(nn, found, layer, one, problems) for layer in range(found.depth)]
    if problems:
        raise RefusedError("arch", problems[0])
    found.fronts = fronts
    return found


def prove(
    nn: Any, wiring: Wiring, layer: int, prompts: PromptBatch, problems: list[str]
) -> tuple[str | None, str | None]:
    """The norms in front of attention and of the MLP, inside a trace; what is wrong is noted."""
    own = prompts.mask[0]
    stream = read(nn, (wiring.layers[layer], "input", None)).clone()
    attention, mlp, ports = None, None, wiring.ports[layer]
    if ports:
        entered, made = {}, {}
        for name, port in ports.items():
            path = port.made_by[0]
            if path not in entered:  # one module may make all three
                entered[path] = nn.get(path).input.clone()
            made[name] = read(nn, port.place).clone()
        norms = wiring.norms[layer]
        attention, gap = likeliest(nn, norms, stream, entered[ports["v"].made_by[0]], own)
        note(problems, gap, stream, f"what the values of {wiring.layers[layer]} are made of")
        for name, value in made.items():
            given, heads = entered[ports[name].made_by[0]], ports[name].heads
            ours = made_of(nn, ports[name], range(heads), given[None].expand(heads, *given.shape))
            off = size_of_gap(ours.movedim(0, 2).flatten(2), value, own)
            note(problems, off, value, f"{name} of {wiring.layers[layer]}")
    if wiring.parallel and wiring.mlp_in[layer] is not None:
        entering = read(nn, (wiring.mlp_in[layer], "input", None), prompts.width).clone()
        mlp, gap = likeliest(nn, wiring.norms[layer], stream, entering, own)
        note(problems, gap, stream, f"what the MLP of {wiring.layers[layer]} reads")
    return attention, mlp


def note(problems: list[str], gap: float, like: Tensor, what: str) -> None:
    """Note what is not what the model's structure says."""
    if not gap <= weights_tolerance(like.dtype):
        problems.append(
            f"{what} is not what its projections and one of the layer's norms make of the residual "
            f"stream (off by {gap:.1e} of its size), so that it cannot be given an input of its "
            "own. activation_patching needs none."
        )


def likeliest(
    nn: Any, norms: list[str], stream: Tensor, entering: Tensor, own: Tensor
) -> tuple[str | None, float]:
    """The norm that makes of the stream what enters, None for the stream itself, and the gap."""
    best, least = None, size_of_gap(stream, entering, own)
    for path in norms:
        gap = size_of_gap(nn.get(path)(stream), entering, own)
        if gap < least:
            best, least = path, gap
    return best, least


def size_of_gap(found: Tensor, expected: Tensor, own: Tensor) -> float:
    """How far two activations [1, pos, d] are apart at a prompt's own tokens, as a share."""
    own = own.to(expected.device)
    found, expected = (one.float()[:, own] for one in (found, expected))
    return float((found - expected).abs().max() / expected.abs().max())


def front_of(
    nn: Any, wiring: Wiring, layer: int, names: list[str], given: Tensor, live: Tensor
) -> Tensor:
    """What enters the projections where these streams [reader, row, pos, d] enter a layer.

    Args:
        nn: the nnsight model, inside a trace.
        wiring: where things are.
        layer: which one.
        names: by what each reads, ``"q"``, ``"k"`` or ``"v"`` [reader].
        given: the streams.
        live: that of the run at hand [row, pos, d].
    """
    path = wiring.fronts[layer][0]
    norm = None if path is None else nn.get(path)
    found = given if norm is None else norm(given.flatten(0, 1)).view_as(given)
    if wiring.shifted and names != ["v"] * len(names):
        entered = nn.get(wiring.ports[layer]["q"].made_by[0]).input[: len(live)]
        positions = entered - (live if norm is None else norm(live))
        turned = torch.tensor([name != "v" for name in names], device=found.device)
        found = found + positions * turned[:, None, None, None]
    return found


def made_of(nn: Any, port: Port, units: Any, given: Tensor) -> Tensor:
    """What a layer makes for some heads, each of an input of its own [unit, row, pos, d_head].

    By the heads' own columns of the projection, where that is a plain matrix and all there is;
    else by calling the modules on each input.

    Args:
        nn: the nnsight model.
        port: of the layer: its queries, keys or values.
        units: which heads [unit].
        given: what enters the projection for each [unit, row, pos, d].
    """
    projection, *norms = (nn.get(path) for path in port.made_by)
    units = list(units)
    weight = None if norms else matrix(projection)
    if weight is not None:
        own = slice(None) if units == list(range(port.heads)) else units
        parts = port.by_head(weight.detach())[:, own].transpose(0, 1)  # [unit, d, d_head]
        made = torch.bmm(given.flatten(1, 2), parts).unflatten(1, given.shape[1:3])
        bias = raw(projection).bias
        return made if bias is None else made + port.by_head(bias.detach())[own][:, None, None]
    found = []
    for unit, one in zip(units, given, strict=True):
        made = projection(one)
        for norm in norms:
            made = norm(made)
        found.append(made[..., port.columns(made.shape[-1])[unit].to(made.device)])
    return torch.stack(found)
