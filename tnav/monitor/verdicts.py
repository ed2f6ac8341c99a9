"""From evidence to verdicts, for ``b`` descents at once (table of ``tnav.monitor.watch``).

An alert is raised with the first evidence, undecided until its witness has spoken. A verdict that
names somebody stands to the end; only those on absent ranges or fixes end when they come, or when a
fix puts the ground out of reach.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from tnav.monitor.absence_checks import Outage
from tnav.monitor.watch import (
    ALIKE_SHARE,
    ALIKE_SIGMA,
    HEALTHY,
    KINDS,
    SEEN_SIGMA,
    SIDEWAYS_SIGMA,
    UNDECIDED,
    Watch,
)
from tnav.records import FaultKind

_FRESH_S = 1.0  # a range is a witness for so long
_NOW_S = 1e-6  # rounding of one clock
_WAIT_S = 8.0  # for vision's word: an interval of images, and one that comes late
_LOOK_S = 0.15  # after which a fall of the ground that ranges saw shows in an image, too
_CODE = {kind: code for code, kind in enumerate(KINDS)}
_ABSENT = (
    _CODE[FaultKind.LATE_ACQUISITION],
    _CODE[FaultKind.DROPOUT],
    _CODE[FaultKind.VISION_ABSENT],
)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Who is in doubt now."""

    ranges: Bool[Tensor, " b"]
    fixes: Bool[Tensor, " b"]
    inertial: Bool[Tensor, " b"]
    onset_s: Float64[Tensor, " b"]  # earliest of the alarms that stand; NaN without


def evidence_of(watch: Watch) -> Evidence:
    """Alarms that stand."""
    on_ranges = [
        (watch.range_count.alarm, watch.range_count.onset_s),
        (watch.range_shift.alarm, watch.range_shift.onset_s),
        (watch.change.jump.alarm, watch.change.jump.onset_s),
        (watch.change.ramp.alarm, watch.change.ramp.onset_s),
        (watch.range_scatter.inflated, watch.range_scatter.onset_s),
    ]
    on_fixes = [
        (watch.fix_count.alarm, watch.fix_count.onset_s),
        (watch.fix_shift.alarm, watch.fix_shift.onset_s),
    ]
    on_unit = [
        (watch.inertial.alarm, watch.inertial.onset_s),
        # A filter that was pulled to a wrong fix disagrees with its star tracker, by a little.
        (watch.star_shift.alarm & (~watch.doubted | watch.turned), watch.star_shift.onset_s),
    ]
    alone = [
        (watch.absence.alarm, watch.absence.onset_s),
        (watch.blindness.alarm, watch.blindness.onset_s),
        (watch.stuck.alarm, watch.stuck.onset_s),
        (watch.unsteady.alarm, watch.unsteady.onset_s),
        (watch.unfused.alarm, watch.unfused.onset_s),
        (watch.apart, watch.apart_s),
    ]
    return Evidence(
        _any(on_ranges),
        _any(on_fixes),
        _any(on_unit),
        _earliest([*on_ranges, *on_fixes, *on_unit, *alone]),
    )


def decide(watch: Watch, t_s: float, wait_s: float = _WAIT_S) -> Watch:
    """Raises alerts and names whom the evidence accuses.

    Args:
        watch: after everything that spoke up to now.
        t_s: now.
        wait_s: for vision's word on ranges that are not there, before the altimeter is named.
    """
    found = evidence_of(watch)
    doubt = found.ranges | found.fixes | watch.apart
    missing = watch.absence.alarm | watch.blindness.alarm
    certain = missing | watch.stuck.alarm | watch.unsteady.alarm | watch.unfused.alarm
    certain = certain | watch.spurious
    alarm = doubt | certain | found.inertial
    watch = _doubting(watch, found, t_s, wait_s)
    kind = _named(watch, found, t_s, wait_s)
    # The verdict that stands, unless it was on ranges that have come, or on nobody.
    absent = _is_one_of(watch.kind, _ABSENT)
    over = absent & ~missing
    open_ = over | absent | (watch.kind == HEALTHY) | (watch.kind == UNDECIDED)
    still = torch.where(over | ((watch.kind == UNDECIDED) & ~alarm), HEALTHY, watch.kind)
    raised = torch.where(kind != HEALTHY, kind, torch.where(alarm, UNDECIDED, still))
    now = torch.where(open_, raised, watch.kind)
    alarm = alarm | (now != HEALTHY)
    named = (now != HEALTHY) & (now != UNDECIDED)
    first = watch.named_s.isnan() & named
    onset_s = torch.where(found.onset_s.isnan(), t_s, found.onset_s)
    return replace(
        watch,
        doubted=watch.doubted | found.fixes,
        kind=now,
        first_kind=torch.where(first, now, watch.first_kind),
        named_s=torch.where(first, t_s, watch.named_s),
        onset_s=torch.where(watch.alert_s.isnan() & alarm, onset_s, watch.onset_s),
        alert_s=torch.where(watch.alert_s.isnan() & alarm, t_s, watch.alert_s),
        size_m=torch.where(now != watch.kind, _size_m(watch, now), watch.size_m),
    )


def _doubting(watch: Watch, found: Evidence, t_s: float, wait_s: float) -> Watch:
    """Since when ranges are in doubt: a doubt that comes and goes is one."""
    doubt = found.ranges | watch.apart
    until_s = torch.where(doubt, t_s, watch.ranges_until_s)
    since_s = torch.where(doubt & watch.ranges_s.isnan(), t_s, watch.ranges_s)
    since_s = torch.where(t_s - until_s > wait_s, math.nan, since_s)
    return replace(watch, ranges_s=since_s, ranges_until_s=until_s)


def _size_m(watch: Watch, kind: Int64[Tensor, " b"]) -> Float64[Tensor, " b"]:
    """Of a step: ranges may fall silent before it is over, and fixes come after its begin."""
    farther = watch.fix_up_m.abs() > watch.range_up_m.abs()
    terrain = kind == _CODE[FaultKind.TERRAIN]
    return torch.where(terrain & farther, watch.fix_up_m, watch.range_up_m)


def _named(watch: Watch, found: Evidence, t_s: float, wait_s: float) -> Int64[Tensor, " b"]:
    """Code of the verdict that the evidence supports now; HEALTHY where it names nobody."""
    # Vision has spoken since; or it is too low to see, and the ground was seen a moment ago.
    heard = (watch.fix_s >= watch.ranges_s + _LOOK_S) | (watch.blind & watch.fix_s.isfinite())
    heard = heard & ~(watch.moved_s >= watch.ranges_s)
    agrees, fix_m = watch.fix_agrees, watch.fix_up_m
    sigma_m = torch.hypot(watch.fix_sigma_m, watch.range_sigma_m)
    apart_m = (watch.range_up_m - fix_m).abs()
    alike = apart_m < ALIKE_SIGMA * sigma_m + ALIKE_SHARE * fix_m.abs()
    across = watch.fix_across_sigma > SIDEWAYS_SIGMA
    fresh = watch.range_s >= t_s - _FRESH_S
    off = fresh & (watch.range_up_m.abs() > ALIKE_SIGMA * watch.range_sigma_m)
    # A range from before an image says nothing of a ground that has fallen away since.
    as_told = fresh & ~off & ~watch.apart & (watch.range_s >= watch.fix_s)
    in_doubt = (found.ranges | watch.apart) & ~watch.doubted
    offset = watch.change.jump.alarm | watch.range_shift.alarm | watch.change.ramp.alarm
    noisy = watch.range_scatter.inflated & ~offset
    # The filter without altimeter has followed its fixes: ranges say whether it should have. Fixes
    # that it takes no more after such a leap are off by what the leap did to the filter, too.
    followed = watch.followed & (agrees | (watch.moved_s >= watch.fix_s))
    followed = followed & (watch.range_s >= watch.moved_s)
    displaced = off & ~agrees & alike & (found.ranges | found.fixes | watch.apart)
    seen = fix_m * watch.range_up_m.sign() > SEEN_SIGMA * watch.fix_sigma_m

    code = torch.full_like(watch.kind, HEALTHY)
    outage = torch.where(
        watch.absence.kind == int(Outage.LATE_ACQUISITION),
        _CODE[FaultKind.LATE_ACQUISITION],
        _CODE[FaultKind.DROPOUT],
    )
    # From the weakest to the strongest claim: the last one stands.
    for claim, kind in (
        (watch.blindness.alarm, FaultKind.VISION_ABSENT),
        (_missing(watch, as_told, t_s, wait_s), outage),
        (followed & as_told, FaultKind.TERRAIN),
        (followed & off, FaultKind.VISION_INCONSISTENT),
        (found.fixes & ~agrees & as_told & ~watch.followed, FaultKind.VISION_INCONSISTENT),
        (in_doubt & heard & agrees, FaultKind.ALTIMETER_INCONSISTENT),
        (in_doubt & heard & agrees & noisy, FaultKind.ALTIMETER_NOISE),
        (_out_of_reach(watch), FaultKind.TERRAIN),
        (displaced & seen & ~across, FaultKind.TERRAIN),
        (displaced & across, FaultKind.INERTIAL),
        (watch.unfused.alarm, FaultKind.NOT_FUSED),
        # A beam that sweeps where nobody knows contradicts itself, too: stars say so in a moment.
        (watch.unsteady.alarm & ~watch.turned, FaultKind.ALTIMETER_NOISE),
        (watch.stuck.alarm, FaultKind.STUCK),
        (found.inertial, FaultKind.INERTIAL),
        (watch.spurious, FaultKind.SPURIOUS_EVENT),
    ):
        value = kind if isinstance(kind, Tensor) else torch.full_like(code, _CODE[kind])
        code = torch.where(claim, value, code)
    return code


def _missing(
    watch: Watch, as_told: Bool[Tensor, " b"], t_s: float, wait_s: float
) -> Bool[Tensor, " b"]:
    """Ranges fail to come, and it is not the ground that fell away: that, vision would have seen.

    It is asked since the first miss, for a while; where it never spoke, or sees nothing so low, not
    at all. And a range that comes back as expected says that the ground never went.
    """
    since_s = watch.absence.onset_s
    back = as_told & (watch.range_s >= t_s - _NOW_S)
    spoke = watch.fix_s >= since_s
    silent = ~watch.fix_s.isfinite() | watch.blind | (t_s - since_s > wait_s)
    hidden = watch.farther_s >= since_s
    told = ~hidden & torch.where(spoke, watch.fix_agrees, silent)
    return watch.absence.alarm & (told | (back & ~watch.followed))


def _out_of_reach(watch: Watch) -> Bool[Tensor, " b"]:
    """Ranges fail to come, and a fix since says that the ground is farther than they go."""
    since = watch.fix_s >= watch.absence.onset_s
    return watch.absence.alarm & since & ~watch.fix_agrees & (watch.fix_up_m > watch.reach_m)


def _is_one_of(kind: Int64[Tensor, " b"], codes: tuple[int, ...]) -> Bool[Tensor, " b"]:
    return torch.stack([kind == code for code in codes]).any(0)


def _any(alarms: list[tuple[Tensor, Tensor]]) -> Bool[Tensor, " b"]:
    return torch.stack([alarm for alarm, _ in alarms]).any(0)


def _earliest(alarms: list[tuple[Tensor, Tensor]]) -> Float64[Tensor, " b"]:
    """Earliest onset of the alarms that stand; NaN without one."""
    onset_s = torch.stack([torch.where(alarm, at_s, math.inf) for alarm, at_s in alarms])
    first_s = torch.where(onset_s.isnan(), math.inf, onset_s).amin(0)
    return torch.where(first_s.isfinite(), first_s, math.nan)
