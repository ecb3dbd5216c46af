"""Commands that ask what a run's model does, and whether another differs: compare, probe, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from fangyan.cli import completion
from fangyan.cli.options import JsonOption, SourceOption
from fangyan.errors import UserError
from fangyan.suggestions import did_you_mean
from fangyan.terminal import print_json, print_results, say, warn

if TYPE_CHECKING:
    from fangyan.analysis.bootstrap import By
    from fangyan.analysis.options import Part

RunFolder = Annotated[
    Path, typer.Argument(help="A run folder.", show_default=False, autocompletion=completion.runs)
]
DataOption = Annotated[
    list[str] | None,
    typer.Option(help="A file of the run's format; may be repeated. By default the run's test split."),
]
ByOption = Annotated[
    str,
    typer.Option(
        help="What is resampled: examples, or groups that splits keep together, such as conversations. "
        "auto: groups, if there are enough."
    ),
]
ResamplesOption = Annotated[int, typer.Option(min=100, max=1_000_000, help="Of the bootstrap.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of all that is drawn.")]
PartOption = Annotated[
    list[str] | None,
    typer.Option(
        help="robustness, groups, calibration, terms or saliency; may be repeated. By default the first "
        "three, and those that have something to read."
    ),
]
GroupByOption = Annotated[
    list[str] | None,
    typer.Option(
        help="A column of --data: a comment's key, an object's key, a table's column, speaker of "
        "transcripts; may be repeated."
    ),
]
MappingOption = Annotated[
    list[Path] | None,
    typer.Option(help="Two columns, what is written and how else, with a tab between; may be repeated."),
]
RateOption = Annotated[
    float, typer.Option(min=0.001, max=1.0, help="Share of the words with a slip of the keys.")
]
TermsOption = Annotated[
    Path | None,
    typer.Option(help="Pairs of terms with a tab between, below the names of both sides."),
]
SaliencyOption = Annotated[
    list[str] | None, typer.Option(help="A text, as predict takes it; may be repeated.")
]
StoreOption = Annotated[
    bool,
    typer.Option(
        "--store-temperature",
        help="Keep the temperature with the model: probabilities of predict are calibrated ever after.",
    ),
]


def compare(
    run: RunFolder,
    other: Annotated[
        Path, typer.Argument(help="Another.", show_default=False, autocompletion=completion.runs)
    ],
    data: DataOption = None,
    source: SourceOption = None,
    by: ByOption = "auto",
    resamples: ResamplesOption = 1000,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare two runs' models on the same examples: every metric's difference, its 95% interval and p."""
    from fangyan.analysis.compare import compare as measure

    found = measure(run, other, data, source, _by(by), resamples, seed, warn)
    if as_json:
        print_json(found.as_json())
        return
    print_results(found.table())
    for note in found.notes:
        warn(note)


def probe(
    run: RunFolder,
    data: DataOption = None,
    source: SourceOption = None,
    part: PartOption = None,
    group_by: GroupByOption = None,
    mapping: MappingOption = None,
    rate: RateOption = 0.1,
    terms: TermsOption = None,
    saliency: SaliencyOption = None,
    store_temperature: StoreOption = False,
    by: ByOption = "auto",
    resamples: ResamplesOption = 1000,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Probe a run's model: robustness, scores of groups, calibration, counterfactual terms, saliency.

    Tables, and RUN/probe with JSON and pictures of each.
    """
    from fangyan.analysis.options import Options
    from fangyan.analysis.probe import as_json as plain
    from fangyan.analysis.probe import probe as ask

    options = Options(
        *(data or (), source, _parts(part or ()), group_by or (), mapping or (), rate, terms),
        *(saliency or (), store_temperature, _by(by), resamples, seed),
    )
    found = ask(run, options, warn)
    if as_json:
        print_json({name: plain(report) for name, report in found.items()})
        return
    reports = [
        each for report in found.values() for each in (report if isinstance(report, list) else [report])
    ]
    print_results(*(table for report in reports for table in report.tables()))
    for note in dict.fromkeys(note for report in reports for note in report.notes):
        warn(note)
    if store_temperature and "calibration" in found:
        say(f"temperature {found['calibration'].temperature:.3f} is kept with the model")
    if found:
        say(f"JSON and pictures: {run / 'probe'}")


def report(
    run: Annotated[list[Path], typer.Argument(help="A run folder, or several.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(help="Of several runs: the file. By default comparison.html.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write RUN/report.html again: scores, curves, errors in context. Of several runs, a page that compares.

    Of a run whose predictions were not kept, the model runs again on its test split, or dev.
    """
    if len(run) == 1:
        if output is not None:
            raise UserError(
                f"--output {output}: is for several runs, found one, whose report is in its folder"
            )
        from fangyan.reporting import write_report
        from fangyan.reporting.predictions import predict_again

        predict_again(run[0], say)
        written = write_report(run[0])
    else:
        from fangyan.reporting.comparison import write_comparison

        written = write_comparison(run, output or Path("comparison.html"), warn)
    if as_json:
        print_json({"report": str(written)})
    else:
        print_results(str(written))


def _by(name: str) -> By:
    from fangyan.analysis.bootstrap import By

    if name not in get_args(By):
        hint = did_you_mean(name, get_args(By))
        raise UserError(f"--by: found {name!r}, expected one of {', '.join(get_args(By))}{hint}")
    return cast(By, name)


def _parts(names: Sequence[str]) -> list[Part]:
    from fangyan.analysis.options import PARTS, Part

    for name in names:
        if name not in PARTS:
            hint = did_you_mean(name, PARTS)
            raise UserError(f"--part: found {name!r}, expected one of {', '.join(PARTS)}{hint}")
    return [cast(Part, name) for name in names]
