from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from metasearch import pipeline, training
from metasearch.errors import InputError, TrialFailure
from metasearch.export import onnx_tensor_bytes
from metasearch.measure import accuracy, agreement, count_macs, count_parameters
from metasearch.models.weights import load_weights
from metasearch.pipeline import ONNX_FILE, WEIGHTS_FILE, pipeline_steps, run_pipeline
from metasearch.policies import Policy
from metasearch.prune import total_channels
from metasearch.records import METRICS, EpochReport, TrialResult
from metasearch.tasks.task import Augmentation, Task
from metasearch.teachers import Teacher
from tests.synthetic import knowing_teacher, synthetic_task

TASK = synthetic_task()
TEACHER = knowing_teacher(TASK)
SMALL: dict[str, Any] = {
    "student.width": 4,
    "student.depth": 2,
    "batch_size": 30,
    "epochs": 3,
    "fine_tune_epochs": 2,
    "learning_rate.kind": "one_cycle",
    "learning_rate.peak": 0.03,
}
HALVED = SMALL | {"pruning_ratio": 0.5}


def run(config: dict[str, Any], *, task: Task = TASK, teacher: Teacher | None = TEACHER, **options: Any) -> TrialResult:
    return run_pipeline(task, config, teacher=teacher, **options)


def without_seconds(result: TrialResult) -> TrialResult:
    """Return the result with every time in it set to 0."""
    return replace(
        result,
        metrics={name: value for name, value in result.metrics.items() if name != "train_seconds"},
        stages=tuple(replace(stage, seconds=0.0) for stage in result.stages),
        curve=tuple(replace(epoch, seconds=0.0) for epoch in result.curve),
    )


@pytest.mark.parametrize("config", [SMALL, HALVED, HALVED | {"student.family": "mlp", "quantize": "none"}])
def test_a_result_has_every_metric_of_a_trial_under_its_name(config: dict[str, Any]) -> None:
    result = run(config)
    assert set(result.metrics) == set(METRICS) - {"test_accuracy", "latency_ms"}
    assert all(math.isfinite(value) for value in result.metrics.values())
    for name in ("val_accuracy", "val_balanced_accuracy", "val_ece", "teacher_agreement"):
        assert 0 <= result.metrics[name] <= 1
    assert result.metrics["val_accuracy"] > 0.6
    assert result.config == config


def test_the_same_seed_gives_the_same_result_and_another_seed_another() -> None:
    first, again, other = (without_seconds(run(HALVED, seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert [e.train_loss for e in first.curve] != [e.train_loss for e in other.curve]


def test_a_result_survives_json() -> None:
    result = run(HALVED)
    assert TrialResult.from_json(result.to_json()) == result


def test_the_train_seconds_are_those_of_the_epochs() -> None:
    result = run(SMALL)
    assert result.metrics["train_seconds"] == pytest.approx(sum(epoch.seconds for epoch in result.curve))


def test_budgets_are_equal_with_and_without_pruning() -> None:
    plain, pruned = run(SMALL), run(HALVED)
    assert [(e.epoch, e.epochs) for e in plain.curve] == [(e.epoch, e.epochs) for e in pruned.curve]
    assert [e.epoch for e in plain.curve] == [1, 2, 3, 4, 5]
    assert [e.stage for e in plain.curve] == ["distill"] * 5
    assert [e.stage for e in pruned.curve] == ["distill"] * 3 + ["fine_tune"] * 2
    assert [s.stage for s in plain.stages] == ["distill", "quantize"]
    assert [s.stage for s in pruned.stages] == ["distill", "prune", "fine_tune", "quantize"]


def test_a_report_comes_after_every_epoch_and_may_end_the_run() -> None:
    reports: list[EpochReport] = []
    result = run(HALVED, report=reports.append)
    assert tuple(reports) == result.curve

    class Enough(Exception):
        pass

    def stop(report: EpochReport) -> None:
        if report.epoch == 2:
            raise Enough

    with pytest.raises(Enough):
        run(HALVED, report=stop)


def test_the_steps_can_be_taken_one_by_one() -> None:
    steps = pipeline_steps(TASK, SMALL, teacher=TEACHER)
    reports = []
    while True:
        try:
            reports.append(next(steps))
        except StopIteration as finished:
            result: TrialResult = finished.value
            break
    assert tuple(reports) == result.curve
    assert without_seconds(result) == without_seconds(run(SMALL))


PRUNING: dict[str, dict[str, Any]] = {
    "constant": {"pruning_ratio": 0.5},
    "linear": {"pruning_ratio.kind": "linear", "pruning_ratio.start": 0.0, "pruning_ratio.end": 0.5},
    "cubic": {"pruning_ratio.kind": "cubic", "pruning_ratio.final": 0.5},
}


@pytest.mark.parametrize("schedule", PRUNING)
def test_every_pruning_schedule_reaches_its_ratio(schedule: str) -> None:
    result = run(SMALL | {"epochs": 2, "fine_tune_epochs": 4} | PRUNING[schedule])
    assert result.details["channels_removed"] == 0.5
    macs = [epoch.macs for epoch in result.curve]
    assert macs[0] == macs[1] > macs[2] >= macs[3] >= macs[4] >= macs[5] == result.metrics["macs"]
    ratios = [stage.metrics["pruning_ratio"] for stage in result.stages if stage.stage == "prune"]
    expected = {
        "constant": [0.5],
        "linear": [0.125, 0.25, 0.375, 0.5],
        "cubic": [Policy("cubic", {"final": 0.5})(step / 4) for step in (1, 2, 3, 4)],
    }
    # the last two steps of `cubic` ask for no further one of the 12 channels
    assert ratios == expected[schedule][: len(ratios)]
    assert len(ratios) == {"constant": 1, "linear": 4, "cubic": 2}[schedule]


def test_pruning_without_fine_tuning_prunes_at_the_end() -> None:
    result = run(HALVED | {"fine_tune_epochs": 0})
    assert [e.stage for e in result.curve] == ["distill"] * 3
    assert [s.stage for s in result.stages] == ["distill", "prune", "quantize"]
    assert result.details["channels_removed"] == 0.5
    assert result.metrics["macs"] < result.curve[-1].macs


def test_a_falling_width_narrows_step_by_step() -> None:
    width = {"student.width.kind": "linear", "student.width.start": 6, "student.width.end": 2}
    config = {name: value for name, value in SMALL.items() if name != "student.width"} | width
    result = run(config | {"epochs": 5, "fine_tune_epochs": 0})
    at_width = [run(SMALL | {"student.width": w, "epochs": 1, "fine_tune_epochs": 0}) for w in (6, 5, 4, 3, 2)]
    assert [epoch.macs for epoch in result.curve] == [other.curve[0].macs for other in at_width]
    assert result.metrics["parameters"] == at_width[-1].metrics["parameters"]
    assert result.metrics["model_bytes"] == at_width[-1].metrics["model_bytes"]
    assert result.details["width"] == 2


def test_a_rising_width_leaves_the_network_as_it_is() -> None:
    width = {"student.width.kind": "linear", "student.width.start": 3, "student.width.end": 6}
    config = {name: value for name, value in SMALL.items() if name != "student.width"} | width
    result = run(config)
    assert len({epoch.macs for epoch in result.curve}) == 1
    assert result.details["width"] == 3


def test_a_trained_student_learns_from_the_teacher_what_labels_do_not_say() -> None:
    """With alpha 1 the labels are not read: a teacher who confuses two classes is followed, not the truth."""
    swapped = {name: logits[..., [1, 0, 2]] for name, logits in TEACHER.logits.items() if name != "views"}
    wrong = replace(TEACHER, logits={**swapped, "views": torch.empty(0)})
    result = run(SMALL | {"alpha": 1.0}, teacher=wrong)
    assert result.metrics["teacher_agreement"] > 0.8
    assert result.metrics["val_accuracy"] < 0.5


def test_without_a_teacher_alpha_must_be_zero() -> None:
    with pytest.raises(InputError, match=r"^alpha: must be 0 where there is no teacher, got 0\.9$"):
        run(SMALL, teacher=None)
    result = run(SMALL | {"alpha": 0.0}, teacher=None)
    assert "teacher_agreement" not in result.metrics
    assert result.metrics["val_accuracy"] > 0.8


def test_at_alpha_zero_a_teacher_changes_nothing_but_the_agreement() -> None:
    alone, beside = (without_seconds(run(SMALL | {"alpha": 0.0}, teacher=teacher)) for teacher in (None, TEACHER))
    assert beside.curve == alone.curve
    assert set(beside.metrics) - set(alone.metrics) == {"teacher_agreement"}


def test_augmentation_needs_the_teachers_views() -> None:
    task = synthetic_task(augmentation=Augmentation(1))
    with pytest.raises(InputError, match=r"^augment: needs the teacher's logits on augmented views"):
        run(SMALL | {"augment": True}, task=task, teacher=knowing_teacher(task))
    result = run(SMALL | {"augment": True}, task=task, teacher=knowing_teacher(task, views=4))
    plain = run(SMALL, task=task, teacher=knowing_teacher(task, views=4))
    assert [e.train_loss for e in result.curve] != [e.train_loss for e in plain.curve]


def test_augmentation_without_a_teacher_is_that_of_the_task() -> None:
    task = synthetic_task(augmentation=Augmentation(1))
    augmented, plain = (run(SMALL | {"alpha": 0.0, "augment": a}, task=task, teacher=None) for a in (True, False))
    assert [e.train_loss for e in augmented.curve] != [e.train_loss for e in plain.curve]


def test_a_task_of_vectors_runs_through_the_same_pipeline() -> None:
    task = synthetic_task(shape=(6,))
    result = run(HALVED | {"student.family": "mlp", "student.width": 3}, task=task, teacher=knowing_teacher(task))
    assert result.metrics["val_accuracy"] > 0.8
    with pytest.raises(InputError, match=r"^student\.family: convnet needs images"):
        run(SMALL, task=task, teacher=knowing_teacher(task))


def onnx_logits(path: Path, inputs: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(np.asarray(session.run(None, {"input": inputs.numpy()})[0]))


@pytest.mark.parametrize(("family", "width"), [("convnet", 4), ("convnet", 20), ("mlp", 4)])
@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_what_is_measured_is_what_the_written_files_hold(
    family: str, width: int, quantize: str, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "folder"
    config = HALVED | {"student.family": family, "student.width": width, "quantize": quantize}
    result = run(config, save_to=folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted([WEIGHTS_FILE, ONNX_FILE])
    assert onnx_tensor_bytes(folder / ONNX_FILE) == result.metrics["model_bytes"]
    metadata = onnxruntime.InferenceSession(folder / ONNX_FILE).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list(TASK.class_names)
    logits = onnx_logits(folder / ONNX_FILE, TASK.validation.inputs)
    assert accuracy(logits, TASK.validation.labels) == result.metrics["val_accuracy"]
    assert agreement(logits, TEACHER.logits["validation"]) == result.metrics["teacher_agreement"]
    student = load_weights(folder / WEIGHTS_FILE)
    assert count_parameters(student) == result.metrics["parameters"]
    assert count_macs(student, TASK.input_shape) == result.metrics["macs"]
    if quantize == "none":
        torch.testing.assert_close(student(TASK.normalisation(TASK.validation.inputs)), logits, atol=1e-4, rtol=1e-4)


def test_int8_needs_about_a_quarter_of_the_bytes_and_keeps_the_accuracy() -> None:
    config = SMALL | {"student.width": 16, "student.depth": 3}
    floats, int8 = run(config | {"quantize": "none"}), run(config)
    assert [stage.stage for stage in floats.stages] == ["distill"]
    assert int8.metrics["model_bytes"] < 0.35 * floats.metrics["model_bytes"]
    assert int8.stages[-1].metrics["float_bytes"] == floats.metrics["model_bytes"]
    assert int8.curve[-1].train_loss == floats.curve[-1].train_loss
    assert abs(int8.metrics["val_accuracy"] - floats.metrics["val_accuracy"]) <= 0.05


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        run(SMALL | {"epochs": 1}, save_to=tmp_path / "file" / "trial")


def test_the_test_split_is_read_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(SMALL, read_test=True)
    assert result.metrics["test_accuracy"] > 0.8
    unread = replace(TASK, test=replace(TASK.test, inputs=torch.empty(60, 1, 8, 8, device="meta")))
    assert "test_accuracy" not in run(SMALL, task=unread).metrics


def test_a_learning_rate_beyond_all_measure_is_a_diverged_trial() -> None:
    for optimizer in ("sgd", "adamw"):
        for quantize in ("none", "int8"):
            config = SMALL | {"learning_rate.peak": 1e30, "optimizer": optimizer, "quantize": quantize}
            with pytest.raises(TrialFailure) as failure:
                run(config)
            assert failure.value.reason == "diverged"


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_a_network_that_breaks_in_its_last_step_is_a_diverged_trial(
    quantize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the last epoch is finite: it was taken before the last step."""
    train = training.train

    def breaking(model: nn.Module, *arguments: Any, **options: Any) -> Iterator[tuple[nn.Module, EpochReport]]:
        for trained, report in train(model, *arguments, **options):
            if report.epoch == report.epochs:
                next(trained.parameters()).data.fill_(math.nan)
            yield trained, report

    monkeypatch.setattr(pipeline, "train", breaking)
    with pytest.raises(TrialFailure) as failure:
        run(SMALL | {"quantize": quantize})
    assert failure.value.reason == "diverged"


class TooLarge(nn.Module):
    """Asks for four petabytes in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.empty(10**15) * self.weight


def test_running_out_of_memory_is_a_failed_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def building(*_: Any, **__: Any) -> nn.Module:
        torch.empty(10**15)
        raise AssertionError

    for builder in (building, lambda *_, **__: TooLarge()):
        monkeypatch.setattr(pipeline, "build_network", builder)
        with pytest.raises(TrialFailure, match="allocate") as failure:
            run(SMALL)
        assert failure.value.reason == "out_of_memory"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), "out_of_memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out_of_memory"),
        (RuntimeError("CUDA error: out of memory\nmore"), "out_of_memory"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
)
def test_only_a_lack_of_memory_counts_as_one(
    error: Exception, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(pipeline, "quantize", measured)
    with pytest.raises(type(error) if reason is None else TrialFailure) as failure:
        run(SMALL | {"epochs": 1, "fine_tune_epochs": 0})
    assert getattr(failure.value, "reason", None) == reason
    assert reason is None or "\n" not in str(failure.value)


@pytest.mark.parametrize("fine_tune_epochs", [0, 1])
def test_pruning_that_can_remove_nothing_is_a_failed_trial(fine_tune_epochs: int) -> None:
    config = HALVED | {"student.width": 1, "student.depth": 1, "epochs": 1, "fine_tune_epochs": fine_tune_epochs}
    with pytest.raises(TrialFailure, match=r"^no_effect: pruning_ratio 0\.5 removed none of 1 channels$") as failure:
        run(config)
    assert failure.value.reason == "no_effect"


def test_a_falling_pruning_ratio_that_was_never_applied_is_a_failed_trial() -> None:
    falling = {"pruning_ratio.kind": "linear", "pruning_ratio.start": 0.5, "pruning_ratio.end": 0.0}
    with pytest.raises(TrialFailure, match="no_effect"):
        run(SMALL | {"epochs": 1, "fine_tune_epochs": 1} | falling)
    assert run(SMALL | falling).details["channels_removed"] > 0


def test_a_bad_configuration_is_refused_before_anything_runs() -> None:
    def fail(report: EpochReport) -> None:
        raise AssertionError

    with pytest.raises(InputError, match=r"^configuration: epochs: must be in \[1, 1000\], got 0$"):
        run(SMALL | {"epochs": 0}, report=fail)


def test_the_fine_tuning_runs_at_its_share_of_the_learning_rate() -> None:
    rate = {"learning_rate": 0.02, "fine_tune_scale": 0.25}
    config = {name: value for name, value in HALVED.items() if not name.startswith("learning_rate")} | rate
    assert [epoch.learning_rate for epoch in run(config).curve] == [0.02] * 3 + [0.005] * 2


def test_the_weights_kept_are_those_of_the_smaller_network(tmp_path: Path) -> None:
    result = run(HALVED, save_to=tmp_path)
    assert total_channels(load_weights(tmp_path / WEIGHTS_FILE)) == (1 - result.details["channels_removed"]) * 12
