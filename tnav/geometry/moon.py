"""The Moon's frames: M is Moon-fixed (mean Earth / polar axis), L is east-north-up at a site.

The Moon is a sphere of 1737.4 km here, as in every LOLA product; heights count from it. L has its
origin on that sphere, below (or above) the site's ground. Only this module converts.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

RADIUS_M = 1737.4e3  # reference sphere of IAU 2015 and of the LOLA products
GM_M3_S2 = 4.902800118e12  # GRAIL GL0660B (Konopliv et al. 2013)
# Degree 2 of the same field: normalised C20 -9.088e-5, J2 = -sqrt(5) C20 (C22: none here).
J2 = 2.0322e-4
J2_RADIUS_M = 1738.0e3  # the reference radius that goes with J2, not the sphere of the heights
SPIN_RAD_S = 2.6616995e-6  # 13.17635815 deg/day (IAU WGCCRE 2015, Archinal et al. 2018, W's rate)


@dataclass(frozen=True, slots=True)
class LocalFrame:
    """East-north-up frame whose origin lies on the reference sphere at a site."""

    latitude_deg: float
    longitude_deg: float  # east positive

    @property
    def R_M_L(self) -> Float64[Tensor, "3 3"]:
        """Local axes (east, north, up) in M, as columns."""
        lat, lon = math.radians(self.latitude_deg), math.radians(self.longitude_deg)
        east = [-math.sin(lon), math.cos(lon), 0.0]
        north = [-math.sin(lat) * math.cos(lon), -math.sin(lat) * math.sin(lon), math.cos(lat)]
        up = [math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)]
        return torch.tensor([east, north, up], dtype=torch.float64).T.contiguous()

    @property
    def centre_L(self) -> Float64[Tensor, "3"]:
        """The Moon's centre in L, m."""
        return torch.tensor([0.0, 0.0, -RADIUS_M], dtype=torch.float64)

    @property
    def pole_L(self) -> Float64[Tensor, "3"]:
        """The Moon's spin axis in L, a unit vector."""
        lat = math.radians(self.latitude_deg)
        return torch.tensor([0.0, math.cos(lat), math.sin(lat)], dtype=torch.float64)

    def spin_L(self) -> Float64[Tensor, "3"]:
        """Angular velocity of L against inertial space, rad/s."""
        return self.R_M_L.T @ torch.tensor([0.0, 0.0, SPIN_RAD_S], dtype=torch.float64)

    def geodetic(
        self, point_L: Float64[Tensor, "*b 3"]
    ) -> tuple[Float64[Tensor, "*b"], Float64[Tensor, "*b"], Float64[Tensor, "*b"]]:
        """Latitude (deg), east longitude in [-180, 180) (deg) and height above the sphere (m)."""
        device = point_L.device
        p_M = (point_L - self.centre_L.to(device)) @ self.R_M_L.T.to(device)
        radius = p_M.norm(dim=-1)
        latitude = torch.rad2deg(torch.asin(p_M[..., 2] / radius))
        longitude = torch.rad2deg(torch.atan2(p_M[..., 1], p_M[..., 0]))
        return latitude, longitude, radius - RADIUS_M

    def local(
        self,
        latitude_deg: Float64[Tensor, "*b"],
        longitude_deg: Float64[Tensor, "*b"],
        height_m: Float64[Tensor, "*b"],
    ) -> Float64[Tensor, "*b 3"]:
        """Point in L of a latitude, longitude and height above the sphere."""
        lat, lon = torch.deg2rad(latitude_deg), torch.deg2rad(longitude_deg)
        unit = torch.stack(
            [torch.cos(lat) * torch.cos(lon), torch.cos(lat) * torch.sin(lon), torch.sin(lat)], -1
        )
        device = unit.device
        return (RADIUS_M + height_m)[..., None] * unit @ self.R_M_L.to(device) + self.centre_L.to(
            device
        )


def altitude_m(point_L: Float64[Tensor, "*b 3"]) -> Float64[Tensor, "*b"]:
    """Height above the 1737.4 km sphere of points in any local frame."""
    x, y, z = point_L.unbind(-1)
    # |p - c| - R without the cancellation of a bare difference of two large numbers.
    s = x * x + y * y + z * z + 2 * RADIUS_M * z
    return s / ((s + RADIUS_M**2).sqrt() + RADIUS_M)


def _from_centre(point_L: Float64[Tensor, "*b 3"]) -> Float64[Tensor, "*b 3"]:
    x, y, z = point_L.unbind(-1)
    return torch.stack([x, y, z + RADIUS_M], -1)


def up_L(point_L: Float64[Tensor, "*b 3"]) -> Float64[Tensor, "*b 3"]:
    """Unit vector of the local vertical (away from the Moon's centre) at points in L."""
    radial = _from_centre(point_L)
    return radial / radial.norm(dim=-1, keepdim=True)


def gravity_L(point_L: Float64[Tensor, "*b 3"], frame: LocalFrame) -> Float64[Tensor, "*b 3"]:
    """Gravity of a point mass and of the Moon's flattening, m/s^2, without the centrifugal term.

    ``-GM/r^3 [r + 3/2 J2 (R/r)^2 ((1 - 5 s^2) r + 2 r s k)]`` with k the pole and ``r s`` the
    height over the equator's plane (Montenbruck, Gill 2000, "Satellite Orbits", section 3.2;
    Vallado 2013, section 8.7).
    """
    radial = _from_centre(point_L)
    latitude = math.radians(frame.latitude_deg)
    cosine, sine = math.cos(latitude), math.sin(latitude)  # the pole in L is (0, cosine, sine)
    radius2 = radial.square().sum(-1, keepdim=True)
    height = cosine * radial[..., 1:2] + sine * radial[..., 2:3]
    flattening = (1.5 * J2 * J2_RADIUS_M**2) / radius2
    along_radius = 1 + flattening * (1 - 5 * height.square() / radius2)
    along_pole = 2 * flattening * height
    x, y, z = radial.unbind(-1)
    scaled = torch.stack(
        [
            along_radius[..., 0] * x,
            along_radius[..., 0] * y + along_pole[..., 0] * cosine,
            along_radius[..., 0] * z + along_pole[..., 0] * sine,
        ],
        -1,
    )
    return -GM_M3_S2 / (radius2 * radius2.sqrt()) * scaled
