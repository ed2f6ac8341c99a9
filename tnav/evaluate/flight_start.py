"""Where closed-loop descents begin: the truth about the plan, and navigation about the truth."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tnav.evaluate.descent_plan import Descent, told_of
from tnav.evaluate.scenario import Scenario
from tnav.geometry.pose import so3_exp
from tnav.navigate.state import FilterState, initial_state
from tnav.simulate.lander import LanderState, at_start, forward_L, initial_orbit

_HALF_FOV_MAX_RAD = math.radians(75)  # a fisheye sees further, but learns no more out there


@dataclass(frozen=True, slots=True)
class Started:
    """Where a batch of descents begins, in truth and in navigation."""

    lander: LanderState
    state: FilterState


def start(descent: Descent, scenario: Scenario, batch: int, device: torch.device) -> Started:
    """Draws the truth about the plan, and navigation about the truth."""
    spread, guidance, frame = descent.dispersion, descent.guidance, scenario.site.frame
    generator = torch.Generator().manual_seed(scenario.seeds.initial)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator, dtype=torch.float64).to(device)

    downrange_m = torch.full((batch,), guidance.start_downrange_m, dtype=torch.float64)
    planned_L, planned_v_L = initial_orbit(
        frame, guidance.orbit, downrange_m.to(device), guidance.approach_azimuth_deg
    )
    position_L = planned_L + spread.orbit_position_m * normal(3)
    velocity_L = planned_v_L + spread.orbit_velocity_m_s * normal(3)
    lander = at_start(
        descent.lander,
        0.0,
        position_L,
        velocity_L,
        -velocity_L,
        forward_L(guidance.approach_azimuth_deg).to(device),
        1 + spread.thrust * normal(),
    )
    sigma_rad = math.radians(spread.attitude_deg)
    error_L = spread.position_m * normal(3)  # drawn in any case: the other draws stay the same
    if spread.position_error_L is not None:
        error_L = torch.tensor(spread.position_error_L, dtype=torch.float64, device=device)
    state = initial_state(
        0.0,
        position_L + error_L,
        velocity_L + spread.velocity_m_s * normal(3),
        so3_exp(sigma_rad * normal(3)) @ lander.R_L_B,
        position_sigma_m=spread.position_m,
        velocity_sigma_m_s=spread.velocity_m_s,
        attitude_sigma_rad=sigma_rad,
        config=told_of(descent, scenario),
    )
    return Started(lander, state)


def footprint_per_m(scenario: Scenario) -> float:
    """Side of the ground in view over the height."""
    half_rad = scenario.camera.camera().fov_rad / 2
    return 2 * math.tan(min(half_rad, _HALF_FOV_MAX_RAD))
