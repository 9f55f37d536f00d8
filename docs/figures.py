"""The figures of the README and the documentation: ``python -m docs.figures [NAME ...]``.

Each function here is one picture, drawn from a run with a fixed seed on a teaching model, and the
overview on the real one; where that has not been fetched its picture is left as it is. `write` has
Chromium turn it into ``docs/figures/NAME.png``. They are committed, so that the site builds without
a model.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

import nnattr
from nnattr import Scores, pretrained
from nnattr.cli.demo import Demo, measure
from nnattr.plots import look

FOLDER = Path(__file__).parent / "figures"
MODEL = "teaching-llama"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SCALE = 1.5  # pixels of the file per pixel of the page
PAGE = """<!DOCTYPE html><meta charset="utf-8"><script>%s</script>
<div id="f"></div><pre id="o"></pre>
<script>const f = %s;
Plotly.newPlot("f", f.data, f.layout).then(() => Plotly.toImage("f", {format: "png", scale: %s,
  width: f.layout.width, height: f.layout.height})).then(url => {
  document.getElementById("o").textContent = url; });
</script>"""


@cache
def model() -> nnattr.Model:
    """The model that every figure is about."""
    return nnattr.load(MODEL)


@cache
def ioi() -> nnattr.Task:
    """Indirect-object identification, 32 pairs."""
    return nnattr.tasks.ioi(model().tokenizer, n=32, seed=0)


@cache
def demo() -> Demo:
    """Exact scores and the estimate of every head, and the residual stream by position."""
    return measure(model(), 32, 0)


@cache
def real() -> Demo:
    """The same of the real model, as ``nnattr demo --real`` measures it."""
    return measure(nnattr.load(pretrained.NAME), 16, 0)


def overview() -> go.Figure:
    """What nnattr answers, in one picture: which heads, how good the estimate is, and where."""
    found = real()
    parts = [found.exact, found.estimate, found.by_position]
    maps: list[Any] = [scores.plot(title="").data[0] for scores in parts]
    heads = max(abs(float(one.zmax)) for one in maps[:2])
    axes = [scores.plot(title="").layout for scores in parts]
    figure = make_subplots(
        rows=2,
        cols=2,
        specs=[[{}, {}], [{"colspan": 2}, None]],
        subplot_titles=[
            "<b>Which heads?</b>  activation patching, exact",
            f"attribution patching, the estimate (r = {found.agreement.pearson:.2f})",
            "<b>Where in the prompt?</b>  residual stream before each layer, position by position"
            " (S2: the giver, named again)",
        ],
        vertical_spacing=0.14,
        horizontal_spacing=0.12,
    )
    for trace, axis, (row, column) in zip(maps, axes, ((1, 1), (1, 2), (2, 1)), strict=True):
        limit = heads if row == 1 else float(trace.zmax)
        trace.update(zmin=-limit, zmax=limit, showscale=(row, column) != (1, 1), xgap=1, ygap=1)
        figure.add_trace(trace, row=row, col=column)
        low, high = next(figure.select_yaxes(row=row, col=column)).domain
        bar = {"title": {"text": "share of the behaviour", "side": "right"}, "y": (low + high) / 2}
        figure.data[-1].colorbar.update(**bar, len=high - low, lenmode="fraction", yanchor="middle")
        for side, update in (("xaxis", figure.update_xaxes), ("yaxis", figure.update_yaxes)):
            given = axis[side].to_plotly_json()
            keep = {"tickvals", "ticktext", "title", "autorange", "tickangle"}
            kept = {key: value for key, value in given.items() if key in keep}
            if len(kept["tickvals"]) > 20:  # every layer, where each has a few pixels
                kept |= {key: kept[key][::5] for key in ("tickvals", "ticktext")}
            update(row=row, col=column, showgrid=False, zeroline=False, **kept)
    clean, right = found.task.clean[0], found.task.answers[0][0]
    prompt = f"“{clean} …<b>{right}</b>”"
    figure.update_layout(
        template="none",
        font={"family": look.FONT, "size": 12, "color": look.INK},
        title={
            "text": "<b>Which parts of SmolLM2-135M-Instruct decide who receives?</b><br>"
            f"<span style='font-size:12px;color:{look.SOFT}'>{prompt}<br>"
            f"one activation at a time from the clean run into the corrupted one, {len(found.task)}"
            " pairs: 0 changes nothing, 1 brings the whole behaviour back<br>"
            "30 layers x 9 heads; weights of 4 bits (Q4_1), dequantized</span>",
            "x": 0.015,
            "y": 0.97,
            "yanchor": "top",
        },
        width=880,
        height=900,
        margin={"t": 135, "r": 20, "b": 100, "l": 60},
    )
    return figure.update_annotations(font_size=13)


def activation_patching() -> go.Figure:
    """The exact effect of every head."""
    return demo().exact.plot()


def residual_by_position() -> go.Figure:
    """Where the information is, layer by layer."""
    return demo().by_position.plot()


def attribution_patching() -> go.Figure:
    """Estimate against exact scores of the heads."""
    return nnattr.plots.agreement_scatter(demo().exact, demo().estimate)


def attribution_misleads() -> go.Figure:
    """The residual stream of early layers, where one step along the slope is not the way."""
    estimate = nnattr.attribution_patching(
        model(), _aligned(), nnattr.LogitDiff(), site="resid_pre", positions="each"
    )
    figure = nnattr.plots.agreement_scatter(demo().by_position, estimate)
    room = [-0.35, 1.35]  # for the labels
    return figure.update_xaxes(range=room).update_yaxes(range=room)


def ablation() -> go.Figure:
    """The loss on a repetition without each head: the three that see it come."""
    teaching = nnattr.load("teaching-gpt2")
    task = nnattr.tasks.repeated_tokens(teaching.tokenizer, n=24, length=12)
    return nnattr.ablate(teaching, task, nnattr.Loss(last=10)).plot()


def direct_logit_attribution() -> go.Figure:
    """What every attention and MLP layer writes toward the answer."""
    return nnattr.direct_logit_attribution(model(), ioi()).plot()


def direct_against_patching() -> go.Figure:
    """Heads that matter without writing the answer: direct shares beside effects."""
    direct = nnattr.direct_logit_attribution(model(), ioi(), unit="head")
    rows = [
        (demo().exact, "effect (activation patching)"),
        (_relative(direct), "direct share of the logit difference"),
    ]
    figure = go.Figure()
    for (scores, name), colour in zip(rows, (look.BLUE, "#b8b8b8"), strict=True):
        mean = scores.mean().values.stack(cell=("layer", "head"))
        labels = [f"L{layer}H{head}" for layer, head in mean["cell"].to_numpy()]
        figure.add_bar(x=labels, y=mean.to_numpy(), name=name, marker_color=colour)
    figure.update_layout(
        look.layout(
            760,
            360,
            "A head can matter without writing the answer",
            f"{MODEL}, {len(ioi())} pairs of IOI; both as a share of the whole",
        )
    )
    figure.update_yaxes(title="share", gridcolor=look.LINE, zerolinecolor=look.INK, automargin=True)
    return figure.update_layout(
        barmode="group",
        showlegend=True,
        legend={"orientation": "h", "y": 1, "x": 1, "xanchor": "right", "yanchor": "bottom"},
    )


def circuits() -> go.Figure:
    """Which heads' keys are wired to what which earlier heads write."""
    return nnattr.weights.composition(nnattr.load("teaching-gpt2"), "K").plot()


def logit_lens() -> go.Figure:
    """The likeliest next token at every layer and position."""
    lens = nnattr.logit_lens(model(), ioi().clean[0], positions="each", answers=ioi().answers[0][0])
    return lens.plot()


def comparing() -> go.Figure:
    """The divergence between the two runs of a pair, token by token."""
    pair = _aligned()[:1]
    found = nnattr.compare_runs(model(), pair.clean, pair.corrupted, positions="each")
    values = found.data["kl"].isel(example=0).to_numpy()
    tokens = [
        one if one == other else f"{one} |{other}"
        for one, other in zip(
            pair.clean_tokens.strings[0], pair.corrupted_tokens.strings[0], strict=True
        )
    ]
    figure = go.Figure(go.Bar(x=np.arange(len(values)), y=values, marker_color=look.BLUE))
    figure.update_layout(
        look.layout(
            760,
            400,
            "Where two prompts part ways",
            f"{MODEL}: KL of what follows each token of the corrupted prompt, from the clean one",
        )
    )
    figure.update_xaxes(tickvals=np.arange(len(values)), ticktext=tokens, tickangle=-60)
    figure.update_yaxes(title="KL in nats", gridcolor=look.LINE, automargin=True)
    return figure.update_xaxes(automargin=True)


def statistics() -> go.Figure:
    """The heads that eight pairs are enough to tell from noise."""
    few = nnattr.activation_patching(model(), ioi()[:8], nnattr.LogitDiff())
    kept = few.where(few.significant())
    return kept.plot(title="Heads that eight pairs tell from noise (q = 0.05)")


def attention() -> go.Figure:
    """Where the heads that matter look, on one prompt."""
    scores = nnattr.attribution_patching(model(), ioi(), nnattr.LogitDiff())
    return nnattr.attention_patterns(model(), ioi()[[0]], scores, k=2).plot()


def edges() -> go.Figure:
    """Which part reads what which part writes."""
    return nnattr.path_patching(model(), ioi(), nnattr.LogitDiff(), receivers="all").plot()


def kinds_of_heads() -> go.Figure:
    """Every head's scores as a previous-token, ..., induction head."""
    return nnattr.detect_heads(model(), n=10, length=25, seed=0).plot()


def repeated_loss() -> go.Figure:
    """The loss on random tokens and on the same again."""
    return nnattr.detect_heads(model(), n=10, length=25, seed=0).plot_loss()


def _airy(figure: go.Figure, room: int = 16) -> go.Figure:
    """The figure with some air above its title, which pages have around it and pictures not."""
    if figure.layout.title.y != 1:
        return figure
    height = figure.layout.height + room
    figure.update_layout(height=height, title_y=1 - room / height)
    return figure.update_layout(margin_t=figure.layout.margin.t + room)


def _aligned() -> nnattr.Task:
    """The pairs of one layout that the demo's positions are measured on."""
    from nnattr.cli.demo import same_layout

    return same_layout(model().tokenizer, 32, 0)


def _relative(direct: Scores) -> Scores:
    """Direct shares as a share of the whole logit difference."""
    from dataclasses import replace

    return replace(direct, scale=float(direct.baselines.sel(run="clean").mean()))


FIGURES: dict[str, Callable[[], go.Figure]] = {
    made.__name__: made
    for made in (
        overview,
        activation_patching,
        residual_by_position,
        attribution_patching,
        attribution_misleads,
        ablation,
        direct_logit_attribution,
        direct_against_patching,
        circuits,
        logit_lens,
        comparing,
        statistics,
        attention,
        edges,
        kinds_of_heads,
        repeated_loss,
    )
}


def write(name: str) -> Path:
    """Draw one figure and have the browser write it as a PNG."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(
            f"Figures are written by a browser; none of {', '.join(BROWSERS)} is here."
        )
    figure = json.loads(str(_airy(FIGURES[name]()).to_json()))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "figure.html"
        page.write_text(PAGE % (get_plotlyjs(), json.dumps(figure), SCALE), encoding="utf-8")
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu"]
        command += ["--virtual-time-budget=20000", "--dump-dom", page.as_uri()]
        dom = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    image = re.search(r'<pre id="o">data:image/png;base64,([^<]+)<', dom)
    if image is None:
        raise SystemExit(f"The browser drew nothing for {name}.")
    path = FOLDER / f"{name}.png"
    path.write_bytes(base64.b64decode(image[1]))
    return path


#: The figures that need the real model.
OF_THE_REAL = {"overview"}

if __name__ == "__main__":
    for wanted in sys.argv[1:] or FIGURES:
        if wanted in OF_THE_REAL and not pretrained.is_here():
            print(f"{wanted}: left as it is; {pretrained.how_to_get()}")
            continue
        written = write(wanted)
        print(f"{written}  {written.stat().st_size / 1e3:.0f} KB")
