"""A Slurm controller for tests: real, on loopback, from Debian's packages; its four nodes are never started."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "sbatch", "sinfo")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# Nodes of a cloud are there to be asked for before they run.
ResumeProgram=/bin/true
SuspendProgram=/bin/true
SuspendTime=600
NodeName=node[0-3] CPUs=16 RealMemory=64000 State=CLOUD
PartitionName=all Nodes=node[0-3] Default=YES MaxTime=INFINITE State=UP
"""


def installed() -> bool:
    """Whether this machine has the programs, and this process the rights that they want."""
    return os.geteuid() == 0 and all(shutil.which(name, path=_path()) for name in PROGRAMS)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """Run a controller in `folder`, which must be empty; yield the environment that `sbatch` needs."""
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    configuration = folder / "slurm.conf"
    host = socket.gethostname().split(".")[0]
    configuration.write_text(CONFIGURATION.format(host=host, port=port, folder=folder), encoding="utf-8")
    environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(configuration)}
    files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munged = ["munged", "--foreground", "--force", f"--key-file={key}"]
    munged += [f"--{option}={folder}/munge.{name}" for option, name in files.items()]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in (munged, ["slurmctld", "-D"]):
            with open(folder / f"{command[0]}.out", "wb") as out:
                started.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))
            time.sleep(0.3)
        _wait_until_it_answers(environment, folder)
        yield environment
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(timeout=20)


def _wait_until_it_answers(environment: dict[str, str], folder: Path) -> None:
    deadline = time.monotonic() + 20
    while subprocess.run(["sinfo"], env=environment, capture_output=True, timeout=20, check=False).returncode != 0:
        said = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.out"))
        assert time.monotonic() < deadline, said
        time.sleep(0.2)


def _path() -> str:
    return os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
