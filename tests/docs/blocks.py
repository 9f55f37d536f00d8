"""The code blocks of a Markdown page, as a reader would run them: from top to bottom.

A ``python`` block runs in its page's namespace, a ``sh`` block whose lines all begin with
``nnattr`` as commands. A ``text`` block right after one of them is what it prints. A block whose
first line is ``# not run here: REASON`` is shown and not run. Blocks on the real model need it: one
that loads it, and what follows up to where another model is loaded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from nnattr.pretrained import NAME

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = "# not run here: "
REAL = re.compile(rf"\b{NAME}\b|--real\b")
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        language: as the fence says.
        code: its text.
        line: the page's line that its text begins at.
        real: whether it needs the real model.
        printed: what it prints, if the page says so.
    """

    language: str
    code: str
    line: int
    real: bool = False
    printed: str | None = None

    @property
    def reason(self) -> str | None:
        """Why it is not run, or None."""
        first = self.code.split("\n", 1)[0]
        return first.removeprefix(NOT_RUN) if first.startswith(NOT_RUN) else None


def blocks(page: Path) -> list[Block]:
    """The blocks of ``page``, each ``text`` block joined to the one right before it."""
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    end, model_is_real = 0, False
    for match in FENCE.finditer(text):
        language, code = match[1], match[2]
        line = text.count("\n", 0, match.start(2)) + 1
        follows = found and not text[end : match.start()].strip()
        end = match.end()
        if language == "text" and follows:
            found.append(replace(found.pop(), printed=code))
            continue
        real = bool(REAL.search(code))
        if language == "python":
            if real or "nnattr.load(" in code:
                model_is_real = real
            real = model_is_real
        found.append(Block(language, code, line, real))
    return found


def agrees(printed: str, said: str) -> str:
    """Why what was ``printed`` is not what the page ``said``, or nothing.

    Words must be equal; a number may be off by two hundredths, or by five in a hundred of itself,
    since machines round differently. Lines of the page that are ``...`` stand for any lines.
    """
    left, right = (re.split(r"\s+", NUMBER.sub(" # ", text).strip()) for text in (printed, said))
    if "..." in said.split():
        missing = [line for line in said.splitlines() if line.strip() not in ("", "...")]
        lines = iter(printed.splitlines())
        for line in missing:
            if not any(not agrees(other, line) for other in lines):
                return f"no line like {line!r} in:\n{printed}"
        return ""
    if left != right:
        return f"the page says\n{said}\nand it printed\n{printed}"
    for one, other in zip(NUMBER.findall(printed), NUMBER.findall(said), strict=True):
        if abs(float(one) - float(other)) > max(0.02, 0.05 * abs(float(other))):
            return f"{one} where the page says {other}, in\n{printed}"
    return ""
