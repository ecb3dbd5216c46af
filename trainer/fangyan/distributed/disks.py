"""Which ranks see the same folder, one disk for all or one per node, and files that every disk is to have."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
import torch.distributed as dist

from fangyan.distributed.process_group import control_group, gathered, on_ranks

# Bytes that are sent at once.
_PIECE = 1 << 26


@dataclass(frozen=True)
class Disks:
    """The ranks' disks, each named by the lowest of the ranks that see it.

    Attributes:
        of_rank: by rank.
    """

    of_rank: tuple[int, ...]

    @property
    def leaders(self) -> list[int]:
        """Return the rank of each disk that writes what is written once."""
        return sorted(set(self.of_rank))

    @property
    def is_leader(self) -> bool:
        """Return whether this rank is one of them."""
        return self.of_rank[dist.get_rank()] == dist.get_rank()

    @property
    def are_separate(self) -> bool:
        """Return whether there are several."""
        return len(self.leaders) > 1

    def spread(
        self,
        folder: Path,
        owners: Mapping[str, int],
        into: Path | None = None,
        writers: Sequence[int] | None = None,
    ) -> None:
        """Send files to the disks that do not have them. Collective.

        Args:
            folder: of the files.
            owners: by name in the folder, a rank that sees the file; the same on every rank.
            into: folder that the files are written to, which exists; by default of the same name.
            writers: ranks that write them; by default those of the other disks.

        Raises:
            UserError: if a disk takes no more.
        """
        if not self.are_separate:
            return
        error: OSError | None = None
        for name, owner in sorted(owners.items()):
            others = [leader for leader in self.leaders if leader != self.of_rank[owner]]
            target = (into or folder) / name if dist.get_rank() in (writers or others) else None
            try:
                _send(folder / name if dist.get_rank() == owner else None, target, owner)
            except OSError as failure:
                error = error or failure

        def complain() -> None:
            if error is not None:
                raise error

        on_ranks(range(len(self.of_rank)), complain)


def _send(source: Path | None, target: Path | None, owner: int) -> None:
    """Send a file piece by piece. A rank that cannot write one takes the others all the same. Collective.

    Args:
        source: the file, on its owner.
        target: where it is written, on the ranks that write it.
        owner: the rank that sends it.
    """
    group = control_group()
    size = torch.tensor([0 if source is None else source.stat().st_size])
    dist.broadcast(size, owner, group=group)
    error: OSError | None = None
    with ExitStack() as files:
        reader = None if source is None else files.enter_context(source.open("rb"))
        writer = None if target is None else files.enter_context(target.open("wb", buffering=0))
        for start in range(0, int(size), _PIECE):
            piece = torch.empty(min(_PIECE, int(size) - start), dtype=torch.uint8)
            if reader is not None:
                reader.readinto(piece.numpy().data)
            dist.broadcast(piece, owner, group=group)
            if writer is not None and error is None:
                error = _write(writer, memoryview(piece.numpy().data), str(target))
        if writer is not None and error is None:
            os.fsync(writer.fileno())
    if error is not None:
        raise error


def _write(file: IO[bytes], content: memoryview, name: str) -> OSError | None:
    try:
        while content:
            content = content[file.write(content) :]
    except OSError as error:
        return OSError(error.errno, error.strerror, name)
    return None


def one_disk() -> Disks:
    """Return what ranks of one node have."""
    return Disks((0,) * dist.get_world_size())


def find_disks(folder: Path) -> Disks:
    """Return which ranks see the same ``folder``, which need not exist. Collective.

    Each rank writes an empty file beside it and looks for those of the others: names that nobody has looked
    for before, since network file systems remember what was not there.
    """
    ranks = dist.get_world_size()
    local = os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE")
    if local == str(ranks) or ranks == 1:
        return one_disk()
    parent = folder.absolute()
    while not parent.is_dir():
        parent = parent.parent
    token = gathered(secrets.token_hex(8))[0]
    files = [parent / f".{token}-{rank}" for rank in range(ranks)]
    own = files[dist.get_rank()]
    on_ranks(range(ranks), own.touch)
    seen = next(rank for rank in range(ranks) if files[rank].exists())
    found = gathered(seen)
    own.unlink()  # all have looked
    return Disks(tuple(found))
