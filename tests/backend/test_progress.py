"""One bar for all of a call, soon there though the work says nothing; elsewhere silence."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import nnattr
from nnattr import Simulated, progress
from nnattr.backend import Backend, Local
from nnattr.progress import ProgressBar
from tests.support.engine import LayerByLayer, pair, task
from tests.tiny import tiny_module, tiny_tokenizer

ROOT = Path(__file__).parents[2]


class Terminal(io.StringIO):
    """A terminal as far as a bar can tell."""

    def isatty(self) -> bool:
        return True


def seconds_slow(logits: Any, batch: Any) -> Any:
    time.sleep(0.05)
    return logits[:, -1, 20]


def a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Asked for inside a test: pytest puts its own streams in place between setup and call."""
    found = Terminal()
    monkeypatch.setattr(sys, "stderr", found)
    monkeypatch.setattr(progress, "EVERY", 0.01)
    return found


def wait_for(terminal: Terminal) -> None:
    """Until something was drawn; the first bar of a process imports what draws it."""
    until = time.monotonic() + 20
    while not terminal.getvalue() and time.monotonic() < until:
        time.sleep(0.01)


def lines(terminal: Terminal) -> list[str]:
    return [line.strip() for line in terminal.getvalue().split("\r") if line.strip()]


def shares(terminal: Terminal) -> list[int]:
    """The percentages that were shown."""
    return [int(line.split("%")[0].split()[-1]) for line in lines(terminal) if "%" in line]


def test_a_bar_is_there_before_the_work_says_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = a_terminal(monkeypatch)
    with ProgressBar("the plain runs", delay=0.05):
        wait_for(terminal)
    assert lines(terminal)[0].startswith("the plain runs: 00:0")
    assert terminal.getvalue().endswith("\r"), "it is gone when the work is done"


def test_short_work_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = a_terminal(monkeypatch)
    with ProgressBar("short") as bar:
        bar.tick(1, 2)
    assert terminal.getvalue() == ""


def test_bars_inside_a_bar_move_their_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = a_terminal(monkeypatch)
    with ProgressBar("whole", delay=0.0) as bar:
        wait_for(terminal)
        for part in range(2):
            bar.next_part(part / 2, (part + 1) / 2)
            with ProgressBar("inner", delay=0.0) as inner:
                for done in range(4):
                    inner.tick(done, 4)
                    time.sleep(0.05)
    assert "inner" not in terminal.getvalue()
    assert shares(terminal) == sorted(shares(terminal))
    assert {25, 50, 75} <= {share // 25 * 25 for share in shares(terminal)}


def test_a_bar_in_another_thread_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = a_terminal(monkeypatch)
    import threading

    def other() -> None:
        with ProgressBar("other", delay=0.0):
            time.sleep(0.3)

    with ProgressBar("one", delay=0.0):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "one: " in terminal.getvalue()
    assert "other: " in terminal.getvalue()


@pytest.mark.parametrize(
    "backend", [Local(), LayerByLayer(), Simulated(), Simulated(max_job_bytes=1)]
)
def test_a_study_has_one_bar(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is one job or one for each layer, here or rehearsed."""
    terminal = a_terminal(monkeypatch)
    model = nnattr.load(tiny_module("llama"), tokenizer=tiny_tokenizer(), backend=backend)
    question = task(model, pair(9, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnattr.runs.portions.CPU_TOKENS", 9)
        patch.setattr(ProgressBar.__init__, "__defaults__", (0.0,))
        nnattr.activation_patching(model, question, seconds_slow, positions="each")
    seen = shares(terminal)
    assert {line.split(":")[0] for line in lines(terminal)} == {"activation patching"}
    assert seen == sorted(seen)
    assert len(set(seen)) > 2


def test_a_rehearsed_job_still_prints(capsys: pytest.CaptureFixture[str]) -> None:
    model = nnattr.load(tiny_module("llama"), tokenizer=tiny_tokenizer(), backend="simulated")
    nnattr.activation_patching(model, task(model, pair(9, 4)), printing)
    shown = capsys.readouterr()
    assert "read 1 row" in shown.out
    assert "nnattr-progress" not in shown.out
    assert shown.err == "", "no terminal, no bar"


def test_no_terminal_no_bar() -> None:
    code = f"{AT_ONCE}\nimport nnattr; nnattr.load('teaching-gpt2')"
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert made.stderr == made.stdout == b""


def printing(logits: Any, batch: Any) -> Any:
    print("read", len(logits), "row")
    return logits[:, -1, 20]


#: The first lines of a process whose bars do not wait.
AT_ONCE = (
    "import time; from nnattr import progress; progress.ProgressBar.__init__.__defaults__ = (0.0,)"
)


def on_a_terminal(code: str) -> str:
    """What a process writes to a pseudo-terminal of no size, as in a container."""
    ours, theirs = pty.openpty()
    run = [sys.executable, "-c", f"{AT_ONCE}\n{code}"]
    subprocess.run(run, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=theirs, check=True)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):
        while some := os.read(ours, 4096):
            shown += some
    return shown.decode()


def test_loading_has_a_bar_on_a_real_terminal() -> None:
    """So has what comes before it, the import of torch; of the load every step is made slow."""
    shown = on_a_terminal(
        "import nnattr; nnattr.LogitDiff; from nnattr.model import load\n"
        "load.lookup, real = (lambda config: time.sleep(0.6) or real(config)), load.lookup\n"
        "nnattr.load('teaching-gpt2')"
    )
    assert shown.startswith("\rimport torch: 00:0")
    assert "load the model: 00:0" in shown


def test_the_command_line_has_a_bar_while_it_imports_torch() -> None:
    assert "import torch: 00:0" in on_a_terminal(
        "from nnattr.cli.commands import app; app(['models'])"
    )


@pytest.mark.parametrize("words", [["--help"], ["lens", "--help"], ["--version"]])
def test_help_needs_no_torch(words: list[str]) -> None:
    code = (
        "import sys; from nnattr.cli.commands import app\n"
        f"try: app({words})\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    assert on_a_terminal(code) == ""


def test_a_bar_costs_the_work_nothing_where_there_is_none() -> None:
    torch.manual_seed(0)
    with ProgressBar("x") as bar:
        began = time.process_time()
        for done in range(100_000):
            bar.tick(done, 100_000)
        assert time.process_time() - began < 1.0, "ten microseconds a tick"
