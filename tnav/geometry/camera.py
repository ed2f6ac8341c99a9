"""Pinhole camera. Pixels: u right, v down; the centre of (row, col) is (col + 0.5, row + 0.5).

A camera looks along +z of its frame C, with x to the right and y down, so that
``u = fx x/z + cx`` and ``v = fy y/z + cy`` (Hartley and Zisserman 2004, eq. 6.1).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from tnav.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Camera:
    """Ideal pinhole: one for the whole batch."""

    width_px: int
    height_px: int
    focal_px: float  # square pixels
    cx_px: float  # principal point, in the convention above
    cy_px: float

    def __post_init__(self) -> None:
        for name in ("width_px", "height_px", "focal_px"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"camera.{name}: {getattr(self, name)}, expected > 0")

    @classmethod
    def from_field_of_view(cls, width_px: int, height_px: int, fov_deg: float) -> "Camera":
        """Camera with its principal point in the middle and the given horizontal field of view."""
        if not 0 < fov_deg < 180:
            raise ConfigError(f"camera.fov_deg: {fov_deg}, expected in (0, 180)")
        focal_px = width_px / 2 / math.tan(math.radians(fov_deg) / 2)
        return cls(width_px, height_px, focal_px, width_px / 2, height_px / 2)

    @property
    def fov_rad(self) -> float:
        """Horizontal field of view."""
        return 2 * math.atan(self.width_px / 2 / self.focal_px)

    def ground_sample_distance_m(self, range_m: float) -> float:
        """Footprint of one pixel on a surface that faces the camera at that range."""
        return range_m / self.focal_px

    def project(self, point_C: Float64[Tensor, "*b 3"]) -> Float64[Tensor, "*b 2"]:
        """Pixel coordinates (u, v) of points in front of the camera."""
        x, y, z = point_C.unbind(-1)
        u_px = self.focal_px * x / z + self.cx_px
        return torch.stack([u_px, self.focal_px * y / z + self.cy_px], -1)

    def unproject(self, uv_px: Float64[Tensor, "*b 2"]) -> Float64[Tensor, "*b 3"]:
        """Ray directions in C with z = 1 (not unit length) through pixel coordinates."""
        u_px, v_px = uv_px.unbind(-1)
        x, y = (u_px - self.cx_px) / self.focal_px, (v_px - self.cy_px) / self.focal_px
        return torch.stack([x, y, torch.ones_like(x)], -1)

    def pixel_centres(self, device: torch.device | str) -> Float64[Tensor, "h w 2"]:
        """Coordinates (u, v) of every pixel's centre."""
        v_px = torch.arange(self.height_px, dtype=torch.float64, device=device) + 0.5
        u_px = torch.arange(self.width_px, dtype=torch.float64, device=device) + 0.5
        vv, uu = torch.meshgrid(v_px, u_px, indexing="ij")
        return torch.stack([uu, vv], -1)
