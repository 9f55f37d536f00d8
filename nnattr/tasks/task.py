"""`Task`: prompts, usually in pairs that differ in one thing, and the words that tell them apart.

A task holds clean and corrupted prompts of equal length, already encoded for one tokenizer, the
answers that fit the clean prompt and the wrong ones, and names for interesting positions. It is
frozen: two tasks with equal tokens have the same ``hash``, which results record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnattr.arguments import JsonFile, Positive, Seed, checked
from nnattr.errors import TaskError
from nnattr.tasks import positions
from nnattr.tasks.answers import as_groups
from nnattr.tasks.build import build
from nnattr.tasks.choose import Keep, halves, judged
from nnattr.tasks.contrast import shared_beginning
from nnattr.tasks.description import Description, cell_label, described
from nnattr.tasks.examples import Examples
from nnattr.tasks.file import read_task, write_task
from nnattr.tasks.form import Answers, Form, Spans, Unusable, Where
from nnattr.tasks.predictions import Predictor
from nnattr.tasks.table import AnswerMap, columns
from nnattr.tokens import Prompt, Tokenizer, encode


@dataclass(frozen=True, eq=False, repr=False)
class Task(Examples):
    """Prompts with their answers, encoded for one tokenizer.

    Made by `from_pairs`, `from_prompts`, `from_table`, `load`, or a generator such as
    `nnattr.tasks.ioi`. Its attributes are those of `nnattr.tasks.examples.Examples`.
    """

    @classmethod
    @checked
    def from_pairs(
        cls,
        clean: Sequence[Prompt],
        corrupted: Sequence[Prompt] | None,
        answers: Answers = (),
        wrong_answers: Answers = (),
        *,
        tokenizer: Tokenizer,
        spans: Spans | None = None,
        chat: bool = False,
        system: str | None = None,
        answer_prefix: str = "",
        leading_space: bool = False,
        sequences: bool = False,
        unusable: Unusable = "refuse",
        name: str = "pairs",
        where: Where | None = None,
    ) -> Task:
        """A task from prompts that you have.

        Args:
            clean: prompts on which the model shows the behaviour: texts, or lists of token ids,
                which are taken as they are.
            corrupted: for each its twin, with the same number of tokens, that does not call for it;
                None for a task that is looked at but not patched.
            answers: for each prompt the word that continues the clean prompt, or a group of such
                words. Each is one token, with its leading space: ``" Mary"``; or the token's id, an
                integer. May be left out, as the wrong ones, for metrics that need none.
            wrong_answers: the same for the words it competes with.
            tokenizer: the model's tokenizer (``model.tokenizer``).
            spans: named positions; for each example one or a list, counted from the prompt's first
                token (a BOS counts, if there is one), a text that the clean prompt holds once, or a
                ``slice`` of its characters.
            chat: put each prompt as a user's turn into the tokenizer's chat template. Answers then
                open the assistant's turn and have no leading space.
            system: the system prompt of the chat.
            answer_prefix: text after the prompt, where the answer is awaited.
            leading_space: put a space before every answer that has none: for files that hold bare
                words (known_1000, CounterFact).
            sequences: answers are texts of any number of tokens (or lists of ids), for
                `nnattr.SequenceLogProb`, and against wrong ones for `nnattr.SequenceLogProbDiff`.
                The model sees the answer after either prompt. Positions still count in the prompt:
                ``"last"`` is the prompt's last token; ``"all"`` patches the answer's tokens as
                well, and the span ``"answer"`` names where the answer is predicted.
            unusable: ``"drop"`` leaves out words that are not single tokens and records them in
                ``dropped``, ``"refuse"`` raises.
            name: what results call the task.
            where: how messages call an entry of a list, given the list's name and an index; by
                default ``answers[3]``.

        Raises:
            TaskError: the lists have different lengths or are empty, a pair's prompts have
                different numbers of tokens, a prompt has unknown words, or an answer is not one
                token. The message names the prompt and the offending piece.
        """
        form = Form(tokenizer, chat, system, answer_prefix)
        fields = build(
            clean,
            corrupted,
            answers,
            wrong_answers,
            form=form,
            spans=spans or {},
            leading_space=leading_space,
            sequences=sequences,
            unusable=unusable,
            where=where or "{}[{}]".format,
        )
        return cls(**fields, name=name)

    @classmethod
    @checked
    def from_prompts(
        cls,
        prompts: Sequence[Prompt],
        answers: Answers = (),
        wrong_answers: Answers = (),
        *,
        tokenizer: Tokenizer,
        **options: Any,
    ) -> Task:
        """A task without corrupted prompts: for direct attribution, the logit lens and filtering.

        Prompts may have any lengths. Options and errors are those of `from_pairs`.
        """
        given: dict[str, Any] = {"name": "prompts", **options}
        return cls.from_pairs(prompts, None, answers, wrong_answers, tokenizer=tokenizer, **given)

    @classmethod
    @checked
    def from_sentences(
        cls,
        good: Sequence[Prompt],
        bad: Sequence[Prompt],
        *,
        tokenizer: Tokenizer,
        name: str = "sentences",
    ) -> Task:
        """A task from pairs of sentences, one right and one wrong, as in BLiMP.

        A prompt is what the two sentences begin with, and the answers are how they go on, so that
        `nnattr.SequenceLogProbDiff` is the difference of their log-probabilities. There is no
        corrupted prompt; for patching make prompts and answers of your own (`from_pairs`).

        Args:
            good: the right sentences, as texts or token ids.
            bad: for each the wrong one.
            tokenizer: the model's.
            name: what results call the task.

        Raises:
            TaskError: a pair that is the same, or that begins differently where the tokenizer puts
                nothing before a text: no model says how probable a first token is.
        """
        sides = [
            encode(tokenizer, some, place=f"{what}[{{}}]".format)
            for what, some in (("good", good), ("bad", bad))
        ]
        if len(good) != len(bad):
            raise TaskError(f"There are {len(good)} good sentences and {len(bad)} bad ones.")
        prompts, answers, others = [], [], []
        for i, (one, other) in enumerate(zip(*(side.rows for side in sides), strict=True)):
            start = shared_beginning(one, other)
            if start == 0:
                raise TaskError(
                    f"The sentences {i} begin with different tokens, {good[i]!r} and {bad[i]!r}, "
                    "and the tokenizer puts nothing before a text: a first token has no "
                    "probability. Put the same words before both."
                )
            prompts.append(one[:start])
            answers.append(one[start:])
            others.append(other[start:])
        told: dict[str, Any] = {"sequences": True, "name": name}
        return cls.from_prompts(prompts, answers, others, tokenizer=tokenizer, **told)

    @classmethod
    @checked
    def from_table(
        cls,
        source: Any,
        *,
        tokenizer: Tokenizer,
        clean: str = "clean",
        corrupted: str | None = "corrupted",
        answer: str | None = "answer",
        wrong_answer: str | None = None,
        answer_map: AnswerMap | None = None,
        spans: Sequence[str] = (),
        encoding: str = "utf-8-sig",
        **options: Any,
    ) -> Task:
        """A task from a table of yours: one row per example.

        Args:
            source: a ``.csv``, ``.json`` or ``.jsonl`` file, a data frame (pandas, polars), a
                `datasets.Dataset`, or a list of dictionaries. JSON holds a list of objects, or one
                object of equally long lists.
            tokenizer: the model's tokenizer.
            clean: the column of the prompts.
            corrupted: the column of their twins, or None for a task that is not patched.
            answer: the column of the answers, a word or (but in CSV) a list of words, or None.
            wrong_answer: the column of the wrong answers, or None.
            answer_map: what the answer column's labels stand for: ``{"True": ["Yes", "Sure"],
                "False": ["No"]}``. All other groups' words are the wrong answers, unless
                ``wrong_answer`` names a column with their label.
            spans: columns that hold, for each row, a text that occurs once in the clean prompt, or
                positions; the span has the column's name.
            encoding: of the file.
            **options: those of `from_pairs`, such as ``leading_space=True``; ``name`` is by default
                the file's.

        Raises:
            TaskError: as `from_pairs`; and for a missing file or column, an empty cell or group, a
                word in two groups, or a wrong encoding. The message names line (or row) and column.
        """
        found = columns(
            source,
            {
                "clean": clean,
                "corrupted": corrupted,
                "answers": answer,
                "wrong_answers": wrong_answer,
            }
            | {span: span for span in spans},
            answer_map,
            encoding,
        )
        for side in ("answers", "wrong_answers"):  # here a message can name row and column
            as_groups(side, found.get(side, ()), found.where, ids=False)
        given: dict[str, Any] = {"name": found.name, **options}
        return cls.from_pairs(
            found["clean"],
            found.get("corrupted"),
            found.get("answers", ()),
            found.get("wrong_answers", ()),
            tokenizer=tokenizer,
            spans={span: found[span] for span in spans},
            where=found.where,
            **given,
        )

    @checked
    def save(self, path: JsonFile) -> Path:
        """Write the task as one ``.json`` file (the folder must exist) and return its path.

        Raises:
            ArgumentError: the path has another ending.
            TaskError: it cannot be written.
        """
        return write_task(self, path)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Task:
        """Read what `save` wrote, or the task in a result's file; no code runs.

        Raises:
            TaskError: there is no such file, or it is not a whole task of a known schema.
        """
        return cls(**read_task(path))

    @checked
    def describe(self, examples: Positive = 1) -> Description:
        """What the model really sees, token by token, and where clean and corrupted differ.

        Args:
            examples: how many examples to show in full.

        Returns:
            a text that shows itself in a notebook or console.
        """
        return described(self, examples)

    @checked
    def filter(self, model: Predictor, keep: Keep = "correct") -> Task:
        """The examples on which the model does what the task is about; the others are recorded.

        Args:
            model: from `nnattr.load`; it reads each prompt once.
            keep: ``"correct"``: the clean prompt's answers are more probable than its wrong answers
                (without wrong ones: the most probable token is an answer; with sequences: so is
                every token of it). A token such as ``"Here"``, as the text that it adds to the
                prompt or by its id: the clean prompt's most probable token is this. A pair of
                tokens ``("I", "Here")``: the clean prompt's is the first and the corrupted one's
                the second; with None in place of one, the other alone counts. Or a function of a
                `Prediction`.

        Returns:
            the kept examples, with the others in ``dropped``.

        Raises:
            TaskError: no example is left (the message says what the model predicts), the task lacks
                what ``keep`` needs, or ``keep`` is not one token.
        """
        kept, drops = judged(self, model, keep)
        return replace(self[kept], dropped=self.dropped + drops)

    @checked
    def split(self, seed: Seed = 0) -> tuple[Task, Task]:
        """Two halves, to discover on the first and to report on the second.

        Examples with the same prompts stay together, so that the halves are disjoint.

        Raises:
            TaskError: all examples have the same prompts.
        """
        discover, report = halves(self, seed)
        return self[discover], self[report]

    @property
    def labels(self) -> tuple[str, ...]:
        """One text per cell of ``positions="each"`` (see `nnattr.tasks.positions`), for plots.

        A token that all examples share stands as it is; one that differs between the runs of a
        single pair as ``clean|corrupted``; elsewhere the name of the span that lies there, or an
        ellipsis.
        """
        return tuple(cell_label(self, position) for position in positions.labels(self))
