"""Truth and map of one scenario: ground, flight, Sun, camera, and what the camera delivers."""

import math
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from tnav.errors import ConfigError
from tnav.evaluate.localise import Navigation
from tnav.evaluate.scenario import Scenario
from tnav.geometry.camera import Camera
from tnav.geometry.moon import up_L
from tnav.geometry.pose import Pose
from tnav.geometry.sun import SunPosition, sun_at
from tnav.match.weights import default_model
from tnav.records import Frame
from tnav.render.detector import expose
from tnav.render.renderer import render
from tnav.simulate.descent import Trajectory, fly
from tnav.simulate.instruments import epochs_s
from tnav.terrain.albedo import AlbedoField
from tnav.terrain.cache import default_cache
from tnav.terrain.heightfield import Terrain
from tnav.terrain.raycast import cast
from tnav.terrain.site import build_truth, degrade

# Camera looks along the body's -z: x right, y down in the image (C) from the body's axes (B).
R_B_C = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
_ALBEDO_WAVELENGTHS_M = (8.0, 4000.0)
_TRUTH_POSTS_PER_PIXEL = 2.0


@dataclass(frozen=True, slots=True)
class World:
    """Truth and map of one scenario, on the device."""

    scenario: Scenario
    device: torch.device
    truth: Terrain
    terrain_map: Terrain
    trajectory: Trajectory
    sun: SunPosition
    camera: Camera
    albedo: AlbedoField | None
    # What the camera delivered, by image number: twins of one flight see the same images.
    observed: dict[int, Float32[Tensor, "1 1 h w"]] = field(default_factory=dict)

    def healthy_twin(self) -> "World":
        """The same world and flight with a healthy altimeter; images are shared."""
        return replace(self, scenario=self.scenario.healthy())


def build_world(scenario: Scenario, device: torch.device) -> World:
    """Ground, map, flight and Sun of a scenario."""
    ground = build_truth(scenario.site, scenario.seeds.terrain, cache=default_cache())
    terrain_map = degrade(ground, scenario.map, scenario.seeds.map)
    height, _ = ground.height_L(torch.zeros(1, 2, dtype=torch.float64))
    trajectory = fly(scenario.descent, scenario.site.frame, float(height[0]))
    if epochs_s(trajectory, 1 / scenario.imaging.interval_s, scenario.imaging.first_s).numel() == 0:
        raise ConfigError(
            f"imaging.first_s: {scenario.imaging.first_s}, expected an image within the flight of "
            f"{float(trajectory.t_s[-1]):.1f} s"
        )
    if not bool(ground.height_L(trajectory.position_L[:, :2])[1].all()):
        raise ConfigError(
            "site: the flight leaves the modelled terrain; raise site.levels or site.cells"
        )
    contrast = scenario.imaging.albedo_contrast
    albedo = (
        AlbedoField.draw(
            scenario.seeds.albedo, contrast=contrast, wavelengths_m=_ALBEDO_WAVELENGTHS_M
        ).to(device)
        if contrast > 0
        else None
    )
    return World(
        scenario=scenario,
        device=device,
        truth=ground.to(device),
        terrain_map=terrain_map.to(device),
        trajectory=trajectory,
        sun=sun_at(scenario.site.frame, scenario.epoch_utc),
        camera=scenario.camera.camera(),
        albedo=albedo,
    )


def navigation_of(scenario: Scenario, terrain_map: Terrain) -> Navigation:
    """What flies along: the map and its stated error, nothing of the truth."""
    device = terrain_map.device
    boresight_B = torch.tensor(scenario.altimeter.boresight_B, dtype=torch.float64)
    return Navigation(
        terrain_map=terrain_map,
        map_error=scenario.map.error_model(),
        map_coarser=float(scenario.map.coarser),
        camera=scenario.camera.camera(),
        sun_L=sun_at(scenario.site.frame, scenario.epoch_utc).sun_L.to(device),
        boresight_C=(R_B_C.T @ boresight_B).to(device),
        solver_seed=scenario.seeds.solver,
        model=default_model(device),
    )


def observe(world: World, pose: Pose, seed: int) -> Float32[Tensor, "1 1 h w"]:
    """What the camera delivers from a true pose."""
    image = true_view(world, pose).image
    return expose(image, world.scenario.detector, seed, camera=world.camera)


def true_view(world: World, pose: Pose) -> Frame:
    """Radiance and geometry of the ground from a true pose."""
    agl_m = agl_over(world.truth, pose.position_L)
    level = world.truth.level_for(
        world.camera.ground_sample_distance_m(agl_m), posts_per_pixel=_TRUTH_POSTS_PER_PIXEL
    )
    return render(
        world.truth,
        world.camera,
        pose,
        world.sun.sun_L.to(world.device),
        first_level=level,
        samples=world.scenario.imaging.samples,
        albedo=world.albedo,
        reflectance=world.scenario.imaging.reflectance,
    )


def agl_over(terrain: Terrain, position_L: Float64[Tensor, "1 3"]) -> float:
    """Height over a terrain along the local vertical, m; NaN beside it."""
    hits = cast(terrain, position_L, -up_L(position_L))
    return float(hits.range_m[0]) if bool(hits.hit[0]) else math.nan
