from __future__ import annotations

from typing import Any

import pytest

from metasearch.errors import InputError
from metasearch.meta.making import MetaRequest
from metasearch.meta.policy_making import PolicyRequest
from metasearch.search.meta_artefacts import Request, completed_files, ensure_artefacts, needed_artefacts
from metasearch.search.runner import Resources
from metasearch.search.space import load_space, parse_space
from metasearch.tasks import TaskSource

FAMILY = "digits@classes:3"
SMALL: dict[str, Any] = {"student": "mlp:width=3,depth=1", "ways": 3, "shots": 2, "steps": 10, "judged": 4}


@pytest.mark.slow
def test_ray_makes_what_is_absent_and_finds_what_is_there() -> None:
    needed: list[Request] = [
        MetaRequest(FAMILY, "protonet", **SMALL),
        MetaRequest(FAMILY, "fomaml", **SMALL),
        PolicyRequest(FAMILY, student="mlp:width=2,depth=1", steps=1, judged=1),
    ]
    told: list[str] = []
    made = ensure_artefacts(needed, resources=Resources(workers=2), tell=told.append)
    assert set(made) == {"protonet", "fomaml", "policy"}
    assert all(path.is_file() for path in made.values())
    assert len(told) == 6
    told.clear()
    assert ensure_artefacts(needed, tell=told.append) == made
    assert told == []


@pytest.mark.slow
def test_a_user_s_mistake_in_a_worker_is_that_mistake_here() -> None:
    diverging = MetaRequest(FAMILY, "maml", **{**SMALL, "steps": 30}, inner_lr=1e30)
    with pytest.raises(Exception, match="diverged: the gradient was not finite") as failure:
        ensure_artefacts([diverging], resources=Resources(workers=1))
    assert type(failure.value).__name__ == "TrialFailure"


def test_two_requests_of_one_method_are_refused() -> None:
    one = MetaRequest(FAMILY, "maml", **SMALL)
    with pytest.raises(InputError, match=r"needs one artefact of each method, got \['maml'\]"):
        ensure_artefacts([one, one])


def test_what_a_space_asks_for_and_no_file_gives_is_needed() -> None:
    space = load_space("few_shot")
    needed = needed_artefacts(space, FAMILY, source=TaskSource(""), given=("maml", "reptile"), seed=3)
    methods = [request.method for request in needed if isinstance(request, MetaRequest)]
    assert methods == ["fomaml", "anil", "protonet", "metasgd", "hypernetwork"]
    assert {request.student for request in needed} == {"convnet:width=24,depth=6"}
    assert {request.seed for request in needed} == {3}
    assert {request.ways for request in needed if isinstance(request, MetaRequest)} == {3}  # its domains have no more


def test_a_policy_of_kind_network_is_needed_for_its_space_s_optimizer() -> None:
    text = "objectives: [val_accuracy]\npolicies:\n  temperature: {kind: {choices: [constant, network]}, value: 4}\n"
    space = parse_space(text, place="space.yaml")
    (needed,) = needed_artefacts(space, FAMILY, source=TaskSource(""), given=(), seed=0)
    assert isinstance(needed, PolicyRequest)
    assert (needed.optimizer, needed.student) == ("adamw", "convnet:width=16,depth=3")
    assert needed_artefacts(space, FAMILY, source=TaskSource(""), given=("policy",), seed=0) == []


def test_a_dry_run_only_says_what_is_absent() -> None:
    told: list[str] = []
    text = "objectives: [val_accuracy]\nparameters:\n  student.init: {choices: [random, protonet]}\n"
    files = completed_files(
        (),
        parse_space(text, place="space.yaml"),
        FAMILY,
        source=TaskSource("digits"),
        resources=Resources(),
        tell=told.append,
        make=False,
    )
    assert (files, told) == ((), [f"protonet: would be meta-trained on {FAMILY}"])
