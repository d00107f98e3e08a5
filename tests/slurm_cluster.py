"""A Slurm cluster on this machine for tests; its daemons run as root and use one folder."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path

# Jobs in the partition "high" preempt jobs in "low", which are warned, get a grace time of some
# seconds, and are queued again. The node is configured with more CPUs than the machine may have.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={ctld_port}
SlurmdPort={d_port}
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
MpiDefault=none
SchedulerParameters=sched_interval=1,bf_interval=1
KillWait=20
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime=30 MaxTime=INFINITE State=UP
PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=off State=UP
"""

MISSING = (
    None
    if all(map(shutil.which, ("slurmctld", "slurmd", "munged", "sbatch"))) and os.getuid() == 0
    else "needs Slurm and MUNGE installed, and root: make test-slurm"
)


class Cluster:
    """Slurm's daemons, which run from `start` to `stop`.

    Args:
        folder: folder for all their files, which other users must be able to read.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: list[subprocess.Popen] = []

    def start(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        host = socket.gethostname().partition(".")[0]
        ports = [_free_port() for _ in range(2)]
        config = CONFIG.format(
            host=host, folder=self.folder, ctld_port=ports[0], d_port=ports[1]
        ).lstrip()
        (self.folder / "slurm.conf").write_text(config)
        files = [
            f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")
        ]
        self._run(
            "munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *files
        )
        self.wait_for(lambda: (self.folder / "munge.socket").exists())
        self._run("slurmctld", "-D")
        self._run("slurmd", "-D")
        self.wait_for(lambda: "idle" in self.ask("sinfo", "--noheader"))

    def _run(self, *command):
        with open(self.folder / f"{command[0]}.out", "wb") as out:
            self.daemons.append(
                subprocess.Popen(command, env=self.env, stdout=out, stderr=subprocess.STDOUT)
            )

    def ask(self, *command: str, **kwargs) -> str:
        """Returns the output of a command."""
        answer = subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=60, **kwargs
        )
        return answer.stdout + answer.stderr

    def wait_for(self, condition, seconds: float = 30):
        """Waits until `condition` returns a true value, and returns it."""
        deadline = time.monotonic() + seconds
        while not (result := condition()):
            if time.monotonic() > deadline:
                logs = [path.read_text()[-2000:] for path in self.folder.glob("slurm*.log")]
                raise TimeoutError("\n".join([self.ask("squeue", "--array"), *logs]))
            time.sleep(0.2)
        return result

    def stop(self) -> None:
        self.ask("scancel", "--full", "--user=root")
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
