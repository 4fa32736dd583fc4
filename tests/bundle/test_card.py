from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from metasearch.bundle.card import model_card
from metasearch.bundle.choosing import Chosen
from metasearch.records import StageResult, TrialResult
from tests.fakes import describe

DESCRIBED: dict[str, Any] = {
    "name": "letters-trial-3",
    "class_names": ["a|b", "c"],
    "input_shape": [3, 16, 20],
    "int8": True,
    "metrics": {"val_accuracy": 0.91},
    "references": {},
    "normalisation": {"scale": [0.01, 0.02, 0.03], "shift": [-1.0, -1.5, -2.0]},
    "preprocessing": {"mode": "RGB", "size": [20, 16], "resample": "bilinear", "transparent": "white"},
    "provenance": {"licence": "cc-by-4.0", "task": "letters"},
    "parity": {
        "images": 2000,
        "top1_agreement": 0.9985,
        "largest_difference": 0.02,
        "val_accuracy": 0.91,
        "float_agreement": 0.985,
    },
}


def chosen(folder: Path, **changes: Any) -> Chosen:
    config = {"student.family": "convnet", "student.width": 8, "student.depth": 2, "pruning_ratio": 0.5, "alpha": 0.7}
    result = TrialResult(
        config=config,
        seed=5,
        metrics={"val_accuracy": 0.91, "model_bytes": 12_500, "macs": 1_500_000, "parameters": 4000},
        stages=(StageResult("fine_tune", 3.25, {"val_accuracy": 0.92, "macs": 1_500_000}),),
        details={"channels_removed": 0.5, "width": 8},
    )
    return replace(Chosen("letters", 3, "as asked", describe(folder), result), **changes)


def card_of(trial: Chosen, *, described: dict[str, Any] = DESCRIBED, **options: Any) -> str:
    return model_card(trial, described, **{"float_accuracy": 0.915, **options})


def front_matter(card: str) -> dict[str, Any]:
    _, matter, _ = card.split("---\n", 2)
    loaded: dict[str, Any] = yaml.safe_load(matter)
    return loaded


def section(card: str, heading: str) -> str:
    return card.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def cells(card: str, row: str) -> list[str]:
    """Return the cells of the table's row that begins with a text."""
    line = next(line for line in card.splitlines() if line.startswith(f"| {row} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_front_matter_is_yaml_that_says_what_the_network_is(tmp_path: Path) -> None:
    assert front_matter(card_of(chosen(tmp_path))) == {
        "license": "cc-by-4.0",
        "library_name": "onnx",
        "pipeline_tag": "image-classification",
        "tags": ["metasearch", "onnx", "int8", "pruned"],
        "metrics": ["accuracy"],
    }
    odd = DESCRIBED | {"provenance": {"licence": "mine: all\nof it", "task": "letters"}}
    assert front_matter(card_of(chosen(tmp_path), described=odd))["license"] == "mine: all\nof it"


def test_without_a_licence_the_card_claims_none_and_says_so(tmp_path: Path) -> None:
    assert "which therefore flatter it" in card_of(chosen(tmp_path))
    card = card_of(chosen(tmp_path), described=DESCRIBED | {"provenance": {"licence": None, "task": "letters"}})
    assert "license" not in front_matter(card)
    assert "licence of the data is not stated" in section(card, "Limits")


def test_what_is_known_of_network_teacher_and_reference_stands_side_by_side(tmp_path: Path) -> None:
    found = chosen(
        tmp_path,
        final={"test_accuracy": 0.905, "test_std": 0.004, "test_seeds": 3, "latency_ms": 0.0421},
        teacher={"spec": "convnet:width=24,depth=6", "metrics": {"val_accuracy": 0.95, "macs": 9e6}},
    )
    measured = {
        "references": {
            "student": {"val_accuracy": 0.93, "model_bytes": 50_000},
            "float": {"val_accuracy": 0.915, "test_accuracy": 0.908, "macs": 1.5e6},
        },
        "metrics": {"test_accuracy": 0.9075},
    }
    card = card_of(found, described=DESCRIBED | measured)
    assert cells(card, "") == ["this network", "before int8", "teacher", "same student, uncompressed"]
    assert cells(card, "accuracy, validation") == ["91.00 %", "91.50 %", "95.00 %", "93.00 %"]
    assert cells(card, "accuracy, test") == ["90.50 % ± 0.40 (3 seeds; this one 90.75 %)", "90.80 %", "", ""]
    assert cells(card, "bytes of all stored tensors") == ["12.5 kB", "", "", "50 kB"]
    assert cells(card, "multiply-accumulates of one input") == ["1.5 M", "1.5 M", "9 M", ""]
    assert "99.85%" in section(card, "Results")
    assert "98.50%" in section(card, "Results")
    assert "which therefore flatter it" not in card


def test_no_heading_is_empty_and_every_row_has_a_cell_for_each_column(tmp_path: Path) -> None:
    controls = [{"role": "direct", "of": 3, "seed": s, "test_accuracy": 0.8 + s / 10, "macs": 1e6} for s in (0, 1)]
    for trial in (chosen(tmp_path), chosen(tmp_path, controls=controls)):
        card = card_of(trial)
        headings = re.findall(r"^## (.+)$", card, re.MULTILINE)
        assert ("Controls" in headings) == bool(trial.controls)
        assert all(section(card, heading).strip() for heading in headings)
        for table in re.findall(r"(?:^\|.*\|\n)+", card, re.MULTILINE):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert cells(card, "distilled directly at the nearest MACs") == ["2", "85.00 %", "1 M"]


@pytest.mark.parametrize("rebuilt", [True, False])
def test_a_network_that_was_made_again_is_said_to_be(rebuilt: bool, tmp_path: Path) -> None:
    assert ("its pipeline was run again" in card_of(chosen(tmp_path, rebuilt=rebuilt))) == rebuilt


def test_how_vectors_are_put_in_is_said_without_images(tmp_path: Path) -> None:
    changed = {"input_shape": [2], "preprocessing": {}, "normalisation": {"scale": [1.0, 1.0], "shift": [0.0, 0.5]}}
    card = card_of(chosen(tmp_path), described=DESCRIBED | changed)
    assert front_matter(card)["pipeline_tag"] == "tabular-classification"
    assert "`input`: (batch, 2) float32" in section(card, "Input")
    assert "resized" not in card
    assert "python predict.py ROWS.csv" in section(card, "Use")
