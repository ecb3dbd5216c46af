"""fangyan init and fangyan recipes, as a user meets them."""

import os
import pty
import random
import re
import subprocess
import sys

import pytest
from fangyan.recipe import RECIPES, load_recipe

NOUNS = ["giella", "beana", "boazu", "guolli", "goahti", "mánná", "áhčči", "eadni", "jávri", "skuvla"]
VERBS = ["boahtá", "manná", "lea", "lávii", "bargá", "oaidná", "borrá", "lohká", "orru"]


def treebank(seed, count=60):
    """Sentences that look like North Sami's in Universal Dependencies."""
    draw = random.Random(seed)
    blocks = []
    for _ in range(count):
        rows = [(draw.choice(["Son", "Mii", "Biret"]), "PRON"), (draw.choice(VERBS), "VERB")]
        rows += [(draw.choice(NOUNS), "NOUN"), (".", "PUNCT")]
        cells = (f"{i}\t{word}\t_\t{tag}\t_\t_\t0\troot\t_\t_\n" for i, (word, tag) in enumerate(rows, 1))
        blocks.append("".join(cells))
    return "\n".join(blocks) + "\n"


def texts(count=60):
    return "".join(f"我哋今日去飲茶呀{i}\n" for i in range(count))


def table(count=60):
    return "utterance,dialect\n" + "".join(f"佢話{i}唔去,{['gz', 'hk'][i % 2]}\n" for i in range(count))


@pytest.mark.slow
def test_from_a_treebank_to_a_tagger(cli):
    for seed, name in enumerate(("sme-ud-train.conllu", "sme-ud-dev.conllu")):
        (cli.folder / name).write_text(treebank(seed), encoding="utf-8")
    out, _ = cli("init", "--from", "sme-ud-train.conllu")
    assert "conllu, to learn a tag for every token; almost sure (97%), since\n" in out
    assert "sme-ud-dev.conllu lies beside it, and is taken as dev" in out
    commands = [line.split("fangyan ")[1] for line in out.splitlines() if line.startswith("  fangyan ")]
    assert commands[:2] == ["check recipe.yaml", "train recipe.yaml"]
    assert commands[2].startswith("predict runs/sme-ud '")
    assert "sme-ud: errors 0" in cli("check", "recipe.yaml")[0]
    cli("train", "recipe.yaml", "train.epochs=1", "model.size=tiny")
    assert "/" in cli("predict", "runs/sme-ud", "Biret manná skuvla .")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "options", "task"),
    [
        ("a.csv", table(), [], "sequence_classification"),
        ("a.txt", texts(), ["--task", "masked_lm"], "masked_lm"),
    ],
)
def test_recipes_of_other_tasks_pass_the_check(cli, electra, name, content, options, task):
    (cli.folder / name).write_text(content, encoding="utf-8")
    cli("init", "--from", name, *options, "--model", str(electra), "--name", "mine", "--output", "b.yaml")
    recipe = load_recipe(cli.folder / "b.yaml")
    assert (recipe.task.name, recipe.model.path) == (task, str(electra))
    assert "mine: errors 0" in cli("check", "b.yaml")[0]


def test_raw_text_is_learnt_as_the_model_learns(cli, electra):
    """A masked model's folder says what it is: nobody need say the task."""
    (cli.folder / "a.txt").write_text(texts(), encoding="utf-8")
    cli("init", "--train", "a.txt", "--model", "cantonese-electra")
    assert load_recipe(cli.folder / "recipe.yaml").task.name == "masked_lm"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--from: missing, expected a file to learn from: fangyan init --from train.conllu"),
        (["--from", "a.cvs", "--name", "x"], "a.cvs: no such file; did you mean a.csv?"),
        (["--from", "a.csv", "--output", "there"], "--output: there is there already, expected a new file"),
        (["--from", "latin.csv"], "latin.csv:2: byte 1 is not UTF-8"),
        (["--from", "a.csv", "--dev", "b.csv", "--model", "m"], "b.csv: no such file; did you mean a.csv?"),
        (["--from", "a.csv"], "--model: missing; sequence_classification begins with a pretrained model"),
        (
            ["--from", "a.csv", "--task", "masked_lm"],
            "--task: found masked_lm, but a.csv has what is for seq",
        ),
        (
            ["--from", "a.csv", "--task", "token_clasification"],
            "causal_lm, instruction; did you mean token_classification?",
        ),
    ],
)
def test_init_with_a_mistake(cli, arguments, sentence):
    english = "utterance,dialect\n" + "".join(f"no {i},{['a', 'b'][i % 2]}\n" for i in range(60))
    (cli.folder / "a.csv").write_text(english, encoding="utf-8")
    (cli.folder / "latin.csv").write_bytes("text,label\nü,b\n".encode("latin-1"))
    (cli.folder / "there").write_text("mine", encoding="utf-8")
    _, err = cli("init", *arguments, code=2)
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
    assert not (cli.folder / "recipe.yaml").exists()
    assert (cli.folder / "there").read_text(encoding="utf-8") == "mine"


def test_init_asks_in_a_terminal(tmp_path):
    """A file that is not there, the column, whether the file beside it is dev, the model, a name."""
    rows = treebank(0).replace("\tVERB\t_", "\tVERB\tV").replace("\tNOUN\t_", "\tNOUN\tN")
    rows = rows.replace("\tPRON\t_", "\tPRON\tP").replace("\tPUNCT\t_", "\tPUNCT\tC")
    for name in ("sme-ud-train.conllu", "sme-ud-dev.conllu"):
        (tmp_path / name).write_text(rows, encoding="utf-8")
    shown = in_terminal(tmp_path, ["init"], ["sme-train.conllu", "sme-ud-train.conllu", "2", "n", "", "sami"])
    for part in (
        "sme-train.conllu: no such file; did you mean sme-ud-train.conllu?",
        "Which column has the tags to learn?",
        "2  xpos: P, V, N, C",
        "Found sme-ud-dev.conllu (dev). Use it?",
        "Model (scratch): ",
        "Name of the run (sme-ud): ",
        "  fangyan predict runs/sami ",
    ):
        assert part in shown
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert (recipe.name, recipe.data.column, recipe.data.dev) == ("sami", "xpos", 0.2)


def in_terminal(folder, arguments, answers):
    """Return what the command shows in a terminal of its own, where somebody answers."""
    ours, its = pty.openpty()
    command = [sys.executable, "-m", "fangyan", *arguments]
    with subprocess.Popen(command, cwd=folder, stdin=its, stdout=its, stderr=its) as process:
        os.close(its)
        os.write(ours, "".join(f"{answer}\n" for answer in answers).encode())
        shown = b""
        while True:
            try:
                shown += os.read(ours, 65_536)
            except OSError:  # it has ended
                break
    os.close(ours)
    assert process.returncode == 0, shown.decode()
    return re.sub(r"\x1b\[[\d;]*m", "", shown.decode())


def test_recipes_are_listed_and_printed(cli):
    out, _ = cli("recipes")
    for path in RECIPES.glob("*.yaml"):
        assert f" {path.stem} " in out
    assert "token_classification by cantonese-electra on" in out
    assert "pydips" in out
    out, _ = cli("recipes", "cantonese-pos")
    assert out == (RECIPES / "cantonese-pos.yaml").read_text(encoding="utf-8")
    _, err = cli("recipes", "cantonese-poss", code=2)
    assert err.strip().endswith("did you mean cantonese-pos?")
