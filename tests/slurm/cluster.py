"""A real Slurm on one machine: three nodes with made-up CPUs and GPUs, on ports and folders of its own.

As a program: `python tests/slurm/cluster.py start DIR` and `... stop DIR`. It needs root and the Debian packages
slurm-wlm and munge. Commands such as sbatch find the cluster by two links in /etc/slurm, which `stop` takes away
again; what stood there before comes back.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

NODES = ("node1", "node2", "node3")
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
SYSTEM_FOLDER = Path("/etc/slurm")

# CPUs and memory are made up, so that several jobs share the machine. Slurm hands out GPUs by device file, and
# only a character device counts. A preempted job waits for as long as a credential lives before it runs again.
# CPU jobs go to the least loaded node: one node has room for all of a small study.
SLURM_CONF = """\
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/run/munge.sock,cred_expire=30
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation={folder}/spool/slurmctld
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
SlurmdTimeout=20
ReturnToService=2
MinJobAge=300
KillWait=2
OverTimeLimit=0
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/finished_jobs.txt
GresTypes=gpu
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port=17001 CPUs=8 RealMemory=32000 Gres=gpu:h100:3
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port=17002 CPUs=8 RealMemory=32000 Gres=gpu:h100:3
NodeName=node3 NodeHostname={host} NodeAddr=127.0.0.1 Port=17003 CPUs=8 RealMemory=32000
PartitionName=cpu Nodes=node[1-3] Default=YES MaxTime=1-0 DefaultTime=30 PriorityTier=10 PreemptMode=OFF LLN=YES
PartitionName=gpu Nodes=node[1-2] MaxTime=1-0 DefaultTime=30 PriorityTier=10 PreemptMode=OFF
PartitionName=preemptible Nodes=node[1-2] MaxTime=1-0 DefaultTime=30 PriorityTier=1 PreemptMode=REQUEUE
"""
GRES_CONF = """\
AutoDetect=off
NodeName=node[1-2] Name=gpu Type=h100 File=/dev/null,/dev/zero,/dev/full
"""


def missing() -> str | None:
    """Return why no cluster can or should be started here, or None."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        return f"Slurm is not installed ({', '.join(absent)} not found): apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "a cluster of several nodes on one machine needs root"
    if "SLURM_CONF" in os.environ or _succeeds("scontrol", "ping"):
        return "this machine already belongs to a Slurm cluster"
    return None


class Cluster:
    """Starts, breaks and stops the daemons; every process is known by its id."""

    def __init__(self, folder: Path):
        self.folder = Path(folder).resolve()
        # Jobs carry it in their environment, so that those of two clusters are told apart.
        self.name = f"airrep{zlib.crc32(bytes(self.folder)):08x}"
        self.finished_jobs = self.folder / "log" / "finished_jobs.txt"

    def start(self) -> None:
        """Start munge, the controller and the three nodes, and wait until the nodes take jobs."""
        for name in ("run", "log", "spool/slurmctld", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True, exist_ok=True, mode=0o755)
        host = socket.gethostname().partition(".")[0]
        (self.folder / "slurm.conf").write_text(SLURM_CONF.format(name=self.name, host=host, folder=self.folder))
        (self.folder / "gres.conf").write_text(GRES_CONF)
        self._start_munge()
        self._link_configuration()
        subprocess.run(["slurmctld"], check=True)
        wait_until(lambda: _succeeds("scontrol", "ping"), "slurmctld to answer")
        for node in NODES:
            self.start_node(node)
        wait_until(lambda: all(self.node_state(node) == "IDLE" for node in NODES), "all nodes to be idle")

    def stop(self) -> None:
        """Cancel what still runs, stop the daemons and put /etc/slurm back as it was."""
        if (SYSTEM_FOLDER / "slurm.conf").resolve() == self.folder / "slurm.conf":
            with contextlib.suppress(subprocess.CalledProcessError, TimeoutError):
                output("scancel", "--user=root")
                wait_until(lambda: output("squeue", "--noheader") == "", "all jobs to end")
        for node in NODES:
            self.lose_node(node)
        for name in ("slurmctld", "munged"):
            _terminate(self.folder / "run" / f"{name}.pid", name)
        self._unlink_configuration()

    def start_node(self, node: str) -> None:
        """Start the daemon of `node`."""
        subprocess.run(["slurmd", "-N", node], check=True)

    def lose_node(self, node: str) -> None:
        """Kill the daemons of `node` and then its jobs, so that none of them can say so, as in a power cut."""
        _kill(self._daemons_of(node))
        _kill([process for process, environment in self.processes() if environment["SLURMD_NODENAME"] == node])

    def processes(self) -> Iterator[tuple[psutil.Process, dict[str, str]]]:
        """Yield the processes of the cluster's jobs, with their environment."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
                if environment.get("SLURM_CLUSTER_NAME") == self.name and "SLURMD_NODENAME" in environment:
                    yield process, environment

    def _daemons_of(self, node: str) -> list[psutil.Process]:
        """Return the node's slurmd, and Slurm's own process around each of its jobs: they write into one log."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.name() in {"slurmd", "slurmstepd"}:
                    logs = {file.path for file in process.open_files()}
                    found += [process] if str(self.folder / "log" / f"{node}.log") in logs else []
        return found

    def node_state(self, node: str) -> str:
        """Return Slurm's word for the state of `node`, e.g. IDLE, MIXED or DOWN."""
        return output("sinfo", "--noheader", "--Node", f"--nodes={node}", "--format=%T").split()[0].upper()

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = {
            "key-file": key,
            "socket": self.folder / "run/munge.sock",
            "pid-file": self.folder / "run/munged.pid",
            "seed-file": self.folder / "run/munged.seed",
            "log-file": self.folder / "log/munged.log",
        }
        # --force: the folders that pytest makes are closed to other users, and there are none
        subprocess.run(["munged", "--force", *(f"--{name}={path}" for name, path in files.items())], check=True)

    def _link_configuration(self) -> None:
        # the plugin's inner srun sees no SLURM_ variable, SLURM_CONF included
        SYSTEM_FOLDER.mkdir(exist_ok=True)
        for name in ("slurm.conf", "gres.conf"):
            link = SYSTEM_FOLDER / name
            if _was_left_behind(link):
                link.unlink()
            elif link.is_symlink() or link.exists():
                link.rename(_kept(link))
            link.symlink_to(self.folder / name)

    def _unlink_configuration(self) -> None:
        for name in ("slurm.conf", "gres.conf"):
            link = SYSTEM_FOLDER / name
            if link.is_symlink() and link.readlink() == self.folder / name:
                link.unlink()
                if _kept(link).is_symlink() or _kept(link).exists():
                    _kept(link).rename(link)


def _was_left_behind(link: Path) -> bool:
    """Return whether a cluster of these tests that was killed left `link`: commands would wait for it for long."""
    configuration = link.resolve().with_name("slurm.conf")
    return link.is_symlink() and (not configuration.exists() or "ClusterName=airrep" in configuration.read_text())


def _kept(path: Path) -> Path:
    return path.with_name(f"{path.name}.before-airrep-tests")


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=20)


def _terminate(pid_file: Path, name: str) -> None:
    """End the process whose id stands in `pid_file`, and wait for its end; none is no error."""
    with contextlib.suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess):
        process = psutil.Process(int(pid_file.read_text()))
        if process.name() == name:  # else the id went to another process meanwhile
            process.terminate()
            process.wait(timeout=20)
    pid_file.unlink(missing_ok=True)


def output(*command: str) -> str:
    """Return what `command` prints, without the last newline."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Ask `condition` again and again; raise TimeoutError when it doesn't hold within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.3)


@contextlib.contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Yield a cluster that runs inside the block."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["start", "stop"])
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.action == "start" and (reason := missing()):
        raise SystemExit(reason)
    getattr(Cluster(arguments.folder), arguments.action)()


if __name__ == "__main__":
    main()
