"""The monitor of ``b`` descents in closed loop: evidence, and who it accuses.

Beside navigation runs a filter that never hears the altimeter. Each sensor is tested where its
innovations are white: ranges in navigation's own filter, fixes in the one without altimeter. What
that one predicts is the independent word on a range (solution separation with one sub-filter):

==================== ==================== =======================================================
ranges               fixes                verdict
==================== ==================== =======================================================
off                  agree, and spoke     the altimeter, by kind: stuck, noise, else inconsistent
as expected          off                  vision
off                  off, as much, upward the ground is not that of the map; the altimeter is well
off                  off, sideways too    inertial unit
off                  silent               undecided; so low that none are taken: the altimeter
silent               agree, and spoke     the altimeter: its ranges are absent
silent               off, out of reach    the ground is not that of the map; the altimeter is well
silent               off otherwise        undecided; later ranges name vision or the ground
==================== ==================== =======================================================

A fix speaks for what it saw: it was exposed a moment after the doubt arose, when ground that falls
away has fallen far enough to be seen, and the filter has followed none since that was off.
Fixes and ranges that come apart slowly, because navigation follows both, show in the mean of the
last ranges against the filter without altimeter; then the altimeter is accused if vision was never
in doubt, because single fixes share no error that grows. Inertial tests, touchdown flags, absent,
repeated and unused ranges, and those that contradict each other, need no second witness.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from tnav.monitor.absence_checks import Absence, Unfused, update_absence, update_unfused
from tnav.monitor.altimeter_checks import Stuck, Unsteady, update_stuck, update_unsteady
from tnav.monitor.changes import ChangeWindow, update_change
from tnav.monitor.detectors import (
    GateCount,
    Scatter,
    Shift,
    pushed,
    update_count,
    update_scatter,
    update_shift,
)
from tnav.monitor.inertial_checks import Inertial, update_inertial
from tnav.monitor.integrity import Multipliers
from tnav.monitor.statistics import normalised
from tnav.monitor.thresholds import Thresholds, Tuning
from tnav.records import AltimeterSpec, FaultKind, Innovation, RangePrediction

KINDS = tuple(FaultKind)  # verdicts are kept as indices of it
HEALTHY, UNDECIDED = KINDS.index(FaultKind.HEALTHY), KINDS.index(FaultKind.UNDECIDED)
_VISION = 6  # components of a fix
_UP = 2
# Both sensors were displaced alike: by this many sigma of their difference, or this share of it.
ALIKE_SIGMA, ALIKE_SHARE = 4.0, 0.05
SIDEWAYS_SIGMA = 5.0
_TURNED_RAD = math.radians(1.0)
SEEN_SIGMA = 3.0  # a fix that is off by less in height saw no ground that is not the map's


@dataclass(frozen=True, slots=True)
class WatchSetup:
    """What the monitor is told before a descent."""

    spec: AltimeterSpec
    thresholds: Thresholds
    tuning: Tuning
    multipliers: Multipliers  # of one solution: without altimeter
    witness_nis: float  # a fix of six components agrees below this
    gate_nis: float  # and is taken over this only by force
    blind_below_m: float  # of range: no images are taken there, and the last fix is the witness
    relief_sigma_m: float  # of ground under a footprint, which no map has
    range_margin_sigma: float = 3.0
    incidence_margin_deg: float = 5.0


@dataclass(frozen=True, slots=True)
class RangeLook:
    """One epoch of the altimeter, as delivered, and what was expected of it."""

    t_s: float
    range_m: Float64[Tensor, " b"]
    valid: Bool[Tensor, " b"]
    fused: Bool[Tensor, " b"]  # by navigation
    aloft: Bool[Tensor, " b"]  # on the ground, nothing is expected
    alone: RangePrediction  # of the sub-filter without altimeter
    own: Innovation  # of navigation


@dataclass(frozen=True, slots=True)
class Watch:
    """Detectors and verdicts of ``b`` descents."""

    absence: Absence
    unfused: Unfused
    stuck: Stuck
    unsteady: Unsteady
    range_count: GateCount
    range_scatter: Scatter
    range_shift: Shift
    change: ChangeWindow
    fix_count: GateCount
    fix_shift: Shift
    blindness: Absence  # of fixes
    star_shift: Shift
    turned: Bool[Tensor, " b"]  # by more than a fix could ever turn the filter
    inertial: Inertial
    fix_s: Float64[Tensor, " b"]  # exposure of the last fix; -inf before
    fix_agrees: Bool[Tensor, " b"]
    farther_s: Float64[
        Tensor, " b"
    ]  # exposure of the last that put the ground farther; -inf before
    moved_s: Float64[Tensor, " b"]  # when the filter without altimeter took one that did not agree
    fix_up_m: Float64[Tensor, " b"]  # how far it was above the state without altimeter ...
    fix_sigma_m: Float64[Tensor, " b"]
    fix_across_sigma: Float64[Tensor, " b"]  # ... and aside of it, in sigma
    range_s: Float64[Tensor, " b"]  # last valid range
    range_up_m: Float64[Tensor, " b"]  # how much farther than without altimeter
    range_sigma_m: Float64[Tensor, " b"]
    reach_m: Float64[
        Tensor, " b"
    ]  # how much farther the altimeter reaches than without it expected
    off_sigma: Float64[Tensor, "b w"]  # last ranges less what was expected without altimeter
    taken: Int64[Tensor, " b"]  # of them, up to the window
    apart: Bool[Tensor, " b"]  # their mean is too far from zero
    apart_s: Float64[Tensor, " b"]  # since
    ranges_s: Float64[Tensor, " b"]  # since when ranges are in doubt; NaN where they are not ...
    ranges_until_s: Float64[Tensor, " b"]  # ... nor were a while ago; -inf before
    blind: Bool[Tensor, " b"]  # so low that vision has had its last word
    doubted: Bool[Tensor, " b"]  # vision ever was
    followed: Bool[Tensor, " b"]  # ... and the filter without altimeter took it at its word
    protection_m: Float64[Tensor, " b"]  # of the height
    spurious: Bool[Tensor, " b"]
    kind: Int64[Tensor, " b"]  # verdict that stands
    first_kind: Int64[Tensor, " b"]  # first one that was named
    onset_s: Float64[Tensor, " b"]  # of the first evidence
    alert_s: Float64[Tensor, " b"]  # first alert of any kind; NaN without
    named_s: Float64[Tensor, " b"]  # first verdict other than UNDECIDED
    size_m: Float64[Tensor, " b"]  # of a step, upward

    @staticmethod
    def fresh(batch: int, tuning: Tuning, device: torch.device | str) -> "Watch":
        """Before a descent."""
        no = torch.zeros(batch, dtype=torch.bool, device=device)
        zero = torch.zeros(batch, dtype=torch.float64, device=device)
        never, code = torch.full_like(zero, math.nan), torch.zeros_like(no, dtype=torch.int64)
        long_ago = torch.full_like(zero, -math.inf)
        return Watch(
            absence=Absence.fresh(batch, device),
            unfused=Unfused.fresh(batch, device),
            stuck=Stuck.fresh(batch, device),
            unsteady=Unsteady.fresh(batch, tuning.unsteady_window, device),
            range_count=GateCount.fresh(batch, tuning.altimeter.count_window, device),
            range_scatter=Scatter.fresh(batch, tuning.altimeter.scatter_window, device),
            range_shift=Shift.fresh(batch, 1, device),
            change=ChangeWindow.fresh(batch, tuning.change_window, device),
            fix_count=GateCount.fresh(batch, tuning.vision.count_window, device),
            fix_shift=Shift.fresh(batch, _VISION, device),
            blindness=Absence.fresh(batch, device),
            star_shift=Shift.fresh(batch, 3, device),
            turned=no,
            inertial=Inertial.fresh(batch, device),
            fix_s=long_ago, fix_agrees=no, moved_s=long_ago, farther_s=long_ago, fix_up_m=zero,
            fix_sigma_m=zero, fix_across_sigma=zero,
            range_s=long_ago, range_up_m=zero, range_sigma_m=zero, reach_m=-long_ago,
            off_sigma=zero[:, None].repeat(1, tuning.kinematic_window), taken=code,
            apart=no, apart_s=never, ranges_s=never, ranges_until_s=long_ago,
            blind=no, doubted=no, followed=no, spurious=no,
            protection_m=torch.full_like(zero, math.inf),
            kind=code, first_kind=code, onset_s=never, alert_s=never,
            named_s=never, size_m=zero,
        )  # fmt: skip


def watch_range(watch: Watch, look: RangeLook, setup: WatchSetup) -> Watch:
    """Takes one epoch of the altimeter."""
    limits, alone, t_s = setup.thresholds, look.alone, look.t_s
    noise_m = setup.spec.noise_sigma_m(alone.range_m)
    sigma_m = torch.hypot(alone.sigma_m, noise_m)
    off_m = look.range_m - alone.range_m
    farthest_m = alone.range_m + setup.range_margin_sigma * alone.sigma_m
    steepest = alone.incidence_rad.rad2deg() + setup.incidence_margin_deg
    # What vision contradicts is no promise.
    believed = watch.fix_agrees | ~watch.fix_s.isfinite()
    expected = look.aloft & believed & alone.defined & (farthest_m < setup.spec.range_max_m)
    expected = expected & (steepest < setup.spec.incidence_max_deg)
    own, nis = look.own, look.own.nis
    z = normalised(own.value, own.covariance)
    wide = setup.tuning.overbound
    sigma_own_m = wide * own.covariance[:, 0, 0].sqrt()
    # As noisy as what is read: ground that has fallen away is farther than expected.
    farther_m = torch.maximum(look.range_m, alone.range_m)
    white_m = (setup.spec.noise_sigma_m(farther_m).square() + setup.relief_sigma_m**2).sqrt()
    # A range that contradicts the last one is not good, however little is known of either.
    agrees_below = limits.unfused.agrees_below
    steady = (off_m - watch.range_up_m).abs() < agrees_below * 2**0.5 * white_m
    steady = steady | ~watch.range_s.isfinite()
    # Nor is one that navigation refuses, unless it is navigation that is off.
    refused = own.present & ~own.fused
    astray = (off_m - own.value[:, 0]).abs() > agrees_below * alone.sigma_m
    good = torch.where(steady & (~refused | astray), off_m / sigma_m, agrees_below)
    there = look.valid & alone.defined & look.range_m.isfinite()
    return replace(
        _separated(watch, t_s, off_m, alone.sigma_m, noise_m, there, setup),
        absence=update_absence(
            watch.absence, t_s, look.valid, look.valid, expected, limits.absence
        ),
        unfused=update_unfused(watch.unfused, t_s, good, there, look.fused, limits.unfused),
        stuck=update_stuck(
            watch.stuck, t_s, look.range_m, alone.range_m, sigma_m, there, limits.stuck
        ),
        unsteady=update_unsteady(watch.unsteady, t_s, off_m, white_m, there, limits.unsteady),
        range_count=update_count(watch.range_count, t_s, nis, own.present, limits.altimeter.count),
        range_scatter=update_scatter(
            watch.range_scatter, t_s, nis, own.present, limits.altimeter.scatter
        ),
        range_shift=update_shift(
            watch.range_shift, t_s, z / wide, own.present, limits.altimeter.shift
        ),
        change=update_change(
            watch.change, t_s, own.value[:, 0], sigma_own_m, own.present, limits.change
        ),
        blind=torch.where(alone.defined, alone.range_m < setup.blind_below_m, watch.blind),
        range_s=torch.where(there, t_s, watch.range_s),
        range_up_m=torch.where(there, off_m, watch.range_up_m),
        range_sigma_m=torch.where(there, sigma_m, watch.range_sigma_m),
        reach_m=torch.where(alone.defined, setup.spec.range_max_m - alone.range_m, watch.reach_m),
    )


def watch_fix(
    watch: Watch,
    exposed_s: float,
    own: Innovation,
    imaged: Bool[Tensor, " b"],
    setup: WatchSetup,
) -> Watch:
    """Takes one image and its fix, if one came.

    Args:
        exposed_s: time of its image.
        imaged: where there was an image, of ground that the camera is specified for.
        own: its innovation in the sub-filter without altimeter.
    """
    limits, t_s, there = setup.thresholds.vision, own.t_s, own.present
    blindness = update_absence(
        watch.blindness, t_s, there, there, imaged, setup.thresholds.blindness
    )
    z = normalised(own.value, own.covariance)
    sigma_m = own.covariance.diagonal(dim1=-2, dim2=-1)[:, _UP].sqrt()
    across = z[:, :_UP].abs().amax(1)
    agrees = own.nis < setup.witness_nis
    farther = z[:, _UP] > ALIKE_SIGMA
    return replace(
        watch,
        fix_count=update_count(watch.fix_count, t_s, own.nis, there, limits.count),
        fix_shift=update_shift(watch.fix_shift, t_s, z, there, limits.shift),
        blindness=blindness,
        # Expectations have leapt: readings on both sides do not compare.
        unsteady=replace(watch.unsteady, held=torch.where(there, 0, watch.unsteady.held)),
        followed=watch.followed | (there & own.fused & (own.nis > setup.gate_nis)),
        fix_s=torch.where(there, exposed_s, watch.fix_s),
        fix_agrees=torch.where(there, agrees, watch.fix_agrees),
        moved_s=torch.where(there & own.fused & ~agrees, t_s, watch.moved_s),
        farther_s=torch.where(there & farther, exposed_s, watch.farther_s),
        fix_up_m=torch.where(there, own.value[:, _UP], watch.fix_up_m),
        fix_sigma_m=torch.where(there, sigma_m, watch.fix_sigma_m),
        fix_across_sigma=torch.where(there, across, watch.fix_across_sigma),
    )


def watch_stars(watch: Watch, own: Innovation, setup: WatchSetup) -> Watch:
    """Takes one attitude."""
    z = normalised(own.value, own.covariance)
    shift = update_shift(watch.star_shift, own.t_s, z, own.present, setup.thresholds.star_tracker)
    turned = own.present & (own.value.norm(dim=1) > _TURNED_RAD)
    return replace(watch, star_shift=shift, turned=watch.turned | turned)


def watch_increments(
    watch: Watch,
    t_s: float,
    dt_s: float,
    delta_v_B: Float64[Tensor, "b 3"],
    delta_theta_B: Float64[Tensor, "b 3"],
    thrusting: Bool[Tensor, " b"],
    setup: WatchSetup,
) -> Watch:
    """Takes the inertial increments of one step."""
    limits = setup.thresholds.inertial
    inertial = update_inertial(
        watch.inertial, t_s, dt_s, delta_v_B, delta_theta_B, thrusting, limits
    )
    return replace(watch, inertial=inertial)


def _separated(
    watch: Watch,
    t_s: float,
    off_m: Float64[Tensor, " b"],
    alone_sigma_m: Float64[Tensor, " b"],
    noise_m: Float64[Tensor, " b"],
    there: Bool[Tensor, " b"],
    setup: WatchSetup,
) -> Watch:
    """The mean of the last ranges against what is expected without any, and what it bounds.

    Each counts in sigmas of its own time: of the expectation, which hardly changes between fixes,
    and of the altimeter's noise over their number. ``PL = max(K_ff s, T + K_md s)``, s of the
    expectation: a fault leaves the filter without altimeter untouched (``tnav.monitor.integrity``).
    """
    window = watch.off_sigma.shape[1]
    sigma_m = (alone_sigma_m.square() + noise_m.square() / window).sqrt()
    off_sigma = pushed(watch.off_sigma, off_m / sigma_m, there)
    taken = (watch.taken + there.to(torch.int64)).clamp_max(window)
    k_fa, k_ff = setup.multipliers.false_alarm[_UP], setup.multipliers.fault_free[_UP]
    k_md = max(0.0, *(mode[_UP] for mode in setup.multipliers.missed))
    apart = (taken == window) & (off_sigma.mean(1).abs() >= k_fa)
    apart = torch.where(there, apart, watch.apart)
    bounded_m = torch.maximum(k_ff * alone_sigma_m, k_fa * sigma_m + k_md * alone_sigma_m)
    return replace(
        watch,
        off_sigma=off_sigma,
        taken=taken,
        apart=apart,
        apart_s=torch.where(apart & ~watch.apart, t_s, watch.apart_s),
        protection_m=torch.where(alone_sigma_m.isfinite(), bounded_m, watch.protection_m),
    )
