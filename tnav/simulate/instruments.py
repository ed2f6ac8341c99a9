"""The smaller instruments of ``b`` descents: star tracker, touchdown switch, the camera's clock.

Inertial unit and altimeter have modules of their own. What an instrument reads is drawn from a
generator on the CPU, one for each source of randomness, and lies on the device of the truth.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Float64
from pydantic import AfterValidator, Field
from torch import Tensor

from tnav.config import Recipe
from tnav.geometry.pose import so3_exp
from tnav.simulate.descent import Trajectory

_CLOCK_ROUNDING_S = 1e-6  # a time of many summed steps may fall short of a delay by less than this


def _unit(value: tuple[float, float, float]) -> tuple[float, float, float]:
    length = math.hypot(*value)
    if length < 1e-6:
        raise ValueError("expected a direction, not a zero vector")
    x, y, z = (v / length for v in value)
    return (x, y, z)


Direction = Annotated[tuple[float, float, float], AfterValidator(_unit)]  # made a unit vector


class StarTracker(Recipe):
    """Attitude sensor with white error, isotropic unless it is worse about its boresight."""

    sigma_deg: float = Field(default=0.01, gt=0)  # 1 sigma about an axis across the boresight
    rate_hz: float = Field(default=1.0, gt=0)
    boresight_B: Direction = (0.0, 0.0, 1.0)
    boresight_factor: float = Field(default=1.0, ge=1)  # sigma about the boresight over sigma_deg


class TouchdownSwitch(Recipe):
    """A probe under the landing gear that closes a switch; nothing latches.

    Apollo's lunar module had probes of about 1.7 m. Delay is this project's choice.
    """

    probe_m: float = Field(default=1.7, ge=0)  # reaches so far below the point that agl_m is of
    delay_s: float = Field(default=0.05, ge=0)  # must touch for so long
    # Contacts count where navigation believes it is lower: Mars Polar Lander's were armed at 40 m.
    armed_below_m: float = Field(default=40.0, gt=0)
    # Of each reading, contact or not. Mars Polar Lander's latched one such reading.
    spurious_probability: float = Field(default=0.0, ge=0, le=1)


class CameraTiming(Recipe):
    """When images are exposed, what their time tags are worth, and when their fixes arrive.

    The figures are this project's choice: 1 ms is 0.15 m at the 150 m/s of a late descent and 1.7 m
    at the speed of an orbit.
    """

    interval_s: float = Field(default=5.0, ge=0.1)
    time_tag_sigma_s: float = Field(default=1e-3, ge=0)  # 1 sigma, new with every image
    latency_s: float = Field(default=0.5, ge=0)  # the fix of an image of time t arrives at t + this


@dataclass(frozen=True, slots=True)
class TouchdownState:
    """Memory of the switches of ``b`` descents."""

    touching_since_s: Float64[Tensor, " b"]  # inf where the probe is free

    @classmethod
    def free(cls, batch: int, device: torch.device | str) -> "TouchdownState":
        """All probes in the air."""
        return cls(torch.full((batch,), math.inf, dtype=torch.float64, device=device))


def epochs_s(trajectory: Trajectory, rate_hz: float, first_s: float = 0.0) -> Float64[Tensor, " n"]:
    """Times at which a sensor of that rate speaks during a flight."""
    begin_s = float(trajectory.t_s[0]) + first_s
    count = math.floor((float(trajectory.t_s[-1]) - begin_s) * rate_hz + 1e-9) + 1
    return begin_s + torch.arange(max(count, 0), dtype=torch.float64) / rate_hz


def read_attitude(
    tracker: StarTracker, R_L_B: Float64[Tensor, "b 3 3"], generator: torch.Generator
) -> Float64[Tensor, "b 3 3"]:
    """Attitudes as read: ``Exp(e_L) R_L_B``, with a normal error e_L.

    Args:
        tracker: the recipe.
        R_L_B: true attitudes.
        generator: of the error, on the CPU.
    """
    sigma_rad = math.radians(tracker.sigma_deg)
    error_L = torch.randn(R_L_B.shape[0], 3, generator=generator, dtype=torch.float64)
    error_L = sigma_rad * error_L.to(R_L_B.device)
    if tracker.boresight_factor > 1:
        boresight_B = torch.tensor(tracker.boresight_B, dtype=torch.float64, device=R_L_B.device)
        boresight_L = R_L_B @ boresight_B
        about = (error_L * boresight_L).sum(-1, keepdim=True)
        error_L = error_L + (tracker.boresight_factor - 1) * about * boresight_L
    return so3_exp(error_L) @ R_L_B


def read_star_tracker(
    tracker: StarTracker, R_L_B: Float64[Tensor, "n 3 3"], seed: int
) -> Float64[Tensor, "n 3 3"]:
    """Attitudes of a whole flight as read."""
    return read_attitude(tracker, R_L_B, torch.Generator().manual_seed(seed))


def read_touchdown(
    switch: TouchdownSwitch,
    state: TouchdownState,
    agl_m: Float64[Tensor, " b"],
    t_s: float,
    generator: torch.Generator,
) -> tuple[TouchdownState, Bool[Tensor, " b"]]:
    """One reading of the switches.

    Args:
        switch: the recipe.
        state: after the reading before, or ``TouchdownState.free``.
        agl_m: true height above the ground of the point from which the probe hangs.
        t_s: of the reading; never falls from one reading to the next.
        generator: of spurious contacts, on the CPU.

    Returns:
        The state for the next reading, and where the switch says contact.
    """
    since_s = state.touching_since_s.clamp_max(t_s)
    since_s = torch.where(agl_m <= switch.probe_m, since_s, torch.full_like(since_s, math.inf))
    contact = since_s + switch.delay_s <= t_s + _CLOCK_ROUNDING_S
    if switch.spurious_probability > 0:
        drawn = torch.rand(agl_m.shape, generator=generator, dtype=torch.float64)
        contact = contact | (drawn.to(agl_m.device) < switch.spurious_probability)
    return TouchdownState(since_s), contact


def tag_exposure(
    timing: CameraTiming, exposed_s: Float64[Tensor, " b"], generator: torch.Generator
) -> Float64[Tensor, " b"]:
    """Time tags of images exposed at those times."""
    error = torch.randn(exposed_s.shape, generator=generator, dtype=torch.float64)
    return exposed_s + timing.time_tag_sigma_s * error.to(exposed_s.device)
