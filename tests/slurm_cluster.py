"""A SLURM of one node, with Debian's programs: its own ports, key and folder, so that no other SLURM is touched.

It needs no root once the packages are there: all daemons are children of the test, and end with it.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from free_port import free_port
from snakemake_plugins import with_plugins

COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo", "sacct", "sacctmgr", "sshare")
PROGRAMS = ("munged", "slurmctld", "slurmd", *COMMANDS)
PACKAGES = ("slurm-wlm", "munge")
_SECONDS = 30.0
"""For a daemon to answer."""


_UNTIL_A_JOB_ENDS = r"""
case "$*" in *--states=all*)
    known=$SLURM_CONF.$(echo "$*" | cksum | cut -d' ' -f1)
    for _ in $(seq 100); do
        ended=$("$PROGRAM" "$@" | grep -cE 'COMPLETED|CANCELLED|FAILED|TIMEOUT|OUT_OF_MEMORY')
        [ "$ended" -le "$(cat "$known" 2>/dev/null || echo 0)" ] || break
        sleep 0.2
    done
    echo "$ended" >"$known"
esac"""
"""The executor asks for all jobs ever more seldom while none ends, by 10 s each time. So it has its answer when one has ended, or
after 20 s; jobs take seconds here."""


@dataclass(frozen=True)
class Finished:
    """A job that is over, as SLURM's own list of jobs (jobcomp/filetxt) has it; what it asked for in MiB and minutes."""

    number: str
    state: str
    cores: int
    memory: int
    minutes: int


@dataclass(frozen=True)
class Cluster:
    """A running SLURM."""

    folder: Path
    node: str
    memory_mib: int
    cores: int

    @property
    def environment(self) -> dict[str, str]:
        """What SLURM's commands need to find it.

        Commands on PATH that name its configuration: of a job the executor takes all variables that begin with SLURM.
        """
        return {"PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}", **with_plugins()}

    def command(self, *words: str) -> str:
        """Run one of SLURM's commands and return what it printed; it must end well."""
        done = self._run(*words)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def says(self, *words: str) -> str:
        """Run one of SLURM's commands and return what it printed, however it ended."""
        return self._run(*words).stdout

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.folder / "bin" / words[0]), *words[1:]]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def queue(self) -> list[tuple[str, str, str]]:
        """Return (job, state, comment) of the jobs that are not over; the executor's comments begin with rule_NAME."""
        lines = self.command("squeue", "--noheader", "--format=%i|%T|%k").splitlines()
        return [(number, state, comment) for number, state, comment in (line.split("|", 2) for line in lines)]

    def finished(self) -> list[Finished]:
        """Return the jobs that are over, in the order in which they ended."""
        file = self.folder / "jobs.txt"
        found = []
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
            said = dict(re.findall(r"(\w+)=(\S*)", line))
            memory = re.search(r"\bmem=(\d+)M\b", line)
            assert memory is not None, line
            asked = (int(said["ProcCnt"]), int(memory[1]), int(said["TimeLimit"]))
            found.append(Finished(said["JobId"], said["JobState"], *asked))
        return found


def missing_programs() -> list[str]:
    """Return which of SLURM's programs are not on PATH, nor where Debian puts daemons."""
    return [program for program in PROGRAMS if _found(program) is None]


def install_slurm() -> str | None:
    """Install what is missing with apt-get; return what it said if that failed."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
        try:
            done = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True, check=False)
        except OSError as error:
            return f"apt-get: {error.strerror}"
        if done.returncode != 0:
            return f"apt-get {command[0]}: {done.stderr.strip()[-500:]}"
    return None


@contextmanager
def one_node_cluster() -> Iterator[Cluster]:
    """Start a cluster whose node is this machine; when the block is over its jobs are cancelled and its daemons ended."""
    # Below /tmp: a socket's path has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as name, ExitStack() as daemons:
        folder = Path(name)
        hardware = dict(re.findall(r"(\w+)=(\S+)", subprocess.check_output([_program("slurmd"), "-C"], text=True)))
        cluster = Cluster(folder, hardware["NodeName"], int(hardware["RealMemory"]), int(hardware["CPUs"]))
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        for part in ("state", "spool", "bin"):
            (folder / part).mkdir()
        (folder / "slurm.conf").write_text(_configuration(cluster), encoding="utf-8")
        for command in COMMANDS:
            script = folder / "bin" / command
            waits = _UNTIL_A_JOB_ENDS if command == "squeue" else ""
            lines = ["#!/bin/sh", f"export SLURM_CONF={folder}/slurm.conf", f"PROGRAM={_program(command)}", waits]
            script.write_text("\n".join([*lines, 'exec "$PROGRAM" "$@"', ""]), encoding="utf-8")
            script.chmod(0o755)
        munged = ["--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
        munged += [f"--{kind}-file={folder}/munged.{kind}" for kind in ("log", "pid", "seed")]
        daemons.enter_context(_running("munged", munged, folder))
        _wait(lambda: (folder / "munge.socket").exists(), folder, "munged")
        daemons.enter_context(_running("slurmctld", ["-D"], folder))
        _wait(lambda: "UP" in cluster.says("scontrol", "ping"), folder, "slurmctld")
        daemons.enter_context(_running("slurmd", ["-D", "-N", cluster.node], folder))
        _wait(lambda: "idle" in cluster.says("sinfo", "--noheader", "--format=%t"), folder, "slurmd")
        try:
            yield cluster
        finally:
            for number, _, _ in cluster.queue():
                cluster.command("scancel", "--signal=KILL", number)
                cluster.command("scancel", number)
            _wait(lambda: not cluster.queue(), folder, "the end of all jobs")


def _configuration(cluster: Cluster) -> str:
    folder, user = cluster.folder, getpass.getuser()
    return f"""\
ClusterName=test
SlurmctldHost={socket.gethostname().partition(".")[0]}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
KillWait=10
SchedulerParameters=batch_sched_delay=0,sched_interval=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.txt
NodeName={cluster.node} NodeAddr=127.0.0.1 CPUs={cluster.cores} RealMemory={cluster.memory_mib} State=UNKNOWN
PartitionName=main Nodes={cluster.node} Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def _running(program: str, arguments: Sequence[str], folder: Path) -> Iterator[None]:
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    with (folder / f"{program}.out").open("wb") as said:
        daemon = subprocess.Popen([_program(program), *arguments], env=environment, stdout=said, stderr=said)
    try:
        yield
    finally:
        daemon.terminate()
        try:
            daemon.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _wait(is_so: Callable[[], bool], folder: Path, what: str) -> None:
    end = time.monotonic() + _SECONDS
    while not is_so():
        logs = {file.name: file.read_text(errors="replace")[-1500:] for file in folder.glob("*.out")}
        assert time.monotonic() < end, (f"no sign of {what} within {_SECONDS:g} s", logs)
        time.sleep(0.1)


def _found(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def _program(name: str) -> str:
    found = _found(name)
    assert found is not None, f"{name} is missing: apt-get install --no-install-recommends {' '.join(PACKAGES)}"
    return found
