"""The methods: one row each, from which the command line, `submit`, reports and docs take theirs.

A row is a function that asks a model something and returns a result. To add a method, write its
file in `nnattr.methods`, and its row here; the public list (``nnattr/__init__.pyi``) has its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args, get_type_hints

from nnattr import weights
from nnattr.errors import ArgumentError
from nnattr.methods.attention.attention_patterns import attention_patterns
from nnattr.methods.attention.copying import copying_score, name_mover_score
from nnattr.methods.attention.decompose_attention import decompose_attention
from nnattr.methods.attention.detect_heads import detect_heads
from nnattr.methods.behaviour.capture import capture
from nnattr.methods.behaviour.compare_runs import compare_runs
from nnattr.methods.behaviour.generate import generate
from nnattr.methods.behaviour.inspect_prompt import inspect_prompt
from nnattr.methods.behaviour.most_frequent_answers import most_frequent_answers
from nnattr.methods.direct.direct_logit_attribution import direct_logit_attribution
from nnattr.methods.direct.logit_lens import logit_lens
from nnattr.methods.direct.next_token_attribution import next_token_attribution
from nnattr.methods.patching.ablation import ablate, ablate_together
from nnattr.methods.patching.activation_patching import activation_patching
from nnattr.methods.patching.attribution_patching import attribution_patching
from nnattr.methods.patching.path_patching import path_patching
from nnattr.results import Result

Kind: TypeAlias = Literal["patching", "direct", "attention", "weights", "behaviour"]

#: Arguments that say what the model reads; each method has at most one of them, or its first.
READ = ("task", "prompts", "prompt", "a")


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        name: how people call it, after ``nnattr.``.
        function: the public function; its first argument is the model.
        kind: the kind of question.
        question: what it answers, in a few words.
        reading: what to keep in mind when reading its numbers; reports say it.
        together: the same where it took cells at once.
    """

    name: str
    function: Callable[..., Any]
    kind: Kind
    question: str
    reading: str = ""
    together: str = ""

    @property
    def arguments(self) -> dict[str, inspect.Parameter]:
        """What it takes after the model, by name."""
        return dict(list(inspect.signature(self.function).parameters.items())[1:])

    @property
    def reads(self) -> str | None:
        """The argument that says what the model reads; None where its weights alone are asked."""
        return next((name for name in READ if name in self.arguments), None)

    @property
    def result(self) -> type[Result] | None:
        """The type of result it returns; None where it returns something else."""
        found = get_type_hints(self.function)["return"]
        kinds = (found, *get_args(found))
        results = [one for one in kinds if isinstance(one, type) and issubclass(one, Result)]
        return results[0] if results else None


ROWS = (
    Method(
        "activation_patching",
        activation_patching,
        "patching",
        "Which parts carry the difference between two runs?",
        "Every cell is measured: a run in which this cell alone is replaced by that of the other "
        "run.",
        "One run for each example, in which all these cells are those of the other run.",
    ),
    Method(
        "attribution_patching",
        attribution_patching,
        "patching",
        "The same, estimated for all parts from one backward pass.",
        "A first-order estimate of activation patching, all cells from one backward pass. It is "
        "off where the model bends between the two runs: check the strongest cells exactly.",
    ),
    Method(
        "path_patching",
        path_patching,
        "patching",
        "Which parts read what which parts write?",
        "Every edge is measured: a run in which one part alone reads another's write of the other "
        "run. Effects of edges do not add up, and later parts may make up for one.",
    ),
    Method(
        "ablate",
        ablate,
        "patching",
        "Which parts does the behaviour need?",
        "Every cell is measured: a run in which this cell alone is taken out. Later parts may make "
        "up for what is missing, so a small number need not mean a small part.",
    ),
    Method(
        "ablate_together",
        ablate_together,
        "patching",
        "What is left without a set of parts, or with it alone?",
        "One run for each example, with all the named parts taken out at once.",
    ),
    Method(
        "direct_logit_attribution",
        direct_logit_attribution,
        "direct",
        "What does each part write straight toward the answer?",
        "What each part writes straight toward the answer. Parts that act through later layers do "
        "not show here.",
    ),
    Method(
        "next_token_attribution",
        next_token_attribution,
        "direct",
        "What does each part write toward the token that follows, at every position?",
        "What each part writes straight toward the token that follows. Parts that act through "
        "later layers do not show here.",
    ),
    Method(
        "logit_lens",
        logit_lens,
        "direct",
        "What would the model say if it ended at each layer?",
        "Early layers need not be written in the basis of the last one.",
    ),
    Method(
        "attention_patterns",
        attention_patterns,
        "attention",
        "Where does each head look?",
        "Attention says where a head reads, not what it makes of it.",
    ),
    Method(
        "detect_heads",
        detect_heads,
        "attention",
        "Which heads are induction heads, previous-token heads, ...?",
        "A kind is read off where a head looks on these prompts.",
    ),
    Method(
        "copying_score",
        copying_score,
        "attention",
        "Which heads raise the token that they look at?",
        "A score says that a head's output names what it reads, not that it is used.",
    ),
    Method(
        "name_mover_score",
        name_mover_score,
        "attention",
        "Which heads look at a name and copy it?",
        "A score says that a head's output names what it reads, not that it is used.",
    ),
    Method(
        "decompose_attention",
        decompose_attention,
        "attention",
        "What do a head's queries and keys get from each part before it?",
        "Shares of attention scores before the softmax.",
    ),
    Method(
        "weights.composition",
        weights.composition,
        "weights",
        "Which heads read what other heads write?",
        "A norm of products of weights, against what random matrices would give: it says what "
        "could be used, not what is.",
    ),
    Method(
        "weights.head",
        weights.head,
        "weights",
        "What are a head's matrices?",
        "The weights as they act.",
    ),
    Method(
        "weights.position_pattern",
        weights.position_pattern,
        "weights",
        "Where would a head look if it saw positions alone?",
        "A softmax of position scores: it leaves out what the tokens say.",
    ),
    Method(
        "inspect_prompt",
        inspect_prompt,
        "behaviour",
        "What does the model say after a prompt, and where does the answer stand?",
    ),
    Method(
        "generate",
        generate,
        "behaviour",
        "How does the model go on?",
    ),
    Method(
        "compare_runs",
        compare_runs,
        "behaviour",
        "How far apart are the model's predictions on two sets of prompts?",
    ),
    Method(
        "most_frequent_answers",
        most_frequent_answers,
        "behaviour",
        "Which first words does the model answer with?",
    ),
    Method(
        "capture",
        capture,
        "behaviour",
        "What are the activations at a site?",
    ),
)
#: The rows by name.
METHODS: dict[str, Method] = {row.name: row for row in ROWS}
#: Those that return a result, which can be saved, reported and made again.
ANSWERS: dict[str, Method] = {name: row for name, row in METHODS.items() if row.result}


def named(name: str) -> Method:
    """The row of a method by its name.

    Raises:
        ArgumentError: there is no such method.
    """
    if name not in METHODS:
        raise ArgumentError(f"There is no method {name!r}; expected one of {', '.join(METHODS)}.")
    return METHODS[name]


def row_of(function: Callable[..., Any]) -> Method:
    """The row of a public function.

    Raises:
        ArgumentError: it is not a method.
    """
    for row in ROWS:
        if row.function is function:
            return row
    raise ArgumentError(f"{function!r} is not a method; expected one of {', '.join(METHODS)}.")
