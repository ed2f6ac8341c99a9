"""All detectors on the same healthy descents: the promise is of any alarm at all."""

import torch
from scipy.stats import binom
from torch import Tensor

from tnav.monitor.absence_checks import Absence, Unfused, update_absence, update_unfused
from tnav.monitor.altimeter_checks import (
    Kinematic,
    Stuck,
    Unsteady,
    update_kinematic,
    update_stuck,
    update_unsteady,
)
from tnav.monitor.changes import ChangeWindow, update_change
from tnav.monitor.detectors import (
    GateCount,
    Scatter,
    Shift,
    update_count,
    update_scatter,
    update_shift,
)
from tnav.monitor.inertial_checks import Inertial, update_inertial
from tnav.monitor.thresholds import (
    DescentSamples,
    Rates,
    SensorLimits,
    SensorTuning,
    Thresholds,
    Tuning,
    thresholds,
)

F64 = torch.float64
LANES, EPOCHS, EVERY = 2000, 150, 5  # an image and an attitude every 5th epoch
TUNING = Tuning(change_window=24)


class Innovations:
    """Count, scatter and shift of one sensor."""

    def __init__(self, tuning: SensorTuning, limits: SensorLimits, components: int) -> None:
        self.limits = limits
        self.count = GateCount.fresh(LANES, tuning.count_window, "cpu")
        self.scatter = Scatter.fresh(LANES, tuning.scatter_window, "cpu")
        self.shift = Shift.fresh(LANES, components, "cpu")

    def take(self, t_s: float, z: Tensor, present: Tensor) -> Tensor:
        nis = z.square().sum(1)
        self.count = update_count(self.count, t_s, nis, present, self.limits.count)
        self.scatter = update_scatter(self.scatter, t_s, nis, present, self.limits.scatter)
        self.shift = update_shift(self.shift, t_s, z, present, self.limits.shift)
        return torch.stack([self.count.alarm, self.scatter.alarm, self.shift.alarm])


def healthy_alarms(limits: Thresholds, seed: int) -> Tensor:
    """Which detectors ever alarm (first axis) on which descent."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(LANES, *shape, generator=generator, dtype=F64)

    def chance(p: float) -> Tensor:
        return torch.rand(LANES, generator=generator) < p

    altimeter = Innovations(TUNING.altimeter, limits.altimeter, 1)
    vision = Innovations(TUNING.vision, limits.vision, 6)
    change = ChangeWindow.fresh(LANES, TUNING.change_window, "cpu")
    stuck, absence = Stuck.fresh(LANES, "cpu"), Absence.fresh(LANES, "cpu")
    unsteady = Unsteady.fresh(LANES, TUNING.unsteady_window, "cpu")
    kinematic = Kinematic.fresh(LANES, TUNING.kinematic_window, "cpu")
    unfused, inertial = Unfused.fresh(LANES, "cpu"), Inertial.fresh(LANES, "cpu")
    star = Shift.fresh(LANES, 3, "cpu")
    everywhere, one = torch.ones(LANES, dtype=torch.bool), torch.ones(LANES, dtype=F64)
    ever = torch.zeros(15, LANES, dtype=torch.bool)
    for i in range(EPOCHS):
        t, z, valid = 0.1 * i, normal(), chance(0.99)
        expected_m = (1000.0 - 3.0 * i) * one
        range_m = ((expected_m + 2.0 * z) / 0.01).round() * 0.01
        fused = valid & chance(0.999)
        now = [*altimeter.take(t, z[:, None], valid)]
        change = update_change(change, t, 2.0 * z, 2.0 * one, valid, limits.change)
        stuck = update_stuck(stuck, t, range_m, expected_m, 2.0 * one, valid, limits.stuck)
        unsteady = update_unsteady(unsteady, t, 2.0 * z, 2.0 * one, valid, limits.unsteady)
        kinematic = update_kinematic(
            kinematic, t, range_m, 2.0 * one, -30.0 * one, 0.0 * one, valid, limits.kinematic
        )
        absence = update_absence(absence, t, valid, fused, everywhere, limits.absence)
        unfused = update_unfused(unfused, t, z, valid, fused, limits.unfused)
        inertial = update_inertial(
            inertial, t, 0.1, normal(3), 0.01 * normal(3), everywhere, limits.inertial
        )
        if i % EVERY == 0:
            seen = vision.take(t, normal(6), chance(0.9))
            star = update_shift(star, t, normal(3), everywhere, limits.star_tracker)
            now += [*seen, star.alarm]
        else:
            now += [torch.zeros_like(everywhere)] * 4
        now += [change.jump.alarm, change.ramp.alarm, stuck.alarm, unsteady.alarm, kinematic.alarm]
        now += [absence.alarm, unfused.alarm, inertial.alarm]
        ever |= torch.stack(now)
    return ever


def test_any_alarm_is_as_rare_as_stated() -> None:
    """2,000 healthy descents at 10 %: not above it, not below a fifth of it."""
    stated = 0.1
    few = DescentSamples(
        altimeter=EPOCHS, vision=EPOCHS // EVERY, star_tracker=EPOCHS // EVERY, inertial=EPOCHS
    )
    limits = thresholds(Rates(false_alarm_probability=stated), few, TUNING)
    ever = healthy_alarms(limits, seed=8)
    count = int(ever.any(0).sum())
    assert count <= binom.isf(1e-4, LANES, stated), ever.sum(1)
    assert count >= binom.ppf(1e-4, LANES, stated / 5), ever.sum(1)
    # No detector takes more than the largest share.
    assert int(ever.sum(1).max()) <= binom.isf(1e-4, LANES, 0.2 * stated)
