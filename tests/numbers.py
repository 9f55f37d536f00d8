"""Every method's numbers, stored by one version of the package and compared by another.

::

    python -m tests.numbers store before.pt      # in a checkout of the old version
    python -m tests.numbers compare before.pt    # in the new one; exits with 1 where a number moved

For changes that must change no number. One machine and one thread: the last bit is the machine's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

import nnattr
from nnattr import Model, Task
from tests.methods.common import TEACHING, even_ioi, ragged_ioi, ragged_tiny, teaching, tiny

#: The six layouts: serial with biases, grouped heads, norms after, parallel, shared keys, plain.
LAYOUTS = ("gpt2", "llama", "gemma2", "gpt_neox", "falcon-new", "opt")
SITES = (
    *("z", "q", "k", "v", "pattern", "attn_out", "mlp_out", "neuron"),
    *("resid_pre", "resid_mid", "resid_post"),
)
Calls = dict[str, Callable[[], Any]]


def patching(model: Model, task: Task) -> Calls:
    """Exact and estimated patching: sites, positions, directions, engines, metrics."""
    metric = nnattr.LogitDiff()
    calls: Calls = {}
    for site in SITES:
        for method in (nnattr.activation_patching, nnattr.attribution_patching):
            for positions in ("all", "each"):
                if site == "neuron" and positions == "each":
                    continue
                calls[f"{method.__name__} {site} {positions}"] = (
                    lambda m=method, s=site, p=positions: m(
                        model, task, metric, site=s, positions=p
                    )
                )
    exact = nnattr.activation_patching
    calls["noising"] = lambda: exact(model, task, metric, direction="noising", normalized=False)
    calls["last"] = lambda: exact(model, task, metric, site="resid_pre", positions="last")
    calls["full"] = lambda: exact(model, task, metric, site="z", engine="full")
    calls["small memory"] = lambda: exact(model, task, metric, max_memory=200_000)
    calls["loss"] = lambda: exact(model, task, nnattr.Loss(), site="mlp_out", normalized=False)
    calls["kl"] = lambda: exact(model, task, nnattr.KL(), site="attn_out", positions="each")
    return calls


def ablations(model: Model, task: Task) -> Calls:
    """Ablation of each part and of sets of parts."""
    metric, heads = nnattr.LogitDiff(), [(0, 1), (1, 0)]
    task = even_ioi(model, 4) if "IOI" in task.name or "ioi" in task.name else task[:1]
    calls: Calls = {}
    for kind in ("zero", "mean", "mean_positional", "resample"):
        given = {} if kind == "zero" else {"dataset": list(task.corrupted)}
        calls[f"ablate {kind}"] = lambda k=kind, g=given: nnattr.ablate(
            model, task, metric, **{REPLACEMENT: k}, **g
        )
        calls[f"ablate together {kind}"] = lambda k=kind, g=given: nnattr.ablate_together(
            model, task, metric, heads, **{REPLACEMENT: k}, **g
        )
    calls["keep only"] = lambda: nnattr.ablate_together(model, task, metric, heads, keep=True)
    calls["pos_embed"] = lambda: nnattr.ablate_together(model, task, metric, "pos_embed")
    return calls


def direct(model: Model, task: Task) -> Calls:
    """Direct attribution and the logit lens."""
    dla, prompts = nnattr.direct_logit_attribution, list(task.clean)
    calls: Calls = {
        f"dla {unit} {norm}": lambda u=unit, n=norm: dla(model, task, unit=u, norm=n)
        for unit in ("component", "accumulated", "head", "neuron")
        for norm in ("frozen", "each")
    }
    calls["dla corrupted"] = lambda: dla(model, task, run="corrupted", positions="each")
    calls["next token"] = lambda: nnattr.next_token_attribution(model, prompts)
    calls["lens"] = lambda: nnattr.logit_lens(model, prompts, positions="each")
    return calls


def attention(model: Model, task: Task) -> Calls:
    """Attention patterns, kinds of heads, copying, the parts of an attention score."""
    prompts = list(task.clean)
    return {
        "patterns": lambda: nnattr.attention_patterns(model, prompts, weighted=True),
        "kinds": lambda: nnattr.detect_heads(model, n=3, length=8),
        "copying": lambda: nnattr.copying_score(model, prompts),
        "decomposed": lambda: nnattr.decompose_attention(model, prompts[0], (1, 0)),
    }


def weights(model: Model, task: Task) -> Calls:
    """Weight circuits."""
    ov, qk, composition, head, by_position = WEIGHTS
    return {
        "ov": lambda: ov(model, (1, 0)).block(list(range(8))),
        "ov eigenvalues": lambda: ov(model, (1, 0)).eigenvalues(),
        "ov copying": lambda: ov(model, (1, 0)).copying_accuracy(),
        "qk": lambda: qk(model, (1, 0)).block(list(range(8))),
        "head": lambda: head(model, (1, 0)),
        "by position": lambda: by_position(model, (0, 0)),
        **{f"composition {k}": lambda k=k: composition(model, k) for k in "QKV"},
    }


def behaviour(model: Model, task: Task) -> Calls:
    """What the model says and holds."""
    prompts = list(task.clean)
    sites = ["resid_pre", "z", "q", "k", "v", "mlp_out", "pattern"]
    return {
        "generate": lambda: nnattr.generate(model, prompts, max_new_tokens=3),
        "inspect": lambda: nnattr.inspect_prompt(model, prompts[0]),
        "compare": lambda: nnattr.compare_runs(model, prompts, list(task.corrupted)),
        "answers": lambda: nnattr.most_frequent_answers(model, prompts),
        "capture": lambda: nnattr.capture(model, prompts, sites),
    }


GROUPS = (patching, ablations, direct, attention, weights, behaviour)
#: The names that differ between versions.
REPLACEMENT = "replacement"
WEIGHTS = (
    nnattr.weights.ov,
    nnattr.weights.qk,
    nnattr.weights.composition,
    nnattr.weights.head,
    nnattr.weights.position_pattern,
)


def arrays(result: Any) -> dict[str, np.ndarray]:
    """The numbers of a result by the names of its variables, whatever holds them."""
    found: dict[str, np.ndarray] = {}
    for name, value in walk("", result):
        array = np.asarray(value)
        if array.dtype.kind in "fciub":
            found[name] = array
    return found


def walk(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of a value."""
    if isinstance(value, xr.Dataset):
        for key, one in value.variables.items():
            yield from walk(str(key), one.values)
    elif isinstance(value, xr.DataArray):
        yield name, value.values
    elif isinstance(value, torch.Tensor):
        yield name, value.detach().float().numpy()
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from walk(str(key), one)
    elif is_dataclass(value) and not isinstance(value, Model):
        for field in fields(value):
            if field.name not in ("model", "provenance", "tokens"):
                yield from walk(field.name, getattr(value, field.name))
        if hasattr(value, "steps"):  # what earlier versions kept as values, not as arrays
            yield from walk("steps", value.steps)
        if type(value).__name__ == "AnswerTable":
            yield from walk(name, list(value))
    elif isinstance(value, tuple | list):
        for i, one in enumerate(value):
            yield from walk(f"{name} {i}", one)
    elif isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        yield from walk(name, value.ravel().tolist())
    elif isinstance(value, str):
        yield name, np.frombuffer(value.encode(), dtype=np.uint8)
    elif isinstance(value, int | float | complex | np.ndarray):
        yield name, value


def measured(families: tuple[str, ...]) -> dict[str, dict[str, np.ndarray] | str]:
    """Every call's numbers, or what it refused with."""
    found: dict[str, dict[str, np.ndarray] | str] = {}
    for family in families:
        ours = family in TEACHING
        model = teaching(family) if ours else tiny(family)
        task = ragged_ioi(model) if ours else ragged_tiny(model)
        for group in GROUPS:
            for name, call in group(model, task).items():
                if "neuron" in name and ours and "activation" in name:
                    continue  # thousands of cells; the tiny ones say as much
                try:
                    found[f"{family}: {name}"] = arrays(call())
                except nnattr.NnattrError as error:
                    found[f"{family}: {name}"] = type(error).__name__
            print(family, group.__name__, flush=True)
    return found


def compared(old: dict[str, Any], new: dict[str, Any], tolerance: float) -> list[str]:
    """Where two versions differ by more than a share of an array's largest number.

    Arrays are matched by name where names agree, else by content.
    """
    lines = [f"{name}: not measured" for name in old if name not in new]
    for name, theirs in old.items():
        ours = new.get(name, theirs)
        if isinstance(theirs, str) or isinstance(ours, str):
            if theirs != ours:
                lines.append(
                    f"{name}: {theirs if isinstance(theirs, str) else 'a result'} before, "
                    f"{ours if isinstance(ours, str) else 'a result'} now"
                )
            continue
        for key, array in theirs.items():
            same_shape = [one for one in ours.values() if one.shape == array.shape]
            if key in ours and ours[key].shape == array.shape:
                same_shape.insert(0, ours[key])
            if any(
                np.array_equal(one, array, equal_nan=array.dtype.kind in "fc") for one in same_shape
            ):
                continue
            if array.ndim == 0 and any((one == array).any() for one in ours.values()):
                continue  # it stands among others now
            if not same_shape:
                lines.append(f"{name}, {key} {array.shape}: gone; now {[*ours]}")
                continue
            gap = np.nanmax(np.abs(same_shape[0].astype(complex) - array.astype(complex)))
            if gap <= tolerance * np.nanmax(np.abs(array)):
                continue
            lines.append(f"{name}, {key}: moved by {gap:.3g} of {np.nanmax(np.abs(array)):.3g}")
    return lines


def main() -> int:
    """Store, or compare and say what moved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("store", "compare"))
    parser.add_argument("file")
    parser.add_argument("--families", nargs="*", default=[*TEACHING, *LAYOUTS])
    parser.add_argument("--tolerance", type=float, default=0.0, help="share of the largest number")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = measured(tuple(given.families))
    if given.what == "store":
        torch.save(found, given.file)
        return 0
    old = torch.load(given.file, weights_only=False)
    if set(given.families) != {*TEACHING, *LAYOUTS}:
        old = {name: one for name, one in old.items() if name.split(":")[0] in given.families}
    lines = compared(old, found, given.tolerance)
    print(
        "\n".join(lines)
        or f"{len(old)} calls: no number moved by more than {given.tolerance} of the largest."
    )
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
