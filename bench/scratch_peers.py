"""Taggers that start from nothing on small treebanks: fangyan, a CRF, spaCy and stanza, on the same splits.

UPOS on gold tokens. Each system trains with one thread and several seeds; the CRF has none. What can be
chosen is chosen on dev. A treebank without dev gives every tenth sentence of train to it. Seconds are of
processor time: of the whole command, and until a system's score on dev was first as high as spaCy's best.

    git clone https://github.com/UniversalDependencies/UD_North_Sami-Giella treebanks/UD_North_Sami-Giella
    git clone https://github.com/UniversalDependencies/UD_Uyghur-UDT treebanks/UD_Uyghur-UDT
    git clone https://github.com/UniversalDependencies/UD_Tamil-TTB treebanks/UD_Tamil-TTB
    pip install sklearn-crfsuite spacy stanza
    python bench/scratch_peers.py treebanks --systems fangyan crf spacy stanza --results scratch.jsonl
    python bench/scratch_peers.py treebanks --table --results scratch.jsonl

A result that is in the file is not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from fangyan_bench.rows import add_row, rows_of

Sentence = tuple[list[str], list[str]]
Splits = dict[str, list[Sentence]]
# "dev" and "test": accuracy; "seconds"; for some "curve": seconds and accuracy on dev, at each evaluation.
Result = dict[str, Any]

# Weights of the CRF's penalties, of which dev chooses.
_PENALTIES = [(c1, c2) for c1 in (0.0, 0.01, 0.05, 0.2) for c2 in (0.001, 0.01, 0.03, 0.1)]


def read(path: Path) -> Iterator[Sentence]:
    """Yield the words and UPOS tags of each sentence, without multi-word tokens and empty nodes."""
    words: list[str] = []
    tags: list[str] = []
    for line in [*path.read_text(encoding="utf-8").split("\n"), ""]:
        columns = line.split("\t")
        if columns[0].isdigit():
            words.append(columns[1])
            tags.append(columns[3])
        elif not line.strip() and words:
            yield words, tags
            words, tags = [], []


def load(folder: Path) -> Splits:
    """Return the splits of a treebank."""
    splits = {}
    for name in ("train", "dev", "test"):
        splits[name] = [
            sentence for path in sorted(folder.glob(f"*-ud-{name}.conllu")) for sentence in read(path)
        ]
    if not splits["dev"]:
        train = splits["train"]
        splits["dev"] = train[9::10]
        splits["train"] = [sentence for i, sentence in enumerate(train) if i % 10 != 9]
    return splits


def write(sentences: list[Sentence], path: Path) -> None:
    """Write sentences as CoNLL-U with nothing but words and UPOS tags."""
    with path.open("w", encoding="utf-8") as file:
        for words, tags in sentences:
            for i, (word, tag) in enumerate(zip(words, tags, strict=True), start=1):
                file.write(f"{i}\t{word}\t_\t{tag}\t_\t_\t{i - 1}\tdep\t_\t_\n")
            file.write("\n")


def accuracy(sentences: list[Sentence], predicted: list[list[str]]) -> float:
    """Return the percentage of words with the right tag."""
    pairs = [pair for (_, gold), found in zip(sentences, predicted, strict=True)
             for pair in zip(gold, found, strict=True)]  # fmt: skip
    return 100.0 * sum(gold == found for gold, found in pairs) / len(pairs)


def _shape(word: str) -> str:
    """Return a word's runs of capitals, other letters, digits and the rest."""
    shape = ""
    for character in word:
        if character.isupper():
            kind = "X"
        elif character.isdigit():
            kind = "d"
        else:
            kind = "x" if character.isalpha() else "-"
        if not shape.endswith(kind):
            shape += kind
    return shape


def _features(words: list[str]) -> list[dict[str, Any]]:
    """Return what the CRF sees of each word: its form, affixes and shape, and those of two on each side."""
    own = []
    for word in words:
        lower = word.lower()
        features = {"word": word, "lower": lower, "shape": _shape(word)}
        features |= {f"prefix{n}": lower[:n] for n in (1, 2, 3)}
        features |= {f"suffix{n}": lower[-n:] for n in (1, 2, 3, 4)}
        own.append(features)
    rows = []
    for i in range(len(words)):
        row: dict[str, Any] = {"bias": 1.0}
        for offset in range(-2, 3):
            if 0 <= i + offset < len(words):
                row |= {f"{offset}:{name}": value for name, value in own[i + offset].items()}
            else:
                row[f"{offset}:edge"] = True
        rows.append(row)
    return rows


def crf(splits: Splits, _seed: int, _folder: Path) -> Result:
    """Train sklearn-crfsuite's CRF; the seconds are those of the penalties that dev chooses."""
    import sklearn_crfsuite

    features = {name: [_features(words) for words, _ in rows] for name, rows in splits.items()}
    tags = [tags for _, tags in splits["train"]]
    best: Result = {"dev": -1.0}
    for c1, c2 in _PENALTIES:
        before = _cpu_seconds(resource.RUSAGE_SELF)
        model = sklearn_crfsuite.CRF(c1=c1, c2=c2, max_iterations=100, all_possible_transitions=True)
        model.fit(features["train"], tags)
        seconds = _cpu_seconds(resource.RUSAGE_SELF) - before
        dev = accuracy(splits["dev"], model.predict(features["dev"]))
        if dev > best["dev"]:
            test = accuracy(splits["test"], model.predict(features["test"]))
            best = {"dev": dev, "test": test, "seconds": seconds}
    return best


def spacy(splits: Splits, seed: int, folder: Path) -> Result:
    """Train spaCy's tagger with the settings of its own ``init config``."""
    import spacy as library
    from spacy.tokens import Doc, DocBin

    vocabulary = library.blank("xx").vocab
    for name, rows in splits.items():
        docs = [Doc(vocabulary, words=words, tags=tags) for words, tags in rows]
        DocBin(docs=docs).to_disk(folder / f"{name}.spacy")
    config = str(folder / "config.cfg")
    options = ["--lang", "xx", "--pipeline", "tagger", "--optimize", "efficiency"]
    _run("spacy", "init", "config", config, *options)
    paths = ["--paths.train", str(folder / "train.spacy"), "--paths.dev", str(folder / "dev.spacy")]
    seeds = ["--training.seed", str(seed), "--system.seed", str(seed)]
    seconds, lines = _run("spacy", "train", config, "--output", str(folder / "model"), *paths, *seeds)
    # Columns: epoch, step, two losses, accuracy of tags in percent, speed, score.
    curve = _curve(lines, r"\d+\s+\d+\s+\S+\s+\S+\s+(\S+)\s+\S+\s+\S+$")
    nlp = library.load(folder / "model" / "model-best")
    scores = {}
    for name in ("dev", "test"):
        docs = [Doc(nlp.vocab, words=words) for words, _ in splits[name]]
        scores[name] = accuracy(splits[name], [[token.tag_ for token in doc] for doc in nlp.pipe(docs)])
    return {**scores, "seconds": seconds, "curve": curve}


def stanza(splits: Splits, seed: int, folder: Path) -> Result:
    """Train stanza's tagger with its character LSTM and no pretrained vectors; 16 sentences in a batch.

    With its default of 250 sentences a step takes seconds on one core, and there are too few steps.
    """
    for name, rows in splits.items():
        write(rows, folder / f"{name}.conllu")
    base = ["--lang", "xx", "--shorthand", "xx_tb", "--no_pretrain", "--save_dir", str(folder)]
    base += ["--save_name", "tagger.pt", "--seed", str(seed), "--cpu"]
    data = ["--train_file", str(folder / "train.conllu"), "--eval_file", str(folder / "dev.conllu")]
    steps = ["--max_steps", "3000", "--batch_size", "16", "--augment_nopunct", "0.0"]
    output = ["--output_file", str(folder / "dev.out.conllu")]
    seconds, _ = _run("stanza.models.tagger", *base, "--mode", "train", *data, *steps, *output)
    scores = {}
    for name in ("dev", "test"):
        found = folder / f"{name}.out.conllu"
        files = ["--eval_file", str(folder / f"{name}.conllu"), "--output_file", str(found)]
        _run("stanza.models.tagger", *base, "--mode", "predict", *files)
        scores[name] = accuracy(splits[name], [tags for _, tags in read(found)])
    return {**scores, "seconds": seconds}


def fangyan(splits: Splits, seed: int, folder: Path, size: str = "small") -> Result:
    """Train ``model.path: scratch`` with the settings of the documentation."""
    import yaml

    for name, rows in splits.items():
        write(rows, folder / f"{name}.conllu")
    files = {name: str(folder / f"{name}.conllu") for name in splits}
    words = sum(len(words) for words, _ in splits["train"])
    characters = sum(len(word) + 1 for words, _ in splits["train"] for word in words)
    # 2,000 steps of 120 words, but no fewer than 12 and no more than 20 epochs.
    epochs = min(20, max(12, round(2000 * 120 / words)))
    recipe = {
        "name": "scratch",
        "run_dir": str(folder / "run"),
        "seed": seed,
        "data": {"format": "conllu", "column": "upos", **files},
        "model": {"path": "scratch", "size": size},
        "optimizer": {"lr": 3e-3 if size == "tiny" else 2e-3},
        "train": {"epochs": epochs, "batch_tokens": round(120 * characters / words), "log_every": 100},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    seconds, lines = _run("fangyan", "train", str(folder / "recipe.yaml"))
    curve = _curve(lines, r"epoch +\d+ +dev +token accuracy (\S+)")
    metrics = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    best = {r["split"]: r for r in map(json.loads, metrics) if str(r.get("split", "")).endswith("-best")}
    scores = {name: best[f"{name}-best"]["token_accuracy"] for name in ("dev", "test")}
    return {**scores, "seconds": seconds, "curve": curve}


SYSTEMS: dict[str, Callable[[Splits, int, Path], Result]] = {
    "fangyan": fangyan,
    "fangyan, tiny": partial(fangyan, size="tiny"),
    "fangyan, base": partial(fangyan, size="base"),
    "crf": crf,
    "spacy": spacy,
    "stanza": stanza,
}


def _cpu_seconds(whose: int) -> float:
    usage = resource.getrusage(whose)
    return usage.ru_utime + usage.ru_stime


def _run(module: str, *arguments: str) -> tuple[float, list[tuple[float, str]]]:
    """Run a module of Python with one thread.

    Returns:
        Its seconds of processor time, and each line that it printed with those it had taken until then.
    """
    before = _cpu_seconds(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", module, *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, env=environment, text=True, **streams) as run:
        process, output = psutil.Process(run.pid), run.stdout
        assert output is not None
        lines = [(sum(process.cpu_times()[:4]), line.strip()) for line in output]
        if run.wait():
            raise SystemExit("\n".join([" ".join(command), *(line for _, line in lines[-30:])]))
    return _cpu_seconds(resource.RUSAGE_CHILDREN) - before, lines


def _curve(lines: list[tuple[float, str]], pattern: str) -> list[tuple[float, float]]:
    """Return seconds and accuracy on dev where a line has it."""
    found = ((seconds, re.match(pattern, line)) for seconds, line in lines)
    return [(round(seconds, 2), float(match[1])) for seconds, match in found if match]


def measure(treebanks: Path, systems: list[str], seeds: int, results: Path) -> None:
    """Append what is not measured yet to a file of results, one line each."""
    known = {(r["treebank"], r["system"], r["seed"]) for r in rows_of(results)}
    for folder in sorted(path for path in treebanks.iterdir() if path.is_dir()):
        splits = load(folder)
        for system in systems:
            for seed in range(1 if system == "crf" else seeds):
                if (folder.name, system, seed) in known:
                    continue
                with tempfile.TemporaryDirectory() as temporary:
                    found = SYSTEMS[system](splits, seed, Path(temporary))
                row = {"treebank": folder.name, "system": system, "seed": seed, **found}
                add_row(results, row)


def table(results: Path) -> Table:
    """Return the median of the seeds, with the lowest and highest, and seconds of processor time."""
    found: dict[tuple[str, str], list[Result]] = {}
    for row in rows_of(results):
        found.setdefault((row["system"], row["treebank"]), []).append(row)
    treebanks = sorted({treebank for _, treebank in found})
    shown = Table("system", *treebanks)
    goals = [found.get(("spacy", treebank), []) for treebank in treebanks]
    for system in dict.fromkeys(system for system, _ in found):
        cells = [
            _cell(found.get((system, treebank), []), goal)
            for treebank, goal in zip(treebanks, goals, strict=True)
        ]
        shown.add_row(system, *cells)
    return shown


def _cell(rows: list[Result], goal: list[Result]) -> str:
    """Return a system's scores and seconds on a treebank, whose goal is the best of spaCy on dev."""
    if not rows:
        return "–"
    scores = [row["test"] for row in rows]
    cell = f"{statistics.median(scores):.2f}"
    if len(scores) > 1:
        cell += f" [{min(scores):.2f}, {max(scores):.2f}]"
    cell += f", {statistics.median(row['seconds'] for row in rows):.0f} s"
    if goal and "curve" in rows[0]:
        wanted = statistics.median(row["dev"] for row in goal)
        times = [next((s for s, score in row["curve"] if score >= wanted - 0.005), math.inf) for row in rows]
        median = statistics.median(times)
        cell += f" ({median:.0f} s)" if math.isfinite(median) else " (never)"
    return cell


def main() -> None:
    """Measure, or show what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("treebanks", type=Path, help="a folder with a folder for each treebank")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=["fangyan"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("scratch.jsonl"))
    parser.add_argument("--table", action="store_true", help="show the results, measure nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        measure(arguments.treebanks, arguments.systems, arguments.seeds, arguments.results)
    Console().print(table(arguments.results))


if __name__ == "__main__":
    main()
