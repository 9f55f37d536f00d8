"""The viewer in a real browser: no network, no complaint, a mouse and a keyboard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from nnattr.errors import ResultError
from nnattr.results import Patterns, Provenance
from tests.browser import CHROMIUM, Tab, browser

WORDS = ["</script><script>window.hurt=1</script>", "\n", " the", "<b>&amp;"]
WORDS += ["”'\"", " \u202e x", ""]
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36}
KEYS |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


def some_patterns(layers: int, heads: int, lengths: list[int], weighted: bool = False) -> Patterns:
    """Random patterns over hostile tokens; head (l, h) is the (l * heads + h)-th drawn."""
    draw = np.random.default_rng(0)
    n = max(lengths)
    values = np.full((len(lengths), layers * heads, n, n), np.nan)
    for i, length in enumerate(lengths):
        raw = np.tril(draw.random((layers * heads, length, length)) ** 4)
        values[i, :, :length, :length] = raw / raw.sum(-1, keepdims=True)
    if weighted:
        values *= 7
    names = [(layer, head) for layer in range(layers) for head in range(heads)]
    array = xr.DataArray(
        values,
        dims=("example", "head", "query_pos", "key_pos"),
        coords={
            "head": [f"L{layer}H{head}" for layer, head in names],
            "layer": ("head", [layer for layer, _ in names]),
            "number": ("head", [head for _, head in names]),
        },
    )
    tokens = tuple(tuple(WORDS[i % len(WORDS)] for i in range(length)) for length in lengths)
    made = Provenance(
        method="attention_patterns", model="<model>", architecture="", backend="", dtype=""
    )
    texts = tuple("".join(row) for row in tokens)
    return Patterns(array.to_dataset(name="values"), made, tokens, texts, weighted)


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def patterns() -> Patterns:
    return some_patterns(2, 3, [9, 5])


@pytest.fixture(scope="module")
def page(patterns: Patterns, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return patterns.to_html(tmp_path_factory.mktemp("viewer") / "v.html")


def press(tab: Tab, key: str, times: int = 1) -> None:
    for _ in range(times):
        both = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        tab.tell("Input.dispatchKeyEvent", type="keyDown", **both, **text)
        tab.tell("Input.dispatchKeyEvent", type="keyUp", **both)


def said(tab: Tab) -> str:
    return tab.evaluate("document.querySelector('#said').innerText")


def chosen(tab: Tab) -> list[int]:
    return tab.evaluate(
        "[...document.querySelectorAll('#tokens button')].flatMap((b, i) =>"
        " b.classList.contains('chosen') ? [i] : [])"
    )


def shown_numbers(tab: Tab) -> list[str]:
    return tab.evaluate("[...document.querySelectorAll('#tokens small')].map(e => e.textContent)")


@pytest.mark.parametrize(("width", "zoom"), [(390, 1), (1440, 1), (1440, 2), (390, 2)])
def test_it_opens_without_a_network_and_fits(tab: Tab, page: Path, width: int, zoom: int) -> None:
    tab.requests.clear()
    tab.open(page, width // zoom)  # a zoom of 200 % leaves half the width
    assert tab.requests == [page.resolve().as_uri()]
    assert tab.complaints == []
    wide, screen = tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= screen, "the page scrolls sideways"
    small = tab.evaluate(
        "[...document.querySelectorAll('p, label, button, span, small, h2')].filter("
        "e => parseFloat(getComputedStyle(e).fontSize) < 12).length"
    )
    assert small == 0, "text that nobody can read"
    assert tab.evaluate("document.querySelectorAll('#heads canvas').length") == 6


def test_tokens_are_text_whatever_they_hold(tab: Tab, page: Path) -> None:
    tab.open(page, 1440)
    assert tab.evaluate("window.hurt === undefined")
    texts = tab.evaluate("[...document.querySelectorAll('#tokens bdi')].map(e => e.textContent)")
    assert texts[:7] == [*WORDS[:1], "\\n", "the", "<b>&amp;", "”'\"", "\u202e x", "␣"]
    assert tab.evaluate("document.querySelectorAll('#tokens b').length") == 0
    assert "<model>" in tab.evaluate("document.querySelector('h1').textContent")


def test_pointing_at_a_token_shows_both_ways(tab: Tab, page: Path, patterns: Patterns) -> None:
    tab.open(page, 1440)
    assert chosen(tab) == []
    assert "Point at a token" in said(tab)
    before = tab.evaluate("document.querySelector('#map').toDataURL()")
    places = (
        "[...document.querySelectorAll('#tokens button')].map(e => [e.offsetLeft, e.offsetTop])"
    )
    still = tab.evaluate(places)
    tab.hover("#tokens button:nth-child(5)")
    assert chosen(tab) == [4]
    assert tab.evaluate(places) == still, "tokens move from under the pointer"
    assert tab.evaluate("document.querySelector('#map').toDataURL()") != before
    one = patterns.of(0, 0).to_numpy()
    expected = [*one[4, :5], *one[5:, 4]]
    numbers = [float(text or 0) for text in shown_numbers(tab)]
    np.testing.assert_allclose(numbers, expected, atol=0.0051)
    kinds = tab.evaluate("[...document.querySelectorAll('#tokens button')].map(b => b.className)")
    assert ["looks" in kind for kind in kinds] == [True] * 5 + [False] * 4
    assert ["seen" in kind for kind in kinds] == [False] * 5 + [True] * 4
    assert f"{max(one[4]):.2f}" in said(tab).splitlines()[1]


def test_a_click_holds_and_escape_lets_go(tab: Tab, page: Path) -> None:
    tab.open(page, 1440)
    tab.hover("#tokens button:nth-child(3)")
    tab.evaluate("document.querySelector('#tokens button:nth-child(3)').click()")
    tab.hover("#tokens button:nth-child(8)")
    assert chosen(tab) == [2]
    pressed = "document.querySelector('#tokens button:nth-child(3)').ariaPressed"
    assert tab.evaluate(pressed) == "true"
    press(tab, "Escape")
    assert tab.evaluate(pressed) == "false"
    tab.hover("#tokens button:nth-child(6)")
    assert chosen(tab) == [5]
    tab.hover("#map", 0.5, 0.15)  # the second of nine rows
    assert chosen(tab) == [1]


def test_the_keyboard_reaches_everything(tab: Tab, page: Path) -> None:
    tab.open(page, 1440)
    press(tab, "Tab")
    assert tab.evaluate("document.activeElement.id") == "prompt"
    assert tab.evaluate("document.querySelector('label').control.id") == "prompt"
    press(tab, "Tab")
    focus = "document.activeElement.textContent"
    assert tab.evaluate(focus) == "L0H0"
    outline = tab.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert float(outline.removesuffix("px")) >= 2, "focus cannot be seen"
    press(tab, "ArrowRight", 4)
    assert tab.evaluate(focus) == "L1H1"
    assert tab.evaluate("document.querySelector('[aria-checked=true]').textContent") == "L1H1"
    assert "L1H1" in tab.evaluate("document.querySelector('#tokens-title').textContent")
    press(tab, "Tab")
    assert chosen(tab) == [0]
    press(tab, "ArrowRight", 3)
    assert chosen(tab) == [3]
    press(tab, "Enter")
    press(tab, "End")
    assert chosen(tab) == [3], "held"
    press(tab, "Escape")
    press(tab, "ArrowLeft")
    assert chosen(tab) == [7]
    tab.open(page, 390)
    press(tab, "Tab", 3)
    press(tab, "ArrowDown")
    line = tab.evaluate("[...document.querySelectorAll('#tokens button')].map(e => e.offsetTop)")
    assert line[chosen(tab)[0]] == min(top for top in line if top > line[0])
    press(tab, "ArrowUp")
    assert line[chosen(tab)[0]] == line[0]


def test_another_prompt(tab: Tab, page: Path, patterns: Patterns) -> None:
    tab.open(page, 1440)
    tab.hover("#tokens button:nth-child(3)")
    tab.hover("#prompt")  # where one chooses: on new tokens the pointer would choose once more
    assert chosen(tab) == [2]
    tab.evaluate(
        "(() => { const s = document.querySelector('#prompt'); s.value = '1';"
        " s.dispatchEvent(new Event('change')); })()"
    )
    assert chosen(tab) == []
    assert tab.evaluate("document.querySelectorAll('#tokens button').length") == 5
    tab.hover("#tokens button:nth-child(5)")
    expected = patterns.of(0, 0, 1).to_numpy()[4]
    numbers = [float(text or 0) for text in shown_numbers(tab)]
    np.testing.assert_allclose(numbers, expected, atol=0.0051)


def test_names_are_said_to_a_screen_reader(tab: Tab, page: Path) -> None:
    tab.open(page, 1440)
    nodes = tab.tell("Accessibility.getFullAXTree")["nodes"]
    named = {
        (node["role"]["value"], node["name"]["value"])
        for node in nodes
        if node.get("name", {}).get("value") and "role" in node
    }
    assert ("radio", "L1H2") in named
    assert ("radiogroup", "Heads") in named
    assert ("button", "token 2, the") in named
    assert any(role == "combobox" and name == "Prompt" for role, name in named)


def test_many_heads_and_tokens_are_no_burden(tab: Tab, tmp_path: Path) -> None:
    page = some_patterns(12, 12, [64], weighted=True).to_html(tmp_path / "v.html")
    assert page.stat().st_size < 1.2e6
    started = time.monotonic()
    tab.open(page, 1440)
    assert time.monotonic() - started < 10
    each = tab.evaluate(
        "(() => { const all = [...document.querySelectorAll('#tokens button')];"
        " const began = performance.now();"
        " for (const e of all) e.dispatchEvent(new PointerEvent('pointerover', {bubbles: true}));"
        " return (performance.now() - began) / all.length; })()"
    )
    assert chosen(tab) == [63]
    rows = tab.evaluate(
        "new Set([...document.querySelectorAll('#heads button')].map(e => e.offsetTop)).size"
    )
    assert rows == 12, "a row for each layer"
    assert each < 50, f"{each:.0f} ms for a token"
    assert tab.complaints == []


def test_pages_are_written_where_asked(page: Path, patterns: Patterns, tmp_path: Path) -> None:
    viewer = patterns.viewer("My <title>")
    assert "<title>My &lt;title&gt;</title>" in viewer.html
    assert viewer.html.count("</script>") == 2
    assert "http://" not in viewer.html
    assert "https://" not in viewer.html
    frame = viewer._repr_html_()
    assert "srcdoc" in frame
    assert "<script" not in frame
    assert "MB" in repr(viewer)
    with pytest.raises(ResultError, match="could not be written"):
        patterns.to_html(tmp_path / "absent" / "v.html")
