"""From the probability that a healthy descent raises any alarm to every detector's limits.

``P_FA = sum of share_i P_FA``: the union of all detectors, each with its own explicit share, so
that the whole promise is kept whatever the dependence between them. Where one detector watches
several sensors or components its share is split evenly again.
"""

import math
from dataclasses import dataclass

from pydantic import Field, model_validator

from tnav.config import Recipe
from tnav.monitor.absence_checks import AbsenceLimits, UnfusedLimits
from tnav.monitor.altimeter_checks import TRIPLE, KinematicLimits, StuckLimits
from tnav.monitor.bounds import (
    count_exceedance,
    jump_threshold,
    ramp_threshold,
    repeat_chance,
    run_threshold,
    scatter_thresholds,
    slope_threshold,
)
from tnav.monitor.changes import ChangeLimits
from tnav.monitor.detectors import CountLimits, ScatterLimits, ShiftLimits
from tnav.monitor.inertial_checks import InertialLimits
from tnav.monitor.statistics import (
    absence_increments,
    chi_square_quantile,
    cusum_threshold,
    likelihood_threshold,
)

_SUM_TOLERANCE = 1e-9  # shares are written in decimals
_VISION_DEGREES = 6
_STAR_COMPONENTS = 3


class Shares(Recipe):
    """How the false-alarm probability of a descent is split; they sum to 1."""

    gate: float = Field(default=0.05, gt=0)  # altimeter and vision, half each, and so for ...
    inflation: float = Field(default=0.10, gt=0)
    quiet: float = Field(default=0.05, gt=0)
    shift: float = Field(default=0.10, gt=0)  # ... up to here
    jump: float = Field(default=0.10, gt=0)
    ramp: float = Field(default=0.10, gt=0)
    stuck: float = Field(default=0.05, gt=0)
    unsteady: float = Field(default=0.05, gt=0)
    kinematic: float = Field(default=0.05, gt=0)
    separation: float = Field(default=0.10, gt=0)  # of ranges from what vision predicts
    absence: float = Field(default=0.05, gt=0)
    blindness: float = Field(default=0.05, gt=0)
    unfused: float = Field(default=0.05, gt=0)
    inertial: float = Field(default=0.05, gt=0)  # saturation and zeros, half each
    star_tracker: float = Field(default=0.05, gt=0)

    @model_validator(mode="after")
    def _sum_to_one(self) -> "Shares":
        total = sum(getattr(self, name) for name in type(self).model_fields)
        if abs(total - 1) > _SUM_TOLERANCE:
            raise ValueError(f"shares sum to {total:.6g}, expected 1")
        return self


class Rates(Recipe):
    """How often a healthy descent may alarm."""

    false_alarm_probability: float = Field(default=1e-3, gt=0, lt=1)  # any alarm, per descent
    shares: Shares = Shares()


class DescentSamples(Recipe):
    """How often a descent looks: samples of each sensor while it is watched."""

    altimeter: int = Field(gt=0)
    vision: int = Field(gt=0)
    star_tracker: int = Field(gt=0)
    inertial: int = Field(gt=0)


class SensorTuning(Recipe):
    """What one sensor's innovations are tested for; no part of the false-alarm rate."""

    count: int = Field(gt=0)  # exceedances ...
    count_window: int = Field(gt=0)  # ... among so many samples
    scatter_window: int = Field(ge=2)
    evidence: int = Field(gt=0)  # fewer samples raise no alarm, however wild
    reference: float = Field(default=0.5, gt=0)  # k: soonest for a lasting shift of 2 k sigma


class Tuning(Recipe):
    """What each detector is looking for; thresholds follow from it and the rates."""

    altimeter: SensorTuning = SensorTuning(count=5, count_window=20, scatter_window=20, evidence=3)
    vision: SensorTuning = SensorTuning(count=3, count_window=6, scatter_window=4, evidence=2)
    change_window: int = Field(default=64, ge=2)
    kinematic_window: int = Field(default=20, ge=3)
    # Innovations of ranges in a row are not quite white: slopes of a map seen from a place that is
    # a metre off. Sums of them spread by up to so much more (`tnav bench monitor` measures it).
    overbound: float = Field(default=1.3, ge=1)
    unsteady_count: int = Field(default=4, gt=0)  # triples of ranges that bend, ...
    unsteady_window: int = Field(default=10, gt=0)  # ... among so many
    unsteady_sigma: float = Field(default=4.0, gt=0)  # by this at least: ground bends a little, too
    star_reference: float = Field(default=0.5, gt=0)
    star_evidence: int = Field(default=3, gt=0)
    # Of the altimeter's specification: at least this noise, rounded to this.
    range_noise_m: float = Field(default=0.1, gt=0)
    range_resolution_m: float = Field(default=0.01, gt=0)
    stuck_moved_sigma: float = Field(default=6.0, gt=0)
    detection_probability: float = Field(default=0.99, gt=0, lt=1)
    faulty_detection_probability: float = Field(default=0.1, gt=0, lt=1)
    # Of images that were asked for, those that give a fix: well, and of a camera that fails.
    fix_probability: float = Field(default=0.97, gt=0, lt=1)
    faulty_fix_probability: float = Field(default=0.3, gt=0, lt=1)
    permanent_s: float = Field(default=30.0, gt=0)
    # An independent estimate agrees with a range within this; the filter's gate then rejects it by
    # chance with at most this probability. A gate that waits for another sensor's word rejects in
    # runs: so many in a row are the least that count, 1 s of ranges.
    agrees_below_sigma: float = Field(default=3.0, gt=0)
    rejection_probability: float = Field(default=1e-2, gt=0, lt=1)
    unfused_least: int = Field(default=10, gt=0)
    # Of the inertial unit, and how likely a healthy step is at a limit, or reads zero, by chance.
    specific_force_max_m_s2: float = Field(default=50.0, gt=0)
    rate_max_rad_s: float = Field(default=math.radians(100.0), gt=0)
    saturated_probability: float = Field(default=1e-3, gt=0, lt=1)
    zero_probability: float = Field(default=1e-3, gt=0, lt=1)


@dataclass(frozen=True, slots=True)
class SensorLimits:
    """Limits on one sensor's innovations."""

    count: CountLimits
    scatter: ScatterLimits
    shift: ShiftLimits


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Limits of all detectors, on the host."""

    altimeter: SensorLimits
    vision: SensorLimits
    change: ChangeLimits
    stuck: StuckLimits
    unsteady: CountLimits
    kinematic: KinematicLimits
    absence: AbsenceLimits
    blindness: AbsenceLimits  # images without a fix
    unfused: UnfusedLimits
    inertial: InertialLimits
    star_tracker: ShiftLimits


def thresholds(rates: Rates, samples: DescentSamples, tuning: Tuning | None = None) -> Thresholds:
    """Limits that keep the rates, each by the bound that its function derives.

    Raises:
        ConfigError: a tuning that no threshold fits, such as a faulty altimeter that detects more.
    """
    tuning = tuning or Tuning()
    total, shares = rates.false_alarm_probability, rates.shares
    n = float(samples.altimeter)
    seen, missed = absence_increments(
        tuning.detection_probability, tuning.faulty_detection_probability
    )
    fix, no_fix = absence_increments(tuning.fix_probability, tuning.faulty_fix_probability)
    images = float(samples.vision)
    return Thresholds(
        altimeter=sensor_limits(rates, tuning.altimeter, n, 1),
        vision=sensor_limits(rates, tuning.vision, float(samples.vision), _VISION_DEGREES),
        change=ChangeLimits(
            jump_threshold(tuning.change_window, n, total * shares.jump),
            ramp_threshold(tuning.change_window, n, total * shares.ramp),
            float(tuning.altimeter.evidence),
        ),
        stuck=stuck_limits(tuning, n, total * shares.stuck),
        unsteady=unsteady_limits(tuning, n, total * shares.unsteady),
        kinematic=KinematicLimits(
            slope_threshold(tuning.kinematic_window, n, total * shares.kinematic)
        ),
        absence=AbsenceLimits(
            seen, missed, likelihood_threshold(n, total * shares.absence), tuning.permanent_s
        ),
        blindness=AbsenceLimits(
            fix,
            no_fix,
            likelihood_threshold(images, total * shares.blindness),
            tuning.permanent_s,
        ),
        unfused=UnfusedLimits(
            tuning.agrees_below_sigma,
            max(
                tuning.unfused_least,
                run_threshold(tuning.rejection_probability, n, total * shares.unfused),
            ),
        ),
        inertial=inertial_limits(tuning, float(samples.inertial), total * shares.inertial),
        star_tracker=shift_limits(
            tuning.star_reference,
            float(samples.star_tracker),
            total * shares.star_tracker,
            _STAR_COMPONENTS,
            tuning.star_evidence,
        ),
    )


def sensor_limits(rates: Rates, tuning: SensorTuning, samples: float, degrees: int) -> SensorLimits:
    """Limits of count, scatter and shift of one of the two sensors that share them."""
    half, shares = rates.false_alarm_probability / 2, rates.shares
    exceedance = count_exceedance(tuning.count, tuning.count_window, samples, half * shares.gate)
    return SensorLimits(
        CountLimits(chi_square_quantile(exceedance, degrees), tuning.count),
        scatter_limits(tuning, samples, degrees, half * shares.inflation, half * shares.quiet),
        shift_limits(tuning.reference, samples, half * shares.shift, degrees, tuning.evidence),
    )


def scatter_limits(
    tuning: SensorTuning, samples: float, degrees: int, high: float, low: float
) -> ScatterLimits:
    """Windowed chi-square, by up-crossings of overlapping windows (``scatter_thresholds``).

    One sample counts no more than what makes ``evidence`` of them, over the mean of the others, an
    alarm; that only lowers the rate of the upper limit, and lies above the lower one.
    """
    window = tuning.scatter_window
    highest, lowest = scatter_thresholds(window, degrees, samples, high, low)
    others = degrees * max(0, window - tuning.evidence)
    most = math.inf if tuning.evidence == 1 else (highest - others) / (tuning.evidence - 0.5)
    return ScatterLimits(highest, lowest, most, degrees)


def shift_limits(
    reference: float, samples: float, probability: float, components: int, evidence: int
) -> ShiftLimits:
    """CUSUM: Siegmund's average run length, the probability split by the components.

    One sample counts no more than what lets ``evidence`` of them reach the threshold.
    """
    level = cusum_threshold(reference, samples, probability / components)
    most = math.inf if evidence == 1 else reference + level / (evidence - 0.5)
    return ShiftLimits(reference, level, most)


def stuck_limits(tuning: Tuning, samples: float, probability: float) -> StuckLimits:
    """Repetitions: a run of them, each at most as likely as a normal variable hits one cell.

    Zeros need the same run: a reading of zero is one cell of the same size.
    """
    chance = repeat_chance(tuning.range_resolution_m, tuning.range_noise_m)
    repetitions = run_threshold(chance, samples, probability / 2)
    return StuckLimits(1 + repetitions, tuning.stuck_moved_sigma, repetitions)


def unsteady_limits(tuning: Tuning, samples: float, probability: float) -> CountLimits:
    """The gate of one degree of freedom whose count among disjoint triples keeps the rate.

    Or a wider one, which only lowers it.
    """
    count, window = tuning.unsteady_count, tuning.unsteady_window
    exceedance = count_exceedance(count, window, samples / TRIPLE, probability)
    gate = max(chi_square_quantile(exceedance, 1), tuning.unsteady_sigma**2)
    return CountLimits(gate, count)


def inertial_limits(tuning: Tuning, samples: float, probability: float) -> InertialLimits:
    """Runs of steps at a limit, and of zeros."""
    return InertialLimits(
        tuning.specific_force_max_m_s2,
        tuning.rate_max_rad_s,
        run_threshold(tuning.saturated_probability, samples, probability / 2),
        run_threshold(tuning.zero_probability, samples, probability / 2),
    )
