"""Solution separation: is the answer wrong by more than may be, and which part of it to trust.

Beside the full solution x_0 (all sensors) run solutions x_j, each without one set of data, the set
that fault mode j spoils. Without a fault ``x_j - x_0`` has the covariance ``P_j - P_0`` (Brown and
McBurney 1988; for Kalman sub-filters on part of the data, whose error's covariance with that of
the optimal full filter is P_0: Young and McGraw 2003). So, on each axis q,

    sigma_ss,jq^2 = sigma_jq^2 - sigma_0q^2,   T_jq = K_fa,q sigma_ss,jq,   |x_jq - x_0q| < T_jq,
    PL_q = max(K_ff,q sigma_0q, max_j (T_jq + K_md,jq sigma_jq)),

the baseline algorithm of advanced RAIM with equal allocation (Blanch et al. 2007 and 2012), without
its terms for nominal bias. Axes are those of L: east, north, up.
"""

import math
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import torch
from jaxtyping import Bool, Float64, Int64
from pydantic import Field, field_validator
from torch import Tensor

from tnav.config import Recipe
from tnav.errors import ConfigError
from tnav.monitor.bounds import upper_quantile

# A difference of covariances is known to no more than this share of the full one: rounding, and
# sub-filters that are linearised about another state. Separations below 0.1 % of sigma_0 are none.
_LEAST_SHARE = 1e-6

FULL = -1  # indices of `exclude` beside those of solutions: nothing is to be excluded ...
UNDECIDED = -2  # ... or no single solution is the one to trust


class RiskBudget(Recipe):
    """What may go wrong unnoticed, what may be called wrong by chance, and who fails how often.

    All per descent. A sub-solution's fault probability is that of the data that it leaves out.
    """

    integrity_vertical: float = Field(default=1e-4, gt=0, lt=1)
    integrity_horizontal: float = Field(default=1e-4, gt=0, lt=1)
    false_alarm_vertical: float = Field(default=5e-4, gt=0, lt=1)
    false_alarm_horizontal: float = Field(default=5e-4, gt=0, lt=1)
    fault_probabilities: tuple[float, ...] = Field(min_length=1)
    # Looks that count as independent: each spends its part of both risks.
    looks: float = Field(default=1.0, ge=1)

    @field_validator("fault_probabilities")
    @classmethod
    def _probabilities(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < p < 1 for p in value):
            raise ValueError("fault probabilities: expected each in (0, 1)")
        return value

    def multipliers(self) -> "Multipliers":
        """K factors, on the host.

        With N modes and n looks, false alarms are split evenly by mode and look, both tails, and
        the horizontal ones by axis: ``K_fa = Q^-1(P_FA / (2 N n))``, half of that horizontally. The
        integrity risk is split evenly by the N modes and the fault-free case: ``K_ff = Q^-1(P_HMI /
        (2 (N + 1) n))``, and ``K_md,j = Q^-1(P_HMI / ((N + 1) n P_j))``: a fault moves the estimate
        to one side. A mode rarer than its part of the risk need not be watched (K_md = -inf).
        """
        modes = len(self.fault_probabilities)

        def false_alarm(probability: float) -> float:
            return upper_quantile(probability / (2 * modes * self.looks))

        vertical = self.integrity_vertical / ((modes + 1) * self.looks)
        horizontal = self.integrity_horizontal / (2 * (modes + 1) * self.looks)  # each axis
        across = false_alarm(self.false_alarm_horizontal / 2)
        return Multipliers(
            (across, across, false_alarm(self.false_alarm_vertical)),
            _by_axis(upper_quantile(horizontal / 2), upper_quantile(vertical / 2)),
            tuple(
                _by_axis(_missed(horizontal, p), _missed(vertical, p))
                for p in self.fault_probabilities
            ),
        )


@dataclass(frozen=True, slots=True)
class Multipliers:
    """Numbers of sigma on each axis (east, north, up)."""

    false_alarm: tuple[float, float, float]
    fault_free: tuple[float, float, float]
    missed: tuple[tuple[float, float, float], ...]  # of each mode; -inf: need not be watched


@dataclass(frozen=True, slots=True)
class Separation:
    """The test of the full solution against ``j`` solutions, on the axes of L."""

    difference_L: Float64[Tensor, "b j 3"]  # x_j - x_0, m; NaN where there is no such solution
    sigma_m: Float64[Tensor, "b j 3"]  # of it without a fault
    threshold_m: Float64[Tensor, "b j 3"]
    available: Bool[Tensor, "b j"]
    exceeded: Bool[Tensor, "b j"]  # on any axis
    alert: Bool[Tensor, " b"]
    statistic: Float64[Tensor, "b j"]  # largest |difference| over its sigma; zero where unavailable
    vertical_m: Float64[Tensor, " b"]  # protection levels; infinite where a mode is not watched
    horizontal_m: Float64[Tensor, " b"]


def separate(
    position_L: Float64[Tensor, "b 3"],
    covariance_L: Float64[Tensor, "b 3 3"],
    sub_position_L: Float64[Tensor, "b j 3"],
    sub_covariance_L: Float64[Tensor, "b j 3 3"],
    available: Bool[Tensor, "b j"],
    multipliers: Multipliers,
) -> Separation:
    """Tests the solutions against each other and bounds the error that may go unnoticed.

    Args:
        position_L: full solution, m.
        available: where there is such a solution; elsewhere its values may be anything.
        multipliers: of as many modes as there are solutions.

    Raises:
        ConfigError: they are not.
    """
    modes, solutions = len(multipliers.missed), sub_position_L.shape[1]
    if modes != solutions:
        raise ConfigError(f"{solutions} solutions for {modes} fault modes: expected one for each")
    false_alarm, fault_free, missed = _constants(multipliers, position_L.device)
    own = covariance_L.diagonal(dim1=-2, dim2=-1)[:, None]  # b 1 3
    without = sub_covariance_L.diagonal(dim1=-2, dim2=-1)
    there = available & sub_position_L.isfinite().all(-1) & without.isfinite().all(-1)
    wide = there[..., None]
    sigma = torch.maximum(without - own, _LEAST_SHARE * own).sqrt()
    sigma = torch.where(wide, sigma, math.nan)
    difference = torch.where(wide, sub_position_L - position_L[:, None], math.nan)
    threshold = false_alarm * sigma
    exceeded = (difference.abs() >= threshold).any(-1)
    statistic = (difference.abs() / sigma).nan_to_num(nan=0.0, posinf=math.inf).amax(-1)
    unwatched = threshold + missed.clamp_min(0.0) * without.clamp_min(0.0).sqrt()
    level = torch.where(wide, unwatched, math.inf)
    level = torch.where(missed == -math.inf, 0.0, level)
    level = torch.cat([fault_free * own.sqrt(), level], 1).amax(1)
    return Separation(
        difference,
        sigma,
        threshold,
        there,
        exceeded,
        exceeded.any(-1),
        statistic,
        level[:, 2],
        level[:, :2].square().sum(-1).sqrt(),
    )


def exclude(
    separation: Separation, consistent: Bool[Tensor, "b j"], odds: float = 1e3
) -> Int64[Tensor, " b"]:
    """Which solution to trust: `FULL`, the index of one, or `UNDECIDED`.

    Candidates are the solutions that differ from the full one by more than chance and that their
    own innovations do not contradict. For a fault of one dimension half of the squared separation
    is the log-likelihood ratio of its mode (Joerger, Chan and Pervan 2014), so one of several is
    taken where it is ``odds`` times as likely as the next: ``(s_1^2 - s_2^2) / 2 > ln odds``. Where
    every candidate is contradicted, or none leads, a third witness is needed.

    Args:
        consistent: solution j passes the tests of its own innovations.
    """
    candidate = separation.exceeded & consistent
    score = torch.where(candidate, 0.5 * separation.statistic.square(), -math.inf)
    best, index = score.max(1)
    alone = candidate.sum(1) == 1
    others = score.scatter(1, index[:, None], -math.inf).amax(1)
    leads = alone | ((best - others) > math.log(odds))
    chosen = torch.where(candidate.any(1) & leads, index, UNDECIDED)
    return torch.where(separation.alert, chosen, FULL)


@dataclass(frozen=True, slots=True)
class AlertLimit:
    """How wrong the height may be before the lander can no longer stop above the ground."""

    limit_m: Float64[Tensor, " b"]  # negative past the point of no return
    time_to_alert_s: Float64[Tensor, " b"]  # until that point at this speed; infinite when rising
    stoppable: Bool[Tensor, " b"]  # before the point of no return


def alert_limit(
    agl_m: Float64[Tensor, " b"],
    descent_rate_m_s: Float64[Tensor, " b"],
    net_deceleration_m_s2: Float64[Tensor, " b"],
) -> AlertLimit:
    """``AL = h - v^2 / (2 a_net)`` and ``AL / v``: proposed here from controllability, no standard.

    Args:
        agl_m: height over the ground.
        descent_rate_m_s: downwards.
        net_deceleration_m_s2: largest upward acceleration that is left beside gravity.
    """
    falling_m_s = descent_rate_m_s.clamp_min(0.0)
    stopping_m = falling_m_s.square() / (2 * net_deceleration_m_s2)
    stopping_m = torch.where(falling_m_s > 0, stopping_m, 0.0)
    limit_m = torch.where(
        (net_deceleration_m_s2 > 0) | (falling_m_s == 0), agl_m - stopping_m, -math.inf
    )
    left_s = torch.where(falling_m_s > 0, limit_m.clamp_min(0.0) / falling_m_s, math.inf)
    return AlertLimit(limit_m, left_s, limit_m > 0)


class Stanford(IntEnum):
    """Where an error lies in the Stanford diagram."""

    NOMINAL = 0  # error <= PL <= AL
    MISLEADING = 1  # PL < error <= AL: bounded wrongly, harmlessly
    HAZARDOUS = 2  # PL <= AL < error: in use, and too wrong to be
    UNAVAILABLE = 3  # PL > AL, or an alert stands: not in use


def stanford(
    error_m: Float64[Tensor, " b"],
    protection_m: Float64[Tensor, " b"],
    limit_m: Float64[Tensor, " b"],
    alert: Bool[Tensor, " b"],
) -> Int64[Tensor, " b"]:
    """Class of each estimate, values of `Stanford`.

    A protection level or a limit that is not a number is unavailable; an error that is not is the
    worst.
    """
    usable = (protection_m <= limit_m) & ~alert
    error = error_m.abs()
    bad = torch.where(error <= limit_m, Stanford.MISLEADING, Stanford.HAZARDOUS)
    return torch.where(
        usable, torch.where(error <= protection_m, Stanford.NOMINAL, bad), Stanford.UNAVAILABLE
    )


@lru_cache(maxsize=16)
def _constants(
    multipliers: Multipliers, device: torch.device
) -> tuple[Float64[Tensor, "3"], Float64[Tensor, "3"], Float64[Tensor, "j 3"]]:
    false_alarm, fault_free, missed = (
        torch.tensor(values, dtype=torch.float64).to(device)
        for values in (multipliers.false_alarm, multipliers.fault_free, multipliers.missed)
    )
    return false_alarm, fault_free, missed


def _by_axis(across: float, up: float) -> tuple[float, float, float]:
    return across, across, up


def _missed(risk: float, fault_probability: float) -> float:
    return upper_quantile(risk / fault_probability) if risk < fault_probability else -math.inf
