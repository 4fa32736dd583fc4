"""Spaces with a part of them decided, and what earlier studies decide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage

from metasearch.configuration import Configuration
from metasearch.errors import InfeasibleError, InputError, NotFoundError
from metasearch.parameters import PARAMETERS, POLICIES
from metasearch.search.artefacts import KeptFile
from metasearch.search.earlier import Decided, decided_space, front_of, student_file
from metasearch.search.fixing import KEPT_OPEN, STRATEGY, STRUCTURE, fix, narrow_to, part_of
from metasearch.search.space import Space, load_space, parse_space
from tests.fakes import finished_study

PRESETS = ["distill", "distill_compress", "few_shot", "quick", "tiny_device"]


def sampled(space: Space, seed: int) -> dict[str, Any]:
    return space.configuration(space.sample(np.random.default_rng(seed)))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("names", [STRUCTURE, STRATEGY, (*STRUCTURE, *STRATEGY)], ids=["structure", "strategy", "both"])
def test_a_fixed_part_is_that_of_the_configuration_and_the_rest_stays_open(preset: str, names: tuple[str, ...]) -> None:
    """Over random configurations of every preset; what comes out is a configuration that could be run."""
    space = load_space(preset)
    for seed in range(6):
        best = sampled(space, seed)
        fixed = fix(space, part_of(best, names), place="fixed")
        assert fixed.distributions().keys() < space.distributions().keys()
        for other in range(6):
            config = sampled(fixed, other)
            Configuration.of(config)
            wanted = part_of(best, names)
            if config["student.family"] == best["student.family"]:
                assert {path: config[path] for path in wanted} == wanted
            assert part_of(config, names).keys() == wanted.keys()


def test_fixing_everything_by_two_steps_is_fixing_it_at_once() -> None:
    space = load_space("distill_compress")
    best = sampled(space, 1)
    structure, strategy = part_of(best, STRUCTURE), part_of(best, STRATEGY)
    twice = fix(fix(space, structure, place="a"), strategy, place="a")
    assert twice == fix(space, structure | strategy, place="a")
    assert twice.digest == parse_space(twice.to_yaml(), place="a").digest == parse_space(twice.text, place="a").digest


def test_structure_and_strategy_share_nothing_and_leave_out_starts_budgets_and_deployment() -> None:
    assert set(STRUCTURE).isdisjoint(STRATEGY)
    assert {*PARAMETERS, *POLICIES} - {*STRUCTURE, *STRATEGY} == {*KEPT_OPEN} - {*STRUCTURE}


def test_conditions_on_what_is_fixed_are_decided_too() -> None:
    space = load_space("distill_compress")
    mlp = fix(space, {"student.family": "mlp"}, place="s")
    assert mlp.fixed["loss"] == "kd"
    assert mlp.fixed["feature_weight"] == 1.0
    assert mlp.fixed["student.init"] == "random"
    sgd = fix(space, {"optimizer": "sgd"}, place="s")
    assert not next(setting for setting in sgd.settings if setting.path == "momentum").when
    assert fix(space, {"optimizer": "adamw"}, place="s").fixed["momentum"] == 0.9


def test_a_parameter_that_is_there_under_a_condition_keeps_it() -> None:
    at = fix(load_space("distill_compress"), {"loss": "at"}, place="s")
    losses = {(c["student.family"], c["loss"]) for c in (sampled(at, seed) for seed in range(40))}
    assert losses == {("convnet", "at"), ("resnet", "at"), ("mobilenet", "at"), ("mlp", "kd")}


def test_a_fixed_policy_takes_its_new_form() -> None:
    space = fix(
        load_space("quick"),
        {"pruning_ratio": 0.2, "student.width.kind": "constant", "student.width.value": 3},
        place="s",
    )
    assert (space.fixed["pruning_ratio"], space.fixed["student.width.value"]) == (0.2, 3)
    assert not any(path.startswith(("pruning_ratio.", "student.width")) for path in space.distributions())


def test_a_range_is_narrowed_to_what_occurred_and_a_choice_to_its_choices() -> None:
    space = load_space("distill_compress")
    seen = [
        {"student.family": family, "student.width": width, "student.depth": depth, "alpha": 0.4}
        for family, width, depth in (("resnet", 7, 3), ("mlp", 15, 3))
    ]
    narrowed = narrow_to(space, seen, STRUCTURE, place="s")
    found = narrowed.distributions()
    assert found["student.family"] == CategoricalDistribution(("resnet", "mlp"))
    assert found["student.width"] == IntDistribution(8, 14, step=2)  # in the steps of the space
    assert narrowed.fixed["student.depth"] == 3
    assert found["alpha"] == FloatDistribution(0.3, 1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"student.width": 40},
            r"^s: policies\.student\.width: has none of the space's values in \[4, 24\], got '40'$",
        ),
        (
            {"student.family": "m:f"},
            r"^s: parameters\.student\.family: has none .* convnet, resnet, mobilenet, mlp, got",
        ),
    ],
)
def test_a_front_without_a_value_of_the_space_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        narrow_to(load_space("distill_compress"), [values], STRUCTURE, place="s")


# Earlier studies


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the storage and its artefacts."""
    return tmp_path_factory.mktemp("earlier")


@pytest.fixture(scope="module")
def storage(folder: Path) -> RDBStorage:
    """A storage with a study whose trial 8 is its most accurate, and 2 the best of at most 3 kB."""
    url = f"sqlite:///{folder / 'studies.db'}"
    finished_study(url, "first", folder)
    return finished_study(url, "limited", folder, constraints=["model_bytes<=3kB"])


def test_the_best_trial_is_the_first_of_the_front_under_the_constraints(storage: RDBStorage) -> None:
    assert list(front_of(storage, "first")) == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert list(front_of(storage, "limited")) == [2, 1, 0]
    with pytest.raises(NotFoundError, match="study 'frist': there is none"):
        front_of(storage, "frist")


def test_a_study_without_a_feasible_trial_decides_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    storage = finished_study(url, "none", tmp_path, constraints=["model_bytes<=1"])
    with pytest.raises(InfeasibleError, match=r"^study none: has no complete trial that satisfies its constraints$"):
        front_of(storage, "none")


def decide(storage: RDBStorage, **decided: str) -> tuple[Space, list[str]]:
    lines: list[str] = []
    return decided_space(storage, load_space("quick"), Decided(**decided), tell=lines.append), lines


def test_the_structure_of_the_best_student_is_fixed_and_told(storage: RDBStorage) -> None:
    best = front_of(storage, "limited")[2].config
    space, lines = decide(storage, structure="limited")
    wanted = {path: best[path] for path in ("student.family", "student.width", "student.depth")}
    assert {path: space.fixed[path] for path in wanted} == wanted
    assert space.distributions().keys() == {
        "learning_rate.peak",
        "temperature",
        "pruning_ratio.final",
        "weight_decay",
        "alpha",
    }
    shown = ", ".join(f"{path}={value}" for path, value in wanted.items())
    assert lines == [f"--fix-structure limited: as in its trial 2: {shown}"]


def test_the_strategy_of_the_best_trial_is_fixed_and_the_structure_searched(storage: RDBStorage) -> None:
    best = front_of(storage, "first")[8].config
    space, lines = decide(storage, strategy="first")
    assert space.distributions().keys() == {"student.width", "student.depth"}
    assert space.fixed["learning_rate.peak"] == best["learning_rate.peak"]
    assert space.fixed["alpha"] == best["alpha"]
    assert lines[0].startswith("--fix-strategy first: as in its trial 8: ")


def test_the_structures_of_a_front_are_the_range_that_is_left(storage: RDBStorage) -> None:
    widths = [result.config["student.width"] for result in front_of(storage, "limited").values()]
    space, lines = decide(storage, structure_range="limited")
    setting = next(setting for setting in space.settings if setting.path == "student.width")
    assert setting.bounds() == (min(widths), max(widths))
    assert lines[0].startswith("--narrow-structure limited: as on its front of 3: ")


def test_what_cannot_be_decided_is_refused_in_one_line(storage: RDBStorage) -> None:
    with pytest.raises(InputError, match=r"^space quick: leaves nothing to search once"):
        decide(storage, structure="first", strategy="limited")
    with pytest.raises(InputError, match=r"^--narrow-structure: cannot stand beside --fix-structure, got 'first'$"):
        decide(storage, structure="first", structure_range="first")


def test_the_best_students_weights_are_found_and_said_to_be_gone(storage: RDBStorage, folder: Path) -> None:
    opened: Callable[[], RDBStorage] = lambda: storage  # noqa: E731 - a def here would need its own name
    path = folder / "artefacts" / "limited" / "trial-00002" / "student.safetensors"
    with pytest.raises(NotFoundError, match=r"^--init-from limited: .*trial-00002/student\.safetensors: no such file$"):
        student_file(opened, "limited")
    path.parent.mkdir(parents=True)
    path.touch()
    assert student_file(opened, "limited") == KeptFile.at(str(path))

    def never() -> RDBStorage:
        raise AssertionError

    assert student_file(never, str(path)) == KeptFile.at(str(path))
