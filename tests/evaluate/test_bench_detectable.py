"""The least detectable bias: the fit against known curves, and what is a trial."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from flights import flight
from scipy.stats import norm

from tnav.evaluate.bench_detectable import HEIGHTS_M, Tried, _rows, least_sigmas, tried_of
from tnav.evaluate.flight import Monitoring
from tnav.evaluate.flight_detectable import least_error
from tnav.simulate.faults import BiasFault, Onset

F64 = torch.float64


@pytest.mark.parametrize(("middle", "width"), [(4.0, 1.0), (4.0, 4.0), (2.0, 0.3)])
def test_the_bias_that_99_of_100_find_is_found_again(middle: float, width: float) -> None:
    """Also where the curve is not as steep as theory's: what counts is its 99 % point."""
    rng = np.random.default_rng(3)
    sigmas = rng.uniform(0.0, 20.0, 6000)
    found = sigmas + width * rng.standard_normal(6000) > middle
    expected = middle + norm.ppf(0.99) * width
    assert least_sigmas(sigmas, found) == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize(("times", "passed"), [(1.45, True), (1.55, False)])
def test_rows_are_ratios_to_theory(times: float, passed: bool) -> None:
    """As many are found as the probit says, by a sequence that is as even as can be."""
    threshold = 4.0
    least = least_error(threshold)
    middle = times * least - norm.ppf(0.99)
    sigmas = np.linspace(middle - 4, middle + 4, 4001)
    chance = norm.cdf(sigmas - middle)
    found = np.floor(np.cumsum(chance)) > np.floor(np.cumsum(chance) - chance)
    agl_m = np.full(len(sigmas), 0.5 * (HEIGHTS_M[0] + HEIGHTS_M[1]))
    tried = Tried(agl_m, sigmas, np.full(len(sigmas), 2.0), found, threshold)
    rows = _rows(tried, "cpu")
    assert len(rows) == len(HEIGHTS_M)  # two of the first height, one of each without trials
    assert rows[0].value == pytest.approx(times, abs=0.03)
    assert rows[0].passed is passed
    assert f"{2.0 * least:.1f} m" in rows[0].name
    large = sigmas >= 1.5 * least
    assert (rows[1].value, rows[1].n) == (found[large].sum(), large.sum())
    assert [(r.value, r.n) for r in rows[2:]] == [(None, 0)] * 3


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
