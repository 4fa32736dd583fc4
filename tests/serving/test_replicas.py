from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ObjectLostError, RayTaskError, WorkerCrashedError

from metasearch.errors import InputError, MetasearchError
from metasearch.serving.replicas import Replicas


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (RayTaskError("_checked", "", InputError("here/model.onnx", "is bad")), InputError, "here/model.onnx: is bad"),
        (RayTaskError("_checked", "", OSError("gone\nmore")), MetasearchError, "here: its check did not end (gone)"),
        (WorkerCrashedError(), InputError, "here: crashes the process that opens it"),
        (ObjectLostError("0" * 56, "", ""), MetasearchError, "here: its check did not end (Failed to retrieve"),
    ],
)
def test_a_check_that_fails_in_any_way_is_one_line(
    error: Exception, kind: type[MetasearchError], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(folder: Path) -> None:
        raise error

    def remote(**options: Any) -> Callable[..., Any]:
        return lambda function: SimpleNamespace(remote=failing)

    monkeypatch.setattr(ray, "remote", remote)
    with pytest.raises(MetasearchError) as refused:
        asyncio.run(Replicas(number=1, threads=1, most_batch=1).check(Path("here")))
    assert type(refused.value) is kind
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)
