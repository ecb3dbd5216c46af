"""Ranks that watch each other: real processes, killed, stopped and failing."""

import os
import signal
import socket
import time

import psutil
import pytest
from heartbeat_rank import RANKS, SILENT, watch

pytestmark = [pytest.mark.slow, pytest.mark.ranks]


@pytest.fixture
def start(tmp_path, server, free_port):
    """Start ranks, of which some end with a sentence; return their processes and what each says."""
    processes = []

    def start(lets_live=None, **sentences):
        port = free_port()
        files = [tmp_path / f"{rank}.err" for rank in range(RANKS)]
        for rank, file in enumerate(files):
            sentence = sentences.get(f"rank_{rank}")
            arguments = (rank, port, str(file), sentence, rank == lets_live)
            processes.append(server.Process(target=watch, args=arguments))
            processes[-1].start()
        return processes, files

    yield start
    for process in processes:
        process.kill()
        process.join()


def ends(process, file):
    """Return the exit code and what was said, of a rank that ends by itself."""
    process.join(SILENT + 15)
    return process.exitcode, file.read_text(encoding="utf-8")


def wait_until_ready(files):
    while not all(file.with_name(f"{file.name}.ready").exists() for file in files):
        time.sleep(0.05)
    assert all(file.read_text(encoding="utf-8") == "" for file in files)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_rank_is_named(start, lost):
    processes, files = start()
    wait_until_ready(files)
    processes[lost].kill()
    for rank in {0, 1, 2} - {lost}:
        code, said = ends(processes[rank], files[rank])
        assert code == 1
        assert f"rank {lost} on {socket.gethostname()} ended after step 7 without a word" in said
        assert "train --resume auto" in said
        assert len(said.splitlines()) == 1


@pytest.mark.parametrize("lost", [0, 2])
def test_a_stopped_rank_is_named(start, lost):
    processes, files = start()
    wait_until_ready(files)
    os.kill(processes[lost].pid, signal.SIGSTOP)
    assert psutil.Process(processes[lost].pid).is_running()
    for rank in {0, 1, 2} - {lost}:
        code, said = ends(processes[rank], files[rank])
        assert code == 1
        assert f"rank {lost} on {socket.gethostname()} has not answered for 2 s, last after step 7" in said
        assert "train --resume auto" in said


@pytest.mark.parametrize("failing", [0, 1])
def test_every_rank_says_why_one_of_them_ends(start, failing):
    processes, files = start(**{f"rank_{failing}": "train.txt:7: damaged, expected text"})
    for rank in {0, 1, 2} - {failing}:
        code, said = ends(processes[rank], files[rank])
        assert code == 2
        assert f"rank {failing} on {socket.gethostname()} ended after step 7: train.txt:7: damaged" in said


def test_a_rank_with_an_error_of_its_own_is_not_ended(start):
    """A script that goes on after a run has failed, while the other ranks leave."""
    processes, files = start(lets_live=1)
    wait_until_ready(files)
    processes[0].kill()
    assert ends(processes[2], files[2])[0] == 1
    time.sleep(1)
    assert processes[1].is_alive()
    assert files[1].read_text(encoding="utf-8") == ""


def test_strangers_are_not_answered(start, free_port):
    """A port scanner, or another run's rank with another token, does not end a run."""
    processes, files = start()
    wait_until_ready(files)
    ports = [
        connection.laddr.port
        for connection in psutil.Process(processes[0].pid).net_connections("tcp")
        if connection.status == "LISTEN"
    ]
    for port in ports:
        for content in (b"GET / HTTP/1.1\r\n\r\n", b'{"token": "x", "rank": 1}\n', b"\0" * 100_000):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(content)
    time.sleep(2 * SILENT)
    assert all(process.is_alive() for process in processes)
