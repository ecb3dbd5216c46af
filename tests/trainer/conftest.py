"""Small real runs: a few conversations of HKCanCor, a small ELECTRA and the real one's tokenizer."""

import json
import os
import socket
import subprocess
import sys

import forked_command
import pytest
import torch
from fangyan.models.packaged.electra import read_electra
from forked_command import ForkedCommand, of_ranks
from transformers import ElectraConfig, ElectraModel

# The ranks of a test share two cores.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

# 117 sentences and 9 steps per epoch: a run takes seconds.
SMALL = (
    "data.train=[FC-R005_v2]",
    "data.dev=[FC-R009_v]",
    "data.test=null",
    "train.epochs=2",
    "train.batch_tokens=256",
    "train.log_every=1",
    # Tests of the report have theirs.
    "train.report=false",
    "train.checkpoint_every=2",
    "train.keep_checkpoints=2",
    "optimizer.lr=1e-2",
    # AdamW divides by a gradient's size, and hidden tokens make steep losses: without these two, rounding
    # alone grows a thousandfold in 18 steps.
    "optimizer.eps=1e-6",
    "train.token_masking=0.0",
    "schedule.warmup=0.0",
)


class Cli:
    """Runs the real command, one process per rank; by DeepSpeed's launcher where asked to."""

    def __init__(self, folder, server, electra):
        self.folder = folder
        self.server = server
        self.electra = electra

    def start(self, *arguments, ranks=1, launcher=False, environment=None):
        # More ranks than GPUs share the CPU.
        common = {"CUDA_VISIBLE_DEVICES": ""} if ranks > max(1, torch.cuda.device_count()) else {}
        common |= environment or {}
        if not launcher:
            environments = of_ranks(ranks, _free_port()) if ranks > 1 else [{}]
            return ForkedCommand(self.server, self.folder, arguments, [common | own for own in environments])
        command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(ranks)]
        return subprocess.Popen(
            [*command, "--master_port", str(_free_port()), "--module", "fangyan", *arguments],
            cwd=self.folder,
            env=os.environ | ENVIRONMENT | common,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def __call__(self, *arguments, code=0, **where):
        process = self.start(*arguments, **where)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, (
            f"exit {process.returncode}, expected {code}\n{out[-3000:]}\n{err[-3000:]}"
        )
        return out, err

    def train(self, *overrides, ranks=1, code=0, environment=None, **options):
        arguments = self.train_arguments(*overrides, **options)
        return self(*arguments, ranks=ranks, code=code, environment=environment)

    def train_arguments(self, *overrides, resume=None, run="run"):
        extra = [] if resume is None else ["--resume", str(resume)]
        places = (f"model.path={self.electra}", f"run_dir={self.folder / run}")
        return ["train", "cantonese-pos", *SMALL, *places, *overrides, *extra]

    def records(self, run="run"):
        """Return the records of metrics.jsonl that are the same in every such run: no clock is in them."""
        lines = (self.folder / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [record for record in map(json.loads, lines) if record["kind"] not in ("speed", "time")]

    def losses(self, run="run"):
        """Return (step, loss) of every step that metrics.jsonl records."""
        return [(record["step"], record["loss"]) for record in self.records(run) if record["kind"] == "train"]


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def free_port():
    return _free_port


@pytest.fixture(scope="session")
def server():
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)  # the server hands its own to every command
    context = forked_command.server()
    process = context.Process(target=int)
    process.start()
    process.join()
    os.environ.clear()
    os.environ.update(before)
    return context


@pytest.fixture(scope="session")
def electra(tmp_path_factory):
    """The Cantonese ELECTRA, but narrow: its steps and checkpoints take a fraction of the real one's time."""
    folder = tmp_path_factory.mktemp("electra") / "narrow"
    packaged = read_electra(pretrained=False)
    sizes = {"embedding_size": 32, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    torch.manual_seed(0)
    ElectraModel(ElectraConfig.from_dict(packaged.config.to_dict() | sizes)).save_pretrained(folder)
    packaged.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def cli_in(server, electra):
    """The command, run in some folder."""
    return lambda folder: Cli(folder, server, electra)


@pytest.fixture
def cli(tmp_path, cli_in):
    return cli_in(tmp_path)


@pytest.fixture(scope="session")
def one_rank(tmp_path_factory, cli_in):
    """One rank with two micro-batches per step: what two ranks have one of each, with the same dropout."""
    cli = cli_in(tmp_path_factory.mktemp("one"))
    cli.train("train.gradient_accumulation_steps=2")
    return cli


@pytest.fixture(scope="session")
def finished(tmp_path_factory, cli_in):
    """One finished run that tests may read but not change."""
    cli = cli_in(tmp_path_factory.mktemp("finished"))
    cli.out, _ = cli.train("data.test=[FC-R011_v]", "train.epochs=3")
    return cli
