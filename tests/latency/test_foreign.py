"""Files of torch's exporter, with operations that none of our networks has: a teacher may be any network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metasearch.export import write_onnx
from metasearch.latency.profile import profiled
from metasearch.latency.work import LINEAR, OTHER
from metasearch.models.module_network import ModuleNetwork
from metasearch.tasks.task import Normalisation
from metasearch.teachers.vit import VisionTransformer


@pytest.mark.slow
def test_a_transformer_is_profiled_with_the_products_of_its_attention(tmp_path: Path) -> None:
    """Two products of (heads, tokens, tokens, width) a block beside its linear layers, by hand."""
    width, depth = 32, 2
    module = VisionTransformer((3, 32, 32), 10, width=width, depth=depth).eval()
    write_onnx(ModuleNetwork(Normalisation((1.0,) * 3, (0.0,) * 3), (3, 32, 32), module, "vit"), tmp_path / "vit.onnx")
    works = [layer.work for layer in profiled(tmp_path / "vit.onnx", np.zeros((1, 3, 32, 32), np.uint8), runs=2)]
    assert {LINEAR, OTHER} <= {work.kind for work in works}
    tokens, patch = 64, 4
    block = tokens * (12 * width**2) + 2 * tokens**2 * width
    assert sum(work.macs for work in works) == tokens * 3 * patch**2 * width + depth * block + width * 10
