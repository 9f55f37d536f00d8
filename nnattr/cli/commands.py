"""The command line: ``nnattr demo | run | report | lens | dla | edges | doctor | models``.

Commands import what they need when they run, so that ``nnattr --help`` is quick. Every
`NnattrError` ends as one message on stderr and exit status 1, without a traceback (``nnattr --debug
...`` shows it); Ctrl-C ends with status 130.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer
from typer.core import TyperCommand, TyperGroup

from nnattr.errors import NnattrError, ResultError
from nnattr.progress import ProgressBar

EXAMPLE = """\
# One analysis for `nnattr run`. Only model and task are needed; the rest shows other choices, and
# what is left out is as the method has it.
model: teaching-llama            # a teaching model, a Hugging Face id, or a local folder
task:
  name: ioi                      # a generator of nnattr.tasks, with its arguments
  arguments: {n: 32, seed: 0}
  # or your own pairs instead of a name:
  # clean: ["When Mary and John went to the store, John gave a drink to"]
  # corrupted: ["When Mary and John went to the store, Mary gave a drink to"]
  # answers: [" Mary"]           # one token each, with its leading space
  # wrong_answers: [" John"]
  # or, for methods that read prompts, no task and instead:
  # prompts: ["When Mary and John went to the store, John gave a drink to"]
method: attribution_patching     # or activation_patching, exact and slower, or one of those below
metric: LogitDiff                # LogitDiff, LogProb, Prob, KL or Loss
site: z                          # z, q, k, v, pattern, neuron, attn_out, mlp_out, resid_pre, ...
positions: all                   # all, each, last, a number, a list, or a span such as S2
direction: denoising             # or noising
normalized: true
options: {}                      # the method's other arguments, such as {heads: [L1H0]}
backend: local                   # local, simulated, ndif, or the http(s) address of a server
output: scores.safetensors       # read it again with nnattr.load_result; or a table: scores.csv
top: 10

# The methods, with what they take besides model, task or prompts, and metric:
"""


class Commands(TyperGroup):
    """A command group: a known error becomes one message, and Ctrl-C ends without one."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except NnattrError as error:
            if ctx.params.get("debug"):
                raise
            typer.secho(f"Error: {error}", err=True, fg=typer.colors.RED)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(130) from error


class Working(TyperCommand):
    """A command that needs torch: a bar while it is imported, once its arguments are read."""

    def invoke(self, ctx: Any) -> Any:
        """Import what every such command needs, and run it."""
        with ProgressBar("import torch"):
            import nnattr.model.load  # noqa: F401
        return super().invoke(ctx)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Which parts of a language model cause a behaviour?",
)

BackendName = Annotated[
    str | None,
    typer.Option(
        help="local, simulated, ndif, or the http(s) address of a server; otherwise "
        "NNATTR_BACKEND, then your configuration file, then local."
    ),
]
ModelName = Annotated[str, typer.Argument(help="A teaching model, a Hugging Face id, or a folder.")]
Top = Annotated[int, typer.Option(help="How many to print.", min=1)]
ScoresFile = Annotated[
    Path | None, typer.Option(help="Keep the scores in this file, .safetensors or .csv.")
]


def _version(asked: bool) -> None:
    """Print the version and stop."""
    if asked:
        import nnattr

        typer.echo(nnattr.__version__)
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Which parts of a language model cause a behaviour?"""


@app.command(cls=Working)
def demo(
    model: Annotated[
        str, typer.Option(help="A teaching model, a Hugging Face id, or a local folder.")
    ] = "teaching-llama",
    real: Annotated[
        bool, typer.Option("--real", help="The real model, smollm2-135m; minutes, not seconds.")
    ] = False,
    n: Annotated[
        int | None,
        typer.Option(
            help="Number of prompt pairs.", min=1, show_default="32; of the real model 16"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Which names and places.")] = 0,
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("nnattr-demo.html"),
    backend: BackendName = None,
) -> None:
    """Find the heads that identify the indirect object, exactly and by estimate."""
    _check_output("output", output, "Page")
    from nnattr.cli.console import say
    from nnattr.cli.demo import beforehand, measure, summary
    from nnattr.cli.demo_page import demo_page
    from nnattr.model.load import load
    from nnattr.pretrained import NAME

    loaded = load(NAME if real else model, backend=backend)
    n = n or (16 if real else 32)
    if real:
        say(beforehand(loaded, n), "")
    found = measure(loaded, n, seed)
    say(*summary(found))
    _write(output, demo_page(found))


class Listing(Working):
    """A command whose help ends with the methods; they are asked for when help is."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, and the list behind it."""
        from nnattr.cli.run import methods

        super().format_help(ctx, formatter)
        formatter.write("Methods, with what they take besides task or prompts, and metric:\n\n")
        formatter.write("\n".join(f" {line}" for line in methods()))


@app.command(cls=Listing)
def run(
    config: Annotated[Path | None, typer.Argument(help="A YAML or JSON file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also write a page, as `report` does.")] = None,
    backend: BackendName = None,
    example: Annotated[bool, typer.Option("--example", help="Print a file to start from.")] = False,
) -> None:
    """Run the analysis that a file describes, and print what was found."""
    if example:
        from nnattr.cli.run import methods

        typer.echo(EXAMPLE, nl=False)
        for line in methods():
            typer.echo(f"# {line}".rstrip())
        return
    if config is None:
        raise NnattrError(
            "`nnattr run` needs a file; `nnattr run --example > ioi.yaml` writes one to start from."
        )
    from nnattr.config import RunConfig

    settings = RunConfig.from_file(config)
    if backend is not None:
        settings = settings.model_copy(update={"backend": backend})
    _check_output("output", settings.output, "ResultFile")
    _check_output("plot", plot, "Page")
    from nnattr.cli.console import say
    from nnattr.cli.run import analyse, described

    result = analyse(settings)
    say(*described(result, settings.top))
    if settings.output is not None:
        typer.echo(f"Wrote {result.save(settings.output)}")
    if plot is not None:
        from nnattr.report import Entry, report_page

        _write(plot, report_page([Entry(result, config.stem, settings)]))


@app.command(cls=Working)
def report(
    results: Annotated[list[Path], typer.Argument(help="Files that a result's save wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path(
        "report.html"
    ),
    model: Annotated[
        str | None, typer.Option(help="Load this model, and show where its strongest heads look.")
    ] = None,
    backend: BackendName = None,
) -> None:
    """Write saved results of any kind as one page: question, figures, reading, origin."""
    _check_output("output", output, "Page")
    from nnattr.model.load import load
    from nnattr.report import Entry, report_page
    from nnattr.results import load_result

    entries = [Entry(load_result(path), path.name) for path in results]
    loaded = None if model is None else load(model, backend=backend)
    _write(output, report_page(entries, loaded))


@app.command(cls=Working)
def lens(
    model: ModelName,
    prompt: Annotated[str, typer.Argument(help="The prompt to read.")],
    answer: Annotated[
        str | None, typer.Option(help="A word to follow, with its leading space: ' Mary'.")
    ] = None,
    top: Annotated[int, typer.Option(help="Tokens per layer.", min=1)] = 5,
    plot: Annotated[Path | None, typer.Option(help="Also write every position as a page.")] = None,
    backend: BackendName = None,
) -> None:
    """Show what the model would say after the prompt if it ended at each layer."""
    _check_output("plot", plot, "Page")
    from nnattr.methods.direct.logit_lens import logit_lens
    from nnattr.model.load import load

    where = "last" if plot is None else "each"
    loaded = load(model, backend=backend)
    found = logit_lens(loaded, prompt, top_k=top, positions=where, answers=answer)
    typer.echo(repr(found))
    if plot is not None:
        _write(plot, found.plot().to_html(include_plotlyjs=True))


@app.command(cls=Working)
def dla(
    model: ModelName,
    prompt: Annotated[str, typer.Argument(help="The prompt to take apart.")],
    answer: Annotated[str, typer.Argument(help="The right next word, with its leading space.")],
    wrong: Annotated[str, typer.Argument(help="The word that it competes with.")],
    unit: Annotated[
        str, typer.Option(help="component, head, neuron or accumulated.")
    ] = "component",
    top: Top = 10,
    output: ScoresFile = None,
    backend: BackendName = None,
) -> None:
    """Show which parts of the model write the answer rather than the wrong one."""
    _check_output("output", output, "ResultFile")
    from nnattr.methods.direct.direct_logit_attribution import direct_logit_attribution
    from nnattr.model.components import Unit
    from nnattr.model.load import load
    from nnattr.tasks import Task

    loaded = load(model, backend=backend)
    task = Task.from_prompts([prompt], [answer], [wrong], tokenizer=loaded.tokenizer)
    scores = direct_logit_attribution(loaded, task, unit=cast(Unit, unit))
    whole = scores.baselines.sel(run="clean").item()
    typer.echo(f"{answer!r} against {wrong!r}: a logit difference of {whole:+.4f}\n")
    typer.echo(repr(scores.top(top)))
    if output is not None:
        typer.echo(f"Wrote {scores.save(output)}")


@app.command(cls=Working)
def edges(
    model: ModelName,
    clean: Annotated[str, typer.Argument(help="The prompt that has the answer.")],
    corrupted: Annotated[str, typer.Argument(help="The same with one thing changed.")],
    answer: Annotated[str, typer.Option(help="The right next word, with its leading space.")],
    wrong: Annotated[str, typer.Option(help="The right next word of the corrupted prompt.")],
    senders: Annotated[
        str, typer.Option(help="Parts that write: all, heads, mlps, or L3H2,M3,input.")
    ] = "all",
    receivers: Annotated[
        str,
        typer.Option(help="Parts that read: logits, all, heads, mlps, q, or L5H1.q,M5."),
    ] = "logits",
    top: Top = 10,
    output: ScoresFile = None,
    backend: BackendName = None,
) -> None:
    """Show which parts act on the logits, or on other parts, directly, and how much in all."""
    _check_output("output", output, "ResultFile")
    from nnattr.cli.console import say
    from nnattr.cli.edges import measure, parts, summary
    from nnattr.model.load import load
    from nnattr.tasks import Task

    ends = {"senders": parts("senders", senders), "receivers": parts("receivers", receivers)}
    loaded = load(model, backend=backend)
    task = Task.from_pairs([clean], [corrupted], [answer], [wrong], tokenizer=loaded.tokenizer)
    found = measure(loaded, task, top, **ends)
    say(*summary(found))
    if output is not None:
        typer.echo(f"Wrote {found.scores.save(output)}")


@app.command(cls=Working)
def doctor(
    model: Annotated[str, typer.Argument(help="A Hugging Face id or a local folder.")],
    backend: BackendName = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or auto.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the model's own code from the Hub.")
    ] = False,
) -> None:
    """Prove that a model's heads and residual stream are where nnattr reads them."""
    from nnattr.model.load import load
    from nnattr.model.verify import verify

    extra: dict[str, Any] = {"trust_remote_code": True} if trust_remote_code else {}
    proof = verify(load(model, backend=backend, device=device, dtype=dtype, **extra))
    typer.echo(str(proof))
    if not proof.passed:
        raise typer.Exit(1)


@app.command(cls=Working)
def models(
    backend: Annotated[
        str | None,
        typer.Option(help="List what a server has: ndif, or the http(s) address of one."),
    ] = None,
) -> None:
    """List the teaching models and the known families, or what a server has."""
    from nnattr.cli.console import say
    from nnattr.cli.models import here, on_server

    say(*(here() if backend is None else on_server(backend)))


def main() -> None:
    """Run the command line."""
    app(prog_name="nnattr")


def _check_output(name: str, given: str | Path | None, kind: Literal["Page", "ResultFile"]) -> None:
    """Refuse a bad output path before the work, not after it, in the words of a call."""
    if given is None:
        return
    from nnattr import arguments

    path = Path(arguments.of_type(given, getattr(arguments, kind), "nnattr", name))
    if path.is_dir():
        raise ResultError(f"{str(path)!r} is a folder; name a file in it.")
    if not path.parent.is_dir():
        raise ResultError(f"There is no folder {str(path.parent)!r} to write {path.name!r} into.")


def _write(path: Path, html: str) -> None:
    """Write a page and say so."""
    try:
        path.write_text(html, encoding="utf-8")
    except OSError as error:
        raise ResultError(f"{str(path)!r} could not be written: {error}") from error
    typer.echo(f"Wrote {path} ({path.stat().st_size / 1e6:.1f} MB, opens without a network)")
