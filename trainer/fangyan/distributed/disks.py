"""Which ranks see the same folder, one disk for all or one per node, and files that every disk is to have."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path

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
            UserError: if a file cannot be read or written.
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
    """Send a file piece by piece. Collective, also for a rank that cannot read or write: it raises last.

    Args:
        source: the file, on its owner.
        target: where it is written, on the ranks that write it.
        owner: the rank that sends it.
    """
    group = control_group()
    size = torch.zeros(1, dtype=torch.int64)
    reader: BufferedReader | None = None
    writer: FileIO | None = None
    failures: list[OSError] = []
    with ExitStack() as files:
        with _collecting(failures):
            if source is not None:
                reader = files.enter_context(source.open("rb"))
                size += os.fstat(reader.fileno()).st_size
            if target is not None:
                writer = files.enter_context(target.open("wb", buffering=0))
        dist.broadcast(size, owner, group=group)
        for start in range(0, int(size), _PIECE):
            piece = torch.zeros(min(_PIECE, int(size) - start), dtype=torch.uint8)
            content = memoryview(piece.numpy().data)
            with _collecting(failures, source):
                if reader is not None and not failures and reader.readinto(content) != len(content):
                    raise OSError(errno.EIO, "it has become shorter")
            dist.broadcast(piece, owner, group=group)
            with _collecting(failures, target):
                while writer is not None and not failures and content:
                    content = content[writer.write(content) :]
        with _collecting(failures, target):
            if writer is not None and not failures:
                os.fsync(writer.fileno())
    if failures:
        raise failures[0]


@contextmanager
def _collecting(failures: list[OSError], path: Path | None = None) -> Iterator[None]:
    """Keep a block's errors for later. Those of reading and writing do not say of which file they are."""
    try:
        yield
    except OSError as error:
        failures.append(OSError(error.errno, error.strerror, error.filename or str(path)))


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
