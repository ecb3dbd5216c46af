"""Ranks that do not find each other, and what they have to have in common."""

import socket
from pathlib import Path

import pytest
from deepspeed.utils import groups
from fangyan import terminal
from fangyan.distributed import process_group
from fangyan.distributed.process_group import on_rank_zero, on_ranks, start_distributed, stop_distributed
from fangyan.errors import UserError
from forked_command import ForkedCommand, of_ranks


def test_on_rank_zero_returns_and_raises():
    start_distributed()
    assert on_rank_zero(lambda: 3) == 3

    def mistaken():
        raise UserError("a mistake")

    with pytest.raises(UserError, match="a mistake"):
        on_rank_zero(mistaken)


def test_a_group_is_started_again_where_it_was_left():
    """DeepSpeed's copy of a group goes with it, or the next run of a process would take the dead one."""
    for _ in range(2):
        start_distributed()
        assert groups._get_broadcast_src_rank() == 0
        stop_distributed()


def test_on_ranks_names_the_file_that_cannot_be_written():
    start_distributed()
    with pytest.raises(UserError, match="/proc/x: "):
        on_ranks([0], Path("/proc/x").touch)


def test_a_rank_that_finds_nobody_says_where_it_looks(monkeypatch, free_port, capsys):
    port = str(free_port())
    variables = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(process_group, "_MEET", 1)
    monkeypatch.setattr(terminal, "_PATIENCE", 0.2)
    with pytest.raises(UserError, match=f"nobody answers at 127.0.0.1:{port}") as error:
        process_group._rendezvous(1, 2)
    assert "expected rank 0 to be started there" in str(error.value)
    waiting = f"fangyan: rank 1 on {socket.gethostname()} waits for rank 0 to answer at 127.0.0.1:{port}"
    assert capsys.readouterr().err == f"{waiting}, for 1 s at most\n"
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match=f"not all of 2 ranks came to 127.0.0.1:{port} within 1 s"):
        process_group._rendezvous(0, 2)
    assert f"waits for all of 2 ranks to come to 127.0.0.1:{port}" in capsys.readouterr().err
    with socket.create_server(("", int(port))), pytest.raises(UserError, match=f"port {port} .* is in use"):
        process_group._rendezvous(0, 2)


def test_interface_towards_an_address():
    assert process_group.interface_towards("127.0.0.1") is None
    found = process_group.addresses()
    for name, address in found.items():
        if not address.startswith("127."):
            assert process_group.interface_towards(address) == name


def two_ranks(cli, free_port, *arguments):
    """Run two ranks, each with its own arguments; return the exit codes and what they say."""
    environments = of_ranks(2, free_port())
    # As on nodes of their own, so that both speak.
    commands = [
        ForkedCommand(cli.server, cli.folder, own, [environment | {"LOCAL_RANK": "0"}])
        for own, environment in zip(arguments, environments, strict=True)
    ]
    said = [command.communicate(timeout=120)[1] for command in commands]
    return [command.returncode for command in commands], said


@pytest.mark.slow
@pytest.mark.ranks
def test_ranks_that_offer_no_address_say_which_interface_and_which_there_are(cli, free_port):
    environments = [
        own | {"GLOO_SOCKET_IFNAME": "fy9", "LOCAL_SIZE": "1"} for own in of_ranks(2, free_port())
    ]
    command = ForkedCommand(cli.server, cli.folder, cli.train_arguments(), environments)
    _, err = command.communicate(timeout=120)
    assert command.returncode == 2
    assert "rank 0 on" in err
    assert "not all other ranks within 50 s (" in err
    assert "GLOO_SOCKET_IFNAME is fy9, expected the interface that the nodes share" in err
    assert "this host has " in err
    assert "lo 127.0.0.1" in err


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize(
    ("argument", "named"), [("optimizer.lr=2e-3", "recipe: rank"), ("--resume=auto", "--resume: rank")]
)
def test_ranks_of_different_commands_stop(cli, free_port, argument, named):
    codes, said = two_ranks(cli, free_port, cli.train_arguments(), cli.train_arguments(argument))
    assert codes == [2, 2]
    for text in said:
        assert named in text
        assert "expected the same on every node" in text
        assert len(text.splitlines()) == 1
    assert not (cli.folder / "run").exists()


@pytest.mark.slow
@pytest.mark.ranks
def test_ranks_of_different_data_stop(cli_in, tmp_path, free_port):
    """The same recipe and the same names of files, with one word that differs on one node."""
    sentences = "我\tB-r\n食\tB-v\n飯\tB-n\n\n" * 12
    commands = []
    for rank, environment in enumerate(of_ranks(2, free_port())):
        folder = tmp_path / str(rank)
        folder.mkdir()
        text = sentences if rank == 0 else sentences.replace("飯", "麵", 1)
        (folder / "few.conll").write_text(text, encoding="utf-8")
        overrides = ("data.format=conll", "data.train=few.conll", "data.dev=few.conll")
        arguments = cli_in(tmp_path).train_arguments(*overrides)
        commands.append(ForkedCommand(cli_in(folder).server, folder, arguments, [environment]))
    said = [command.communicate(timeout=120)[1] for command in commands]
    assert [command.returncode for command in commands] == [2, 2]
    assert "data.train: rank 1 on" in said[0]
    assert "expected the same on every node" in said[0]
