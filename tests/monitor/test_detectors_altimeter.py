"""Stuck readings, kinematics and PX4's baseline against brute force, limits and rates."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor

from tnav.monitor.altimeter_checks import (
    Kinematic,
    KinematicLimits,
    RatioLimits,
    RatioTest,
    Stuck,
    StuckLimits,
    predicted_rate_m_s,
    update_kinematic,
    update_ratio,
    update_stuck,
)
from tnav.monitor.bounds import repeat_chance, run_threshold, slope_threshold

F64 = torch.float64
STUCK = StuckLimits(repeats=4, moved_sigma=3.0, zeros=2)


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def yes(*values: bool) -> Tensor:
    return torch.tensor(values or [True])


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def read(state: Stuck, t_s: float, range_m: float, expected_m: float, valid: bool = True) -> Stuck:
    return update_stuck(state, t_s, f64(range_m), f64(expected_m), f64(1.0), yes(valid), STUCK)


# Stuck --------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 7.0, 8.0]), st.floats(0, 9), st.booleans()),
        min_size=1,
        max_size=30,
    )
)
def test_stuck_by_brute_force(steps: list[tuple[float, float, bool]]) -> None:
    state = Stuck.fresh(1, "cpu")
    alarmed, onset = False, math.nan
    kept: list[tuple[float, float, float]] = []
    for i, (range_m, expected_m, valid) in enumerate(steps):
        state = read(state, float(i), range_m, expected_m, valid)
        if valid:
            kept.append((float(i), range_m, expected_m))
            same = 1
            while same < len(kept) and kept[-same - 1][1] == range_m:
                same += 1
            moved = abs(expected_m - kept[-same][2]) > 3.0
            zero = range_m == 0 and same >= 2 and expected_m > 3.0
            alarm = (same >= 4 and moved) or zero
            onset = (onset if alarmed else kept[-same][0]) if alarm else math.nan
            alarmed = alarm
            assert bool(state.zero) == zero
            assert float(state.statistic) == same - 1
        assert bool(state.alarm) == alarmed
        assert state.onset_s.tolist() == pytest.approx([onset], nan_ok=True)


def test_stuck_only_while_the_ground_moves() -> None:
    """Hovering, the same reading may come again: 3 sigma are not enough, a little more is."""
    for step_m, alarm in ((1.0, False), (1.0 + 1e-9, True)):
        state = Stuck.fresh(1, "cpu")
        for i in range(4):
            assert not bool(state.alarm)
            state = read(state, float(i), 500.0, 500.0 - step_m * i)
        assert bool(state.alarm) is alarm
    # One reading that differs ends it.
    assert not bool(read(state, 4.0, 500.01, 400.0).alarm)


def test_stuck_through_invalid_readings() -> None:
    state = Stuck.fresh(1, "cpu")
    for i in range(8):
        state = read(state, float(i), 500.0 if i % 2 else math.nan, 500.0 - 2 * i, bool(i % 2))
    assert bool(state.alarm)
    assert float(state.onset_s) == 1.0


def test_zeros_at_touchdown_are_no_fault() -> None:
    state = Stuck.fresh(1, "cpu")
    for i in range(3):
        state = read(state, float(i), 0.0, 3.0)  # three sigma from zero
    assert not bool(state.alarm)
    assert bool(read(state, 3.0, 0.0, 3.0 + 1e-9).zero)


def test_stuck_keeps_its_rate() -> None:
    """Readings rounded to 0.2 m with 0.2 m of noise, on ground that moves fast: all but the rate.

    The moves are the worst that can be: back to where the last reading was, on its cell's centre.
    """
    lanes, n, stated = 4000, 100, 0.05
    repetitions = run_threshold(repeat_chance(0.2, 0.2), float(n), stated)
    limits = StuckLimits(1 + repetitions, 0.0, 2)
    state, alarmed = Stuck.fresh(lanes, "cpu"), torch.zeros(lanes, dtype=torch.bool)
    noise = 0.2 * draws(lanes, n, seed=1)
    all_valid = torch.ones(lanes, dtype=torch.bool)
    for i in range(n):
        range_m = 0.2 * torch.round((1000.0 + noise[:, i]) / 0.2)
        expected_m = torch.full_like(range_m, 1000.0 - i)
        state = update_stuck(state, float(i), range_m, expected_m, range_m, all_valid, limits)
        alarmed = alarmed | state.alarm
    assert binom.ppf(1e-4, lanes, stated / 10) <= int(alarmed.sum())
    assert int(alarmed.sum()) <= binom.isf(1e-4, lanes, stated)


# Kinematics ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-5, 5), st.floats(0.5, 2), st.floats(-50, 0), st.booleans()),
        min_size=1,
        max_size=30,
    ),
    st.integers(3, 6),
)
def test_slope_by_least_squares(steps: list[tuple[float, float, float, bool]], window: int) -> None:
    """numpy's polyfit on readings minus the trapezoidal integral; a pause over 1.5 s restarts."""
    state, limits = Kinematic.fresh(1, window, "cpu"), KinematicLimits(3.0, gap_max_s=1.5)
    kept: list[tuple[float, float, float]] = []
    last: tuple[float, float] | None = None
    travel = 0.0
    for i, (noise, sigma, rate, present) in enumerate(steps):
        t_s, range_m = 50.0 + 0.5 * i, 900.0 - 8.0 * i + noise
        args = f64(range_m), f64(sigma), f64(rate), f64(0.3)
        state = update_kinematic(state, t_s, *args, yes(present), limits)
        if present:
            if last is not None and t_s - last[0] <= 1.5:
                travel += 0.5 * (t_s - last[0]) * (rate + last[1])
            else:
                kept = []
            last = (t_s, rate)
            kept.append((t_s, range_m - travel, sigma))
        slope = z = 0.0
        if len(kept) >= window:
            t, left, s = np.array(kept[-window:]).T
            slope = float(np.polyfit(t - t.mean(), left, 1)[0])
            w = (t - t.mean()) / ((t - t.mean()) ** 2).sum()
            own = 0.3 if present else None
            if own is not None:
                z = abs(slope) / math.sqrt(float((w * w * s * s).sum()) + own * own)
        if present:
            assert float(state.slope_m_s) == pytest.approx(slope, abs=1e-8)
            assert float(state.statistic) == pytest.approx(z, abs=1e-8)
            assert bool(state.alarm) == (float(state.statistic) >= 3.0)
            if z >= 3.0 and not bool(state.onset_s.isnan()):
                assert float(state.onset_s) <= kept[-window][0]


def test_slope_just_under_and_over() -> None:
    """A drift of c m/s under 1 m in 5 samples 1 s apart: sigma of the slope 1 / sqrt(10)."""
    for factor, alarm in ((1 - 1e-6, False), (1 + 1e-6, True)):
        state = Kinematic.fresh(1, 5, "cpu")
        for i in range(5):
            assert not bool(state.alarm)
            drift_m = factor * 4.0 / math.sqrt(10) * i
            args = f64(1000.0 - 30.0 * i + drift_m), f64(1.0), f64(-30.0), f64(0.0)
            state = update_kinematic(state, float(i), *args, yes(), KinematicLimits(4.0))
        assert bool(state.alarm) is alarm
        assert state.onset_s.tolist() == pytest.approx([0.0 if alarm else math.nan], nan_ok=True)


def test_slope_keeps_its_rate() -> None:
    lanes, n, window, stated = 5000, 150, 20, 0.05
    limits = KinematicLimits(slope_threshold(window, float(n), stated))
    state, alarmed = Kinematic.fresh(lanes, window, "cpu"), torch.zeros(lanes, dtype=torch.bool)
    noise, all_there = 2.0 * draws(lanes, n, seed=2), torch.ones(lanes, dtype=torch.bool)
    two, rate = torch.full((lanes,), 2.0, dtype=F64), torch.full((lanes,), -40.0, dtype=F64)
    for i in range(n):
        range_m = 1000.0 - 4.0 * i + noise[:, i]
        state = update_kinematic(state, 0.1 * i, range_m, two, rate, 0 * rate, all_there, limits)
        alarmed = alarmed | state.alarm
    assert binom.ppf(1e-4, lanes, stated / 4) <= int(alarmed.sum())
    assert int(alarmed.sum()) <= binom.isf(1e-4, lanes, stated)


def test_predicted_rate_by_finite_differences() -> None:
    """A turning beam over a tilted plane."""
    normal = f64(0.2, -0.1, 1.0)
    normal = normal / normal.norm()
    ground, velocity, omega = f64(10.0, 20.0, -5.0), f64(30.0, -12.0, -60.0), f64(0.02, -0.05, 0.01)

    def beam(t: float) -> Tensor:
        start = f64(0.1, 0.2, -1.0)
        turn = torch.linalg.matrix_exp(
            t * torch.linalg.cross(torch.eye(3, dtype=F64), omega.expand(3, 3)).T * -1
        )
        return turn @ (start / start.norm())

    def distance(t: float) -> float:
        p = f64(100.0, -50.0, 800.0) + velocity * t
        return float(normal @ (ground - p) / (normal @ beam(t)))

    turning = (beam(1e-5) - beam(-1e-5)) / 2e-5
    rate = predicted_rate_m_s(
        velocity[None], beam(0.0)[None], normal[None], f64(distance(0.0)), turning[None]
    )
    assert float(rate) == pytest.approx((distance(1e-4) - distance(-1e-4)) / 2e-4, rel=1e-7)
    assert float(torch.linalg.cross(omega, beam(0.0)) @ turning / turning.norm() ** 2) == (
        pytest.approx(1.0, rel=1e-6)
    )


# PX4's baseline -----------------------------------------------------------------------------------


def px4(steps: list[tuple[float, float, float, float]]) -> list[tuple[float, bool]]:
    """RangeFinderConsistencyCheck::update and updateConsistency, line by line (gate 1)."""
    out = []
    last_t = last_d = None
    lpf, consistent, inconsistent_t = 0.0, True, -math.inf
    for t, distance, rate, variance in steps:
        if last_t is None or t - last_t < 1e-3 or t - last_t > 0.5:
            last_t, last_d = t, distance
            out.append((lpf, consistent))
            continue
        dt = t - last_t
        innov = (distance - last_d) / dt - rate
        ratio = innov**2 / (2 * variance / dt**2 + 0.04)
        lpf += dt / (dt + 2.0) * (math.copysign(ratio, innov) - lpf)
        if abs(lpf) >= 1:
            consistent, inconsistent_t = False, t
        elif abs(rate) > 0.5 and ratio < 1 and t - inconsistent_t > 1.0:
            consistent = True
        last_t, last_d = t, distance
        out.append((lpf, consistent))
    return out


def test_ratio_is_px4s() -> None:
    """Drift from 5 to 12 s, a pause, hovering: filtered ratio and flag of 40 s."""
    noise = (0.05 * draws(400, seed=3)).tolist()
    steps, d = [], 500.0
    for i in range(400):
        t = 0.1 * i + (2.0 if i > 250 else 0.0)
        rate = -10.0 if i < 320 else 0.1
        d += 0.1 * (rate + (2.0 if 50 <= i < 120 else 0.0))
        steps.append((t, d + noise[i], rate, 0.01))
    expected = px4(steps)
    assert {c for _, c in expected} == {True, False}
    state = RatioTest.fresh(1, "cpu")
    for (t, d, rate, variance), (lpf, consistent) in zip(steps, expected, strict=True):
        args = f64(d), f64(math.sqrt(variance)), f64(rate), f64(0.2)
        state = update_ratio(state, t, *args, yes(), RatioLimits())
        assert float(state.statistic) == pytest.approx(lpf, rel=1e-9, abs=1e-12)
        assert bool(state.alarm) == (not consistent)
        assert bool(state.onset_s.isnan()) == consistent
