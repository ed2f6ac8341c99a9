"""Where the gallery's pictures are taken: a scenario's ground, poses over it, captions."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64
from numpy.typing import NDArray
from torch import Tensor

from tnav.evaluate.world import R_B_C, World
from tnav.geometry.camera import Camera
from tnav.geometry.pose import Pose, so3_exp
from tnav.images import captioned, display_grey
from tnav.records import Frame
from tnav.render.renderer import render
from tnav.render.sunlight import Sunlight

Picture = NDArray[np.uint8]
FIELD_DEG = 45.0
_POSTS_PER_PIXEL = 2.0


@dataclass(frozen=True, slots=True)
class Sheet:
    """One contact sheet with what is said about it."""

    name: str  # of the file
    title: str
    caption: str
    alt: str
    picture: Picture


@dataclass(frozen=True, slots=True)
class Shot:
    """A camera at a place: what it sees is up to the light."""

    camera: Camera
    pose: Pose
    range_m: float  # along the axis, to the ground

    @property
    def gsd_m(self) -> float:
        """Ground sample distance on the axis, across it."""
        return self.camera.ground_sample_distance_m(self.range_m)


@dataclass(frozen=True, slots=True)
class Studio:
    """A scenario's ground to take pictures of."""

    world: World
    width_px: int  # of a panel, three of which make a sheet

    def panel_px(self, columns: int) -> int:
        """Width of a panel of a sheet with another number of columns, as wide as one of three."""
        return (3 * self.width_px) // columns // 4 * 4

    @property
    def sun_words(self) -> str:
        """The scenario's Sun."""
        return sun_words(self.world.sun.azimuth_deg, self.world.sun.elevation_deg)

    def ground_m(self, xy_L: tuple[float, float]) -> float:
        """Height of the ground in L."""
        place = torch.tensor([xy_L], dtype=torch.float64, device=self.world.device)
        return float(self.world.truth.height_L(place)[0][0])

    def shot(
        self,
        camera: Camera,
        range_m: float,
        *,
        xy_L: tuple[float, float] = (0.0, 0.0),
        off_nadir_deg: float = 0.0,
        heading_deg: float = 0.0,
    ) -> Shot:
        """A camera that looks at a place of the ground, its image's top towards the heading.

        Args:
            camera: the camera.
            range_m: to the place.
            xy_L: the place, east and north of the site.
            off_nadir_deg: of the axis.
            heading_deg: towards which the axis leans, clockwise from north.
        """
        lean = torch.tensor([math.radians(off_nadir_deg), 0.0, 0.0], dtype=torch.float64)
        turn = torch.tensor([0.0, 0.0, -math.radians(heading_deg)], dtype=torch.float64)
        R_L_C = so3_exp(turn) @ so3_exp(lean) @ R_B_C
        target_L = torch.tensor([*xy_L, self.ground_m(xy_L)], dtype=torch.float64)
        position_L = target_L - range_m * R_L_C[:, 2]
        pose = Pose(R_L_C[None], position_L[None]).to(self.world.device)
        return Shot(camera, pose, range_m)

    def nadir(self, height_m: float, width_px: int, fov_deg: float = FIELD_DEG) -> Shot:
        """A square image of the site from above."""
        return self.shot(Camera.from_field_of_view(width_px, width_px, fov_deg), height_m)

    def take(
        self,
        shot: Shot,
        sun: Sunlight | Float64[Tensor, "3"] | None = None,
        *,
        samples: int = 4,
        **how: Any,
    ) -> Frame:
        """Render a shot under the scenario's Sun or another, as ``tnav.render`` takes it."""
        level = self.world.truth.level_for(shot.gsd_m, posts_per_pixel=_POSTS_PER_PIXEL)
        return render(
            self.world.truth,
            shot.camera,
            shot.pose,
            self.world.sun.sun_L if sun is None else sun,
            first_level=level,
            samples=samples,
            albedo=self.world.albedo,
            **how,
        )


def sun_words(azimuth_deg: float, elevation_deg: float) -> str:
    """A Sun in few words."""
    return f"Sun azimuth {azimuth_deg:.1f}, elevation {elevation_deg:.1f} deg"


def length_words(metres: float) -> str:
    """A length as people write it, to three digits."""
    value, unit = (metres / 1e3, "km") if metres >= 1000 else (metres, "m")
    return f"{value:.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"


def panel(
    image: Float32[Tensor, "1 1 h w"],
    lines: list[str],
    *,
    black: float = 0.0,
    white: float | None = None,
) -> Picture:
    """A linear image over its caption; white is the 99.5th percentile when absent."""
    white = quantile(image, 0.995) if white is None else white
    return captioned(display_grey(image[0, 0] - black, white - black), lines)


def quantile(image: Tensor, share: float) -> float:
    """Of all values."""
    return float(np.quantile(image.detach().cpu().numpy(), share))
