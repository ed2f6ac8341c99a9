"""Streaming tests of ranges that are not there: expected but absent, valid but not fused.

States, alarms and absent samples as in ``tnav.monitor.detectors``.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from tnav.monitor.detectors import F64, Run, begun, extend, undefined


class Outage(IntEnum):
    """Values of `Absence.kind`."""

    NONE = 0
    LATE_ACQUISITION = 1  # expected, and no usable range was seen before
    DROPOUT = 2  # seen before
    PERMANENT = 3  # seen before, and gone for long


@dataclass(frozen=True, slots=True)
class AbsenceLimits:
    """Bernoulli CUSUM, ``tnav.monitor.statistics.absence_increments`` and its threshold."""

    seen: float  # log-likelihood ratio, fails against works, of a range that came (negative) ...
    missed: float  # ... and of one that did not
    level: float
    permanent_s: float = 30.0  # without any usable range: an outage that counts as for good


@dataclass(frozen=True, slots=True)
class Absence:
    """Evidence that ranges fail to come where the map and the specification promise them."""

    level: Float64[Tensor, " b"]  # capped at the threshold
    began_s: Float64[Tensor, " b"]  # first miss of the excursion; NaN at zero
    acquired: Bool[Tensor, " b"]  # a usable range was ever seen
    seen_s: Float64[Tensor, " b"]  # the last one; NaN before
    acquired_before: Bool[Tensor, " b"]  # ... the alarm that stands
    alarm: Bool[Tensor, " b"]  # from the threshold until the level is back at zero
    kind: Int64[Tensor, " b"]  # of Outage
    onset_s: Float64[Tensor, " b"]
    cleared_s: Float64[Tensor, " b"]  # when the last alarm ended; NaN before
    statistic: Float64[Tensor, " b"]  # level before the cap

    @staticmethod
    def fresh(batch: int, device: torch.device | str) -> "Absence":
        """Nothing seen, nothing missed."""
        no = torch.zeros(batch, dtype=torch.bool, device=device)
        zero, unknown_s = no.to(F64), undefined(batch, device)
        kind = no.to(torch.int64)
        return Absence(zero, unknown_s, no, unknown_s, no, no, kind, unknown_s, unknown_s, zero)


def update_absence(
    state: Absence,
    t_s: float,
    valid: Bool[Tensor, " b"],
    usable: Bool[Tensor, " b"],
    expected: Bool[Tensor, " b"],
    limits: AbsenceLimits,
) -> Absence:
    """Takes one epoch of the altimeter.

    Args:
        valid: the altimeter reports a range.
        usable: ... and navigation took it; during an alarm only such a range counts as seen.
        expected: the specification promises a range at the predicted distance and incidence,
            whatever the error of the state within reason; elsewhere the level stands still.
    """
    seen = torch.where(state.alarm, usable, valid)
    peak = torch.where(seen, state.level + limits.seen, state.level + limits.missed).clamp_min(0.0)
    began_s = torch.where(state.began_s.isnan(), t_s, state.began_s)
    began_s = torch.where(peak > 0, began_s, math.nan)
    alarm = torch.where(state.alarm, peak > 0, peak >= limits.level)
    alarm = torch.where(expected, alarm, state.alarm)
    began_s = torch.where(expected, began_s, state.began_s)
    seen_s = torch.where(usable, t_s, state.seen_s)
    before = torch.where(alarm & ~state.alarm, state.acquired, state.acquired_before)
    lost = torch.where(t_s - seen_s >= limits.permanent_s, Outage.PERMANENT, Outage.DROPOUT)
    kind = torch.where(before, lost, Outage.LATE_ACQUISITION)
    return Absence(
        torch.where(expected, peak.clamp_max(limits.level), state.level),
        began_s,
        state.acquired | usable,
        seen_s,
        before,
        alarm,
        torch.where(alarm, kind, Outage.NONE),
        begun(alarm, state.alarm, state.onset_s, began_s),
        torch.where(state.alarm & ~alarm, t_s, state.cleared_s),
        torch.where(expected, peak, state.statistic),
    )


@dataclass(frozen=True, slots=True)
class UnfusedLimits:
    """Ranges that an independent estimate confirms, and that the filter did not take."""

    agrees_below: float  # sigma
    run: int  # in a row


@dataclass(frozen=True, slots=True)
class Unfused:
    """Good data that is not used (Odysseus: one parameter; Hakuto-R M1: a gate without an end)."""

    run: Run
    alarm: Bool[Tensor, " b"]
    onset_s: Float64[Tensor, " b"]
    statistic: Float64[Tensor, " b"]  # readings in a row

    @staticmethod
    def fresh(batch: int, device: torch.device | str) -> "Unfused":
        """No readings yet."""
        no = torch.zeros(batch, dtype=torch.bool, device=device)
        return Unfused(Run.fresh(batch, device), no, undefined(batch, device), no.to(F64))


def update_unfused(
    state: Unfused,
    t_s: float,
    z: Float64[Tensor, " b"],
    valid: Bool[Tensor, " b"],
    fused: Bool[Tensor, " b"],
    limits: UnfusedLimits,
) -> Unfused:
    """Takes one epoch.

    Args:
        z: range minus what an estimate without the altimeter predicts, by its own sigma; NaN where
            there is none, and the epoch counts as absent.
    """
    there = valid & z.isfinite()
    run = extend(state.run, t_s, (z.abs() < limits.agrees_below) & ~fused, there)
    alarm = run.length >= limits.run
    onset_s = begun(alarm, state.alarm, state.onset_s, run.began_s)
    return Unfused(run, alarm, onset_s, run.length.to(F64))
