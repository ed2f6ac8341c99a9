"""What a scene is drawn from, and what was drawn: numbers only, nothing is rendered here.

Every interval may be a single point, so that a row of a benchmark is a recipe too. Errors of the
prior and of the Sun are magnitudes; their sign or direction is drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tnav.config import Recipe
from tnav.geometry.camera import Camera
from tnav.learn.draws import Draws, Interval, Magnitude, PositiveInterval
from tnav.learn.regions import Modelled, Region
from tnav.render.detector import Detector

Law = Literal["lambert", "lommel_seeliger", "lunar_lambert", "minnaert", "hapke"]
LAWS: tuple[Law, ...] = ("lambert", "lommel_seeliger", "lunar_lambert", "minnaert", "hapke")
Cover = Literal["black", "saturated"]
Shape = Literal["half_plane", "rectangle"]
_OCTAVES_MAX = 16  # of albedo: each has a heading and a place of its own
_PATTERNS = 4  # albedo noise tiles; an octave's heading and place make the pattern
_MAP_KEY = 2**63  # indices of maps are above those of scenes
_STEEPEST_DEG = 80.0


class SceneRecipe(Recipe):
    """Intervals of all that a scene of map view and image is made of."""

    # Camera
    width_px: int = Field(default=1024, ge=16, le=8192)
    height_px: int = Field(default=1024, ge=16, le=8192)
    fov_deg: float | None = Field(default=None, gt=0, lt=180)  # horizontal, or else ...
    focal_px: float | None = Field(default=None, gt=0)  # ... the focal length; 45 deg if neither
    # Ground and place
    ground: Modelled = Modelled()
    regions: tuple[str, ...] = ()  # of the split, by name; all of them when empty
    place_m: float = Field(default=8000.0, ge=0)  # what is looked at lies within +-this ...
    place_agl: float = Field(default=0.4, ge=0)  # ... and within +-this times the height, of centre
    agl_m: PositiveInterval = (500.0, 15000.0)  # over the ground below; uniform in the logarithm
    tilt_deg: Magnitude = (0.0, 30.0)  # of the axis from the nadir, towards the heading
    heading_deg: Interval = (0.0, 360.0)
    roll_deg: Interval = (-180.0, 180.0)
    # What the prediction is wrong by
    horizontal_m: Magnitude | None = None  # uniform in the logarithm; or else ...
    horizontal_agl: Magnitude | None = None  # ... as a share of the height; 0.01 to 0.1 if neither
    height_percent: Magnitude = (0.0, 2.0)  # along the vertical, of the height
    attitude_deg: Magnitude = (0.0, 0.05)  # about any axis
    roll_error_deg: Magnitude = (0.0, 0.0)  # about the camera's axis
    scale_percent: Magnitude = (0.0, 0.0)  # along the camera's axis, of the range
    # The Sun, and the one that the view is rendered under
    sun_elevation_deg: Magnitude = (2.0, 31.0)
    sun_azimuth_deg: Interval = (0.0, 360.0)
    sun_azimuth_error_deg: Magnitude = (0.0, 0.0)
    sun_elevation_error_deg: Magnitude = (0.0, 0.0)
    view_elevation_least_deg: float = Field(default=1.0, gt=0, lt=90)
    # The map
    coarser: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(2.0,), min_length=1)
    maps: int = Field(default=3, ge=1, le=1024)  # different ones of each region
    map_rms_m: Magnitude = (0.0, 4.0)
    map_correlation_m: PositiveInterval = (150.0, 1000.0)
    map_shift_m: Magnitude = (0.0, 2.0)
    # What the map does not know, and the image shows
    albedo_contrast: Magnitude = (0.0, 0.3)
    albedo_waves_px: PositiveInterval = (2.0, 512.0)  # shortest and longest; both always there
    reflectance: tuple[Law, ...] = Field(default=("lunar_lambert", "hapke"), min_length=1)
    view_reflectance: tuple[Law, ...] = Field(default=("lunar_lambert",), min_length=1)
    # The image
    samples: tuple[Literal[1, 4, 9, 16], ...] = Field(default=(4,), min_length=1)
    posts_per_pixel: float = Field(default=2.0, gt=0)  # of the true ground; finer ones only alias
    detector: Detector = Detector()
    psf_sigma_px: Magnitude = (0.4, 1.0)  # these three take the detector's place
    read_noise_e: Magnitude = (5.0, 40.0)
    exposure_level: PositiveInterval = (0.2, 0.9)
    blocked: Magnitude = (0.0, 0.0)  # share of the image that shows no ground
    blocked_by: tuple[Cover, ...] = Field(default=("black", "saturated"), min_length=1)
    blocked_shape: tuple[Shape, ...] = Field(default=("half_plane", "rectangle"), min_length=1)
    # A pose is drawn again where less of its rays than this meet ground, or the same ground
    least_ground: float = Field(default=0.9, gt=0, le=1)
    least_shared: float = Field(default=0.25, ge=0, le=1)

    @model_validator(mode="after")
    def _consistent(self) -> "SceneRecipe":
        for one, other in (("fov_deg", "focal_px"), ("horizontal_m", "horizontal_agl")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"{one} and {other} are both given, expected one of them")
        limits = (
            ("tilt_deg", _STEEPEST_DEG),
            ("sun_elevation_deg", 90.0),
            ("sun_azimuth_error_deg", 180.0),
            ("albedo_contrast", 0.99),
            ("exposure_level", 10.0),
            ("blocked", 0.95),
            ("height_percent", 50.0),
            ("scale_percent", 50.0),
        )
        for name, most in limits:
            if getattr(self, name)[1] > most:
                raise ValueError(f"{name}: up to {getattr(self, name)[1]:g}, expected <= {most:g}")
        low, high = self.albedo_waves_px
        if not 2 * low <= high <= low * 2**_OCTAVES_MAX:
            raise ValueError(
                f"albedo_waves_px: {low:g} to {high:g}, expected 1 to {_OCTAVES_MAX} octaves"
            )
        return self

    def camera(self) -> Camera:
        """The camera of every scene, its principal point in the middle."""
        if self.focal_px is None:
            fov_deg = 45.0 if self.fov_deg is None else self.fov_deg
            return Camera.from_field_of_view(self.width_px, self.height_px, fov_deg)
        return Camera(
            self.width_px, self.height_px, self.focal_px, self.width_px / 2, self.height_px / 2
        )


@dataclass(frozen=True, slots=True)
class SceneCase:
    """The numbers of one draw. Errors are predicted minus true."""

    index: int
    attempt: int  # how many poses were given up before
    region: str
    map_number: int
    east_m: float  # of the place that is looked at, from the region's centre
    north_m: float
    agl_m: float
    tilt_deg: float
    heading_deg: float
    roll_deg: float
    horizontal_m: float
    horizontal_azimuth_deg: float
    height_m: float
    attitude_rad: tuple[float, float, float]  # rotation vector in L
    roll_error_deg: float
    scale: float  # share of the range by which the camera stands too far ahead
    sun_elevation_deg: float
    sun_azimuth_deg: float
    view_elevation_deg: float
    view_azimuth_deg: float
    coarser: float  # as wished; the levels at hand give the nearest
    albedo_contrast: float
    albedo_pattern: int
    albedo_octaves: tuple[tuple[float, float, float], ...]  # heading in turns, shift in tiles
    law: Law
    view_law: Law
    samples: int
    psf_sigma_px: float
    read_noise_e: float
    exposure_level: float
    detector_seed: int
    blocked: float
    blocked_by: Cover
    blocked_shape: Shape
    blocked_turns: tuple[float, float, float]  # where, in [0, 1)


@dataclass(frozen=True, slots=True)
class MapCase:
    """The numbers of one map of a region."""

    rms_m: float
    correlation_m: float
    shift_m: float
    seed: int


def draw_map(recipe: SceneRecipe, region: Region, seed: int, number: int) -> MapCase:
    """One of the maps of a region; a function of recipe, region, seed and number alone."""
    draws = Draws(seed, _MAP_KEY + region.seed * 2**16 + number)
    return MapCase(
        rms_m=draws.between(recipe.map_rms_m),
        correlation_m=draws.log_between(recipe.map_correlation_m),
        shift_m=draws.between(recipe.map_shift_m),
        seed=draws.seed(),
    )


def draw_case(
    recipe: SceneRecipe, regions: Sequence[Region], seed: int, index: int, attempt: int
) -> SceneCase:
    """The numbers of one scene; a function of its arguments alone.

    Args:
        recipe: the intervals.
        regions: to choose from.
        seed: of the whole set.
        index: of the scene.
        attempt: how many draws of it were given up before.
    """
    draws = Draws(seed, index, attempt)
    unit = (0.0, 1.0)
    region, agl_m = draws.choice(regions).name, draws.log_between(recipe.agl_m)
    reach_m = min(recipe.place_m, recipe.place_agl * agl_m)
    place_m = [draws.between((-reach_m, reach_m)) for _ in range(2)]
    if recipe.horizontal_m is not None:
        horizontal_m = draws.log_between(recipe.horizontal_m)
    else:
        horizontal_m = draws.log_between(recipe.horizontal_agl or (0.01, 0.1)) * agl_m
    elevation_deg = draws.between(recipe.sun_elevation_deg)
    azimuth_deg = draws.between(recipe.sun_azimuth_deg)
    view_elevation_deg = elevation_deg + draws.signed(recipe.sun_elevation_error_deg)
    return SceneCase(
        index=index,
        attempt=attempt,
        region=region,
        map_number=draws.choice(range(recipe.maps)),
        east_m=place_m[0],
        north_m=place_m[1],
        agl_m=agl_m,
        tilt_deg=draws.between(recipe.tilt_deg),
        heading_deg=draws.between(recipe.heading_deg),
        roll_deg=draws.between(recipe.roll_deg),
        horizontal_m=horizontal_m,
        horizontal_azimuth_deg=360.0 * draws.between(unit),
        height_m=0.01 * agl_m * draws.signed(recipe.height_percent),
        attitude_rad=_turned(draws, recipe.attitude_deg),
        roll_error_deg=draws.signed(recipe.roll_error_deg),
        scale=0.01 * draws.signed(recipe.scale_percent),
        sun_elevation_deg=elevation_deg,
        sun_azimuth_deg=azimuth_deg,
        view_elevation_deg=min(90.0, max(recipe.view_elevation_least_deg, view_elevation_deg)),
        view_azimuth_deg=azimuth_deg + draws.signed(recipe.sun_azimuth_error_deg),
        coarser=draws.choice(recipe.coarser),
        albedo_contrast=draws.between(recipe.albedo_contrast),
        albedo_pattern=draws.choice(range(_PATTERNS)),
        albedo_octaves=tuple(
            (draws.between(unit), draws.between(unit), draws.between(unit))
            for _ in range(_OCTAVES_MAX)
        ),
        law=draws.choice(recipe.reflectance),
        view_law=draws.choice(recipe.view_reflectance),
        samples=draws.choice(recipe.samples),
        psf_sigma_px=draws.between(recipe.psf_sigma_px),
        read_noise_e=draws.between(recipe.read_noise_e),
        exposure_level=draws.between(recipe.exposure_level),
        detector_seed=draws.seed(),
        blocked=draws.between(recipe.blocked),
        blocked_by=draws.choice(recipe.blocked_by),
        blocked_shape=draws.choice(recipe.blocked_shape),
        blocked_turns=(draws.between(unit), draws.between(unit), draws.between(unit)),
    )


def _turned(draws: Draws, magnitude_deg: tuple[float, float]) -> tuple[float, float, float]:
    """Rotation vector (rad) of a drawn angle about an axis that is uniform on the sphere."""
    angle = math.radians(draws.between(magnitude_deg))
    up, turn = draws.between((-1.0, 1.0)), 2 * math.pi * draws.between((0.0, 1.0))
    flat = math.sqrt(max(0.0, 1 - up * up))
    return angle * flat * math.sin(turn), angle * flat * math.cos(turn), angle * up
