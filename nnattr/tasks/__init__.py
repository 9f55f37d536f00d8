"""Tasks: prompts that differ in one thing, and the words that show which answer a model gives.

`Task` is made from your own prompts (``Task.from_pairs``, ``from_prompts``, ``from_table``), read
from a file (``Task.load``), or by one of the generators, which are functions of a tokenizer:

====================  ======================================================================
`ioi`                 who receives what the subject gives
`greater_than`        years that come after a year
`facts`               yes or no, in several words for each; capitals
`repeated_tokens`     repeat: the token that followed last time
`requests`            answering or declining, through a chat template
`gendered_pronoun`    she or he
`subject_verb`        is or are
====================  ======================================================================
"""

from __future__ import annotations

from collections.abc import Callable

from nnattr.tasks.choose import Keep, Prediction
from nnattr.tasks.form import Answers, Drop, Groups, IdGroups, Spans
from nnattr.tasks.generators.facts import facts
from nnattr.tasks.generators.grammar import gendered_pronoun, subject_verb
from nnattr.tasks.generators.greater_than import greater_than
from nnattr.tasks.generators.ioi import ioi
from nnattr.tasks.generators.repeated_tokens import repeated_tokens
from nnattr.tasks.generators.requests import requests
from nnattr.tasks.predictions import Predictions
from nnattr.tasks.table import AnswerMap
from nnattr.tasks.task import Task

__all__ = [
    "GENERATORS",
    "AnswerMap",
    "Answers",
    "Drop",
    "Groups",
    "IdGroups",
    "Keep",
    "Prediction",
    "Predictions",
    "Spans",
    "Task",
    "facts",
    "gendered_pronoun",
    "greater_than",
    "ioi",
    "repeated_tokens",
    "requests",
    "subject_verb",
]

#: The generators by the name that run files give them.
GENERATORS: dict[str, Callable[..., Task]] = {
    "ioi": ioi,
    "greater_than": greater_than,
    "facts": facts,
    "repeated_tokens": repeated_tokens,
    "requests": requests,
    "gendered_pronoun": gendered_pronoun,
    "subject_verb": subject_verb,
}
