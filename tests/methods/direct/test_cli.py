"""``nnattr lens`` and ``nnattr dla``, through the command line's own runner."""

from __future__ import annotations

from pathlib import Path

from nnattr import Scores
from tests.support.command_line import call

PROMPT = "When Mary and John went to the store, John gave a drink to"


def test_lens_prints_layers_and_writes_a_page(tmp_path: Path) -> None:
    page = tmp_path / "lens.html"
    text = call("lens", "teaching-gpt2", PROMPT, "--answer", " Mary", "--top", 3, "--plot", page)
    for point in ("L0 pre", "L3 pre", "final"):
        assert point in text
    assert "answer rank" in text
    assert "plotly.js v" in page.read_text(encoding="utf-8")
    assert "final" in call("lens", "teaching-gpt2", PROMPT)


def test_dla_prints_parts_of_the_logit_difference(tmp_path: Path) -> None:
    path = tmp_path / "dla.safetensors"
    text = call("dla", "teaching-gpt2", PROMPT, " Mary", " John", "--output", path)
    scores = Scores.load(path)
    whole = scores.baselines.sel(run="clean").item()
    assert f"a logit difference of {whole:+.4f}" in text
    assert scores.top(1)[0].label in text
    assert abs(scores.raw.sum().item() - whole) < 1e-4
    heads = call("dla", "teaching-gpt2", PROMPT, " Mary", " John", "--unit", "head", "--top", 2)
    assert heads.count("H") >= 2


def test_mistakes_are_one_message(tmp_path: Path) -> None:
    assert "unit is 'circuit'" in call(
        "dla", "teaching-gpt2", PROMPT, " Mary", " John", "--unit", "circuit", code=1
    )
    missing = tmp_path / "no" / "page.html"
    assert "no folder" in call("lens", "teaching-gpt2", PROMPT, "--plot", missing, code=1)
