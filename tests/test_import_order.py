from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import metasearch

PACKAGE = Path(metasearch.__file__).parent

LAYERS = [
    {
        "errors",
        "records",
        "policies",
        "parameters",
        "configuration",
        "spelling",
        "findings",
        "folders",
        "functions",
        "lazy",
        "messages",
        "resources",
    },
    {"tasks", "models", "measure"},
    {"training", "hypergradient", "taps"},
    {
        "distill",
        "prune",
        "sparse",
        "quantize",
        "quantization_aware",
        "export",
        "latency",
        "objective",
        "initial",
        "teachers",
        "features",
    },
    {"meta", "transfer"},
    {"pipeline", "run", "stages"},
    {"search"},
    {"report"},
    {"bundle", "serving"},
    {
        "cli",
        "predict_command",
        "verify_command",
        "prior_commands",
        "query_commands",
        "report_command",
        "bench_command",
        "serve_command",
        "store_commands",
        "transfer_command",
        "meta_command",
        "doctor_command",
        "doctor_cluster",
        "submit_command",
        "export_command",
        "watch_command",
        "completion",
        "dashboard_command",
        "flags",
        "search_flags",
        "api",
        "__init__",
        "__main__",
    },
]
"""The layers of DESIGN.md, lowest first, by the first name inside the package."""

LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}


def level_of(module: str) -> int:
    """Return a module's layer; a name that is none (`from metasearch import launch`) comes from the top's __init__."""
    return LEVELS.get(top_name(module), len(LAYERS) - 1)


def top_name(module: str) -> str:
    """Return the name that LAYERS knows a module by: metasearch.search.store -> search, metasearch -> __init__."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported_modules(source: str, module: str) -> set[str]:
    """Return the modules of this package that a source imports, at any depth, relative imports included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            # `from metasearch import pipeline` imports a module of its own
            found |= {f"{name}.{alias.name}" for alias in node.names} if name == "metasearch" else {name}
    return {name for name in found if name.split(".")[0] == "metasearch"}


def modules() -> dict[str, Path]:
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def offences(module: str, source: str) -> list[str]:
    """Return one line for each import that points upward."""
    level = level_of(module)
    return [
        f"{module} (L{level}) imports {target} (L{level_of(target)})"
        for target in sorted(imported_modules(source, module))
        if level_of(target) > level
    ]


def test_every_module_has_a_layer() -> None:
    assert [module for module in modules() if top_name(module) not in LEVELS] == []


def test_imports_point_downward_only() -> None:
    broken = [line for module, path in modules().items() for line in offences(module, path.read_text("utf-8"))]
    assert broken == []


@pytest.mark.parametrize(
    "source",
    [
        "import metasearch.search.store",
        "from metasearch.search import store",
        "def f():\n    from metasearch.search.store import load_study",
        "from metasearch import search",
        "from .search import store",
        "if True:\n    from . import search",
    ],
)
def test_an_upward_import_is_named(source: str) -> None:
    (line,) = offences("metasearch.training", source)
    assert line.startswith("metasearch.training (L2) imports metasearch.search")
    assert line.endswith(" (L6)")


def test_a_name_of_the_whole_package_is_of_the_top_layer() -> None:
    assert offences("metasearch.pipeline", "from metasearch import launch") == [
        "metasearch.pipeline (L5) imports metasearch.launch (L9)"
    ]


@pytest.mark.parametrize("source", ["import torch", "from metasearch.errors import InputError", "import metasearchs"])
def test_other_imports_are_no_offence(source: str) -> None:
    assert offences("metasearch.training", source) == []


LIGHT = [
    "metasearch",
    "metasearch.cli",
    "metasearch.report.queries",
    "metasearch.report.page.render",
    "metasearch.bundle.runtime",
    "metasearch.search.store",
    "metasearch.search.priors",
    "metasearch.tasks",
]
HEAVY = ["torch", "ray"]


def test_reading_commands_load_neither_torch_nor_ray() -> None:
    """Each module in turn, in one process: the first that brings a heavy one in is named."""
    program = f"""
import importlib, sys
for name in {LIGHT!r}:
    importlib.import_module(name)
    loaded = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]
    if loaded:
        sys.exit(f"importing {{name}} loads {{' and '.join(loaded)}}")
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, run.stderr) == (0, "")
