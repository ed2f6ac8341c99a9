"""Frames of a dataset: image, truth and what is known of each, from recipe and number alone."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from tnav.errors import ConfigError
from tnav.evaluate.dataset import FRAMES_MAX, FieldAlbedo, RenderRecipe
from tnav.evaluate.dataset_ground import Ground, height_over
from tnav.evaluate.dataset_plan import Plan, Sun
from tnav.geometry.camera import Camera
from tnav.geometry.moon import LocalFrame, altitude_m
from tnav.geometry.pose import Pose, concatenate, quaternion_from_matrix
from tnav.records import Frame
from tnav.render.detector import Detector, expose_with_record
from tnav.render.exposure import Exposure
from tnav.render.motion import Motion
from tnav.render.renderer import render
from tnav.render.sunlight import Earthshine, Sunlight, earth_irradiance_ratio
from tnav.terrain.albedo import Albedo, AlbedoField, AlbedoRaster
from tnav.terrain.heightfield import Terrain
from tnav.terrain.lattice import Window

_BATCH_PIXELS = 2**21  # of the frames that are rendered in one call
_BATCH_FRAMES = 16
_PRECISE = ("range_m", "xyz_L")
_OF_SURFACE = (
    "normal_L", "incidence_rad", "emission_rad", "phase_rad", "sun_fraction", "level",
)  # fmt: skip

Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class RenderedFrame:
    """One frame on the host, ready to be written."""

    number: int
    image: Float32[Tensor, "h w"]  # of the detector, in [0, 1]
    truth: Arrays
    facts: dict[str, object]  # as plain JSON values


@dataclass(frozen=True, slots=True)
class _View:
    """One frame to come: what decides which frames share a call."""

    number: int
    pose: int
    sun: Sun
    terrain: Terrain
    level: int


class Studio:
    """Ground, camera and light of a dataset.

    Attributes:
        recipe: resolved.
        plan: of all frames.
        ground: where terrains come from.
        camera: the one for all frames.
    """

    def __init__(self, recipe: RenderRecipe, plan: Plan, ground: Ground) -> None:
        """Draw or load the albedo; nothing is rendered yet."""
        assert recipe.camera is not None, "resolve the recipe first"
        self.recipe, self.plan, self.ground = recipe, plan, ground
        self.camera: Camera = recipe.camera.camera()
        self._detector: Detector = recipe.detector.model_copy(
            update={"sensor_seed": recipe.seeds.sensor}
        )
        albedo = albedo_of(recipe)
        self._albedo = None if albedo is None else albedo.to(ground.device)

    @property
    def batch(self) -> int:
        """Frames that are best asked for together."""
        pixels = self.camera.width_px * self.camera.height_px
        return max(1, min(_BATCH_FRAMES, _BATCH_PIXELS // pixels))

    def frames(self, numbers: Sequence[int]) -> Iterator[RenderedFrame]:
        """Render frames; what a frame holds does not depend on those beside it."""
        # One after the other: a corridor's terrains are large, and a run needs only its own.
        views = (self._view(number) for number in numbers)
        for _, run in itertools.groupby(views, self._shared):
            yield from self._rendered(list(run))

    def terrain_of(self, pose: int) -> tuple[Terrain, int]:
        """Terrain and finest level of the views from a pose."""
        position_L = self.plan.poses.pose.position_L[pose]
        agl_m = float(self.plan.poses.agl_m[pose])
        terrain = self.ground.under(position_L, agl_m, self.camera.focal_px)
        return terrain, self.ground.level(terrain, agl_m, self.camera.focal_px)

    def _view(self, number: int) -> _View:
        pose, sun = self.plan.of_frame(number)
        return _View(number, pose, sun, *self.terrain_of(pose))

    def _shared(self, view: _View) -> tuple[object, ...]:
        """Equal for frames that one call can render."""
        light = tuple(view.sun.sun_L.tolist()) if self.recipe.light.earthshine else ()
        return id(view.terrain), view.level, light

    def _rendered(self, views: list[_View]) -> Iterator[RenderedFrame]:
        device, terrain = self.ground.device, views[0].terrain
        poses = self.plan.poses.pose
        pose = concatenate([poses[v.pose : v.pose + 1] for v in views]).to(device)
        light = self._light(views)
        frame = render(
            terrain,
            self.camera,
            pose,
            light,
            first_level=views[0].level,
            samples=self.recipe.samples,
            albedo=self._albedo,
            reflectance=self.recipe.reflectance,
            motion=self._motion(views),
            dust=self.recipe.dust,
            truth=True,
        )
        agl_m = height_over(terrain, pose.position_L).cpu().tolist()
        for k, view in enumerate(views):
            # One by one: a convolution's rounding may depend on the batch around it.
            seed = self.recipe.seeds.noise * FRAMES_MAX + view.number
            image, exposure = expose_with_record(
                frame.image[k : k + 1], self._detector, seed, camera=self.camera
            )
            yield RenderedFrame(
                number=view.number,
                image=image[0, 0].cpu(),
                truth=truth_arrays(frame, k, self.recipe),
                facts=self._facts(view, frame, k, agl_m[k], exposure, light),
            )

    def _light(self, views: list[_View]) -> Sunlight:
        recipe, sun_L = self.recipe.light, torch.stack([view.sun.sun_L for view in views])
        earth = None
        if recipe.earthshine:
            earth = earthshine(self.recipe.frame, sun_L[0])
        radius_rad = math.radians(recipe.sun_radius_deg)
        return Sunlight(sun_L, recipe.sun_samples, radius_rad, earth=earth)

    def _motion(self, views: list[_View]) -> Motion | None:
        recipe, flown = self.recipe.motion, self.plan.poses
        if recipe is None:
            return None
        index = torch.tensor([view.pose for view in views])
        still = torch.zeros(len(views), 3, dtype=torch.float64)
        velocity_L = still if flown.velocity_L is None else flown.velocity_L[index]
        rate_C = still if flown.rate_C is None else flown.rate_C[index]
        if recipe.velocity_L_m_s is not None:
            velocity_L = still + torch.tensor(recipe.velocity_L_m_s, dtype=torch.float64)
        if recipe.rate_C_rad_s is not None:
            rate_C = still + torch.tensor(recipe.rate_C_rad_s, dtype=torch.float64)
        exposure_s = self._detector.exposure_s if recipe.blur else 0.0
        assert exposure_s is not None, "the recipe sees to it"
        return Motion(
            velocity_L,
            rate_C,
            exposure_s,
            recipe.readout_s,
            recipe.readout,
            recipe.samples,
        )

    def _facts(
        self,
        view: _View,
        frame: Frame,
        k: int,
        agl_m: float,
        exposure: Exposure,
        light: Sunlight,
    ) -> dict[str, object]:
        """What is known of a frame beside its pixels."""
        poses, sun = self.plan.poses, view.sun
        pose = poses.pose[view.pose : view.pose + 1]
        latitude, longitude, _ = self.recipe.frame.geodetic(pose.position_L)
        seeds = self.recipe.seeds
        return {
            "pose_id": view.pose,
            "t_s": None if poses.t_s is None else poses.t_s[view.pose],
            "position_L": pose.position_L[0].tolist(),
            "q_L_C_wxyz": quaternion_from_matrix(pose.R_L_C)[0].tolist(),
            "latitude_deg": float(latitude),
            "longitude_deg": float(longitude),
            "altitude_m": float(altitude_m(pose.position_L)),
            "agl_m": agl_m,
            "camera": self.camera.described(),
            "sun_L": sun.sun_L.tolist(),
            "sun_azimuth_deg": sun.azimuth_deg,
            "sun_elevation_deg": sun.elevation_deg,
            "epoch_utc": None if sun.epoch_utc is None else sun.epoch_utc.isoformat(),
            "earth_irradiance_ratio": None if light.earth is None else light.earth.irradiance_ratio,
            "motion": self._moved(view),
            "exposure": {
                "exposure_s": float(exposure.exposure_s[0]),
                "gain": float(exposure.gain[0]),
                "saturated": float(exposure.saturated[0]),
            },
            "gsd_centre_m": centre_gsd_m(frame, k, self.camera),
            "hit_share": float(frame.hit[k].double().mean()),
            "lit_share": float(frame.lit[k].double().mean()),
            "finest_post_m": view.terrain.levels[view.level].post_m,
            "level_posts_m": [level.post_m for level in view.terrain.levels],
            "reflectance": self.recipe.reflectance.kind,
            "seeds": {
                "terrain": seeds.terrain,
                "albedo": seeds.albedo,
                "sensor": seeds.sensor,
                "noise": seeds.noise * FRAMES_MAX + view.number,
                "poses": [seeds.poses, view.pose],
                "sun": [seeds.sun, view.pose],
            },
        }

    def _moved(self, view: _View) -> dict[str, object] | None:
        motion = self._motion([view])
        if motion is None:
            return None
        return {
            "velocity_L_m_s": motion.velocity_L[0].tolist(),
            "rate_C_rad_s": motion.rate_C[0].tolist(),
            "exposure_s": motion.exposure_s,
            "readout_s": motion.readout_s,
            "readout": motion.readout.value,
        }


def truth_arrays(frame: Frame, k: int, recipe: RenderRecipe) -> Arrays:
    """Channels of one frame of a batch as a recipe wants them; NaN where there is no ground."""
    hit = frame.hit[k].cpu().numpy()
    arrays: Arrays = {}
    for name in recipe.truth.channels:
        source = frame.surface if name in _OF_SURFACE else frame
        value = getattr(source, name)[k].cpu().numpy()
        if name in _PRECISE:
            value = value.astype(recipe.truth.precision)
            value[~hit] = np.nan
        elif name == "level":
            value = value.astype(np.int8)
        arrays[name] = value
    return arrays


def centre_gsd_m(frame: Frame, k: int, camera: Camera) -> float | None:
    """Footprint of the central pixel on a surface that faces the camera; None over no ground."""
    row, column = camera.height_px // 2, camera.width_px // 2
    if not bool(frame.hit[k, row, column]):
        return None
    return camera.ground_sample_distance_m(float(frame.range_m[k, row, column]))


def earthshine(frame: LocalFrame, sun_L: Tensor) -> Earthshine | None:
    """The Earth over a site, at its mean place (libration left out); None where it is not up.

    The Moon-fixed x axis points to the mean Earth (IAU WGCCRE, Archinal et al. 2018). The Sun is so
    far that its angle from the Earth, seen from the Moon, is pi less the phase.
    """
    earth_L = frame.R_M_L.T[:, 0].contiguous()
    if float(earth_L[2]) <= 0:
        return None
    cosine = float((earth_L * sun_L).sum())
    phase_rad = math.pi - math.acos(max(-1.0, min(1.0, cosine)))
    return Earthshine(earth_L, earth_irradiance_ratio(phase_rad))


def albedo_of(recipe: RenderRecipe) -> Albedo | None:
    """The pattern of a recipe, on the host; None for a uniform one."""
    albedo = recipe.albedo
    if albedo is None:
        return None
    if isinstance(albedo, FieldAlbedo):
        return AlbedoField.draw(
            recipe.seeds.albedo,
            contrast=albedo.contrast,
            wavelengths_m=albedo.wavelengths_m,
            exponent=albedo.exponent,
        )
    if not albedo.path.is_file():
        raise ConfigError(f"{albedo.path}: no such albedo raster")
    half = albedo.posts // 2
    window = Window(albedo.post_m, -half, -half, albedo.posts, albedo.posts)
    return AlbedoRaster.load(albedo.path, recipe.frame, window)


def pose_of(plan: Plan, index: int) -> Pose:
    """One pose of a plan, as a batch of one."""
    return plan.poses.pose[index : index + 1]
