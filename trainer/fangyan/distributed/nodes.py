"""Several nodes from one command: ``fangyan train RECIPE --hostfile hosts``.

ssh starts DeepSpeed's launcher of a node, ``deepspeed.launcher.launch``, on each. The command ``deepspeed``,
which does so by pdsh, is left out: it quotes neither the working folder nor ``$`` in an argument, ends ranks
by ``pkill`` of all launches that the user has on a node, and leaves them behind where it is killed itself;
pdsh does not hand its standard input on. Elastic agents, those of DeepSpeed and torchrun, have to run and
agree on every node, and DeepSpeed's changes the batch with the number of ranks; here the recipe's stays.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fangyan.distributed.front import SSH, Front
from fangyan.distributed.hostfile import Host
from fangyan.distributed.node_report import JOB, NodeReport
from fangyan.errors import UserError
from fangyan.terminal import warn

# Seconds for a node's answer to a question, with the start of Python from a slow disk.
_ANSWER = 60.0
# Variables that the ranks have as they are here: DeepSpeed's list, and what changes numbers. No secrets,
# since all users of a node see its command lines.
_PASSED_ON = (
    "DS_",
    "GLOO_",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "MKL_",
    "MLFLOW",
    "MV2",
    "NCCL",
    "OMP_",
    "PYTHON",
    "UCX",
)


def train_on_nodes(
    hosts: Sequence[Host], arguments: Sequence[str], run: Path, resume: str | None, max_restarts: int
) -> int:
    """Run ``fangyan train`` on nodes until it ends, and return its exit code.

    Args:
        hosts: the first has rank 0.
        arguments: of ``fangyan train``, without ``--resume``.
        run: the run folder.
        resume: what the first start resumes from.
        max_restarts: how often it is started again on the nodes that are left, where ranks or nodes are lost.

    Raises:
        UserError: if a node cannot be used, or with 2 for an exit code.
    """
    if shutil.which("ssh") is None:
        raise UserError("--hostfile: no command ssh on PATH, expected it (package openssh-client)")
    job = secrets.token_hex(8)
    answers = _ask(hosts, run, job)
    for answer in answers.values():
        if isinstance(answer, str):
            raise UserError(answer)
    first = reports = _that_answer(answers)
    in_vain = restart = 0
    with Front() as front:
        while True:
            command = ["train", *arguments, *(["--resume", resume] if resume else [])]
            codes = front.run(_commands(reports, command, job))
            code = _exit_code(codes, front.received)
            if code is not None:
                return code
            lost = _lost(codes)
            if restart == max_restarts:
                return _give_up(lost)
            before, reports = reports, _that_answer(_ask(hosts, run, job))
            if front.received is not None:
                return 128 + front.received
            in_vain = 0 if _differ(before, reports, "checkpoint") else in_vain + 1
            if not reports:
                return _give_up(f"{lost}; no node answers any more")
            if in_vain == 2:
                return _give_up(f"{lost}; no checkpoint was written between two losses")
            if _differ(first, reports, "run", "checkpoint"):
                resume = "auto"  # until then, that would be an earlier run
            restart += 1
            _say(f"{lost}; going on with {_named(reports)} (restart {restart} of {max_restarts})")


def _that_answer(answers: dict[Host, NodeReport | str]) -> dict[Host, NodeReport]:
    return {host: answer for host, answer in answers.items() if not isinstance(answer, str)}


def _ask(hosts: Sequence[Host], run: Path, job: str) -> dict[Host, NodeReport | str]:
    """Return what each node says of itself, or a sentence about why it says nothing.

    Nothing of the job runs any more, or is to: a node ends what is left, as ranks that are stopped.
    """
    module = [sys.executable, "-m", "fangyan.distributed.node_report"]
    command = _in_this_folder([*module, job, str(run), *(host.name for host in hosts)])
    with ThreadPoolExecutor(len(hosts)) as pool:
        return dict(zip(hosts, pool.map(lambda host: _ask_one(host, command), hosts), strict=True))


def _ask_one(host: Host, command: str) -> NodeReport | str:
    ssh = [*SSH, host.name, command]
    try:
        answer = subprocess.run(
            ssh,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_ANSWER,
        )
    except subprocess.TimeoutExpired:
        return f"{host.source}: {host.name} does not answer ssh within {_ANSWER:.0f} s"
    # Before and after the answer is what a login shell says.
    said = [line for line in answer.stdout.splitlines() if line.startswith("{")]
    if answer.returncode == 0 and said:
        report: NodeReport = json.loads(said[-1])
        return report
    why = (answer.stderr.strip() or f"exit code {answer.returncode}").splitlines()[-1]
    if answer.returncode == 255:
        return (
            f"{host.source}: ssh does not reach {host.name} ({why}); expected `ssh {host.name} true` to do "
            "so without a password"
        )
    return (
        f"{host.source}: {host.name} cannot start fangyan in {os.getcwd()} with {sys.executable} ({why}); "
        "expected the same folder and environment as here"
    )


def _commands(reports: dict[Host, NodeReport], arguments: Sequence[str], job: str) -> dict[str, str]:
    """Return the command of each node, by host name."""
    world = json.dumps({host.name: list(range(host.slots)) for host in reports})
    port = next(iter(reports.values()))["port"]
    launch = [f"{JOB}={job}", sys.executable, "-u", "-m", "deepspeed.launcher.launch", "--quiet"]
    launch += [f"--world_info={base64.urlsafe_b64encode(world.encode()).decode()}"]
    launch += [f"--master_addr={_master(reports)}", f"--master_port={port}"]
    rank = ["--module", "fangyan", "--end-with-input", *arguments]
    return {
        host.name: _in_this_folder([*launch, f"--node_rank={number}", *rank])
        for number, host in enumerate(reports)
    }


def _master(reports: dict[Host, NodeReport]) -> str:
    """Return the address by which all nodes reach the first: by what the others call it, if they can."""
    host, own = next(iter(reports.items()))
    if len(reports) == 1:
        return "127.0.0.1"
    others = [report["addresses"][host.name] for report in list(reports.values())[1:]]
    for address in (*others, own["reached"]):
        if address and not address.startswith("127."):
            return address
    raise UserError(
        f"{host.source}: {host.name} is {own['reached']} to the other nodes too, expected an address that "
        "they reach"
    )


def _in_this_folder(command: Sequence[str]) -> str:
    """Return a command for a node's shell, with this process' working folder and settings."""
    settings = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
    # Arguments are UTF-8 where the node's locale is another.
    settings |= {"PYTHONUTF8": "1", **_deepspeed_env()}
    variables = [f"{name}={value}" for name, value in settings.items()]
    return f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(['env', *variables, *command])}"


def _deepspeed_env() -> dict[str, str]:
    """Return the variables that DeepSpeed's own file sets on all nodes."""
    found = {}
    for folder in (Path.home(), Path()):
        path = folder / os.environ.get("DS_ENV_FILE", ".deepspeed_env")
        if path.is_file():
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                name, equals, value = (part.strip() for part in line.partition("="))
                if line.strip() and not line.startswith("#"):
                    if not (equals and name.isidentifier()):
                        raise UserError(f"{path}:{number}: {line!r}, expected NAME=VALUE")
                    found[name] = value
    return found


def _exit_code(codes: dict[str, int], received: signal.Signals | None) -> int | None:
    """Return the run's exit code, or None if ranks or nodes were lost."""
    ended = set(codes.values())
    if received is not None:
        return 0 if ended == {0} and received != signal.SIGINT else 128 + received
    if 2 in ended:  # the user's mistake, which the ranks have said
        return 2
    return 0 if ended == {0} else None


def _lost(codes: dict[str, int]) -> str:
    """Return which ranks or nodes ended, and how.

    Ranks that fail since another is lost end with 1, so that any other code is nearer to the cause.
    """
    failed = {host: code for host, code in codes.items() if code}
    causes = {host: code for host, code in failed.items() if code != 1} or failed
    return ", ".join(f"{host}: {_how(code)}" for host, code in causes.items())


def _how(code: int) -> str:
    if code == 255 or code < 0:
        return "the node or the connection to it was lost"
    if 256 - code in set(signal.Signals):  # as DeepSpeed's launcher passes on a rank's
        return f"a rank was ended by {signal.Signals(256 - code).name}"
    return f"a rank failed with exit code {code}"


def _differ(before: dict[Host, NodeReport], after: dict[Host, NodeReport], *parts: str) -> bool:
    return any(
        before[host].get(part) != after[host].get(part) for host in after if host in before for part in parts
    )


def _named(reports: dict[Host, NodeReport]) -> str:
    ranks = sum(host.slots for host in reports)
    return f"{ranks} rank{'s' * (ranks > 1)} on {', '.join(host.name for host in reports)}"


def _give_up(lost: str) -> int:
    _say(f"{lost}; the run ends; train --resume auto resumes from the last checkpoint")
    return 1


def _say(sentence: str) -> None:
    warn(sentence)
