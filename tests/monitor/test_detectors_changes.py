"""Likelihood ratios of jumps and ramps against brute force, their rates, sizes and onsets."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor

from tnav.monitor.bounds import jump_threshold, ramp_threshold
from tnav.monitor.changes import ChangeLimits, ChangeWindow, update_change

F64 = torch.float64
DT_S = 0.1


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def brute_force(
    t: list[float], x: list[float], sigma: list[float], window: int, ramp: bool, limit: float
) -> tuple[float, float, float]:
    """Largest ratio, its size and its onset, by least squares from each onset."""
    best = (0.0, 0.0, t[-1])
    for j in range(len(t) - 1, max(-1, len(t) - 1 - window), -1):
        top = clipped = bottom = 0.0
        for i in range(j, len(t)):
            phi = (t[i] - t[j] if ramp else 1.0) / sigma[i]
            z = x[i] / sigma[i]
            top += z * phi
            clipped += min(max(z, -limit), limit) * phi
            bottom += phi * phi
        if bottom > 0 and clipped**2 / (2 * bottom) > best[0]:
            best = (clipped**2 / (2 * bottom), top / bottom, t[j])
    return best


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-40, 40), st.floats(0.5, 4), st.booleans()), min_size=1, max_size=25
    ),
    st.integers(2, 9),
)
def test_changes_by_brute_force(steps: list[tuple[float, float, bool]], window: int) -> None:
    limits = ChangeLimits(12.0, 15.0, evidence=3.0)
    assert limits.one_sample == pytest.approx(math.sqrt(24 / 2.5))
    state = ChangeWindow.fresh(1, window, "cpu")
    t: list[float] = []
    x: list[float] = []
    s: list[float] = []
    for i, (value, sigma, present) in enumerate(steps):
        t_s = 100.0 + 0.3 * i
        args = torch.tensor([value], dtype=F64), torch.tensor([sigma], dtype=F64)
        state = update_change(state, t_s, *args, torch.tensor([present]), limits)
        if present:
            t.append(t_s)
            x.append(value)
            s.append(sigma)
        if not t:
            continue
        for found, ramp, level in ((state.jump, False, 12.0), (state.ramp, True, 15.0)):
            ratio, size, onset = brute_force(t, x, s, window, ramp, limits.one_sample)
            assert float(found.statistic) == pytest.approx(ratio, rel=1e-9, abs=1e-9)
            if ratio > 1e-6:
                assert float(found.size) == pytest.approx(size, rel=1e-7, abs=1e-9)
            if abs(ratio - level) > 1e-6:
                assert bool(found.alarm) == (ratio >= level)
            if bool(found.alarm) and len(t) <= window:
                assert float(found.onset_s) == pytest.approx(onset)


def alarms(z: Tensor, window: int, limits: ChangeLimits) -> tuple[int, int]:
    """Lanes that ever alarm: on jumps, on ramps."""
    lanes = len(z)
    state = ChangeWindow.fresh(lanes, window, "cpu")
    jump = ramp = torch.zeros(lanes, dtype=torch.bool)
    one, yes = torch.ones(lanes, dtype=F64), torch.ones(lanes, dtype=torch.bool)
    for i in range(z.shape[1]):
        state = update_change(state, i * DT_S, z[:, i], one, yes, limits)
        jump, ramp = jump | state.jump.alarm, ramp | state.ramp.alarm
    return int(jump.sum()), int(ramp.sum())


@pytest.mark.parametrize("evidence", [1.0, 3.0])
def test_changes_keep_their_rate(evidence: float) -> None:
    """Not above the stated rate, not below a third of it, each wrong by chance once in 10^4."""
    lanes, n, window, stated = 3000, 150, 32, 0.05
    limits = ChangeLimits(
        jump_threshold(window, float(n), stated), ramp_threshold(window, float(n), stated), evidence
    )
    for count in alarms(draws(lanes, n, seed=1), window, limits):
        assert count <= binom.isf(1e-4, lanes, stated)
        assert count >= binom.ppf(1e-4, lanes, stated / 3)


def test_jumps_at_the_rate_of_a_descent() -> None:
    """1e-3 of 1,000 samples and a window of 64, by cumulative sums: 16,000 descents."""
    n, window, stated, lanes = 1000, 64, 1e-3, 16_000
    limit = math.sqrt(2 * jump_threshold(window, float(n), stated))
    count = 0
    for seed in range(lanes // 500):
        sums = np.zeros((500, n + 1), dtype=np.float32)
        sums[:, 1:] = draws(500, n, seed=seed).numpy().cumsum(1)
        over = np.zeros(500, dtype=bool)
        for length in range(1, window + 1):
            most = np.abs(sums[:, length:] - sums[:, :-length]).max(1)
            over |= most >= limit * math.sqrt(length)
        count += int(over.sum())
    assert 0 < count <= binom.isf(1e-4, lanes, stated), count  # half of it, 8, where measured


@pytest.mark.parametrize("ramp", [False, True])
def test_size_and_onset_of_a_change(ramp: bool) -> None:
    """A jump of 20 m, or 8 m/s, under 10 m of noise at 12 s, read 4 s later.

    The size's sigma is Cramer-Rao's, with the onset known for the jump (it is one of few samples)
    and estimated beside it for the ramp: the slope of a line with an intercept.
    """
    lanes, window, before, after = 1500, 64, 120, 40
    n = before + after
    limits = ChangeLimits(jump_threshold(64, 1000.0, 1e-4), ramp_threshold(64, 1000.0, 1e-4), 3.0)
    t = torch.arange(n, dtype=F64) * DT_S
    size = 8.0 if ramp else 20.0
    shape = (t - 12.0).clamp_min(0.0) if ramp else (t > 12.0 - 1e-9).to(F64)
    value = 10.0 * draws(lanes, n, seed=7) + size * shape
    state = ChangeWindow.fresh(lanes, window, "cpu")
    ten, yes = torch.full((lanes,), 10.0, dtype=F64), torch.ones(lanes, dtype=torch.bool)
    for i in range(n):
        state = update_change(state, float(t[i]), value[:, i], ten, yes, limits)
    found = state.ramp if ramp else state.jump
    assert float(found.alarm.to(F64).mean()) > 0.99
    error = (found.size - size)[found.alarm]
    there = shape[before:] - (shape[before:].mean() if ramp else 0.0)
    bound = 10.0 / math.sqrt(float(there.square().sum()))
    assert 0.9 * bound < float(error.std()) < 1.5 * bound
    assert abs(float(error.median())) < 0.5 * bound
    late_s = (found.onset_s - 12.0)[found.alarm]
    assert abs(float(late_s.median())) <= (0.3 if ramp else 0.1)
    assert float((late_s.abs() < 1.5).to(F64).mean()) > 0.95


def test_onset_is_kept_when_the_window_has_passed_it() -> None:
    limits = ChangeLimits(15.0, 15.0)
    state = ChangeWindow.fresh(1, 8, "cpu")
    one, yes = torch.ones(1, dtype=F64), torch.ones(1, dtype=torch.bool)
    for i in range(60):
        value = torch.full((1,), 4.0 if i >= 20 else 0.0, dtype=F64)
        state = update_change(state, float(i), value, one, yes, limits)
        assert bool(state.jump.alarm) == (i >= 21)  # 16 n / 2 >= 15 with n = 2
        if i >= 21:
            assert float(state.jump.onset_s) == 20.0
            assert float(state.jump.size) == pytest.approx(4.0)
    for i in range(60, 70):
        state = update_change(state, float(i), 0 * one, one, yes, limits)
    assert not bool(state.jump.alarm)
    assert bool(state.jump.onset_s.isnan())


def test_fewer_samples_than_the_evidence_raise_nothing() -> None:
    """Two of 1e6 sigma do not, the third does; its size is of what was read."""
    limits = ChangeLimits(16.0, 16.0, evidence=3.0)
    state = ChangeWindow.fresh(1, 16, "cpu")
    one, yes = torch.ones(1, dtype=F64), torch.ones(1, dtype=torch.bool)
    for i in range(10):
        value = torch.full((1,), 1e6 if i >= 7 else 0.0, dtype=F64)
        state = update_change(state, float(i), value, one, yes, limits)
        assert bool(state.jump.alarm) == (i == 9)
    assert float(state.jump.size) == pytest.approx(1e6)
    assert float(state.jump.onset_s) == 7.0


def test_a_jump_just_under_and_over_its_threshold() -> None:
    for factor, alarm in ((1 - 1e-9, False), (1 + 1e-9, True)):
        state = ChangeWindow.fresh(1, 4, "cpu")
        yes = torch.ones(1, dtype=torch.bool)
        value = torch.full((1,), 3.0 * math.sqrt(24.0) * factor, dtype=F64)
        sigma = torch.full((1,), 3.0, dtype=F64)
        state = update_change(state, 0.0, value, sigma, yes, ChangeLimits(12.0, 12.0))
        assert bool(state.jump.alarm) is alarm
        assert not bool(state.ramp.alarm)  # one sample has no slope
