"""Generalised likelihood ratio of a jump or a ramp with unknown onset, over a sliding window.

Under no change ``z_i = x_i / sigma_i`` are independent and standard normal. A change of size theta
from onset j on adds ``theta phi_i``, with ``phi_i = 1 / sigma_i`` for a jump and ``(t_i - t_j) /
sigma_i`` for a ramp; the log-likelihood ratio at its best size is

    g_j = (sum_{i >= j} z_i phi_i)^2 / (2 sum_{i >= j} phi_i^2),

and onset and size are those of the largest (Willsky and Jones 1976; Basseville and Nikiforov 1993,
2.4.3). Thresholds: ``tnav.monitor.bounds.jump_threshold`` and ``ramp_threshold``. A filter that
fuses what it doubts takes a change in and bends its signature; this tests innovations that were
not fused, or differences of independent estimates.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.monitor.detectors import F64, at, pushed, undefined


@dataclass(frozen=True, slots=True)
class ChangeLimits:
    """Thresholds of g."""

    jump: float
    ramp: float
    evidence: float = 1.0  # samples below this many raise no alarm, however wild

    @property
    def one_sample(self) -> float:
        """No sample counts as farther off than this, sigma.

        n samples of c sigma make at most ``g = n c^2 / 2``: under the levels for n < evidence.
        """
        level = min(self.jump, self.ramp)
        return math.inf if self.evidence <= 1 else math.sqrt(2 * level / (self.evidence - 0.5))


@dataclass(frozen=True, slots=True)
class Change:
    """What is known of one kind of change."""

    alarm: Bool[Tensor, " b"]
    onset_s: Float64[Tensor, " b"]  # NaN without alarm
    statistic: Float64[Tensor, " b"]
    size: Float64[Tensor, " b"]  # of the value, or of it per second; the likeliest, alarm or not


@dataclass(frozen=True, slots=True)
class ChangeWindow:
    """The last ``w`` samples, newest first, and what they say of both kinds."""

    value: Float64[Tensor, "b w"]
    per_sigma: Float64[Tensor, "b w"]  # 1 / sigma; zero where there is no sample yet
    times_s: Float64[Tensor, "b w"]
    jump: Change
    ramp: Change

    @staticmethod
    def fresh(batch: int, window: int, device: torch.device | str) -> "ChangeWindow":
        """No samples yet."""
        none = torch.zeros(batch, window, dtype=F64, device=device)
        no = torch.zeros(batch, dtype=torch.bool, device=device)
        nothing = Change(no, undefined(batch, device), none[:, 0], none[:, 0])
        return ChangeWindow(none, none, none, nothing, nothing)


def update_change(
    state: ChangeWindow,
    t_s: float,
    value: Float64[Tensor, " b"],
    sigma: Float64[Tensor, " b"],
    present: Bool[Tensor, " b"],
    limits: ChangeLimits,
) -> ChangeWindow:
    """Takes one sample: a value that should be N(0, sigma^2), in any unit."""
    there = present & value.isfinite() & sigma.isfinite() & (sigma > 0)
    values = pushed(state.value, value, there)
    per_sigma = pushed(state.per_sigma, 1 / sigma, there)
    times_s = pushed(state.times_s, torch.full_like(value, t_s), there)
    ago_s = times_s - t_s  # of now, so that squares of times stay small
    filled = per_sigma > 0
    squares = per_sigma.square()
    sums, by_time = squares.cumsum(1), (squares * ago_s).cumsum(1)
    spread = (squares * ago_s.square()).cumsum(1) + ago_s * (ago_s * sums - 2 * by_time)
    # The newest sample alone has not grown from zero yet.
    longer = filled & (torch.arange(values.shape[1], device=values.device) > 0)
    z = values * per_sigma
    plain = _projected(z, per_sigma, ago_s)
    clipped = _projected(z.clamp(-limits.one_sample, limits.one_sample), per_sigma, ago_s)
    return ChangeWindow(
        values,
        per_sigma,
        times_s,
        _likeliest(state.jump, there, times_s, clipped[0], plain[0], sums, filled, limits.jump),
        _likeliest(state.ramp, there, times_s, clipped[1], plain[1], spread, longer, limits.ramp),
    )


def _projected(
    z: Float64[Tensor, "b w"], per_sigma: Float64[Tensor, "b w"], ago_s: Float64[Tensor, "b w"]
) -> tuple[Float64[Tensor, "b w"], Float64[Tensor, "b w"]]:
    """``sum_{i >= j} z_i phi_i`` for every onset j, of a jump and of a ramp."""
    weighted = z * per_sigma
    jump = weighted.cumsum(1)
    return jump, (weighted * ago_s).cumsum(1) - ago_s * jump


def _likeliest(
    before: Change,
    there: Bool[Tensor, " b"],
    times_s: Float64[Tensor, "b w"],
    clipped: Float64[Tensor, "b w"],
    plain: Float64[Tensor, "b w"],
    information: Float64[Tensor, "b w"],
    allowed: Bool[Tensor, "b w"],
    threshold: float,
) -> Change:
    """The onset with the largest ratio, and the size by what was read, not by what was clipped."""
    safe = torch.where(allowed, information, 1.0)
    ratio = torch.where(allowed, 0.5 * clipped.square() / safe, 0.0)
    statistic, index = ratio.max(1)
    alarm = statistic >= threshold
    # Once the window has slid past the onset, the oldest sample only looks like it.
    past = before.alarm & (index == ratio.shape[1] - 1)
    onset_s = torch.where(past, before.onset_s, at(times_s, index))
    return Change(
        torch.where(there, alarm, before.alarm),
        torch.where(there, torch.where(alarm, onset_s, math.nan), before.onset_s),
        torch.where(there, statistic, before.statistic),
        torch.where(there, at(plain / safe, index), before.size),
    )
