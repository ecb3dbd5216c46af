"""Train for long, or be killed often, and see what is left.

    python bench/soak.py kills --number 200 --folder /var/tmp/kills
    python bench/soak.py run --minutes 20 --folder /var/tmp/soak

``kills``: real ``fangyan train`` runs on a few sentences, killed at random moments (SIGKILL, one in four
SIGTERM) and resumed with ``--resume auto`` until they end; then every loss, every record and every byte of
the exported weights is compared with an undisturbed run's. ``run``: steps with checkpoints, evaluations and
restarts, while memory and open files are sampled; prints their slopes per process, by least squares, and what
they come to in 24 hours. Both print a Markdown table, and exit with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

SENTENCES = "我\tB-r\n食\tB-v\n飯\tB-n\n\n佢\tB-r\n飲\tB-v\n茶\tB-n\n\n"
# Every second step has a checkpoint, and dropout is on.
RECIPE = (
    *("cantonese-pos", "data.format=conll", "data.train=data.conll", "data.dev=data.conll", "data.test=null"),
    *("model.pretrained=false", "train.batch_tokens=24", "train.log_every=1", "train.keep_checkpoints=2"),
)


def command(folder: Path, run: str, *overrides: str) -> list[str]:
    """Return the command of a run."""
    fields = (*RECIPE, f"run_dir={folder / run}", *overrides)
    return [sys.executable, "-m", "fangyan", "train", *fields, "--resume", "auto"]


def start(folder: Path, run: str, *overrides: str) -> subprocess.Popen[str]:
    """Start a run; what it says goes to a file beside its folder."""
    with (folder / f"{run}.out").open("a", encoding="utf-8") as file:
        return subprocess.Popen(
            command(folder, run, *overrides), cwd=folder, stdout=file, stderr=file, text=True
        )


def result(folder: Path, run: str) -> tuple[str, bytes]:
    """Return a run's records, without those of its clock, and its exported weights."""
    lines = (folder / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [line for line in lines if json.loads(line)["kind"] not in ("speed", "time")]
    return "\n".join(metrics), (folder / run / "model" / "model.safetensors").read_bytes()


def kills(folder: Path, number: int, seed: int) -> int:
    """Kill runs until there were ``number`` kills; return how many runs ended in anything but the same."""
    overrides = ("train.epochs=3", "train.checkpoint_every=2")
    begin = time.monotonic()
    if start(folder, "whole", *overrides).wait() != 0:
        raise SystemExit((folder / "whole.out").read_text(encoding="utf-8"))
    duration = time.monotonic() - begin
    whole, draw = result(folder, "whole"), random.Random(seed)
    done = runs = differing = 0
    while done < number:
        name = f"run-{runs}"
        while True:
            process = start(folder, name, *overrides)
            try:
                code = process.wait(draw.uniform(0.2, 1.1) * duration)
                break
            except subprocess.TimeoutExpired:
                done += 1
                process.send_signal(signal.SIGKILL if draw.random() < 0.75 else signal.SIGTERM)
                process.wait()
        same = code == 0 and result(folder, name) == whole
        runs, differing = runs + 1, differing + (not same)
        print(
            f"{name}: {'the same' if same else f'DIFFERS (exit code {code})'} after {done} kills so far",
            flush=True,
        )
    print("\n| kills | runs | same losses, records and weights |\n|---:|---:|---:|")
    print(f"| {done} | {runs} | {runs - differing} |")
    return differing


@dataclass
class Samples:
    """What was seen of one process: seconds since its start, bytes of memory, open files, threads."""

    seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)
    threads: list[float] = field(default_factory=list)

    def take(self, process: psutil.Process, seconds: float) -> None:
        """Add a sample."""
        with process.oneshot():
            values = process.memory_info().rss, process.num_fds(), process.num_threads()
        for kept, value in zip((self.memory, self.files, self.threads), values, strict=True):
            kept.append(float(value))
        self.seconds.append(seconds)

    def per_day(self, values: list[float]) -> float:
        """Return the slope of values per 24 hours, without the first fifth, in which a run warms up."""
        first = len(values) // 5
        return statistics.linear_regression(self.seconds[first:], values[first:]).slope * 86400


def soak(folder: Path, minutes: float, restarts: int) -> int:
    """Train for some minutes with restarts; return 1 if a process failed."""
    overrides = ("train.epochs=10000", "train.checkpoint_every=20")
    print("| process | minutes | step | memory, MB | MB in 24 h | open files | in 24 h | threads |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for number in range(restarts + 1):
        process, samples, begin = start(folder, "soak", *overrides), Samples(), time.monotonic()
        length = 60 * minutes / (restarts + 1)
        while process.poll() is None and time.monotonic() - begin < length:
            samples.take(psutil.Process(process.pid), time.monotonic() - begin)
            time.sleep(1)
        process.send_signal(signal.SIGTERM)
        if process.wait() != 0:
            print((folder / "soak.out").read_text(encoding="utf-8")[-2000:])
            return 1
        file = folder / "soak/checkpoints/last/state.json"
        state = json.loads(file.read_text(encoding="utf-8"))["state"]
        print(
            f"| {number + 1} | {length / 60:.1f} | {state['step']:,} | {samples.memory[-1] / 1e6:,.0f} | "
            f"{samples.per_day(samples.memory) / 1e6:+,.0f} | {samples.files[-1]:.0f} | "
            f"{samples.per_day(samples.files):+.1f} | {samples.threads[-1]:.0f} |",
            flush=True,
        )
    return 0


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("kills", "run"))
    parser.add_argument("--folder", type=Path, required=True, help="an empty or a new folder")
    parser.add_argument("--number", type=int, default=200, help="of kills")
    parser.add_argument("--seed", type=int, default=0, help="of their moments")
    parser.add_argument("--minutes", type=float, default=20, help="of training")
    parser.add_argument("--restarts", type=int, default=2, help="in these minutes")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if any(arguments.folder.iterdir()):
        parser.error(f"{arguments.folder} holds files, expected an empty or a new folder")
    (arguments.folder / "data.conll").write_text(SENTENCES * 24, encoding="utf-8")
    if arguments.what == "kills":
        sys.exit(1 if kills(arguments.folder, arguments.number, arguments.seed) else 0)
    sys.exit(soak(arguments.folder, arguments.minutes, arguments.restarts))


if __name__ == "__main__":
    main()
