"""Which of transformers' causal language models nnattr can analyse, found out by trying them all.

``python -m tests.conformance.conformance [--write docs/architectures.md] [--only NAME ...]``

Every class of the causal-LM mapping is built from a shrunken configuration with random weights and
goes the way a user's model goes: a row of the table or discovery, then the proof. What is accepted
is then held against plain PyTorch (`oracle`). The verdicts:

=========  =======================================================================================
proven     accepted, and every independent fact agrees
refused    not accepted, with the reason a user would be told
wrong      accepted, though an independent fact disagrees: a bug
not tried  no small model of this class could be built or run here, so nothing is known
=========  =======================================================================================

Each class is tried in a process of its own, with a time limit.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, logging
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from nnattr.arch.discover import candidates
from nnattr.arch.spec import missing
from nnattr.arch.table import lookup
from nnattr.errors import ArchError
from nnattr.model.load import load
from nnattr.model.verify import verify
from tests.conformance.oracle import disagreement, traceable
from tests.conformance.rules import acting
from tests.conformance.shrink import tiny_config
from tests.tiny import randomise, tiny_tokenizer

VERDICTS = ("proven", "refused", "wrong", "not tried")
SECONDS = 240
PARAMETERS = 400_000_000
INTRODUCTION = (
    "Which causal language models of Hugging Face transformers nnattr can analyse, found out by",
    "building each from a shrunken configuration with random weights and proving its structure.",
    "*Proven*: every check of `nnattr.model.verify` passes, and plain PyTorch hooks agree.",
    "The rules of the backward pass that act on it (`nnattr.engine.rules`) stand beside it; one",
    "with a question mark has something to act on that nnattr cannot place.",
    "*Refused*: `nnattr.load` raises the error given. *Not tried*: no small model of the class",
    "could be built here. A model that is not listed is discovered and proven when it is loaded.",
)


@dataclass(frozen=True)
class Outcome:
    """What became of one class.

    Attributes:
        model_type, name: the Hugging Face model type and class.
        verdict: one of `VERDICTS`.
        route: ``"table"`` or ``"discovered"``.
        reason: for all but "proven", why; for "proven", a fact that was not available.
        rules: of those proven, the rules of the backward pass that act (see `acting`).
    """

    model_type: str
    name: str
    verdict: str
    route: str = ""
    reason: str = ""
    rules: tuple[str, ...] = ()


def judge(model_type: str) -> Outcome:
    """Try one class, in this process."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    name = _class_name(model_type)
    route = ""
    try:
        bare = _bare_module(model_type)
        spec = lookup(bare.config)
        route = "discovered" if spec is None or missing(spec, bare) else "table"
        if route == "discovered":
            next(candidates(bare))  # what its module tree alone refuses need not run
        module = _tiny_module(bare)
        with torch.no_grad():
            module(torch.tensor([[5, 17, 42]]), use_cache=False)
    except ArchError as error:
        return Outcome(model_type, name, "refused", route, _reason(error))
    except Exception as error:  # anything at all: the class says why it cannot be tried
        return Outcome(model_type, name, "not tried", reason=_brief(error))
    try:
        with torch.no_grad():
            model = load(module, tokenizer=tiny_tokenizer())
            verify(model).require()
            problem = disagreement(model)
            blind = "" if traceable(model) else "heads not traced through attention"
    except ArchError as error:
        return Outcome(model_type, name, "refused", route, _reason(error))
    verdict = "proven" if problem is None else "wrong"
    rules = acting(model) if problem is None else ()
    return Outcome(model_type, name, verdict, route, problem or blind, rules)


def judge_apart(model_type: str, seconds: float = SECONDS) -> Outcome:
    """Try one class in a process of its own, for at most ``seconds``."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=_send, args=(theirs, model_type), daemon=True)
    process.start()
    theirs.close()
    try:
        if ours.poll(seconds):
            return ours.recv()
        reason = f"took longer than {seconds:g} s"
    except EOFError:
        reason = "its process died"
    finally:
        process.kill()
        process.join()
    return Outcome(model_type, _class_name(model_type), "not tried", reason=reason)


def table(outcomes: Sequence[Outcome]) -> str:
    """The report as Markdown."""
    counts = Counter(outcome.verdict for outcome in outcomes)
    packages = ", ".join(f"{name} {version(name)}" for name in ("transformers", "nnsight", "torch"))
    lines = [
        "# Architectures",
        "",
        *INTRODUCTION,
        "",
        f"Made by `make conformance` on {date.today().isoformat()} with {packages}: "
        + ", ".join(f"**{counts[verdict]} {verdict}**" for verdict in VERDICTS)
        + f" of {len(outcomes)}.",
    ]
    for verdict in VERDICTS:
        chosen = [outcome for outcome in outcomes if outcome.verdict == verdict]
        if chosen:
            last = "how its parts are known" if verdict == "proven" else "reason"
            lines += ["", f"## {verdict.capitalize()}", "", f"| model type | class | {last} |"]
            lines[-1] += " rules that act |" if verdict == "proven" else ""
            lines += ["|---|---|---|" + "---|" * (verdict == "proven"), *map(_row, chosen)]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the classes, print each verdict, and write the table if asked; 1 if any is wrong."""
    parser = argparse.ArgumentParser(
        prog="conformance", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--write", type=Path, help="write the table to this Markdown file")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these model types")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    names = options.only or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    judge("llama")  # imports what every child process needs, once
    outcomes = []
    for number, model_type in enumerate(names, 1):
        started = time.perf_counter()
        outcome = judge_apart(model_type)
        outcomes.append(outcome)
        seconds = time.perf_counter() - started
        head = f"[{number}/{len(names)}] {outcome.verdict:9} {model_type:28} {seconds:5.1f} s"
        print(f"{head}  {outcome.route} {outcome.reason} {' '.join(outcome.rules)}".rstrip())
        sys.stdout.flush()
    counts = Counter(outcome.verdict for outcome in outcomes)
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS))
    if options.write is not None:
        options.write.write_text(table(outcomes), encoding="utf-8")
    return int(counts["wrong"] > 0)


def _class_name(model_type: str) -> str:
    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])


def _bare_module(model_type: str) -> Any:
    """The shrunken model without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(tiny_config(model_type))


def _tiny_module(bare: Any) -> Any:
    """The same with random weights."""
    size = sum(parameter.numel() for parameter in bare.parameters())
    if size > PARAMETERS:
        raise ValueError(f"{size / 1e6:.0f} million parameters, even when shrunken")
    torch.manual_seed(0)
    return randomise(AutoModelForCausalLM.from_config(bare.config))


def _send(pipe: Connection, model_type: str) -> None:
    try:
        outcome = judge(model_type)
    except Exception as error:  # a crash of ours is a bug: counted as wrong, never hidden
        outcome = Outcome(model_type, _class_name(model_type), "wrong", reason=_brief(error))
    pipe.send(outcome)
    pipe.close()


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1].strip()}"[:160]


def _reason(error: ArchError) -> str:
    """The part of our message that says why, without the advice that follows it."""
    text = str(error)
    for advice in (" If you know where", " If it does have one", " nnattr analyses", " Models "):
        text = text.partition(advice)[0]
    return text


def _row(outcome: Outcome) -> str:
    last = outcome.reason.replace("|", "\\|")
    if outcome.verdict == "proven":
        last = "; ".join(filter(None, (outcome.route, last)))
    rules = f" {' '.join(outcome.rules)} |" if outcome.verdict == "proven" else ""
    return f"| {outcome.model_type} | {outcome.name} | {last} |{rules}"


if __name__ == "__main__":
    sys.exit(main())
