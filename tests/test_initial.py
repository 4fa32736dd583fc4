"""Students that start from trained networks, compared with the networks themselves and with pruning."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from metasearch.errors import InputError, NotFoundError
from metasearch.initial import LAYOUTS, SourceNetwork, find_source, initial_weights, load_source, meta_files
from metasearch.models import NetworkSpec, build_network
from metasearch.models.weights import save_weights, write_tensors
from metasearch.parameters import FAMILY_NAMES, INIT_NAMES
from metasearch.prune import narrow, prune_to_ratio, total_channels
from metasearch.tasks import Normalisation, Task
from tests.networks import lived_in
from tests.synthetic import synthetic_task

TASK = synthetic_task(shape=(2, 8, 8))
OTHER_CLASSES = replace(TASK, class_names=("a", "b", "c", "d"))


def build(spec: NetworkSpec, task: Task = TASK, seed: int = 1) -> nn.Module:
    return build_network(spec, input_shape=task.input_shape, classes=task.classes, seed=seed)


def trained(family: str, width: int = 8, depth: int = 5, task: Task = TASK) -> SourceNetwork:
    spec = NetworkSpec(family, width, depth)
    return SourceNetwork(spec, lived_in(build(spec, task)), task.class_names)


def started(source: SourceNetwork, width: int, depth: int, task: Task = TASK) -> tuple[nn.Module, float]:
    """Return a student in eval mode that started from the source, and the share of it that was taken over."""
    spec = NetworkSpec(source.spec.family, width, depth)
    model = build(spec, task, seed=2)
    return model.eval(), initial_weights(model, source, spec=spec, task=task)


def logits(model: nn.Module, task: Task = TASK) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(task.normalisation(task.train.inputs[:16]))
    return result


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_at_full_width_and_depth_the_student_is_its_source(family: str) -> None:
    source = trained(family)
    student, share = started(source, 8, 5)
    assert share == 1
    assert torch.equal(logits(student), logits(source.model))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_narrower_student_is_what_pruning_by_the_same_importance_leaves(family: str) -> None:
    source = trained(family)
    student, share = started(source, 4, 5)
    assert share == 1
    assert torch.equal(logits(student), logits(narrow(source.model, width=4, present_width=8)))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_wider_student_begins_as_the_same_function(family: str) -> None:
    source = trained(family)
    student, share = started(source, 12, 5)
    assert 0.3 < share < 0.7
    torch.testing.assert_close(logits(student), logits(source.model), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("depth", range(1, 9))
def test_every_depth_can_start_from_every_depth(family: str, depth: int) -> None:
    for width, source_depth in ((4, 1), (8, 3), (12, 4), (8, 8)):
        student, share = started(trained(family, depth=source_depth), width, depth)
        assert 0 < share <= 1
        assert logits(student).isfinite().all()


def test_a_shallower_student_takes_the_first_layers_of_every_stage() -> None:
    source = trained("convnet", depth=8)  # 2, 3 and 3 convolutions
    student, _ = started(source, 8, 4)  # 1, 1 and 2
    taken = [layer.weight for layer in student.modules() if isinstance(layer, nn.Conv2d)]
    there = [layer.weight for layer in source.model.modules() if isinstance(layer, nn.Conv2d)]
    assert [next(i for i, w in enumerate(there) if torch.equal(w, mine)) for mine in taken] == [0, 2, 5, 6]


def test_a_head_behind_a_gap_is_drawn_afresh() -> None:
    source = trained("mlp", depth=3)
    for depth, kept in ((3, True), (2, False)):
        student, _ = started(source, 8, depth)
        old, mine = list(source.model.children())[-1], list(student.children())[-1]
        assert torch.equal(old.weight, mine.weight) is kept  # type: ignore[arg-type]  # both are linear layers


@pytest.mark.parametrize("task", [OTHER_CLASSES, replace(TASK, class_names=("x", "y", "z"))], ids=["number", "names"])
def test_a_head_for_other_classes_is_drawn_afresh_and_the_rest_taken(task: Task) -> None:
    source = trained("convnet")
    student, share = started(source, 8, 5, task)
    fresh = build(NetworkSpec("convnet", 8, 5), task, seed=2).state_dict()
    old = source.model.state_dict()
    last = list(dict(student.named_children()))[-1]
    head = [f"{last}.weight", f"{last}.bias"]
    assert all(
        torch.equal(value, (fresh if name in head else old)[name]) for name, value in student.state_dict().items()
    )
    total = sum(p.numel() for p in student.parameters())
    assert share == pytest.approx(1 - sum(fresh[name].numel() for name in head) / total)


def test_a_head_that_fits_any_classes_is_taken_where_their_number_is_the_same() -> None:
    source = replace(trained("convnet"), class_names=())
    assert started(source, 8, 5, replace(TASK, class_names=("x", "y", "z")))[1] == 1
    assert started(source, 8, 5, OTHER_CLASSES)[1] < 1


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_first_layer_for_other_inputs_is_drawn_afresh_and_the_rest_taken(family: str) -> None:
    source = trained(family, task=synthetic_task())
    _, share = started(source, 8, 5)
    first = next(
        layer for layer in build(NetworkSpec(family, 8, 5)).modules() if isinstance(layer, (nn.Conv2d, nn.Linear))
    )
    total = sum(p.numel() for p in build(NetworkSpec(family, 8, 5)).parameters())
    behind = 2 * len(first.weight)  # the normalisation of what it makes
    assert share == pytest.approx(1 - (first.weight.numel() + behind) / total)


def test_a_pruned_source_gives_the_channels_that_it_has_left() -> None:
    whole = trained("resnet")
    original = total_channels(whole.model)
    pruned = prune_to_ratio(whole.model, ratio=0.4, original=original, input_shape=TASK.input_shape)
    student, share = started(replace(whole, model=pruned), 8, 5)
    assert 0.2 < share < 0.9
    torch.testing.assert_close(logits(student), logits(pruned), atol=1e-5, rtol=1e-4)


def test_a_student_of_another_family_is_refused() -> None:
    spec = NetworkSpec("convnet", 4, 3)
    with pytest.raises(InputError, match=r"^student\.init: starts from a network of family resnet, and .* 'convnet'$"):
        initial_weights(build(spec), trained("resnet"), spec=spec, task=TASK)


@pytest.mark.parametrize("scale_only", [False, True])
def test_another_normalisation_is_folded_into_the_first_layer_of_an_mlp(scale_only: bool) -> None:
    ours = TASK.normalisation
    scale = (1 / 255, 1 / 100)
    shift = tuple(s * t / o for s, t, o in zip(ours.shift, scale, ours.scale, strict=True))
    theirs = Normalisation(scale, shift if scale_only else (0.2, -0.1))
    source = replace(trained("mlp"), normalisation=theirs)
    before = copy.deepcopy(source.model.state_dict())
    student, share = started(source, 8, 5)
    with torch.no_grad():
        expected = source.model(theirs(TASK.train.inputs[:16]))
    assert share == 1
    torch.testing.assert_close(logits(student), expected, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in source.model.state_dict().items())


@pytest.mark.parametrize("family", ["convnet", "resnet", "mobilenet"])
def test_another_normalisation_is_folded_into_a_convolution_but_at_the_border(family: str) -> None:
    theirs = Normalisation((1 / 255, 1 / 100), (0.2, -0.1))
    source = replace(trained(family), normalisation=theirs)
    student, _ = started(source, 8, 5)
    inputs = TASK.train.inputs[:16]
    with torch.no_grad():
        stems = [nn.Sequential(*list(model.children())[:2]) for model in (source.model, student)]
        theirs_out, ours_out = stems[0](theirs(inputs)), stems[1](TASK.normalisation(inputs))
    torch.testing.assert_close(ours_out[..., 1:-1, 1:-1], theirs_out[..., 1:-1, 1:-1], atol=1e-4, rtol=1e-4)


# Files


def saved(path: Path, family: str = "convnet", method: str | None = None, task: Task = TASK) -> Path:
    """Write the weights of a student, meta-learned if `method` says how."""
    spec = NetworkSpec(family, 8, 5)
    model = lived_in(build(spec, task))
    save_weights(model, path, spec=spec, task=task)
    if method is not None:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() | {"meta": json.dumps({"method": method})}
        write_tensors(model.state_dict(), path, metadata=metadata)
    return path


def test_an_earlier_students_file_gives_it_back_with_its_classes(tmp_path: Path) -> None:
    source = load_source("prior_student", saved(tmp_path / "s.safetensors"), OTHER_CLASSES)
    assert source.class_names == TASK.class_names
    assert source.spec == NetworkSpec("convnet", 8, 5)
    assert started(source, 8, 5)[1] == 1


def test_a_meta_learned_file_is_found_by_its_method(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors", method="reptile")
    assert meta_files([path]) == {"reptile": path}
    assert load_source("reptile", path, TASK).class_names == ()
    source = find_source("reptile", teacher=None, files={"reptile": path}, task=TASK)
    assert started(source, 4, 3)[1] > 0.9


def test_meta_learned_files_that_cannot_serve_are_refused_in_one_line(tmp_path: Path) -> None:
    maml = saved(tmp_path / "m.safetensors", method="maml")
    with pytest.raises(InputError, match=r"m\.safetensors: must be meta-learned by reptile, got 'maml'$"):
        load_source("reptile", maml, TASK)
    with pytest.raises(InputError, match=r"must take the task's inputs \(1, 8, 8\), got '\[2, 8, 8\]'$"):
        load_source("maml", maml, synthetic_task())
    with pytest.raises(InputError, match=r"^--meta .*: must be the only one of maml, beside .*$"):
        meta_files([maml, saved(tmp_path / "n.safetensors", method="maml")])
    with pytest.raises(InputError, match=r"^--meta .*: must be meta-learned by one of maml, .*, got 'none'$"):
        meta_files([saved(tmp_path / "s.safetensors")])


def test_a_file_that_could_hold_code_is_refused(tmp_path: Path) -> None:
    pickled = tmp_path / "student.safetensors"
    torch.save(build(NetworkSpec("convnet", 4, 2)), pickled)
    with pytest.raises(InputError, match="must be a weights file written by metasearch"):
        load_source("prior_student", pickled, TASK)
    spec = NetworkSpec("tests.user_networks:smooth", 4, 1)
    save_weights(build(spec), tmp_path / "own.safetensors", spec=spec, task=TASK)
    with pytest.raises(InputError, match="is of a family that runs code of its own"):
        load_source("prior_student", tmp_path / "own.safetensors", TASK)


def test_what_a_start_needs_is_said_where_it_is_missing() -> None:
    for init in INIT_NAMES[1:]:
        with pytest.raises(InputError, match=rf"^student\.init: needs .*, got '{init}'$"):
            find_source(init, teacher=None, files={}, task=TASK)
    with pytest.raises(NotFoundError, match=r"gone\.safetensors: no such weights file"):
        find_source("maml", teacher=None, files={"maml": Path("gone.safetensors")}, task=TASK)


def test_every_family_has_a_layout() -> None:
    assert LAYOUTS.keys() == set(FAMILY_NAMES)
