"""Commands on the model of a run: evaluate, predict, chat, export."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fangyan.cli import completion
from fangyan.cli.options import (
    AnswersOption,
    FormatOption,
    InputOption,
    JsonOption,
    MaxNewTokensOption,
    RunArgument,
    SourceOption,
    TemperatureOption,
)
from fangyan.cli.output import given, lines_of, predictions, user_lines, write_pieces
from fangyan.errors import UserError
from fangyan.terminal import Terminal, print_json, print_results, say, warn

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
    as_json: JsonOption = False,
) -> None:
    """Evaluate a run's model: a tagger's metrics are in percent."""
    from fangyan.inference.load import evaluate as measure

    reports: list[Report] = []
    metrics = measure(
        run,
        data,
        say=warn,
        on_report=reports.append,
        source=source,
        **({} if answers is None else {"answers": answers}),
    )
    if as_json:
        print_json({"run": str(run), "metrics": metrics, "reports": [each.as_json() for each in reports]})
        return
    table = Table("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name.replace("_", " "), f"{value:,.2f}")
    print_results(table, *(table for report in reports for table in report.tables("Scores")))


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
        write_pieces(annotate(run, input, data, probabilities, source), output, "predicting")
        return
    for option, value in (("--probabilities", probabilities), ("--format", format)):
        if value:
            raise UserError(
                f"{option}: is for --input with a CoNLL, JSON lines or CSV file, found plain text"
            )
    for name in text or ():
        if Path(name[:255]).is_file():
            warn(f"{name}: taken as a sentence; a file of this name is there, which --input {name} reads")
    # Who writes to standard input waits for an answer per line; a file is faster in larger pieces.
    texts = text or lines_of(input)
    typed = input == Path("-")
    pieces = predictions(run, texts, as_json, interactive=typed, options=options, source=source)
    write_pieces(pieces, output, "" if typed else "predicting")


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
    as_json: JsonOption = False,
) -> None:
    """Select the sentences that are most worth labelling, with what the model predicts, to correct."""
    from fangyan.selection.command import Selection

    if label and output is None:
        raise UserError("--label: needs --output, a file for what is labelled")
    if label and as_json:
        raise UserError("--json: is for sentences that are selected, expected no --label")

    selection = Selection.of(run, input, output, format, source)
    selection.check(resumes=label)
    if label:
        done, count = selection.label(number, strategy, seed, user_lines(), Terminal())
        say(f"{done} of {count} labelled in {output}")
        return
    found = selection.select(number, strategy, seed)
    if output is not None or not as_json:
        write_pieces([found.text], output)
    if as_json:
        print_json({"output": None if output is None else str(output), "selected": found.records})


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
    as_json: JsonOption = False,
) -> None:
    """Write a run's model to a folder: what plain transformers or PEFT load, or an ONNX graph."""
    if format is None:
        from fangyan.inference import load

        (load.merge if merge else load.export)(run, output)
        if as_json:
            print_json({"output": str(output), "format": "transformers", "merged": merge})
        else:
            say(f"the model is in {output}")
        return
    from fangyan.deployment.export import check_format, export_graph

    check_format(format)
    deployed = export_graph(run, output, format == "int8")
    if as_json:
        print_json({"output": str(output), "format": format, **asdict(deployed)})
        return
    head, *rows = deployed.rows()
    table = Table(head[0])
    for name in head[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    print_results(deployed.sentence(), table)
    say(f"the graph is in {output}")
