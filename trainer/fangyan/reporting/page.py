"""The page: ``RUN/report.html``, and its plots as PNG beside it in ``RUN/report``."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fangyan.files import REPEAT, whole_file, writing
from fangyan.inference.model_card import metrics_rows
from fangyan.reporting import plots
from fangyan.reporting.collect import SPLITS, Known, collect
from fangyan.reporting.drawing import Picture, number
from fangyan.reporting.errors import MOST, Row, Said, rows
from fangyan.terminal import printable

if TYPE_CHECKING:
    from jinja2 import Environment

# In the head of each page: what may be overwritten.
GENERATOR = "fangyan report"
# Labels, and confused pairs, of a table.
_SHOWN, _PAIRS = 200, 15


def write_report(folder: str | Path) -> Path:
    """Write the report of a run, whether it has ended or not; return its path.

    No model is loaded: what :func:`fangyan.reporting.predictions.keep` has kept is shown.

    Args:
        folder: of the run.

    Raises:
        UserError: if it is no run folder, or naming the file in it that is damaged.
    """
    known = collect(Path(folder))
    pictures = _pictures(known)
    text = render("run.html.j2", **_content(known, pictures))
    beside = known.folder / "report"
    with writing(beside, REPEAT):
        beside.mkdir(exist_ok=True)
        for old in beside.glob("*.png"):
            old.unlink()
        for picture in pictures.values():
            (beside / f"{picture.name}.png").write_bytes(picture.png)
    path = known.folder / "report.html"
    write_page(path, text)
    return path


def write_page(path: Path, text: str) -> None:
    """Write a page; what of data is no text, half of a character, is written as its number."""
    with whole_file(path, REPEAT) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def render(template: str, **content: Any) -> str:
    """Return a page that needs nothing but itself, and may load nothing else."""
    from markupsafe import Markup

    script, style = _resource("report.js"), _resource("report.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _environment().get_template(template)
    return page.render(
        generator=GENERATOR,
        script=Markup(script),
        style=Markup(style),
        digest=digest,
        **content,
    )


@cache
def _resource(name: str) -> str:
    return (files("fangyan.reporting") / "templates" / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    return environment


def _pictures(known: Known) -> dict[str, Picture]:
    """Return all plots that the run has something for."""
    split = known.scored_split
    found: list[Picture | None] = [
        plots.curve("loss", "Loss of train", "loss", {"loss": known.series("train", "loss")}),
        plots.curve("lr", "Learning rate", "learning rate", {"learning rate": known.series("train", "lr")}),
        *plots.dev_curves(known),
        plots.class_bars(known.reports[split], split) if split in known.reports else None,
        plots.confusion_matrix(known, split),
        plots.reliability_diagram(known.calibrations[split], split) if split in known.calibrations else None,
        plots.curve(
            "speed", "Throughput", "tokens per second", {"tokens": known.series("speed", "tokens_per_second")}
        ),
        plots.curve("memory", "Memory", "GB in use", {"memory": known.series("speed", "memory_gb")}),
        plots.time_bars(known),
    ]
    return {picture.name: picture for picture in found if picture is not None}


def _content(known: Known, pictures: dict[str, Picture]) -> dict[str, Any]:
    split, facts = known.scored_split, known.facts
    errors, total = _errors(known)
    head, *scores = metrics_rows(known.floor, known.before, known.after) if known.after else [[]]
    return {
        "title": known.name,
        "known": known,
        "facts": facts,
        "pictures": pictures,
        "curves": [p for p in pictures.values() if p.name in ("loss", "lr") or p.name.startswith("dev")],
        "costs": [pictures[name] for name in ("speed", "memory", "time") if name in pictures],
        "split": split,
        "summary": _summary(known),
        "score_head": head,
        "scores": scores,
        "errors": [row.as_json() for row in errors],
        "total_errors": total,
        "splits": list(dict.fromkeys(row.split for row in errors)),
        "browser": browser(errors, known, ["predicted"]),
        "pairs": _pairs(errors, split),
        "labels": _labels(known),
        "language": known.data.language,
        "started": None if facts is None or not facts.command else shlex.join(facts.command),
        "again": _again(known),
        "number": number,
    }


def browser(found: Sequence[Row], known: Known, runs: Sequence[str]) -> dict[str, Any]:
    """Return what the page's script has to know beside the rows."""
    return {
        "language": known.data.language or "",
        "runs": list(runs),
        "what": "errors" if len(runs) == 1 else "places",
        "unit": "tokens" if known.task == "token_classification" else "characters",
        "tags": known.task != "extractive_qa" and not any(_is_number(row) for row in found[:1]),
    }


def _is_number(row: Row) -> bool:
    return len(row.gold) == 1 and row.gold[0].replace(".", "", 1).lstrip("-").isdigit() and "." in row.gold[0]


def _errors(known: Known) -> tuple[list[Row], int]:
    """Return the most confused errors of each split, and how many there are in all."""
    found: list[Row] = []
    total = 0
    for split in SPLITS:
        if split in known.predictions:
            said = [Said(p.gold, [p.predicted], p.probability) for p in known.predictions[split]]
            wrong = rows(split, known.examples[split], said, known.data.token_unit == "words")
            found += wrong[:MOST]
            total += len(wrong)
    return found, total


def _pairs(errors: Sequence[Row], split: str) -> list[tuple[str, str, int]]:
    """Return what is most often taken for what, for a table whose rows lead to their errors."""
    found = {
        (row.gold[0], row.predicted[0][0]): row.times
        for row in errors
        if row.split == split and row.times and len(row.predicted) == 1
    }
    return [(*pair, times) for pair, times in list(found.items())[:_PAIRS]]


def _labels(known: Known) -> list[list[str]]:
    """Return how often each label occurs in each split, the most frequent of train first."""
    counts = {} if known.facts is None else known.facts.labels
    train = counts.get("train", {})
    names = sorted({name for found in counts.values() for name in found}, key=lambda n: (-train.get(n, 0), n))
    return [[name, *(f"{found.get(name, 0):,}" for found in counts.values())] for name in names[:_SHOWN]]


def _summary(known: Known) -> str:
    """Return what came of the run in a sentence or two."""
    metric, split = known.metric, known.scored_split
    steps = max((r["step"] for r in known.of_kind("train")), default=0)
    if not known.after:
        begun = f"The run has not ended: {steps:,} steps are done." if steps else "The run has just begun."
        return f"{begun} `fangyan report` shows what there is, and more when it is run again."
    if metric is None:
        return f"The run has ended after {steps:,} steps; its scores before and after are below."
    sides = {"guess": known.floor, "before": known.before, "after": known.after}
    values = {when: found[split][metric] for when, found in sides.items() if metric in found.get(split, {})}
    name = metric.replace("_", " ")
    said = f"After {steps:,} steps, {name} on {split} is {number(values['after'])}"
    if "before" in values:
        said += f"; before training it was {number(values['before'])}"
    if "guess" in values:
        said += f", and a guess has {number(values['guess'])}"
    return f"{said}."


def _again(known: Known) -> str:
    """Return the command that repeats the run, into a folder of its own."""
    facts, folder = known.facts, known.folder
    launcher = "fangyan"
    if facts is not None and facts.ranks > 1:
        kind = "accelerators" if facts.device == "cpu" else "gpus"
        launcher = f"deepspeed --num_{kind} {facts.ranks} --module fangyan"
    recipe, again = shlex.quote(str(folder / "recipe.yaml")), shlex.quote(f"run_dir={folder}-again")
    return f"{launcher} train {recipe} {again}"
