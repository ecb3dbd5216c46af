"""This tree against a git ref: is anything of ours slower or larger, beyond what noise explains?

The same cases run in turns in three processes: one of this tree, two of the ref. The two of the ref differ by
noise alone, and so measure it, for time and for memory. What looks worse is measured again, longer and in new
processes, its memory in five of them per tree, before it counts: two processes of the same code can differ
for as long as they live, by where their memory happens to lie.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fangyan_bench.harness.machine import ROOT, device
from fangyan_bench.harness.stats import median_interval
from fangyan_bench.harness.steps import StepSpec
from fangyan_bench.harness.timing import TimingBudget, interleave
from fangyan_bench.harness.worker import RemoteTrial, Worker, WorkerError
from fangyan_bench.registry import ops

CONFIDENCE = 0.99
MIN_TIME_CHANGE = 0.01  # a smaller change does not matter, however certain
MIN_MEMORY_CHANGE, MIN_MEMORY_BYTES = 0.05, 1 << 20
MEMORY_ROUNDS = 5  # of a suspect, each in a process of its own per tree

# Threads that spin while they wait add noise: in a few runs there was about half as much without. It also
# slows what makes many short calls, so that comparisons between implementations do without it.
QUIET = {"OMP_WAIT_POLICY": "PASSIVE"}

THIS, REF, AGAIN = "this tree", "the ref", "the ref again"
Rounds = Mapping[str, Sequence[float]]  # by process


@dataclass(frozen=True)
class Case:
    """One implementation of ours: of an op at a shape, or a whole step.

    Attributes:
        name: as messages show it.
        what: what a worker opens.
        pass_name: which pass is timed.
    """

    name: str
    what: dict[str, Any]
    pass_name: str

    @property
    def is_step(self) -> bool:
        """Whether it is a whole step, whose process holds all of its memory."""
        return "step" in self.what


@dataclass(frozen=True)
class Change:
    """A quantity of this tree over the ref's, above 1 for the worse.

    Attributes:
        median: median of the rounds' ratios.
        low, high: 99% interval of the median.
        noise: how far the ref was from itself, at the far end of the same interval.
    """

    median: float = 1.0
    low: float = 1.0
    high: float = 1.0
    noise: float = 0.0

    @classmethod
    def of(cls, rounds: Rounds) -> Change:
        """Compare rounds of this tree with the ref's, and the ref's two processes with each other."""
        change = [this / ref for this, ref in zip(rounds[THIS], rounds[REF], strict=True)]
        null = [again / ref for again, ref in zip(rounds[AGAIN], rounds[REF], strict=True)]
        low, high = median_interval(change, CONFIDENCE)
        null_low, null_high = median_interval(null, CONFIDENCE)
        return cls(statistics.median(change), low, high, max(null_high - 1, 1 - null_low, 0.0))

    def exceeds(self, least: float) -> bool:
        """Return whether the change is worse than the noise and than what does not matter."""
        return self.low > 1 + max(self.noise, least)

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.low:.2f}-{self.high:.2f}; the ref itself: within {self.noise:.1%})"


@dataclass(frozen=True)
class RegressionResult:
    """What came of a case.

    Attributes:
        case: what was measured.
        time: seconds of a call.
        memory: peak bytes.
        more_bytes: median of this tree's peak memory less the ref's.
        unmeasured: why the ref cannot run the case, or None.
    """

    case: Case
    time: Change = field(default_factory=Change)
    memory: Change = field(default_factory=Change)
    more_bytes: float = 0.0
    unmeasured: str | None = None

    @property
    def slower(self) -> bool:
        """Whether this tree takes longer, beyond the noise."""
        return self.time.exceeds(MIN_TIME_CHANGE)

    @property
    def larger(self) -> bool:
        """Whether this tree takes more memory, beyond the noise."""
        return self.memory.exceeds(MIN_MEMORY_CHANGE) and self.more_bytes > MIN_MEMORY_BYTES

    @property
    def worse(self) -> bool:
        """Whether this tree is slower or larger."""
        return self.slower or self.larger

    def __str__(self) -> str:
        if self.unmeasured:
            return f"{self.case.name}: not compared: {self.unmeasured}"
        text = f"{self.case.name}: time {self.time}, memory {self.memory} of the ref's"
        return f"WORSE {text}" if self.worse else text


def cases(quick: bool, step: StepSpec) -> list[Case]:
    """Return every implementation of ours at every shape, and a whole step."""
    selected = []
    for op in ops().values():
        for shape in op.shapes_to_time(device(), quick):
            for each in op.implementations:
                if each.role == "ours" and each.missing(shape) is None:
                    what: dict[str, Any] = {"op": op.name, "shape": str(shape), "implementation": each.name}
                    pass_name = op.passes[-1]
                    name = f"{op.name}, {shape}, {each.name}, {pass_name}"
                    selected.append(Case(name, what, pass_name))
    what = {"step": step.to_json(), "implementation": "fangyan"}
    return [*selected, Case("a tagger's whole step", what, "step")]


def compare(ref: str, selected: Sequence[Case], timing_budget: TimingBudget) -> list[RegressionResult]:
    """Compare this tree with the ref; cases that look worse are measured again before they count."""
    longer = TimingBudget(
        2 * timing_budget.min_rounds, 3 * timing_budget.max_rounds, 3 * timing_budget.seconds
    )
    with checked_out(ref) as tree:
        results = _measure(tree, selected, timing_budget, memory_rounds=1)
        suspects = [result.case for result in results if result.worse]
        again = _measure(tree, suspects, longer, MEMORY_ROUNDS)
    second = {result.case.name: result for result in again}
    return [second.get(result.case.name, result) for result in results]


def summary(ref: str, results: Sequence[RegressionResult]) -> str:
    """Return the sentence that a comparison ends with."""
    measured = [result for result in results if not result.unmeasured]
    worse = [result for result in measured if result.worse]
    noise = max((result.time.noise for result in measured), default=0.0)
    explained = f"{ref} differs from itself by up to {noise:.1%} on this machine"
    left_out = f" {len(results) - len(measured)} not compared." if len(measured) < len(results) else ""
    count = f"{len(worse)} of {len(measured)} cases are" if worse else f"None of {len(measured)} cases is"
    return f"{count} worse than {ref} beyond the noise: {explained}.{left_out}"


def failed(results: Sequence[RegressionResult]) -> bool:
    """Return whether something is worse, or nothing could be compared at all."""
    return any(result.worse for result in results) or all(result.unmeasured for result in results)


def check_ref(ref: str) -> None:
    """Raise ValueError if git knows no such ref."""
    command = ["git", "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}"]
    if subprocess.run(command, cwd=ROOT, capture_output=True).returncode:
        raise ValueError(f"--compare {ref}: git knows no such ref, expected a commit, branch or tag")


@contextmanager
def checked_out(ref: str) -> Iterator[Path]:
    """Check the ref out into a worktree of its own, with its extension built.

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
    """Put the extension in its place; this tree's own serves where its sources are the same.

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


def _measure(
    tree: Path, selected: Sequence[Case], timing_budget: TimingBudget, memory_rounds: int
) -> list[RegressionResult]:
    if not selected:
        return []
    trees = {THIS: ROOT, REF: tree, AGAIN: tree}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(path, QUIET)) for name, path in trees.items()}
        for worker in workers.values():
            worker.ready()
        return [_compare_case(case, trees, workers, timing_budget, memory_rounds) for case in selected]


def _compare_case(
    case: Case,
    trees: Mapping[str, Path],
    workers: Mapping[str, Worker],
    timing_budget: TimingBudget,
    memory_rounds: int,
) -> RegressionResult:
    # This tree's failure is ours to know of; the ref's may be that the case is new.
    trials = {THIS: RemoteTrial(workers[THIS], **case.what)}
    try:
        trials |= {name: RemoteTrial(workers[name], **case.what) for name in (REF, AGAIN)}
    except WorkerError as error:
        trials[THIS].close()
        return RegressionResult(case, unmeasured=str(error))
    times = interleave(trials, case.pass_name, timing_budget)
    if case.is_step and memory_rounds > 1:
        memory = _memory_of_new_steps(case, trees, memory_rounds)
    else:
        rounds = range(1 if case.is_step else memory_rounds)
        memory = {name: [_peak_memory(trial) for _ in rounds] for name, trial in trials.items()}
    for trial in trials.values():
        trial.close()
    more = statistics.median(memory[THIS]) - statistics.median([*memory[REF], *memory[AGAIN]])
    return RegressionResult(case, Change.of(times), Change.of(memory), more)


def _memory_of_new_steps(case: Case, trees: Mapping[str, Path], rounds: int) -> dict[str, list[float]]:
    """Measure a whole step's peak memory, every time in a new process: an old one keeps what it has freed."""
    memory: dict[str, list[float]] = {name: [] for name in trees}
    for _ in range(rounds):
        for name, tree in trees.items():
            with Worker(tree, QUIET) as worker:
                worker.ready()
                trial = RemoteTrial(worker, **case.what)
                trial.calibrate(case.pass_name)
                memory[name].append(_peak_memory(trial))
    return memory


def _peak_memory(trial: RemoteTrial) -> float:
    """Return a trial's bytes; less than what does not matter counts as that, so that ratios exist."""
    return float(max(MIN_MEMORY_BYTES, trial.peak_memory()))


def _git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True)
