"""Turn fifteen minutes of a GPU into a table; docs/gpu.md says how to prepare for them.

    python bench/gpu.py FOLDER [--parts values,ops,steps] [--dry]

Each part is a process, and writes FOLDER/PART.json and FOLDER/PART.md after every entry: whatever ends it,
its results so far are there. Where a part's process dies, another continues without what killed it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATHS = [ROOT / folder for folder in ("kernels", "trainer", "bench", "tests/support")]
CARRIED = ROOT / ".gpu"
if sys.version_info[:2] == (3, 12):  # whose compiled packages these are
    PATHS.append(CARRIED)
PACKAGES = ("torch", "triton", "transformers", "bitsandbytes", "liger-kernel", "cut-cross-entropy", "peft")

# Seconds of each part, in order of value; with GRACE 8 minutes, but for those asked for by name.
PARTS = {"values": 115, "ops": 175, "steps": 175, "largest": 175, "tiles": 115}
DEFAULT = ("values", "ops", "steps")
GRACE = 5  # seconds until a part that should have ended is ended
STARTS = 8  # of one part's processes: each may die of one implementation


def environment(dry: bool) -> dict[str, str]:
    """Return the environment of a part's process: this tree's sources, and what .gpu/ carries."""
    paths = [*map(str, PATHS), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # it compiles in one of many processes, or finds it in a cache
        **({"OMP_NUM_THREADS": "1"} if dry else {}),  # a rehearsal's times are of no interest
    }


def command_of(part: str, folder: Path, seconds: float, dry: bool) -> list[str]:
    """Return the command of a part's process."""
    command = [sys.executable, "-m", "fangyan_bench.gpu", part, str(folder), "--seconds", f"{seconds:.1f}"]
    return command + ["--dry"] * dry


def run_part(part: str, folder: Path, seconds: float, dry: bool) -> None:
    """Start the part, and again while it dies and there is time."""
    end = time.monotonic() + seconds
    log = folder / f"{part}.log"
    log.unlink(missing_ok=True)
    for _ in range(STARTS):
        left = end - time.monotonic()
        with log.open("a", encoding="utf-8") as out:
            process = subprocess.Popen(
                command_of(part, folder, left, dry),
                env=environment(dry),
                cwd=ROOT,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        try:
            code = process.wait(max(0.0, left) + GRACE)
        except subprocess.TimeoutExpired:
            print(f"{part}: ended after {seconds:.0f} s", flush=True)
            return
        finally:
            with suppress(ProcessLookupError):  # with all that it has started
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # a driver may keep one whose kernel hangs
                process.wait(GRACE)
        if code == 0:
            return
        last = " ".join(log.read_text(encoding="utf-8").splitlines()[-1:])
        left = end - time.monotonic()
        print(f"{part}: its process died with {code}; {left:.0f} s are left; it said: {last}", flush=True)


def missing_gpu() -> str | None:
    """Return why nothing can be measured, or None; another process asks, so that this one holds no GPU."""
    asked = "import torch; print(torch.cuda.is_available())"
    answer = subprocess.run(
        [sys.executable, "-c", asked], env=environment(False), capture_output=True, text=True
    )
    if answer.returncode:
        return " ".join(answer.stderr.splitlines()[-1:])
    return None if answer.stdout.split()[-1] == "True" else "PyTorch finds no CUDA GPU"


def machine() -> dict[str, object]:
    """Return card, driver and versions of whatever is there."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        card = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.strip()
    except OSError:
        card = ""
    found: dict[str, object] = {"card": card or "none", "python": platform.python_version()}
    sys.path[:0] = map(str, PATHS)
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    carried = CARRIED / "commit"
    found["commit"] = _git_commit() or (
        carried.read_text(encoding="utf-8").strip() if carried.exists() else "unknown"
    )
    return found


def _git_commit() -> str:
    """Return the commit, or "" in a copy of the tree that carries no git."""
    try:
        said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return said.stdout.strip()


def main() -> None:
    """Run the parts that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", default=",".join(DEFAULT), help="of " + ", ".join(PARTS))
    parser.add_argument("--dry", action="store_true", help="on the CPU, at sizes that take no time")
    arguments = parser.parse_args()
    chosen = arguments.parts.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"--parts has {', '.join(sorted(unknown))}, expected some of {', '.join(PARTS)}")
    if not arguments.dry and (missing := missing_gpu()):
        sys.exit(f"bench/gpu.py: {missing}, expected a GPU; --dry runs on the CPU")
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    about: dict[str, object] = {**machine(), "dry": arguments.dry, "seconds": {}}
    seconds: dict[str, float] = {}
    for part in (part for part in PARTS if part in chosen):
        (folder / f"{part}.json").unlink(missing_ok=True)
        (folder / "machine.json").write_text(
            json.dumps({**about, "seconds": seconds}, indent=1) + "\n", encoding="utf-8"
        )
        start = time.monotonic()
        run_part(part, folder, PARTS[part], arguments.dry)
        seconds[part] = round(time.monotonic() - start, 1)
        page = folder / f"{part}.md"
        print(
            page.read_text(encoding="utf-8") if page.exists() else f"{part}: nothing was written", flush=True
        )
    (folder / "machine.json").write_text(
        json.dumps({**about, "seconds": seconds}, indent=1) + "\n", encoding="utf-8"
    )
    _write_readme(folder, about, seconds)


def _write_readme(folder: Path, about: dict[str, object], seconds: dict[str, float]) -> None:
    """Write the folder's page: what ran where, then every part's own."""
    lines = [f"- {name}: {value}" for name, value in about.items() if value is not None and name != "seconds"]
    lines += [f"- {part}: {taken} s" for part, taken in seconds.items()]
    pages = [
        (folder / f"{part}.md").read_text(encoding="utf-8")
        for part in PARTS
        if (folder / f"{part}.md").exists()
    ]
    text = "# A run of bench/gpu.py\n\n" + "\n".join(lines) + "\n\n"
    text += "\n".join(re.sub("^#", "##", page, flags=re.M) for page in pages)
    (folder / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
