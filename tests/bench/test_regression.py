"""The regression gate: what is worse is found, and noise is not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fangyan_bench.regression import AGAIN, REF, THIS, Case, Change, RegressionResult

ROOT = Path(__file__).parents[2]
KEPT = ("kernels", "trainer", "bench", "csrc", "setup.py", "pyproject.toml")
MIB = 1 << 20

# Twenty more products with the head's weight, and their results kept: the op takes several times its time and
# its memory.
LINE = "    logits_TC = F.linear("
PLANTED = f"    kept = [F.linear(input_TH.detach(), inputs.weight_CH.detach()) for _ in range(20)]\n{LINE}"

COMPARE = """
import json, sys
from fangyan_bench import regression
from fangyan_bench.harness.steps import StepSpec
from fangyan_bench.harness.timing import TimingBudget
selected = regression.cases(True, StepSpec("tagger", "cantonese-pos"))
selected = [case for case in selected if "tags" in case.name and "L85" in case.name]
selected = [case for case in selected if "reference" in case.name]
results = regression.compare(sys.argv[1], selected, TimingBudget(11, 21, 2.0))
print(json.dumps([[r.slower, r.larger, str(r)] for r in results]))
print(regression.summary(sys.argv[1], results))
"""


def result(this, ref, again, more_bytes=0.0):
    memory = Change.of({THIS: this, REF: ref, AGAIN: again})
    return RegressionResult(Case("case", {}, "call"), memory=memory, more_bytes=more_bytes)


def test_memory_is_larger_when_it_exceeds_the_noise():
    found = result([130, 131, 130, 132, 130], [100, 101, 100, 100, 101], [100, 100, 102, 100, 101], 30 * MIB)
    assert found.larger
    assert found.memory.noise < 0.03


def test_memory_is_not_larger_when_the_ref_varies_as_much():
    """Two levels, as an allocator has them: which of them a process gets is chance."""
    found = result([112, 112, 112, 100, 112], [100, 100, 112, 100, 100], [100, 112, 100, 112, 112], 12 * MIB)
    assert not found.larger
    assert found.memory.noise >= 0.12


def test_memory_is_not_larger_when_one_process_is_an_exception():
    found = result([100, 112, 100, 100, 112], [100] * 5, [100] * 5, 0.0)
    assert not found.larger


def test_memory_is_not_larger_when_the_difference_does_not_matter():
    assert not result([1.2] * 5, [1.0] * 5, [1.0] * 5, MIB // 2).larger
    assert not result([1.04] * 5, [1.0] * 5, [1.0] * 5, 40 * MIB).larger
    assert result([1.06] * 5, [1.0] * 5, [1.0] * 5, 60 * MIB).larger


def test_time_is_slower_when_it_exceeds_the_noise():
    def slower(this, again):
        time = Change.of({THIS: this, REF: [1.0] * len(this), AGAIN: again})
        return RegressionResult(Case("case", {}, "call"), time=time).slower

    assert slower([1.1, 1.11, 1.09] * 5, [1.0, 1.01, 0.99] * 5)
    assert not slower([1.1, 1.11, 1.09] * 5, [1.0, 1.15, 0.9] * 5)
    assert not slower([1.005] * 15, [1.0] * 15)


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
    return subprocess.run(
        [sys.executable, "-c", COMPARE, ref], cwd=tree / "bench", capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_compare_finds_a_planted_slowdown_and_nothing_else(repository):
    unchanged = compare(repository, "HEAD")
    assert unchanged.returncode == 0, unchanged.stderr
    results, sentence = unchanged.stdout.splitlines()
    assert [worse for *worse, _ in json.loads(results)] == [[False, False]], results
    assert sentence.startswith("None of 1 cases is worse than HEAD beyond the noise")

    reference = repository / "kernels" / "fangyan_kernels" / "linear_cross_entropy" / "reference.py"
    source = reference.read_text(encoding="utf-8")
    assert LINE in source
    reference.write_text(source.replace(LINE, PLANTED), encoding="utf-8")
    planted = compare(repository, "HEAD")
    assert planted.returncode == 0, planted.stderr
    results, sentence = planted.stdout.splitlines()
    assert [worse for *worse, _ in json.loads(results)] == [[True, True]], results
    assert sentence.startswith("1 of 1 cases are worse than HEAD beyond the noise")


@pytest.mark.slow
def test_compare_refuses_an_unknown_ref_in_one_sentence(repository):
    done = compare(repository, "no-such-ref")
    assert done.returncode != 0
    assert (
        done.stderr.splitlines()[-1]
        == "ValueError: --compare no-such-ref: git knows no such ref, expected a commit, branch or tag"
    )
