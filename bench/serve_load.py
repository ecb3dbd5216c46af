"""Load on a served model over loopback: requests per second, latencies, and memory.

    python bench/serve_load.py RUN [--model FOLDER] [--requests 4000] [--concurrency 1 8 32]

Starts ``fangyan serve`` twice, with requests that are run together and without (``--batch-texts 1``). Each
request is a text of the run's dev split; the answers of the first 200 are compared with ``fangyan predict
--json``. Client and service share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

COMPARED = 200
# Requests before memory and time are measured.
WARM_UP = 500


def texts_of(run: Path) -> list[str]:
    """Return the texts of a run's dev split, as ``fangyan predict`` takes them."""
    lines = (run / "splits" / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    found = []
    for fields in (json.loads(line)["fields"] for line in lines):
        parts = [fields[name] for name in ("text", "pair", "question", "context") if name in fields]
        found.append("\t".join(parts) if parts else " ".join(fields["tokens"]))
    return found


@contextmanager
def service(run: Path, batch_texts: int) -> Iterator[tuple[int, psutil.Process]]:
    """Yield the port and the process of a service of a run."""
    command = [
        sys.executable,
        "-m",
        "fangyan",
        "serve",
        str(run),
        "--port",
        "0",
        "--batch-texts",
        str(batch_texts),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stderr is not None
        while (found := re.search(r" at http://[^ ]+:(\d+)", line := process.stderr.readline())) is None:
            assert line, "the service has ended"
        try:
            yield int(found[1]), psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


class Connection:
    """One connection that is kept alive."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer = reader, writer

    async def predict(self, text: str) -> bytes:
        """Return the body of the answer to a text."""
        body = json.dumps({"texts": [text]}, ensure_ascii=False).encode()
        headers = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        self._writer.write(f"POST /predict HTTP/1.1\r\n{headers}\r\n\r\n".encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        length = int(re.search(rb"content-length: (\d+)", answer.lower())[1])  # type: ignore[index]
        return await self._reader.readexactly(length)


async def load(port: int, texts: Sequence[str], concurrency: int) -> tuple[float, list[float], list[bytes]]:
    """Return seconds, the latency of each request and its answer, from so many clients at once."""
    latencies, answers = [0.0] * len(texts), [b""] * len(texts)
    waiting = iter(range(len(texts)))

    async def client() -> None:
        connection = Connection(*await asyncio.open_connection("127.0.0.1", port))
        for i in waiting:
            begin = time.perf_counter()
            answers[i] = await connection.predict(texts[i])
            latencies[i] = time.perf_counter() - begin

    begin = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    return time.perf_counter() - begin, latencies, answers


def check(run: Path, texts: Sequence[str], answers: Sequence[bytes]) -> None:
    """Assert that answers are what ``fangyan predict`` says."""
    command = [sys.executable, "-m", "fangyan", "predict", str(run), "--json", "--input", "-"]
    lines = "".join(f"{text}\n" for text in texts)
    done = subprocess.run(command, input=lines, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    expected = [json.loads(line) for line in done.stdout.splitlines()]
    assert [json.loads(answer)["predictions"] for answer in answers] == [[record] for record in expected]


def main() -> None:
    """Print a table of both services."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run folder, whose texts are sent")
    parser.add_argument("--model", type=Path, help="what is served in its place, such as an export in int8")
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    arguments = parser.parse_args()
    served = arguments.model or arguments.run
    texts = texts_of(arguments.run)
    texts = (texts * (arguments.requests // len(texts) + 1))[: arguments.requests]
    print("| together | clients | requests/s | p50, ms | p99, ms | RSS before, MB | after |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, batch_texts in (("no", 1), ("yes", 64)):
        with service(served, batch_texts) as (port, process):
            asyncio.run(load(port, texts[:WARM_UP], max(arguments.concurrency)))
            for concurrency in arguments.concurrency:
                before = process.memory_info().rss / 1e6
                seconds, latencies, answers = asyncio.run(load(port, texts, concurrency))
                after = process.memory_info().rss / 1e6
                middle, late = np.percentile(latencies, [50, 99]) * 1000
                print(
                    f"| {name} | {concurrency} | {len(texts) / seconds:,.0f} | {middle:.1f} | {late:.1f} "
                    f"| {before:,.0f} | {after:,.0f} |",
                    flush=True,
                )
                check(served, texts[:COMPARED], answers[:COMPARED])


if __name__ == "__main__":
    main()
