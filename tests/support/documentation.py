"""The code blocks of a Markdown page: found, run, or at least checked."""

import importlib
import inspect
import io
import os
import re
import runpy
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
# Commands that only change the machine: there is nothing of ours to check in them.
FOREIGN = {"git", "pip", "cp", "source", "."}


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page, line: where its code begins.
        language: as the fence names it.
        text: the code.
        reason: why it is not run, or None: the comment ``<!-- not run: REASON -->`` on the line before.
    """

    page: Path
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def place(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self):
        """The words of each command line, continued lines joined, comments dropped."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]

    def file_name(self):
        """The name in a first line such as ``# ner.yaml``, or None."""
        match = re.match(r"# ([\w./-]+\.\w+)\n", self.text)
        return match and match[1]


def pages():
    return [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "kernels" / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    ]


def blocks(page):
    """All fenced blocks of a page, in order."""
    found, fence, reason = [], None, None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if fence is not None:
            if line == "```":
                found.append(Block(page, fence[0], fence[1], "\n".join(fence[2]) + "\n", reason))
                fence = reason = None
            else:
                fence[2].append(line)
        elif line.startswith("```"):
            fence = (number + 1, line[3:], [])
        else:
            match = NOT_RUN.fullmatch(line)
            reason = match[1] if match else None
    assert fence is None, f"{page}: an open block"
    return found


def run_python(block, namespace, folder):
    """Run a block, then each test function that it defines."""
    before = set(namespace)
    exec(compile(block.text, block.place, "exec"), namespace)
    for name in sorted(set(namespace) - before):
        if name.startswith("test_"):
            takes_folder = inspect.signature(namespace[name]).parameters
            namespace[name](*([folder] if takes_folder else []))


def run_in_fork(folder, environment, output, kind, content):
    """Run a command line or Python code as a process of its own would; the target of a forked process."""
    os.chdir(folder)
    os.environ.update(environment)
    with Path(output).open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", 0), encoding="utf-8", write_through=True)
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", 0), encoding="utf-8", write_through=True)
    if kind == "python":
        exec(compile(content, "block", "exec"), {"__name__": "__main__"})
    elif content[0] == "fangyan":
        sys.argv = content
        importlib.import_module("fangyan.cli").main()
    else:
        sys.argv = content[1:]
        runpy.run_path(str(ROOT / content[1]), run_name="__main__")


def check_command(words, place):
    """Check a command without running it: its files, options, recipe and fields exist."""
    while words and re.match(r"^\w+=", words[0]):  # a variable of the environment
        words = words[1:]
    name, *rest = words
    name = name.removeprefix(".venv/bin/")
    if name in ("deepspeed", "torchrun"):
        module = "--module" if name == "deepspeed" else "-m"
        check_command(rest[rest.index(module) + 1 :], place)
    elif name in ("srun", "mpirun"):
        check_command(rest[rest.index(".venv/bin/fangyan") :], place)
    elif name == "fangyan":
        _check_fangyan(rest, place)
    elif name == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for target in rest:
            assert re.search(rf"^{re.escape(target)}:", makefile, flags=re.M), f"{place}: no target {target}"
    elif name in ("python", "python3", "bash", "pytest") or name.startswith(".ci/"):
        paths = [word for word in (name, *rest) if re.match(r"^\.?\w[\w.-]*/", word)]
        for path in paths:
            assert (ROOT / path.partition("::")[0]).exists(), f"{place}: no {path}"
    else:
        assert name in FOREIGN, f"{place}: {name} is no known command"


def _check_fangyan(words, place):
    import typer
    from fangyan.cli import app
    from fangyan.training.staged_recipe import load_training

    name, *arguments = words
    commands = typer.main.get_command(app).commands
    assert name in commands, f"{place}: no command fangyan {name}"
    context = commands[name].make_context(name, list(arguments))
    if "recipe" in context.params and context.params["recipe"] is not None:
        load_training(context.params["recipe"], context.params["overrides"])
