"""This tree against a git ref: is anything of ours slower, beyond what this machine's noise explains?

The same cases run in turns in three processes: one of this tree, two of the ref. The two of the
ref differ by noise alone, and say how much of it there is. What looks slower is measured again in
new processes, longer, before it counts: two processes of the same code can differ for as long as
they live, by where their memory happens to lie.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fangyan_bench.harness.machine import device
from fangyan_bench.harness.registry import ops, shapes
from fangyan_bench.harness.statistics import median_interval
from fangyan_bench.harness.timing import TimingBudget, interleave
from fangyan_bench.harness.worker import RemoteTrial, Worker, WorkerError

ROOT = Path(__file__).parents[3]
CONFIDENCE = 0.99
MIN_TIME_CHANGE = 0.01  # less is of no interest, however sure
MIN_MEMORY_CHANGE, MEMORY_BYTES = 1.05, 1 << 20

# Threads that spin while they wait add noise: in a few runs there was about half as much without. It
# also slows what makes many short calls, so that comparisons between implementations do without.
QUIET = {"OMP_WAIT_POLICY": "PASSIVE"}

THIS, REF, AGAIN = "this tree", "the ref", "the ref again"


@dataclass(frozen=True)
class Case:
    """Something of ours that is timed: a implementation of an op, or a whole step."""

    name: str
    what: dict[str, str]
    pass_name: str


@dataclass(frozen=True)
class RegressionResult:
    """What came of a case.

    Attributes:
        ratio: this tree's time over the ref's; above 1 is slower.
        low, high: 99% interval of the ratio.
        noise: how far the ref was from itself, at the far end of the same interval.
        memory: this tree's peak memory over the ref's.
        unmeasured: why the ref cannot run the case, or None.
    """

    case: Case
    ratio: float = 1.0
    low: float = 1.0
    high: float = 1.0
    noise: float = 0.0
    memory: float = 1.0
    unmeasured: str | None = None

    @property
    def slower(self) -> bool:
        return self.low > 1 + max(self.noise, MIN_TIME_CHANGE)

    @property
    def larger(self) -> bool:
        return self.memory > MIN_MEMORY_CHANGE

    @property
    def worse(self) -> bool:
        return self.slower or self.larger

    def __str__(self) -> str:
        if self.unmeasured:
            return f"{self.case.name}: not compared: {self.unmeasured}"
        text = (
            f"{self.case.name}: {self.ratio:.2f}x the ref's time ({self.low:.2f}-{self.high:.2f}; "
            f"the ref against itself: within {self.noise:.1%}), {self.memory:.2f}x its memory"
        )
        return f"WORSE {text}" if self.worse else text


def cases(quick: bool, recipe: str) -> list[Case]:
    """Every implementation of ours at every shape, and a whole step."""
    found = []
    for op in ops().values():
        for shape in shapes(op, device(), quick):
            for implementation in op.implementations:
                if implementation.role == "ours" and implementation.missing(shape) is None:
                    what = {"op": op.name, "shape": str(shape), "implementation": implementation.name}
                    pass_name = op.passes[-1]
                    found.append(
                        Case(f"{op.name}, {shape}, {implementation.name}, {pass_name}", what, pass_name)
                    )
    step = {"step": "tagger", "implementation": "fangyan", "recipe": recipe}
    return [*found, Case("a tagger's whole step", step, "step")]


def compare(ref: str, chosen: Sequence[Case], timing_budget: TimingBudget) -> list[RegressionResult]:
    """Verdicts on the cases; those that look worse are measured twice."""
    with checked_out(ref) as tree:
        results = _measure(tree, chosen, timing_budget)
        suspects = [result.case for result in results if result.worse]
        longer = TimingBudget(
            2 * timing_budget.min_rounds, 3 * timing_budget.max_rounds, 3 * timing_budget.seconds
        )
        second = {result.case.name: result for result in _measure(tree, suspects, longer)}
    return [second.get(result.case.name, result) for result in results]


def summary(ref: str, results: Sequence[RegressionResult]) -> str:
    """The sentence that a comparison ends with."""
    measured = [result for result in results if not result.unmeasured]
    worse = [result for result in measured if result.worse]
    noise = max((result.noise for result in measured), default=0.0)
    explained = f"{ref} differs from itself by up to {noise:.1%} on this machine"
    left_out = f" {len(results) - len(measured)} not compared." if len(measured) < len(results) else ""
    count = f"{len(worse)} of {len(measured)} cases are" if worse else f"None of {len(measured)} cases is"
    return f"{count} worse than {ref} beyond the noise: {explained}.{left_out}"


def failed(results: Sequence[RegressionResult]) -> bool:
    """Whether something is worse, or nothing could be compared at all."""
    return any(result.worse for result in results) or all(result.unmeasured for result in results)


def check_ref(ref: str) -> None:
    """Raises ValueError if git knows no such ref."""
    command = ["git", "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}"]
    if subprocess.run(command, cwd=ROOT, capture_output=True).returncode:
        raise ValueError(f"--compare {ref}: git knows no such ref, expected a commit, branch or tag")


@contextmanager
def checked_out(ref: str) -> Iterator[Path]:
    """The ref in a worktree of its own, with its extension built.

    Raises:
        ValueError: if git knows no such ref.
    """
    check_ref(ref)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder).resolve() / "tree"
        _git("worktree", "add", "--detach", str(tree), ref)
        try:
            _build(tree, ref)
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _build(tree: Path, ref: str) -> None:
    """The extension in its place; this tree's own serves where its sources are the same.

    Raises:
        RuntimeError: if this tree's extension is older than its sources, or the ref's does not build.
    """
    sources = [ROOT / "setup.py", *(ROOT / "csrc").iterdir()]
    newest = max(source.stat().st_mtime for source in sources)
    same = subprocess.run(["git", "diff", "--quiet", ref, "--", "csrc", "setup.py"], cwd=ROOT).returncode == 0
    built = list((ROOT / "kernels" / "fangyan_kernels").glob("_C*.so"))
    if not built or built[0].stat().st_mtime < newest:
        raise RuntimeError("this tree's extension is older than csrc/: python setup.py build_ext --inplace")
    if same:
        shutil.copy(built[0], tree / "kernels" / "fangyan_kernels")
        return
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{ref}: its extension does not build: {done.stderr[-2000:]}")


def _measure(tree: Path, chosen: Sequence[Case], timing_budget: TimingBudget) -> list[RegressionResult]:
    if not chosen:
        return []
    with ExitStack() as stack:
        trees = {THIS: ROOT, REF: tree, AGAIN: tree}
        workers = {name: stack.enter_context(Worker(path, QUIET)) for name, path in trees.items()}
        for worker in workers.values():
            worker.ready()
        return [_compare_case(case, workers, timing_budget) for case in chosen]


def _compare_case(case: Case, workers: dict[str, Worker], timing_budget: TimingBudget) -> RegressionResult:
    # This tree's failure is ours to know of; the ref's may be that the case is new.
    trials = {THIS: RemoteTrial(workers[THIS], **case.what)}
    try:
        trials |= {name: RemoteTrial(workers[name], **case.what) for name in (REF, AGAIN)}
    except WorkerError as error:
        trials[THIS].close()
        return RegressionResult(case, unmeasured=str(error))
    times = interleave(trials, case.pass_name, timing_budget)
    change = [this / ref for this, ref in zip(times[THIS], times[REF], strict=True)]
    null = [again / ref for again, ref in zip(times[AGAIN], times[REF], strict=True)]
    low, high = median_interval(change, CONFIDENCE)
    null_low, null_high = median_interval(null, CONFIDENCE)
    own, *refs = (trials[name].peak_memory() for name in (THIS, REF, AGAIN))
    for trial in trials.values():
        trial.close()
    return RegressionResult(
        case,
        ratio=statistics.median(change),
        low=low,
        high=high,
        noise=max(null_high - 1, 1 - null_low, 0.0),
        memory=own / max(refs) if own - max(refs) > MEMORY_BYTES else 1.0,
    )


def _git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True)
