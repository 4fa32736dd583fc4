from __future__ import annotations

import sys
from pathlib import Path

import pytest

from metasearch.bundle.contents import PORTABLE
from metasearch.bundle.parity import FLOAT_TOLERANCE, INT8_AGREEMENT
from metasearch.bundle.portable import portable_logits, write_portable
from metasearch.bundle.writing import trained_network, write_bundle
from metasearch.errors import InputError
from metasearch.measure import agreement, predict
from metasearch.parameters import FAMILY_NAMES
from tests.bundles import made_trial


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "quantize"),
    [*((f, q) for f in FAMILY_NAMES for q in ("none", "int8")), ("tests.user_networks:smooth", "none")],
)
def test_a_program_for_executorch_computes_what_the_network_does(family: str, quantize: str, tmp_path: Path) -> None:
    pytest.importorskip("executorch.runtime", reason="needs the extra `executorch`")
    chosen, files, task = made_trial(tmp_path, {"student.family": family, "quantize": quantize, "epochs": 6})
    bundle = write_bundle(chosen, files, task, tmp_path / "bundle", portable=True)
    network, _ = trained_network(chosen, files, task)
    inputs = task.test.inputs
    found, expected = predict(portable_logits(bundle.path(PORTABLE)), inputs), predict(network, inputs)
    if quantize == "none":
        assert float((found - expected).abs().max()) <= FLOAT_TOLERANCE
    else:
        assert agreement(found, expected) >= INT8_AGREEMENT
        assert float((found - expected).abs().max()) <= 0.1 * float(expected.std())


def test_without_executorch_its_program_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "executorch", None)
    for name in [name for name in sys.modules if name.startswith("executorch.")]:
        monkeypatch.delitem(sys.modules, name)
    chosen, files, task = made_trial(tmp_path, {})
    rule = r"^--executorch: needs the extra `executorch`: pip install metasearch\[executorch\]"
    with pytest.raises(InputError, match=rule):
        write_bundle(chosen, files, task, tmp_path / "bundle", portable=True)
    network, _ = trained_network(chosen, files, task)
    with pytest.raises(InputError, match=rule):
        write_portable(network, tmp_path / "model.pte")
    with pytest.raises(InputError, match=rule):
        portable_logits(tmp_path / "model.pte")
    assert not (tmp_path / "bundle").exists()
