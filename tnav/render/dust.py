"""Dust that the engine's plume blows over the ground, as a haze that veils it.

A stated model, not a plume simulation. Dust fills a layer over the ground whose extinction falls
off as exp(-h / H) and whose column grows as the lander sinks below an onset altitude. Light is
scattered once in it (Chandrasekhar 1960, Radiative Transfer, section 68, first order), so that

    I = I_ground exp(-tau/mu_s) exp(-tau_c/mu) + I_air (1 - exp(-tau_c (1/mu_s + 1/mu)))

with mu_s and mu the cosines of Sun and ray to the vertical, tau the column and tau_c its part below
the camera.

I_air, the single-scattering albedo times P / 4 times mu_s / (mu_s + mu), is dimmed by the dust over
the camera where the camera is in the layer.

What is published: the dust leaves in a sheet 1 to 3 deg above the ground with 1e8 to 1e13 particles
a cubic metre (Immer, Lane, Metzger and Clements 2008, "Apollo video photogrammetry estimation of
plume impingement effects", ASCE Earth and Space, abstract). On Apollo 12, with the Sun 5 deg high,
dust showed from about 30 m and the ground was almost hidden from about 12 m (descent film against
the crew's comments, Manned Spacecraft Center, December 1969). Neither gives grain sizes, so the
column is set to what was seen, 5 % of the light left at 12 m under that Sun, and not derived.
"""

import torch
from jaxtyping import Float32, Float64
from pydantic import Field
from torch import Tensor

from tnav.config import Recipe
from tnav.geometry.moon import up_L

_LEAST_COSINE = 1e-3  # a ray along the layer would cross it for ever


class DustPlume(Recipe):
    """A haze of blown dust about the vertical through the camera."""

    onset_m: float = Field(default=30.0, gt=0)  # height over the ground from which down it blows
    column: float = Field(default=0.7, ge=0)  # optical depth at touchdown, vertical, on the axis
    growth: float = Field(default=2.0, gt=0)  # column ~ (1 - agl / onset)^growth
    scale_height_m: float = Field(default=1.5, gt=0)  # H
    reach_m: float = Field(default=40.0, gt=0)  # column ~ 1 / (1 + distance / reach)
    albedo: float = Field(default=0.5, ge=0, le=1)  # single-scattering albedo of the grains
    asymmetry: float = Field(default=0.0, gt=-1, lt=1)  # mean cosine of the scattering angle

    def column_at(
        self, agl_m: Float64[Tensor, "*#b"], distance_m: Float64[Tensor, "*#b"]
    ) -> Float64[Tensor, "*b"]:
        """Vertical optical depth over a place; zero above the onset and where agl is NaN.

        Args:
            agl_m: height of the lander over the ground.
            distance_m: horizontal distance of the place from the plume's axis.
        """
        depth = (1 - agl_m / self.onset_m).clamp(0.0, 1.0).nan_to_num(0.0)
        # Not depth ** growth: torch's power rounds by the place in the batch, exp and log do not.
        share = torch.exp(self.growth * torch.log(depth))
        return self.column * share / (1 + distance_m / self.reach_m)


def veil(
    dust: DustPlume,
    camera_L: Float64[Tensor, "*#b 3"],
    point_L: Float64[Tensor, "*b 3"],
    agl_m: Float64[Tensor, "*#b"],
    sun_L: Float64[Tensor, "*#b 3"],
    phase_rad: Float32[Tensor, "*b"],
) -> tuple[Float32[Tensor, "*b"], Float32[Tensor, "*b"]]:
    """What dust leaves of the ground's radiance, and the radiance factor that it adds.

    The layer is taken as thin against the reach: its column is that over the point seen. Neglected:
    light scattered more than once, the lander's own shadow in the dust, glow of dust over which no
    ground is seen.

    Args:
        dust: the recipe.
        camera_L: where from, m; the plume's axis is the vertical through it.
        point_L: ground seen, m.
        agl_m: height of the camera over the ground; NaN (no ground under it) raises no dust.
        sun_L: unit, to the Sun.
        phase_rad: angle between Sun and camera at the dust.

    Returns:
        Transmission of sunlight down and of the ground's light up, and airlight I/F.
    """
    agl_m = torch.where(agl_m.isnan(), dust.onset_m, agl_m)
    (ux, uy, uz), (dx, dy, dz) = up_L(camera_L).unbind(-1), (camera_L - point_L).unbind(-1)
    height_m = ux * dx + uy * dy + uz * dz
    range_m2 = dx * dx + dy * dy + dz * dz
    mu = (height_m * range_m2.rsqrt()).clamp_min(_LEAST_COSINE)
    sx, sy, sz = sun_L.unbind(-1)
    cos_sun = ux * sx + uy * sy + uz * sz
    mu_s = cos_sun.clamp_min(_LEAST_COSINE)
    tau = dust.column_at(agl_m, (range_m2 - height_m * height_m).clamp_min(0.0).sqrt())
    over = torch.exp(-agl_m.clamp_min(0.0) / dust.scale_height_m)  # share of it over the camera
    below = tau * (1 - over)
    through = torch.exp(-tau / mu_s - below / mu)
    scattered = 1 - torch.exp(-below * (1 / mu_s + 1 / mu))
    reflected = dust.albedo / 4 * henyey_greenstein(dust.asymmetry, phase_rad) * mu_s / (mu_s + mu)
    air = torch.where(cos_sun > 0, reflected * scattered * torch.exp(-tau * over / mu_s), 0.0)
    return through.float(), air.float()


def henyey_greenstein(asymmetry: float, phase_rad: Float32[Tensor, "*b"]) -> Float32[Tensor, "*b"]:
    """Phase function with mean 1 over the sphere (Henyey and Greenstein 1941, eq. 2).

    Args:
        asymmetry: mean cosine of the scattering angle, which is pi minus the phase angle.
        phase_rad: 0 where the light is sent straight back.
    """
    g = asymmetry
    base = 1 + g * g + 2 * g * torch.cos(phase_rad)
    return (1 - g * g) / (base * base.sqrt())
