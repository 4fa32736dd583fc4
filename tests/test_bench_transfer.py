from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from metasearch.search.priors import builtin_space
from metasearch.transfer.prior import Prior, PriorTrial
from metasearch.transfer.priors_file import read_priors, write_priors
from tests.bench.transfer import costs as costs_module
from tests.bench.transfer import curves as curves_module
from tests.bench.transfer import report
from tests.bench.transfer import tables as tables_module
from tests.bench.transfer.checks import bad_priors, costs, low_regret, parallel, trials_saved
from tests.bench.transfer.contenders import CONTENDERS
from tests.bench.transfer.costs import CASES, Costs, measure_costs
from tests.bench.transfer.curves import OPPONENTS, make_curves, read_curves, searches
from tests.bench.transfer.gower import Gower
from tests.bench.transfer.measure import gains, hypervolume, regret_curve
from tests.bench.transfer.outcome import COLD_TPE, NEVER, Outcome, mean_and_error, upper_bounds
from tests.bench.transfer.priors import KINDS, OBJECTIVES, best_points, prior_studies, values_of
from tests.bench.transfer.replay import TRIALS, Run, replay, rows_of
from tests.bench.transfer.tables import Grid, Pools, Table, pools_table

Array = NDArray[np.float64]
SPACE = builtin_space()


def small_grid() -> Grid:
    """A grid of 6 x 5 x 2 on three tasks whose fronts lie a little apart."""
    parameters: dict[str, dict[str, Any]] = {
        "width": {"choices": [1, 2, 4, 8, 16, 32], "categorical": False},
        "depth": {"choices": [1, 2, 3, 4, 5], "categorical": False},
        "kind": {"choices": ["a", "b"], "categorical": True},
    }
    index = np.array(list(np.ndindex(6, 5, 2)), np.int8)
    results = {}
    for name, shift in (("one", 0.0), ("two", 0.3), ("three", 0.6)):
        x, y, k = index[:, 0] / 5, index[:, 1] / 4, index[:, 2]
        first = (x - 0.3 - 0.2 * shift) ** 2 + 0.3 * k + 0.2 * y
        second = (1 - x) ** 2 * 0.5 + (y - shift) ** 2 + 0.1 * k
        results[name] = np.column_stack([(v - v.min()) / np.ptp(v) for v in (first, second)])
    return Grid("small", parameters, index, results)


def pool_priors(count: int = 24) -> list[Prior]:
    """The same random configurations of a real space on three tasks, with made-up results."""
    rng = np.random.default_rng(0)
    members = [SPACE.sample(rng) for _ in range(count)]
    return [
        Prior(
            name=name,
            directions={"val_accuracy": "maximize", "model_bytes": "minimize"},
            distributions=SPACE.distributions(),
            trials=(
                *(
                    PriorTrial(params, {"val_accuracy": rng.uniform(0.5, 0.9), "model_bytes": rng.uniform(1e3, 1e5)})
                    for params in members
                ),
                PriorTrial(members[0], {}, "fail"),
            ),
        )
        for name in ("one", "two", "three")
    ]


def fill(table: Table, levels: dict[tuple[str, str], float], *, seeds: int, start: float = 0.9) -> dict[Run, Array]:
    """Return straight curves from `start` to a level of each sampler, a little different in each seed."""
    return {
        run: np.linspace(start, level, TRIALS) + 0.001 * run.seed
        for (contender, priors), level in levels.items()
        for run in searches(table, contender, priors, seeds=seeds)
    }


def test_hypervolume_is_the_area_that_a_fine_grid_counts() -> None:
    rng = np.random.default_rng(0)
    centres = (np.arange(400) + 0.5) / 400
    for _ in range(5):
        values = rng.random((7, 2)) * 1.2
        dominated = np.zeros((400, 400), bool)
        for first, second in values:
            dominated |= (centres[:, None] >= first) & (centres[None] >= second)
        assert hypervolume(values) == pytest.approx(dominated.mean(), abs=0.01)


def test_a_point_outside_the_reference_adds_nothing() -> None:
    inside = np.array([[0.2, 0.5]])
    assert hypervolume(np.vstack([inside, [[0.1, 1.5], [1.5, 0.0]]])) == pytest.approx(0.8 * 0.5)
    assert hypervolume(np.empty((0, 2))) == 0


def test_gains_are_the_differences_of_hypervolumes() -> None:
    rng = np.random.default_rng(1)
    front, values = rng.random((3, 2)), rng.random((6, 2))
    expected = [hypervolume(np.vstack([front, value[None]])) - hypervolume(front) for value in values]
    assert gains(values, front) == pytest.approx(expected)


def test_regret_falls_to_zero_once_the_front_is_known() -> None:
    whole = np.random.default_rng(2).random((40, 2))
    regret = regret_curve(whole, whole)
    assert np.all(np.diff(regret) <= 1e-12)
    assert regret[0] > 0
    assert regret[-1] == pytest.approx(0)


def test_gower_distance_is_the_mean_over_the_parameters_that_either_has() -> None:
    distributions: dict[str, BaseDistribution] = {
        "rate": FloatDistribution(0.01, 1.0, log=True),
        "width": IntDistribution(0, 10),
        "loss": CategoricalDistribution(["kd", "at", "rkd"]),
        "momentum": FloatDistribution(0.0, 1.0),
    }
    members = [
        {"rate": 0.1, "width": 5, "loss": "kd"},
        {"rate": 0.01, "width": 0, "loss": "rkd", "momentum": 0.5},
    ]
    distances = Gower.of(distributions, members).distances({"rate": 0.01, "width": 0, "loss": "kd", "momentum": 0.25})
    assert distances == pytest.approx([(0.5 + 0.5 + 0 + 1) / 4, (0 + 0 + 1 + 0.25) / 4])


def test_gower_distance_leaves_out_what_neither_has() -> None:
    distributions: dict[str, BaseDistribution] = {"width": IntDistribution(0, 10), "final": FloatDistribution(0, 1)}
    assert Gower.of(distributions, [{"width": 5}]).distances({"width": 0}) == pytest.approx([0.5])


def test_a_grid_answers_each_of_its_configurations_by_its_own_row() -> None:
    grid = small_grid()
    rows = range(len(grid.index))
    assert [grid.answer("one", grid.params("one", row), list(rows)) for row in rows] == list(rows)


def test_a_pool_answers_by_the_nearest_member_not_yet_used() -> None:
    pools = pools_table("own", pool_priors(), SPACE)
    proposal = pools.params("one", 7)
    first = pools.answer("one", proposal, [])
    second = pools.answer("one", proposal, [first])
    assert first == 7
    others = Gower.of(pools.distributions, pools.configurations["one"]).distances(proposal)
    assert second == np.argsort(others, kind="stable")[1]


def test_a_pool_measures_error_and_the_logarithm_of_bytes(tmp_path: Path) -> None:
    write_priors(tmp_path / "builtin.parquet", pool_priors())
    priors = read_priors(tmp_path / "builtin.parquet")
    pools = pools_table("own", priors, SPACE)
    values, trials = pools.values("two"), priors[1].complete
    assert len(values) == len(trials) == 24
    assert values.min(0).tolist() == [0, 0]
    assert values.max(0).tolist() == [1, 1]
    accuracy = [trial.metrics["val_accuracy"] for trial in trials]
    assert np.argsort(values[:, 0]).tolist() == np.argsort(accuracy)[::-1].tolist()
    size = np.array([trial.metrics["model_bytes"] for trial in trials])
    middle = np.log(size / size.min()) / np.log(size.max() / size.min())
    assert values[:, 1] == pytest.approx(middle)


def test_the_pool_is_found_where_the_package_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables_module, "BUILT_IN_FILE", tmp_path / "builtin.parquet")
    assert tables_module.load_table.__wrapped__("own") is None
    write_priors(tmp_path / "builtin.parquet", pool_priors())
    table = tables_module.load_table.__wrapped__("own")
    assert table is not None
    assert table.tasks == ("one", "two", "three")


@pytest.mark.parametrize("kind", KINDS)
def test_no_prior_study_is_of_the_task_itself(kind: str) -> None:
    assert "two" not in {prior.name for prior in prior_studies(small_grid(), "two", seed=3, kind=kind)}


def test_bad_priors_are_the_good_ones_with_other_values() -> None:
    grid = small_grid()
    good, shuffled, inverted = (
        prior_studies(grid, "one", seed=1, kind=kind) for kind in ("good", "shuffled", "inverted")
    )
    for g, s, i in zip(good, shuffled, inverted, strict=True):
        assert [t.params for t in g.trials] == [t.params for t in s.trials] == [t.params for t in i.trials]
        assert sorted(values_of(g).tolist()) == sorted(values_of(s).tolist())
        assert values_of(g).tolist() != values_of(s).tolist()
        assert values_of(g) + values_of(i) == pytest.approx(np.tile(values_of(g).max(0) + values_of(g).min(0), (60, 1)))


def test_prior_studies_are_drawn_anew_for_each_seed_and_task() -> None:
    grid = small_grid()

    def drawn(task: str, seed: int) -> list[dict[str, Any]]:
        return [dict(trial.params) for trial in prior_studies(grid, task, seed=seed, kind="good")[-1].trials]

    assert drawn("one", 0) == drawn("one", 0)
    assert drawn("one", 0) != drawn("one", 1)
    assert drawn("one", 0) != drawn("two", 0)


def test_best_points_are_those_that_exhaustive_greedy_search_finds() -> None:
    rng = np.random.default_rng(4)
    shared = [{"x": i} for i in range(9)]
    distributions: dict[str, BaseDistribution] = {"x": IntDistribution(0, 20)}
    tables = [rng.random((9, 2)), rng.random((9, 2)) * 50 + 7]
    priors = [
        Prior(
            name=str(number),
            directions=dict.fromkeys(OBJECTIVES, "minimize"),
            distributions=distributions,
            trials=tuple(
                PriorTrial(p, dict(zip(OBJECTIVES, row, strict=True))) for p, row in zip(shared, y, strict=True)
            ),
        )
        for number, y in enumerate(tables)
    ]
    scaled = [(y - y.min(0)) / np.ptp(y, axis=0) for y in tables]
    chosen: list[int] = []
    for _ in range(4):
        rest = [i for i in range(9) if i not in chosen]
        chosen.append(max(rest, key=lambda i: sum(hypervolume(y[[*chosen, i]]) for y in scaled)))
    assert best_points(priors, 4) == [shared[i] for i in chosen]


def test_enqueued_points_are_tried_first_and_the_rest_asked_for() -> None:
    grid = small_grid()
    points = best_points(prior_studies(grid, "one", seed=0, kind="good"), 5)
    rows = rows_of(Run("small", "one", 0, "tpe", "good"), grid, trials=8)
    assert rows[:5] == [grid.answer("one", point, []) for point in points]
    assert len(rows) == 8


@pytest.mark.parametrize(("contender", "priors"), [("random", "none"), ("tpe", "good"), ("transfer", "inverted")])
def test_a_search_is_the_same_each_time_it_is_replayed(contender: str, priors: str) -> None:
    run = Run("small", "three", 5, contender, priors)
    assert rows_of(run, small_grid(), trials=6) == rows_of(run, small_grid(), trials=6)


def test_no_member_of_a_pool_answers_twice() -> None:
    pools = pools_table("own", pool_priors(), SPACE)
    rows = rows_of(Run("own", "one", 0, "tpe", "none"), pools, trials=24)
    assert sorted(rows) == list(range(24))


@pytest.mark.parametrize("contender", CONTENDERS)
def test_every_contender_searches_a_space_with_conditions(contender: str) -> None:
    pools = pools_table("own", pool_priors(), SPACE)
    regret = replay(Run("own", "two", 0, contender, "good"), pools, trials=11)
    assert np.all(np.diff(regret) <= 1e-12)
    assert -1e-12 <= regret[-1] < 1


def test_only_missing_curves_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = small_grid()
    runs = searches(grid, "random", "none", seeds=2)
    assert make_curves(grid, runs[:4], tmp_path) == 4
    replayed: list[Run] = []

    def counted(run: Run, table: Table) -> Array:
        replayed.append(run)
        return replay(run, table)

    monkeypatch.setattr(curves_module, "replay", counted)
    assert make_curves(grid, runs, tmp_path) == 2
    assert replayed == runs[4:]
    kept = read_curves(grid, tmp_path)
    assert list(kept) == runs
    for run, curve in kept.items():
        assert curve == pytest.approx(replay(run, grid), abs=5.1e-5)


def test_a_line_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    grid = small_grid()
    runs = searches(grid, "random", "none", seeds=1)
    make_curves(grid, runs, tmp_path)
    path = tmp_path / "small.csv"
    whole = path.read_text()
    path.write_text(whole[:-2])
    assert list(read_curves(grid, tmp_path)) == runs[:-1]
    assert make_curves(grid, runs, tmp_path) == 1
    assert path.read_text() == whole


def test_curves_of_other_data_do_not_count(tmp_path: Path) -> None:
    grid = small_grid()
    runs = searches(grid, "random", "none", seeds=1)
    make_curves(grid, runs, tmp_path)
    changed = Grid("small", grid.parameters, grid.index, {t: y**2 for t, y in grid.results.items()})
    assert changed.label != grid.label
    assert read_curves(changed, tmp_path) == {}


def test_kept_curves_are_of_the_opponents_and_fall(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METASEARCH_TABLES", str(shared_data.parent / "tables"))
    for name in ("fcnet", "nmt"):
        table = tables_module.load_table.__wrapped__(name)
        if table is None:
            pytest.skip(f"no {name}.npz beside the real data")
        kept = read_curves(table)
        assert kept
        for run, curve in kept.items():
            assert run.contender.partition(",")[0] in ("random", "tpe", "gp")
            assert np.all(np.diff(curve) <= 1e-9)


def test_error_is_over_seeds_of_the_mean_over_tasks() -> None:
    curves = np.zeros((2, 3, TRIALS))
    curves[0, :, 4], curves[1, :, 4] = [0.1, 0.2, 0.3], [0.3, 0.2, 0.1]
    assert mean_and_error(curves, 5) == pytest.approx((0.2, 0.0))
    curves[1, :, 4] = [0.1, 0.2, 0.3]
    assert mean_and_error(curves, 5) == pytest.approx((0.2, 0.1 / 3**0.5))


def test_nine_of_ten_bounds_hold_the_mean() -> None:
    losses = np.random.default_rng(0).normal(0.3, 2.0, (4000, 6))
    assert np.mean(upper_bounds(losses) >= 0.3) == pytest.approx(0.9, abs=0.02)


def test_trials_saved_counts_to_the_mean_of_cold_tpe() -> None:
    grid = small_grid()
    curves = fill(grid, {COLD_TPE: 0.2}, seeds=2)
    for run in searches(grid, "transfer", "good", seeds=2):
        curve = np.full(TRIALS, 0.9)
        curve[6:] = 0.15
        curves[run] = curve if run.seed else np.full(TRIALS, 0.9)
    outcome = Outcome("small", grid.tasks, 2, curves)
    assert outcome.first_trials(("transfer", "good")).tolist() == [[NEVER, 7]] * 3
    assert trials_saved(Outcome("own", grid.tasks, 0, {})) == []


def test_a_sampler_counts_only_the_seeds_that_it_has_on_every_task() -> None:
    grid = small_grid()
    curves = fill(grid, {COLD_TPE: 0.2, ("gp", "good"): 0.1}, seeds=4)
    del curves[Run("small", "two", 2, "gp", "good")]
    outcome = Outcome("small", grid.tasks, 4, curves)
    assert [c.shape for c in outcome.of(COLD_TPE, ("gp", "good"))] == [(3, 2, TRIALS)] * 2
    assert outcome.whole(COLD_TPE)
    assert not outcome.whole(("gp", "good"))


def test_demands_are_met_by_a_good_sampler_and_missed_by_a_bad_one() -> None:
    grid = small_grid()
    level = {COLD_TPE: 0.3, ("gp", "good"): 0.3, ("tpe, 8 workers", "none"): 0.31}
    kinds = [("transfer", kind) for kind in KINDS] + [("transfer, 8 workers", "good")]
    for ours, met in ((0.2, True), (0.4, False)):
        levels = level | dict.fromkeys(kinds, ours) | {("transfer, 8 workers", "good"): ours + (0 if met else 0.05)}
        outcome = Outcome("small", grid.tasks, 3, fill(grid, levels, seeds=3))
        against_cold = [check for check in bad_priors(outcome) if "cold tpe" in check.what]
        judged = [*low_regret(outcome), *against_cold, *(c for c in parallel(outcome) if c.met is not None)]
        assert len(judged) == 4 + 4 + 2
        assert {check.met for check in judged} == {met}


def test_an_opponent_with_missing_curves_is_not_judged_against() -> None:
    grid = small_grid()
    curves = fill(grid, {("transfer", "good"): 0.2}, seeds=3) | fill(grid, {("gp", "good"): 0.3}, seeds=2)
    assert [check.met for check in low_regret(Outcome("small", grid.tasks, 3, curves))] == [None] * 4


def test_the_pools_label_tells_its_data() -> None:
    first, second = pools_table("own", pool_priors(24), SPACE), pools_table("own", pool_priors(23), SPACE)
    assert isinstance(first, Pools)
    assert first.label == pools_table("own", pool_priors(24), SPACE).label
    assert first.label != second.label


def test_costs_are_judged_against_their_limits() -> None:
    cheap = Costs(dict.fromkeys(CASES, 0.4), dict.fromkeys(CASES, 30.0), batch=1.0, one_by_one=2.0)
    dear = Costs(dict.fromkeys(CASES, 2.5), dict.fromkeys(CASES, 90.0), batch=2.0, one_by_one=1.0)
    assert [check.met for check in costs(cheap)] == [True] * 5
    assert [check.met for check in costs(dear)] == [False] * 5


def test_costs_are_measured_case_by_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs_module, "CASES", {costs_module.BATCH_CASE: (12, 3, 10)})
    monkeypatch.setattr(costs_module, "ASKED", 3)
    monkeypatch.setattr(costs_module, "BATCH", 2)
    measured = measure_costs(small_grid())
    assert list(measured.medians) == list(measured.before) == [costs_module.BATCH_CASE]
    assert min(measured.medians[costs_module.BATCH_CASE], measured.batch, measured.one_by_one) > 0


def test_one_command_prints_samplers_and_demands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = small_grid()
    ours = dict.fromkeys([("transfer", kind) for kind in KINDS] + [("transfer, 8 workers", "good")], 0.1234)
    monkeypatch.setattr(report, "NAMES", ("small", "absent"))
    monkeypatch.setattr(report, "load_table", {"small": grid}.get)
    monkeypatch.setattr(report, "_measure", lambda runs, cost_table: (fill(grid, ours, seeds=10), None))
    opponents = fill(grid, dict.fromkeys(OPPONENTS, 0.3), seeds=10)
    monkeypatch.setattr(report, "read_curves", lambda table: opponents)
    verdict = report.run(quick=False)
    output = capsys.readouterr().out
    assert "absent: its data are not there" in output
    assert output.count("\n  small: transfer, ") == 6
    assert "0.128 ± 0.001" in output  # 0.1234 and a thousandth of the seed
    assert output.count(" met\n") == int(verdict.text.partition(" ")[0])
    assert "MISSED\n" not in output or verdict.met is False


def test_nothing_is_judged_where_no_data_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "load_table", lambda name: None)
    verdict = report.run(quick=False)
    assert verdict.met is None
    assert "skipped" in verdict.text


def test_demands_are_not_called_met_while_curves_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = small_grid()
    ours = dict.fromkeys([("transfer", kind) for kind in KINDS], 0.1) | {("transfer, 8 workers", "good"): 0.09}
    level = dict.fromkeys(OPPONENTS, 0.3) | {("tpe, 8 workers", "none"): 0.32}
    monkeypatch.setattr(report, "NAMES", ("small",))
    monkeypatch.setattr(report, "load_table", {"small": grid}.get)
    monkeypatch.setattr(report, "_measure", lambda runs, cost_table: (fill(grid, ours, seeds=10), None))
    opponents = fill(grid, level, seeds=10)
    monkeypatch.setattr(report, "read_curves", lambda table: opponents)
    assert report.run(quick=False).met is True
    del opponents[Run("small", "two", 9, "gp", "none")]
    assert report.run(quick=False).met is None
