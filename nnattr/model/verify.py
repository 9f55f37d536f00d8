"""Prove an `ArchSpec` on a live model before anything is computed with it.

A wrong map of a model gives plausible numbers, so nothing is believed: the model is run on a few
tokens and every promise of the spec is measured, on the machine where the model is. A `Proof` is
the list of those measurements. It fits no model to a spec: a model that keeps its promises only
in part (a residual stream that is not a plain sum, positions that left padding shifts) is refused,
with the promise it breaks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from nnattr.arch.spec import missing
from nnattr.arguments import checked
from nnattr.errors import ArchError, BackendError, TaskError
from nnattr.model import sites
from nnattr.model.model import Model
from nnattr.model.proof import HOW_TO, Check, Proof
from nnattr.model.verify_job import verify_job

if TYPE_CHECKING:
    from nnattr.arch.spec import ArchSpec

#: The checks of q, k, v and neurons: a discovered spec that fails one does without those sites.
INSIDE = {
    "q": "heads of q stand apart",
    "k": "heads of k stand apart",
    "v": "heads of v stand apart",
    "neuron": "neurons W_out = the MLP's output",
}


@checked
def verify(model: Model, ids: Sequence[Sequence[int]] | None = None) -> Proof:
    """Prove on the live model that its spec is right.

    Args:
        model: as `nnattr.load` gives it.
        ids: token ids [batch, pos] to try on, at least 4 positions; random ones by default.

    Raises:
        TaskError: ids that are not such a batch of the model's tokens.

    Returns:
        The proof, passed or not; ``verify(model).require()`` raises if it did not pass.

    Cost: one job with about twelve short forward passes.
    """
    if ids is not None:
        _usable(model, ids)
    absent = missing(model.spec, model.module)
    if absent:
        return Proof(model.name, (Check("modules exist", False, f"no module {absent[0]!r}"),))
    checks = [Check("modules exist", True, "every path of the spec")]
    try:
        found = model.run(verify_job, _payload(model, ids), label="proving the structure").values
    except BackendError as error:
        if not model.backend.holds_weights:
            raise
        cause = str(error.__cause__ or error).strip().splitlines()[-1]
        return Proof(model.name, (*checks, Check("sites are met in forward order", False, cause)))
    checks.append(Check("sites are met in forward order", True, " ".join(_known_sites(model))))
    checks += _shape_checks(model, found)
    checks += _observation_checks(found)
    if found["complete"]:
        checks += _edit_checks(found)
    return Proof(model.name, tuple(checks))


def _usable(model: Model, ids: Sequence[Sequence[int]]) -> None:
    """Refuse ids that the model cannot be tried on."""
    size, widths = model.vocab_size, {len(row) for row in ids}
    limit = model.context_length or math.inf
    if len(widths) != 1 or not 4 <= max(widths) <= limit:
        raise TaskError(f"ids has rows of {sorted(widths)} tokens; expected one length from 4.")
    if any(not 0 <= token < size for row in ids for token in row):
        raise TaskError(f"ids has tokens that {model.name} does not know; it has 0 to {size - 1}.")


def proven(model: Model, specs: Iterable[ArchSpec]) -> Model:
    """The model with the first of ``specs`` that it proves.

    Raises:
        ArchError: none is proven; the message is about the one that passed most checks.
    """
    best, tried = None, 0
    for spec in specs:
        candidate = replace(model, spec=spec)
        proof = verify(candidate)
        for weaker in _weaker(spec, proof):
            candidate = replace(model, spec=weaker)
            proof = verify(candidate)
            if proof.passed:
                break
        if proof.passed:
            return candidate
        tried += 1
        if best is None or _merit(proof) > _merit(best):
            best = proof
    if best is None or best.failed is None:
        raise ArchError(f"There is no structure to prove for {model.name!r}. {HOW_TO}")
    if tried == 1:
        best.require()
    raise ArchError(
        f"The structure of {model.name!r} could not be proven. Of {tried} arrangements tried, the "
        f"closest failed the check '{best.failed.name}' ({best.failed.detail}). {HOW_TO}"
    )


def _weaker(spec: ArchSpec, proof: Proof) -> Iterator[ArchSpec]:
    """Weaker specs to try where only checks of q, k, v or neurons failed."""
    failed = {check.name for check in proof.checks if not check.passed}
    if not failed or not failed <= set(INSIDE.values()):
        return
    if INSIDE["neuron"] in failed:
        spec = replace(spec, mlp_proj=None)
    if failed != {INSIDE["neuron"]}:
        if spec.qkv is not None and spec.qkv.packing == "blocks":
            yield replace(spec, qkv=spec.qkv._replace(packing="groups"))
        spec = replace(spec, qkv=None)
    yield spec


def _merit(proof: Proof) -> int:
    """How many checks passed: how near a refused spec came."""
    return sum(check.passed for check in proof.checks)


def _known_sites(model: Model) -> list[sites.SiteName]:
    """The sites that every family has, in forward order; not those of `INSIDE`."""
    spec = model.spec
    without = {*INSIDE, *(["resid_mid"] if spec.parallel else [])}
    without |= {"mlp_out"} if spec.mlp_out is None else set()
    return [name for name in sites.FORWARD_ORDER if name not in without]


def _payload(model: Model, ids: Any) -> dict[str, Any]:
    """What travels: plain lists, tuples, strings and numbers."""
    config, spec = model.config, model.spec

    def constant(name: str | None, default: float | None) -> float | None:
        return default if name is None else getattr(config, name)

    ids = _random_ids(config, model.vocab_size) if ids is None else torch.as_tensor(ids)
    return {
        "ids": ids.tolist(),
        "pad": int(_first(getattr(config, "pad_token_id", None)) or 0),
        "claims": {
            "sites": {name: model.places(name) for name in _known_sites(model)},
            "projections": [path for path, *_ in model.places("z")],
            "ending": {
                "final_norm": spec.final_norm,
                "unembed": spec.unembed,
                "logit_scale": constant(spec.logit_scale, 1.0),
                "logit_divisor": constant(spec.logit_divisor, 1.0),
                "logit_softcap": constant(spec.logit_softcap, None),
            },
            "residual_scale": constant(spec.residual_scale, 1.0),
            "n_heads": model.n_heads,
            "inner": _inner(model),
        },
    }


def _inner(model: Model) -> dict[str, tuple[int, list[Any]]]:
    """Of q, k, v and neuron those that the spec knows: how many heads, and the places."""
    found: dict[str, tuple[int, list[Any]]] = {}
    if model.spec.qkv is not None:
        kv = model.n_kv_heads
        sizes: dict[sites.SiteName, int] = {"q": model.n_heads, "k": kv, "v": kv}
        found |= {name: (size, model.places(name)) for name, size in sizes.items()}
    if model.spec.mlp_proj is not None:
        found["neuron"] = (0, model.places("neuron"))
    return found


def _first(value: Any) -> Any:
    """The first of several token ids (a configuration may list them)."""
    return value[0] if isinstance(value, list | tuple) else value


def _random_ids(config: Any, size: int, pos: int = 7) -> torch.Tensor:
    """Two prompts of distinct ordinary tokens, always the same ones for the same vocabulary."""
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id")
    special = {_first(getattr(config, name, None)) for name in names}
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(min(size, 4096), generator=generator).tolist()
    ordinary = [token for token in order if token not in special]
    return torch.tensor((ordinary * pos)[: 2 * pos]).view(2, pos)


def _shape_checks(model: Model, found: dict[str, Any]) -> list[Check]:
    """Check (a): z is [batch, pos, heads x d_head], with d_head from the module."""
    shapes, heads = found["z"], model.n_heads
    regular = all(s == [*found["batch"], shapes[0][-1]] for s in shapes)
    regular = regular and shapes[0][-1] % heads == 0
    d_head = shapes[0][-1] // heads
    stated = _stated_d_head(model)
    passed = regular and stated in (None, d_head)
    detail = f"z {shapes[0]} = {heads} heads x {d_head}"
    if stated not in (None, d_head):
        detail += f", but the attention module says d_head {stated}"
    elif not regular:
        detail += f"; in other layers {sorted({s[-1] for s in shapes})}"
    return [Check("z is heads x d_head", passed, detail)]


def _stated_d_head(model: Model) -> int | None:
    """The head size that the attention module itself states, if it does."""
    path = model.places("z")[0][0].rpartition(".")[0]
    attention = model.module.get_submodule(path)
    names = ("v_head_dim", "head_dim", "head_size", "attention_head_size")
    stated = (getattr(attention, name, None) for name in names)
    return next((value for value in stated if isinstance(value, int)), None)


def _observation_checks(found: dict[str, Any]) -> list[Check]:
    """Checks (b), (d), (e), (f): what one plain run shows."""
    limit, gaps = found["tolerance"], found["gaps"]
    named = {
        "sum_of_heads": "sum of z W_O + bias = projection",
        "attn_out": "attn_out comes from the projection",
        "sums": "residual sums",
        "hidden_states": "residual = hidden_states",
        "logits": "logits = unembed(norm(resid_post))",
        "causal": "later tokens reach no earlier one",
        "overwritten": "values stay as they were read",
    }
    finite = "all finite" if found["finite"] else "non-finite logits (NaN or infinite weights?)"
    checks = [Check("activations are finite", found["finite"], f"{found['dtype']}, {finite}")]
    return checks + [_within(name, gaps[key], limit) for key, name in named.items()]


def _edit_checks(found: dict[str, Any]) -> list[Check]:
    """Checks (c) and (g): what edits and padding show."""
    limit, least = found["tolerance"], 4 * found["eps"]
    edits, same = found["edits"], found["identity"]
    checks = [Check("editing a site to itself", same == 0, f"logits change by {same:g} (0)")]
    for site, seen in edits.items():
        what = "one head's z" if site == "z" else site
        text = f"logits change by {seen['changed']:.1e} (> {least:.1e})"
        checks.append(Check(f"editing {what}", seen["changed"] > least, text))
    flows = max(edits.values(), key=lambda seen: _rank(seen["sums"]))["sums"]
    checks.append(_within("edits reach the residual stream", flows, limit))
    gathers = edits["resid_pre"]["gathers"]
    text = f"z changes by {gathers:.1e} (> {least:.1e})"
    checks.append(Check("z gathers earlier positions", gathers > least, text))
    checks.append(_within("left padding changes nothing", found["padding"], 10 * limit))
    for name, wrong in found["apart"].items():
        text = "each changes the z it should, no other"
        text = text if not wrong else f"{wrong} times a head changes other z, or not its own"
        checks.append(Check(INSIDE[name], not wrong, text))
    if found["neurons"] is not None:
        checks.append(_within(INSIDE["neuron"], found["neurons"], limit))
    return checks


def _rank(gap: float) -> float:
    """For sorting: what is not a number is worst."""
    return math.inf if math.isnan(gap) else gap


def _within(name: str, gap: float, limit: float) -> Check:
    """A check that a relative gap is within its tolerance."""
    if math.isnan(gap):
        return Check(name, False, "not a number: non-finite activations")
    if math.isinf(gap):
        return Check(name, False, "nothing to compare: missing, or of another shape")
    return Check(name, gap <= limit, f"relative gap {gap:.1e} (<= {limit:.0e})")
