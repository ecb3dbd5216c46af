"""Compare what two versions of the trainer compute, bit for bit, before a refactoring lands.

    python bench/same_numbers.py BASE                          every small case
    python bench/same_numbers.py BASE tagger lora lm           some of them
    python bench/same_numbers.py BASE --full                   the committed recipes as they are
    python bench/same_numbers.py BASE --runs FOLDER --record   only the runs of BASE, kept for later
    python bench/same_numbers.py BASE --runs FOLDER            against runs recorded before

Each case of same_numbers.yaml is trained on the CPU by BASE, in a worktree of its own, and by this tree.
Losses, learning rates, evaluations, exported tensors and predictions have to be the same bits.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "tests" / "support")]
forked_command = import_module("forked_command")  # the tests' way to start ranks without slow imports

CORES = os.cpu_count() or 1
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "DS_ACCELERATOR": "cpu",
}

# What was renamed since BASE: how a setting of same_numbers.yaml begins -> how it begins there.
RENAMED: dict[str, str] = {}


@dataclass(frozen=True)
class Case:
    """One case of same_numbers.yaml, which describes the fields."""

    settings: dict[str, str]
    first: dict[str, str] | None = None
    ranks: int = 1
    resume: int | None = None
    recipe: str | None = None


def read_cases(full: bool) -> dict[str, Case]:
    """Return the small cases, or those of whole recipes."""
    content = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))

    def settings(text: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for word in text.split():
            name, equals, value = word.partition("=")
            found |= {name: value} if equals else settings(content["shared"][word])
        return found

    cases = {}
    for name, case in content["full" if full else "small"].items():
        fields = {"settings": case} if isinstance(case, str) else case
        words = {key: settings(fields[key]) for key in ("settings", "first") if key in fields}
        cases[name] = Case(**{**fields, **words})
    return cases


def write_data(folder: Path) -> None:
    """Write the files that cases train on, cut from the corpora inside pycantonese."""
    corpora = Path(find_spec("pycantonese").origin).parent / "data"  # type: ignore[union-attr, arg-type]
    sentences = json.loads((corpora / "common_voice" / "sents.json").read_text(encoding="utf-8"))
    texts = [sentence.replace(" ", "") for sentence in sentences[::59]]
    people = {"我": "B-PER", "你": "B-PER", "佢": "B-PER", "哋": "I-PER"}
    words = [[text[i : i + 2] for i in range(0, len(text), 2)] for text in texts]
    files = {
        "recipe.yaml": ["name: case"],
        "text.txt": texts,
        "few.txt": texts[:24],
        "long.txt": ["".join(texts[i : i + 16])[:200] for i in range(0, len(texts), 16)],
        "entities.conll": ["".join(f"{c}\t{people.get(c, 'O')}\n" for c in text[:12]) for text in texts],
        "words.jsonl": [json.dumps({"tokens": w, "tags": [f"t{ord(x[0]) % 5}" for x in w]}) for w in words],
    }
    for name, lines in files.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (folder / "corpus").mkdir()
    for name in ("FC-R003_v2.cha", "FC-R006_v2.cha", "FC-R009_v.cha"):
        shutil.copy(corpora / "hkcancor" / name, folder / "corpus")


def run_case(case: Case, tree: Path, folder: Path, server: Any) -> str | None:
    """Run a case's commands in its folder; return what went wrong, or None."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_data(folder)
    commands: list[tuple[dict[str, str], list[str], int]] = []
    if case.first is not None:
        commands.append((case.first | {"run_dir": "first"}, [], 1))
    commands.append((case.settings | {"run_dir": "run"}, [], case.ranks))
    if case.resume is not None:
        commands.append((commands[-1][0], ["--resume", f"run/checkpoints/step-{case.resume:06d}"], 1))
    packaged = [tree / place / f"{case.recipe}.yaml" for place in ("trainer/fangyan/recipes", "recipes")]
    recipe = next((path for path in packaged if path.is_file()), folder / "recipe.yaml")
    for settings, options, ranks in commands:
        overrides = [f"{name}={value}" for name, value in settings.items()]
        for new, old in RENAMED.items() if tree != ROOT else ():
            overrides = [re.sub(f"^{re.escape(new)}", old, override) for override in overrides]
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        environments = forked_command.of_ranks(ranks, port) if ranks > 1 else [{}]
        arguments = ["train", str(recipe), *overrides, *options]
        command = forked_command.ForkedCommand(server, folder, arguments, environments)
        output = "".join(command.communicate()).strip()
        if command.returncode:
            return output[-1500:]
    process = server.Process(target=predict, args=(tree, folder))
    process.start()
    process.join()
    return "predict fails" if process.exitcode else None


def predict(tree: Path, folder: Path) -> None:
    """Predict with the exported model, in a process of the tree that trained it."""
    import fangyan

    assert Path(fangyan.__file__).is_relative_to(tree), f"{fangyan.__file__} is not of {tree}"
    os.chdir(folder)
    texts = ["我哋聽日去睇戲", "佢話 呢度啲嘢好平 不如 一齊去買", "今日天氣好好," * 5, "一個人"]
    predictions = [str(prediction) for prediction in fangyan.load("run").predict(texts)]
    Path("predictions.json").write_text(
        json.dumps(dict(zip(texts, predictions, strict=True))), encoding="utf-8"
    )


Outcomes = Iterator[tuple[str, str | None]]


def run_cases(cases: dict[str, Case], tree: Path, folder: Path, full: bool) -> Outcomes:
    """Run cases by a tree, each in a folder of its own; yield each with what went wrong, or None."""
    os.environ["OMP_NUM_THREADS"] = str(CORES) if full else "1"  # sums depend on it
    roots = [str(tree / "kernels"), str(tree / "trainer")]
    sys.path[:0] = roots
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # of the server that processes are forked from
    server = forked_command.server()
    modules = (path.relative_to(roots[1]).with_suffix("") for path in tree.glob("trainer/fangyan/**/*.py"))
    server.set_forkserver_preload([".".join(path.parts) for path in modules if "__" not in path.name])
    with ThreadPoolExecutor(1 if full else CORES) as pool:
        errors = pool.map(lambda name: run_case(cases[name], tree, folder / name, server), cases)
        yield from zip(cases, errors, strict=True)
    del sys.path[: len(roots)]


def computed(folder: Path) -> dict[str, Any]:
    """Return everything that a run computed, by what it is."""
    found: dict[str, Any] = {}
    for line in (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["kind"] in ("speed", "time"):  # by a clock
            continue
        step = record.pop("step")
        what = " ".join(value for value in record.values() if isinstance(value, str))
        found |= {f"step {step}, {what}, {k}": repr(v) for k, v in record.items() if not isinstance(v, str)}
    for path in sorted((folder / "run").rglob("*.safetensors")):
        name = f"{path.parent.name}/{path.name}"
        found |= {f"{name}, {key}": tensor for key, tensor in load_file(path).items()}
    found |= json.loads((folder / "predictions.json").read_text(encoding="utf-8"))
    return found


def first_difference(base: dict[str, Any], new: dict[str, Any]) -> str | None:
    """Return one sentence, or None where all is identical."""
    for what in base | new:
        if what not in base or what not in new:
            return f"{what}: only in {'BASE' if what in base else 'this tree'}"
        old, now = base[what], new[what]
        if isinstance(old, torch.Tensor):
            if (old.shape, old.dtype) != (now.shape, now.dtype):
                return f"{what}: {old.dtype} {tuple(old.shape)} in BASE, {now.dtype} {tuple(now.shape)} here"
            if not torch.equal(old.reshape(-1).view(torch.uint8), now.reshape(-1).view(torch.uint8)):
                gap = (old.double() - now.double()).abs()
                return f"{what}: {gap.count_nonzero()} of {gap.numel()} elements, by up to {gap.max():.3g}"
        elif old != now:
            return f"{what}: {old} in BASE, {now} here"
    return None


def base_tree(base: str, stack: ExitStack) -> Path:
    """Return the tree of a commit, with its extension built."""
    from fangyan_bench.regression import checked_out  # not in the processes of other trees

    return Path(base).resolve() if Path(base).is_dir() else stack.enter_context(checked_out(base))


def main() -> None:
    """Run the cases of the command line and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("base", metavar="BASE", help="a commit, or the folder of a tree that is built")
    parser.add_argument("cases", metavar="CASE", nargs="*", help="names in same_numbers.yaml")
    parser.add_argument("--full", action="store_true", help="the committed recipes, with all threads")
    parser.add_argument("--runs", type=Path, help="keep BASE's runs in this folder, and use those in it")
    parser.add_argument("--record", action="store_true", help="only run BASE")
    options = parser.parse_intermixed_args()  # cases may follow an option
    cases = read_cases(options.full)
    if unknown := [name for name in options.cases if name not in cases]:
        parser.error(f"no case {unknown[0]!r}, expected some of {', '.join(cases)}")
    cases = {name: case for name, case in cases.items() if name in options.cases or not options.cases}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = options.runs.resolve() if options.runs else scratch / "of BASE"
        missing = {n: case for n, case in cases.items() if not (runs / n / "predictions.json").exists()}
        results: dict[str, str | None] = {}
        done = "recorded" if options.record else "identical"
        if missing:
            for name, error in run_cases(missing, base_tree(options.base, stack), runs, options.full):
                if error or options.record:
                    results[name] = error and f"fails in BASE: {error}"
                    print(f"{name}: {results[name] or done}", flush=True)
        new = {name: case for name, case in cases.items() if name not in results and not options.record}
        for name, error in run_cases(new, ROOT, scratch, options.full):
            failure = error and f"fails here: {error}"
            results[name] = failure or first_difference(computed(runs / name), computed(scratch / name))
            print(f"{name}: {results[name] or done}", flush=True)
    whole = sum(result is None for result in results.values())
    print(f"{whole} of {len(results)} cases are {done}")
    sys.exit(whole < len(results))


if __name__ == "__main__":
    main()
