"""A run's model, to be tried on a sentence: in a thread of its own, and one model at a time."""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fangyan.errors import UserError
from fangyan.inference.run_data import data_section, source_names

if TYPE_CHECKING:
    from fangyan.tasks.predictor import Predictor

# Characters of a text.
MOST_CHARACTERS = 20_000
# Of the task and the run's data: the fields of an example that a user types, in the order of a line.
_PAIRS = (("question", "context"), ("text", "pair"))
# Characters of an example of the run's own.
_SHOWN = 600


class Trial:
    """Loads models as they are asked for, and runs them."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "model")
        self._key: tuple[str, float, str] | None = None
        self._predictor: Predictor | None = None

    def ask(self, run: Path, text: str, source: str) -> Future[dict[str, Any]]:
        """Return what a run's model will say of a text, as ``fangyan predict --json`` does.

        Args:
            run: its folder.
            text: a sentence; of a pair, both with a tab between.
            source: name of the data set that it is of, where the model has learned to be told.

        Raises:
            UserError: if the text is empty or too long.
        """
        if not text.strip():
            raise UserError("text: empty, expected a sentence to try the model on")
        if len(text) > MOST_CHARACTERS:
            raise UserError(f"text: {len(text):,} characters, expected {MOST_CHARACTERS:,} at most")
        return self._thread.submit(self._ask, run, text, source)

    def close(self) -> None:
        """Take no more texts."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _ask(self, run: Path, text: str, source: str) -> dict[str, Any]:
        from fangyan.inference.load import load, model_folder

        key = str(run), (model_folder(run) / "config.json").stat().st_mtime, source
        if key != self._key or self._predictor is None:
            self._predictor = self._key = None  # before the next takes memory
            self._predictor = load(run, source or None)
            self._key = key
        return next(iter(self._predictor.stream([text]))).record()


def sources(run: Path) -> list[str]:
    """Return the names of data sets that a run's model is told; none where it is told none."""
    with suppress(UserError, OSError):
        if data_section(run / "recipe.yaml").get("prefix"):
            return source_names(run)
    return []


def example(run: Path) -> tuple[list[str], list[str]]:
    """Return the names of what a user types for a run's model, and an example of each, of the run's own."""
    fields: dict[str, Any] = {}
    with (
        suppress(OSError, ValueError, KeyError, TypeError),
        (run / "splits" / "dev.jsonl").open(encoding="utf-8") as file,
    ):
        fields = json.loads(file.readline())["fields"]
    for pair in _PAIRS:
        if set(pair) <= set(fields):
            return list(pair), [str(fields[name])[:_SHOWN] for name in pair]
    return ["text"], [_text(run, fields)]


def _text(run: Path, fields: dict[str, Any]) -> str:
    """Return an example as a line: words with spaces between, as a file of words has them."""
    if "tokens" in fields:
        with suppress(UserError, OSError):
            between = "" if data_section(run / "recipe.yaml").get("tokens") == "characters" else " "
            return between.join(map(str, fields["tokens"]))[:_SHOWN]
    if "messages" in fields:
        asked = [m.get("content", "") for m in fields["messages"] if m.get("role") == "user"]
        return str(asked[0])[:_SHOWN] if asked else ""
    return str(fields.get("text", "")).replace("\t", " ").replace("\n", " ")[:_SHOWN]
