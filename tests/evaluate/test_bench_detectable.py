"""The least detectable bias: the fit against known thresholds, the Sun's hours, what is a trial."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from flights import flight

from tnav.errors import ConfigError
from tnav.evaluate.bench_detectable import HEIGHTS_M, Tried, _rows, epoch_of, least_k, tried_of
from tnav.evaluate.descent_plan import scenario_of
from tnav.evaluate.flight import Monitoring
from tnav.evaluate.flight_detectable import least_error
from tnav.geometry.sun import sun_at
from tnav.simulate.faults import BiasFault, Onset

F64 = torch.float64


@pytest.mark.parametrize("k", [2.0, 5.0])
def test_the_threshold_is_found_again(k: float) -> None:
    """Of n unit-slope probits within 3 sigma of K the fit is good to some 1.3 / sqrt(n / 3)."""
    rng = np.random.default_rng(3)
    sigmas = rng.uniform(max(0.0, k - 3), k + 3, 3000)
    found = sigmas + rng.standard_normal(3000) > k
    assert least_k(sigmas, found) == pytest.approx(k, abs=4 * 1.3 / math.sqrt(1000))


@pytest.mark.parametrize(("times", "passed"), [(1.49, True), (1.51, False)])
def test_rows_are_ratios_to_theory(times: float, passed: bool) -> None:
    """Steps so dense that the fit is the step: 99 % are found 2.33 above it."""
    threshold = 4.0
    k = times * least_error(threshold) - least_error(0.0)
    sigmas = np.linspace(k - 3, k + 3, 4001)
    grid = np.arange(4001)
    # As many are found as the probit says: by a sequence that is as even as can be.
    chance = np.array([0.5 * math.erfc((k - s) / math.sqrt(2)) for s in sigmas])
    found = np.floor(np.cumsum(chance)) > np.floor(np.cumsum(chance) - chance)
    agl_m = np.full(len(grid), 0.5 * (HEIGHTS_M[0] + HEIGHTS_M[1]))
    rows = _rows(Tried(agl_m, sigmas, np.full(len(grid), 2.0), found, threshold), 12.0, "cpu")
    assert len(rows) == len(HEIGHTS_M) - 1
    assert rows[0].value == pytest.approx(times, abs=0.01)
    assert rows[0].passed is passed
    assert f"{2.0 * least_error(threshold):.1f} m" in rows[0].name
    assert [(r.value, r.n) for r in rows[1:]] == [(None, 0)] * 3


def test_the_sun_climbs_through_an_elevation() -> None:
    one = flight(batch=1, keep=None)
    scenario = scenario_of(one.descent)
    frame = scenario.site.frame
    at = epoch_of(frame, scenario.epoch_utc, 5.0)
    assert 5.0 <= sun_at(frame, at).elevation_deg < 5.2
    with pytest.raises(ConfigError, match=r"never, at 60\.5 deg"):
        epoch_of(frame, scenario.epoch_utc, 40.0)


def test_a_trial_is_a_bias_that_showed_before_any_alarm() -> None:
    fault = BiasFault(kind="bias", begins=Onset(below_agl_m=500.0), bias_m=-3.0)
    one = flight(batch=4, keep=None, faults=(fault,), monitor=Monitoring.WATCHES)
    assert one.detectable is not None
    assert one.monitor is not None
    times = torch.tensor([10.0, 10.0, 10.0, math.nan], dtype=F64)
    one.detectable.wrong_s = times
    one.detectable.wrong_sigma_m = torch.full((4,), 2.0, dtype=F64)
    alert_s = torch.tensor([14.0, 14.1, 9.9, 12.0], dtype=F64)
    one.monitor.watch = replace(one.monitor.watch, alert_s=alert_s)
    tried = tried_of(one)
    assert tried.found.tolist() == [True, False]
    assert tried.sigmas.tolist() == [1.5, 1.5]
    assert tried.agl_m.tolist() == [500.0, 500.0]
