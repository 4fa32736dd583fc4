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

from metasearch import run as run_module
from metasearch import stages, training
from metasearch.errors import InputError, TrialFailure
from metasearch.export import onnx_tensor_bytes
from metasearch.measure import accuracy, agreement, count_macs, count_parameters
from metasearch.models import NetworkSpec, build_network
from metasearch.models.lowered import lower
from metasearch.models.weights import load_weights, read_tensors
from metasearch.objective import teacher_features
from metasearch.parameters import FAMILY_NAMES, LOSS_NAMES
from metasearch.pipeline import ONNX_FILE, TUNED_FILE, WEIGHTS_FILE, Shared, pipeline_steps, run_pipeline
from metasearch.policies import Policy
from metasearch.prune import total_channels
from metasearch.quantize import quantize as quantized
from metasearch.records import METRICS, EpochReport, TrialResult
from metasearch.taps import Tap
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
    "quantization_epochs": 0,
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
    steps = pipeline_steps(Shared(TASK, TEACHER), SMALL)
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

    monkeypatch.setattr(run_module, "train", breaking)
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
        monkeypatch.setattr(run_module, "build_network", builder)
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

    monkeypatch.setattr(stages, "quantize", measured)
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


def feature_teacher(task: Task) -> Teacher:
    """Return the knowing teacher with features, those of an untrained network."""
    network = build_network(NetworkSpec("convnet", 8, 3), input_shape=task.input_shape, classes=task.classes, seed=1)
    tap = Tap.of(network, task.input_shape)
    features = teacher_features(lambda batch: tap.read(network, task.normalisation(batch)), task.taught.inputs)
    teacher = knowing_teacher(task)
    return replace(teacher, features={f"train.{name}": values[None] for name, values in features.items()})


# Quick are seven of the pairs, which hold every loss and every family.
PAIRS = [
    pytest.param(family, loss, marks=() if at % len(FAMILY_NAMES) == place else pytest.mark.slow)
    for place, family in enumerate(FAMILY_NAMES)
    for at, loss in enumerate(LOSS_NAMES)
    if (family, loss) != ("mlp", "at")
]


@pytest.mark.parametrize(("family", "loss"), PAIRS)
def test_every_loss_trains_every_family_to_the_end(family: str, loss: str) -> None:
    result = run(HALVED | {"student.family": family, "loss": loss}, teacher=feature_teacher(TASK))
    assert math.isfinite(result.metrics["val_accuracy"])
    assert result.curve[2].train_loss < result.curve[0].train_loss


def test_a_hint_ends_with_the_distillation() -> None:
    """Its regressor would start anew for every pruned network."""
    config = HALVED | {"loss": "hint", "feature_weight": 1000.0}
    result = run(config, teacher=feature_teacher(TASK))
    assert result.curve[2].train_loss > 10 * result.curve[3].train_loss


@pytest.mark.parametrize(
    "change",
    [
        {"loss": "dkd"},
        {"loss": "dist"},
        {"loss": "hard"},
        {"loss": "at"},
        {"loss": "hint"},
        {"loss": "rkd"},
        {"loss": "at", "feature_weight": 20.0},
        {"logit_standardization": True},
        {"pruning_importance": "taylor", "pruning_ratio": 0.5},
        {"pruning_target": "macs", "pruning_ratio": 0.5},
        {"sparsity": 0.5},
        {"sparsity_threshold": 0.7},
        {"learning_rate.kind": "hypergradient", "learning_rate.start": 0.01},
    ],
    ids=str,
)
def test_every_option_changes_the_result(change: dict[str, Any]) -> None:
    base = {path: value for path, value in SMALL.items() if not path.startswith("learning_rate")} | {"quantize": "none"}
    base |= {"learning_rate": 0.01}
    if "feature_weight" in change:
        base |= {"loss": "at"}
    if "pruning_ratio" in change:
        base |= {"pruning_ratio": change["pruning_ratio"]}
    if "learning_rate.kind" in change:
        del base["learning_rate"]
        changed = run(base | change)
        assert changed.curve[-1].learning_rate != 0.01
        base |= {"learning_rate": 0.01}
    else:
        changed = run(base | change, teacher=feature_teacher(TASK))
    plain = run(base, teacher=feature_teacher(TASK))
    assert plain.curve[-1].train_loss != changed.curve[-1].train_loss


def test_a_loss_of_features_needs_a_teacher_that_shows_some() -> None:
    with pytest.raises(InputError, match=r"^loss: rkd needs a teacher with features that can be read, got 'rkd'$"):
        run(SMALL | {"loss": "rkd"})


def test_sparse_weights_are_zero_in_the_deployed_network_and_save_its_bytes(tmp_path: Path) -> None:
    wide = SMALL | {"student.width": 16}
    dense = run(wide)
    sparse = run(wide | {"sparsity.kind": "cubic", "sparsity.final": 0.8}, save_to=tmp_path)
    weights = [value for value in load_weights(tmp_path / WEIGHTS_FILE).parameters() if value.ndim > 1]
    zeros, total = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
    assert zeros / total == pytest.approx(0.8, abs=0.01)
    assert sparse.details["sparsity"] == pytest.approx(0.8, abs=0.01)
    assert sparse.metrics["model_bytes"] < 0.6 * dense.metrics["model_bytes"]
    assert onnx_tensor_bytes(tmp_path / ONNX_FILE) == sparse.metrics["model_bytes"]
    assert sparse.metrics["macs"] == dense.metrics["macs"]
    deployed = onnx_logits(tmp_path / ONNX_FILE, TASK.validation.inputs)
    assert accuracy(deployed, TASK.validation.labels) == sparse.metrics["val_accuracy"]


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_falling_sparsity_restores_nothing(kind: str) -> None:
    result = run(SMALL | {"sparsity.kind": kind, "sparsity.start": 0.8, "sparsity.end": 0.0})
    first = next(stage for stage in result.stages if stage.stage == "sparsify")
    assert result.details["sparsity"] == first.metrics["sparsity"] > 0.3


def test_a_sparsity_that_was_never_applied_is_a_failed_trial() -> None:
    with pytest.raises(TrialFailure, match=r"^no_effect: sparsity 0\.5 was never applied$"):
        run(SMALL | {"sparsity.kind": "cosine", "sparsity.start": 0.5, "fine_tune_epochs": 1})


def test_standardized_logits_of_two_classes_are_refused() -> None:
    two = replace(TASK, class_names=("a", "b"))
    with pytest.raises(InputError, match=r"^logit_standardization: needs three classes or more"):
        run(SMALL | {"logit_standardization": True}, task=two)


def test_a_threshold_that_takes_nothing_is_a_failed_trial() -> None:
    with pytest.raises(TrialFailure, match=r"^no_effect: threshold 1e-08 removed none of \d+ weights$"):
        run(SMALL | {"sparsity_threshold": 1e-8})


def test_a_macs_target_is_met() -> None:
    whole = run(SMALL | {"student.width": 8})
    half = run(SMALL | {"student.width": 8, "pruning_ratio": 0.5, "pruning_target": "macs"})
    assert 0.3 * whole.metrics["macs"] < half.metrics["macs"] <= 0.5 * whole.metrics["macs"]


def test_a_student_that_int8_hurts_is_fine_tuned_in_simulated_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run(SMALL)
    assert "quantization_aware" not in [stage.stage for stage in plain.stages]
    monkeypatch.setattr(stages, "QUANTIZATION_LOSS", -1.0)  # as if every student had lost that much
    tuned = run(SMALL | {"quantization_epochs": 2})
    assert [stage.stage for stage in tuned.stages] == ["distill", "quantize", "quantization_aware"]
    assert [epoch.stage for epoch in tuned.curve[5:]] == ["quantization_aware"] * 2
    before = next(stage for stage in tuned.stages if stage.stage == "quantize")
    assert tuned.metrics["val_accuracy"] >= before.metrics["val_accuracy"]
    assert tuned.metrics["parameters"] == plain.metrics["parameters"]


def test_a_tuned_network_is_kept_in_floats_too_and_quantizes_to_what_is_deployed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(SMALL, save_to=tmp_path / "plain")
    assert not (tmp_path / "plain" / TUNED_FILE).exists()
    monkeypatch.setattr(stages, "QUANTIZATION_LOSS", -1.0)  # as if every student had lost that much
    result = run(SMALL | {"quantization_epochs": 2}, save_to=tmp_path)
    assert result.details["quantization_aware"]
    student = lower(load_weights(tmp_path / WEIGHTS_FILE), normalisation=TASK.normalisation, input_shape=(1, 8, 8))
    tuned = student.with_float_tensors(read_tensors(tmp_path / TUNED_FILE)[1])
    deployed = onnx_logits(tmp_path / ONNX_FILE, TASK.validation.inputs)
    remade = quantized(tuned, stages.calibration_inputs(TASK))(TASK.validation.inputs)
    assert agreement(remade, deployed) >= 0.98
    assert not torch.allclose(quantized(student, stages.calibration_inputs(TASK))(TASK.validation.inputs), remade)
    with pytest.raises(ValueError, match="must hold the weights and biases of this network"):
        student.with_float_tensors({})


def test_unlabelled_inputs_teach_what_the_labels_do_not() -> None:
    few = synthetic_task(counts=(6, 60, 60), noise=1.5)
    many = replace(few, unlabelled=synthetic_task(counts=(240, 60, 60), noise=1.5).train.inputs)
    accuracies = [
        run(SMALL | {"epochs": 12, "quantize": "none"}, task=task, teacher=knowing_teacher_of_all(task)).metrics
        for task in (few, many)
    ]
    assert accuracies[1]["val_accuracy"] > accuracies[0]["val_accuracy"] + 0.05


def knowing_teacher_of_all(task: Task) -> Teacher:
    """Return a teacher that knows the class of the unlabelled inputs, too: they come by the same patterns."""
    whole = synthetic_task(counts=(240, 60, 60), noise=1.5)
    teacher = knowing_teacher(task)
    if task.unlabelled is None:
        return teacher
    logits = torch.cat([teacher.logits["train"][0], knowing_teacher(whole).logits["train"][0]])
    return replace(teacher, logits={**teacher.logits, "train": logits[None]})
