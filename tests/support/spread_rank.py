"""A rank that takes part in sending files between two disks, for tests in processes of their own."""

import os
from pathlib import Path

from fangyan.distributed.disks import Disks
from fangyan.distributed.process_group import start_distributed
from fangyan.errors import UserError
from forked_command import of_ranks


def spread(rank, port, folder, file):
    """Send files ``a`` and ``b`` of the first disk to the second; write down what is refused."""
    os.environ.update(of_ranks(2, port)[rank])
    start_distributed()
    try:
        Disks((0, 1)).spread(Path(folder), {"a": 0, "b": 0})
    except UserError as error:
        Path(file).write_text(str(error), encoding="utf-8")
