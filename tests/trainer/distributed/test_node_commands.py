"""What is run on a node, and what is said of one, without nodes."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from fangyan.distributed.hostfile import Host
from fangyan.distributed.node_report import JOB, end_job
from fangyan.distributed.nodes import _commands, _exit_code, _in_this_folder, _lost
from fangyan.errors import UserError

ODD = [
    "two  words",
    "a'b\"c",
    "$HOME `id` $(id)",
    "#x",
    "方言=粵",
    "100%n %h",
    "a\\b\nc",
    "",
    "*",
    "{a,b}",
    "~",
    "!!",
]
HOSTS = (Host("a", 1, "hosts:1"), Host("root@b", 2, "hosts:2"))


def answer(first, reached="127.0.0.1"):
    return {"addresses": {"a": first}, "reached": reached, "port": 4321, "run": 0, "checkpoint": ""}


@pytest.mark.parametrize("shell", [name for name in ("sh", "bash", "dash", "zsh") if shutil.which(name)])
def test_arguments_folder_and_variables_pass_a_shell(tmp_path, monkeypatch, shell):
    folder = tmp_path / "a b'c$HOME`id` 方言"
    folder.mkdir()
    (folder / ".deepspeed_env").write_text("# ours\n\nODD=a $HOME 'b' \"c\"\n", encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1; echo 2")
    show = "import json, os, sys; e = os.environ; "
    show += "print(json.dumps([os.getcwd(), e['ODD'], e['OMP_NUM_THREADS'], *sys.argv[1:]]))"
    command = _in_this_folder([sys.executable, "-c", show, *ODD])
    result = subprocess.run(
        [shell, "-c", command], cwd="/", capture_output=True, encoding="utf-8", check=True
    )
    assert json.loads(result.stdout) == [str(folder), "a $HOME 'b' \"c\"", "1; echo 2", *ODD]


def test_secrets_are_not_on_command_lines(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "hf_secret" not in _in_this_folder(["true"])


def test_end_job_kills_what_is_stopped():
    """And no other job's."""
    sleep = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]
    processes = [
        subprocess.Popen(sleep, env={**os.environ, JOB: job}, stdout=subprocess.PIPE)
        for job in ("one", "two")
    ]
    for process in processes:
        process.stdout.readline()
    processes[0].send_signal(signal.SIGSTOP)
    end_job("one")
    assert processes[0].poll() is not None
    assert processes[1].poll() is None
    processes[1].kill()
    for process in processes:
        process.communicate()


def test_deepspeed_env_with_a_mistake(tmp_path, monkeypatch):
    (tmp_path / ".deepspeed_env").write_text("A=1\nexport B=2\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"\.deepspeed_env:2: 'export B=2', expected NAME=VALUE"):
        _in_this_folder(["true"])


@pytest.mark.parametrize(
    ("first", "second", "address"),
    [
        (answer("127.0.1.1"), answer("10.0.0.5"), "10.0.0.5"),  # as on Debian
        (answer("127.0.1.1", "10.1.0.5"), answer(""), "10.1.0.5"),  # a name that ssh alone knows
        (answer("10.1.0.5", "10.1.0.5"), answer("10.0.0.5"), "10.0.0.5"),  # two networks
    ],
)
def test_commands_have_the_address_that_other_nodes_reach(first, second, address):
    commands = _commands(dict(zip(HOSTS, (first, second), strict=True)), ["train", "r.yaml"], "x")
    assert list(commands) == ["a", "root@b"]
    for number, command in enumerate(commands.values()):
        assert f"--master_addr={address} --master_port=4321 --node_rank={number}" in command


def test_commands_without_an_address_that_other_nodes_reach():
    reports = dict(zip(HOSTS, (answer("127.0.1.1"), answer("127.0.1.1")), strict=True))
    with pytest.raises(UserError, match="hosts:1: a is 127.0.0.1 to the other nodes too"):
        _commands(reports, [], "x")


@pytest.mark.parametrize(
    ("codes", "received", "code"),
    [
        ({"a": 0, "b": 0}, None, 0),
        ({"a": 1, "b": 2}, None, 2),  # the one rank's mistake is the other's lost connection
        ({"a": 1, "b": 247}, None, None),
        ({"a": 255, "b": 255}, signal.SIGTERM, 143),
        ({"a": 0, "b": 0}, signal.SIGTERM, 0),  # with a checkpoint
        ({"a": 0, "b": 0}, signal.SIGINT, 130),
    ],
)
def test_exit_code(codes, received, code):
    assert _exit_code(codes, received) == code


@pytest.mark.parametrize(
    ("codes", "sentence"),
    [
        ({"a": 0, "b": 247, "c": 1}, "b: a rank was ended by SIGKILL"),
        ({"a": 1, "b": 255}, "b: the node or the connection to it was lost"),
        ({"a": 1, "b": 1}, "a: a rank failed with exit code 1, b: a rank failed with exit code 1"),
    ],
)
def test_lost_names_the_cause(codes, sentence):
    assert _lost(codes) == sentence
