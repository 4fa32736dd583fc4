from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from metasearch.report.finals import start_gain
from metasearch.report.tables import start_lines, student_text, teacher_text

STUDENT = {"student.family": "convnet", "student.width": 8, "student.depth": 3, "quantize": "int8"}


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({}, "convnet w8 d3 int8"),
        ({"quantize": "none"}, "convnet w8 d3 fp32"),
        ({"pruning_ratio": 0.5}, "convnet w8 d3 pruned 50% int8"),
        ({"pruning_ratio.kind": "constant", "pruning_ratio.value": 0.0}, "convnet w8 d3 int8"),
        (
            # `end` is a share of training, and a column of another trial's kind has no value here
            {"pruning_ratio.kind": "cubic", "pruning_ratio.final": 0.2, "pruning_ratio.end": 0.9},
            "convnet w8 d3 pruned 20% int8",
        ),
        (
            {"pruning_ratio.kind": "cubic", "pruning_ratio.final": 0.2, "pruning_ratio.value": math.nan},
            "convnet w8 d3 pruned 20% int8",
        ),
        ({"sparsity": 0.7, "sparsity_threshold": 0.0}, "convnet w8 d3 sparse 70% int8"),
        ({"student.init": "random", "initialised": math.nan}, "convnet w8 d3 int8"),
        ({"student.init": math.nan}, "convnet w8 d3 int8"),  # of a study that knew no other start
        ({"student.init": "teacher_slice", "initialised": 0.953}, "convnet w8 d3 from teacher_slice (95%) int8"),
    ],
)
def test_a_student_is_named_by_what_was_done_to_it(row: dict[str, Any], text: str) -> None:
    assert student_text(STUDENT | row) == text


def test_a_starts_gain_is_told_over_the_seeds_that_both_have() -> None:
    gain = start_gain({1: 0.9, 2: 0.8, 3: 0.7}, {1: 0.6, 3: 0.75, 4: 0.1})
    assert gain["start_gain"] == pytest.approx((0.3 - 0.05) / 2)
    assert start_gain({1: 0.9}, {}) == {}
    rows = [{"number": 4, "student.init": "protonet", **gain}, {"number": 5, "student.init": "random"}]
    assert start_lines(pd.DataFrame(rows)) == [
        "trial 4: protonet against random weights, all else equal: +12.5 points of test accuracy, "
        "better in 1 of 2 seeds"
    ]
    assert start_lines(pd.DataFrame(rows[1:])) == []


def test_a_teacher_of_unknown_size_is_named_without_it() -> None:
    known = {"val_accuracy": 0.91234, "macs": 16_400_000, "parameters": 163_000}
    assert teacher_text("t", known) == "teacher t: val acc 0.9123, params 163 k, MACs 16.4 M"
    assert teacher_text("a.npz", {"val_accuracy": 0.5}) == "teacher a.npz: val acc 0.5000"
