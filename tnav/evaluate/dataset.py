"""A render recipe: everything that a dataset of views depends on, in one YAML file."""

import hashlib
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from tnav.config import Recipe, datasets_dir, find_recipe, load_recipe
from tnav.errors import ConfigError
from tnav.evaluate.scenario import CameraRecipe, Scenario, Seed, load_scenario
from tnav.geometry.moon import LocalFrame
from tnav.render.detector import Detector
from tnav.render.dust import DustPlume
from tnav.render.motion import Readout
from tnav.render.reflectance import LunarLambert, ReflectanceModel
from tnav.render.sunlight import sun_radius_rad
from tnav.simulate.descent import DescentProfile
from tnav.terrain.corridor import CorridorRecipe
from tnav.terrain.site import Site

FRAMES_MAX = 2**23  # the noise seed of a frame is seeds.noise * 2^23 + id
Channel = Literal[
    "range_m", "xyz_L", "normal_L", "incidence_rad", "emission_rad", "phase_rad", "sun_fraction",
    "lit", "hit", "level",
]  # fmt: skip
TRUTH_CHANNELS: tuple[Channel, ...] = get_args(Channel)
ALBEDO_WAVELENGTHS_M = (8.0, 4000.0)


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("expected the smaller number first")
    return value


def _utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


Interval = Annotated[tuple[float, float], AfterValidator(_ordered)]
Epoch = Annotated[datetime, AfterValidator(_utc)]
Positive = Annotated[float, Field(gt=0)]
Tilt = Annotated[float, Field(ge=0, le=90)]
Elevation = Annotated[float, Field(ge=-90, le=90)]
Wavelengths = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]
_Vector = tuple[float, float, float]


class FlightPoses(Recipe):
    """What the camera sees along a descent that ends over the origin of L."""

    kind: Literal["flight"] = "flight"
    descent: DescentProfile | None = None  # the scenario's, or the default one
    times_s: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(default=None, min_length=1)
    every_s: float | None = Field(default=None, gt=0)  # from the start to the end

    @model_validator(mode="after")
    def _one_of(self) -> "FlightPoses":
        if (self.times_s is None) == (self.every_s is None):
            raise ValueError("expected one of times_s and every_s")
        return self


class RandomPoses(Recipe):
    """Independent draws: place uniform in a box, height log-uniform, the rest uniform."""

    kind: Literal["random"] = "random"
    count: int = Field(ge=1, le=FRAMES_MAX)
    agl_m: Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]  # above the ground
    east_m: Interval = (0.0, 0.0)
    north_m: Interval = (0.0, 0.0)
    tilt_deg: Annotated[tuple[Tilt, Tilt], AfterValidator(_ordered)] = (0.0, 0.0)
    heading_deg: Interval = (0.0, 360.0)
    roll_deg: Interval = (0.0, 0.0)


class GridPoses(Recipe):
    """Every combination, the last named changing fastest."""

    kind: Literal["grid"] = "grid"
    east_m: tuple[float, ...] = Field(default=(0.0,), min_length=1)
    north_m: tuple[float, ...] = Field(default=(0.0,), min_length=1)
    agl_m: tuple[Positive, ...] = Field(min_length=1)
    tilt_deg: tuple[Tilt, ...] = Field(default=(0.0,), min_length=1)
    heading_deg: tuple[float, ...] = Field(default=(0.0,), min_length=1)


class FilePoses(Recipe):
    """A CSV: ``x_m,y_m,z_m`` (L) or ``latitude_deg,longitude_deg,altitude_m``; ``qw,qx,qy,qz``.

    The quaternion turns C to L. A column ``t_s`` is optional.
    """

    kind: Literal["file"] = "file"
    path: Path  # from the recipe's folder


Poses = Annotated[FlightPoses | RandomPoses | GridPoses | FilePoses, Field(discriminator="kind")]


class EpochSuns(Recipe):
    """The Sun as it stands over the site at given times."""

    kind: Literal["epoch"] = "epoch"
    epochs_utc: tuple[Epoch, ...] = Field(min_length=1)


class AngleSuns(Recipe):
    """Suns by azimuth (from north over east) and elevation at the origin of L, pair by pair."""

    kind: Literal["angles"] = "angles"
    azimuth_deg: tuple[float, ...] = Field(min_length=1)
    elevation_deg: tuple[Elevation, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _pairs(self) -> "AngleSuns":
        a, e = len(self.azimuth_deg), len(self.elevation_deg)
        if a != e and 1 not in (a, e):
            raise ValueError(f"{a} azimuths and {e} elevations, expected as many, or one of either")
        return self


class RandomSuns(Recipe):
    """Suns drawn for every pose, uniform in both angles."""

    kind: Literal["random"] = "random"
    azimuth_deg: Interval = (0.0, 360.0)
    elevation_deg: Annotated[tuple[Elevation, Elevation], AfterValidator(_ordered)] = (2.0, 80.0)


Suns = Annotated[EpochSuns | AngleSuns | RandomSuns, Field(discriminator="kind")]


class Light(Recipe):
    """How the Sun and the Earth light the ground."""

    sun_samples: int = Field(default=1, ge=1, le=64)  # 1: a point without penumbra
    sun_radius_deg: float = Field(default=math.degrees(sun_radius_rad()), gt=0, lt=5)
    earthshine: bool = False  # libration is left out


class MotionRecipe(Recipe):
    """Motion during the exposure; a flight brings its own."""

    velocity_L_m_s: _Vector | None = None  # None: the flight's
    rate_C_rad_s: _Vector | None = None  # None: the flight's
    blur: bool = True  # over the detector's exposure, which must then be fixed
    readout_s: float = Field(default=0.0, ge=0)  # rolling shutter; 0: global
    readout: Readout = Readout.TOP_TO_BOTTOM
    samples: int = Field(default=4, ge=1, le=64)


class FieldAlbedo(Recipe):
    """SYNTHETIC albedo: a seeded field about the mean."""

    kind: Literal["field"] = "field"
    contrast: float = Field(default=0.05, gt=0, lt=1)
    wavelengths_m: Wavelengths = ALBEDO_WAVELENGTHS_M
    exponent: float = Field(default=2.4, ge=0, le=4)


class RasterAlbedo(Recipe):
    """Albedo from a raster with a Moon CRS, around the origin of L."""

    kind: Literal["raster"] = "raster"
    path: Path  # from the recipe's folder
    post_m: float = Field(gt=0)
    posts: int = Field(default=1025, ge=9, le=16385)  # along each side


AlbedoRecipe = Annotated[FieldAlbedo | RasterAlbedo, Field(discriminator="kind")]


class Truth(Recipe):
    """What is written of every pixel's centre."""

    channels: tuple[Channel, ...] = TRUTH_CHANNELS
    precision: Literal["float64", "float32"] = "float64"  # of range_m and xyz_L
    compression: Literal["deflate", "none"] = "deflate"


class RenderSeeds(Recipe):
    """One seed for each source of randomness."""

    terrain: Seed = 1
    albedo: Seed = 2
    sensor: Seed = 3  # what is fixed in the detector
    noise: Seed = 4
    poses: Seed = 5
    sun: Seed = 6

    def shifted(self, by: int) -> "RenderSeeds":
        """Another draw of everything: each seed moved by 1000 times a number."""
        return RenderSeeds(**{name: value + 1000 * by for name, value in self.model_dump().items()})


class RenderRecipe(Recipe):
    """One dataset. A scenario gives what is not said here of ground, camera, Sun and descent."""

    name: str = Field(min_length=1)
    scenario: str | None = None
    site: Site | None = None
    corridor: CorridorRecipe | None = None  # in place of a site, where poses span more than one
    camera: CameraRecipe | None = None
    poses: Poses
    sun: Suns | None = None
    suns_per_pose: int | None = Field(default=None, ge=1)  # None: all listed ones, or one drawn
    light: Light = Light()
    reflectance: ReflectanceModel = LunarLambert()
    albedo: AlbedoRecipe | None = None
    motion: MotionRecipe | None = None
    dust: DustPlume | None = None
    detector: Detector = Detector()
    samples: Literal[1, 4, 9, 16] = 4  # stratified samples a pixel
    image_format: Literal["png", "tiff"] = "png"
    truth: Truth = Truth()
    colmap_points: int = Field(default=200, ge=0, le=10_000)  # sparse points that a pose brings
    frames_per_shard: int = Field(default=200, ge=1, le=10**6)
    seeds: RenderSeeds = RenderSeeds()

    @model_validator(mode="after")
    def _possible(self) -> "RenderRecipe":
        if self.site is not None and self.corridor is not None:
            raise ValueError("site and corridor: expected one of them")
        if self.scenario is None and self.site is None and self.corridor is None:
            raise ValueError("expected one of site, corridor and scenario")
        if self.scenario is None and self.sun is None:
            raise ValueError("sun: missing; only a scenario brings one")
        if self.detector.sensor_seed != 0:
            raise ValueError("detector.sensor_seed: say seeds.sensor instead")
        if self.motion is not None:
            self._check_motion(self.motion)
        if self.suns_per_pose is not None:
            self._check_suns(self.suns_per_pose)
        return self

    def _check_motion(self, motion: MotionRecipe) -> None:
        if motion.blur and self.detector.exposure_s is None:
            raise ValueError("motion.blur: needs a fixed detector.exposure_s, or say blur: false")
        if not isinstance(self.poses, FlightPoses) and motion.velocity_L_m_s is None:
            raise ValueError("motion.velocity_L_m_s: missing; only a flight brings one")

    def _check_suns(self, wanted: int) -> None:
        listed = suns_listed(self.sun) if self.sun is not None else 1
        if listed is not None and wanted > listed:
            raise ValueError(f"suns_per_pose: {wanted}, but {listed} given")

    @property
    def frame(self) -> LocalFrame:
        """The local frame of the dataset, once a scenario is resolved."""
        ground = self.corridor or self.site
        assert ground is not None, "resolve the recipe first"
        return ground.frame

    @property
    def dem(self) -> str | list[str]:
        """Which DEM."""
        ground = self.corridor or self.site
        assert ground is not None, "resolve the recipe first"
        return ground.dem

    def with_seed(self, number: int) -> "RenderRecipe":
        """The same recipe with every seed shifted (0 changes nothing)."""
        return self.model_copy(update={"seeds": self.seeds.shifted(number)})


def suns_listed(suns: Suns) -> int | None:
    """How many Suns a recipe lists; None where they are drawn."""
    match suns:
        case EpochSuns():
            return len(suns.epochs_utc)
        case AngleSuns():
            return max(len(suns.azimuth_deg), len(suns.elevation_deg))
        case RandomSuns():
            return None


def load_render_recipe(name_or_path: str) -> RenderRecipe:
    """A render recipe by its name in the datasets folder or by path, complete in itself.

    Raises:
        ConfigError: no such recipe, or one that does not fit; file, line and field are named.
    """
    file = f"{name_or_path}.yaml"
    of_flight, of_renders = (datasets_dir() / k / file for k in ("scenarios", "renders"))
    if of_flight.exists() and not of_renders.exists():
        raise ConfigError(
            f"'{name_or_path}' is a scenario: say at which times of it (--at T, in s)"
        )
    path = find_recipe(name_or_path, "renders", "render recipe")
    recipe = load_recipe(path, RenderRecipe)
    return resolved(_with_paths_from(recipe, path.parent))


def resolved(recipe: RenderRecipe) -> RenderRecipe:
    """The same recipe with all that its scenario and the defaults bring written out."""
    update: dict[str, object] = {"camera": recipe.camera or CameraRecipe()}
    if isinstance(recipe.poses, FlightPoses) and recipe.poses.descent is None:
        update["poses"] = recipe.poses.model_copy(update={"descent": DescentProfile()})
    if recipe.scenario is not None:
        update |= _from_scenario(recipe, load_scenario(recipe.scenario))
    return recipe.model_copy(update={**update, "scenario": None})


def flight_recipe(scenario: Scenario, times_s: tuple[float, ...]) -> RenderRecipe:
    """What the camera of a scenario sees of the truth at given times."""
    contrast = scenario.imaging.albedo_contrast
    seeds = scenario.seeds
    return RenderRecipe(
        name=scenario.name,
        site=scenario.site,
        camera=scenario.camera,
        poses=FlightPoses(times_s=times_s, descent=scenario.descent),
        sun=EpochSuns(epochs_utc=(scenario.epoch_utc,)),
        albedo=FieldAlbedo(contrast=contrast) if contrast > 0 else None,
        samples=scenario.imaging.samples,  # type: ignore[arg-type]  # checked to be a square there
        seeds=RenderSeeds(terrain=seeds.terrain, albedo=seeds.albedo, noise=seeds.camera),
    )


def file_sha256(path: Path) -> str:
    """Hex digest of a file. Raises ConfigError where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error


def _from_scenario(recipe: RenderRecipe, scenario: Scenario) -> dict[str, object]:
    update: dict[str, object] = {
        "camera": recipe.camera or scenario.camera,
        "sun": recipe.sun or EpochSuns(epochs_utc=(scenario.epoch_utc,)),
    }
    if recipe.corridor is None:
        update["site"] = recipe.site or scenario.site
    if isinstance(recipe.poses, FlightPoses) and recipe.poses.descent is None:
        update["poses"] = recipe.poses.model_copy(update={"descent": scenario.descent})
    return update


def _with_paths_from(recipe: RenderRecipe, folder: Path) -> RenderRecipe:
    """Paths of a recipe's inputs are told from its own folder."""
    update: dict[str, object] = {}
    if isinstance(recipe.poses, FilePoses):
        update["poses"] = recipe.poses.model_copy(update={"path": folder / recipe.poses.path})
    if isinstance(recipe.albedo, RasterAlbedo):
        path = (folder / recipe.albedo.path).absolute()
        update["albedo"] = recipe.albedo.model_copy(update={"path": path})
    return recipe.model_copy(update=update)
