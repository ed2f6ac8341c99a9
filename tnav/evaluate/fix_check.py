"""The error model of fixes on maps that its fit has not seen; the benchmark around it."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float64
from scipy.stats import f
from torch import Tensor

from tnav.config import datasets_dir
from tnav.evaluate.fix_fit import GSD_AT, SCENARIO, fit, news_of
from tnav.evaluate.fix_model import FILE, FixConditions, FixModel, conditions, write_fix_model
from tnav.evaluate.fix_runs import plan, run_trials
from tnav.evaluate.fix_trials import (
    ATTITUDE,
    POSITION,
    SAME_RATIO,
    FixTrial,
    errors_of,
    good_of,
    solved_of,
    stated_of,
    usual_of,
)
from tnav.evaluate.limits import Row
from tnav.evaluate.match_scores import binomial_interval
from tnav.evaluate.scenario import load_scenario
from tnav.evaluate.world import build_world

OUT = Path("out/fix_runs")
BANDS_M = ((4000.0, math.inf), (600.0, 4000.0), (0.0, 600.0))
_QUICK_M = (8000.0, 1700.0, 450.0)  # heights of a quick run
_CHECK_LEVEL = 0.999
_FLOOR_UNDER_M = 300.0


def measure_fix_model(
    device: torch.device, say: Callable[[str], None], quick: bool, out: Path | None = None
) -> list[Row]:
    """Run or resume the trials, fit one half, check it on the other.

    Args:
        device: of rendering, matching and solving.
        say: told of progress.
        quick: three heights, once under each Sun and for each half, and no file is written.
        out: folder of the trials, instead of ``out/fix_runs``.
    """
    scenario = load_scenario(SCENARIO)
    world = build_world(scenario, device)
    views = [view for view in plan(1) if view.knot_m in _QUICK_M] if quick else plan()
    trials = run_trials(world, views, out or OUT, say)
    map_sigma_m = scenario.map.error_model().sigma_m
    model = fit([trial for trial in trials if trial.half == "fit"], SCENARIO, map_sigma_m)
    if not quick:
        write_fix_model(model, datasets_dir() / FILE)
    return check(model, [trial for trial in trials if trial.half == "held out"], str(device))


def check(model: FixModel, trials: Sequence[FixTrial], device: str = "cpu") -> list[Row]:
    """Fixes of maps that the fit has not seen, under the model.

    The model's scale is itself an estimate, so that a mean normalised square over held-out fixes is
    a ratio of two chi-squares: its bounds are those of F, 99.9 %. Availability is held against the
    exact binomial interval of the held-out share, 99.9 %.
    """
    rows = []
    for low_m, high_m in BANDS_M:
        band = [trial for trial in usual_of(trials) if low_m <= trial.knot_m < high_m]
        top = f" to {high_m:.0f}" if math.isfinite(high_m) else " or more"
        rows += _band_rows(f"held out, {low_m:.0f}{top} m", model, band, device)
    rows += _floor_rows(usual_of(trials), device)
    usual = {knot.agl_m: knot.gsd_ratio for knot in model.knots}
    for at in GSD_AT[1:]:
        low, high = at / SAME_RATIO, at * SAME_RATIO
        band = [t for t in trials if low <= t.gsd_ratio / usual[t.knot_m] < high]
        rows += _band_rows(f"held out, map {at:g} times coarser", model, band, device)
    return rows


def _floor_rows(trials: Sequence[FixTrial], device: str) -> list[Row]:
    """Sideways error that the lowest fixes have beyond their stated covariance, rms per axis."""
    low = [t for t in good_of(solved_of(trials)) if t.knot_m < _FLOOR_UNDER_M]
    if not low:
        return []
    stated_m2 = stated_of(low).diagonal(dim1=-2, dim2=-1)[:, :2]
    beyond_m2 = float((errors_of(low)[:, :2].square() - stated_m2).mean())
    name = f"held out, under {_FLOOR_UNDER_M:.0f} m: sideways beyond the stated covariance"
    value = round(math.sqrt(max(beyond_m2, 0.0)), 4)
    return [Row(name, value, "m", None, None, len(low), device)]


def _band_rows(name: str, model: FixModel, band: list[FixTrial], device: str) -> list[Row]:
    if not band:
        return []
    share = float(_conditions(model, band).availability.mean())
    solved = solved_of(band)
    low, high = binomial_interval(len(solved), len(band), _CHECK_LEVEL)
    rows = [
        Row(
            f"{name}: availability, model's",
            round(share, 3),
            "",
            f"in [{low:.3f}, {high:.3f}]",
            bool(low <= share <= high),
            len(band),
            device,
        )
    ]
    if not solved:
        return rows
    good = good_of(solved)
    outliers, n = len(solved) - len(good), len(solved)
    rate = float(_conditions(model, solved).outlier_rate.mean())
    low, high = binomial_interval(outliers, n, _CHECK_LEVEL)
    limit = f"in [{low:.3f}, {high:.3f}]"
    rows.append(
        Row(
            f"{name}: outlier rate, model's",
            round(rate, 3),
            "",
            limit,
            bool(low <= rate <= high),
            n,
            device,
        )
    )
    if good:
        rows.append(_spread_row(f"{name}: position", model, good, POSITION, device))
        rows.append(_spread_row(f"{name}: attitude", model, good, ATTITUDE, device))
        rows += _agl_rows(f"{name}: height over ground", model, good, device)
    return rows


def _spread_row(name: str, model: FixModel, good: list[FixTrial], group: slice, device: str) -> Row:
    value = float(normalised(model, good)[:, 0 if group is POSITION else 1].mean())
    fitted = sum(
        (knot.position_scale if group is POSITION else knot.attitude_scale).n
        for knot in model.knots
    )
    low, high = f.ppf([0.5 - _CHECK_LEVEL / 2, 0.5 + _CHECK_LEVEL / 2], 3 * len(good), fitted)
    limit = f"in [{low:.2f}, {high:.2f}]"
    passed = bool(low <= value <= high)
    return Row(f"{name}, mean NEES / 3", round(value, 3), "", limit, passed, len(good), device)


def _agl_rows(name: str, model: FixModel, good: list[FixTrial], device: str) -> list[Row]:
    there = news_of(good, model.map_sigma_m)
    if not there:
        return []
    at = _conditions(model, there)
    error_m = torch.tensor([trial.agl_error_m for trial in there], dtype=torch.float64)
    value = float((error_m.square() / (at.agl_scale * at.agl_sigma_m.square())).mean())
    fitted = sum(knot.ground_scale.n for knot in model.knots)
    low, high = f.ppf([0.5 - _CHECK_LEVEL / 2, 0.5 + _CHECK_LEVEL / 2], len(there), fitted)
    limit = f"in [{low:.2f}, {high:.2f}]"
    passed = bool(low <= value <= high)
    return [Row(f"{name}, mean NEES", round(value, 3), "", limit, passed, len(there), device)]


def normalised(model: FixModel, solved: Sequence[FixTrial]) -> Float64[Tensor, "n 2"]:
    """e^T S^-1 e / 3 of fixes in position and in attitude, S the model's whole covariance."""
    at = _conditions(model, solved)
    S = at.covariance.clone()
    S[:, POSITION, POSITION] += at.map_position_covariance
    S = S * at.scale[:, :, None] * at.scale[:, None, :]
    error = errors_of(solved) - at.bias
    parts = []
    for group in (POSITION, ATTITUDE):
        e = error[:, group]
        parts.append((e * torch.linalg.solve(S[:, group, group], e)).sum(-1) / 3)
    return torch.stack(parts, -1)


def _conditions(model: FixModel, trials: Sequence[FixTrial]) -> FixConditions:
    def column(name: str) -> Float64[Tensor, " n"]:
        return torch.tensor([getattr(trial, name) for trial in trials], dtype=torch.float64)

    # At the ends of the model's heights, the ground moves a planned height past them.
    low, high = model.knots[-1].agl_m, model.knots[0].agl_m
    agl_m = column("agl_m").clamp(low, high)
    ratio = column("gsd_ratio").clamp_max(model.gsd_ratio_max)
    return conditions(model, agl_m, column("sun_elevation_deg"), ratio)
