from __future__ import annotations

from typing import Any

import pytest

from metasearch.errors import InputError
from metasearch.meta.making import MetaRequest
from metasearch.meta.policy_making import PolicyRequest
from metasearch.search.meta_artefacts import Request, ensure_artefacts
from metasearch.search.runner import Resources

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
