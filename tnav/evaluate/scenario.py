"""A scenario: everything that a run depends on, in one YAML recipe."""

from datetime import UTC, datetime
from typing import Annotated

import torch
from pydantic import Field, field_validator, model_validator

from tnav.config import Recipe, find_recipe, load_recipe
from tnav.errors import ConfigError, DeviceError
from tnav.geometry.camera import Camera
from tnav.geometry.distortion import BrownConrady, Fisheye
from tnav.records import FaultKind
from tnav.render.detector import Detector
from tnav.render.reflectance import LunarLambert, ReflectanceModel
from tnav.simulate.altimeter import Altimeter
from tnav.simulate.descent import DescentProfile
from tnav.simulate.fault_prescribed import AltimeterFault, NoFault
from tnav.simulate.inertial import InertialUnit
from tnav.simulate.instruments import StarTracker
from tnav.terrain.site import MapQuality, Site

Seed = Annotated[int, Field(ge=-(2**40), le=2**40)]  # leaves room for shifts in 64 bits


class CameraRecipe(Recipe):
    """Descent camera, looking along the body's -z axis."""

    width_px: int = Field(default=1024, ge=128, le=8192)
    height_px: int = Field(default=1024, ge=128, le=8192)
    fov_deg: float = Field(default=45.0, gt=1, lt=220)  # horizontal; from 120 a fisheye's only
    focal_px: float | None = Field(default=None, gt=0)  # overrides fov_deg
    distortion: BrownConrady | Fisheye | None = Field(default=None, discriminator="kind")

    @model_validator(mode="after")
    def _possible(self) -> "CameraRecipe":
        if self.fov_deg >= 120 and not isinstance(self.distortion, Fisheye):
            raise ValueError(f"fov_deg {self.fov_deg} needs a fisheye; expected < 120 without")
        try:
            self.camera()
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    def camera(self) -> Camera:
        """The camera, with its principal point in the middle."""
        size = (self.width_px, self.height_px)
        if self.focal_px is not None:
            centre = (self.width_px / 2, self.height_px / 2)
            return Camera(*size, self.focal_px, *centre, self.distortion)
        return Camera.from_field_of_view(*size, self.fov_deg, self.distortion)


class Imaging(Recipe):
    """When images are taken and how the truth is sampled."""

    interval_s: float = Field(default=5.0, ge=0.1)
    first_s: float = Field(default=1.0, gt=0)
    samples: int = Field(default=4)  # stratified samples a pixel of the truth
    albedo_contrast: float = Field(default=0.05, ge=0, lt=0.3)  # truth only
    reflectance: ReflectanceModel = LunarLambert()  # truth only; the map is shown in the default

    @field_validator("samples")
    @classmethod
    def _square(cls, value: int) -> int:
        if value not in (1, 4, 9, 16):
            raise ValueError("expected 1, 4, 9 or 16")
        return value


class InitialError(Recipe):
    """1-sigma error of the navigation state at the start."""

    position_m: float = Field(default=200.0, gt=0)  # per axis
    velocity_m_s: float = Field(default=1.0, gt=0)
    attitude_deg: float = Field(default=0.02, gt=0)


class Seeds(Recipe):
    """One seed for each source of randomness."""

    terrain: Seed = 1
    albedo: Seed = 2
    map: Seed = 3
    camera: Seed = 4
    inertial: Seed = 5
    star_tracker: Seed = 6
    altimeter: Seed = 7
    fault: Seed = 8
    initial: Seed = 9
    solver: Seed = 10
    timing: Seed = 11
    touchdown: Seed = 12

    def shifted(self, by: int) -> "Seeds":
        """Another draw of everything: each seed moved by 1000 times a number."""
        return Seeds(**{name: value + 1000 * by for name, value in self.model_dump().items()})


class Scenario(Recipe):
    """One descent with its instruments, its map and its fault."""

    name: str
    epoch_utc: datetime
    site: Site
    map: MapQuality = MapQuality()
    camera: CameraRecipe = CameraRecipe()
    detector: Detector = Detector()
    imaging: Imaging = Imaging()
    descent: DescentProfile = DescentProfile()
    inertial: InertialUnit = InertialUnit()
    star_tracker: StarTracker = StarTracker()
    altimeter: Altimeter = Altimeter()
    fault: AltimeterFault = NoFault()
    initial_error: InitialError = InitialError()
    seeds: Seeds = Seeds()
    net_deceleration_m_s2: float = Field(default=1.85, gt=0)  # what the lander can still do
    floor_agl_m: float = Field(default=1000.0, gt=0)  # fixes below are shown, not scored

    @field_validator("epoch_utc")
    @classmethod
    def _utc(cls, value: datetime) -> datetime:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)

    @model_validator(mode="after")
    def _rates(self) -> "Scenario":
        """Every sensor speaks on the inertial unit's grid, fixes no more often than ranges."""
        inertial_hz = self.descent.inertial_rate_hz
        for name, rate_hz in (
            ("star_tracker.rate_hz", self.star_tracker.rate_hz),
            ("altimeter.rate_hz", self.altimeter.rate_hz),
        ):
            if rate_hz > inertial_hz:
                raise ValueError(f"{name} {rate_hz} exceeds descent.inertial_rate_hz {inertial_hz}")
        if self.imaging.interval_s * self.altimeter.rate_hz < 1:
            raise ValueError("imaging.interval_s is shorter than one period of the altimeter")
        return self

    @property
    def fault_start_s(self) -> float:
        """No alert before this can be right; a late acquisition is there from the start."""
        return getattr(self.fault, "start_s", 0.0)

    @property
    def expected_verdict(self) -> FaultKind:
        """What a right monitor says of the injected fault."""
        match self.fault.kind:
            case "late_acquisition":
                return FaultKind.LATE_ACQUISITION
            case "dropout":
                return FaultKind.DROPOUT
            case "bias":
                return FaultKind.ALTIMETER_INCONSISTENT
            case _:
                return FaultKind.HEALTHY

    def with_seed(self, number: int) -> "Scenario":
        """The same scenario with every seed shifted (0 changes nothing)."""
        return self.model_copy(update={"seeds": self.seeds.shifted(number)})

    def healthy(self) -> "Scenario":
        """The twin with a healthy altimeter, all else equal."""
        return self.model_copy(update={"fault": NoFault(), "name": f"{self.name}-healthy"})


def load_scenario(name_or_path: str) -> Scenario:
    """A scenario by its name in the datasets folder, or by path.

    Raises:
        ConfigError: no such scenario, or one that does not fit; file, line and field are named.
    """
    return load_recipe(find_recipe(name_or_path, "scenarios", "scenario"), Scenario)


def resolve_device(name: str) -> torch.device:
    """A device by ``auto``, ``cpu`` or ``cuda``. Raises DeviceError for CUDA that is not there."""
    if name not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"device '{name}': expected auto, cpu or cuda")
    # cuDNN rounds convolutions to 10 bits unless told not to: a tenth of a pixel would be lost.
    torch.backends.cudnn.allow_tf32 = False
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise DeviceError("device 'cuda': no CUDA device is visible to torch; use auto or cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")
