from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metasearch import cli
from metasearch.configuration import Configuration
from metasearch.errors import InputError, NotFoundError
from metasearch.flags import read_configurations
from metasearch.report.database import open_database
from metasearch.report.page.paper import bytes_text, count_text
from metasearch.report.page.predictions import Predictions, WrongImage, predictions
from metasearch.report.page.render import ECHARTS_SHA256, HERE, json_for_html, render_page, write_page
from metasearch.report.page.report import Report, labels_of, make_report
from metasearch.search.names import FAILURE
from metasearch.search.space import load_space
from metasearch.search.store import create_study
from tests.command_line import Run
from tests.fakes import describe, new_storage
from tests.report.studies import reported_study

KEPT = {"id", "mark", "style", "axis", "scale", "unit", "png", "states"}
"""Fields whose texts are ours, one of a few words; nobody else supplies them."""
HOSTILE = [
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    "'\"><svg/onload=window.hacked=1>",
    "{{ 7 * 7 }}{% raw %}",
    "<!--<script>",
    "javascript:window.hacked=1",
    "__proto__",
    "\u2028</style><b>",
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("studies")
    found = f"sqlite:///{folder / 'studies.db'}"
    reported_study(found, folder)
    reported_study(found, folder, "warm", warm_start=["gone"], trials=12)
    return found


@pytest.fixture(scope="module")
def report(url: str) -> Report:
    return make_report(open_database(url), ["ten"])


class Elements(HTMLParser):
    """Counts the elements of a page with the names of their attributes, and keeps its data and its addresses."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: Counter[tuple[str, ...]] = Counter()
        self.addresses: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self._open = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag, *sorted(name for name, _ in attrs)] += 1
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        self._open = f"{tag}:{dict(attrs).get('id') or ''}"

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open, []).append(data)


def test_the_policy_permits_the_pages_own_scripts_and_style_alone(report: Report) -> None:
    page = render_page(report)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.replace("&#39;", "'").split(";"))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in policy
    for name, tag in (("script-src", "script"), ("style-src", "style")):
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.S)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        assert rules[name].split() == [f"'sha256-{digest}'" for digest in digests]


def test_the_page_asks_for_nothing_outside(report: Report) -> None:
    for address in Elements(render_page(report)).addresses:
        assert address.startswith(("#", "data:"))


def test_the_script_that_draws_is_the_published_one() -> None:
    assert hashlib.sha256((HERE / "static" / "echarts.min.js").read_bytes()).hexdigest() == ECHARTS_SHA256


@pytest.fixture(scope="module")
def whole(report: Report) -> Report:
    """The report with pictures that were taken for something else, too."""
    seen = Predictions(0.5, report.parts[0].front_table, None, (WrongImage("data:,", "a", "b", 0.5),), 1)
    return replace(report, parts=(replace(report.parts[0], seen=seen),))


@pytest.fixture(scope="module")
def harmless(whole: Report) -> Elements:
    """The page where every string is one letter."""
    return Elements(render_page(poisoned(whole, "x")))


@given(text=st.text(min_size=1))
@example("".join(HOSTILE))
@settings(max_examples=8)
def test_script_in_any_string_stays_text(whole: Report, harmless: Elements, text: str) -> None:
    # a letter before it: an empty cell, caption or note is left out of the page
    found = Elements(render_page(poisoned(whole, f"x{text}")))
    assert found.found == harmless.found
    assert json.loads("".join(found.texts["script:data"]))["figures"]


def poisoned(value: Any, text: str, name: str = "") -> Any:
    """Return a copy with every string that somebody may supply replaced by a text, in places for a category too."""
    if isinstance(value, str):
        return value if name in KEPT or not value else text
    if is_dataclass(value) and not isinstance(value, type):
        if type(value).__name__ in ("Table", "Head"):
            return value if type(value).__name__ == "Table" else replace(value, name=text)
        changed = {f.name: poisoned(getattr(value, f.name), text, f.name) for f in fields(value) if f.init}
        return replace(value, **changed)
    if isinstance(value, tuple):
        return tuple(poisoned(each, text, name) for each in value)
    if isinstance(value, list):
        return [poisoned(each, text, name) for each in value]
    if isinstance(value, dict):
        return {key: poisoned(each, text, key) for key, each in value.items()}
    return value


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
    )
)
@settings(max_examples=60)
def test_embedded_json_is_read_back_and_holds_no_markup(value: Any) -> None:
    text = json_for_html(value)
    assert json.loads(text) == value
    assert not set(text) & set("<>&")


def test_the_winners_yaml_is_what_run_and_enqueue_read(report: Report, tmp_path: Path) -> None:
    card = report.parts[0].winner
    assert card is not None
    file = tmp_path / "winner.yaml"
    file.write_text(card.yaml, encoding="utf-8")
    (config,) = read_configurations(str(file))
    load_space("quick").check_parameters(config, "--enqueue[0]")
    facts = report.parts[0].facts
    record = facts.table.take([facts.front[0]]).records()[0]
    assert Configuration.of(config) == Configuration.of(record["params"])
    assert card.number == record["number"]


def test_the_winner_is_the_first_that_best_names(url: str, metasearch: Run) -> None:
    code, out, _ = metasearch("best", "ten", "--top", "1", "--json", "--storage", url)
    card = make_report(open_database(url), ["ten"]).parts[0].winner
    assert code == 0
    assert card is not None
    assert json.loads(out)["trials"][0]["number"] == card.number


def test_stages_say_what_each_cost_and_saved(report: Report) -> None:
    card = report.parts[0].winner
    assert card is not None
    assert card.stages is not None
    assert card.stages.rows[1][0] == "quantize"
    assert card.stages.rows[1][-1].endswith("(-75%)")
    assert "(-1.0 points)" in card.stages.rows[1][2]


def test_the_command_that_reproduces_a_study_is_one_that_launch_takes(report: Report, tmp_path: Path) -> None:
    import shlex

    import typer

    words = shlex.split(report.parts[0].command)
    assert words[:2] == ["metasearch", "launch"]
    launch = typer.main.get_command(cli.app).commands["launch"]  # type: ignore[attr-defined]  # of a group
    context = launch.make_context("launch", words[2:])
    assert context.params["trials"] == 30
    assert context.params["task"] == "digits"
    assert context.params["teacher"] == ["convnet:width=24,depth=6"]


def test_warm_stands_beside_cold_where_both_search_the_same(url: str) -> None:
    both = make_report(open_database(url), ["warm", "ten"])
    assert labels_of([part.facts for part in both.parts]) == ["warm (warm)", "ten (cold)"]
    assert [figure.title for figure in both.together] == [
        "The fronts side by side",
        "Hypervolume over trials",
        "Hypervolume against wall time",
    ]
    assert all(not part.progress for part in both.parts)
    assert len({figure.id for figure in both.figures}) == len(both.figures)


def test_nothing_reads_the_test_split_before_the_final_runs(report: Report) -> None:
    facts = report.parts[0].facts
    assert predictions(replace(facts, controls=()), 0, artefacts={}) == (
        "its final runs are not done, and until then nothing reads the test split"
    )
    for artefacts in ({}, {"model.onnx": "0" * 64}):
        assert predictions(facts, 0, artefacts=artefacts) == "its network is not to be had from this machine"


def test_a_study_of_another_program_is_reported_without_what_it_does_not_know(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'foreign.db'}"
    study = optuna.create_study(storage=new_storage(url), directions=["minimize"] * 3)
    study.optimize(
        lambda trial: (
            trial.suggest_float("x", 1e-3, 1, log=True),
            trial.suggest_categorical("c", ["a", "b"]) == "a",
            1.0,
        ),
        n_trials=8,
    )
    found = make_report(open_database(url), [study.study_name])
    (part,) = found.parts
    assert part.winner is not None
    assert (part.command, part.reproduction, part.space) == ("", None, None)
    assert {figure.title for figure in part.front} == {"Value_0 against value_1", "Value_0 against value_2"}
    assert "How to reproduce it" not in render_page(found)


def test_where_nothing_is_feasible_the_page_says_what_is_nearest(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    reported_study(url, tmp_path, trials=6, constraints=["model_bytes <= 1B"], with_controls=False)
    found = make_report(open_database(url), ["ten"])
    assert found.parts[0].winner is None
    assert "nearest: trial" in render_page(found)


def test_a_study_whose_trials_all_failed_is_reported(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'failed.db'}"
    study = create_study(new_storage(url), "failed", describe(tmp_path))
    failure = {FAILURE: {"reason": "out_of_memory", "message": "12 GB"}}
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, user_attrs=failure))
    found = make_report(open_database(url), ["failed"])
    assert [figure.title for figure in found.figures] == ["Failures by reason"]
    assert "12 GB" in render_page(found)


@pytest.mark.parametrize(
    ("names", "error"), [(["none"], NotFoundError), (["ten", "ten"], InputError), (["ten/controls"], InputError)]
)
def test_what_cannot_be_reported_is_refused(url: str, names: list[str], error: type[Exception]) -> None:
    with pytest.raises(error):
        make_report(open_database(url), names)


@pytest.mark.slow
def test_the_command_writes_page_and_figures(url: str, tmp_path: Path, metasearch: Run) -> None:
    code, out, _ = metasearch(
        "report", "ten", "--html", str(tmp_path / "page"), "--figures", str(tmp_path / "figures"), "--storage", url
    )
    assert code == 0
    written = [Path(line) for line in out.splitlines()]
    assert written[0] == tmp_path / "page" / "index.html"
    assert all(path.stat().st_size > 500 for path in written)
    names = {figure.id for figure in make_report(open_database(url), ["ten"]).figures}
    assert {path.name for path in written[1:]} == {f"{name}{suffix}" for name in names for suffix in (".png", ".svg")}


def test_ticks_of_logarithmic_axes_are_numbers_with_units() -> None:
    assert [bytes_text(value) for value in (200, 1000, 2500, 1e6)] == ["200 B", "1 kB", "2.5 kB", "1 MB"]
    assert [count_text(value) for value in (0.02, 5, 2e9)] == ["0.02", "5", "2 G"]


def test_without_a_folder_the_command_says_what_it_needs(url: str, metasearch: Run) -> None:
    code, _, err = metasearch("report", "ten", "--storage", url)
    assert (code, err) == (
        2,
        "metasearch: report: needs --html DIR, --figures DIR, --tensorboard DIR or --mlflow URI\n",
    )


def test_a_folder_that_cannot_be_written_is_one_line(report: Report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="must be a folder that can be written"):
        write_page(report, tmp_path / "file")


def test_a_password_of_the_storage_is_nowhere_on_the_page(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    reported_study(url, tmp_path)
    found = make_report(open_database(f"{url}?password=canary"), ["ten"])
    assert "canary" not in render_page(found)
