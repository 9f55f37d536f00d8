"""Every code block of the README and the documentation does what its page says."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import nnattr
import nnattr.errors
from nnattr.cli import app
from tests.docs.blocks import FENCE, Block, agrees, blocks
from tests.support.real import needs_real_model

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def runs(block: Block) -> bool:
    """Whether a reader can run it."""
    return block.reason is None and block.language in ("python", "sh")


def pages(real: bool) -> list[Any]:
    """The pages with something to run, on the real model or elsewhere."""
    found = [page for page in PAGES if any(runs(b) and b.real == real for b in blocks(page))]
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in found]


@pytest.mark.parametrize("page", pages(real=False))
def test_the_blocks_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_blocks(page, False, tmp_path, monkeypatch)


@pytest.mark.real
@pytest.mark.parametrize("page", pages(real=True))
def test_the_blocks_on_the_real_model_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_real_model()
    run_blocks(page, True, tmp_path, monkeypatch)


def run_blocks(page: Path, real: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page that need the real model, or those that do not, in their order."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("plotly.graph_objects.Figure.show", lambda figure: None)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for i, block in enumerate(blocks(page)):
        if not runs(block) or block.real != real:
            continue
        where = f"{page.relative_to(ROOT)}:{block.line}"
        if block.language == "python":
            printed = run_python(block, tmp_path / f"{page.stem}_{i}.py", namespace)
        else:
            printed = run_commands(block, where)
        if block.printed is not None:
            problem = agrees(printed, block.printed)
            assert not problem, f"{where}: {problem}"


def run_python(block: Block, script: Path, namespace: dict[str, Any]) -> str:
    """Run it from a file, so that metrics written in it have a source, at the page's own lines."""
    text = "\n" * (block.line - 1) + block.code
    script.write_text(text, encoding="utf-8")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(text, str(script), "exec"), namespace)
    return out.getvalue()


def run_commands(block: Block, where: str) -> str:
    """Run lines of ``nnattr ...`` as the shell would; other commands belong to a shell's user."""
    printed = ""
    for line in block.code.splitlines():
        for command in re.split(r"\s+&&\s+", line.split("  #")[0].strip()):
            if not command.startswith("nnattr"):
                continue
            arguments, _, target = command.partition(" > ")
            result = CliRunner().invoke(app, shlex.split(arguments)[1:])
            assert result.exit_code == 0, f"{where}: {command}\n{result.output}"
            if target:
                Path(target).write_text(result.output, encoding="utf-8")
            else:
                printed += result.output
    return printed


def test_blocks_that_are_not_run_say_why_and_are_few() -> None:
    reasons = [
        (page.name, b.reason) for page in PAGES for b in blocks(page) if b.reason is not None
    ]
    assert all(reason for _, reason in reasons)
    assert len(reasons) <= 12, reasons


def test_the_check_of_what_is_printed_can_fail() -> None:
    assert agrees("L1H2 +0.97", "L1H2 +0.98") == ""
    assert agrees("L1H2 +0.97", "L1H3 +0.97")
    assert agrees("L1H2 +0.97", "L1H2 +0.90")
    assert agrees("one\ntwo 2\nthree", "one\n...\nthree") == ""
    assert agrees("one\ntwo 2\nthree", "...\nfour\n...")


def test_links_lead_to_files_of_the_repository() -> None:
    """The site's builder checks links between its pages; this is for the README and the rest."""
    for page in PAGES:
        prose = FENCE.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose):
            if target.startswith("https://github.com/nnattr/nnattr/blob/main/"):
                target = "/" + target.removeprefix("https://github.com/nnattr/nnattr/blob/main/")
            if "://" in target or target.startswith("mailto:"):
                continue
            path = ROOT / target[1:] if target.startswith("/") else page.parent / target
            assert path.exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_every_error_and_every_method_has_its_place() -> None:
    """One heading per exception; one page per method, all of them reachable."""
    errors = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    classes = {name for name, one in vars(nnattr.errors).items() if isinstance(one, type)}
    assert set(re.findall(r"^## (\w+)$", errors, re.MULTILINE)) == classes
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs").rglob("*.md")):
        assert page.relative_to(ROOT / "docs").as_posix() in nav, page
    shown = {
        name
        for page in PAGES
        for name in re.findall(r"\]\(\S*?figures/(\w+)\.png", page.read_text())
    }
    assert shown == {path.stem for path in (ROOT / "docs" / "figures").glob("*.png")}
    reference = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    entries = re.findall(r"^::: (\S+)$", reference, re.MULTILINE)
    assert len(entries) == len(set(entries)), "an entry stands twice"
    members = set(re.findall(r"^ +- (\w+)$", reference, re.MULTILINE))
    for name in nnattr.__all__:
        home = getattr(getattr(nnattr, name), "__module__", "")
        inside = any(entry.startswith(f"nnattr.{name}.") for entry in entries)
        assert {f"nnattr.{name}", home} & set(entries) or inside or name in members, name
