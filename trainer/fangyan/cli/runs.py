"""Commands on the model of a run: evaluate, predict, chat, export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fangyan.cli import completion
from fangyan.cli.options import (
    AnswersOption,
    FormatOption,
    InputOption,
    MaxNewTokensOption,
    RunArgument,
    SourceOption,
    TemperatureOption,
)
from fangyan.cli.output import given, lines_of, predictions, user_lines, write_pieces
from fangyan.errors import UserError
from fangyan.terminal import Terminal, printable

if TYPE_CHECKING:
    from fangyan.tasks.report import Report


def evaluate(
    run: Annotated[
        Path, typer.Argument(help="A run folder.", show_default=False, autocompletion=completion.runs)
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(help="A file of the run's format; may be repeated. By default the run's test split."),
    ] = None,
    source: SourceOption = None,
    answers: AnswersOption = None,
) -> None:
    """Evaluate a run's model: a tagger's metrics are in percent."""
    from fangyan.inference.load import evaluate as measure

    reports: list[Report] = []
    metrics = measure(
        run,
        data,
        say=lambda message: print(f"fangyan: {printable(message)}", file=sys.stderr),
        on_report=reports.append,
        source=source,
        **({} if answers is None else {"answers": answers}),
    )
    table = Table("metric", "value")
    for name, value in metrics.items():
        table.add_row(name.replace("_", " "), f"{value:.2f}")
    Terminal().print(table)
    for report in reports:
        for table in report.tables("Scores"):
            Terminal().print(table)


def predict(
    run: RunArgument,
    text: Annotated[list[str] | None, typer.Argument(help="Sentences.", show_default=False)] = None,
    input: InputOption = None,
    output: Annotated[
        Path | None,
        typer.Option(help="A file to write; by default standard output.", show_default=False),
    ] = None,
    format: FormatOption = None,
    source: SourceOption = None,
    probabilities: Annotated[
        int,
        typer.Option(
            min=0,
            help="How many of a token's most likely tags, or a text's classes, to write to --input's file.",
        ),
    ] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON lines: tokens and tags, or text and continuation.")
    ] = False,
    max_new_tokens: MaxNewTokensOption = None,
    temperature: TemperatureOption = None,
) -> None:
    """Tag, classify, answer or continue texts, a line each as they come in; or a file in its own format."""
    from fangyan.inference.annotate import annotate, format_of

    if bool(text) == (input is not None):
        raise UserError("predict needs either sentences, or --input with a file (- for standard input)")
    options = given(max_new_tokens=max_new_tokens, temperature=temperature)
    data = None if input is None or input == Path("-") else format_of(run, input, format, source)
    if data is not None and input is not None:
        for name in (*options, *(["json"] if as_json else [])):
            raise UserError(f"--{name.replace('_', '-')}: is for text, found a file of format {data.format}")
        write_pieces(annotate(run, input, data, probabilities, source), output)
        return
    for option, value in (("--probabilities", probabilities), ("--format", format)):
        if value:
            raise UserError(
                f"{option}: is for --input with a CoNLL, JSON lines or CSV file, found plain text"
            )
    # Who writes to standard input waits for an answer per line; a file is faster in larger pieces.
    texts = text or lines_of(input)
    typed = input == Path("-")
    write_pieces(predictions(run, texts, as_json, interactive=typed, options=options, source=source), output)


def select(
    run: RunArgument,
    input: Annotated[
        Path,
        typer.Option(
            help="Texts, one per line, or a file that predict --input reads; labels in it are not read.",
            show_default=False,
        ),
    ],
    number: Annotated[int, typer.Option(min=1, help="Most sentences to select.")] = 100,
    strategy: Annotated[
        str,
        typer.Option(
            help="entropy, margin, least_confidence: what the model is least sure of. badge, k_centre: what "
            "also differs from each other. random.",
            autocompletion=completion.strategies,
        ),
    ] = "badge",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of badge, k_centre and random.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            help="A new file, in the format of its ending: .conll, .conllu, .jsonl or .csv. By default "
            "standard output.",
            show_default=False,
        ),
    ] = None,
    label: Annotated[
        bool,
        typer.Option(
            "--label",
            help="Label them here, one by one. Each goes into --output when it is done, and the same command "
            "goes on.",
        ),
    ] = False,
    format: FormatOption = None,
    source: SourceOption = None,
) -> None:
    """Select the sentences that are most worth labelling, with what the model predicts, to correct."""
    from fangyan.selection.command import Selection

    if label and output is None:
        raise UserError("--label: needs --output, a file for what is labelled")

    def say(sentence: str) -> None:
        print(f"fangyan: {printable(sentence)}", file=sys.stderr)

    selection = Selection.of(run, input, output, format, source)
    selection.check(resumes=label)
    if label:
        done, count = selection.label(number, strategy, seed, user_lines(), Terminal(), say)
        say(f"{done} of {count} labelled in {output}")
        return
    write_pieces([selection.text(number, strategy, seed, say)], output)


def chat(
    run: RunArgument,
    max_new_tokens: MaxNewTokensOption = None,
    temperature: TemperatureOption = None,
) -> None:
    """Talk with a model of the task instruction: a line asks, and knows all before it.

    /reset forgets them, /quit ends.
    """
    from fangyan.inference.chat import chat as talk

    options = given(max_new_tokens=max_new_tokens, temperature=temperature)
    talk(run, user_lines(), lambda piece: write_pieces([piece], None), options)


def export(
    run: RunArgument,
    output: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge an adapter into its model, for plain transformers.")
    ] = False,
    format: Annotated[
        str | None,
        typer.Option(
            help="onnx: a graph, for machines without PyTorch, adapters merged. int8: the same in 8 bits, "
            "for CPUs. Both are compared with the run on its dev split.",
            show_default=False,
            autocompletion=completion.export_formats,
        ),
    ] = None,
) -> None:
    """Write a run's model to a folder: what plain transformers or PEFT load, or an ONNX graph."""
    if format is None:
        from fangyan.inference import load

        (load.merge if merge else load.export)(run, output)
        return
    from fangyan.deployment.export import check_format, export_graph

    check_format(format)
    deployed = export_graph(run, output, format == "int8")
    head, *rows = deployed.rows()
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    print(deployed.sentence())
    Terminal().print(table)
