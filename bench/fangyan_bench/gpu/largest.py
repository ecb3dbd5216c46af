"""The largest part: the most layers of an 8B model's size whose LoRA trains in a card's memory."""

from __future__ import annotations

from fangyan_bench.gpu.record import Budget, Record
from fangyan_bench.gpu.steps import BF16, OURS, RECIPE
from fangyan_bench.harness.timing import describe_error

CARD_GIB = 24.0  # memory of a card that people have
STEP, MOST = 16, 256  # layers: each try is a process that builds the model, 10 to 40 s
TRY = 40.0  # seconds


class OutOfTime(Exception):
    """The next try does not fit into the part."""


def run(record: Record, seconds: float, dry: bool) -> None:
    """Search for every base and implementation, in 4 bits first: that is what small cards are for."""
    budget = Budget(seconds)
    for base in ("nf4", "bf16"):
        for name in (OURS, "PEFT"):
            entry = f"{name}, {base}"
            if record.finished(entry):
                continue
            record.running(entry, None, {})
            try:
                _search(record, entry, name, base, budget, dry)
            except ImportError as error:
                record.put(entry, "missing", reason=str(error))
            except Exception as error:
                record.put(entry, "failed", reason=describe_error(error))


def _search(record: Record, entry: str, name: str, base: str, budget: Budget, dry: bool) -> None:
    from fangyan_bench.steps import largest_model

    tried: list[str] = []

    def fits(layers: int) -> bool:
        if dry:
            enough = layers <= 40
        elif budget.left < TRY:
            raise OutOfTime(f"{', '.join(tried) or 'nothing tried'}; {budget.left:.0f} s are left")
        else:
            enough = largest_model.fits_in_memory(name, base, layers, CARD_GIB, RECIPE, (BF16,))
        tried.append(f"{layers} layers {'fit' if enough else 'do not'}")
        return enough

    try:
        layers = largest_model.largest_model(fits, step=STEP, most=MOST)
    except OutOfTime as error:
        record.put(entry, "skipped", reason=str(error))
        return
    record.put(entry, "done", layers=layers, billions=largest_model.parameters(layers) / 1e9, tried=tried)
