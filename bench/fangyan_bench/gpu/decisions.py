"""What the results decide: which change comes next, and which goal is met; needs Python alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

Row = Mapping[str, Any]

HOST_BOUND = 1.3  # eager calls over graph replays: above it the GPU waits for the host
LATENCY_BOUND = 1.6  # a kernel's time over that of its bytes
OURS = "fangyan"
K_STEP = "K step"
CHOSEN = "chosen"  # of a kernel's candidates, the one that it has now
FASTER = 1.05  # times a candidate's speed over the chosen one's: less is noise

# By entry, what its graph's time is compared with, and the ratio to stay under.
GOALS = {
    "linear_cross_entropy/tags-T65536-H1024-C7-L100-bfloat16": ("floor", 1.25),
    "linear_cross_entropy/tags-T65536-H1024-C32-L100-bfloat16": ("floor", 1.6),
    "linear_cross_entropy/tags-T65536-H1024-C188-L100-bfloat16": ("eager", 1.0),
    "linear_cross_entropy/vocabulary-T8192-H4096-C128256-L100-bfloat16": ("products alone", 1.10),
    "linear_cross_entropy/vocabulary-T8192-H768-C21128-L100-bfloat16": ("products alone", 1.28),
    "lora_linear/attention-T8192-K4096-N4096-R16-P0-bfloat16": ("frozen linear", 1.20),
    "lora_linear/attention-T8192-K8192-N8192-R16-P0-bfloat16": ("frozen linear", 1.10),
    "lora_linear_nf4/attention-T8192-K4096-N4096-R16-P0-bfloat16": ("frozen linear, plain weight", 1.15),
}
STEP_GOALS = {"tagger, BERT-base": ("HF Trainer, equal tokens", 2.0)}


def decisions(part: str, entries: Mapping[str, Row]) -> list[str]:
    """Return sentences on a part's finished entries, most urgent first."""
    done = {name: entry for name, entry in entries.items() if entry["state"] == "done"}
    if part == "values":
        wrong = sum(entry["state"] == "failed" for entry in entries.values())
        return [f"{wrong} tests failed: nothing below is worth its time before they pass"] if wrong else []
    if part == "steps":
        return list(_step_goals(done))
    if part == "tiles":
        return list(_faster_tiles(done))
    if part == "ops":
        return [
            *_host(done),
            *_goals(done),
            *_peers(done),
            *_k_step(done),
            *_crossover(done),
            *_alignment(done),
            *_slow(done),
        ]
    return []


def _host(done: Mapping[str, Row]) -> Iterator[str]:
    for name, entry in done.items():
        ours = entry["implementations"].get(OURS)
        if ours and ours["graph"] and ours["eager"] > HOST_BOUND * ours["graph"]:
            yield (
                f"{name}: eager calls take {ours['eager'] / ours['graph']:.2f}x of the graph's time "
                f"(limit {HOST_BOUND}): the host path comes first"
            )


def _goals(done: Mapping[str, Row]) -> Iterator[str]:
    for name, (over, limit) in GOALS.items():
        entry = done.get(name)
        ours = _seconds(entry, OURS)
        other = entry["floor"] if entry and over == "floor" else _seconds(entry, over)
        if ours and other:
            verdict = "met" if ours <= limit * other else "MISSED"
            yield f"{name}: {ours / other:.2f} times the {over}, goal {limit}: {verdict}"


def _peers(done: Mapping[str, Row]) -> Iterator[str]:
    for name, entry in done.items():
        ours = _seconds(entry, OURS)
        for peer, found in entry["implementations"].items():
            theirs = _seconds(entry, peer)
            if found["role"] == "peer" and ours and theirs and theirs < ours:
                yield f"{name}: {peer} is {ours / theirs:.2f}x as fast as fangyan"


def _k_step(done: Mapping[str, Row]) -> Iterator[str]:
    """Compare the low-rank term as one more K step with ours, each over the frozen layer timed beside it."""
    for name, entry in done.items():
        theirs = _over_frozen(entry, K_STEP)
        ours = _over_frozen(done.get(name.replace("/k-step-", "/attention-")), OURS)
        if theirs and ours:
            verdict = "worth taking up" if theirs < ours else "it remains a peer"
            yield f"{name}: {theirs:.2f} times the frozen linear, where fangyan is {ours:.2f}: {verdict}"


def _over_frozen(entry: Row | None, who: str) -> float | None:
    own, frozen = _seconds(entry, who), _seconds(entry, "frozen linear")
    return own / frozen if own and frozen else None


def _crossover(done: Mapping[str, Row]) -> Iterator[str]:
    """Report from how many classes the kernels for large vocabularies are faster."""
    faster: dict[int, bool] = {}
    for name, entry in done.items():
        classes = re.search(r"tags-T65536-H1024-C(\d+)-L100-bfloat16", name)
        small, large = (_seconds(entry, f"{OURS}, {kind}") for kind in ("small_vocab", "large_vocab"))
        if classes and small and large:
            faster[int(classes[1])] = large < small
    if faster:
        said = ", ".join(f"C={c}: {'large' if faster[c] else 'small'}_vocab" for c in sorted(faster))
        yield f"faster path in bfloat16 at H=1024: {said}; the automatic choice should agree"


def _alignment(done: Mapping[str, Row]) -> Iterator[str]:
    odd, even = (
        _seconds(done.get(f"linear_cross_entropy/vocabulary-T8192-H768-C{c}-L100-bfloat16"), OURS)
        for c in (21121, 21128)
    )
    if odd and even:
        verdict = "rows are to be padded" if odd > 1.05 * even else "padding rows gains nothing"
        yield f"21,121 classes take {odd / even:.2f}x of the time of 21,128: {verdict}"


def _slow(done: Mapping[str, Row]) -> Iterator[str]:
    """Report kernels of ours that take most of what an entry loses to its floor."""
    for name, entry in done.items():
        ours = entry["implementations"].get(OURS)
        for kernel in (ours["kernels"] if ours else [])[:1]:
            total = sum(k["seconds"] for k in ours["kernels"])
            if total > LATENCY_BOUND * entry["floor"]:
                share = kernel["seconds"] / total
                yield f"{name}: {share:.0%} of the kernels' time is {kernel['name']}"


def _faster_tiles(done: Mapping[str, Row]) -> Iterator[str]:
    for name, entry in done.items():
        found = entry["microseconds"]
        if CHOSEN in found:
            best = min(found, key=found.__getitem__)
            if found[CHOSEN] > FASTER * found[best]:
                yield f"{name}: {best} is {found[CHOSEN] / found[best]:.2f}x as fast as the chosen tiles"


def _step_goals(done: Mapping[str, Row]) -> Iterator[str]:
    for name, (peer, goal) in STEP_GOALS.items():
        found = done.get(name, {}).get("implementations", {}).get(peer)
        if found and found["ours_is_faster_by"]:
            verdict = "met" if found["ours_is_faster_by"] >= goal else "MISSED"
            yield f"{name}: {found['ours_is_faster_by']:.2f}x of {peer}, goal {goal}: {verdict}"
    for name, entry in done.items():
        memory = {who: found["peak_memory"] for who, found in entry["implementations"].items()}
        if OURS in memory and memory[OURS] > min(memory.values()):
            yield f"{name}: fangyan takes {memory[OURS] / min(memory.values()):.2f}x of the least memory"


def _seconds(entry: Row | None, who: str) -> float | None:
    """Return the graph's time, or that of eager calls if it cannot be captured."""
    found = entry["implementations"].get(who) if entry else None
    seconds: float | None = (found["graph"] or found["eager"]) if found else None
    return seconds
