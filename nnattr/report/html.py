"""HTML pages that open anywhere: one file, no network, readable on a phone, in print, in a browser.

Small functions that each return a piece of HTML. Arguments are plain text and are escaped, except
where they are called ``html``: those are pieces made here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from string import Template

import plotly.graph_objects as go

STYLE = """
:root { color-scheme: light; --ink: #1f2328; --soft: #57606a; --line: #d8dee4; --blue: #2166ac; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: clamp(1.6rem, 4.5vw, 2.3rem); line-height: 1.2; margin: 0 0 12px; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 0 0 8px; }
h3 { font-size: 1rem; margin: 0 0 4px; }
pre + h3 { margin-top: 28px; }
p { max-width: 46em; margin: 0 0 14px; }
.lead { font-size: 1.08rem; color: var(--soft); }
section { margin-top: 40px; padding-top: 28px; border-top: 1px solid var(--line); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 28px 0 0; }
/* in the source the name comes before its value, on the page after it */
.facts div { display: flex; flex-direction: column-reverse; justify-content: flex-end;
  border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; }
.facts dt { color: var(--soft); font-size: .85rem; line-height: 1.35; }
.facts dd { margin: 0 0 2px; font-size: 1.5rem; font-weight: 600; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.side { display: grid; grid-template-columns: minmax(0, 1fr); gap: 24px; align-items: start; }
@media (min-width: 860px) { .side { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
figure { margin: 12px 0 20px; min-width: 0; }
figcaption { color: var(--soft); font-size: .9rem; max-width: 46em; }
.narrow { max-width: 560px; }
.scroll { overflow-x: auto; margin: 6px 0 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 20px 6px 0; border-bottom: 1px solid var(--line);
  vertical-align: baseline; }
th { font-weight: 600; font-size: .9rem; }
td, th { white-space: nowrap; }
ol.pairs { list-style: none; padding: 0; margin: 12px 0 20px; display: grid; gap: 14px; }
ol.pairs li { border-left: 3px solid var(--line); padding-left: 14px; }
ol.pairs p { margin: 0 0 4px; max-width: none; }
.tag { color: var(--soft); font-size: .85rem; display: inline-block; min-width: 5.5em; }
mark { background: #fdf0c4; color: inherit; border-radius: 3px; padding: 0 2px; }
.soft { color: var(--soft); }
.next { margin: 14px 0 0; }
details { margin: 0 0 20px; }
summary { cursor: pointer; color: var(--blue); font-size: .95rem; }
.answer { color: var(--blue); font-weight: 600; white-space: nowrap; }
dl.made { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 4px 20px;
  margin: 0; }
dl.made dt { color: var(--soft); }
dl.made dd { margin: 0; overflow-wrap: anywhere; }
pre { background: #f6f8fa; border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px;
  overflow-x: auto; font: .88rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
@media (max-width: 480px) { main { padding: 24px 16px 48px; }
  table { font-size: .9rem; } th, td { padding-right: 12px; white-space: normal; }
  .facts { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
@media print { main { max-width: none; padding: 0; } body { font-size: 11pt; }
  section { margin-top: 20px; padding-top: 16px; } h2, h3 { break-after: avoid; }
  figure, table, li, pre { break-inside: avoid; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  /* what is folded away on a screen is there on paper */
  details::details-content { content-visibility: visible; block-size: auto; } }
"""

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
<script>$plotly</script>
</head>
<body>
<main>
<header>
<h1>$title</h1>
$lead
</header>
$body
</main>
</body>
</html>
""")


def document(title: str, lead_html: str, body_html: Iterable[str]) -> str:
    """A whole page, with plotly.js in it (once, about 5 MB)."""
    from plotly.offline import get_plotlyjs

    return PAGE.substitute(
        title=escape(title),
        style=STYLE,
        plotly=get_plotlyjs(),
        lead=lead_html,
        body="\n".join(body_html),
    )


def section(heading: str, *blocks_html: str) -> str:
    """A part of the page under its heading."""
    return f"<section>\n<h2>{escape(heading)}</h2>\n" + "\n".join(blocks_html) + "\n</section>"


def heading(text: str) -> str:
    """A heading inside a section."""
    return f"<h3>{escape(text)}</h3>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; ``kind`` is ``"lead"`` under the title, ``"soft"`` for side remarks."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def figure(picture: go.Figure, name: str, caption: str, heading: str = "", kind: str = "") -> str:
    """A plotly figure as wide as the page allows, with a caption.

    Args:
        picture: it keeps its height and gives up its width.
        name: an id, unique on the page.
        caption: what is seen.
        heading: a line above it, in place of the figure's own title.
        kind: ``"narrow"`` for a figure that should not fill the page.
    """
    flexible = go.Figure(picture).update_layout(width=None, autosize=True, dragmode=False)
    html = flexible.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        config={"displayModeBar": False, "responsive": True, "plotlyServerURL": ""},
    )
    above = f"<h3>{escape(heading)}</h3>" if heading else ""
    return (
        f'<figure class="{kind}">{above}{html}<figcaption>{escape(caption)}</figcaption></figure>'
    )


def side_by_side(*blocks_html: str) -> str:
    """Two blocks beside each other, or one under the other where the page is narrow."""
    return '<div class="side">' + "\n".join(blocks_html) + "</div>"


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table under its caption."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return (
        f'<figure><figcaption>{escape(caption)}</figcaption><div class="scroll"><table>'
        f"<thead>{line(header, 'th')}</thead><tbody>{body}</tbody></table></div></figure>"
    )


def facts(entries: Mapping[str, str]) -> str:
    """The few numbers that matter most, each over what it is."""
    items = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in entries.items()
    )
    return f'<dl class="facts">{"".join(items)}</dl>'


def definitions(entries: Mapping[str, str]) -> str:
    """Names and values, line by line."""
    items = (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in entries.items())
    return f'<dl class="made">{"".join(items)}</dl>'


def code(text: str) -> str:
    """A piece of code."""
    return f"<pre><code>{escape(text)}</code></pre>"


def folded(label: str, html: str) -> str:
    """A block that is closed until the reader opens it; in print it is open."""
    return f"<details><summary>{escape(label)}</summary>{html}</details>"


def pairs(entries: Iterable[Sequence[tuple[str, str, str]]]) -> str:
    """Prompt pairs, each a list of (which run, the prompt's HTML, its answer)."""
    items = (
        "".join(
            f'<p><span class="tag">{escape(run)}</span> {html} '
            f'<span class="answer">{escape(answer)}</span></p>'
            for run, html, answer in lines
        )
        for lines in entries
    )
    return '<ol class="pairs">' + "".join(f"<li>{item}</li>" for item in items) + "</ol>"


def marked(tokens: Sequence[str], others: Sequence[str]) -> str:
    """The text of ``tokens``, with those marked that differ from ``others``."""
    pieces = []
    for token, other in zip(tokens, others, strict=True):
        word = token.lstrip(" ")
        lead, shown = token[: len(token) - len(word)], escape(word)
        pieces.append(lead + (f"<mark>{shown}</mark>" if token != other else shown))
    return "".join(pieces)
