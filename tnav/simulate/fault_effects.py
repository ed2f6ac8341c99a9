"""Faults of all but the altimeter: inertial unit, camera, contact, ground, map, fusion, thrust.

Descents whose fault is not there now keep what they had, bit for bit.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.simulate.fault_bank import DrawnFault, FaultBank, FaultState, active, uniform
from tnav.simulate.faults import CameraFault, ImuDropoutFault, Place

_WHOLE = 1 - 1e-6  # of a step; the rest is rounding of the clock
_LEAST = 1e-12  # length of the horizontal part of a unit vector


@dataclass(frozen=True, slots=True)
class FixFaults:
    """What faults do to the fixes of one exposure."""

    lost: Bool[Tensor, " b"]
    offset_L: Float64[Tensor, "b 3"]  # to be added to the position, m
    error_scale: Float64[Tensor, " b"]  # the error is multiplied by it; 1 is healthy


def faulty_increments(
    bank: FaultBank,
    state: FaultState,
    t_s: float,
    dt_s: float,
    delta_v_B: Float64[Tensor, "b 3"],
    delta_theta_B: Float64[Tensor, "b 3"],
) -> tuple[Float64[Tensor, "b 3"], Float64[Tensor, "b 3"], Bool[Tensor, " b"]]:
    """Increments of one step; a fault acts over the part of the step for which it is there.

    Args:
        bank: the faults.
        state: after ``advance``, to the begin or to the end of the step.
        t_s: end of the step.
        dt_s: its length.
        delta_v_B: of healthy units, m/s.
        delta_theta_B: of healthy units, rad.

    Returns:
        Both increments, and where the unit says that it has read them.
    """
    present = torch.ones_like(delta_v_B[:, 0], dtype=torch.bool)
    for i in bank.at(Place.INERTIAL):
        fault = bank.faults[i]
        share = _share_of_step(bank, state, i, t_s, dt_s)
        match fault.recipe:
            case ImuDropoutFault(sensors=sensors, reads=reads):
                left = (1 - share)[:, None]
                if sensors != "gyros":
                    delta_v_B = left * delta_v_B
                if sensors != "accelerometers":
                    delta_theta_B = left * delta_theta_B
                if reads == "missing":
                    present = present & (share == 0)
            case _:
                delta_theta_B = _saturated(fault, share, dt_s, delta_theta_B)
    return delta_v_B, delta_theta_B, present


def _share_of_step(
    bank: FaultBank, state: FaultState, i: int, t_s: float, dt_s: float
) -> Float64[Tensor, " b"]:
    begun_s = state.begun_s[:, i]
    until_s = (begun_s + bank.lasts_s[:, i]).clamp_max(t_s)
    share = (until_s - begun_s.clamp_min(t_s - dt_s)) / dt_s
    share = torch.where(share > _WHOLE, 1.0, share)
    return torch.where(share < 1 - _WHOLE, 0.0, share)


def _saturated(
    fault: DrawnFault,
    share: Float64[Tensor, " b"],
    dt_s: float,
    delta_theta_B: Float64[Tensor, "b 3"],
) -> Float64[Tensor, "b 3"]:
    """Along the axis of a gyro at its end, a constant rate stands for the true one."""
    axis_B = fault.direction
    assert axis_B is not None
    rate_rad_s = fault.values["turned_deg"].deg2rad() / fault.values["lasts_s"]
    along = (delta_theta_B * axis_B).sum(-1)
    added_rad = share * (rate_rad_s * dt_s - along)
    return torch.where(
        share[:, None] > 0, delta_theta_B + added_rad[:, None] * axis_B, delta_theta_B
    )


def faulty_fix(
    bank: FaultBank, state: FaultState, t_s: float, agl_m: Float64[Tensor, " b"]
) -> FixFaults:
    """What happens to the fixes of one exposure.

    Args:
        bank: the faults.
        state: after ``advance``.
        t_s: of the exposure.
        agl_m: true heights over the ground; NaN moves no fix by a share of it.
    """
    lost = torch.zeros_like(agl_m, dtype=torch.bool)
    offset_L = torch.zeros_like(agl_m)[:, None].expand(-1, 3)
    error_scale = torch.ones_like(agl_m)
    there = active(bank, state, t_s)
    for i in bank.at(Place.CAMERA):
        fault, on = bank.faults[i], there[:, i]
        values = fault.values
        lost = lost | (on & (uniform(state, i, agl_m) < values["lost_share"]))
        moved_m = values["bias_m"] + values["bias_of_agl"] * agl_m.nan_to_num(nan=0.0)
        moved_L = moved_m[:, None] * _toward(fault)
        offset_L = offset_L + torch.where(on[:, None], moved_L, 0.0)
        error_scale = torch.where(on, error_scale * values["error_scale"], error_scale)
    return FixFaults(lost, offset_L, error_scale)


def _toward(fault: DrawnFault) -> Float64[Tensor, "b 3"]:
    """Unit vectors in L along which fixes are moved."""
    direction = fault.direction
    assert direction is not None
    match fault.recipe:
        case CameraFault(toward="vertical"):
            up = torch.zeros_like(direction)
            up[:, 2] = 1 - 2 * (direction[:, 2] < 0).double()
            return up
        case CameraFault(toward="horizontal"):
            flat = direction.clone()
            flat[:, 2] = 0.0
            return flat / flat.norm(dim=-1, keepdim=True).clamp_min(_LEAST)
        case _:
            return direction


def faulty_contact(
    bank: FaultBank, state: FaultState, t_s: float, contact: Bool[Tensor, " b"]
) -> Bool[Tensor, " b"]:
    """What the touchdown switches say. A pulse that is over between two readings is not seen."""
    columns = bank.at(Place.CONTACT)
    if not columns:
        return contact
    return contact | _any(bank, state, t_s, columns)


def not_fused(bank: FaultBank, state: FaultState, t_s: float) -> Bool[Tensor, " b"]:
    """Where navigation leaves out ranges that are valid."""
    columns = bank.at(Place.FUSION)
    if not columns:
        return bank.filled(0.0) > 0
    return _any(bank, state, t_s, columns)


def _any(bank: FaultBank, state: FaultState, t_s: float, columns: list[int]) -> Bool[Tensor, " b"]:
    there = active(bank, state, t_s)
    return torch.stack([there[:, i] for i in columns]).any(0)


def ground_fall_m(bank: FaultBank, state: FaultState, t_s: float) -> Float64[Tensor, " b"]:
    """How far the true ground now lies below the map: a ramp down, and up again where it ends."""
    fall_m = bank.filled(0.0)
    for i in bank.at(Place.GROUND):
        values, since_s = bank.faults[i].values, t_s - state.begun_s[:, i]
        down = (since_s / values["crossed_in_s"]).clamp(0.0, 1.0)
        up = ((since_s - bank.lasts_s[:, i]) / values["crossed_in_s"]).clamp(0.0, 1.0)
        fall_m = fall_m + values["size_m"] * (down - up)
    return fall_m


def map_offset_m(
    bank: FaultBank, state: FaultState, t_s: float
) -> tuple[Float64[Tensor, " b"], Float64[Tensor, "b 2"]]:
    """How far navigation's map lies too high, and how far it is moved to east and north."""
    too_high_m, moved_m = bank.filled(0.0), bank.filled(0.0)[:, None].expand(-1, 2)
    columns = bank.at(Place.MAP)
    if not columns:
        return too_high_m, moved_m
    there = active(bank, state, t_s)
    for i in columns:
        fault, on = bank.faults[i], there[:, i]
        values = fault.values
        assert fault.direction is not None
        flat = fault.direction[:, :2]
        flat = flat / flat.norm(dim=-1, keepdim=True).clamp_min(_LEAST)
        too_high_m = too_high_m + torch.where(on, values["vertical_m"] + values["datum_m"], 0.0)
        moved_m = moved_m + torch.where(on[:, None], values["shift_m"][:, None] * flat, 0.0)
    return too_high_m, moved_m


def thrust_factor(bank: FaultBank, state: FaultState, t_s: float) -> Float64[Tensor, " b"]:
    """By which the engines' thrust is multiplied beside what the plan knows."""
    factor = bank.filled(1.0)
    columns = bank.at(Place.THRUST)
    if not columns:
        return factor
    there = active(bank, state, t_s)
    for i in columns:
        bias = bank.faults[i].values["bias"]
        factor = torch.where(there[:, i], factor * (1 + bias), factor)
    return factor
