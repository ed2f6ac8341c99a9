"""Bounds against closed forms, enumeration and simulation; rates that add up."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.integrate import quad
from scipy.stats import binom, chi2, norm

from tnav.errors import ConfigError
from tnav.monitor.bounds import (
    change_bound,
    count_bound,
    count_exceedance,
    count_threshold,
    jump_shapes,
    jump_threshold,
    ramp_shapes,
    ramp_threshold,
    repeat_chance,
    run_threshold,
    scatter_thresholds,
    slope_threshold,
    upper_quantile,
    upper_tail,
)
from tnav.monitor.statistics import cusum_threshold, likelihood_threshold
from tnav.monitor.thresholds import (
    DescentSamples,
    Rates,
    SensorTuning,
    Shares,
    Tuning,
    scatter_limits,
    thresholds,
)

SAMPLES = DescentSamples(altimeter=1000, vision=30, star_tracker=300, inertial=10_000)


@pytest.mark.parametrize("probability", [0.49, 1e-3, 1e-9, 1e-200])
def test_normal_quantile(probability: float) -> None:
    level = upper_quantile(probability)
    assert level == pytest.approx(norm.isf(probability), rel=1e-9)
    assert upper_tail(level) == pytest.approx(probability, rel=1e-9)


def test_what_happens_more_often_than_not_needs_no_margin() -> None:
    assert upper_quantile(0.5) == 0.0
    assert upper_quantile(3.0) == 0.0
    with pytest.raises(ConfigError, match="expected above 0"):
        upper_quantile(0.0)


# Counts and runs ----------------------------------------------------------------------------------


def exact_count_probability(p: float, count: int, window: int, samples: int) -> float:
    """P(some window has so many), over all sequences."""
    total = 0.0
    for bits in itertools.product((0, 1), repeat=samples):
        sums = [sum(bits[max(0, i - window + 1) : i + 1]) for i in range(samples)]
        if max(sums) >= count:
            ones = sum(bits)
            total += p**ones * (1 - p) ** (samples - ones)
    return total


@pytest.mark.parametrize(("count", "window"), [(1, 4), (2, 3), (3, 5), (4, 4)])
def test_count_bound_against_enumeration(count: int, window: int) -> None:
    """A bound, and by no more than the clumps of exceedances and the start of the sequence."""
    for p in (0.002, 0.02):
        exact = exact_count_probability(p, count, window, 12)
        assert exact <= count_bound(p, count, window, 12.0) < 2 * exact


def test_count_threshold_is_the_least_that_keeps_the_rate() -> None:
    m = count_threshold(0.01, 20, 1000.0, 1e-3)
    # n p P(Binomial(19, p) >= m - 1)
    bounds = [1000 * 0.01 * binom.sf(k - 2, 19, 0.01) for k in (m - 1, m)]
    assert bounds[0] > 1e-3 >= bounds[1]
    assert count_bound(0.01, m, 20, 1000.0) == pytest.approx(bounds[1], rel=1e-9)
    with pytest.raises(ConfigError, match="expected a longer window or a wider gate"):
        count_threshold(0.5, 4, 1000.0, 1e-3)
    with pytest.raises(ConfigError, match="count 5 of 4 samples"):
        count_bound(0.1, 5, 4, 10.0)


@pytest.mark.parametrize(("count", "window"), [(1, 1), (5, 20), (3, 6), (6, 6)])
def test_count_exceedance_uses_the_rate_up(count: int, window: int) -> None:
    p = count_exceedance(count, window, 500.0, 1e-4)
    assert count_bound(p, count, window, 500.0) == pytest.approx(1e-4, rel=1e-6)


def test_run_threshold_from_both_sides() -> None:
    n = run_threshold(0.01, 1000.0, 1e-4)
    assert 1000 * 0.01**n <= 1e-4 < 1000 * 0.01 ** (n - 1)
    assert run_threshold(1e-9, 10.0, 0.5) == 1
    with pytest.raises(ConfigError, match="expected in"):
        run_threshold(1.0, 10.0, 0.5)


def test_repeated_readings_by_simulation() -> None:
    """Rounding to 0.1 with a sigma of 0.1: the next reading is the same with at most 38.3 %."""
    bound = repeat_chance(0.1, 0.1)
    assert bound == pytest.approx(2 * norm.cdf(0.5) - 1)
    rng = np.random.default_rng(0)
    cells = np.round((rng.uniform(size=(200_000, 1)) + 0.1 * rng.normal(size=(200_000, 2))) / 0.1)
    same = float((cells[:, 0] == cells[:, 1]).mean())
    assert 0.5 * bound < same < bound
    with pytest.raises(ConfigError, match="expected above 0"):
        repeat_chance(0.1, 0.0)


# Windows of chi-square ----------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "degrees"), [(2, 1), (20, 1), (4, 6), (10, 3)])
def test_scatter_thresholds_solve_the_crossing_equation(window: int, degrees: int) -> None:
    """The integral again, by adaptive quadrature over both samples that differ."""
    n, p = 500.0, 1e-3
    high, low = scatter_thresholds(window, degrees, n, p, p)
    assert low < window * degrees < high
    for level, inside in ((high, chi2.sf), (low, chi2.cdf)):

        def crossing(x: float, level: float = level) -> float:
            # c = x^2: the root at c = 0 is no trouble then.
            density, own = chi2.pdf(x * x, (window - 1) * degrees), level - x * x
            return density * chi2.sf(own, degrees) * chi2.cdf(own, degrees) * 2 * x

        crossings = quad(crossing, 1e-9, math.sqrt(level), limit=400, epsabs=1e-13)[0]
        total = inside(level, window * degrees) + (n - window) * crossings
        assert total == pytest.approx(p, rel=1e-4)


def test_overlap_costs_less_than_independent_looks() -> None:
    """Bonferroni's thresholds are wider; those of a single window are not as wide."""
    high, low = scatter_thresholds(20, 1, 1000.0, 1e-4, 1e-4)
    assert chi2.isf(1e-4, 20) < high < chi2.isf(1e-4 / 981, 20)
    assert chi2.ppf(1e-4 / 981, 20) < low < chi2.ppf(1e-4, 20)
    one, _ = scatter_thresholds(20, 1, 20.0, 1e-4, 1e-4)
    assert one == pytest.approx(chi2.isf(1e-4, 20), rel=1e-9)


def test_one_wild_sample_is_no_scatter() -> None:
    tuning = SensorTuning(count=2, count_window=4, scatter_window=20, evidence=3)
    limits = scatter_limits(tuning, 1000.0, 1, 1e-4, 1e-4)
    others = 17.0  # their mean
    assert 2 * limits.one_sample + others < limits.high <= 3 * limits.one_sample + others
    assert limits.one_sample > limits.low
    free = tuning.model_copy(update={"evidence": 1})
    assert scatter_limits(free, 1000.0, 1, 1e-4, 1e-4).one_sample == math.inf


def test_impossible_windows() -> None:
    with pytest.raises(ConfigError, match="window 1 of 3 degrees"):
        scatter_thresholds(1, 3, 10.0, 0.1, 0.1)
    with pytest.raises(ConfigError, match="window 2 of a slope"):
        slope_threshold(2, 10.0, 0.1)
    with pytest.raises(ConfigError, match="window 1 of a ramp"):
        ramp_threshold(1, 10.0, 0.1)


# Unknown onset ------------------------------------------------------------------------------------


def both_segments(length: int, ramp: bool) -> np.ndarray:
    """Normalised weights of a segment, the one that begins later, the one that ends earlier."""
    shape = np.arange(length) if ramp else np.ones(length)
    rows = np.zeros((3, length))
    rows[0], rows[1, 1:], rows[2, :-1] = shape, shape[:-1], shape[:-1]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("ramp", [False, True])
@pytest.mark.parametrize("level", [2.0, 4.0])
def test_change_bound_against_a_trivariate_normal(level: float, ramp: bool) -> None:
    """The probability of a crossing in both directions, by simulation of its three segments.

    Importance: the segment's own sum is drawn over the level, where it has to be.
    """
    rng = np.random.default_rng(1)
    shapes = ramp_shapes(9) if ramp else jump_shapes(9)
    for index, length in enumerate(range(3, 10) if ramp else range(2, 10)):
        rows = both_segments(length, ramp)
        gram = rows @ rows.T
        assert shapes[index] == pytest.approx(gram[0, 1:])
        beside = gram[1:, 1:] - np.outer(gram[0, 1:], gram[0, 1:])
        assert beside[0, 1] <= 1e-12  # Slepian's condition
        y = norm.isf(rng.uniform(size=100_000) * norm.sf(level))
        root = np.linalg.cholesky(beside + 1e-12 * np.eye(2))
        others = y[:, None] * gram[0, 1:] + rng.normal(size=(100_000, 2)) @ root.T
        exact = 2 * norm.sf(level) * float((others < level).all(1).mean())
        bound = change_bound(level, shapes[index : index + 1], 1.0) - 2 * norm.sf(level)
        # Slepian's step costs most for short segments, whose neighbours share little.
        assert 0.97 * exact < bound < 1.5 * exact


def test_change_thresholds_lie_between_one_look_and_all_of_them() -> None:
    """A window of one is a plain two-sided test of each sample; longer ones cost more."""
    n, p = 1000.0, 1e-4
    single = 0.5 * norm.isf(p / n / 2) ** 2
    assert jump_threshold(1, n, p) == pytest.approx(single)
    assert ramp_threshold(2, n, p) == pytest.approx(single)
    every = 0.5 * norm.isf(p / n / 64 / 2) ** 2
    assert single < jump_threshold(64, n, p) < every
    assert single < ramp_threshold(64, n, p) < every


def test_slope_threshold_of_one_window_is_two_sided() -> None:
    assert slope_threshold(20, 20.0, 1e-3) == pytest.approx(norm.isf(5e-4), rel=1e-9)
    many = slope_threshold(20, 1000.0, 1e-3)
    assert norm.isf(5e-4) < many < norm.isf(5e-4 / 981)


@settings(max_examples=12, deadline=None)
@given(st.floats(-8, -1), st.sampled_from([3, 8, 20, 64]), st.sampled_from([50.0, 1000.0, 9000.0]))
def test_rarer_alarms_need_higher_thresholds(exponent: float, window: int, n: float) -> None:
    p = 10**exponent
    for threshold in (jump_threshold, ramp_threshold, slope_threshold):
        assert threshold(window, n, p / 10) > threshold(window, n, p)
        assert threshold(window, 2 * n + 100, p) > threshold(window, n, p)
    high, low = scatter_thresholds(window, 3, n, p, p)
    higher, lower = scatter_thresholds(window, 3, n, p / 10, p / 10)
    assert higher > high > low > lower > 0


# Rates --------------------------------------------------------------------------------------------


def test_shares_sum_to_one() -> None:
    assert sum(Shares().model_dump().values()) == pytest.approx(1)
    with pytest.raises(ValidationError, match=r"shares sum to 1\.05, expected 1"):
        Shares(gate=0.1)
    Shares(gate=0.1, inflation=0.05)
    with pytest.raises(ValidationError, match="greater than 0"):
        Shares(gate=0.0, inflation=0.15)
    with pytest.raises(ValidationError, match="less than 1"):
        Rates(false_alarm_probability=1.0)


def test_every_limit_is_of_its_share() -> None:
    """Each threshold again by its own function, at its share of a descent's probability."""
    rates, tuning = Rates(false_alarm_probability=2e-3), Tuning()
    limits = thresholds(rates, SAMPLES, tuning)
    n, half = 1000.0, 1e-3
    for sensor, own, samples, m in (
        (limits.altimeter, tuning.altimeter, n, 1),
        (limits.vision, tuning.vision, 30.0, 6),
    ):
        exceedance = float(chi2.sf(sensor.count.gate, m))
        bound = count_bound(exceedance, own.count, own.count_window, samples)
        assert bound == pytest.approx(half * 0.05, rel=1e-5)
        assert (sensor.scatter.high, sensor.scatter.low) == scatter_thresholds(
            own.scatter_window, m, samples, half * 0.10, half * 0.05
        )
        assert sensor.scatter.degrees == m
        assert sensor.shift.level == cusum_threshold(0.5, samples, half * 0.10 / m)
    assert limits.change.jump == jump_threshold(64, n, 2e-4)
    assert limits.change.ramp == ramp_threshold(64, n, 2e-4)
    assert limits.kinematic.level == slope_threshold(20, n, 1e-4)
    assert limits.absence.level == likelihood_threshold(n, 1e-4)
    assert limits.blindness.level == likelihood_threshold(30.0, 1e-4)
    assert limits.unfused.run == 10  # of 1e-20: as many as the tuning asks for at least
    short = thresholds(rates, SAMPLES, Tuning(unfused_least=1)).unfused.run
    assert n * 0.01**short <= 1e-4 < n * 0.01 ** (short - 1)
    assert n * repeat_chance(0.01, 0.1) ** (limits.stuck.repeats - 1) <= 5e-5
    assert 1e4 * 1e-3**limits.inertial.saturated <= 5e-5
    assert 1e4 * 1e-3**limits.inertial.zeros <= 5e-5
    assert limits.star_tracker.level == cusum_threshold(0.5, 300.0, 1e-4 / 3)


def test_an_altimeter_that_works_better_when_it_fails() -> None:
    with pytest.raises(ConfigError, match="expected 0 < faulty < healthy < 1"):
        thresholds(Rates(), SAMPLES, Tuning(faulty_detection_probability=0.99))
