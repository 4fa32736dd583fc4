"""MODEL_CARD.md: what a bundle's network is, how good, how it was made and what it is not known to do.

The format is Hugging Face's: YAML between two lines of dashes, then Markdown. A section without content is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from metasearch.bundle.choosing import Chosen
from metasearch.configuration import Configuration
from metasearch.report.tables import RUNS, metric_text
from metasearch.search.names import MEASURED_MS

UNCOMPRESSED = "same student, uncompressed"
ROWS = {
    "val_accuracy": "accuracy, validation",
    "test_accuracy": "accuracy, test",
    "val_balanced_accuracy": "balanced accuracy, validation",
    "val_ece": "expected calibration error, validation",
    "teacher_agreement": "same class as the teacher, validation",
    "model_bytes": "bytes of all stored tensors",
    "parameters": "parameters",
    "macs": "multiply-accumulates of one input",
    "latency_ms": "milliseconds of one input (onnxruntime, one thread, where it was searched)",
    MEASURED_MS: "milliseconds of one input (onnxruntime, one thread, where it was searched)",
}
SHARES = {"val_accuracy", "test_accuracy", "val_balanced_accuracy", "val_ece", "teacher_agreement"}


def model_card(
    chosen: Chosen,
    described: Mapping[str, Any],
    *,
    float_accuracy: float,
) -> str:
    """Return the card as Markdown.

    described: the fields of the bundle's document. float_accuracy: of the float network on validation data.
    """
    c = Configuration.of(chosen.result.config)
    sections = [
        ("", [_about(chosen, described, c)]),
        ("Results", [_results(chosen, described), _parity_text(described, float_accuracy)]),
        ("Input", [_input_text(described)]),
        ("Use", [_use_text(described)]),
        ("Training", _training(chosen, c)),
        ("Controls", [_controls(chosen)]),
        ("Limits", _limits(chosen, described)),
    ]
    parts = [_front_matter(described, c), f"# {described['name']}"]
    for heading, paragraphs in sections:
        said = [paragraph for paragraph in paragraphs if paragraph]
        parts += ([f"## {heading}"] if heading and said else []) + said
    return "\n\n".join(parts) + "\n"


def _front_matter(described: Mapping[str, Any], c: Configuration) -> str:
    image = len(described["input_shape"]) == 3
    licence = described["provenance"]["licence"]
    fields: dict[str, Any] = {} if licence is None else {"license": licence}
    fields |= {
        "library_name": "onnx",
        "pipeline_tag": "image-classification" if image else "tabular-classification",
        "tags": ["metasearch", "onnx", *(["int8"] if described["int8"] else []), *(["pruned"] if c.prunes else [])],
        "metrics": ["accuracy"],
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _about(chosen: Chosen, described: Mapping[str, Any], c: Configuration) -> str:
    details, task = chosen.result.details, described["provenance"]["task"]
    made = [f"width {details.get('width', round(c.width(1.0)))}", f"depth {c.depth}"]
    if "channels_removed" in details:
        made.append(f"{details['channels_removed']:.0%} of its channels removed")
    if "sparsity" in details:
        made.append(f"{details['sparsity']:.0%} of its weights zero")
    made.append("int8" if described["int8"] else "float32")
    names, shape = described["class_names"], " x ".join(map(str, described["input_shape"]))
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return (
        f"A classifier for the task `{task}`: {len(names)} classes ({shown}), inputs of {shape}. "
        f"The network is a {c.family} ({', '.join(made)}), trial {chosen.number} of the search `{chosen.study}`."
    )


def _results(chosen: Chosen, described: Mapping[str, Any]) -> str:
    final = {name: value for name, value in chosen.final.items() if value is not None}
    own, references = {**chosen.result.metrics, **final}, described["references"]
    columns = {
        "this network": own,
        "before int8": references.get("float"),
        "teacher": references.get("teacher") or chosen.teacher.get("metrics"),
        UNCOMPRESSED: references.get("student"),
    }
    columns = {heading: metrics for heading, metrics in columns.items() if metrics}
    rows = []
    predicted = chosen.description.latency
    told = {"latency_ms": f"milliseconds of one input, predicted for {predicted['device']}"} if predicted else {}
    for name, words in (ROWS | told).items():
        cells = [_metric(name, metrics.get(name)) for metrics in columns.values()]
        if name == "test_accuracy" and "test_seeds" in final:
            spread = f" ± {100 * final['test_std']:.2f}" if "test_std" in final else ""
            one = _metric(name, described["metrics"].get(name))
            told_one = f"; this one {one}" if one else ""
            cells[0] = f"{_metric(name, own[name])}{spread} ({final['test_seeds']:.0f} seeds{told_one})"
        if any(cells):
            rows.append([words, *cells])
    return _table(["", *columns], rows)


def _parity_text(described: Mapping[str, Any], float_accuracy: float) -> str:
    p = described["parity"]
    text = (
        f"On {p['images']:,} validation inputs `model.onnx` gives the class of the trained network for "
        f"{p['top1_agreement']:.2%}; the logits differ by {p['largest_difference']:.2g} at most."
    )
    if described["int8"]:
        text += (
            f" It gives the class of the float32 network in `weights.safetensors` for {p['float_agreement']:.2%}; that "
            f"has an accuracy of {float_accuracy:.2%} there, int8 {p['val_accuracy']:.2%}."
        )
    return text


def _input_text(described: Mapping[str, Any]) -> str:
    shape, pre = described["input_shape"], described["preprocessing"]
    inside = f"The normalisation `x * scale + shift` is inside the graph ({_numbers(described['normalisation'])})."
    if not pre:
        return f"`input`: (batch, {shape[0]}) float32, as in the data; `logits`: (batch, classes). {inside}"
    kind = "grey" if pre["mode"] == "L" else "RGB"
    width, height = pre["size"]
    return (
        f"`input`: (batch, {shape[0]}, {height}, {width}) uint8, {kind}; `logits`: (batch, classes). `predict.py` "
        f"makes image files so: {kind}, transparent pixels laid over {pre['transparent']}, resized to {width} x "
        f"{height} ({pre['resample']}, antialiased). {inside}"
    )


def _numbers(normalisation: Mapping[str, Sequence[float]], most: int = 8) -> str:
    """Return scale and shift in six digits, of many features the first."""
    return "; ".join(
        f"{name} {', '.join(f'{value:.6g}' for value in values[:most])}{', ...' if len(values) > most else ''}"
        for name, values in normalisation.items()
    )


def _use_text(described: Mapping[str, Any]) -> str:
    files = "IMAGE..." if described["preprocessing"] else "ROWS.csv"
    return f"```sh\npip install onnxruntime numpy pillow\npython predict.py {files}\n```"


def _training(chosen: Chosen, c: Configuration) -> list[str]:
    learnt = "on labels alone"
    if c.alpha > 0:
        spec = chosen.teacher.get("spec", "a teacher")
        learnt = f"from the teacher `{spec}` by the loss `{c.loss}`, of weight {c.alpha:g} beside that of the labels"
    text = f"Trained {learnt}, from {c.init} weights, by {c.optimizer} in batches of {c.batch_size}."
    if chosen.result.details.get("quantization_aware"):
        text += " Fine-tuned in simulated int8; `weights.safetensors` are those from before that."
    names = ["val_accuracy", "parameters", "macs", "model_bytes"]
    stages = [s for s in chosen.result.stages if s.metrics]
    rows = [
        [s.stage.replace("_", " "), f"{s.seconds:.1f}", *(_metric(name, s.metrics.get(name)) for name in names)]
        for s in stages
    ]
    headings = ["stage", "seconds", "validation accuracy", "parameters", "MACs", "bytes"]
    configuration = yaml.safe_dump(dict(chosen.result.config), sort_keys=True, allow_unicode=True)
    return [
        text,
        _table(headings, rows),
        f"Its configuration, seed {chosen.result.seed}:\n\n```yaml\n{configuration}```",
    ]


def _controls(chosen: Chosen) -> str:
    rows = []
    for role, words in list(RUNS.items())[1:]:  # the first is the network itself
        runs = [run for run in chosen.controls if run["role"] == role]
        if runs:
            means = [_mean(runs, name) for name in ("test_accuracy", "macs", "model_bytes")]
            names = ("test_accuracy", "macs", "model_bytes")
            cells = [_metric(name, mean) for name, mean in zip(names, means, strict=True)]
            rows.append([words, str(len(runs)), *cells])
    return _table(["run", "seeds", "accuracy, test", "MACs", "bytes"], rows)


def _limits(chosen: Chosen, described: Mapping[str, Any]) -> list[str]:
    lines = ["It knows the classes above only: whatever it is shown becomes one of them."]
    if not chosen.has_read_test:
        lines.append("It was chosen on the validation data, which therefore flatter it; the test split was not read.")
    if chosen.rebuilt:
        lines.append(
            "The search's own files were gone: its pipeline was run again with the same configuration and seed, and "
            "what is said here is of that run."
        )
    if described["provenance"]["licence"] is None:
        lines.append("The licence of the data is not stated.")
    return [" ".join(lines)]


def _metric(name: str, value: Any) -> str:
    if value is None or not math.isfinite(value):
        return ""
    return f"{100 * value:.2f} %" if name in SHARES else metric_text(name, value)


def _mean(runs: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [run[name] for run in runs if run.get(name) is not None]
    return sum(values) / len(values) if values else None


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, "" without rows; columns that are empty throughout are left out."""
    kept = [i for i in range(len(headings)) if i == 0 or any(row[i] for row in rows)]
    if not rows:
        return ""
    lines = [[headings[i] for i in kept], ["---", *("---:" for _ in kept[1:])]]
    lines += [[row[i].replace("|", "\\|") for i in kept] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
