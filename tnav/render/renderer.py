"""A terrain seen from poses under the Sun: primary rays, shadow rays, reflectance.

Geometry (range, point, shadow) is that of each pixel's centre. Where a pixel covers several posts
its radiance is the mean of stratified samples, so that the image does not alias.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from tnav.errors import ConfigError
from tnav.geometry.camera import Camera
from tnav.geometry.pose import Pose
from tnav.records import Frame
from tnav.render.reflectance import lunar_lambert
from tnav.terrain.heightfield import Terrain
from tnav.terrain.raycast import cast, occluded

_MARE_ALBEDO = 0.13  # normal albedo of mare at 750 nm is 0.1 to 0.15; only contrast matters here


@dataclass(frozen=True, slots=True)
class AlbedoField:
    """Albedo as a sum of waves: SYNTHETIC, band-limited, never known to the map."""

    k_rad_m: Float64[Tensor, "2 w"]
    phase: Float64[Tensor, " w"]
    contrast: float  # 1 sigma, relative

    @classmethod
    def draw(
        cls, seed: int, *, contrast: float, wavelengths_m: tuple[float, float], waves: int = 24
    ) -> "AlbedoField":
        """A seeded field with wavelengths log-uniform between two bounds."""
        if not 0 <= contrast < 0.3:
            raise ConfigError(f"albedo contrast: {contrast}, expected in [0, 0.3)")
        generator = torch.Generator().manual_seed(seed)
        u = torch.rand(3, waves, generator=generator, dtype=torch.float64)
        low, high = math.log(wavelengths_m[0]), math.log(wavelengths_m[1])
        k = 2 * math.pi / torch.exp(low + (high - low) * u[0])
        heading = 2 * math.pi * u[1]
        return cls(
            torch.stack([k * heading.cos(), k * heading.sin()]), 2 * math.pi * u[2], contrast
        )

    def at(self, xy_L: Float64[Tensor, "*b 2"]) -> Float32[Tensor, "*b"]:
        """Albedo over its mean at horizontal positions."""
        x, y = xy_L.float().unbind(-1)  # a tenth of a radian would not show: float32 will do
        k = self.k_rad_m.float().to(xy_L.device)
        phase = self.phase.float().to(xy_L.device)
        total = torch.zeros_like(x)
        for wave in range(k.shape[1]):  # one at a time: pixels x waves would not fit
            total += torch.cos(x * k[0, wave] + y * k[1, wave] + phase[wave])
        return 1 + self.contrast * math.sqrt(2 / k.shape[1]) * total


def render(
    terrain: Terrain,
    camera: Camera,
    pose: Pose,
    sun_L: Float64[Tensor, "3"],
    *,
    first_level: int = 0,
    samples: int = 1,
    albedo: AlbedoField | None = None,
) -> Frame:
    """Render a batch of poses.

    Args:
        terrain: ground or map, on the device to render on.
        camera: one for all poses.
        pose: where from.
        sun_L: unit vector to the Sun.
        first_level: finest level to look at (``Terrain.level_for``).
        samples: 1, 4, 9 or 16 stratified samples a pixel for the radiance.
        albedo: reflectance pattern; uniform when absent.
    """
    side = math.isqrt(samples)
    if side < 1 or side * side != samples:
        raise ConfigError(f"samples: {samples}, expected a square (1, 4, 9, 16)")
    centre = camera.pixel_centres(pose.position_L.device)
    view = _View(terrain, camera, pose, sun_L.to(centre.device), first_level)
    image, range_m, xyz_L, hit, lit = view.trace(centre)
    if samples > 1:
        total = torch.zeros_like(image)
        for k in range(samples):
            shift = [(k % side + 0.5) / side - 0.5, (k // side + 0.5) / side - 0.5]
            total += view.trace(centre + torch.tensor(shift).to(centre))[0]
        image = total / samples
    if albedo is not None:
        image = image * torch.where(hit, albedo.at(xyz_L[..., :2]), 0.0)
    return Frame(image=image[:, None], range_m=range_m, xyz_L=xyz_L, hit=hit, lit=lit)


@dataclass(frozen=True, slots=True)
class _View:
    terrain: Terrain
    camera: Camera
    pose: Pose
    sun_L: Float64[Tensor, "3"]
    first_level: int

    def trace(self, uv_px: Float64[Tensor, "h w 2"]) -> tuple[Tensor, ...]:
        """Radiance, range, point, hit and lit of rays through one point of every pixel."""
        b, (h, w) = len(self.pose), uv_px.shape[:2]
        ray_C = self.camera.unproject(uv_px.view(-1, 2))
        ray_C = ray_C / ray_C.norm(dim=-1, keepdim=True)
        ray_L = (ray_C @ self.pose.R_L_C.transpose(1, 2)).reshape(-1, 3)
        origin_L = self.pose.position_L.repeat_interleave(h * w, dim=0, output_size=b * h * w)
        hits = cast(self.terrain, origin_L, ray_L, first_level=self.first_level)
        point_L = origin_L + hits.range_m[:, None] * ray_L
        cos_incidence = hits.normal_L @ self.sun_L
        dark = occluded(self.terrain, point_L, self.sun_L, first_level=self.first_level)
        lit = hits.hit & (cos_incidence > 0) & ~dark
        cos_emission = -(hits.normal_L * ray_L).sum(-1)
        phase_rad = torch.acos((-(ray_L @ self.sun_L)).clamp(-1, 1))
        radiance = lunar_lambert(cos_incidence, cos_emission, phase_rad).float()
        radiance = torch.where(lit, _MARE_ALBEDO * radiance, 0.0)
        shape = (b, h, w)
        return (
            radiance.view(shape),
            hits.range_m.view(shape),
            point_L.view(*shape, 3),
            hits.hit.view(shape),
            lit.view(shape),
        )
