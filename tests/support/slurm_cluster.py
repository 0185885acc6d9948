"""A real Slurm of several nodes on this one machine, for tests.

Every node, and the head where the controller runs and clients are started, is a machine of its own as far as its
programs can tell: it has its own hostname, network address, processes and shared memory. Only the file system is
shared, as it is on clusters, and jobs run as root. The nodes' CPUs and GPUs are made up: jobs are counted against
them, and held to nothing.

Everything hangs on one process per machine, the first in its process namespace: where that ends, the kernel ends all
others in it, and its network and mounts are gone. It ends with the tests, killed ones too, and nothing is written
outside the given folder: so nothing can be left behind.
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

Words = Sequence[str | Path]
PACKAGES = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge", "ip": "iproute2"}
PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
UNSHARE = ["unshare", "--fork", "--kill-child", "--pid", "--mount-proc", "--mount", "--uts", "--net"]
# The shell stays, and reaps whatever loses its parent, as the first process must.
FIRST = """
trap exit TERM
hostname "$0" && mount --bind "$1" /etc/hosts && mount -t tmpfs shm /dev/shm && ip link set lo up || exit
echo up
sleep infinity & wait
"""
SETTINGS: dict[str, object] = {
    "ClusterName": "test",
    "SlurmctldHost": "head",
    "MessageTimeout": 5,  # a node that does not answer for so long is asked no more,
    "SlurmdTimeout": 10,  # and is given up after this: in all it takes about 20 seconds
    "ReturnToService": 2,  # and it serves again as soon as it answers
    "KillWait": 5,
    "MinJobAge": 3600,  # how long ended jobs can be asked about
    "SchedulerParameters": "batch_sched_delay=0,sched_interval=1,bf_interval=1",
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_Core",
    "SlurmdParameters": "config_overrides",  # nodes have what is said here, whatever the machine has
    "ProctrackType": "proctrack/linuxproc",
    "GresTypes": "gpu",
}


def environment() -> dict[str, str]:
    """Return the tests' environment, without what another Slurm put there if they run in a job of it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | {"PATH": PATH}


def missing() -> str | None:
    """Say why no cluster can be had here, or nothing where one can."""
    if packages := sorted({package for name, package in PACKAGES.items() if not shutil.which(name, path=PATH)}):
        return f"a cluster needs packages that are not installed: {', '.join(packages)}"
    if os.geteuid() != 0:
        return "a cluster needs root"
    needed = "mount -t tmpfs shm /dev/shm && ip link add type bridge && ip link add type veth"
    tried = subprocess.run([*UNSHARE, "sh", "-c", needed], env=environment(), capture_output=True, text=True)
    return f"a cluster needs namespaces: {tried.stderr.strip()}" if tried.returncode else None


def until(reached: Callable[[], bool], timeout: float) -> bool:
    """Wait until something is reached; say false if it was not in time."""
    end = time.monotonic() + timeout
    while not reached():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


class Command(subprocess.Popen[str]):
    """A command inside a machine; what stands for it out here is nsenter, which ends as the command does."""

    def send_signal(self, sig: int) -> None:
        """Send a signal to the command itself: nsenter would pass none on."""
        if self.poll() is None:
            with suppress(psutil.NoSuchProcess):
                outer = psutil.Process(self.pid)
                for process in outer.children() or [outer]:
                    process.send_signal(sig)


class Machine:
    """The namespaces of one machine, and the process that they end with, whose id is `pid`."""

    def __init__(self, name: str, folder: Path) -> None:
        self._conf = str(folder / "slurm.conf")
        self._started = ExitStack()
        command = ["setpriv", "--pdeathsig", "KILL", *UNSHARE, "sh", "-c", FIRST, name, str(folder / "hosts")]
        outer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
        self._started.enter_context(outer)
        assert outer.stdout is not None
        if outer.stdout.readline() != "up\n":
            raise RuntimeError(f"the namespaces of {name} cannot be made")
        self._first = psutil.Process(outer.pid).children()[0]
        self.pid = self._first.pid

    def popen(
        self, command: Words, *, env: Mapping[str, str] | None = None, cwd: Path | None = None, **options: Any
    ) -> Command:
        """Start a command in this machine; `env` adds to the environment, the options are those of Popen."""
        # Without the last, the command would start in the root folder.
        enter = ["nsenter", f"--target={self.pid}", "--pid", "--mount", "--uts", "--net", f"--wdns={cwd or Path.cwd()}"]
        env = {**environment(), "SLURM_CONF": self._conf, **(env or {})}
        options = {"stdin": subprocess.DEVNULL, "text": True, "env": env, **options}
        return self._started.enter_context(Command([*enter, *map(str, command)], **options))

    def network(self, *commands: str) -> None:
        """Give commands to `ip` in this machine's network, but with the process ids of outside."""
        command = ["nsenter", f"--target={self.pid}", "--net", "ip", "-batch", "-"]
        subprocess.run(command, input="\n".join(commands), text=True, check=True, env=environment())

    def end(self) -> None:
        """End all that runs in it, as a loss of power would, and wait for that."""
        with suppress(psutil.NoSuchProcess):
            self._first.terminate()
        self._started.close()


@dataclass(frozen=True)
class Cluster:
    """A Slurm that runs.

    Attributes:
        folder: Holds its settings, state and logs.
        head: The machine of the controller, where clients are started.
        nodes: The machines of node1, node2 and so on, by these numbers.
    """

    folder: Path
    head: Machine
    nodes: dict[int, Machine]

    def popen(self, command: Words, **options: Any) -> Command:
        """Start a command on the head; the options are those of `Machine.popen`."""
        return self.head.popen(command, **options)

    def run(self, command: Words, *, timeout: float, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on the head to its end; kill one that takes too long, and raise TimeoutExpired."""
        process = self.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
        return subprocess.CompletedProcess(list(map(str, command)), process.returncode, out, err)

    def job(self, job_id: str) -> dict[str, str]:
        """Return what Slurm says of a job, such as its JobState, ExitCode and Restarts."""
        said = self.run(["scontrol", "show", "job", "-o", job_id], timeout=60)
        return dict(re.findall(r"(\S+?)=(\S*)", said.stdout))

    def wait(self, job_id: str, states: set[str], timeout: float) -> str:
        """Wait until a job is in one of some states; return which, or raise TimeoutError and say what it is."""
        end = time.monotonic() + timeout
        while (found := self.job(job_id)).get("JobState") not in states:
            if time.monotonic() > end:
                raise TimeoutError(f"job {job_id} is not {' or '.join(sorted(states))}: {found}\n{self.logs()}")
            time.sleep(0.2)
        return found["JobState"]

    def wait_idle(self, timeout: float) -> None:
        """Wait until all nodes are there and have nothing to do."""
        idle = ["sinfo", "--noheader", "--Node", "--responding", "--states=idle"]
        if not until(lambda: self.run(idle, timeout=60).stdout.count("\n") == len(self.nodes), timeout):
            raise TimeoutError(f"not all nodes are idle\n{self.logs()}")

    def cut(self, node: int) -> None:
        """Pull a node's network cable; what runs there goes on."""
        self.head.network(f"link set node{node} down")

    def join(self, node: int) -> None:
        """Plug a node's network cable in again."""
        self.head.network(f"link set node{node} up")

    def logs(self) -> str:
        """Return the last lines of every daemon's log."""
        logs = {file.name: file.read_text().splitlines() for file in sorted((self.folder / "log").iterdir())}
        return "\n".join("\n".join([f"== {name}", *lines[-20:]]) for name, lines in logs.items())


@contextmanager
def cluster(folder: Path, nodes: int = 2, *, cpus: int = 4, gpus: int = 4, **settings: object) -> Iterator[Cluster]:
    """Run a Slurm whose nodes have nothing to do yet.

    Args:
        folder: Takes everything that is written; its path must be short, as those of sockets are.
        nodes: How many nodes there are.
        cpus: How many CPUs each has.
        gpus: How many GPUs each has, one at least.
        settings: Come before those in SETTINGS, as `SlurmdTimeout=5` does.
    """
    folder = folder.resolve()
    for name in ("state", "spool", "log"):
        (folder / name).mkdir(parents=True)
    for number in range(gpus):  # slurmd wants devices, such as these, which are like /dev/null
        os.mknod(folder / f"gpu{number}", stat.S_IFCHR, os.makedev(1, 3))
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{gpus - 1}]\n")
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # else slurmd looks for one, though none is used
    (folder / "munge.key-file").touch(0o600)
    (folder / "munge.key-file").write_bytes(os.urandom(128))
    addresses = {"head": "10.0.0.254"} | {f"node{number}": f"10.0.0.{number}" for number in range(1, nodes + 1)}
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{at} {name}\n" for name, at in addresses.items()))
    places = {
        "AuthInfo": f"socket={folder}/munge.socket,cred_expire=5",  # what is requeued waits until the old expires
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool/%n",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "%n.pid",
        "NodeName": f"node[1-{nodes}] CPUs={cpus} RealMemory=4000 Gres=gpu:{gpus}",
        "PartitionName": "main Nodes=ALL Default=YES MaxTime=60",
    }
    conf = (SETTINGS | settings | places).items()
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
        made = Cluster(folder, machines.pop("head"), dict(enumerate(machines.values(), 1)))
        made.wait_idle(60)
        yield made
