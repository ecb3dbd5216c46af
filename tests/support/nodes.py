"""Nodes: several machines on this one, each with a network, host name, disk, processes and sshd of its own.

Linux namespaces, joined by a bridge that has a namespace of its own too: nothing of this machine's network
is touched, and clusters side by side do not see each other. Whatever ends the process that made them ends
every process of theirs, and with those all namespaces, mounts and links.

    with nodes(2, tmp_path / "cluster", separate=[tmp_path / "runs"]) as cluster:
        cluster.run(0, ["ssh", "fyn1", "hostname"])
        cluster.kill(1)

Node i is called ``fyn<i>``. Files are shared by all, as on a network's disk, but for /dev/shm, /run and the
folders in ``separate``.
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

_PROGRAMS = ("sshd", "ssh", "ssh-keygen", "pdsh", "ip", "unshare", "nsenter", "mount")
# System programs are on root's path, which a test's need not be.
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid")
# prctl(2).
_PR_SET_PDEATHSIG = 1

# The first process of a node: its end is the node's. It reaps what loses its parent.
_INIT = """
set -e
hostname "$1"
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mount -t tmpfs tmpfs /dev/shm
mount --bind "$2/hosts" /etc/hosts
mount --bind "$2/ssh_config" /etc/ssh/ssh_config
# What a user's own does for each session is not to be cut off where a node is killed.
[ ! -e ~root/.bashrc ] || mount --bind /dev/null ~root/.bashrc
ip link set lo up
folder=$2
sshd=$3
disk=$4
shift 4
for path; do
    mkdir -p "$disk$path"
    mount --bind "$disk$path" "$path"
done
"$sshd" -D -f "$folder/sshd_config" -E "$folder/sshd.log" &
wait
"""


def why_not():
    """Return why there can be no nodes here, or None: what a test is skipped with."""
    if os.getuid() != 0:
        return "nodes need root, which makes their namespaces"
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"nodes need {', '.join(missing)} (packages openssh-server, pdsh, iproute2 and util-linux)"
    tried = ["unshare", *_NAMESPACES, "--fork", "--mount-proc", "sh", "-c"]
    tried += ["ip link add fy0 type veth && ip link add fysw type bridge && mount -t tmpfs tmpfs /run"]
    result = subprocess.run(tried, capture_output=True, text=True, env=os.environ | {"PATH": _PATH})
    if result.returncode:
        return f"nodes need namespaces, links and mounts, which this system refuses: {result.stderr.strip()}"
    return None


@contextmanager
def nodes(count, folder, separate=()):
    """Start nodes and end them, however the block ends.

    Args:
        count: 2 to 4, or more.
        folder: a new one for keys, settings and the nodes' disks.
        separate: folders, which are made, of which each node has one of its own.
    """
    cluster = Cluster(count, Path(folder), [Path(path) for path in separate])
    try:
        cluster.begin()
        yield cluster
    finally:
        cluster.end()


class Cluster:
    """Nodes that :func:`nodes` has started.

    Attributes:
        names: of the hosts, in order.
        addresses: likewise.
    """

    def __init__(self, count, folder, separate):
        self.names = [f"fyn{node}" for node in range(count)]
        self.addresses = [f"10.98.0.{node + 1}" for node in range(count)]
        self._folder, self._separate = folder, separate
        self._switch = None
        self._nodes = {}
        self._commands = []

    def begin(self):
        """Start the bridge and all nodes."""
        for path in (self._folder, *self._separate):
            path.mkdir(parents=True, exist_ok=True)
        self._write_settings()
        self._switch = _Namespaces(["--net"], ["sleep", "infinity"])
        self._on_switch("link", "add", "fysw", "type", "bridge")
        self._on_switch("link", "set", "fysw", "up")
        for node in range(len(self.names)):
            self._boot(node)
        for node in range(len(self.names)):
            self._wait_for_sshd(node)

    def end(self):
        """End every process, and with them all else."""
        for command in self._commands:
            with command:
                command.kill()
        for started in (*self._nodes.values(), self._switch):
            if started is not None:
                started.kill()

    def hostfile(self, path, slots=1, order=None):
        """Write a hostfile of all nodes, or of some in the order given."""
        order = range(len(self.names)) if order is None else order
        path.write_text("".join(f"{self.names[node]} slots={slots}\n" for node in order), encoding="utf-8")
        return path

    def start(self, node):
        """Start a node that was killed."""
        self._boot(node)
        self._wait_for_sshd(node)

    def kill(self, node):
        """End all processes of a node at once. The others hear of it, as their connections are closed."""
        self._nodes.pop(node).kill()
        # The system takes the link away with the namespace, but not at once.
        subprocess.run(self._switch.enter(["ip", "link", "delete", f"fy{node}"]), stderr=subprocess.DEVNULL)

    def cut(self, node):
        """Take a node's link down. Nobody hears of it."""
        self._on_switch("link", "set", f"fy{node}", "down")

    def heal(self, node):
        """Bring the link up again."""
        self._on_switch("link", "set", f"fy{node}", "up")

    def popen(self, node, command, env=None, **options):
        """Start a command on a node, as :class:`subprocess.Popen` does."""
        environment = os.environ | {"PATH": _PATH} | (env or {})
        started = subprocess.Popen(
            self._nodes[node].enter(command),
            env=environment,
            text=True,
            preexec_fn=_heed_signals,
            **options,
        )
        self._commands.append(started)
        return started

    def run(self, node, command, env=None, timeout=60, **options):
        """Run a command on a node, and return its :class:`subprocess.CompletedProcess`, with its output."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        process = self.popen(node, command, env, **streams)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def path(self, node, path):
        """Return where this machine sees a node's path, whether or not it is shared."""
        return Path(f"/proc/{self._nodes[node].pid}/root", *Path(path).parts[1:])

    def processes(self, node):
        """Return the command lines of what runs on a node, by process id as this machine sees it."""
        own = _process_namespace(self._nodes[node].pid)
        found = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # it has ended
                if _process_namespace(process.pid) == own:
                    found[process.pid] = " ".join(process.cmdline())
        return found

    def _boot(self, node):
        name = self.names[node]
        arguments = [name, self._folder, shutil.which("sshd", path=_PATH), self._folder / f"disk{node}"]
        command = ["bash", "-c", _INIT, "init", *map(str, (*arguments, *self._separate))]
        started = _Namespaces([*_NAMESPACES, "--mount-proc"], command)
        self._nodes[node] = started
        self._on_switch(
            *f"link add fy{node} type veth peer name fy0 netns {started.pid}".split(),
        )
        self._on_switch("link", "set", f"fy{node}", "master", "fysw", "up")
        enter = started.enter
        _run(enter(["ip", "address", "add", f"{self.addresses[node]}/24", "dev", "fy0"]))
        _run(enter(["ip", "link", "set", "fy0", "up"]))

    def _wait_for_sshd(self, node):
        probe = "until (exec 3<>/dev/tcp/127.0.0.1/22) 2>/dev/null; do sleep 0.02; done"
        try:
            _run(self._nodes[node].enter(["timeout", "10", "bash", "-c", probe]))
        except subprocess.CalledProcessError:
            log = self._folder / "sshd.log"
            raise RuntimeError(
                f"no sshd on {self.names[node]}: {log.read_text(encoding='utf-8') if log.exists() else ''}"
            ) from None

    def _on_switch(self, *arguments):
        _run(self._switch.enter(["ip", *arguments]))

    def _write_settings(self):
        folder = self._folder
        for key in ("host", "user"):
            _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)])
        hosts = [f"{address} {name}\n" for address, name in zip(self.addresses, self.names, strict=True)]
        sshd = [
            f"HostKey {folder}/host",
            f"AuthorizedKeysFile {folder}/user.pub",
            "StrictModes no",  # the folder is a test's, perhaps below one that all may write to
            "UsePAM no",
            "PermitRootLogin prohibit-password",
            "PasswordAuthentication no",
        ]
        ssh = [
            "Host *",
            f"IdentityFile {folder}/user",
            "StrictHostKeyChecking no",
            "UserKnownHostsFile /dev/null",
            "LogLevel ERROR",
        ]
        (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(hosts), encoding="utf-8")
        (folder / "sshd_config").write_text("\n".join([*sshd, ""]), encoding="utf-8")
        (folder / "ssh_config").write_text("\n".join([*ssh, ""]), encoding="utf-8")


class _Namespaces:
    """A process in new namespaces, which end with it.

    Attributes:
        pid: of the first process in them, as this machine sees it.
    """

    def __init__(self, kinds, command):
        own_processes = "--pid" in kinds
        options = [*kinds, *(["--fork", "--kill-child"] if own_processes else [])]
        self._kinds = kinds
        self._outer = subprocess.Popen(
            ["unshare", *options, *command],
            env=os.environ | {"PATH": _PATH},
            stdin=subprocess.DEVNULL,
            preexec_fn=_end_with_parent,
        )
        try:
            self.pid = _soon(lambda: self._first_process(own_processes))
        except BaseException:
            self._outer.kill()
            raise
        self._end = os.pidfd_open(self.pid)  # readable once it has ended, with all others

    def _first_process(self, own_processes):
        assert self._outer.poll() is None, f"unshare ended with {self._outer.returncode}"
        if own_processes:
            children = psutil.Process(self._outer.pid).children()
            return children[0].pid if children else None
        new = os.readlink(f"/proc/{self._outer.pid}/ns/net") != os.readlink("/proc/self/ns/net")
        return self._outer.pid if new else None

    def enter(self, command):
        """Return the command line that runs a command in them."""
        kinds = [kind for kind in self._kinds if kind in _NAMESPACES]
        # The folder by its path there: nsenter's would be that of this machine's mounts, from where files are
        # on another device.
        there = ["env", f"--chdir={os.getcwd()}"] if "--mount" in kinds else []
        return ["nsenter", f"--target={self.pid}", *kinds, *there, *map(str, command)]

    def kill(self):
        """End every process in them, and wait until they have."""
        self._outer.kill()
        self._outer.wait()
        select.select([self._end], [], [], 10)
        os.close(self._end)


def _heed_signals():
    """As in a terminal, whatever started the tests: a shell's background job ignores both."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _end_with_parent():
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _process_namespace(pid):
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:  # it has ended
        return None


def _run(command):
    environment = os.environ | {"PATH": _PATH}
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    if result.returncode:
        print(result.stderr, file=sys.stderr)
        result.check_returncode()


def _soon(look, seconds=10):
    """Return what ``look`` returns once that is not None."""
    deadline = time.monotonic() + seconds
    while (found := look()) is None:
        assert time.monotonic() < deadline, "nothing came of it"
        time.sleep(0.005)
    return found
