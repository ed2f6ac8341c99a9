"""Camera, with or without lens distortion.

Pixels: u right, v down; the centre of (row, col) is (col + 0.5, row + 0.5). A camera looks along
+z of its frame C, with x to the right and y down. Without distortion ``u = f x/z + cx`` and
``v = f y/z + cy`` (Hartley and Zisserman 2004, eq. 6.1); with it ``u = f x' + cx`` and
``v = f y' + cy``, where (x', y') follow ``tnav.geometry.distortion``. OpenCV counts pixels from
their centres: its cx and cy are ours less a half, the rest is the same.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.errors import ConfigError
from tnav.geometry.distortion import (
    BrownConrady,
    Fisheye,
    Lens,
    angle_rad,
    fit_lens,
    fold,
    image_of,
    jacobian_of,
    radial,
    ray_of,
    rho_at,
    within,
)

# Nearer than this a point counts as at the camera: it has no direction worth the name.
_NEAREST_M = 1e-3


@dataclass(frozen=True, slots=True)
class Camera:
    """A camera: one for the whole batch."""

    width_px: int
    height_px: int
    focal_px: float  # square pixels
    cx_px: float  # principal point, in the convention above
    cy_px: float
    distortion: BrownConrady | Fisheye | None = None
    _lens: Lens | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        for name in ("width_px", "height_px", "focal_px"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"camera.{name}: {getattr(self, name)}, expected > 0")
        if self.distortion is not None:
            across_px = max(abs(self.cx_px), abs(self.width_px - self.cx_px))
            down_px = max(abs(self.cy_px), abs(self.height_px - self.cy_px))
            lens = fit_lens(self.distortion, math.hypot(across_px, down_px) / self.focal_px)
            object.__setattr__(self, "_lens", lens)

    @classmethod
    def from_field_of_view(
        cls,
        width_px: int,
        height_px: int,
        fov_deg: float,
        distortion: BrownConrady | Fisheye | None = None,
    ) -> "Camera":
        """Camera with its principal point in the middle and the given horizontal field of view.

        The field counts along the row of the principal point and with the radial distortion.

        Raises:
            ConfigError: a field that such a camera cannot have, or a distortion that folds in it.
        """
        limit_deg = 360 if isinstance(distortion, Fisheye) else 180
        if not 0 < fov_deg < limit_deg:
            raise ConfigError(f"camera.fov_deg: {fov_deg}, expected in (0, {limit_deg})")
        half_rad = math.radians(fov_deg) / 2
        half_image = math.tan(half_rad) if distortion is None else _radius_at(distortion, half_rad)
        focal_px = width_px / 2 / half_image
        return cls(width_px, height_px, focal_px, width_px / 2, height_px / 2, distortion)

    @property
    def fov_rad(self) -> float:
        """Horizontal field of view, along the row of the principal point; on the host."""
        edges_px = torch.tensor(
            [[0.0, self.cy_px], [float(self.width_px), self.cy_px]], dtype=torch.float64
        )
        (left, _, left_z), (right, _, right_z) = self.unproject(edges_px).tolist()
        return math.atan2(right, right_z) - math.atan2(left, left_z)

    def ground_sample_distance_m(self, range_m: float) -> float:
        """Footprint of one pixel on the axis, on a surface that faces the camera at that range."""
        return range_m / self.focal_px

    def project(self, point_C: Float64[Tensor, "*b 3"]) -> Float64[Tensor, "*b 2"]:
        """Pixel coordinates (u, v) of points; those that it does not see mean nothing."""
        if self._lens is None:
            image = point_C[..., :2] / point_C[..., 2:]
        else:
            image = image_of(self._lens, point_C)
        u, v = image.unbind(-1)
        return torch.stack([self.focal_px * u + self.cx_px, self.focal_px * v + self.cy_px], -1)

    def jacobian(self, point_C: Float64[Tensor, "*b 3"]) -> Float64[Tensor, "*b 2 3"]:
        """Derivative of ``project`` by the point, px/m."""
        if self._lens is not None:
            return self.focal_px * jacobian_of(self._lens, point_C)
        inverse = self.focal_px / point_C[..., 2]
        slope_x, slope_y = (point_C[..., :2] / point_C[..., 2:]).unbind(-1)
        zero = torch.zeros_like(inverse)
        rows = [inverse, zero, -inverse * slope_x, zero, inverse, -inverse * slope_y]
        return torch.stack(rows, -1).unflatten(-1, (2, 3))

    def sees(self, point_C: Float64[Tensor, "*b 3"]) -> Bool[Tensor, "*b"]:
        """Mask of the points that ``project`` is right for, whether inside the image or not.

        In front of the camera and, with distortion, no farther from the axis than where the lens
        folds. A fisheye also sees behind the plane of its lens.
        """
        if self._lens is None:
            return point_C[..., 2] > _NEAREST_M
        return within(self._lens, point_C) & (point_C.norm(dim=-1) > _NEAREST_M)

    def unproject(self, uv_px: Float64[Tensor, "*b 2"]) -> Float64[Tensor, "*b 3"]:
        """Ray directions in C through pixel coordinates of the image.

        Their length is of no meaning: z = 1 without distortion and for Brown-Conrady, unit length
        for a fisheye, whose rays may have z <= 0. With distortion inverted to rounding over the
        image, corners included; beyond it without promise.
        """
        u_px, v_px = uv_px.unbind(-1)
        x, y = (u_px - self.cx_px) / self.focal_px, (v_px - self.cy_px) / self.focal_px
        if self._lens is not None:
            return ray_of(self._lens, torch.stack([x, y], -1))
        return torch.stack([x, y, torch.ones_like(x)], -1)

    def pixel_centres(self, device: torch.device | str) -> Float64[Tensor, "h w 2"]:
        """Coordinates (u, v) of every pixel's centre."""
        v_px = torch.arange(self.height_px, dtype=torch.float64, device=device) + 0.5
        u_px = torch.arange(self.width_px, dtype=torch.float64, device=device) + 0.5
        vv, uu = torch.meshgrid(v_px, u_px, indexing="ij")
        return torch.stack([uu, vv], -1)

    def described(self) -> dict[str, object]:
        """Its parameters as plain numbers, for a file."""
        numbers: dict[str, object] = {
            name: getattr(self, name)
            for name in ("width_px", "height_px", "focal_px", "cx_px", "cy_px")
        }
        distortion = None if self.distortion is None else self.distortion.model_dump()
        return {**numbers, "distortion": distortion}


def _radius_at(distortion: BrownConrady | Fisheye, half_rad: float) -> float:
    """Image radius at focal length 1 of an angle from the axis."""
    rho = rho_at(distortion, half_rad)
    limit = fold(distortion)
    if rho > limit:
        limit_deg = 2 * math.degrees(angle_rad(distortion, limit))
        raise ConfigError(
            f"camera.fov_deg: {2 * math.degrees(half_rad):g}, but the distortion folds at "
            f"{limit_deg:.1f}; expected less"
        )
    return radial(distortion, rho)
