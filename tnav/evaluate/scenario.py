"""A scenario: everything that a run depends on, in one YAML recipe."""

from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import Field, field_validator

from tnav.config import Recipe, datasets_dir, load_recipe
from tnav.errors import ConfigError, DeviceError
from tnav.geometry.camera import Camera
from tnav.records import FaultKind
from tnav.simulate.descent import DescentProfile
from tnav.simulate.faults import AltimeterFault, NoFault
from tnav.simulate.instruments import Altimeter, InertialUnit, StarTracker
from tnav.terrain.site import MapQuality, Site


class CameraRecipe(Recipe):
    """Descent camera, looking along the body's -z axis."""

    width_px: int = Field(default=1024, ge=128, le=8192)
    height_px: int = Field(default=1024, ge=128, le=8192)
    fov_deg: float = Field(default=45.0, gt=1, lt=120)
    focal_px: float | None = Field(default=None, gt=0)  # overrides fov_deg

    def camera(self) -> Camera:
        """The pinhole."""
        if self.focal_px is not None:
            centre = (self.width_px / 2, self.height_px / 2)
            return Camera(self.width_px, self.height_px, self.focal_px, *centre)
        return Camera.from_field_of_view(self.width_px, self.height_px, self.fov_deg)


class Imaging(Recipe):
    """When images are taken and how the truth is sampled."""

    interval_s: float = Field(default=5.0, gt=0)
    first_s: float = Field(default=1.0, ge=0)
    samples: int = Field(default=4)  # stratified samples a pixel of the truth
    albedo_contrast: float = Field(default=0.05, ge=0, lt=0.3)  # truth only

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

    terrain: int = 1
    albedo: int = 2
    map: int = 3
    camera: int = 4
    inertial: int = 5
    star_tracker: int = 6
    altimeter: int = 7
    fault: int = 8
    initial: int = 9
    solver: int = 10

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
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = datasets_dir() / "scenarios" / f"{name_or_path}.yaml"
        if not path.exists():
            known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
            raise ConfigError(
                f"scenario '{name_or_path}': not found; known: {known}; or give a path"
            )
    return load_recipe(path, Scenario)


def resolve_device(name: str) -> torch.device:
    """A device by ``auto``, ``cpu`` or ``cuda``. Raises DeviceError for CUDA that is not there."""
    if name not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"device '{name}': expected auto, cpu or cuda")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise DeviceError("device 'cuda': no CUDA device is visible to torch; use auto or cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")
