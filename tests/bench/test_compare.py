"""The regression gate, on a real git repository: a planted slowdown is caught, and no change passes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KEPT = ("kernels", "trainer", "bench", "csrc", "setup.py", "pyproject.toml")

# Five more products with the head's weight: the op takes over twice its time.
LINE = "    logits_TC = F.linear("
PLANTED = "    for _ in range(20):\n        F.linear(input_TH.detach(), weight_CH.detach())\n" + LINE

COMPARE = """
import json, sys
from fangyan_bench.harness import compare
from fangyan_bench.harness.timing import TimingBudget
chosen = [case for case in compare.cases(True, "") if "tags" in case.name and "L85" in case.name]
chosen = [case for case in chosen if "reference" in case.name]
verdicts = compare.compare(sys.argv[1], chosen, TimingBudget(11, 21, 2.0))
print(json.dumps([[v.case.name, v.worse, str(v)] for v in verdicts]))
print(compare.summary(sys.argv[1], verdicts))
"""


@pytest.fixture
def repository(tmp_path):
    tree = tmp_path / "repository"
    tree.mkdir()
    for name in KEPT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        else:
            shutil.copy2(source, tree)
    git(tree, "init", "--quiet")
    git(tree, "add", "--all")
    git(tree, "-c", "user.name=x", "-c", "user.email=x@x", "commit", "--quiet", "--message", "before")
    return tree


def git(tree, *arguments):
    subprocess.run(["git", *arguments], cwd=tree, check=True, capture_output=True)


def compare(tree, ref):
    done = subprocess.run(
        [sys.executable, "-c", COMPARE, ref], cwd=tree / "bench", capture_output=True, text=True
    )
    return done


@pytest.mark.timeout(300)
def test_a_planted_slowdown_fails_and_no_change_passes(repository):
    unchanged = compare(repository, "HEAD")
    assert unchanged.returncode == 0, unchanged.stderr
    results, sentence = unchanged.stdout.splitlines()
    assert [worse for _, worse, _ in json.loads(results)] == [False], results
    assert sentence.startswith("None of 1 cases is worse than HEAD beyond the noise")

    reference = repository / "kernels" / "fangyan_kernels" / "linear_cross_entropy" / "reference.py"
    source = reference.read_text()
    assert LINE in source
    reference.write_text(source.replace(LINE, PLANTED))
    slower = compare(repository, "HEAD")
    assert slower.returncode == 0, slower.stderr
    results, sentence = slower.stdout.splitlines()
    assert [worse for _, worse, _ in json.loads(results)] == [True], results
    assert sentence.startswith("1 of 1 cases are worse than HEAD beyond the noise")


def test_an_unknown_ref_is_one_sentence(repository):
    done = compare(repository, "no-such-ref")
    assert done.returncode != 0
    assert (
        done.stderr.splitlines()[-1]
        == "ValueError: --compare no-such-ref: git knows no such ref, expected a commit, branch or tag"
    )
