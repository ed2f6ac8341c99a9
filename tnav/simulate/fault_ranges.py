"""Altimeter faults: readings of ``b`` faulty altimeters from those of healthy ones.

Faults of one altimeter act in the order in which a reading comes about: the echo, factors, sums,
outliers, then what the electronics make of it. Descents whose fault is not there now keep their
readings bit for bit.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.simulate.altimeter import incidence_of
from tnav.simulate.fault_bank import (
    CLOCK_ROUNDING_S,
    DrawnFault,
    FaultBank,
    FaultState,
    PastRanges,
    active,
    normal,
    uniform,
)
from tnav.simulate.fault_prescribed import lock_chance
from tnav.simulate.fault_spans import reach
from tnav.simulate.faults import (
    BiasFault,
    DriftFault,
    DropoutFault,
    FalseLockFault,
    LateAcquisitionFault,
    LatencyFault,
    NoiseInflationFault,
    Place,
    ScaleFault,
    SpikeFault,
    StepSensorFault,
    StuckFault,
    TiltCoupledFault,
    VelocityCoupledFault,
)

_LEAST_COSINE = 0.1  # a slant is no longer than ten heights

Readings = tuple[Float64[Tensor, " b"], Bool[Tensor, " b"]]  # ranges in m, and where valid


@dataclass(frozen=True, slots=True)
class BeamTruth:
    """What is true of the beams when they are read."""

    range_m: Float64[Tensor, " b"]
    incidence_rad: Float64[Tensor, " b"]  # on the ground
    closing_speed_m_s: Float64[Tensor, " b"]  # along the beam, positive towards the ground
    tilt_rad: Float64[Tensor, " b"]  # between beam and local vertical
    sigma_m: Float64[Tensor, " b"]  # 1-sigma noise of a healthy altimeter

    @classmethod
    def along(
        cls,
        beam_L: Float64[Tensor, "b 3"],
        velocity_L: Float64[Tensor, "b 3"],
        up_L: Float64[Tensor, "b 3"],
        range_m: Float64[Tensor, " b"],
        incidence_rad: Float64[Tensor, " b"],
        sigma_m: Float64[Tensor, " b"],
    ) -> "BeamTruth":
        """Speed and tilt of beams, from unit vectors and velocities."""
        closing_m_s = (velocity_L * beam_L).sum(-1)
        return cls(range_m, incidence_rad, closing_m_s, incidence_of(beam_L, up_L), sigma_m)


def faulty_ranges(
    bank: FaultBank,
    state: FaultState,
    t_s: float,
    range_m: Float64[Tensor, " b"],
    valid: Bool[Tensor, " b"],
    truth: BeamTruth,
) -> tuple[FaultState, Float64[Tensor, " b"], Bool[Tensor, " b"]]:
    """One epoch of the altimeters.

    Args:
        bank: the faults.
        state: after ``advance`` to this time.
        t_s: of the epoch; grows from one epoch to the next.
        range_m: of healthy altimeters.
        valid: where they are valid.
        truth: of the beams.

    Returns:
        The state for the next epoch; ranges in m, which mean nothing where they are not valid, and
        which an error may make negative; where they are valid.
    """
    columns = bank.at(Place.ALTIMETER)
    if not columns:
        return state, range_m, valid
    there = active(bank, state, t_s)
    for i in columns:
        fault, on = bank.faults[i], there[:, i]
        match fault.recipe:
            case StuckFault():
                state, (range_m, valid) = _stuck(fault, state, i, on, (range_m, valid))
            case LatencyFault():
                state, (range_m, valid) = _late(fault, state, i, t_s, on, (range_m, valid))
            case SpikeFault():
                hit = on & (uniform(state, i, range_m) < fault.values["share"])
                anywhere_m = uniform(state, i, range_m) * fault.values["within_m"]
                range_m = torch.where(hit, anywhere_m, range_m)
            case LateAcquisitionFault():
                chance = lock_chance(
                    truth.range_m, farthest_m(fault, truth), fault.values["edge_m"]
                )
                valid = valid & (~on | (uniform(state, i, range_m) < chance))
            case DropoutFault():
                lost = uniform(state, i, range_m) < fault.values["lost_share"]
                valid = valid & ~(on & lost)
            case FalseLockFault() | ScaleFault() | TiltCoupledFault():
                range_m = torch.where(on, _multiplied(fault, range_m, truth), range_m)
            case NoiseInflationFault():
                more = (fault.values["factor"].square() - 1).sqrt() * truth.sigma_m
                range_m = torch.where(on, range_m + more * normal(state, i, range_m), range_m)
            case BiasFault() | StepSensorFault() | DriftFault() | VelocityCoupledFault():
                since_s = t_s - state.begun_s[:, i]
                range_m = torch.where(on, range_m + _error_m(fault, since_s, truth), range_m)
            case _:  # a permanent outage
                valid = valid & ~on
    return state, range_m, valid


def farthest_m(fault: DrawnFault, truth: BeamTruth) -> Float64[Tensor, " b"]:
    """Range at which half of the echoes of a late acquisition are found."""
    values = fault.values
    if "link_loss_db" in values:
        base_m = values["specified_range_m"] * 10 ** (-values["link_loss_db"] / 20)
    else:
        base_m = values["range_max_m"]
    level = truth.incidence_rad.cos().clamp_min(0.0) ** values["incidence_power"]
    if "speed_scale_m_s" not in values:
        return base_m * level
    faster_m_s = truth.closing_speed_m_s.clamp_min(0.0) - values["of_speed_m_s"]
    return base_m * level * (-faster_m_s / values["speed_scale_m_s"]).exp()


def _multiplied(
    fault: DrawnFault, range_m: Float64[Tensor, " b"], truth: BeamTruth
) -> Float64[Tensor, " b"]:
    """Ranges whose error is one of the echo or a factor."""
    values = fault.values
    match fault.recipe:
        case FalseLockFault(on="ambiguity"):
            return range_m.remainder(values["ambiguity_m"])
        case FalseLockFault():
            return range_m / values["lobe_deg"].deg2rad().cos()
        case TiltCoupledFault():
            longer = 1 / truth.tilt_rad.cos().clamp_min(_LEAST_COSINE) - 1
            return range_m * (1 + values["gain"] * longer)
        case _:
            return range_m * (1 + values["scale"])


def _error_m(
    fault: DrawnFault, since_s: Float64[Tensor, " b"], truth: BeamTruth
) -> Float64[Tensor, " b"]:
    """What is added to ranges, so long after the fault began."""
    values = fault.values
    match fault.recipe:
        case StepSensorFault():
            return values["size_m"] * (since_s / values["crossed_in_s"]).clamp(0.0, 1.0)
        case DriftFault():
            return values["drift_m_s"] * since_s
        case VelocityCoupledFault():
            return values["coupling_s"] * truth.closing_speed_m_s
        case _:
            return values["bias_m"]


def _stuck(
    fault: DrawnFault, state: FaultState, i: int, on: Bool[Tensor, " b"], read: Readings
) -> tuple[FaultState, Readings]:
    range_m, valid = read
    if isinstance(fault.recipe, StuckFault) and fault.recipe.at == "zero":
        return state, (torch.where(on, 0.0, range_m), valid | on)
    held_m = state.held_m.get(i, torch.full_like(range_m, torch.nan))
    held_m = torch.where(valid & (~on | held_m.isnan()), range_m, held_m)
    state = replace(state, held_m={**state.held_m, i: held_m})
    return state, (torch.where(on, held_m, range_m), torch.where(on, ~held_m.isnan(), valid))


def _late(
    fault: DrawnFault, state: FaultState, i: int, t_s: float, on: Bool[Tensor, " b"], read: Readings
) -> tuple[FaultState, Readings]:
    """The newest readings that have come through; before the first, none."""
    assert isinstance(fault.recipe, LatencyFault)
    past = _with(state.past.get(i), t_s, read, reach(fault.recipe.delay_s)[1])
    through = past.t_s[:, None] <= t_s + CLOCK_ROUNDING_S - fault.values["delay_s"]
    newest = (through.sum(0, keepdim=True) - 1).clamp_min(0)
    range_m = torch.where(on, past.range_m.gather(0, newest)[0], read[0])
    arrived = past.valid.gather(0, newest)[0] & through[0]
    state = replace(state, past={**state.past, i: past})
    return state, (range_m, torch.where(on, arrived, read[1]))


def _with(past: PastRanges | None, t_s: float, read: Readings, longest_s: float) -> PastRanges:
    """Past readings and a new one, without those that nobody will ask for again."""
    range_m, valid = (tensor[None] for tensor in read)
    now_s = torch.full((1,), t_s, dtype=torch.float64, device=range_m.device)
    if past is None:
        return PastRanges((t_s,), now_s, range_m, valid)
    on_host_s = (*past.on_host_s, t_s)
    # The newest of those that the latest altimeter has delivered is still its reading.
    first = max(sum(old <= t_s - longest_s for old in on_host_s) - 1, 0)
    return PastRanges(
        on_host_s[first:],
        torch.cat([past.t_s, now_s])[first:],
        torch.cat([past.range_m, range_m])[first:],
        torch.cat([past.valid, valid])[first:],
    )
