"""Readings that contradict each other: brute force, what cancels, limits, rate, their noise."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chi2
from torch import Tensor

from tnav.monitor.altimeter_checks import TRIPLE, Unsteady, update_unsteady
from tnav.monitor.bounds import count_bound
from tnav.monitor.detectors import CountLimits
from tnav.monitor.thresholds import Tuning, unsteady_limits

F64 = torch.float64
LIMITS = CountLimits(gate=9.0, count=2)


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def read(state: Unsteady, t_s: float, off_m: float, noise_m: float, there: bool = True) -> Unsteady:
    return update_unsteady(state, t_s, f64(off_m), f64(noise_m), torch.tensor([there]), LIMITS)


def taken(offs_m: list[float], noise_m: float = 1.0) -> Unsteady:
    state = Unsteady.fresh(1, 4, "cpu")
    for i, off_m in enumerate(offs_m):
        state = read(state, 0.1 * i, off_m, noise_m)
    return state


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.floats(-20, 20), st.just(math.nan)), st.floats(0.5, 3), st.booleans()
        ),
        max_size=40,
    )
)
def test_by_brute_force(steps: list[tuple[float, float, bool]]) -> None:
    state, kept = Unsteady.fresh(1, 4, "cpu"), []
    bends: list[tuple[float, float]] = []
    alarmed, onset_s = False, math.nan
    for i, (off_m, noise_m, there) in enumerate(steps):
        t_s = 0.3 * i  # a second is three of them
        state = read(state, t_s, off_m, noise_m, there)
        if there and not math.isnan(off_m):
            kept = kept if kept and t_s - kept[0][2] <= 1.0 else []
            kept.append((off_m, noise_m, t_s))
            if len(kept) == TRIPLE:
                (a, p, _), (b, q, _), (c, r, _) = kept
                kept = []
                bends.append((t_s, (a - 2 * b + c) ** 2 / (p * p + 4 * q * q + r * r)))
                over = [at_s for at_s, bend in bends[-4:] if bend > 9.0]
                alarm = len(over) >= 2
                onset_s = (onset_s if alarmed else over[0]) if alarm else math.nan
                alarmed = alarm
    assert bool(state.alarm) == alarmed
    assert state.onset_s.tolist() == pytest.approx([onset_s], nan_ok=True)
    last = [bend for _, bend in reversed(bends[-4:])]
    assert state.bends[0, : len(last)].tolist() == pytest.approx(last, abs=1e-9)


def test_what_is_steady_or_grows_evenly_is_no_contradiction() -> None:
    assert float(taken([500.0 + 80.0 * i for i in range(12)]).bends.amax()) < 0.46
    # A step of the ground bends one triple, wherever it comes.
    for at in range(3, 9):
        state = taken([0.0] * at + [400.0] * (12 - at))
        assert float(state.count.exceeded.sum()) <= 1
        assert not bool(state.alarm)


@pytest.mark.parametrize(("bend_m", "alarm"), [(7.34, False), (7.35, True)])
def test_just_under_and_over_the_gate(bend_m: float, alarm: bool) -> None:
    """Three sigma of ``x_1 - 2 x_2 + x_3``, sqrt(6) of one reading: 7.348."""
    assert bool(taken([0.0, 0.0, bend_m] * 2).alarm) is alarm


def test_readings_that_are_absent_are_passed_over() -> None:
    state, other = taken([3.0, -9.0]), taken([3.0, -9.0])
    state = read(state, 0.5, 77.0, 1.0, there=False)
    state = read(state, 0.6, math.nan, 1.0)
    assert torch.equal(read(state, 0.7, 4.0, 1.0).bends, read(other, 0.7, 4.0, 1.0).bends)


@pytest.mark.parametrize(("t_s", "whole"), [(1.0, True), (1.01, False)])
def test_readings_too_far_apart_are_no_triple(t_s: float, whole: bool) -> None:
    bends = read(taken([3.0, -9.0]), t_s, 4.0, 1.0).bends
    assert (float(bends[0, 0]) == pytest.approx((4.0 + 18.0 + 3.0) ** 2 / 6)) is whole


def test_the_gate_is_of_the_stated_rate() -> None:
    tuning, stated = Tuning(), 5e-5
    limits = unsteady_limits(tuning, 1200.0, stated)
    assert limits.count == tuning.unsteady_count
    assert limits.gate == 16.0
    limits = unsteady_limits(Tuning(unsteady_sigma=0.1), 1200.0, stated)
    exceedance = float(chi2.sf(limits.gate, 1))
    bound = count_bound(exceedance, limits.count, tuning.unsteady_window, 400.0)
    assert bound == pytest.approx(stated, rel=1e-6)


def test_healthy_readings_alarm_as_often_as_is_allowed() -> None:
    lanes, n, stated = 4000, 240, 0.05
    limits = unsteady_limits(Tuning(unsteady_sigma=0.1), float(n), stated)
    state, alarmed = Unsteady.fresh(lanes, 10, "cpu"), torch.zeros(lanes, dtype=torch.bool)
    generator = torch.Generator().manual_seed(4)
    one = torch.ones(lanes, dtype=F64)
    for i in range(n):
        off_m = 2.0 * torch.randn(lanes, generator=generator, dtype=F64) - 3.0 * i
        state = update_unsteady(state, 0.1 * i, off_m, 2.0 * one, one > 0, limits)
        alarmed = alarmed | state.alarm
    assert binom.ppf(1e-4, lanes, stated / 4) <= int(alarmed.sum())
    assert int(alarmed.sum()) <= binom.isf(1e-4, lanes, stated)


@pytest.mark.parametrize(("scale", "outliers"), [(10.0, 0.0), (30.0, 0.0), (30.0, 0.1)])
def test_noise_by_the_median_of_what_bends(scale: float, outliers: float) -> None:
    """Of a window of 999 triples; a tenth of outliers spoil a quarter of them."""
    generator = torch.Generator().manual_seed(5)
    window = 999
    state = Unsteady.fresh(1, window, "cpu")
    for i in range(TRIPLE * window):
        off_m = scale * torch.randn(1, generator=generator, dtype=F64)
        wild = torch.rand(1, generator=generator) < outliers
        off_m = torch.where(wild, off_m + 3000.0, off_m)
        state = update_unsteady(state, 0.1 * i, off_m, f64(1.0), torch.tensor([True]), LIMITS)
    # Clean ones bend where they exceed 9; of all that bend, half are under the median.
    clean = (1 - outliers) ** TRIPLE
    over = chi2.sf(9.0 / scale**2, 1)
    middle = chi2.isf(over - 0.5 * (over + (1 - clean) / clean), 1)
    expected = scale * math.sqrt(middle / chi2.ppf(0.5, 1))
    assert float(state.noise_scale) == pytest.approx(expected, rel=0.1)


def test_noise_is_told_of_what_bends_alone_and_remembered() -> None:
    """Steady before and after: the two triples that bent, by 60 of sqrt(6), are what is told."""
    state = taken([0.0] * 6 + [0.0, 0.0, 60.0] * 2)
    assert float(state.noise_scale) == pytest.approx(math.sqrt(600.0 / chi2.ppf(0.5, 1)))
    for i in range(30):
        state = read(state, 2.0 + 0.1 * i, 0.0, 1.0)
    assert not bool(state.alarm)
    assert float(state.noise_scale) == pytest.approx(math.sqrt(600.0 / chi2.ppf(0.5, 1)))


def test_before_anything_is_read_noise_is_as_stated() -> None:
    assert float(Unsteady.fresh(1, 10, "cpu").noise_scale) == 1.0
