"""What follows a run: a user's own callbacks, and the recipe's trackers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from fangyan.errors import Stopped, UserError

# How a run ended. Stopped is one that a signal or a search has ended, and that can go on.
Status = Literal["finished", "stopped", "failed"]


class Callback:
    """Follows a run, on its first rank alone. Override what is of interest; the rest does nothing.

    An exception in any of the methods ends the callback and not the run: a sentence in the log names both,
    and the callback is not called again.
    """

    def start(self, name: str, folder: Path, recipe: dict[str, Any], resumed: int | None) -> None:
        """Take the start of a run, before anything is measured.

        Args:
            name: of the run; of several runs of one recipe, each has its own.
            folder: the run folder.
            recipe: with every field, as plain lists, dictionaries, numbers and strings.
            resumed: the step that the run goes on after; None where it begins.
        """

    def metrics(self, kind: str, split: str, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Take what ``metrics.jsonl`` has just got. After a kill, steps since the last checkpoint come again.

        Args:
            kind: ``train`` (loss and learning rate of a step), ``evaluation``, ``speed`` or ``time``.
            split: that was evaluated, with ``-best`` at the end of the run; otherwise empty.
            step: optimizer steps done.
            epoch: complete epochs.
            values: by name.
        """

    def end(self, status: Status, result: Mapping[str, Mapping[str, float]]) -> None:
        """Take the end of a run; one that is killed has none.

        Args:
            status: how it ended.
            result: metrics of the best checkpoint per split, where the run has finished.
        """


class Listeners:
    """The callbacks of a run; used as a context, they are told of its start and its end.

    Args:
        callbacks: on ranks other than 0 there are none.
        say: writes a sentence to the log.
        start: what :meth:`Callback.start` takes.

    Attributes:
        result: metrics of the best checkpoint per split, once the run has finished.
    """

    def __init__(
        self,
        callbacks: Sequence[Callback],
        say: Callable[[str], None],
        start: tuple[str, Path, dict[str, Any], int | None],
    ):
        self._callbacks, self._say, self._start = list(callbacks), say, start
        self.result: Mapping[str, Mapping[str, float]] | None = None

    def __enter__(self) -> Listeners:
        """Tell of the start."""
        self._tell("start", *self._start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell of the end."""
        status: Status = "stopped" if self.result is None else "finished"
        if kind is not None and not issubclass(kind, Stopped):
            status = "failed"
        with suppress(UserError):  # a log that cannot be written hides no other error
            self._tell("end", status, self.result or {})

    def metrics(self, kind: str, split: str, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Tell of metrics."""
        self._tell("metrics", kind, split, step, epoch, values)

    def _tell(self, method: str, *arguments: Any) -> None:
        for callback in list(self._callbacks):
            try:
                getattr(callback, method)(*arguments)
            except Exception as error:
                self._callbacks.remove(callback)
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                self._say(
                    f"callback {type(callback).__name__}.{method} failed ({reason}): it is not called again, "
                    "and the run goes on"
                )
