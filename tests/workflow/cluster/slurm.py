"""A Slurm of one node on loopback: munge, slurmctld and slurmd in one folder, with two GPUs that are plain files.

Accounting is off, so the cluster knows no accounts; everything else is Slurm as users meet it.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo", "scontrol")
SEARCH = "/usr/sbin:/usr/bin:/sbin:/bin"

CONFIGURATION = """
ClusterName=test
SlurmctldHost={name}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SrunPortRange={range_start}-{range_end}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=3600
KillWait=20
SchedulerParameters=batch_sched_delay=0
NodeName={name} NodeAddr=127.0.0.1 NodeHostname={name} CPUs=16 RealMemory=80000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes={name} Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """Programs of Slurm and munge that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program, path=SEARCH) is None]


def install() -> str | None:
    """Install Slurm with apt where it is missing; what prevents it, or None."""
    if not missing_programs():
        return None
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return f"needs {', '.join(missing_programs())}, and can install them as root with apt-get only"
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", "slurm-wlm", "munge"]):
        answer = subprocess.run(["apt-get", "-qq", *arguments], env=quiet, capture_output=True, text=True, check=False)
    return None if not missing_programs() else f"apt-get could not install Slurm: {answer.stderr[-500:]}"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Slurm:
    """The cluster, from `start` to `stop`.

    Arguments:
        folder: For its keys, state, logs and pid files; short, because sockets have short names.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = socket.gethostname().split(".")[0]
        # Job steps lose every SLURM_ variable on their way, on a real cluster too, where the configuration stands in
        # /etc/slurm. Here a wrapper tells `srun` where it is.
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "etc/slurm.conf"),
            "PATH": f"{folder}/bin:{os.environ['PATH']}:{SEARCH}",
        }

    def start(self) -> None:
        """Start munge, the controller and the node, and wait until the node takes jobs."""
        for part in ("bin", "etc", "run", "log", "state", "spool", "munge", "dev"):
            (self.folder / part).mkdir(parents=True)
        # munge trusts its folders only if nobody else can write to them.
        os.chmod(self.folder, 0o755)
        os.chmod(self.folder / "munge", 0o700)
        key = self.folder / "munge/munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        first = _free_port()
        (self.folder / "etc/slurm.conf").write_text(
            CONFIGURATION.format(
                name=self.name,
                folder=self.folder,
                controller_port=_free_port(),
                node_port=_free_port(),
                range_start=first,
                range_end=first + 20,
            )
        )
        for gpu in range(2):
            (self.folder / f"dev/fakegpu{gpu}").touch()
        wrapper = self.folder / "bin/srun"
        wrapper.write_text(
            f'#!/bin/sh\nSLURM_CONF={self.folder}/etc/slurm.conf exec {shutil.which("srun", path=SEARCH)} "$@"\n'
        )
        wrapper.chmod(0o755)
        (self.folder / "etc/gres.conf").write_text(
            f"AutoDetect=off\nNodeName={self.name} Name=gpu File={self.folder}/dev/fakegpu[0-1]\n"
        )
        self._run(
            "munged",
            "--force",
            f"--key-file={key}",
            f"--socket={self.folder}/run/munge.socket",
            f"--pid-file={self.folder}/run/munged.pid",
            f"--log-file={self.folder}/log/munged.log",
            f"--seed-file={self.folder}/munge/munge.seed",
        )
        self._run("slurmctld")
        self._run("slurmd", "-N", self.name)
        end = time.monotonic() + 60
        while "idle" not in self.call("sinfo", "--noheader", "--format=%T"):
            if time.monotonic() > end:
                logs = "\n".join(path.read_text()[-2000:] for path in (self.folder / "log").iterdir())
                raise RuntimeError(f"The node did not come up within 60 s:\n{logs}")
            time.sleep(0.5)

    def call(self, *command: str) -> str:
        """What a Slurm command prints."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=60
        ).stdout.strip()

    def jobs(self, state: str = "R") -> dict[str, str]:
        """Jobs in a state (R: running): id -> the comment, where Snakemake writes rule and wildcards."""
        lines = self.call("squeue", "--noheader", f"--states={state}", "--format=%A %k").splitlines()
        return dict(line.split(" ", 1) for line in lines if " " in line)

    def stop(self) -> None:
        """End the servers by their process ids, and what jobs are left."""
        self.call("scancel", "--user=root")
        time.sleep(1)
        for name in ("slurmd", "slurmctld", "munged"):
            path = self.folder / f"run/{name}.pid"
            if not path.exists():
                continue
            process = int(path.read_text())
            os.kill(process, signal.SIGTERM)
            for _ in range(100):
                if not Path(f"/proc/{process}").exists():
                    break
                time.sleep(0.1)
            else:
                os.kill(process, signal.SIGKILL)

    def _run(self, program: str, *arguments: str) -> None:
        path = shutil.which(program, path=SEARCH)
        answer = subprocess.run(
            [str(path), *arguments], env=self.environment, capture_output=True, text=True, check=False, timeout=60
        )
        if answer.returncode:
            raise RuntimeError(f"{program} did not start: {answer.stdout}{answer.stderr}")
