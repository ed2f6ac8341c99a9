"""The fit of the error model of fixes, its check on held-out fixes, and the trials behind both."""

import json
import math

import pytest
import torch
from fix_models import F64, knot, known, model_of, scale, share, trials_of
from scipy.stats import binom, chi2

from tnav.errors import RunFileError
from tnav.evaluate import fix_check, fix_runs
from tnav.evaluate.fix_check import check, measure_fix_model, normalised
from tnav.evaluate.fix_fit import fit
from tnav.evaluate.fix_model import load_fix_model
from tnav.evaluate.fix_runs import COARSER, KNOTS_M, SUN_ELEVATIONS_DEG, plan, run_trials
from tnav.evaluate.fix_trials import (
    FILE,
    append_trial,
    errors_of,
    nees_of,
    read_trials,
    usual_of,
)
from tnav.evaluate.match_scores import binomial_interval
from tnav.evaluate.scenario import CameraRecipe, Imaging, load_scenario
from tnav.evaluate.world import build_world
from tnav.records import FixStatus
from tnav.terrain.site import Site


@pytest.fixture(scope="module")
def fitted():
    return fit(trials_of(known(), 60, 0))


def test_the_fit_recovers_what_trials_state(fitted):
    """All fixes of a knot state the same, so medians are exact up to the correlations' mix."""
    for found, put in zip(fitted.knots, known().knots, strict=True):
        assert found.agl_m == put.agl_m
        assert found.gsd_ratio == pytest.approx(3.0)
        assert found.sigma == pytest.approx(put.sigma)
        assert found.map_position_sigma_m == pytest.approx(put.map_position_sigma_m)
        assert found.map_attitude_sigma_rad == pytest.approx(put.map_attitude_sigma_rad)
        unit = torch.tensor(found.correlation, dtype=F64)
        assert torch.allclose(unit, torch.tensor(put.correlation, dtype=F64), atol=1e-5)
    for row, want in zip(fitted.gsd.sigma, known().gsd.sigma, strict=True):
        assert [s.value for s in row] == pytest.approx([s.value for s in want])
    for found, put in zip(fitted.knots, known().knots, strict=True):
        assert found.ground_sigma_m == pytest.approx(put.ground_sigma_m)
        assert found.ground_scale.low < 1.0 < found.ground_scale.high
    assert [s.value for s in fitted.gsd.ground_sigma] == pytest.approx([1.0, 2.0, 4.0])
    assert [s.value for row in fitted.sun.sigma for s in row] == pytest.approx([1.0] * 12)


def test_the_fit_recovers_shares_scales_and_bias_within_their_statistics(fitted):
    for found in fitted.knots:
        n = found.availability.n
        assert n == 180
        low, high = binom.ppf([1e-5, 1 - 1e-5], n, 0.9) / n
        assert low <= found.availability.value <= high
        assert found.availability.low < found.availability.value < found.availability.high
        for s in (found.position_scale, found.attitude_scale):
            low, high = chi2.ppf([1e-5, 1 - 1e-5], s.n) / s.n
            assert low < s.value < high
            assert s.low < s.high
            assert s.n == 3 * round(n * found.availability.value)  # no outliers among them
    assert fitted.knots[0].bias == (0.0,) * 6
    bias, half = fitted.knots[1].bias, fitted.knots[1].bias_half_width
    assert bias[:2] + bias[3:] == (0.0,) * 5
    assert abs(bias[2] - 2.0) < 2 * half[2]  # twice the half-width at 99.9 %
    trials = trials_of(known(), 60, 0)
    usual, coarsest = ([t.error is not None for t in trials if t.coarser == c] for c in (2.0, 8.0))
    ratio = (sum(coarsest) + 0.5) / 361 / (sum(usual) / 360)  # 0.36 against 0.9 were put in
    assert fitted.gsd.availability[2].value == pytest.approx(ratio)
    assert fitted.gsd.availability[2].low < 0.4 < fitted.gsd.availability[2].high
    assert fitted.gsd.availability[1].value == 1.0


@pytest.mark.parametrize("times", [0.5, 3.0])
def test_a_wrong_covariance_shows_in_the_scale(times):
    model = fit(trials_of(known(position_scale=scale(times), ground_scale=scale(times)), 40, 1))
    for found in model.knots:
        n = found.ground_scale.n
        low, high = chi2.ppf([1e-6, 1 - 1e-6], n) / n if n else (0.0, math.inf)
        assert low < found.ground_scale.value / times < high
    for found in model.knots:
        n = found.position_scale.n
        low, high = chi2.ppf([1e-6, 1 - 1e-6], n) / n
        # the gate at 99.99 % takes a little off what errs three times as much as it says
        assert found.position_scale.value / times > low * 0.9
        assert found.position_scale.value / times < high * 1.1
        assert not found.position_scale.low < 1.0 < found.position_scale.high


def test_outliers_are_counted_and_kept_out_of_the_scale():
    trials = trials_of(known(), 30, 2)
    spoiled = []
    for number, trial in enumerate(trials):
        if trial.error is not None and number % 9 == 0:  # of the usual posting, under one Sun
            error = (trial.error[0] + 900.0, *trial.error[1:])
            spoiled.append(trial.model_copy(update={"error": error}))
        else:
            spoiled.append(trial)
    model, clean = fit(spoiled), fit(trials)
    for found, want in zip(model.knots, clean.knots, strict=True):
        n = found.outlier_rate.n
        count = sum(
            t.error is not None and t.number % 9 == 0 and t.knot_m == found.agl_m for t in trials
        )
        assert count > 15
        assert found.outlier_rate.value == pytest.approx(count / n)
        low, high = binomial_interval(count, n)
        assert (found.outlier_rate.low, found.outlier_rate.high) == (low, high)
        assert found.position_scale.value < 1.5
        assert want.outlier_rate.value == 0.0


def test_errors_are_counted_on_the_map_and_outliers_on_the_moon():
    trial = trials_of(known(), 1, 3)[0]
    error = torch.tensor(trial.error, dtype=F64)
    shift = torch.tensor([*trial.map_shift_m, 0, 0, 0, 0], dtype=F64)
    assert torch.allclose(errors_of([trial])[0], error - shift)
    C = torch.tensor(trial.covariance, dtype=F64)
    C[:2, :2] += 0.5 * torch.eye(2, dtype=F64)
    assert nees_of(trial) == pytest.approx(float(error @ torch.linalg.solve(C, error)))


def test_a_height_without_fixes_has_none_and_borrows_its_covariance():
    ends = [knot(9000.0), knot(1000.0), knot(100.0, availability=share(0.0))]
    model = fit(trials_of(model_of(ends), 4, 4))
    assert model.knots[2].availability.value == 0.0
    assert model.knots[2].sigma == model.knots[1].sigma
    assert model.knots[2].outlier_rate.n == 0


def test_too_few_trials_are_refused():
    trials = trials_of(known(), 2, 5)
    with pytest.raises(RunFileError, match="expected 2 heights"):
        fit([trial for trial in trials if trial.knot_m == 9000.0])
    with pytest.raises(RunFileError, match="3 fixes"):
        fit([trials[0], trials[-1]])


# The check ---------------------------------------------------------------------------------------


def test_held_out_fixes_of_the_same_kind_pass(fitted):
    held_out = trials_of(known(), 20, 6, half="held out")
    rows = check(fitted, held_out)
    assert rows
    assert {row.passed for row in rows} == {True}, [row for row in rows if not row.passed]
    squares = normalised(fitted, [t for t in held_out if t.error is not None])
    assert float(squares.mean()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("inflate", "spread"), [(0.4, "too wide a covariance"), (2.0, "too narrow a covariance")]
)
def test_held_out_fixes_that_err_otherwise_do_not(fitted, inflate, spread):
    rows = check(fitted, trials_of(known(), 20, 7, inflate=inflate))
    failed = [row.name for row in rows if row.passed is False]
    assert any("position" in name for name in failed), spread
    assert any("attitude" in name for name in failed), spread
    assert any("height over ground" in name for name in failed), spread


def test_availability_of_held_out_images_is_judged(fitted):
    rows = check(fitted, trials_of(model_of([knot(9000.0), knot(1000.0)]), 40, 8))
    failed = [row.name for row in rows if row.passed is False]
    assert "held out, map 4 times coarser: availability, model's" in failed


def test_what_low_fixes_have_beyond_their_covariance_is_told():
    model = model_of([knot(9000.0), knot(100.0)])
    # 1.5 times the sigma is 1.25 times the variance beyond, less what is left out as outliers.
    for inflate, least, most in ((1.0, 0.0, 0.3), (1.5, 0.8, 1.2)):
        low = [t for t in trials_of(model, 200, 8, inflate=inflate) if t.knot_m == 100.0]
        row = next(row for row in check(model, low) if "beyond the stated" in row.name)
        sigma_m = math.sqrt(next(t.covariance[0][0] for t in low if t.covariance))
        assert row.n > 500
        assert least * sigma_m <= row.value < most * sigma_m
    high = [t for t in trials_of(model, 20, 8) if t.knot_m == 9000.0]
    assert not any("beyond the stated" in row.name for row in check(model, high))


@pytest.mark.parametrize("quick", [True, False])
def test_the_benchmark_fits_one_half_and_judges_the_other(tmp_path, monkeypatch, quick):
    trials = trials_of(known(), 6, 9) + trials_of(known(), 6, 10, half="held out")
    asked = []

    def ran(world, views, out, say):
        asked.append((views, out))
        return trials

    scenario = load_scenario("resilience")
    monkeypatch.setattr(fix_check, "build_world", lambda scenario, device: None)
    monkeypatch.setattr(fix_check, "run_trials", ran)
    monkeypatch.setenv("TNAV_DATASETS", str(tmp_path))
    monkeypatch.setattr(fix_check, "load_scenario", lambda name: scenario)
    rows = measure_fix_model(torch.device("cpu"), lambda text: None, quick, tmp_path / "runs")
    assert rows
    assert all(row.device == "cpu" for row in rows)
    (views, out) = asked[0]
    assert out == tmp_path / "runs"
    assert (len(views) == len(plan())) is not quick
    path = tmp_path / "fix_model.yaml"
    assert path.exists() is not quick
    if not quick:
        assert load_fix_model().trials == len(trials) // 2


# Trials ------------------------------------------------------------------------------------------


def test_the_plan_spreads_heights_suns_and_halves():
    views = plan(2)
    assert [view.number for view in views] == list(range(len(views)))
    assert 2 * len(views) <= 300
    for knot_m in KNOTS_M:
        for half in ("fit", "held out"):
            mine = [v for v in views if v.knot_m == knot_m and v.half == half]
            assert sorted(v.sun_elevation_deg for v in mine) == sorted(SUN_ELEVATIONS_DEG * 2)
            assert {v.coarser[1] for v in mine} == set(COARSER[1:])
    first = views[: 2 * len(KNOTS_M)]  # of any beginning, all heights and both halves
    assert {(v.knot_m, v.half) for v in first} == {
        (k, h) for k in KNOTS_M for h in ("fit", "held out")
    }


def test_the_usual_posting_is_the_finest_of_each_height():
    trials = trials_of(known(), 1, 11)
    assert {t.coarser for t in usual_of(trials)} == {2.0}
    # Where the map has nothing finer, coarser ones than asked for look at the same posts.
    alike = [trial.model_copy(update={"gsd_ratio": 12.4}) for trial in trials]
    assert usual_of(alike) == alike


def test_trials_survive_their_file_and_a_cut_line(tmp_path):
    path = tmp_path / FILE
    assert read_trials(path) == []
    trials = trials_of(known(), 1, 12)[:3]
    for trial in trials:
        append_trial(path, trial)
    text = path.read_text(encoding="utf-8")
    for line in text.splitlines():
        json.loads(line, parse_constant=pytest.fail)  # strict JSON
    path.write_text(text + text[:100], encoding="utf-8")
    assert read_trials(path) == trials
    assert path.read_text(encoding="utf-8") == text
    path.write_text(text + '{"number": 1}\n', encoding="utf-8")
    with pytest.raises(RunFileError, match=rf"{FILE}:4: .*expected a trial"):
        read_trials(path)


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    scenario = load_scenario("resilience").model_copy(
        update={
            "camera": CameraRecipe(width_px=320, height_px=320),
            "imaging": Imaging(samples=1),
            "site": Site(latitude_deg=60.5, longitude_deg=-4.6, cells=512),
        }
    )
    return build_world(scenario, torch.device("cpu"))


def test_a_view_is_rendered_localised_and_not_flown_twice(small_world, tmp_path, monkeypatch):
    view = next(v for v in plan() if v.knot_m == 5500.0 and v.sun_elevation_deg == 25.0)
    said = []
    trials = run_trials(small_world, [view], tmp_path, said.append)
    assert [t.coarser for t in trials] == list(view.coarser)
    assert len(said) == 1
    assert "5500 m" in said[0]
    first, second = trials
    assert first.status is FixStatus.OK
    assert abs(first.agl_m / 5500.0 - 1) < 0.02
    assert 0 <= first.tilt_deg <= 20
    assert second.gsd_ratio > 1.9 * first.gsd_ratio
    gsd_m = first.agl_m / small_world.camera.focal_px
    assert first.gsd_ratio >= first.coarser
    assert math.log2(first.gsd_ratio * gsd_m) == pytest.approx(
        round(math.log2(first.gsd_ratio * gsd_m))
    )
    for trial in trials:
        assert math.hypot(*trial.map_shift_m) == pytest.approx(small_world.scenario.map.shift_m)
    assert first.map_seed != second.map_seed
    assert float(errors_of([first])[0, :3].norm()) < 15
    monkeypatch.setattr(fix_runs, "true_view", pytest.fail)
    assert run_trials(small_world, [view], tmp_path, said.append) == trials
    other = [trial.model_copy(update={"setup": "f" * 64}) for trial in trials]
    (tmp_path / FILE).unlink()
    append_trial(tmp_path / FILE, other[0])
    with pytest.raises(RunFileError, match="trials of set-up ffffffff"):
        run_trials(small_world, [view], tmp_path, said.append)
