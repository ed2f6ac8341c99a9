"""Streaming tests of an altimeter: stuck readings, unsteady ones, and kinematics.

States, alarms and absent samples as in ``tnav.monitor.detectors``.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from tnav.monitor.detectors import (
    F64,
    CountLimits,
    GateCount,
    Run,
    begun,
    extend,
    pushed,
    undefined,
    update_count,
)

# Stuck --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StuckLimits:
    """Readings repeated, where the ground is predicted to have moved."""

    repeats: int  # n identical readings: n - 1 repetitions of the first
    moved_sigma: float  # ... while the predicted range moved by more than this
    zeros: int  # readings of exactly zero in a row, predicted to be this many sigma from it


@dataclass(frozen=True, slots=True)
class Stuck:
    """Identical valid readings in a row (Luna 25: zeros that were taken as data)."""

    same: Run  # repetitions of ``range_m``
    zeros: Run
    range_m: Float64[Tensor, " b"]  # last valid reading
    expected_m: Float64[Tensor, " b"]  # predicted at the first of the identical ones
    began_s: Float64[Tensor, " b"]  # when that was
    zero: Bool[Tensor, " b"]  # the alarm is on zeros
    alarm: Bool[Tensor, " b"]
    onset_s: Float64[Tensor, " b"]
    statistic: Float64[Tensor, " b"]  # repetitions

    @staticmethod
    def fresh(batch: int, device: torch.device | str) -> "Stuck":
        """No readings yet."""
        no = torch.zeros(batch, dtype=torch.bool, device=device)
        run, unknown = Run.fresh(batch, device), undefined(batch, device)
        return Stuck(run, run, unknown, unknown, unknown, no, no, unknown, no.to(F64))


def update_stuck(
    state: Stuck,
    t_s: float,
    range_m: Float64[Tensor, " b"],
    expected_m: Float64[Tensor, " b"],
    sigma_m: Float64[Tensor, " b"],
    valid: Bool[Tensor, " b"],
    limits: StuckLimits,
) -> Stuck:
    """Takes one epoch.

    Args:
        expected_m: predicted range; without one the epoch counts as absent.
        sigma_m: of the predicted change of range (for zeros: of the prediction).
        valid: the reading is; else its value means nothing.
    """
    there = valid & range_m.isfinite() & expected_m.isfinite() & sigma_m.isfinite()
    same = range_m == state.range_m
    repeated = extend(state.same, t_s, same, there)
    zeros = extend(state.zeros, t_s, range_m == 0, there)
    new = there & ~same
    first_m = torch.where(new, expected_m, state.expected_m)
    began_s = torch.where(new, t_s, state.began_s)
    moved = (expected_m - first_m).abs() > limits.moved_sigma * sigma_m
    off_zero = expected_m.abs() > limits.moved_sigma * sigma_m
    zero = (zeros.length >= limits.zeros) & off_zero
    alarm = torch.where(
        there, ((repeated.length >= limits.repeats - 1) & moved) | zero, state.alarm
    )
    zero = torch.where(there, zero, state.zero)
    onset_s = begun(alarm, state.alarm, state.onset_s, torch.where(zero, zeros.began_s, began_s))
    last_m = torch.where(there, range_m, state.range_m)
    length = repeated.length.to(F64)
    return Stuck(repeated, zeros, last_m, first_m, began_s, zero, alarm, onset_s, length)


# Unsteadiness -------------------------------------------------------------------------------------

TRIPLE = 3  # readings that can bend
_TRIPLE_S = 1.0  # that they may take: ground that is farther apart is not even
_MEDIAN = 0.4549364231195724  # of chi-square of one degree of freedom


@dataclass(frozen=True, slots=True)
class Unsteady:
    """Readings that contradict each other, whatever they are compared with.

    Three in a row, ``x_1 - 2 x_2 + x_3``, lose any error that is steady or grows evenly: of the
    state, of the map, of ground that rises. Where many bend, it is the altimeter (mean square
    successive difference: von Neumann 1941). Triples share no reading, so they are independent.
    """

    held: Int64[Tensor, " b"]  # readings of the triple that have come
    first_s: Float64[Tensor, " b"]  # time of the first of them
    first_m: Float64[Tensor, " b"]  # less what was expected
    first_m2: Float64[Tensor, " b"]  # variance
    second_m: Float64[Tensor, " b"]
    second_m2: Float64[Tensor, " b"]
    bends: Float64[Tensor, "b w"]  # of the last triples, squared, by what noise lets expect
    count: GateCount  # of triples that bend
    alarm: Bool[Tensor, " b"]
    onset_s: Float64[Tensor, " b"]  # end of the first triple that bends
    statistic: Float64[Tensor, " b"]  # triples that bend
    # Noise as it is, by what it should be: of the last triples that bend, by their median.
    noise_scale: Float64[Tensor, " b"]

    @staticmethod
    def fresh(batch: int, window: int, device: torch.device | str) -> "Unsteady":
        """No readings yet."""
        zero = torch.zeros(batch, dtype=F64, device=device)
        count = GateCount.fresh(batch, window, device)
        return Unsteady(
            zero.to(torch.int64), zero, zero, zero, zero, zero,
            torch.zeros_like(count.exceeded), count,
            count.alarm, count.onset_s, count.statistic, zero + 1,
        )  # fmt: skip


def update_unsteady(
    state: Unsteady,
    t_s: float,
    off_m: Float64[Tensor, " b"],
    noise_m: Float64[Tensor, " b"],
    present: Bool[Tensor, " b"],
    limits: CountLimits,
) -> Unsteady:
    """Takes one reading.

    Args:
        off_m: reading minus what is expected.
        noise_m: its noise, 1 sigma, white: sensor and relief under the footprint.
    """
    there = present & off_m.isfinite() & noise_m.isfinite()
    variance = noise_m.square()
    held = torch.where(t_s - state.first_s > _TRIPLE_S, 0, state.held)
    bend_m = off_m - 2 * state.second_m + state.first_m
    nis = bend_m.square() / (variance + 4 * state.second_m2 + state.first_m2)
    whole = there & (held == TRIPLE - 1)
    first, second = there & (held == 0), there & (held == 1)
    count = update_count(state.count, t_s, nis, whole, limits)
    bends = pushed(state.bends, nis, whole)
    bent = torch.where(count.exceeded > 0, bends, math.nan).nanmedian(1).values
    scale = (bent / _MEDIAN).sqrt().clamp_min(1.0)
    return Unsteady(
        torch.where(there, (held + 1) % TRIPLE, held),
        torch.where(first, t_s, state.first_s),
        torch.where(first, off_m, state.first_m),
        torch.where(first, variance, state.first_m2),
        torch.where(second, off_m, state.second_m),
        torch.where(second, variance, state.second_m2),
        bends,
        count,
        count.alarm,
        count.onset_s,
        count.statistic,
        torch.where(scale.isnan(), state.noise_scale, scale),
    )


# Kinematics ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KinematicLimits:
    """Slope of readings against the predicted rate of range."""

    level: float  # sigma
    gap_max_s: float = 2.0  # a longer pause starts the window anew


@dataclass(frozen=True, slots=True)
class Kinematic:
    """Least-squares slope, over a sliding window, of readings minus the integral of their rate."""

    left_m: Float64[Tensor, "b w"]  # reading minus predicted travel
    variance_m2: Float64[Tensor, "b w"]
    times_s: Float64[Tensor, "b w"]
    taken: Int64[Tensor, " b"]
    travel_m: Float64[Tensor, " b"]  # integral of the predicted rate, up to the last reading
    rate_m_s: Float64[Tensor, " b"]  # predicted then
    slope_m_s: Float64[Tensor, " b"]  # rate of readings minus the predicted one; zero until full
    alarm: Bool[Tensor, " b"]
    onset_s: Float64[Tensor, " b"]  # of the window
    statistic: Float64[Tensor, " b"]  # sigma; zero until the window is full

    @staticmethod
    def fresh(batch: int, window: int, device: torch.device | str) -> "Kinematic":
        """No readings yet."""
        none = torch.zeros(batch, window, dtype=F64, device=device)
        no = torch.zeros(batch, dtype=torch.bool, device=device)
        zero, taken = none[:, 0], no.to(torch.int64)
        return Kinematic(
            none, none, none, taken, zero, zero, zero, no, undefined(batch, device), zero
        )


def update_kinematic(
    state: Kinematic,
    t_s: float,
    range_m: Float64[Tensor, " b"],
    sigma_m: Float64[Tensor, " b"],
    rate_m_s: Float64[Tensor, " b"],
    rate_sigma_m_s: Float64[Tensor, " b"],
    present: Bool[Tensor, " b"],
    limits: KinematicLimits,
) -> Kinematic:
    """Takes one reading.

    Args:
        sigma_m: of its noise, white: sensor and relief under the footprint.
        rate_m_s: predicted rate of range along the boresight (negative when closing), with the
            slope of the map and the turn of the beam in it: `predicted_rate_m_s`.
        rate_sigma_m_s: its error, which all of the window shares.
    """
    there = present & range_m.isfinite() & sigma_m.isfinite()
    there = there & rate_m_s.isfinite() & rate_sigma_m_s.isfinite()
    pause_s = t_s - state.times_s[:, 0]
    known = (state.taken > 0) & (pause_s <= limits.gap_max_s)
    moved_m = torch.where(known, 0.5 * pause_s * (rate_m_s + state.rate_m_s), 0.0)
    travel_m = torch.where(there, state.travel_m + moved_m, state.travel_m)
    left_m = pushed(state.left_m, range_m - travel_m, there)
    variance_m2 = pushed(state.variance_m2, sigma_m.square(), there)
    times_s = pushed(state.times_s, torch.full_like(range_m, t_s), there)
    size = left_m.shape[1]
    taken = torch.where(known, (state.taken + 1).clamp_max(size), 1)
    ago_s = times_s - times_s.mean(1, keepdim=True)
    spread = ago_s.square().sum(1).clamp_min(1e-12)  # window not full: the value is not used
    slope = (ago_s * (left_m - left_m[:, :1])).sum(1) / spread
    variance = (ago_s.square() * variance_m2).sum(1) / spread.square() + rate_sigma_m_s.square()
    slope = torch.where(taken == size, slope, 0.0)
    statistic = slope.abs() / variance.sqrt()
    alarm = statistic >= limits.level
    onset_s = begun(alarm, state.alarm, state.onset_s, times_s[:, -1])
    return Kinematic(
        left_m,
        variance_m2,
        times_s,
        torch.where(there, taken, state.taken),
        travel_m,
        torch.where(there, rate_m_s, state.rate_m_s),
        torch.where(there, slope, state.slope_m_s),
        torch.where(there, alarm, state.alarm),
        torch.where(there, onset_s, state.onset_s),
        torch.where(there, statistic, state.statistic),
    )


def predicted_rate_m_s(
    velocity_L: Float64[Tensor, "b 3"],
    beam_L: Float64[Tensor, "b 3"],
    normal_L: Float64[Tensor, "b 3"],
    range_m: Float64[Tensor, " b"],
    beam_rate_L: Float64[Tensor, "b 3"],
) -> Float64[Tensor, " b"]:
    """Rate of the range to a tangent plane, from a moving and turning beam.

    The plane holds ``n . (p + r d - g) = 0``, so ``r' = -n . (v + r d') / (n . d)``.

    Args:
        velocity_L: of the lander, m/s.
        beam_L: unit direction d of the boresight.
        normal_L: of the map where the beam meets it.
        range_m: predicted range r.
        beam_rate_L: d', 1/s: ``omega x d``.
    """
    carried = velocity_L + range_m[:, None] * beam_rate_L
    return -(normal_L * carried).sum(1) / (normal_L * beam_L).sum(1)


@dataclass(frozen=True, slots=True)
class RatioLimits:
    """Settings of the baseline, PX4's own as they are by default."""

    gate: float = 1.0  # sigma
    time_constant_s: float = 2.0  # of the low-pass filter
    gap_max_s: float = 0.5
    speed_min_m_s: float = 0.5  # below it, consistency proves nothing
    hold_s: float = 1.0  # after the last inconsistency


@dataclass(frozen=True, slots=True)
class RatioTest:
    """Baseline: the range finder's consistency check of PX4 EKF2 (RangeFinderConsistencyCheck).

    The signed square of one difference quotient's normalised error, low-pass filtered. It promises
    no false-alarm rate. PX4 lets it pass in horizontal motion, for it knows no terrain; that
    exemption is left out, for a lander is never without.
    """

    range_m: Float64[Tensor, " b"]
    last_s: Float64[Tensor, " b"]  # NaN before the first reading
    inconsistent_s: Float64[Tensor, " b"]  # last time over the limit
    alarm: Bool[Tensor, " b"]
    onset_s: Float64[Tensor, " b"]  # of the alarm: it estimates none
    statistic: Float64[Tensor, " b"]  # signed, filtered; 1 is the limit

    @staticmethod
    def fresh(batch: int, device: torch.device | str) -> "RatioTest":
        """No readings yet."""
        no = torch.zeros(batch, dtype=torch.bool, device=device)
        unknown = undefined(batch, device)
        return RatioTest(unknown, unknown, unknown, no, unknown, no.to(F64))


def update_ratio(
    state: RatioTest,
    t_s: float,
    range_m: Float64[Tensor, " b"],
    sigma_m: Float64[Tensor, " b"],
    rate_m_s: Float64[Tensor, " b"],
    rate_sigma_m_s: Float64[Tensor, " b"],
    present: Bool[Tensor, " b"],
    limits: RatioLimits,
) -> RatioTest:
    """Takes one reading; arguments as of `update_kinematic`."""
    there = present & range_m.isfinite() & sigma_m.isfinite()
    there = there & rate_m_s.isfinite() & rate_sigma_m_s.isfinite()
    step_s = t_s - state.last_s
    usable = there & (step_s >= 1e-3) & (step_s <= limits.gap_max_s)
    error_m_s = (range_m - state.range_m) / step_s - rate_m_s
    variance = 2 * (sigma_m / step_s).square() + rate_sigma_m_s.square()
    ratio = error_m_s.square() / variance / limits.gate**2
    share = step_s / (limits.time_constant_s + step_s)
    filtered = state.statistic + share * (error_m_s.sign() * ratio - state.statistic)
    statistic = torch.where(usable, filtered, state.statistic)
    over = usable & (statistic.abs() >= 1)
    since_s = torch.where(over, t_s, state.inconsistent_s)
    calm = usable & ~over & (ratio < 1) & (rate_m_s.abs() > limits.speed_min_m_s)
    calm = calm & ~(t_s - since_s <= limits.hold_s)
    alarm = over | (state.alarm & ~calm)
    return RatioTest(
        torch.where(there, range_m, state.range_m),
        torch.where(there, t_s, state.last_s),
        since_s,
        alarm,
        begun(alarm, state.alarm, state.onset_s, since_s),
        statistic,
    )
