"""10,000 trials: one-second ones on 16 slots of this machine, and ten-minute ones on 1,000 slots that are simulated.

The first beside what Ray publishes of Tune for the same load on 16 CPUs (docs.ray.io, "Scalability and overhead
benchmarks for Ray Tune": 715 s where 625 s is ideal). The second with the real searcher, ledger, sampler and database
(`simulated.py`); to each trial is added all the CPU time that the driver took for one in the first, Ray Tune's share
with it, so that the ledger's is counted twice.

`python -m tests.bench.scale TRIALS [sleeping] [simulated]` runs it smaller, with a tenth of as many simulated slots.
What breaks first at 100,000 trials and 10,000 GPUs, from figures taken while this was written, on two busy CPUs (those
at larger sizes are extrapolated): such a cluster ends a trial of 600 s every 0.06 s. A random trial costs the driver 12
ms of CPU in searcher, ledger and SQLite (9 statements; with Optuna's own storage 69, and 48 ms with 4 running), and
about as much in Ray Tune's loop.
1. TPE breaks first. At 9,000 trials with 1,000 running a proposal takes 0.19 s, and every 32nd, for which densities are
   made, 0.95 s; both grow with the trials. The answer is TPE over the latest 10,000 trials, or the transfer sampler.
2. The transfer sampler plans 32 trials in 2.6 s there, 0.08 s a trial. With 10,000 running a plan is of 313 trials, but
   it conditions on all that run: a matrix of 800 MB for each belief, and 330 GFlop to factorize it. The answer is to
   condition on 1,000 of them, as on 1,000 of the finished.
3. At 20,000 trials Optuna's count of the earlier ones, for a trial's number, takes 4 ms, and its look for queued ones
   3 ms: 35 ms together at 100,000. The answer is a number from memory under the lease, and a list of the unfinished.
4. A driver that starts on a study of 20,000 trials reads for 17 s and takes 670 MB: 90 s and 3.3 GB at 100,000. The
   answer is to read what the sampler needs, without results' curves.
5. Of Ray nothing was measured at that size. 10,000 workers that report an epoch every 40 s are 250 results a second in
   one Python loop. The answer is to report epochs only where early stopping asks for them, or several studies, each
   with a driver of its own, on the one cluster (`drivers.py`).

Each measurement is a process of its own: `python -m tests.bench.scale child KIND ARGUMENTS... RESULT_FILE`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import optuna

from metasearch.records import EpochReport, TrialResult
from metasearch.search.ledger import Ledger, Proposal
from metasearch.search.runner import Resources, drive, ray_running
from metasearch.search.samplers import make_sampler
from metasearch.search.stopping import StopFlag
from metasearch.search.store import RUN, is_finished, open_storage
from metasearch.search.worker import TrialRequest
from tests.bench.counting import counted_statements, peak_mb
from tests.bench.sides import Measured, Verdict, conditions, print_table, run_side
from tests.bench.simulated import MEAN_S, Setting, simulate
from tests.postgresql import programs, running

TRIALS, QUICK_TRIALS = 10_000, 48
SLOTS, SIMULATED_SLOTS, QUICK_SLOTS = 16, 1_000, 12
RAY_PUBLISHED_S, IDEAL_S = 715.0, 625.0
"""Of 10,000 trials of a second on 16 CPUs."""
SAMPLERS = {"random": 0, "tpe": 0, "transfer": 0, "transfer with a prior": 200}
"""Simulated samplers: how many trials their prior study has."""
TARGET = 0.9
"""The least share of the slots' time in which a trial runs."""
EDGE = 10
"""The first and the last so much of the trials are compared: 1,000 of 10,000."""
Column = Callable[[Measured], str]
"""From a measurement to the text of a cell."""


def run(*, quick: bool) -> Verdict:
    """Measure both and print their tables."""
    if quick:
        return report(QUICK_TRIALS, QUICK_SLOTS, QUICK_SLOTS, judged=False)
    return report(TRIALS, SLOTS, SIMULATED_SLOTS)


def report(
    trials: int,
    slots: int,
    simulated_slots: int,
    *,
    parts: Sequence[str] = ("sleeping", "simulated"),
    judged: bool = True,
) -> Verdict:
    """Measure and print one part or both. judged: whether the target of busy slots is."""
    before, binaries = conditions(), programs()
    sleeping: dict[str, Measured] = {}
    courses: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        folder.chmod(0o755)  # the database server is another user
        urls = {"SQLite": f"sqlite:///{folder / 'studies.db'}"}
        if binaries is not None:
            (folder / "postgresql").mkdir()
            urls["PostgreSQL"] = stack.enter_context(running(folder / "postgresql", binaries))
        if "sleeping" in parts:
            for name, url in urls.items():
                sleeping[name] = run_side("tests.bench.scale", "child", "sleeping", url, str(trials), str(slots))
        tune_s = max((each["driver_cpu_s"] / trials for each in sleeping.values()), default=0.0)
        if "simulated" in parts:
            for name, prior in SAMPLERS.items():
                arguments = [name.split()[0], str(trials), str(simulated_slots), str(prior), str(tune_s)]
                for database, url in urls.items():
                    if database == "SQLite" or name == "random":
                        shown = f"{name}, {database}"
                        courses[shown] = run_side("tests.bench.scale", "child", "simulated", url, *arguments)
    if sleeping:
        _show_sleeping(sleeping, trials, slots, [before])
    if courses:
        _show_simulated(courses, trials, simulated_slots, [before, f"{tune_s:.4f} s a trial added for Ray Tune"])
    least = min((each["busy"] for each in courses.values()), default=None)
    text = "; ".join(f"{name} {each['seconds']:.0f} s" for name, each in sleeping.items())
    if least is not None:
        text += f"; simulated slots at least {least:.1%} busy (target: {TARGET:.0%})"
    return Verdict("scale", least >= TARGET if judged and least is not None else None, text)


def _show_sleeping(found: dict[str, Measured], trials: int, slots: int, notes: list[str]) -> None:
    ideal = trials / slots
    columns: dict[str, Column] = {
        "seconds": lambda each: f"{each['seconds']:.0f}",
        "of the ideal": lambda each: f"{each['seconds'] / ideal:.2f}",
        "last worker ready, s": lambda each: f"{each['ready_s']:.0f}",
        "driver's CPU ms a trial": lambda each: f"{1000 * each['driver_cpu_s'] / trials:.1f}",
    }
    notes = [
        *notes,
        f"{trials} trials of 1 s on {slots} slots, random sampler; first asked to last told; ideal {ideal:.0f} s",
        f"Ray's own: {RAY_PUBLISHED_S:.0f} s for 10,000 on 16 CPUs, {RAY_PUBLISHED_S / IDEAL_S:.2f} times the ideal",
    ]
    _show("Trials that sleep a second", found, columns, notes)


def _show_simulated(found: dict[str, Measured], trials: int, slots: int, notes: list[str]) -> None:
    edge = max(1, trials // EDGE)
    columns: dict[str, Column] = {
        "busy": lambda each: f"{each['busy']:.1%}",
        "driver s a trial": lambda each: f"{sum(each['driver_s']) / trials:.3f}",
        "CPU s": lambda each: f"{sum(each['cpu_s']) / trials:.3f}",
        "asking, first": lambda each: f"{mean(each['asked_s'][:edge]):.3f}",
        "last": lambda each: f"{mean(each['asked_s'][-edge:]):.3f}",
        "longest": lambda each: f"{max(each['asked_s']):.2f}",
    }
    notes = [
        *notes,
        f"{trials} trials of {MEAN_S:.0f} s in the mean (log-normal) on {slots} slots; the space distill_compress; "
        f"first and last: {edge} trials; all slots busy needs less than {MEAN_S / slots:.2f} s a trial",
    ]
    _show("Simulated slots", found, columns, notes)


def _show(title: str, found: dict[str, Measured], columns: dict[str, Column], notes: list[str]) -> None:
    """Print a row for each measurement: its name, these columns, and what all have."""
    columns = {
        **columns,
        "statements a trial": lambda each: f"{each['statements']:.1f}",
        "driver's MB": lambda each: f"{each['peak_mb']:.0f}",
    }
    rows = [(name, *(cell(each) for cell in columns.values())) for name, each in found.items()]
    print_table(title, ("", *columns), rows, notes)


def sleeping(url: str, trials: str, slots: str) -> Measured:
    """Run trials that sleep for a second."""
    count, resources = int(trials), Resources(workers=int(slots))
    storage = open_storage(url, create=True)
    sampler = make_sampler("random", seed=0, trials_so_far=0)
    study = optuna.create_study(
        storage=storage, study_name="sleeping", directions=["maximize", "minimize"], sampler=sampler
    )
    ledger = Ledger(study, _propose, target=count, seed=0, objectives=("val_accuracy", "macs"))
    with ray_running(resources), counted_statements(storage.engine) as counted:
        cpu_s = time.process_time()
        drive(ledger, _sleep, _nothing_shared, resources=resources, stop=StopFlag())
        cpu_s = time.process_time() - cpu_s
    if ledger.finished != count or sum(map(is_finished, study.trials)) != count or len(study.trials) != count:
        raise RuntimeError(f"{ledger.finished} of {len(study.trials)} trials finished, {count} wanted")
    starts = [trial.datetime_start.timestamp() for trial in study.trials if trial.datetime_start is not None]
    at_work: dict[int, float] = {}
    for trial in study.trials:
        at_work.setdefault(trial.user_attrs[RUN]["pid"], trial.user_attrs[RUN]["started"])
    ends = [trial.datetime_complete.timestamp() for trial in study.trials if trial.datetime_complete is not None]
    return {
        "seconds": max(ends) - min(starts),
        "ready_s": max(at_work.values()) - min(starts),
        "driver_cpu_s": cpu_s,
        "statements": counted.sent / count,
        "peak_mb": peak_mb(),
    }


def _propose(trial: optuna.Trial) -> Proposal:
    return Proposal({"x": trial.suggest_float("x", 0, 1), "y": trial.suggest_float("y", 0, 1)})


def _nothing_shared() -> None:
    pass


def _sleep(request: TrialRequest, shared: Any) -> Generator[EpochReport, None, TrialResult]:
    yield from ()
    time.sleep(1)
    x, y = request.config["x"], request.config["y"]
    return TrialResult(request.config, request.seed, {"val_accuracy": x, "macs": x + y})


def simulated(url: str, sampler: str, trials: str, slots: str, prior: str, tune_s: str) -> Measured:
    """Run a simulated search."""
    setting = Setting(sampler, int(trials), int(slots), tune_s=float(tune_s), prior=int(prior))
    return asdict(simulate(open_storage(url, create=True), f"{sampler} {prior}", setting))


CHILDREN: dict[str, Callable[..., Measured]] = {"sleeping": sleeping, "simulated": simulated}


def main() -> None:
    """Run one measurement and write it, or the whole in another size."""
    if sys.argv[1] == "child":
        kind, *arguments, result = sys.argv[2:]
        Path(result).write_text(json.dumps(CHILDREN[kind](*arguments)), encoding="utf-8")
    else:
        trials = int(sys.argv[1])
        verdict = report(trials, SLOTS, trials // 10, parts=sys.argv[2:] or tuple(CHILDREN))
        print(f"\n{verdict.text}")


if __name__ == "__main__":
    main()
