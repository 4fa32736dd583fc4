"""The page in a real browser: drawn whole, silent, closed to the outside, quick to answer."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from metasearch.report.database import open_database
from metasearch.report.page.render import write_page
from metasearch.report.page.report import make_report
from tests.browser import Browser
from tests.report.studies import reported_study
from tests.report.test_page import HOSTILE, poisoned

pytestmark = pytest.mark.slow

FIGURES = "[...document.querySelectorAll('[data-figure]')]"
BLANK = f"""{FIGURES}.filter((box) => ![...box.querySelectorAll('canvas')].some((canvas) => {{
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  const colors = new Set();
  for (let at = 0; at < pixels.length; at += 4) if (pixels[at + 3] > 0) colors.add(pixels.slice(at, at + 3).join());
  return colors.size > 3;
}})).map((box) => box.dataset.figure)"""
FRONT_POINT = """(() => {
  const box = document.querySelector("[data-figure^='front-']"), chart = echarts.getInstanceByDom(box);
  box.scrollIntoView();
  const front = chart.getOption().series.find((series) => series.name === "front");
  const [x, y] = chart.convertToPixel({ xAxisIndex: 0, yAxisIndex: 0 }, front.data[0]);
  const place = box.getBoundingClientRect();
  return [place.left + x, place.top + y];
})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    url = f"sqlite:///{folder / 'studies.db'}"
    reported_study(url, folder, constraints=["model_bytes <= 3kB"])
    reported_study(url, folder, "other", trials=12)
    return write_page(make_report(open_database(url), ["ten", "other"]), folder / "report")


def test_every_figure_is_drawn_without_a_word_or_a_request(opened: Browser, page: Path) -> None:
    opened.open(page)
    assert opened.evaluate(f"{FIGURES}.length") > 20
    assert opened.evaluate(BLANK) == []
    assert opened.messages == []
    assert [address for address in opened.requests if not address.startswith("data:")] == [page.resolve().as_uri()]


def test_the_policy_refuses_other_scripts_evaluation_and_requests(opened: Browser, page: Path) -> None:
    opened.open(page)
    opened.evaluate(
        "(() => { const own = document.createElement('script'); own.textContent = 'window.hacked = 1';"
        " document.body.append(own); document.body.insertAdjacentHTML('beforeend',"
        " '<img src=data:, onerror=\"window.hacked = 2\">'); })()"
    )
    assert opened.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')") == "refused"
    assert opened.evaluate_as_page("eval('1')") is None
    assert opened.evaluate("window.hacked") is None
    assert sum("Content Security Policy" in message for message in opened.messages) >= 3


def test_hovering_shows_the_configuration_within_two_seconds(opened: Browser, page: Path) -> None:
    opened.open(page)
    x, y = opened.evaluate(FRONT_POINT)
    started = time.monotonic()
    opened.move(x, y)
    opened.wait("document.querySelector('.tip b')?.textContent.startsWith('trial ')")
    assert time.monotonic() - started < 2
    shown = opened.evaluate("document.querySelector('.tip').innerText")
    assert {"validation accuracy", "stored bytes", "learning_rate.peak", "student.width"} <= set(
        re.split(r"[\t\n]+", shown)
    )


def test_arrows_walk_over_the_front_and_say_where_they_are(opened: Browser, page: Path) -> None:
    opened.open(page)
    opened.evaluate("document.querySelector(\"[data-figure^='front-']\").focus()")
    said = []
    for _ in range(2):
        opened.press("ArrowRight")
        said.append(opened.evaluate("document.getElementById('said').textContent"))
    assert all(text.startswith("trial ") for text in said)
    assert said[0] != said[1]


def test_numbers_stand_beside_each_figure(opened: Browser, page: Path) -> None:
    opened.open(page)
    opened.evaluate("document.querySelectorAll('[data-numbers]').forEach((details) => { details.open = true; })")
    opened.wait("[...document.querySelectorAll('[data-numbers]')].every((details) => details.querySelector('td'))")
    assert opened.messages == []


def test_a_phone_needs_no_scrolling_sideways(opened: Browser, page: Path) -> None:
    opened.view(390, 844, phone=True)
    opened.open(page)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    assert opened.evaluate(BLANK) == []


def test_a_dark_page_has_light_text_and_changes_with_the_users_wish(opened: Browser, page: Path) -> None:
    opened.view(1200, dark=True)
    opened.open(page)
    dark = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert opened.evaluate(BLANK) == []
    opened.view(1200)
    opened.wait(f"getComputedStyle(document.body).backgroundColor !== {dark!r}")
    assert (dark, opened.evaluate("getComputedStyle(document.body).backgroundColor")) == (
        "rgb(20, 23, 27)",
        "rgb(255, 255, 255)",
    )


def test_it_prints_with_its_figures_and_is_as_before_afterwards(opened: Browser, page: Path) -> None:
    opened.open(page)
    widths = f"{FIGURES}.map((box) => box.querySelector('canvas').width)"
    before = opened.evaluate(widths)
    # heard after the page has drawn itself anew for paper
    heard = f"() => {{ window.printed = {widths}; window.blank = {BLANK}; }}"
    opened.evaluate(f"window.addEventListener('beforeprint', {heard})")
    assert opened.pdf().startswith(b"%PDF")
    assert opened.evaluate("window.blank") == []
    assert all(printed != width for printed, width in zip(opened.evaluate("window.printed"), before, strict=True))
    assert opened.evaluate(widths) == before
    assert opened.messages == []


def test_script_in_names_and_values_never_runs(opened: Browser, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    name = HOSTILE[0]
    reported_study(url, tmp_path, name, message=HOSTILE[1], artefacts=HOSTILE[2], commit=HOSTILE[3])
    report = make_report(open_database(url), [name])
    hostile = replace(report, parts=tuple(poisoned(part, "".join(HOSTILE)) for part in report.parts))
    for number, one in enumerate((report, hostile)):
        opened.open(write_page(one, tmp_path / str(number)))
        opened.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
        opened.move(*opened.evaluate(FRONT_POINT)) if number == 0 else None
        time.sleep(0.3)
        assert opened.evaluate("window.hacked") is None
        assert opened.messages == []
    assert opened.evaluate("document.querySelectorAll('svg, b:not(.tip b), img:not([alt])').length") == 0
