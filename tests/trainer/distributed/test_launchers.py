"""Which rank a process is, by the environment of whoever started it."""

import json

import pytest
from fangyan.distributed.launchers import first_host, rank_variables
from fangyan.errors import UserError
from forked_command import ForkedCommand

SRUN = {
    "SLURM_JOB_ID": "71234",
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
}
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def test_rank_variables_of_srun():
    assert rank_variables(SRUN) == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_SIZE": "4",
        "MASTER_ADDR": "gpu03",
        "MASTER_PORT": "29734",
    }


def test_rank_variables_of_mpirun():
    found = rank_variables(MPIRUN)
    assert (found["RANK"], found["WORLD_SIZE"], found["MASTER_ADDR"]) == ("1", "2", "127.0.0.1")
    apart = MPIRUN | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
    with pytest.raises(UserError, match="MASTER_ADDR is not set, and Open MPI does not say where rank 0 is"):
        rank_variables(apart)
    assert rank_variables(apart | {"MASTER_ADDR": "gpu03"})["MASTER_ADDR"] == "gpu03"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "0", **SRUN},
        SRUN | {"SLURM_STEP_NUM_TASKS": "1"},
        {name: value for name, value in SRUN.items() if name == "SLURM_JOB_ID"},
    ],
    ids=["nothing", "torchrun in srun", "one task", "a batch script"],
)
def test_rank_variables_elsewhere(environment):
    assert rank_variables(environment) == {}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("gpu[03-07,11],cpu1", "gpu03"),
        ("a,b[1-2]", "a"),
        ("n[7,9]", "n7"),
        ("node[01-04,7]-ib,a", "node01-ib"),
        ("rack[1-2]node[3,5]", "rack1node3"),
    ],
)
def test_first_host(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.slow
@pytest.mark.ranks
def test_train_by_mpirun_is_one_run_of_two_ranks(cli, free_port):
    """Without a translation, each would be a run of its own in one folder."""
    port = str(free_port())
    environments = [
        MPIRUN | {"MASTER_PORT": port, "OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank}
        for rank in "01"
    ]
    arguments = cli.train_arguments("engine.zero_stage=2", "train.epochs=1")
    command = ForkedCommand(cli.server, cli.folder, arguments, environments)
    _, err = command.communicate(timeout=200)
    assert command.returncode == 0, err
    assert len(cli.losses()) == 9
    state = json.loads((cli.folder / "run/checkpoints/last/state.json").read_text(encoding="utf-8"))
    assert state["state"]["ranks"] == 2
