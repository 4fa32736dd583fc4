from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metasearch.errors import InputError, TrialFailure
from metasearch.meta.functional import FunctionalNetwork
from metasearch.meta.maml import Maml
from metasearch.meta.meta_training import (
    LoopSettings,
    MetaTrained,
    Parameters,
    accuracy_on,
    meta_train,
    outer_gradient,
)
from metasearch.meta.method import Inner, classification_loss, query_accuracies
from metasearch.models import NetworkSpec, build_network
from metasearch.tasks.episodes import EpisodeBatch, EpisodeShape, sample_episodes
from tests.meta.family import NUMBERS, noisy_domain
from tests.repository import REPOSITORY

OPTIMUM = torch.tensor([1.0, -2.0, 0.5])
START = {"x": torch.zeros(3), "unused": torch.ones(2)}
SHAPE = EpisodeShape(3, 2, 4)


def noisy_quadratic(parameters: Parameters, generator: torch.Generator) -> tuple[Parameters, float]:
    """Return the gradient of |x - OPTIMUM|^2 / 2, and noise that the generator draws."""
    difference = parameters["x"] - OPTIMUM
    return {"x": difference + 0.1 * torch.randn(3, generator=generator)}, float(difference.square().sum()) / 2


def distance(parameters: Parameters) -> float:
    return -float((parameters["x"] - OPTIMUM).norm())


def trained(steps: int = 200, *, checkpoint: Path | None = None, every: int = 10, identity: str = "") -> MetaTrained:
    return meta_train(
        START,
        noisy_quadratic,
        distance,
        settings=LoopSettings(steps, rate=0.1, every=every),
        generator=torch.Generator().manual_seed(3),
        checkpoint=checkpoint,
        identity=identity,
    )


def test_it_reaches_a_known_optimum() -> None:
    found = trained()
    assert -found.value < 0.1
    assert torch.equal(found.parameters["unused"], START["unused"])


def test_the_best_on_validation_is_kept_not_the_last() -> None:
    values = iter([0.0, 3.0, 5.0, 4.0, 1.0])
    seen: list[Tensor] = []

    def value(parameters: Parameters) -> float:
        seen.append(parameters["x"].clone())
        return next(values)

    found = meta_train(
        START,
        noisy_quadratic,
        value,
        settings=LoopSettings(4, rate=0.1, every=1),
        generator=torch.Generator().manual_seed(0),
    )
    assert (found.value, found.step) == (5.0, 2)
    assert torch.equal(found.parameters["x"], seen[2])


def test_it_ends_early_after_so_many_worse_validations() -> None:
    values = iter([0.0, 1.0, 0.9, 0.8, 0.7])
    found = meta_train(
        START,
        noisy_quadratic,
        lambda parameters: next(values),
        settings=LoopSettings(100, every=5, patience=2),
        generator=torch.Generator().manual_seed(0),
    )
    assert [step for step, _, _ in found.history] == [0, 5, 10, 15]


KILLED = """
import sys, time
from pathlib import Path
from tests.meta import test_meta_training as here

def slow(parameters, generator):
    time.sleep(0.02)
    return quadratic(parameters, generator)

quadratic, here.noisy_quadratic = here.noisy_quadratic, slow
here.trained(400, checkpoint=Path(sys.argv[1]), every=5)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], cwd=REPOSITORY)
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert path.is_file()
    resumed, whole = trained(400, checkpoint=path, every=5), trained(400, every=5)
    assert torch.equal(resumed.parameters["x"], whole.parameters["x"])
    assert resumed.value == whole.value
    assert [(step, value) for step, _, value in resumed.history] == [(step, value) for step, _, value in whole.history]
    assert resumed.step == whole.step


def test_a_run_that_ended_is_not_trained_again(tmp_path: Path) -> None:
    first = trained(20, checkpoint=tmp_path / "checkpoint")
    again = trained(20, checkpoint=tmp_path / "checkpoint")
    assert torch.equal(first.parameters["x"], again.parameters["x"])
    assert len(again.history) == len(first.history)


def test_a_checkpoint_of_another_run_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    trained(20, checkpoint=path, identity="one")
    with pytest.raises(InputError, match=r"checkpoint: must be a checkpoint of this very run: other settings"):
        trained(20, checkpoint=path, identity="other")


def test_a_checkpoint_that_holds_code_is_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    torch.save({"x": torch.zeros(3)}, path)
    with pytest.raises(InputError, match="must be a weights file written by metasearch"):
        trained(20, checkpoint=path)


def test_a_step_without_a_finite_gradient_changes_nothing() -> None:
    steps = 0

    def gradient(parameters: Parameters, generator: torch.Generator) -> tuple[Parameters, float]:
        nonlocal steps
        steps += 1
        if steps % 2:
            return {"x": torch.full((3,), math.nan)}, math.nan
        return noisy_quadratic(parameters, generator)

    found = meta_train(
        START,
        gradient,
        distance,
        settings=LoopSettings(300, rate=0.1, every=10),
        generator=torch.Generator().manual_seed(0),
    )
    assert -found.value < 0.1


def test_one_that_always_diverges_ends_in_one_line_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    def gradient(parameters: Parameters, generator: torch.Generator) -> tuple[Parameters, float]:
        return {"x": torch.full((3,), math.inf)}, math.inf

    path = tmp_path / "checkpoint"
    with pytest.raises(TrialFailure, match="diverged: the gradient was not finite in 20 steps in a row"):
        meta_train(
            START,
            gradient,
            distance,
            settings=LoopSettings(100, every=10),
            generator=torch.Generator().manual_seed(0),
            checkpoint=path,
        )
    assert path.is_file()


def maml(rate: float = 0.1) -> Maml:
    network = build_network(NetworkSpec("mlp", width=2, depth=1), input_shape=(NUMBERS,), classes=3, seed=0)
    return Maml(FunctionalNetwork.of(network), Inner(2, rate), classification_loss())


def draw(generator: torch.Generator) -> EpisodeBatch:
    return sample_episodes([noisy_domain(0), noisy_domain(1)], shape=SHAPE, count=3, generator=generator)


def test_the_gradient_of_a_method_is_that_of_its_outer_loss() -> None:
    method = maml()
    found, loss = outer_gradient(method, draw)(method.initial(), torch.Generator().manual_seed(5))
    meta = {name: value.requires_grad_() for name, value in method.initial().items()}
    expected = method.outer_loss(meta, draw(torch.Generator().manual_seed(5)))
    expected.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert loss == pytest.approx(float(expected.detach()))
    for name, value in meta.items():
        assert value.grad is not None
        assert torch.allclose(found[name], value.grad, atol=1e-6)


def test_a_diverged_inner_loop_gives_a_gradient_that_is_not_finite() -> None:
    method = maml(rate=1e30)
    found, loss = outer_gradient(method, draw)(method.initial(), torch.Generator().manual_seed(5))
    assert math.isnan(loss)
    assert not any(bool(value.isfinite().any()) for value in found.values())


def test_validation_is_the_accuracy_on_the_same_episodes_every_time() -> None:
    method, domains = maml(), [noisy_domain(7)]
    value = accuracy_on(method, domains, shape=SHAPE, episodes=5, steps=None, seed=4)
    drawn = sample_episodes(domains, shape=SHAPE, count=5, generator=torch.Generator().manual_seed(4))
    expected = float(query_accuracies(method, method.initial(), drawn).mean())
    assert value(method.initial()) == expected == value(method.initial())
