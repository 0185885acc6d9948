"""A real Slurm cluster of several nodes on one machine, for tests.

Each node, and the head that runs the controller and the clients, looks like a separate machine to its programs: it
has its own hostname, network address, processes and shared memory. Only the file system is shared, as it is on
clusters, and jobs run as root. The CPUs and GPUs of the nodes are invented: Slurm allocates them, but does not confine
jobs to them.

Each machine has a first process in its process namespace. When that process ends, the kernel kills all others in the
namespace and removes its network and mounts. It ends with the tests, even if they are killed, and nothing is written
outside the given folder, so nothing is left behind.
"""

import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

Arguments = Sequence[str | Path]
PACKAGES = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge", "ip": "iproute2"}
PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
UNSHARE = ["unshare", "--fork", "--kill-child", "--pid", "--mount-proc", "--mount", "--uts", "--net"]
MAX_SOCKET_PATH = 107  # characters; see unix(7)
# The first process of a machine: a shell that stays, and reaps orphans.
INIT = """
trap exit TERM
hostname "$0" && mount --bind "$1" /etc/hosts && mount -t tmpfs shm /dev/shm && ip link set lo up || exit
echo up
sleep infinity & wait
"""
SETTINGS: dict[str, object] = {
    "ClusterName": "test",
    "SlurmctldHost": "head",
    "MessageTimeout": 5,  # seconds that a node has to answer
    "SlurmdTimeout": 10,  # seconds until a silent node is down; in all it takes about 20
    "ReturnToService": 2,  # a node is used again as soon as it answers
    "KillWait": 5,
    "MinJobAge": 3600,  # seconds for which the state of ended jobs is kept
    "SchedulerParameters": "batch_sched_delay=0,sched_interval=1,bf_interval=1",
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_Core",
    "SlurmdParameters": "config_overrides",  # nodes have the CPUs of this configuration, not those of the machine
    "ProctrackType": "proctrack/linuxproc",
    "GresTypes": "gpu",
}


def environment() -> dict[str, str]:
    """Return the environment of the tests, without the variables of a Slurm job in which they may run."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | {"PATH": PATH}


def missing() -> str | None:
    """Return why a cluster cannot be started on this machine; None if it can."""
    if packages := sorted({package for name, package in PACKAGES.items() if not shutil.which(name, path=PATH)}):
        return f"a cluster needs packages that are not installed: {', '.join(packages)}"
    if os.geteuid() != 0:
        return "a cluster needs root"
    needed = "mount -t tmpfs shm /dev/shm && ip link add type bridge && ip link add type veth"
    done = subprocess.run([*UNSHARE, "sh", "-c", needed], env=environment(), capture_output=True, text=True)
    return f"a cluster needs namespaces: {done.stderr.strip()}" if done.returncode else None


def until(reached: Callable[[], bool], timeout: float) -> bool:
    """Wait until a condition holds; return False if it does not within `timeout` seconds."""
    end = time.monotonic() + timeout
    while not reached():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


class Command(subprocess.Popen[str]):
    """A command inside a machine. The process outside is nsenter, which exits with the command's exit code."""

    def send_signal(self, sig: int) -> None:
        """Send a signal to the command itself, because nsenter forwards none."""
        if self.poll() is None:
            with suppress(psutil.NoSuchProcess):
                outer = psutil.Process(self.pid)
                for process in outer.children() or [outer]:
                    process.send_signal(sig)


class Machine:
    """The namespaces of a machine. They end with its first process, whose id is `pid`."""

    def __init__(self, name: str, folder: Path) -> None:
        self._conf = str(folder / "slurm.conf")
        self._started = ExitStack()
        command = ["setpriv", "--pdeathsig", "KILL", *UNSHARE, "sh", "-c", INIT, name, str(folder / "hosts")]
        outer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
        self._started.enter_context(outer)
        assert outer.stdout is not None
        if outer.stdout.readline() != "up\n":
            raise RuntimeError(f"the namespaces of {name} cannot be created")
        self._first = psutil.Process(outer.pid).children()[0]
        self.pid = self._first.pid

    def popen(
        self, command: Arguments, *, env: Mapping[str, str] | None = None, cwd: Path | None = None, **options: Any
    ) -> Command:
        """Start a command in this machine. `env` adds to the environment; the options are those of Popen."""
        # Without --wdns the command would start in the root folder.
        enter = ["nsenter", f"--target={self.pid}", "--pid", "--mount", "--uts", "--net", f"--wdns={cwd or Path.cwd()}"]
        env = {**environment(), "SLURM_CONF": self._conf, **(env or {})}
        options = {"stdin": subprocess.DEVNULL, "text": True, "env": env, **options}
        return self._started.enter_context(Command([*enter, *map(str, command)], **options))

    def network(self, *commands: str) -> None:
        """Run commands of `ip` in this machine's network, with the process ids of the outside."""
        command = ["nsenter", f"--target={self.pid}", "--net", "ip", "-batch", "-"]
        subprocess.run(command, input="\n".join(commands), text=True, check=True, env=environment())

    def end(self) -> None:
        """Kill everything in the machine, as a power cut would, and wait until it is gone."""
        with suppress(psutil.NoSuchProcess):
            self._first.terminate()
        self._started.close()


@dataclass(frozen=True)
class Cluster:
    """A running Slurm cluster.

    Attributes:
        folder: its settings, state and logs.
        head: the machine of the controller and of the clients.
        nodes: the machines of node1, node2 and so on, by these numbers.
    """

    folder: Path
    head: Machine
    nodes: dict[int, Machine]

    def popen(self, command: Arguments, **options: Any) -> Command:
        """Start a command on the head, with the options of `Machine.popen`."""
        return self.head.popen(command, **options)

    def run(self, command: Arguments, *, timeout: float, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on the head; after `timeout` seconds kill it and raise TimeoutExpired."""
        process = self.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
        return subprocess.CompletedProcess(list(map(str, command)), process.returncode, out, err)

    def job(self, job_id: str) -> dict[str, str]:
        """Return the fields of a job, such as JobState, ExitCode and Restarts."""
        done = self.run(["scontrol", "show", "job", "-o", job_id], timeout=60)
        return dict(re.findall(r"(\S+?)=(\S*)", done.stdout))

    def wait(self, job_id: str, states: set[str], timeout: float) -> str:
        """Wait until a job is in one of these states, and return it; raise TimeoutError with the job's fields."""
        end = time.monotonic() + timeout
        while (fields := self.job(job_id)).get("JobState") not in states:
            if time.monotonic() > end:
                raise TimeoutError(f"job {job_id} is not {' or '.join(sorted(states))}: {fields}\n{self.logs()}")
            time.sleep(0.2)
        return fields["JobState"]

    def wait_idle(self, timeout: float) -> None:
        """Wait until all nodes respond and are idle."""
        idle = ["sinfo", "--noheader", "--Node", "--responding", "--states=idle"]
        if not until(lambda: self.run(idle, timeout=60).stdout.count("\n") == len(self.nodes), timeout):
            raise TimeoutError(f"not all nodes are idle\n{self.logs()}")

    def cut(self, node: int) -> None:
        """Disconnect a node from the network; its processes keep running."""
        self.head.network(f"link set node{node} down")

    def join(self, node: int) -> None:
        """Connect a node to the network again."""
        self.head.network(f"link set node{node} up")

    def logs(self) -> str:
        """Return the last lines of each daemon's log."""
        logs = {file.name: file.read_text().splitlines() for file in sorted((self.folder / "log").iterdir())}
        return "\n".join("\n".join([f"== {name}", *lines[-20:]]) for name, lines in logs.items())


@contextmanager
def cluster(folder: Path, nodes: int = 2, *, cpus: int = 4, gpus: int = 4, **settings: object) -> Iterator[Cluster]:
    """Start a cluster, yield it when its nodes are idle, and end it.

    Args:
        folder: everything is written below it; the path must be short, because paths of sockets are limited.
        nodes: the number of nodes.
        cpus: CPUs per node.
        gpus: GPUs per node, at least one.
        settings: lines of slurm.conf that replace those in SETTINGS, such as `SlurmdTimeout=5`.
    """
    folder = folder.resolve()
    longest = len(f"{folder}/spool/node1/node1_1.{2**32 - 1}")  # the socket of a job's step
    if longest > MAX_SOCKET_PATH:
        raise ValueError(f"{folder}: its path is too long for the sockets of Slurm by {longest - MAX_SOCKET_PATH}")
    for name in ("state", "spool", "log"):
        (folder / name).mkdir(parents=True)
    for number in range(gpus):  # slurmd requires device files; these act like /dev/null
        os.mknod(folder / f"gpu{number}", stat.S_IFCHR, os.makedev(1, 3))
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{gpus - 1}]\n")
    # Without this line slurmd looks for a plugin, although none is used.
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    (folder / "munge.key-file").touch(0o600)
    (folder / "munge.key-file").write_bytes(os.urandom(128))
    addresses = {"head": "10.0.0.254"} | {f"node{number}": f"10.0.0.{number}" for number in range(1, nodes + 1)}
    (folder / "hosts").write_text(
        "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in addresses.items())
    )
    paths = {
        # A requeued job waits until its old credential expires.
        "AuthInfo": f"socket={folder}/munge.socket,cred_expire=5",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool/%n",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "%n.pid",
        "NodeName": f"node[1-{nodes}] CPUs={cpus} RealMemory=4000 Gres=gpu:{gpus}",
        "PartitionName": "main Nodes=ALL Default=YES MaxTime=60",
    }
    conf = (SETTINGS | settings | paths).items()
    (folder / "slurm.conf").write_text("".join(f"{name}={value}\n" for name, value in conf))
    with ExitStack() as stack:
        machines: dict[str, Machine] = {}

        def start(name: str, *command: str) -> None:
            with (folder / "log" / f"{name}-{command[0]}").open("w") as log:
                machines[name].popen(command, stdout=log, stderr=log)

        for name, address in addresses.items():
            machine = machines[name] = Machine(name, folder)
            stack.callback(machine.end)
            link = f"link add {name} master eth0 up type veth peer name eth0 netns {machine.pid}"
            machines["head"].network("link add eth0 type bridge" if name == "head" else link)
            machine.network(f"addr add {address}/24 dev eth0", "link set eth0 up")
        files = (f"--{file}={folder}/munge.{file}" for file in ("socket", "key-file", "pid-file", "seed-file"))
        start("head", "munged", "-F", "--force", *files)
        until((folder / "munge.socket").exists, 60)
        start("head", "slurmctld", "-D")
        for name in list(addresses)[1:]:
            start(name, "slurmd", "-D")
        running = Cluster(folder, machines.pop("head"), dict(enumerate(machines.values(), 1)))
        running.wait_idle(60)
        yield running
