"""Streaming tests of innovations for ``b`` descents at once: counts, scatter, lasting shifts.

Each detector is a frozen state and a pure ``update``. All states have ``alarm`` (now, not ever),
``onset_s`` (estimated begin of what is alarmed on; NaN without alarm) and ``statistic``. A sample
that is absent or not finite leaves the state of its descent as it was. Limits are host floats,
made from false-alarm rates by ``tnav.monitor.thresholds``. Windows hold the newest sample first.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

F64 = torch.float64

# Scatter that the onset's estimate is sharpest for: three times the noise, or a third of it.
_INFLATION = 3.0


def pushed(
    window: Float64[Tensor, "b w"], value: Float64[Tensor, " b"], present: Bool[Tensor, " b"]
) -> Float64[Tensor, "b w"]:
    """The window with a value put in front and its oldest dropped, where present."""
    moved = torch.cat([value[:, None], window[:, :-1]], 1)
    return torch.where(present[:, None], moved, window)


def begun(
    alarm: Bool[Tensor, " b"],
    alarmed: Bool[Tensor, " b"],
    before_s: Float64[Tensor, " b"],
    estimate_s: Float64[Tensor, " b"],
) -> Float64[Tensor, " b"]:
    """Onset as it was estimated with the first sample of an alarm; NaN without alarm."""
    return torch.where(alarm, torch.where(alarmed, before_s, estimate_s), math.nan)


def at(values: Float64[Tensor, "b w"], index: Int64[Tensor, " b"]) -> Float64[Tensor, " b"]:
    """One value of each row."""
    return values.gather(1, index[:, None])[:, 0]


def undefined(batch: int, device: torch.device | str) -> Float64[Tensor, " b"]:
    """Times that are not yet."""
    return torch.full((batch,), math.nan, dtype=F64, device=device)


# Runs ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """How many samples in a row something has held, and since when."""

    length: Int64[Tensor, " b"]
    began_s: Float64[Tensor, " b"]  # NaN while the length is zero

    @staticmethod
    def fresh(batch: int, device: torch.device | str) -> "Run":
        """No run."""
        length = torch.zeros(batch, dtype=torch.int64, device=device)
        return Run(length, undefined(batch, device))


def extend(run: Run, t_s: float, held: Bool[Tensor, " b"], present: Bool[Tensor, " b"]) -> Run:
    """One more sample; one that is not present is passed over."""
    first_s = torch.where(run.length == 0, t_s, run.began_s)
    return Run(
        torch.where(present, torch.where(held, run.length + 1, 0), run.length),
        torch.where(present, torch.where(held, first_s, math.nan), run.began_s),
    )


# M of N -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CountLimits:
    """An alarm where ``count`` of the last samples exceed a gate."""

    gate: float  # NIS
    count: int


@dataclass(frozen=True, slots=True)
class GateCount:
    """Exceedances of a gate among the last ``n`` samples."""

    exceeded: Float64[Tensor, "b n"]  # 1 or 0
    times_s: Float64[Tensor, "b n"]
    alarm: Bool[Tensor, " b"]
    onset_s: Float64[Tensor, " b"]  # of the oldest exceedance
    statistic: Float64[Tensor, " b"]  # exceedances in the window

    @staticmethod
    def fresh(batch: int, window: int, device: torch.device | str) -> "GateCount":
        """No samples yet."""
        none = torch.zeros(batch, window, dtype=F64, device=device)
        no = torch.zeros(batch, dtype=torch.bool, device=device)
        return GateCount(none, none, no, undefined(batch, device), none[:, 0])


def update_count(
    state: GateCount,
    t_s: float,
    nis: Float64[Tensor, " b"],
    present: Bool[Tensor, " b"],
    limits: CountLimits,
) -> GateCount:
    """Takes one NIS."""
    there = present & nis.isfinite()
    exceeded = pushed(state.exceeded, (nis > limits.gate).to(F64), there)
    times_s = pushed(state.times_s, torch.full_like(nis, t_s), there)
    count = exceeded.sum(1)
    alarm = count >= limits.count
    oldest_s = torch.where(exceeded > 0, times_s, math.inf).amin(1)
    onset_s = begun(alarm, state.alarm, state.onset_s, oldest_s)
    return GateCount(exceeded, times_s, alarm, onset_s, count)


# Scatter ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScatterLimits:
    """An alarm where the NIS of a full window add up to ``high`` or more, or ``low`` or less."""

    high: float
    low: float
    one_sample: float = math.inf  # no NIS adds more than this: a spike is not a scatter
    degrees: int = 1  # of freedom of each NIS


@dataclass(frozen=True, slots=True)
class Scatter:
    """Sum of NIS over a sliding window: noise inflation over it, a variance floor under it.

    Too little scatter is a fault, too: a sensor that repeats itself, or follows what it is told.
    """

    nis: Float64[Tensor, "b w"]
    times_s: Float64[Tensor, "b w"]
    taken: Int64[Tensor, " b"]  # samples so far, up to the window
    inflated: Bool[Tensor, " b"]
    too_quiet: Bool[Tensor, " b"]
    alarm: Bool[Tensor, " b"]  # either
    onset_s: Float64[Tensor, " b"]
    statistic: Float64[Tensor, " b"]  # the sum, chi-square where the window is full

    @staticmethod
    def fresh(batch: int, window: int, device: torch.device | str) -> "Scatter":
        """No samples yet."""
        none = torch.zeros(batch, window, dtype=F64, device=device)
        no = torch.zeros(batch, dtype=torch.bool, device=device)
        unknown_s = undefined(batch, device)
        return Scatter(none, none, no.to(torch.int64), no, no, no, unknown_s, none[:, 0])


def update_scatter(
    state: Scatter,
    t_s: float,
    nis: Float64[Tensor, " b"],
    present: Bool[Tensor, " b"],
    limits: ScatterLimits,
) -> Scatter:
    """Takes one NIS.

    The onset is the most likely one, within the window, of noise that grew (fell) by a factor s:
    where the log-likelihood ratios ``nis (1 - 1/s^2) / 2 - m ln s`` from there on add up to most.
    """
    there = present & nis.isfinite()
    window = pushed(state.nis, nis.clamp_max(limits.one_sample), there)
    times_s = pushed(state.times_s, torch.full_like(nis, t_s), there)
    size = window.shape[1]
    taken = (state.taken + there.to(torch.int64)).clamp_max(size)
    total = window.sum(1)
    full = taken == size
    inflated, quiet = full & (total >= limits.high), full & (total <= limits.low)
    alarm = inflated | quiet
    m, grown = limits.degrees, math.log(_INFLATION)
    louder = 0.5 * (1 - _INFLATION**-2) * window - m * grown
    quieter = 0.5 * (1 - _INFLATION**2) * window + m * grown
    since = torch.where(inflated[:, None], louder, quieter).cumsum(1).argmax(1)
    onset_s = begun(alarm, state.alarm, state.onset_s, at(times_s, since))
    return Scatter(window, times_s, taken, inflated, quiet, alarm, onset_s, total)


# Shifts -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ShiftLimits:
    """Two-sided CUSUM."""

    reference: float  # k, sigma: half of the shift that is seen soonest
    level: float  # h
    one_sample: float = math.inf  # sigma: no sample counts as farther off


@dataclass(frozen=True, slots=True)
class Shift:
    """Page's CUSUM of ``m`` components and both signs (Page 1954).

    Levels are capped at the threshold, so that they fall as soon as a fault ends.
    """

    level: Float64[Tensor, "b 2 m"]  # of z - k, then of -z - k
    began_s: Float64[Tensor, "b 2 m"]  # of the excursion from zero; NaN at zero
    component: Int64[Tensor, " b"]  # with the highest level
    sign: Float64[Tensor, " b"]  # of the shift in it
    alarm: Bool[Tensor, " b"]
    onset_s: Float64[Tensor, " b"]
    statistic: Float64[Tensor, " b"]  # highest level, before the cap

    @staticmethod
    def fresh(batch: int, components: int, device: torch.device | str) -> "Shift":
        """All levels zero."""
        level = torch.zeros(batch, 2, components, dtype=F64, device=device)
        no = torch.zeros(batch, dtype=torch.bool, device=device)
        zero, unknown_s = level[:, 0, 0], undefined(batch, device)
        began_s = torch.full_like(level, math.nan)
        return Shift(level, began_s, no.to(torch.int64), zero + 1, no, unknown_s, zero)


def update_shift(
    state: Shift,
    t_s: float,
    z: Float64[Tensor, "b m"],
    present: Bool[Tensor, " b"],
    limits: ShiftLimits,
) -> Shift:
    """Takes one innovation by its own sigmas (``tnav.monitor.statistics.normalised``)."""
    there = present & z.isfinite().all(1)
    near = z.clamp(-limits.one_sample, limits.one_sample)
    signed = torch.stack([near, -near], 1)
    peak = (state.level + signed - limits.reference).clamp_min(0.0)
    components = z.shape[1]
    highest, index = peak.flatten(1).max(1)
    began_s = torch.where(state.began_s.isnan(), t_s, state.began_s)
    began_s = torch.where(peak > 0, began_s, math.nan)
    alarm = highest >= limits.level
    onset_s = begun(alarm, state.alarm, state.onset_s, at(began_s.flatten(1), index))
    wide = there[:, None, None]
    return Shift(
        torch.where(wide, peak.clamp_max(limits.level), state.level),
        torch.where(wide, began_s, state.began_s),
        torch.where(there, index % components, state.component),
        torch.where(there, torch.where(index < components, 1.0, -1.0).to(F64), state.sign),
        torch.where(there, alarm, state.alarm),
        torch.where(there, onset_s, state.onset_s),
        torch.where(there, highest, state.statistic),
    )
