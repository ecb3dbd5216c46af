"""Several runs of one recipe: what each is, what is kept, and what is summed up."""

import json
import shutil
import statistics

import pytest
from fangyan.recipe import load_recipe
from fangyan.training.repeats import summarize, variants


def test_variants_are_ordinary_recipes_of_their_own_folders():
    recipe = load_recipe("cantonese-pos", ["seed=3", "data.test=null", "run_dir=runs/x"])
    seeds = variants(recipe, 2, None)
    assert [(name, one.seed, str(one.folder)) for name, one in seeds.items()] == [
        ("seed-3", 3, "runs/x/seed-3"),
        ("seed-4", 4, "runs/x/seed-4"),
    ]
    both = variants(recipe, 2, 3)
    assert list(both)[:2] == ["seed-3-fold-1", "seed-3-fold-2"]
    assert [one.data.fold for one in both.values()] == ["1/3", "2/3", "3/3"] * 2


def test_summarize_is_mean_and_sample_deviation():
    scores = [80.0, 82.0, 87.0]
    summary = summarize({f"seed-{i}": {"test": {"f1": score}} for i, score in enumerate(scores)})
    assert summary.mean == {"test": {"f1": 83.0}}
    assert summary.std == {"test": {"f1": pytest.approx(statistics.stdev(scores))}}


@pytest.mark.slow
def test_train_with_seeds_keeps_what_is_finished(cli):
    arguments = (*cli.train_arguments("train.epochs=1"), "--seeds", "2")
    out, _ = cli(*arguments)
    assert "mean ± standard deviation of 2 runs" in out
    cli.train("train.epochs=1", "seed=1", run="alone")
    assert cli.losses("run/seed-1") == cli.losses("alone")
    assert cli.losses("run/seed-1") != cli.losses("run/seed-0")

    expected = json.loads((cli.folder / "run" / "summary.json").read_text(encoding="utf-8"))
    values = [run["dev"]["joint_f1"] for run in expected["runs"].values()]
    assert expected["mean"]["dev"]["joint_f1"] == pytest.approx(statistics.fmean(values))
    shutil.rmtree(cli.folder / "run" / "seed-1" / "model")  # as if it had been killed before its end
    with (cli.folder / "run" / "seed-0" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "st')
    before = (cli.folder / "run" / "seed-0" / "log.txt").stat().st_mtime_ns
    _, err = cli(*arguments, "--resume", "auto")
    assert "run seed-0 of cantonese-pos is finished, and kept" in err
    assert "resuming" in err
    assert (cli.folder / "run" / "seed-0" / "log.txt").stat().st_mtime_ns == before
    assert json.loads((cli.folder / "run" / "summary.json").read_text(encoding="utf-8")) == expected
    _, err = cli(*arguments, "optimizer.lr=1e-4", code=2)
    assert "the run has optimizer.lr=0.01, the recipe 0.0001" in err
    _, err = cli(*arguments, "--resume", "checkpoints/step-2", code=2)
    assert "--seeds and --folds resume by themselves" in err


@pytest.mark.slow
def test_train_with_folds_tests_on_every_sentence_once(cli):
    """Of a treebank as small as UD Livvi's, with a sentence that occurs three times."""
    cities = "港九深廣佛中東西南北沙大荃屯元青"
    text = "".join(f"我\tO\n住\tO\n{city}\tB-LOC\n\n" for city in [*cities, "港", "港", "九"])
    (cli.folder / "few.conll").write_text(text, encoding="utf-8")
    data = ("data.format=conll", "data.train=few.conll", "data.dev=0.2", "train.epochs=1")
    out, _ = cli(*cli.train_arguments(*data), "--folds", "3")
    assert "mean ± standard deviation of 3 runs" in out
    folds = []
    for fold in (1, 2, 3):
        lines = (cli.folder / f"run/fold-{fold}/splits/test.jsonl").read_text(encoding="utf-8").splitlines()
        folds.append([json.loads(line) for line in lines])
    assert sorted(len(fold) for fold in folds) == [6, 6, 7]
    assert len({example["source"] for fold in folds for example in fold}) == 19
    groups = [{example["group"] for example in fold} for fold in folds]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 16
