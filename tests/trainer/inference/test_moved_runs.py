"""Run folders that are moved, renamed, copied and repeated: what was trained is what is loaded."""

import shutil

import fangyan
import pytest
from fangyan.recipe import parse_recipe

pytestmark = pytest.mark.slow

SENTENCES = "我\tB-r\n食\tB-v\n飯\tB-n\n\n今\tB-t\n日\tI-t\n去\tB-v\n街\tB-n\n\n" * 6
TEXTS = ["我今日食飯", "街日飯我"]
LORA = {"name": "lora", "rank": 4}


def recipe(run, seed=0, adaptation=None, model=None):
    return parse_recipe(
        {
            "name": "moved",
            "run_dir": run,
            "seed": seed,
            "data": {"format": "conll", "tokens": "characters", "train": "x.conll", "dev": "x.conll"},
            "model": model or {"path": "cantonese-electra", "pretrained": False},
            "adaptation": adaptation or {"name": "full"},
            "optimizer": {"lr": 1e-2},
            "train": {"epochs": 2, "batch_tokens": 64, "log_every": 1},
        }
    )


def tags(run):
    return [prediction.tags for prediction in fangyan.load(run).predict(TEXTS)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.conll").write_text(SENTENCES, encoding="utf-8")
    return tmp_path


def files(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_adapter_finds_its_own_base_after_a_second_run_and_a_move(folder):
    """Random weights, so that another base would show: each run is adapted on a base of its own."""
    fangyan.train(recipe("X", seed=1, adaptation=LORA))
    first, metrics = tags("X"), fangyan.evaluate("X")
    for path, content in files(folder / "X").items():
        assert str(folder).encode() not in content, f"an absolute path in {path}"
    fangyan.train(recipe("X", seed=2, adaptation=LORA))
    assert tags("X.1") == first
    assert fangyan.evaluate("X.1") == metrics
    second = tags("X")
    (folder / "elsewhere" / "deeper").mkdir(parents=True)
    shutil.move("X", "elsewhere/deeper/Y")
    (folder / "x.conll").unlink()
    assert tags("elsewhere/deeper/Y") == second
    assert fangyan.evaluate("X.1") == metrics
    fangyan.export("X.1", "copied")
    fangyan.merge("X.1", "merged")
    shutil.rmtree("X.1")
    assert tags("copied") == tags("merged") == first


def test_adapter_on_a_folder_is_refused_when_the_folder_holds_other_weights():
    fangyan.train(recipe("base", seed=1))
    model = {"path": "base/model"}
    fangyan.train(recipe("runs/adapter", adaptation=LORA, model=model))
    first = tags("runs/adapter")
    shutil.move("runs/adapter", "runs/renamed")
    assert tags("runs/renamed") == first
    fangyan.export("runs/renamed", "far/away/copy")
    assert tags("far/away/copy") == first
    fangyan.train(recipe("base", seed=2))
    with pytest.raises(fangyan.UserError, match="other weights than the adapter was trained on"):
        fangyan.load("runs/renamed")
    shutil.rmtree("base")
    with pytest.raises(fangyan.UserError, match=r"runs/renamed/model: cannot be loaded: .*base/model"):
        fangyan.load("runs/renamed")


def test_resume_touches_no_other_run_and_no_finished_record(folder):
    fangyan.train(recipe("A", seed=1))
    fangyan.train(recipe("B", seed=2))
    before = files(folder)
    checkpoint = (folder / "A/checkpoints/last").resolve()
    for name in ("B", "new"):
        with pytest.raises(fangyan.UserError, match=r"a checkpoint of another run folder, expected one in"):
            fangyan.train(recipe(name, seed=1), resume=checkpoint)
    assert files(folder) == before
    fangyan.train(recipe("A", seed=1), resume="auto")
    for name in ("model/model.safetensors", "splits/dev.jsonl"):
        assert (folder / "A" / name).read_bytes() == before[folder / "A" / name]
    records = "A/metrics.jsonl"  # what the best model scores is written again
    assert sorted((folder / records).read_bytes().splitlines()) == sorted(
        before[folder / records].splitlines()
    )
