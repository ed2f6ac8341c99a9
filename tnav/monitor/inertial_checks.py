"""Streaming tests of the inertial unit: at its limits, exact zeros under thrust.

The star tracker's innovation, the third test of it, is a `tnav.monitor.detectors.Shift` of three
components. States, alarms and absent samples as in ``tnav.monitor.detectors``.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.monitor.detectors import F64, Run, begun, extend, undefined


@dataclass(frozen=True, slots=True)
class InertialLimits:
    """What the unit can measure, and how many steps in a row are a fault."""

    specific_force_max_m_s2: float
    rate_max_rad_s: float
    saturated: int  # steps in a row at a limit
    zeros: int  # steps in a row of exact zeros
    near: float = 0.999  # of a limit counts as at it: increments are rounded


@dataclass(frozen=True, slots=True)
class Inertial:
    """Clamped increments (Schiaparelli) and zeros that are taken as data (Luna 25)."""

    at_limit: Run
    zeros: Run
    saturated: Bool[Tensor, " b"]
    silent: Bool[Tensor, " b"]
    alarm: Bool[Tensor, " b"]  # either
    onset_s: Float64[Tensor, " b"]
    statistic: Float64[Tensor, " b"]  # steps in a row, the longer run

    @staticmethod
    def fresh(batch: int, device: torch.device | str) -> "Inertial":
        """No steps yet."""
        no = torch.zeros(batch, dtype=torch.bool, device=device)
        run = Run.fresh(batch, device)
        return Inertial(run, run, no, no, no, undefined(batch, device), no.to(F64))


def update_inertial(
    state: Inertial,
    t_s: float,
    dt_s: float,
    delta_v_B: Float64[Tensor, "b 3"],
    delta_theta_B: Float64[Tensor, "b 3"],
    thrusting: Bool[Tensor, " b"],
    limits: InertialLimits,
) -> Inertial:
    """Takes the increments of one step.

    Args:
        delta_v_B: m/s; zeros of all its components count only while thrusting.
        delta_theta_B: rad; zeros of all its components count always, for gyros have noise.
        thrusting: the engine was commanded on over the whole step.
    """
    there = delta_v_B.isfinite().all(1) & delta_theta_B.isfinite().all(1)
    force = delta_v_B.abs().amax(1) >= limits.near * limits.specific_force_max_m_s2 * dt_s
    turn = delta_theta_B.abs().amax(1) >= limits.near * limits.rate_max_rad_s * dt_s
    at_limit = extend(state.at_limit, t_s, force | turn, there)
    no_force = (delta_v_B == 0).all(1) & thrusting
    zeros = extend(state.zeros, t_s, no_force | (delta_theta_B == 0).all(1), there)
    saturated = at_limit.length >= limits.saturated
    silent = zeros.length >= limits.zeros
    alarm = saturated | silent
    estimate_s = torch.where(saturated, at_limit.began_s, zeros.began_s)
    onset_s = begun(alarm, state.alarm, state.onset_s, estimate_s)
    longer = torch.maximum(at_limit.length, zeros.length).to(F64)
    return Inertial(at_limit, zeros, saturated, silent, alarm, onset_s, longer)
