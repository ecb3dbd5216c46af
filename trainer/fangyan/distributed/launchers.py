"""Which rank this process is, by the environment of whoever started it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from fangyan.errors import UserError

# By launcher: variables of rank, ranks, rank on the node and ranks on the node. DeepSpeed's and torchrun's
# need no translation. Slurm's are those that srun alone sets: a batch script itself is no rank.
_VARIABLES = {
    "Slurm": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
    "Open MPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}
# Where rank 0 listens, for the launchers that do not say it: the last digits of the job's number are added.
_PORT = 29500


def rank_variables(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what PyTorch and DeepSpeed read, where srun or mpirun started this process as one of several.

    ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``LOCAL_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT``; nothing
    where they are set already, or where this is the only process.

    Args:
        environment: by default this process' own.

    Raises:
        UserError: if nothing says where rank 0 is.
    """
    environment = os.environ if environment is None else environment
    if "RANK" in environment:
        return {}
    for launcher, names in _VARIABLES.items():
        if not all(name in environment for name in names[:3]) or environment[names[1]] == "1":
            continue
        rank, ranks, local_rank, local_ranks = (environment.get(name, "1") for name in names)
        # Slurm writes 4(x2),3: four ranks on each of the first two nodes.
        local_ranks = re.split(r"\D", local_ranks)[0]
        found = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": local_rank, "LOCAL_SIZE": local_ranks}
        job = int(environment.get("SLURM_JOB_ID", "0")) % 1000
        found["MASTER_ADDR"] = environment.get("MASTER_ADDR") or _address(launcher, environment, found)
        found["MASTER_PORT"] = environment.get("MASTER_PORT") or str(_PORT + job)
        return found
    return {}


def _address(launcher: str, environment: Mapping[str, str], found: Mapping[str, str]) -> str:
    """Return where rank 0 is, which Slurm's list of nodes says and MPI does not."""
    if "SLURM_STEP_NODELIST" in environment:
        return first_host(environment["SLURM_STEP_NODELIST"])
    if found["WORLD_SIZE"] == found["LOCAL_SIZE"]:
        return "127.0.0.1"
    raise UserError(
        f"MASTER_ADDR is not set, and {launcher} does not say where rank 0 is; expected its host name, as in "
        "mpirun -x MASTER_ADDR=NODE"
    )


def first_host(nodes: str) -> str:
    """Return the first of Slurm's list of nodes: ``node03-ib`` of ``node[03-07,11]-ib,gpu1``."""
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[([^,\-\]]+)[^\]]*\]", r"\1", first)
