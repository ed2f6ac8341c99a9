"""Counts, scatter and shifts against brute force, their rates and their delays."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chi2
from torch import Tensor

from tnav.monitor.bounds import count_bound, count_exceedance, scatter_thresholds
from tnav.monitor.detectors import (
    CountLimits,
    GateCount,
    Run,
    Scatter,
    ScatterLimits,
    Shift,
    ShiftLimits,
    extend,
    update_count,
    update_scatter,
    update_shift,
)
from tnav.monitor.statistics import average_run_length, cusum_threshold

F64 = torch.float64
DT_S = 0.1


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def everywhere(batch: int) -> Tensor:
    return torch.ones(batch, dtype=torch.bool)


def ever(steps: Tensor, state: object, update: Callable[[object, float, Tensor], object]) -> Tensor:
    """Which lanes alarm at any of their samples (lanes first, time second)."""
    alarmed = torch.zeros(len(steps), dtype=torch.bool)
    for i in range(steps.shape[1]):
        state = update(state, i * DT_S, steps[:, i])
        alarmed = alarmed | state.alarm
    return alarmed


def assert_rate(alarmed: Tensor, stated: float, share: float = 0.1) -> None:
    """Not above the stated rate, not below a share of it; each wrong by chance once in 10^4."""
    count, lanes = int(alarmed.sum()), len(alarmed)
    assert count <= binom.isf(1e-4, lanes, stated), (count, lanes, stated)
    assert count >= binom.ppf(1e-4, lanes, share * stated), (count, lanes, stated)


samples = st.lists(st.tuples(st.floats(-6, 6), st.booleans()), min_size=1, max_size=40)


# Runs and counts ----------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_run_by_counting(steps: list[tuple[bool, bool]]) -> None:
    run, length, began = Run.fresh(1, "cpu"), 0, math.nan
    for i, (held, present) in enumerate(steps):
        run = extend(run, float(i), torch.tensor([held]), torch.tensor([present]))
        if present:
            began = (float(i) if length == 0 else began) if held else math.nan
            length = length + 1 if held else 0
        assert int(run.length) == length
        assert run.began_s.tolist() == pytest.approx([began], nan_ok=True)


@settings(max_examples=50, deadline=None)
@given(samples, st.integers(1, 6), st.integers(1, 4))
def test_count_by_brute_force(steps: list[tuple[float, bool]], window: int, count: int) -> None:
    state, kept = GateCount.fresh(1, window, "cpu"), []
    alarmed, onset = False, math.nan
    limits = CountLimits(4.0, count)
    for i, (z, present) in enumerate(steps):
        nis = torch.tensor([z * z], dtype=F64)
        state = update_count(state, float(i), nis, torch.tensor([present]), limits)
        if present:
            kept.append((float(i), z * z > 4.0))
        over = [t for t, exceeded in kept[-window:] if exceeded]
        assert float(state.statistic) == len(over)
        assert bool(state.alarm) == (len(over) >= count)
        onset = (onset if alarmed else over[0]) if len(over) >= count else math.nan
        alarmed = len(over) >= count
        assert state.onset_s.tolist() == pytest.approx([onset], nan_ok=True)


def test_count_keeps_its_rate() -> None:
    """3 of 10 and 1 of 10; the second is exact up to (1 - p)^n against n p."""
    lanes, n = 8000, 150
    nis = draws(lanes, n, seed=1).square()
    for count in (1, 3):
        p = count_exceedance(count, 10, float(n), 0.05)
        limits = CountLimits(float(chi2.isf(p, 1)), count)

        def update(s: GateCount, t_s: float, x: Tensor, limits: CountLimits = limits) -> GateCount:
            return update_count(s, t_s, x, everywhere(lanes), limits)

        alarmed = ever(nis, GateCount.fresh(lanes, 10, "cpu"), update)
        assert count_bound(p, count, 10, float(n)) == pytest.approx(0.05)
        assert_rate(alarmed, 0.05, share=0.5)


# Scatter ------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(samples, st.integers(2, 8))
def test_scatter_by_brute_force(steps: list[tuple[float, bool]], window: int) -> None:
    limits = ScatterLimits(high=3.0 * window, low=0.2 * window, one_sample=9.0)
    state, kept = Scatter.fresh(1, window, "cpu"), []
    for i, (z, present) in enumerate(steps):
        nis = torch.tensor([z * z], dtype=F64)
        state = update_scatter(state, float(i), nis, torch.tensor([present]), limits)
        if present:
            kept.append(min(z * z, 9.0))
        total, full = sum(kept[-window:]), len(kept) >= window
        assert float(state.statistic) == pytest.approx(total)
        if min(abs(total - limits.high), abs(total - limits.low)) > 1e-9:
            assert bool(state.inflated) == (full and total >= limits.high)
            assert bool(state.too_quiet) == (full and total <= limits.low)
        assert bool(state.alarm) == bool(state.inflated | state.too_quiet)
        assert bool(state.onset_s.isnan()) != bool(state.alarm)


def test_scatter_just_over_and_under_its_limits() -> None:
    limits = ScatterLimits(high=10.0, low=2.0)
    for value, inflated, quiet in (
        (2.5 - 1e-9, False, False),
        (2.5, True, False),
        (0.5 + 1e-9, False, False),
        (0.5, False, True),
    ):
        state = Scatter.fresh(1, 4, "cpu")
        for i in range(4):
            assert not bool(state.alarm)  # not before the window is full
            nis = torch.full((1,), value, dtype=F64)
            state = update_scatter(state, float(i), nis, everywhere(1), limits)
        assert (bool(state.inflated), bool(state.too_quiet)) == (inflated, quiet)


@pytest.mark.parametrize(("window", "degrees"), [(20, 1), (4, 6)])
@pytest.mark.parametrize("tail", ["high", "low"])
def test_scatter_keeps_its_rate(window: int, degrees: int, tail: str) -> None:
    """Not above the stated rate, not below a tenth of it, each tail on its own."""
    lanes, n, stated = 6000, 200, 0.05
    high, low = scatter_thresholds(window, degrees, float(n), stated, stated)
    limits = ScatterLimits(high, 0.0) if tail == "high" else ScatterLimits(math.inf, low)
    nis = draws(lanes, n, degrees, seed=2).square().sum(-1)

    def update(state: Scatter, t_s: float, x: Tensor) -> Scatter:
        return update_scatter(state, t_s, x, everywhere(lanes), limits)

    assert_rate(ever(nis, Scatter.fresh(lanes, window, "cpu"), update), stated)


def test_scatter_at_the_rate_of_a_descent() -> None:
    """1e-3 of 1,000 samples each, by cumulative sums: 60,000 descents."""
    n, stated, window = 1000, 1e-3, 20
    high, low = scatter_thresholds(window, 1, float(n), stated, stated)
    counts = np.zeros(2)
    for seed in range(30):
        x = draws(2000, n, seed=seed).square().numpy().cumsum(1)
        sums = x[:, window:] - x[:, :-window]
        counts += [(sums >= high).any(1).sum(), (sums <= low).any(1).sum()]
    assert (counts <= binom.isf(1e-4, 60_000, stated)).all(), counts
    assert (counts >= binom.ppf(1e-4, 60_000, stated / 10)).all(), counts


@pytest.mark.parametrize("factor", [3.0, 0.2])
def test_scatter_dates_its_change(factor: float) -> None:
    """Noise that grows threefold at 10 s, or falls to a fifth."""
    lanes, n = 400, 140
    high, low = scatter_thresholds(20, 1, 1000.0, 1e-4, 1e-4)
    z = draws(lanes, n, seed=3)
    z[:, 100:] *= factor
    state, first = Scatter.fresh(lanes, 20, "cpu"), torch.full((lanes,), math.nan, dtype=F64)
    for i in range(n):
        limits = ScatterLimits(high, low)
        state = update_scatter(state, i * DT_S, z[:, i].square(), everywhere(lanes), limits)
        first = torch.where(first.isnan() & state.alarm, state.onset_s, first)
    found = ~first.isnan()
    assert float(found.to(F64).mean()) > 0.99
    error_s = first[found] - 10.0
    assert float(error_s.median().abs()) <= 0.2
    assert float((error_s.abs() < 1.0).to(F64).mean()) > 0.9


# Shifts -------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-6, 6), st.floats(-6, 6), st.booleans()), max_size=40))
def test_shift_is_pages_recursion(steps: list[tuple[float, float, bool]]) -> None:
    """Two components, both signs, capped at the threshold, samples limited."""
    limits = ShiftLimits(0.5, 5.0, 4.0)
    state = Shift.fresh(1, 2, "cpu")
    level = np.zeros((2, 2))
    began = np.full((2, 2), math.nan)
    for i, (*z, present) in enumerate(steps):
        value = torch.tensor([z], dtype=F64)
        state = update_shift(state, float(i), value, torch.tensor([present]), limits)
        if present:
            near = np.clip(np.array(z), -4, 4)
            peak = np.maximum(0, level + np.stack([near, -near]) - 0.5)
            began = np.where(peak > 0, np.where(np.isnan(began), i, began), math.nan)
            level = np.minimum(peak, 5.0)
            assert float(state.statistic) == pytest.approx(peak.max())
            assert bool(state.alarm) == (float(state.statistic) >= 5.0)
            if np.sum(peak == peak.max()) == 1:
                assert int(state.component) == int(np.argmax(peak) % 2)
                assert float(state.sign) == (1 if np.argmax(peak) < 2 else -1)
        assert state.level[0].numpy() == pytest.approx(level)
        assert state.began_s[0].numpy() == pytest.approx(began, nan_ok=True)
        assert bool(state.onset_s.isnan()) != bool(state.alarm)


def test_shift_just_under_and_over_its_level() -> None:
    limits = ShiftLimits(0.5, 4.5)
    for z, alarm in ((-2.0, True), (-2.0 + 1e-9, False), (2.0, True), (2.0 - 1e-9, False)):
        state = Shift.fresh(1, 1, "cpu")
        for i in range(3):
            assert not bool(state.alarm)
            one = torch.full((1, 1), z, dtype=F64)
            state = update_shift(state, 1.0 + i, one, everywhere(1), limits)
        assert bool(state.alarm) is alarm
        assert state.onset_s.tolist() == pytest.approx([1.0 if alarm else math.nan], nan_ok=True)


def test_shift_ends_soon_after_the_fault() -> None:
    """Capped at h = 5, k = 0.5: ten samples of zero lead back to zero, whatever was before."""
    state, limits = Shift.fresh(1, 1, "cpu"), ShiftLimits(0.5, 5.0)
    for i in range(1000):
        state = update_shift(state, float(i), draws(1, 1) * 0 + 50.0, everywhere(1), limits)
    alarms = []
    for i in range(10):
        state = update_shift(state, 1000.0 + i, draws(1, 1) * 0, everywhere(1), limits)
        alarms.append(bool(state.alarm))
    assert not any(alarms)
    assert float(state.statistic) == 0.0


def test_shift_keeps_its_rate() -> None:
    lanes, n, components = 5000, 200, 3
    h = cusum_threshold(0.5, float(n), 0.05 / components)
    limits = ShiftLimits(0.5, h, 0.5 + h / 2.5)
    z = draws(lanes, n, components, seed=4)

    def update(state: Shift, t_s: float, x: Tensor) -> Shift:
        return update_shift(state, t_s, x, everywhere(lanes), limits)

    assert_rate(ever(z, Shift.fresh(lanes, components, "cpu"), update), 0.05, share=0.5)


@pytest.mark.parametrize(("sigma", "published"), [(1.0, 29.0), (2.0, 10.0)])
def test_shift_delay(sigma: float, published: float) -> None:
    """h = 14.2, k = 0.5: one sigma in about 29 samples, two in about 10; the onset is right."""
    lanes, n, before = 2000, 160, 40
    z = draws(lanes, n, 1, seed=5)
    z[:, before:] += sigma
    state = Shift.fresh(lanes, 1, "cpu")
    delay = torch.full((lanes,), math.nan, dtype=F64)
    onset = delay
    for i in range(n):
        state = update_shift(state, float(i), z[:, i], everywhere(lanes), ShiftLimits(0.5, 14.2))
        new = state.alarm & delay.isnan()
        delay = torch.where(new, i - before + 1, delay)
        onset = torch.where(new, state.onset_s, onset)
    assert not bool(delay.isnan().any())
    # Head start from before the change: at most the mean level in control, about one sample.
    mean, error = float(delay.mean()), float(delay.std()) / math.sqrt(lanes)
    theory = average_run_length(0.5, 14.2, sigma)
    assert theory == pytest.approx(published, rel=0.06)
    assert theory - 1.5 / (sigma - 0.5) - 4 * error < mean < theory + 4 * error
    assert float((onset - before).median().abs()) <= 2
