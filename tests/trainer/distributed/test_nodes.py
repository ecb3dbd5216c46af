"""Nodes of namespaces: the losses of one node, and runs that go on where a rank or a node is lost."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fangyan.distributed.nodes import _in_this_folder
from fangyan.errors import RESUMING
from model_families import BY_NAME, save
from nodes import nodes, why_not
from small_disk import fill

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": os.pathsep.join([str(ROOT / "kernels"), str(ROOT / "trainer")]),
}
FANGYAN = [sys.executable, "-m", "fangyan"]
# 20 epochs of 4 steps: long enough to be interrupted in the middle.
RECIPE = """
name: tiny
data: {format: conll, train: data.txt, dev: data.txt}
model: {path: base}
optimizer: {lr: 1.0e-3, eps: 1.0e-6}
schedule: {warmup: 0.0}
train:
  {epochs: 20, batch_tokens: 64, checkpoint_every: 4, keep_checkpoints: 2, log_every: 1, token_masking: 0.0}
"""
STEPS = 80

reason = why_not()
on_nodes = [
    pytest.mark.slow,
    pytest.mark.ranks,
    pytest.mark.skipif(reason is not None, reason=reason or ""),
]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A folder with a recipe, its data and a model, without dropout."""
    folder = tmp_path_factory.mktemp("方言 job's")
    save(BY_NAME["BERT"], folder / "base", num_labels=3)
    draw, lines = random.Random(0), []
    for _ in range(20):
        words = [draw.randint(10, 80) for _ in range(draw.randint(3, 24))]
        lines += [*(f"w{word} {'XYZ'[word % 3]}" for word in words), ""]
    (folder / "data.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def on_one_node(job, cli_in):
    """Losses of a number of ranks on this machine, by ZeRO stage."""
    found = {}

    def run(stage, ranks=2):
        if (stage, ranks) not in found:
            cli, name = cli_in(job), f"one-{stage}-{ranks}"
            cli("train", "tiny.yaml", f"engine.zero_stage={stage}", f"run_dir={name}", ranks=ranks)
            found[stage, ranks] = losses(job / name)
        return found[stage, ranks]

    return run


@pytest.fixture
def cluster(tmp_path, job, monkeypatch):
    """Two nodes, whose commands run in the job's folder."""
    monkeypatch.chdir(job)
    with nodes(2, tmp_path / "nodes") as cluster:
        cluster.hostfile(job / "hosts")
        yield cluster


def losses(run):
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [(record["step"], record["loss"]) for record in records if record["kind"] == "train"]


def start(cluster, *arguments, hosts="hosts", front=0):
    command = [*FANGYAN, "train", "tiny.yaml", "--hostfile", hosts, *arguments]
    return cluster.popen(front, command, ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process, code=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, f"{out[-2000:]}\n{err[-4000:]}"
    return err


def wait_for_step(process, run, step):
    deadline = time.monotonic() + 200
    while not (run / "metrics.jsonl").exists() or len(losses(run)) < step:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_close(found, expected):
    """Of fewer ranks, which sum in another order."""
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-6)


def ranks_of(cluster, node):
    found = cluster.processes(node)
    return [pid for pid, args in found.items() if "-m fangyan --local_rank" in args]


def assert_none_left(cluster, word, seconds=60):
    deadline = time.monotonic() + seconds
    while left := [args for node in (0, 1) for args in cluster.processes(node).values() if word in args]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


class TestOnNodes:
    pytestmark = on_nodes

    def test_resumes_after_a_full_disk_and_a_stopped_rank(self, tmp_path, job, on_one_node, monkeypatch):
        """At ZeRO 3, each node with a disk of its own: in the end as two ranks of one node."""
        monkeypatch.chdir(job)
        runs = tmp_path / "runs"
        arguments = ("engine.zero_stage=3", f"run_dir={runs}/run")
        with nodes(2, tmp_path / "nodes", separate=[runs]) as cluster:
            cluster.hostfile(job / "hosts")
            mounted = cluster.run(1, ["mount", "-t", "tmpfs", "-o", "size=64M", "tmpfs", runs])
            assert mounted.returncode == 0, mounted.stderr
            first, second = (cluster.path(node, runs) for node in (0, 1))
            process = start(cluster, *arguments)
            wait_for_step(process, first / "run", 10)
            filler = fill(second)
            err = finish(process, code=2)
            # Said in other words where the disk was full only for files of the other node, or for a name.
            assert re.search(r"by rank 1 on fyn1 \(|fyn1: .* cannot be written \(No space", err)
            assert re.search(rf"0\.000? GB are free .* after making room, {RESUMING}", err)
            filler.unlink()

            process = start(cluster, *arguments, "--resume", "auto")
            wait_for_step(process, first / "run", 40)
            (rank,) = ranks_of(cluster, 1)
            os.kill(rank, signal.SIGSTOP)
            begin = time.monotonic()
            while ranks_of(cluster, 0):
                assert time.monotonic() - begin < 60
                time.sleep(0.1)
            os.kill(rank, signal.SIGCONT)  # which then finds itself alone
            err = finish(process, code=1)
            assert "rank 1 on fyn1 has not answered for 40 s, last after step" in err
            assert f"{RESUMING} from the last checkpoint" in err

            finish(start(cluster, *arguments, "--resume", "auto"))
            assert losses(first / "run") == on_one_node(3)
            assert not list(second.rglob("*.partial"))

    def test_by_deepspeeds_own_command(self, cluster, job, on_one_node, tmp_path, monkeypatch):
        shutil.copytree(job, tmp_path / "job")  # its name is one that DeepSpeed does not quote
        monkeypatch.chdir(tmp_path / "job")
        # Which it does not pass on by itself; other numbers of threads sum in another order.
        (tmp_path / "job/.deepspeed_env").write_text("OMP_NUM_THREADS=1\n", encoding="utf-8")
        command = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", "hosts"]
        command += ["--module", "fangyan", "train", "tiny.yaml", "engine.zero_stage=3", "run_dir=by-pdsh"]
        result = cluster.run(0, command, ENVIRONMENT, timeout=300)
        assert result.returncode == 0, result.stderr[-3000:]
        assert losses(tmp_path / "job/by-pdsh") == on_one_node(3)

    def test_goes_on_where_the_first_of_four_nodes_is_killed(self, tmp_path, job, on_one_node, monkeypatch):
        """By a fifth that has no ranks; at ZeRO 2, until then as four ranks of one node."""
        monkeypatch.chdir(job)
        with nodes(5, tmp_path / "nodes") as cluster:
            # The order is the file's.
            cluster.hostfile(job / "four-hosts", order=[3, 2, 1, 0])
            arguments = ("engine.zero_stage=2", "run_dir=four", "--max-restarts", "1")
            process = start(cluster, *arguments, hosts="four-hosts", front=4)
            wait_for_step(process, job / "four", 30)
            cluster.kill(3)
            err = finish(process)
        lost = "fyn3: the node or the connection to it was lost"
        assert f"{lost}; going on with 3 ranks on fyn2, fyn1, fyn0 (restart 1 of 1)" in err
        found, expected = losses(job / "four"), on_one_node(2, ranks=4)
        assert found[:28] == expected[:28]
        assert_close(found, expected)

    def test_goes_on_where_a_rank_is_killed_and_a_link_is_cut(self, cluster, job, on_one_node):
        """At ZeRO 1. A cut link says nothing: the ranks name who is silent."""
        process = start(cluster, "engine.zero_stage=1", "run_dir=rank", "--max-restarts", "2")
        wait_for_step(process, job / "rank", 20)
        (rank,) = ranks_of(cluster, 1)
        os.kill(rank, signal.SIGKILL)
        wait_for_step(process, job / "rank", 50)
        cluster.cut(1)
        begin = time.monotonic()
        while ranks_of(cluster, 0) or ranks_of(cluster, 1):
            assert time.monotonic() - begin < 60
            time.sleep(0.1)
        err = finish(process)
        killed = "fangyan: fyn1: a rank was ended by SIGKILL; going on with 2 ranks on fyn0, fyn1"
        assert f"{killed} (restart 1 of 2)" in err
        assert "rank 1 on fyn1 has not answered for 40 s" in err
        assert "going on with 1 rank on fyn0 (restart 2 of 2)" in err
        found, expected = losses(job / "rank"), on_one_node(1)
        assert found[:48] == expected[:48]
        assert_close(found, expected)

    def test_ranks_end_where_the_command_is_killed(self, cluster, job):
        cluster.hostfile(job / "one", order=[1])
        process = start(cluster, "run_dir=orphans", hosts="one")
        wait_for_step(process, job / "orphans", 10)
        assert ranks_of(cluster, 1)
        process.kill()  # nsenter; what it started is killed too, as by the system where memory is short
        for pid, args in cluster.processes(0).items():
            if "--hostfile" in args:
                os.kill(pid, signal.SIGKILL)
        assert_none_left(cluster, "fangyan")
        assert len(losses(job / "orphans")) < STEPS

    def test_a_mistake_is_not_started_again(self, cluster, job):
        """One that only the ranks meet: the model."""
        arguments = ("model.path=nowhere", "run_dir=mistake", "--max-restarts", "3")
        cluster.hostfile(job / "one", order=[1])
        err = finish(start(cluster, *arguments, hosts="one"), code=2)
        assert "model.path" in err
        assert "restart" not in err

    def test_gives_up_where_nothing_is_gained(self, cluster, job):
        """Ranks that are killed again and again, before there is a checkpoint."""
        (job / "sitecustomize.py").write_text(
            "import os\nif 'RANK' in os.environ:\n    os.kill(os.getpid(), 9)\n",
            encoding="utf-8",
        )
        environment = {"PYTHONPATH": f"{ENVIRONMENT['PYTHONPATH']}{os.pathsep}{job}"}
        command = [
            *FANGYAN,
            "train",
            "tiny.yaml",
            "run_dir=vain",
            "--hostfile",
            "hosts",
            "--max-restarts",
            "5",
        ]
        result = cluster.run(0, command, ENVIRONMENT | environment, timeout=300)
        (job / "sitecustomize.py").unlink()
        assert result.returncode == 1
        assert result.stderr.count("going on with") == 1
        assert (
            "; no checkpoint was written between two losses; the run ends; train --resume auto"
            in result.stderr
        )

    def test_nodes_that_cannot_be_used(self, cluster, job):
        for text, message in [
            ("fyn0 slots=1\nfyn9 slots=1\n", "hosts2:2: ssh does not reach fyn9 (ssh: Could not resolve"),
            ("10.98.0.77 slots=1\n", "hosts2:1: ssh does not reach 10.98.0.77 (ssh: connect to host"),
        ]:
            (job / "hosts2").write_text(text, encoding="utf-8")
            err = finish(start(cluster, hosts="hosts2"), code=2)
            assert message in err
            assert len(err.strip().splitlines()) == 1

    def test_a_node_without_the_folder(self, tmp_path, monkeypatch, job):
        with nodes(2, tmp_path / "nodes", separate=[tmp_path / "own"]) as cluster:
            folder = cluster.path(0, tmp_path / "own") / "job"
            folder.mkdir()
            (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
            cluster.hostfile(folder / "hosts")
            go = f"cd {tmp_path}/own/job && exec {' '.join(FANGYAN)} train tiny.yaml --hostfile hosts"
            result = cluster.run(0, ["sh", "-c", go], ENVIRONMENT)
        assert result.returncode == 2
        assert f"hosts:2: fyn1 cannot start fangyan in {tmp_path}/own/job with" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
    def test_front_ends_what_it_started(self, cluster, tmp_path, number):
        rank = tmp_path / "rank.py"
        rank.write_text(
            "import time; from fangyan.distributed import front\n"
            "front.end_with_input(); print('ready', flush=True); time.sleep(600)",
            encoding="utf-8",
        )
        front = tmp_path / "front.py"
        front.write_text(
            "import sys; from fangyan.distributed.front import Front\n"
            "with Front() as front: print(front.run({'fyn0': sys.argv[1], 'fyn1': sys.argv[1]}))",
            encoding="utf-8",
        )
        command = f"PYTHONPATH={ROOT / 'trainer'} exec {sys.executable} {rank}"
        process = cluster.popen(
            0, [sys.executable, front, command], ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert [process.stdout.readline() for _ in cluster.names] == ["ready\n"] * 2
        (pid,) = [pid for pid, args in cluster.processes(0).items() if f"{front} " in args]
        os.kill(pid, number)
        assert_none_left(cluster, "rank.py")
        out, err = process.communicate(timeout=60)
        if number != signal.SIGKILL:
            assert signal.Signals(number).name in err
            assert out == f"{dict.fromkeys(cluster.names, 255)}\n"

    def test_arguments_arrive_as_they_are(self, cluster, tmp_path, monkeypatch):
        """By ssh and a shell there; the shells of this machine are in test_node_commands.py."""
        folder = tmp_path / "a b'c$HOME`id` 方言"
        folder.mkdir()
        monkeypatch.chdir(folder)
        odd = ["run_dir=two  words", "a'b\"c", "$HOME `id`", "#x", "方言=粵", "100%n", "a\\b\nc", "", "*"]
        show = "import json, os, sys; print(json.dumps([os.getcwd(), *sys.argv[1:]]))"
        result = cluster.run(0, ["ssh", "fyn1", _in_this_folder([sys.executable, "-c", show, *odd])])
        assert json.loads(result.stdout) == [str(folder), *odd]
