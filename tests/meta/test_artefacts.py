from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from metasearch.errors import InputError, NotFoundError, TrialFailure
from metasearch.initial import load_source
from metasearch.meta.artefacts import (
    Artefact,
    artefact_path,
    bound_method,
    family_digest,
    proposed_for,
    read_artefact,
    support_from,
    write_artefact,
)
from metasearch.meta.held_out import held_out_gain
from metasearch.meta.making import MetaRequest, find_artefact, make_artefact, taught_domains
from metasearch.meta.method import Inner, classification_loss
from metasearch.meta.methods import METHODS
from metasearch.models import NetworkSpec
from metasearch.models.weights import load_weights
from metasearch.pipeline import run_pipeline
from metasearch.tasks import TaskSource, load_task
from metasearch.tasks.domains import DomainSplit
from metasearch.tasks.episodes import EpisodeShape
from metasearch.tasks.families import load_family, parse_member
from tests.meta.family import NUMBERS, noisy_domain

SPEC = NetworkSpec("mlp", width=3, depth=1)
RECORD = {"ways": 3, "inner_steps": 2, "inner_lr": 0.1}
FAMILY = "digits@classes:3"
SMALL: dict[str, Any] = {
    "student": str(SPEC),
    "ways": 3,
    "shots": 2,
    "queries": 5,
    "steps": 12,
    "episodes": 2,
    "inner_steps": 2,
    "judged": 4,
}


def written(path: Path, method: str = "protonet", *, classes: int = 5) -> Artefact:
    bound = bound_method(method, SPEC, input_shape=(NUMBERS,), ways=3, inner=Inner(2, 0.1), seed=4)
    task = noisy_domain(0, classes=classes).task()
    write_artefact(path, bound, bound.initial(), spec=SPEC, task=task, record={**RECORD, "method": method})
    return read_artefact(path)


@pytest.mark.parametrize("method", METHODS)
def test_an_artefact_gives_its_meta_parameters_back_and_is_a_weights_file(method: str, tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    found = written(path, method)
    bound = bound_method(method, SPEC, input_shape=(NUMBERS,), ways=3, inner=Inner(2, 0.1), seed=4)
    for name, value in bound.initial().items():
        assert torch.equal(found.meta[name], value)
    assert found.record["method"] == method
    student = load_weights(path)
    again = found.student_for(noisy_domain(0).task())
    for name, value in student.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


@pytest.mark.parametrize("method", ["maml", "protonet", "hypernetwork"])
def test_a_student_has_the_classes_of_its_own_task(method: str, tmp_path: Path) -> None:
    found = written(tmp_path / "start.safetensors", method)
    task = noisy_domain(8, classes=7).task()
    student = found.student_for(task).eval()
    assert student(task.normalisation(task.train.inputs)).shape == (len(task.train), 7)


def test_a_student_s_own_source_is_what_the_method_proposes_for_its_task(tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    found, task = written(path), noisy_domain(8, classes=5).task()
    source = proposed_for(task, load_source("protonet", path, task), path)
    expected = found.student_for(task).state_dict()
    for name, value in source.model.state_dict().items():
        assert torch.equal(value, expected[name])
    assert not torch.equal(expected["4.weight"], load_weights(path).state_dict()["4.weight"])


def test_a_trial_may_start_from_an_artefact(tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    written(path)
    config = {
        "student.family": "mlp",
        "student.width": SPEC.width,
        "student.depth": SPEC.depth,
        "student.init": "protonet",
        "alpha": 0.0,
        "epochs": 1,
        "fine_tune_epochs": 0,
        "quantize": "none",
    }
    result = run_pipeline(noisy_domain(8).task(), config, initial={"protonet": path})
    assert result.details["initialised"] == 1.0


def test_support_is_drawn_from_every_class_and_seeded() -> None:
    task = noisy_domain(0, classes=4).task()
    support = support_from(task, shots=3, seed=1)
    assert support.labels.bincount().tolist() == [3] * 4
    assert torch.equal(support.inputs, support_from(task, shots=3, seed=1).inputs)
    assert not torch.equal(support.inputs, support_from(task, shots=3, seed=2).inputs)


def test_a_task_without_an_example_of_a_class_is_refused() -> None:
    task = noisy_domain(0, classes=4).task()
    kept = task.train.labels != 2
    lacking = replace(task, train=replace(task.train, inputs=task.train.inputs[kept], labels=task.train.labels[kept]))
    with pytest.raises(InputError, match="must have a training example of every class, got 'noisy0/2'"):
        support_from(lacking, shots=3, seed=1)


def test_an_artefact_of_another_shape_or_method_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    found = written(path)
    with pytest.raises(InputError, match=r"was meta-trained for inputs of shape \(16,\); task digits has others"):
        found.student_for(load_task("digits"))
    with pytest.raises(InputError, match=r"must be of method maml, got 'protonet'"):
        read_artefact(path, methods=("maml",))


def test_a_file_that_holds_code_is_never_opened(tmp_path: Path) -> None:
    path, ran = tmp_path / "start.safetensors", tmp_path / "ran"

    class Harmful:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (ran,)  # type: ignore[return-value]  # what a stranger's pickle would do

    path.write_bytes(pickle.dumps({"weights": Harmful()}))
    with pytest.raises(InputError, match="must be a weights file written by metasearch"):
        read_artefact(path)
    assert not ran.exists()
    with pytest.raises(NotFoundError):
        read_artefact(tmp_path / "none")


def test_meta_parameters_of_another_shape_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    bound = bound_method("metasgd", SPEC, input_shape=(NUMBERS,), ways=3, inner=Inner(2, 0.1))
    meta = bound.initial() | {"inner_lr:4.bias": torch.zeros(9)}
    task = noisy_domain(0).task()
    write_artefact(path, bound, meta, spec=SPEC, task=task, record={**RECORD, "method": "metasgd"})
    with pytest.raises(InputError, match=r"inner_lr:4.bias: must have shape \(3,\), got shape=\(9,\)"):
        read_artefact(path)


def test_the_digest_of_a_family_is_of_its_data_and_their_parts() -> None:
    one, two, three = (noisy_domain(seed) for seed in range(3))
    split = DomainSplit((one,), (two,), (three,))
    renamed = DomainSplit((replace(one, name="another name"),), (two,), (three,))
    assert family_digest(split) == family_digest(renamed)
    assert family_digest(split) != family_digest(DomainSplit((two,), (one,), (three,)))


def test_everything_that_a_request_says_changes_its_place_in_the_cache() -> None:
    split = DomainSplit((noisy_domain(0),), (noisy_domain(1),), (noisy_domain(2),))
    base = MetaRequest(FAMILY, "maml", **SMALL)
    changes: list[dict[str, Any]] = [{}, {"ways": 4}, {"shots": 3}, {"steps": 13}, {"seed": 1}, {"inner_lr": 0.2}]
    changes += [{"student": "mlp:width=4,depth=1"}, {"teacher": "mlp:width=8,depth=1"}]
    paths = {artefact_path("maml", replace(base, **change).described(split)) for change in changes}
    elsewhere = replace(base, source=TaskSource("", data_root="/elsewhere"))
    assert len(paths) == len(changes)
    assert artefact_path("maml", elsewhere.described(split)) in paths


def test_an_artefact_is_made_once_and_says_how_much_it_helps() -> None:
    request, told = MetaRequest(FAMILY, "protonet", **SMALL), list[str]()
    assert find_artefact(request) is None
    made = make_artefact(request)
    assert find_artefact(request) == made.path
    again = make_artefact(request, tell=told.append)
    assert again.path == made.path
    assert told == [f"protonet: found in the cache, {made.path}"]
    gain = made.record["gain"]
    assert gain["episodes"] == 4
    assert gain["gain"] == pytest.approx(gain["accuracy"] - gain["random"])
    assert not made.path.with_suffix(".checkpoint").exists()
    with safe_open(made.path, framework="pt") as file:
        assert json.loads(file.metadata()["meta"])["family"] == FAMILY


@pytest.mark.slow
def test_a_checkpoint_that_is_left_is_gone_on_from() -> None:
    """The run is cut off by an exception in its progress; in the end it makes what an uninterrupted run makes."""
    request = MetaRequest(FAMILY, "fomaml", **SMALL)
    whole = make_artefact(request)
    whole.path.rename(whole.path.with_suffix(".kept"))

    def cut_off(report: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_artefact(request, progress=cut_off)
    assert whole.path.with_suffix(".checkpoint").is_file()
    steps: list[int] = []
    again = make_artefact(request, progress=lambda report: steps.append(report.step))
    assert steps == [12]  # of validations at 10 and 12
    for name, value in whole.meta.items():
        assert torch.equal(again.meta[name], value)


@pytest.mark.slow
def test_an_artefact_can_be_trained_on() -> None:
    first = make_artefact(MetaRequest(FAMILY, "reptile", **SMALL))
    on = make_artefact(MetaRequest(FAMILY, "reptile", **SMALL, start=str(first.path)))
    assert on.path != first.path
    assert on.record["history"][0][1] == max(value for _, value in first.record["history"])
    with pytest.raises(InputError, match="must be of the same student, input shape and ways"):
        make_artefact(MetaRequest(FAMILY, "reptile", **{**SMALL, "ways": 2}, start=str(first.path)))


def test_a_teacher_s_logits_are_cut_into_the_classes_of_each_domain() -> None:
    request = MetaRequest(FAMILY, "maml", **SMALL, teacher="mlp:width=4,depth=1")
    told: list[str] = []
    domains = taught_domains(parse_member(FAMILY), request, tell=told.append)
    plain = load_family(FAMILY)
    assert told == ["teacher mlp:width=4,depth=1 of digits"]
    for domain, expected in zip(domains, plain, strict=True):
        assert domain.fingerprint == expected.fingerprint
        assert domain.teacher_logits is not None
        agreement = (domain.teacher_logits.argmax(dim=1) == domain.labels).double().mean()
        assert float(agreement) > 0.8


@pytest.mark.slow
def test_meta_training_with_a_teacher_learns_from_its_logits() -> None:
    plain = make_artefact(MetaRequest(FAMILY, "maml", **SMALL))
    taught = make_artefact(MetaRequest(FAMILY, "maml", **SMALL, teacher="mlp:width=4,depth=1"))
    assert any(not torch.equal(value, taught.meta[name]) for name, value in plain.meta.items())


def test_the_gain_of_random_weights_is_none_within_its_interval() -> None:
    """A method that takes the plain steps that random weights take, from the same weights, has no gain at all."""
    bound = bound_method("maml", SPEC, input_shape=(NUMBERS,), ways=3, inner=Inner(2, 0.3))
    found = held_out_gain(
        bound,
        bound.initial(),
        loss=classification_loss(),
        validation=[noisy_domain(1)],
        test=[noisy_domain(2)],
        shape=EpisodeShape(3, 2, 4),
        steps=2,
        episodes=10,
        seed=0,
    )
    assert found.random_rate in (0.03, 0.1, 0.3, 1.0, 3.0)
    if found.random_rate == 0.3:
        assert (found.gain, found.gain_interval) == (0.0, 0.0)
    assert found.gain == pytest.approx(found.accuracy - found.random)
    assert "points, 2 steps, 10 episodes" in found.text()


def test_bad_requests_are_refused_in_one_line() -> None:
    for change, message in (
        ({"method": "mamml"}, r"--method: must be one of maml, .*did you mean maml"),
        ({"student": "mlp"}, r"--student: must look like convnet"),
        ({"ways": 1}, r"ways: must be at least 2, got 1"),
        ({"steps": 0}, r"--steps: must be at least 1, got 0"),
        ({"inner_lr": 0.0}, r"inner_lr: must be above 0"),
    ):
        with pytest.raises(InputError, match=message):
            MetaRequest(**{"family": FAMILY, "method": "maml", **SMALL, **change})
    for change, message in (
        ({"ways": 4}, r"ways: domain .* has 3 classes; must be at most that, got 4"),
        ({"shots": 500}, r"shots: class .* examples; shots and queries together must be at most that"),
        ({"family": "digits"}, r"family digits: needs at least two tasks"),
        ({"family": "digits@classes:5"}, r"family: needs at least three tasks"),
    ):
        with pytest.raises(InputError, match=message):
            make_artefact(MetaRequest(**{"family": FAMILY, "method": "maml", **SMALL, **change}))


def test_an_inner_loop_that_diverges_throughout_is_one_line() -> None:
    with pytest.raises(TrialFailure, match="diverged: the gradient was not finite in 20 steps in a row"):
        make_artefact(MetaRequest(FAMILY, "maml", **{**SMALL, "steps": 30, "inner_lr": 1e30}))
