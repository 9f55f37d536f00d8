"""``nnattr demo --real``: what it prints and the page that it writes."""

from __future__ import annotations

from pathlib import Path

from nnattr import pretrained
from tests.support.command_line import call, is_self_contained
from tests.support.real import needs_real_model


def test_the_demo_on_the_real_model(tmp_path: Path) -> None:
    needs_real_model()
    path = tmp_path / "page.html"
    text = call("demo", "--real", "--n", 2, "--output", path)
    before, _, after = " ".join(text.split()).partition("Indirect-object identification")
    assert "270 heads" in before
    assert "processor time" in before, "how long it takes is said first"
    assert pretrained.FILE in before, "rounded weights are never shown without saying so"
    assert "L23H3" in after
    html = path.read_text(encoding="utf-8")
    is_self_contained(html)
    assert pretrained.FILE in html
