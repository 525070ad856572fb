"""A cluster of one node, started by the tests as root: Debian's munged, slurmctld and slurmd in a folder.

The node says that it has eight processors: the jobs mostly wait, and need not wait for each other too.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

PATIENCE = 240  # seconds for whatever is waited for here
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
ReturnToService=2
MessageTimeout=2
KillWait=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=8000
PartitionName=main Nodes={host} Default=YES MaxTime=60
"""


def missing() -> str | None:
    """Why there can be no cluster here; None if there can."""
    if absent := [name for name in PROGRAMS if not (shutil.which(name) or shutil.which(name, path="/usr/sbin"))]:
        return f"{', '.join(absent)} not installed (apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "only root can start slurmd"


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def has_ended(pid: int) -> bool:
    """Also if nobody has asked how: a container's first process may do so seconds later."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Cluster:
    """The running cluster; programs find it by SLURM_CONF."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = socket.gethostname().split(".")[0]
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        self.environment["PATH"] = f"{os.environ['PATH']}:/usr/sbin:/sbin"

    def call(self, *words: str) -> str:
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def start(self) -> None:
        for name in ("state", "spool", "munge"):
            (self.folder / name).mkdir()
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        free = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        ports = [listener.getsockname()[1] for listener in free]
        for listener in free:
            listener.close()
        config = CONFIG.format(host=self.host, folder=self.folder, ports=ports)
        (self.folder / "slurm.conf").write_text(config)
        munge = self.folder / "munge"
        self.call("munged", "--force", f"--socket={munge}/socket", f"--key-file={key}", f"--pid-file={munge}/pid",
                  f"--log-file={munge}/log", f"--seed-file={munge}/seed")  # fmt: skip
        self.call("slurmctld")
        self.call("slurmd")
        until(lambda: "idle" in self.call("sinfo", "--noheader", "--format=%T"), "the node never came up")

    def pid(self, name: str) -> int | None:
        path = self.folder / name
        return int(path.read_text()) if path.is_file() and path.read_text().strip() else None

    def stop(self, name: str) -> None:
        pid = self.pid(name)
        if pid:
            os.kill(pid, 15)
            until(lambda: has_ended(pid), f"{name} does not end")

    def jobs(self) -> dict[str, str]:
        """Job and state."""
        rows = self.call("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T").splitlines()
        return dict(row.split("|") for row in rows)


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        for name in ("slurmd.pid", "slurmctld.pid", "munge/pid"):
            cluster.stop(name)
