"""What lights the ground: the Sun as a disc, and the Earth.

A point that sees only a part of the Sun's disc lies in penumbra. The light that reaches it is the
share of shadow rays, spread over the disc, that get through. Each ray carries the same light: the
disc darkens towards its limb, so the rays thin out there.
"""

import functools
import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from tnav.errors import ConfigError

_SUN_RADIUS_M = 6.957e8  # nominal solar radius, IAU 2015 resolution B3 (Prsa et al. 2016)
_ASTRONOMICAL_UNIT_M = 1.495978707e11
_EARTH_RADIUS_M = 6.371e6  # mean
_EARTH_DISTANCE_M = 3.844e8  # mean, between centres
_EARTH_BOND_ALBEDO = 0.297  # Goode et al. 2001, Geophys. Res. Lett. 28, 1671
_GOLDEN_TURN = (3 - math.sqrt(5)) / 2  # of a turn, between neighbours on a sunflower spiral
_WIDEST_SUN_RAD = 0.1
_ROUNDING = 1e-14  # of the square of a unit vector

# I(mu)/I(1) = a0 + a1 mu + a2 mu^2 at 550 nm, mu the cosine at the Sun's surface
# (Cox 2000, Allen's Astrophysical Quantities, section 14.7)
LIMB_DARKENING = (0.3, 0.93, -0.23)
UNIFORM_DISC = (1.0, 0.0, 0.0)


def sun_radius_rad(distance_au: float = 1.0) -> float:
    """Angular radius of the Sun's disc at a distance; 0.2665 deg at 1 au."""
    return math.asin(_SUN_RADIUS_M / (distance_au * _ASTRONOMICAL_UNIT_M))


@dataclass(frozen=True, slots=True)
class Earthshine:
    """Light of the Earth, as from a point that the ground never hides.

    Neglected: the ground's shadows in it, the Earth's 2 deg disc, and light that the ground sends
    to other ground, which in a sunlit scene is far stronger than the Earth's.
    """

    earth_L: Float64[Tensor, "3"] | Float64[Tensor, "b 3"]  # to the Earth; one, or a pose's
    irradiance_ratio: float  # the Earth's irradiance over the Sun's (`earth_irradiance_ratio`)

    def __post_init__(self) -> None:
        if not 0 <= self.irradiance_ratio < 1:
            raise ConfigError(
                f"earthshine.irradiance_ratio: {self.irradiance_ratio}, expected in [0, 1)"
            )
        object.__setattr__(self, "earth_L", _unit(self.earth_L))

    def to(self, device: torch.device) -> "Earthshine":
        """The same on another device."""
        return replace(self, earth_L=self.earth_L.to(device))


def earth_irradiance_ratio(phase_rad: float, distance_m: float = _EARTH_DISTANCE_M) -> float:
    """Irradiance at the Moon from the Earth over that from the Sun.

    The Earth is a Lambert sphere of Bond albedo A: ``2/3 A (R/d)^2 (sin a + (pi - a) cos a) / pi``
    (Lambert 1760; geometric albedo 2/3 A). At a = 0 it gives 0.074 W/m^2, where Glenar et al.
    (2019, Icarus 321, 841) model 0.15 W/m^2 of which about half is reflected light.

    Args:
        phase_rad: angle a between Sun and Moon at the Earth, in [0, pi]; 0 at new Moon.
        distance_m: between the centres of Earth and Moon.
    """
    if not 0 <= phase_rad <= math.pi:
        raise ConfigError(f"earthshine: phase {phase_rad} rad, expected in [0, pi]")
    share = (math.sin(phase_rad) + (math.pi - phase_rad) * math.cos(phase_rad)) / math.pi
    return 2 / 3 * _EARTH_BOND_ALBEDO * (_EARTH_RADIUS_M / distance_m) ** 2 * max(0.0, share)


@dataclass(frozen=True, slots=True)
class Sunlight:
    """The Sun over a batch of poses. Radiance factors do not depend on its distance.

    Vectors to Sun and Earth may have any length but 0; what is kept of them is unit.
    """

    sun_L: Float64[Tensor, "3"] | Float64[Tensor, "b 3"]  # to its centre; one, or a pose's
    samples: int = 1  # shadow rays for each ray of the camera; 1: a point without penumbra
    angular_radius_rad: float = sun_radius_rad()
    limb_darkening: tuple[float, float, float] = LIMB_DARKENING
    earth: Earthshine | None = None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"sunlight.samples: {self.samples}, expected 1 or more")
        if not 0 < self.angular_radius_rad < _WIDEST_SUN_RAD:
            raise ConfigError(
                f"sunlight.angular_radius_rad: {self.angular_radius_rad}, "
                f"expected in (0, {_WIDEST_SUN_RAD})"
            )
        object.__setattr__(self, "sun_L", _unit(self.sun_L))

    def to(self, device: torch.device) -> "Sunlight":
        """The same on another device."""
        earth = None if self.earth is None else self.earth.to(device)
        return replace(self, sun_L=self.sun_L.to(device), earth=earth)

    def rays_L(self, shift: float = 0.5) -> list[Float64[Tensor, "a 3"]]:
        """Unit vectors to points that share the light of the disc evenly, for 1 or b poses.

        Args:
            shift: in (0, 1); different shifts give points that fill each other's gaps.
        """
        sun_L = self.sun_L.view(-1, 3)
        if self.samples == 1:
            return [sun_L]
        first_L, second_L = _across(sun_L)
        rays = []
        for x, y in disc_points(self.samples, shift, self.limb_darkening):
            # The limb of a sphere at distance d is its radius over d away from the centre in sine.
            x, y = x * math.sin(self.angular_radius_rad), y * math.sin(self.angular_radius_rad)
            rays.append(math.sqrt(1 - x * x - y * y) * sun_L + x * first_L + y * second_L)
        return rays


@functools.cache
def disc_points(
    count: int, shift: float, darkening: tuple[float, float, float]
) -> tuple[tuple[float, float], ...]:
    """Points in the unit disc, each at the middle of an equal share of its light.

    They lie on a sunflower spiral (Vogel 1979): no two at one angle, their radii at the quantiles
    of light.
    """
    points = []
    for j in range(count):
        radius = light_radius((j + shift) / count, darkening)
        angle = 2 * math.pi * (j * _GOLDEN_TURN + shift)
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return tuple(points)


def light_radius(share: float, darkening: tuple[float, float, float]) -> float:
    """Radius in the unit disc within which a share of the disc's light comes out."""
    a0, a1, a2 = darkening

    def beyond(mu: float) -> float:
        """Light from the centre out to where the cosine is mu, from the integral of 2 I mu dmu."""
        return a0 * (1 - mu**2) + 2 / 3 * a1 * (1 - mu**3) + a2 / 2 * (1 - mu**4)

    low, high = 0.0, 1.0  # cosines: the limb and the centre
    for _ in range(60):
        middle = (low + high) / 2
        if beyond(middle) > share * beyond(0.0):
            low = middle
        else:
            high = middle
    return math.sqrt(1 - low**2)


def _unit(vector: Float64[Tensor, "*b 3"]) -> Float64[Tensor, "*b 3"]:
    """Vectors of length 1; those that have it to rounding keep their bits."""
    x, y, z = vector.unbind(-1)
    square = (x * x + y * y + z * z)[..., None]
    return torch.where((square - 1).abs() < _ROUNDING, vector, vector / square.sqrt())


def _across(
    axis_L: Float64[Tensor, "a 3"],
) -> tuple[Float64[Tensor, "a 3"], Float64[Tensor, "a 3"]]:
    """Two unit vectors that complete an axis to a basis, without a branch (Duff et al. 2017)."""
    x, y, z = axis_L.unbind(-1)
    sign = torch.copysign(torch.ones_like(z), z)
    a = -1 / (sign + z)
    b = x * y * a
    first = torch.stack([1 + sign * x * x * a, sign * b, -sign * x], -1)
    return first, torch.stack([b, sign + y * y * a, -y], -1)
