"""What an objective has estimated before the first step, in files that a resumed run finds again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fangyan.distributed.process_group import on_ranks
from fangyan.files import whole_file


def keep(path: Path, write: Callable[[Path], None], ranks: Sequence[int]) -> None:
    """Write a file on some ranks, whole or not at all. Collective.

    Args:
        path: of the file, on this rank.
        write: the content to a path.
        ranks: that write.

    Raises:
        UserError: if a disk takes no more.
    """

    def write_whole() -> None:
        with whole_file(path) as partial:
            write(partial)

    on_ranks(ranks, write_whole)
