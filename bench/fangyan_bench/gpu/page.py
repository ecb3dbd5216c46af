"""A part's results as Markdown; it imports nothing but Python's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fangyan_bench.gpu.decisions import CHOSEN, decisions

Row = Mapping[str, Any]


def page(part: str, about: Row, entries: Mapping[str, Row]) -> str:
    """Return all results of a part so far."""
    text = f"# {part}\n\n" + "".join(f"- {name}: {_said(value)}\n" for name, value in about.items())
    parts = {"values": _values, "steps": _steps, "largest": _largest, "tiles": _tiles}
    text += parts.get(part, _ops)(entries)
    left_out = [
        f"- {name}: {entry['state']}: {entry.get('reason', 'the process died in it')}\n"
        for name, entry in entries.items()
        if entry["state"] not in ("done", "passed")
    ]
    if left_out and part != "values":
        text += "\n## Not measured\n\n" + "".join(left_out)
    found = decisions(part, entries)
    if found:
        text += "\n## What these numbers decide\n\n" + "".join(f"- {line}\n" for line in found)
    return text


def duration(seconds: float | None) -> str:
    """Return seconds with three digits in a fitting unit."""
    if seconds is None:
        return ""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def size(number: float | None) -> str:
    """Return bytes as MB or GB."""
    return "" if number is None else f"{number / 1e6:,.0f} MB" if number < 1e9 else f"{number / 1e9:,.2f} GB"


def times(value: float | None) -> str:
    """Return a factor."""
    return "" if value is None else f"{value:.2f}x"


def table(headings: list[str], rows: Iterable[list[str]]) -> str:
    """Return a Markdown table, all columns but the first aligned to the right."""
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return "\n" + "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_said(of)}" for name, of in value.items() if of is not None)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _ops(entries: Mapping[str, Row]) -> str:
    text = ""
    for name, entry in entries.items():
        if entry["state"] == "done":
            text += f"\n## {name}\n\nForward and backward. Floor: {duration(entry['floor'])}"
            text += f" ({entry['bound']}). {entry['seconds']:.1f} s.\n"
            text += _implementations(entry) + _kernels(entry) + _predictions(entry) + _absent(entry)
    return text


def _implementations(entry: Row) -> str:
    headings = ["who", "graph", "eager calls", "graph / floor", "of the baseline's time", "error", "memory"]
    rows = []
    for name, found in entry["implementations"].items():
        rows.append(
            [
                f"**{name}**" if found["role"] == "ours" else name,
                duration(found["graph"]) or "not captured",
                duration(found["eager"]),
                times(found["over_floor"]),
                times(found["over_baseline"]),
                "" if found["error"] is None else f"{found['error']:.1e}",
                size(found["peak_memory"]),
            ]
        )
    return table(headings, rows)


def _kernels(entry: Row) -> str:
    text = ""
    for name, found in entry["implementations"].items():
        if found["kernels"]:
            rows = [[k["name"], duration(k["seconds"]), f"{k['launches']:.3g}"] for k in found["kernels"]]
            text += table([f"kernels of {name}", "time per call", "launches"], rows)
    return text


def _predictions(entry: Row) -> str:
    text = "" if entry["predictions"] else "\nNothing was predicted of it.\n"
    for who, found in entry["predictions"].items():
        low, high = found["predicted"]
        text += f"\nPredicted of {who}: {low:.2f} to {high:.2f} times the {found['over']}; "
        if found["measured"] is None:
            text += f"the {found['over']} has no time here.\n"
            continue
        missed = found["missed_by"]
        said = "as predicted" if missed == 1 else f"missed by {max(missed, 1 / missed):.2f}x"
        if missed != 1:
            said += ", slower" if missed > 1 else ", faster"
        text += f"measured: {found['measured']:.2f}, {said}.\n"
    return text


def _absent(entry: Row) -> str:
    lines = [f"- {name}: {why}" for kind in ("missing", "failed") for name, why in entry[kind].items()]
    lines += [f"- {name}: cannot be captured: {why}" for name, why in entry["not_captured"].items()]
    return "\n" + "\n".join(lines) + "\n" if lines else ""


def _values(entries: Mapping[str, Row]) -> str:
    states = [entry["state"] for entry in entries.values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    failed = [(name, entry) for name, entry in entries.items() if entry["state"] == "failed"]
    slowest = sorted(entries.items(), key=lambda item: -item[1]["seconds"])[:10]
    text = f"\n{counts or 'nothing has run'}.\n"
    if failed:
        text += table(["failed", "says"], ([name, entry["reason"]] for name, entry in failed))
    return text + table(["slowest", "time"], ([name, duration(e["seconds"])] for name, e in slowest))


def _steps(entries: Mapping[str, Row]) -> str:
    text = ""
    for name, entry in entries.items():
        if entry["state"] == "done":
            rows = [
                [
                    who,
                    f"{found['tokens_per_second']:,.0f}",
                    times(found["ours_is_faster_by"]),
                    f"{found['flops_utilisation']:.0%}",
                    size(found["peak_memory"]),
                    duration(found["first_call_seconds"]),
                ]
                for who, found in entry["implementations"].items()
            ]
            headings = ["who", "tokens/s", "fangyan is", "of peak FLOP/s", "peak memory", "start"]
            text += f"\n## {name}\n\nWhole steps, optimizer included. {entry['seconds']:.0f} s.\n"
            text += table(headings, rows) + "".join(f"\n- {w}: {why}\n" for w, why in entry["failed"].items())
    return text


def _largest(entries: Mapping[str, Row]) -> str:
    rows = [
        [name, str(entry["layers"]), f"{entry['billions']:.1f} B", "; ".join(entry["tried"])]
        for name, entry in entries.items()
        if entry["state"] == "done"
    ]
    return table(["who", "most layers", "parameters", "tried"], rows) if rows else ""


def _tiles(entries: Mapping[str, Row]) -> str:
    text = ""
    for name, entry in entries.items():
        if entry["state"] == "done":
            found, chosen = entry["microseconds"], entry["microseconds"].get(CHOSEN)
            others = sorted(found.keys() - {CHOSEN}, key=found.__getitem__)
            rows = [[f"**{CHOSEN}**", f"{chosen:.1f}", times(1.0)]] if chosen else []
            rows += [[n, f"{found[n]:.1f}", times(found[n] / chosen if chosen else None)] for n in others[:5]]
            text += f"\n## {name}\n\n{len(found)} candidates timed, {len(entry['failed'])} failed"
            text += f", {entry['not_in_time']} not in time. {entry['seconds']:.1f} s.\n"
            text += table(["candidate", "us", "of the chosen one's time"], rows)
            text += "".join(f"\n- {who}: {why}" for who, why in entry["failed"].items())
            text += "\n" if entry["failed"] else ""
    return text
