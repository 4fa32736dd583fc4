"""How long the report of a study of 20,000 trials takes, how large it is, and how soon a browser answers a hover."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tests import browser
from tests.bench.large_study import TRIALS, make_study
from tests.bench.queries import command_seconds, median_seconds
from tests.bench.sides import Verdict, conditions, print_table

QUICK_TRIALS, REPEATS = 500, 3
PAGE_S, PAGE_MB, HOVER_S = 10.0, 5.0, 2.0
"""Targets: writing the page with start-up, its size with its scripts, and opening it until a hover is answered."""
FRONT_POINT = """(() => {
  const box = document.querySelector("[data-figure^='front-']"), chart = echarts.getInstanceByDom(box);
  box.scrollIntoView();
  const front = chart.getOption().series.find((series) => series.name === "front");
  const [x, y] = chart.convertToPixel({ xAxisIndex: 0, yAxisIndex: 0 }, front.data[0]);
  const place = box.getBoundingClientRect();
  return [place.left + x, place.top + y];
})()"""


def run(*, quick: bool) -> Verdict:
    """Measure all of it and print a table."""
    before = conditions()
    trials, repeats = (QUICK_TRIALS, 1) if quick else (TRIALS, REPEATS)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        url = f"sqlite:///{folder}/large.db"
        make_study(url, trials=trials)
        arguments = ["report", "large", "--html", str(folder / "page")]
        wall, cpu = median_seconds([command_seconds(arguments, url) for _ in range(repeats)])
        page = folder / "page" / "index.html"
        megabytes = page.stat().st_size / 1e6
        hovers = [_hover(page, folder / f"profile-{index}") for index in range(repeats)] if browser.program() else []
    hover = sorted(hovers)[len(hovers) // 2] if hovers else None
    rows = [
        ("report --html, s", f"{wall:.2f}", f"{PAGE_S:.0f}"),
        ("of that CPU, s", f"{cpu:.2f}", ""),
        ("page with scripts, MB", f"{megabytes:.2f}", f"{PAGE_MB:.0f}"),
        ("open and answer a hover, s", "no browser" if hover is None else f"{hover:.2f}", f"{HOVER_S:.0f}"),
    ]
    print_table(
        "The report of a large study", ("", "", "target"), rows, [before, f"{trials} trials; medians of {repeats}"]
    )
    met = wall <= PAGE_S and megabytes <= PAGE_MB and (hover is None or hover <= HOVER_S)
    text = f"page {wall:.1f} s, {megabytes:.1f} MB, hover {'not measured' if hover is None else f'{hover:.2f} s'}"
    return Verdict("report", None if quick else met, text)


def _hover(page: Path, profile: Path) -> float:
    """Return the seconds from opening the page until the mouse over a trial of the front shows its configuration."""
    with browser.browsing(profile) as opened:
        opened.view(1200)
        started = time.perf_counter()
        opened.call("Page.navigate", url=page.resolve().as_uri())
        opened.wait("document.querySelector(\"[data-figure^='front-']\")?.dataset.drawn")
        opened.move(*opened.evaluate(FRONT_POINT))
        opened.wait("document.querySelector('.tip b')?.textContent.startsWith('trial ')")
        return time.perf_counter() - started
