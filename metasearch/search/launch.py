"""A study from its description to its final front: task, teacher, trials, final runs, controls.

New and interrupted ones are driven alike, so that a search that was interrupted anywhere ends as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Timer
from typing import Any

from optuna.storages import RDBStorage
from optuna.study import Study

from metasearch.errors import InputError, MetasearchError, StorageError
from metasearch.features import task_features
from metasearch.pipeline import ONNX_FILE
from metasearch.records import EpochReport, TrialResult
from metasearch.search.artefacts import fetch, fetch_all, joined, kept_files, trial_folder
from metasearch.search.benchmarks import latency_of
from metasearch.search.budget import NO_MORE, Budget, More
from metasearch.search.controls import choose, companion, propose_control
from metasearch.search.differences import queued_first
from metasearch.search.early_stopping import SIZE_METRICS, SuccessiveHalving
from metasearch.search.foreknown import Foreknown, foreknown
from metasearch.search.garbage import claim
from metasearch.search.gpu_time import settle
from metasearch.search.lease import Lease
from metasearch.search.ledger import Ledger, Proposal
from metasearch.search.nodes import Reach, check_nodes
from metasearch.search.objectives import Constraint
from metasearch.search.patience import Patience
from metasearch.search.pipeline_worker import PipelineWorker, run_request
from metasearch.search.placement import check_fits_here, memory_share
from metasearch.search.possible import feature_losses, needs_network, needs_views, possible_with_teacher
from metasearch.search.priors import load_warm_start
from metasearch.search.runner import Resources, drive, ray_running
from metasearch.search.samplers import make_sampler
from metasearch.search.searcher import GPU_HOURS_USED, Limits
from metasearch.search.space import Space
from metasearch.search.starts import possible_with_files
from metasearch.search.stopping import StopFlag, stopping_on_signals
from metasearch.search.store import CONTROLS, DESCRIPTION, StudyDescription, description_of, load_study, storage_errors
from metasearch.search.versions import version_differences, versions_here
from metasearch.tasks import Task, TaskSource, load_task
from metasearch.teachers import Teacher, TeacherSource, teacher_for
from metasearch.transfer.prior import NOTHING

TIME_USED = "the time limit was reached"


class Watcher:
    """Hears how a search goes; the command line's display is one. All methods do nothing here."""

    def stage(self, message: str) -> None:
        """Hear what happens next, in a line."""

    def epoch(self, report: EpochReport) -> None:
        """Hear of an epoch of the teacher's training."""

    def teacher(self, spec: str, metrics: Mapping[str, float]) -> None:
        """Hear how good the teacher is, before the first trial."""

    def trials(self, ledger: Ledger, title: str) -> None:
        """Hear of a change of the ledger."""


@dataclass(frozen=True)
class Outcome:
    """How a driven search ended. stopped: why it stopped early, "" if it is complete."""

    study: Study
    stopped: str = ""
    failures: dict[str, int] = field(default_factory=dict)


def run_study(
    storage: RDBStorage,
    name: str,
    *,
    resources: Resources,
    watcher: Watcher | None = None,
    more: More = NO_MORE,
    final: bool = True,
    accept_versions: bool = False,
) -> Outcome:
    """Drive a study, new or interrupted, to its target, then its final runs and controls.

    more: than what the study says that it may use; its timeout_s is of this driver alone. accept_versions: go on
    although other versions made it. Raises StorageError while another driver runs it or when its lease is lost,
    InputError if its task or what computes its trials has changed.
    """
    with storage_errors(str(storage.url)):
        if name.endswith(CONTROLS):
            raise InputError(f"study {name}", "is of the controls of another, and is driven with it")
        study = load_study(storage, name)
        description = description_of(study)
        budget = _budget(description).enlarged(more)
        different = [] if accept_versions else version_differences(description.versions)
        if different:
            rule = "was made by other versions, with which its trials may not compare: --accept-versions goes on"
            raise InputError(f"study {name}", rule, "; ".join(different))
        if budget.gpu_hours is not None and not resources.gpus:
            raise InputError("--gpus-per-trial", "must be given: the study has a budget of GPU-hours")
        if resources.address is None:
            check_fits_here(resources.gpus)
        stop = StopFlag()
        heard = watcher or Watcher()
        lease = Lease(study, on_stop=stop.set, tell=heard.stage)
        lease.acquire()
        try:
            if lease.died is not None:
                settle(study, lease.died)
            description = description_of(load_study(storage, name))  # another driver's work, if it was waited for
            budget = _budget(description).enlarged(more)
            enlarged = replace(description, trials=budget.trials, gpu_hours=budget.gpu_hours)
            if enlarged != description:
                study.set_user_attr(DESCRIPTION, asdict(enlarged))
            claim(joined(description.artefacts, name), storage)
            for config in description.enqueue[len(queued_first(study)) :]:  # all, or what a dead driver left of them
                study.enqueue_trial(config)
            with stopping_on_signals(stop), _cluster_checked(description, resources, heard.stage):
                search = _Search(storage, study, enlarged, resources, heard, stop, budget.timeout_s)
                outcome = search.run(final=final)
        except KeyboardInterrupt:  # while the teacher was trained, or the second one
            with suppress(StorageError), storage_errors(""):
                if not lease.lost:  # else they are another's now, or out of reach
                    settle(study, time.time())
            outcome = Outcome(study, stopped=stop.reason or "interrupted")
        finally:
            lease.release()
        if outcome.stopped and outcome.stopped == lease.lost:  # nobody asked for it: to be tried again
            raise StorageError(
                f"study {name}: {lease.lost}; nothing finished is lost. Go on with: metasearch resume {name}"
            )
        return outcome


def _budget(description: StudyDescription) -> Budget:
    d = description
    return Budget(d.trials, d.timeout_s, d.trial_timeout_s, d.gpu_hours)


@contextmanager
def _cluster_checked(
    description: StudyDescription, resources: Resources, tell: Callable[[str], None]
) -> Iterator[None]:
    """Join the cluster that trials are to run on, and check its nodes, before a teacher is trained for nothing."""
    if resources.address is None:
        yield
        return
    with ray_running(resources):
        reach = Reach(
            task=TaskSource(**description.task),
            source=None if description.source is None else TaskSource(**description.source),
            initial=kept_files(description.initial),
            artefacts=description.artefacts,
        )
        check_nodes(reach, cpus=resources.threads, gpus=resources.gpus, tell=tell)
        yield


def _trial_device(resources: Resources, device: str) -> str:
    """Return where trials run: on their share of a GPU, which the driver's machine need not have; else, on a cluster,
    where some nodes may have none, on the cores. device: of the driver.
    """
    if resources.gpus > 0:
        return "cuda"
    return device if resources.address is None else "cpu"


@dataclass
class _Search:
    """One driver's run of a study."""

    storage: RDBStorage
    study: Study
    description: StudyDescription
    resources: Resources
    watcher: Watcher
    stop: StopFlag
    timeout_s: float | None = None

    def run(self, *, final: bool) -> Outcome:
        d = self.description
        source = TaskSource(**d.task)
        self.watcher.stage(f"task {source.text}")
        task = load_task(source)
        if task.fingerprint != d.fingerprint:
            raise InputError(
                f"task {source.text}", "has changed since the study was made", f"digest={task.fingerprint[:12]}"
            )
        initial = kept_files(d.initial)
        space, left_out = possible_with_files(
            d.parsed_space(),
            task,
            teacher=TeacherSource.of(d.teacher),
            initial=fetch_all(initial),
            joint=d.source is not None,
        )
        teacher = self._teacher(task, space)
        space, more = possible_with_teacher(space, teacher.feature_names)
        for line in (*left_out, *more):
            self.watcher.stage(line)
        latency = latency_of(d)
        prepare = PipelineWorker.of(
            source,
            teacher,
            device=_trial_device(self.resources, d.device),
            threads=self.resources.threads,
            initial=initial,
            joint=None if d.source is None else TaskSource(**d.source),
            gpu_memory=memory_share(self.resources.gpus),
            versions={} if self.resources.address is None else versions_here(),
            latency_model=None if latency is None else latency.model,
        )
        timer = None
        if self.timeout_s is not None:
            timer = Timer(self.timeout_s, self.stop.end_trials, [TIME_USED])
            timer.daemon = True
            timer.start()
        with ray_running(self.resources):
            ledger = self._ledger(self.study, d.trials, space, foreknown(space, task, latency))
            self._drive(ledger, prepare, "search", gpu_hours=d.gpu_hours)
            if self.stop.reason == GPU_HOURS_USED:
                self.watcher.stage(f"the study's {d.gpu_hours:g} GPU-hours are used up: --gpu-hours gives it more")
            if timer is not None:
                timer.cancel()
            self.stop.trials_are_over()
            complete = ledger.states["COMPLETE"] > 0
            if final and complete and not self.stop.is_set():
                self._final_runs(ledger, task, prepare)
        if not self.stop.is_set() and not complete:
            raise MetasearchError(f"study {self.study.study_name}: no trial succeeded ({_counted(ledger.failures)})")
        return Outcome(self.study, stopped=self.stop.reason, failures=dict(ledger.failures))

    def _teacher(self, task: Task, space: Space) -> Teacher:
        source = TeacherSource.of(self.description.teacher)
        self.watcher.stage("the teacher")
        teacher = teacher_for(
            task,
            source,
            seed=self.description.seed,
            device=self.description.device,
            views=needs_views(space),
            features=feature_losses(space),
            network=needs_network(space),
            progress=self._epoch,
        )
        self.watcher.teacher(teacher.spec, teacher.metrics)
        self.study.set_user_attr("teacher", {"spec": teacher.spec, "metrics": dict(teacher.metrics)})
        self._describe(features=task_features(task, teacher))
        return teacher

    def _describe(self, **changes: Any) -> None:
        """Keep what was found out about the study with its description."""
        changed = replace(self.description, **changes)
        if changed != self.description:
            self.description = changed
            self.study.set_user_attr(DESCRIPTION, asdict(changed))

    def _epoch(self, report: EpochReport) -> None:
        self.watcher.epoch(report)
        if self.stop.is_set():
            raise KeyboardInterrupt

    def _ledger(self, study: Study, target: int | None, space: Space | None, computed: Foreknown = NOTHING) -> Ledger:
        d = self.description
        so_far = len(study.get_trials(deepcopy=False))
        propose: Callable[[Any], Proposal] = propose_control
        halving = None
        if space is not None:
            priors = load_warm_start(self.storage, d, space, tell=self.watcher.stage)
            study.sampler = make_sampler(
                d.sampler, seed=d.seed, trials_so_far=so_far, priors=priors, fixed=space.fixed, computed=computed
            )
            propose = lambda trial: Proposal(space.suggest(trial))  # noqa: E731 - a def here would need its own name
            if d.early_stopping and d.objectives[0] in {"val_accuracy", "val_balanced_accuracy"}:
                halving = SuccessiveHalving(by_size=not SIZE_METRICS.isdisjoint(d.objectives))
        return Ledger(
            study,
            propose,
            target=target,
            seed=d.seed,
            objectives=tuple(d.objectives),
            constraints=tuple(map(Constraint.parse, d.constraints)),
            artefacts=joined(d.artefacts, study.study_name),
            halving=halving,
            patience=Patience(tell=self.watcher.stage, stopped=self.stop.is_set),
        )

    def _drive(self, ledger: Ledger, prepare: PipelineWorker, title: str, *, gpu_hours: float | None = None) -> None:
        self.watcher.trials(ledger, title)
        drive(
            ledger,
            run_request,
            prepare,
            resources=self.resources,
            stop=self.stop,
            progress=lambda changed: self.watcher.trials(changed, title),
            limits=Limits(self.description.trial_timeout_s, gpu_hours),
        )

    def _final_runs(self, ledger: Ledger, task: Task, prepare: PipelineWorker) -> None:
        chosen = choose(ledger.front)
        if not chosen:
            return
        results = {
            trial.number: TrialResult.from_json(trial.user_attrs["result"])
            for trial in self.study.trials
            if trial.number in ledger.front.members
        }
        runs = companion(
            self.storage,
            self.study,
            self.description,
            {n: (results[n].config, dict(results[n].metrics)) for n in chosen},
            task,
        )
        books = self._ledger(runs, None, None)
        if books.wanted:
            self._drive(books, prepare, "final runs and controls")
        if not self.stop.is_set():
            self._measure_latency({n: results[n] for n in ledger.front.in_order()}, runs, task)
            runs.set_user_attr("chosen", chosen)

    def _measure_latency(self, front: Mapping[int, TrialResult], runs: Study, task: Task) -> None:
        """One student after the other, on an otherwise idle machine: wall clock inside parallel trials is noise."""
        from metasearch.measure import latency_ms

        self.watcher.stage("latency of the front")
        example = task.validation.inputs[:1].numpy()
        measured = runs.user_attrs.get("latency", {})
        study_folder = joined(self.description.artefacts, self.study.study_name)
        for number, result in front.items():
            if str(number) in measured:
                continue
            file = onnx_file(trial_folder(study_folder, number), result, tell=self.watcher.stage)
            if file is not None:
                median, spread = latency_ms(file, example)
                measured[str(number)] = {"median_ms": median, "spread_ms": spread}
        runs.set_user_attr("latency", measured)


def onnx_file(folder: str, result: TrialResult, *, tell: Callable[[str], None]) -> Path | None:
    """Return the ONNX file of a trial in its folder, None where it wrote none or it is gone.

    tell: hears of one that is another's or not to be had now, None as well: that is no reason to end a search.
    """
    if ONNX_FILE not in result.artefacts:
        return None
    try:
        return fetch(joined(folder, ONNX_FILE), result.artefacts[ONNX_FILE])
    except StorageError as error:
        tell(f"latency is not measured of {error}")
        return None


def _counted(failures: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(failures.items())) or "none was finished"
