"""Flies one scenario with rendered images: truth in, what navigation made of it out.

Truth flows into instruments and into the score, never into a stage that navigates.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float32, Float64
from torch import Tensor

from tnav.evaluate.filter_setup import filter_config
from tnav.evaluate.localise import Localisation, Prediction, localise
from tnav.evaluate.scenario import Scenario
from tnav.evaluate.world import R_B_C, World, agl_over, navigation_of, observe
from tnav.geometry.pose import Pose, so3_exp
from tnav.monitor.isolate import Monitor, MonitorConfig
from tnav.navigate.altimetry import predict_range, relief_around_m2, view_of
from tnav.navigate.filter import (
    propagate,
    update_altimeter,
    update_ground,
    update_star_tracker,
    update_vision,
)
from tnav.navigate.map_error import travel
from tnav.navigate.state import FilterConfig, FilterState, clone, initial_state
from tnav.records import (
    AltimeterReading,
    FaultVerdict,
    FixStatus,
    InertialIncrements,
    Innovation,
    RangePrediction,
    StarTrackerReading,
    VisionFix,
)
from tnav.simulate.altimeter import AltimeterLog, read_altimeter
from tnav.simulate.descent import Trajectory
from tnav.simulate.fault_prescribed import apply_fault
from tnav.simulate.inertial import read_inertial
from tnav.simulate.instruments import epochs_s, read_star_tracker
from tnav.terrain.heightfield import Terrain
from tnav.terrain.raycast import cast

_HALF_FOV_MAX_RAD = math.radians(75)  # a fisheye sees further, but learns no more out there

Progress = Callable[[str, float], None]  # what is done now, share of the whole in [0, 1]
OnFrame = Callable[["FrameLog"], None]


@dataclass(frozen=True, slots=True)
class FrameLog:
    """One image with its fix and the truth that scores it."""

    t_s: float
    image: Float32[Tensor, "h w"]  # as the camera delivered it
    prediction: Prediction
    localisation: Localisation
    true_pose: Pose
    true_agl_m: float
    true_range_m: float
    seconds: float


@dataclass(frozen=True, slots=True)
class AltimeterEpoch:
    """One epoch of the altimeter with what navigation expected."""

    t_s: float
    true_range_m: float | None
    range_m: float | None
    predicted_m: float | None
    predicted_sigma_m: float | None


@dataclass(slots=True)
class RunLog:
    """What a run leaves behind; filled while it flies."""

    world: World
    states: list[FilterState] = field(default_factory=list)
    frames: list[FrameLog] = field(default_factory=list)
    altimeter: list[AltimeterEpoch] = field(default_factory=list)
    innovations: list[Innovation] = field(default_factory=list)
    monitor: Monitor | None = None
    seconds: float = 0.0

    @property
    def verdicts(self) -> tuple[FaultVerdict, ...]:
        """All alerts, in order."""
        return self.monitor.verdicts if self.monitor else ()


def run(world: World, progress: Progress, on_frame: OnFrame) -> RunLog:
    """Fly a scenario through its world.

    Args:
        world: terrain, images, matching and solving live on its device; the filter on the CPU.
        progress: told what is being done and how far the run is.
        on_frame: given every image with its fix as soon as it is there.
    """
    began = time.perf_counter()
    log = RunLog(world)
    _Flight(log, progress, on_frame).fly()
    log.seconds = time.perf_counter() - began
    return log


class _Flight:
    """The loop over time; its state is the filter, the monitor and the log."""

    def __init__(self, log: RunLog, progress: Progress, on_frame: OnFrame) -> None:
        world, scenario = log.world, log.world.scenario
        self.log, self.world, self.progress, self.on_frame = log, world, progress, on_frame
        self.nav = navigation_of(scenario, world.terrain_map)
        self.spec = scenario.altimeter.spec()
        seeds = scenario.seeds
        self.inertial = read_inertial(scenario.inertial, world.trajectory, seeds.inertial)
        self.stars_R_L_B = read_star_tracker(
            scenario.star_tracker, world.trajectory.R_L_B, seeds.star_tracker
        )
        self.stars_sigma_rad = math.radians(scenario.star_tracker.sigma_deg)
        healthy = read_altimeter(scenario.altimeter, world.trajectory, world.truth, seeds.altimeter)
        self.true_range_m = healthy.true_range_m
        self.readings = _with_fault(scenario, healthy)
        self.config = filter_config(
            scenario.inertial, scenario.altimeter, scenario, scenario.imaging.interval_s
        )
        # The monitor runs on the host beside the filter and looks at the map there.
        self.map_cpu = world.terrain_map.to("cpu")
        self.state = _initial(world, self.config)
        log.monitor = Monitor(
            self.spec,
            MonitorConfig(
                descent_s=float(world.trajectory.t_s[-1]),
                fix_interval_s=scenario.imaging.interval_s,
            ),
        )

    def fly(self) -> None:
        trajectory, scenario = self.world.trajectory, self.world.scenario
        stars_at = _steps(trajectory, epochs_s(trajectory, scenario.star_tracker.rate_hz))
        range_at = _steps(trajectory, epochs_s(trajectory, scenario.altimeter.rate_hz))
        imaging = scenario.imaging
        image_at = _steps(trajectory, epochs_s(trajectory, 1 / imaging.interval_s, imaging.first_s))
        vision: Innovation | None = None
        self.log.states.append(self.state)
        for k in range(1, trajectory.t_s.numel()):
            self._propagate(k)
            if k in image_at:
                vision = self._image(k, image_at[k], len(image_at))
            elif k in stars_at:
                self._stars(k)
            if k in range_at:
                self._range(range_at[k], vision)
                vision = None
            self.log.states.append(self.state)

    def _propagate(self, k: int) -> None:
        increments = InertialIncrements(
            t_s=float(self.world.trajectory.t_s[k]),
            dt_s=self.world.trajectory.dt_s,
            delta_v_B=self.inertial.delta_v_B[k : k + 1],
            delta_theta_B=self.inertial.delta_theta_B[k : k + 1],
        )
        frame = self.world.scenario.site.frame
        self.state = propagate(self.state, increments, frame, self.config)

    def _image(self, k: int, index: int, count: int) -> Innovation | None:
        world, t_s = self.world, self.state.t_s
        self.progress(f"image {index + 1} of {count}", index / count)
        R_L_C = world.trajectory.R_L_B[k] @ R_B_C
        true_pose = Pose(R_L_C[None], world.trajectory.position_L[k : k + 1]).to(world.device)
        if index not in world.observed:
            seed = world.scenario.seeds.camera * 4096 + index
            world.observed[index] = observe(world, true_pose, seed)
        image = world.observed[index]
        began = time.perf_counter()
        prediction = Prediction(
            t_s=t_s,
            pose=Pose((self.stars_R_L_B[k] @ R_B_C)[None], self.state.position_L).to(world.device),
            position_covariance=self.state.covariance[0, :3, :3],
            attitude_sigma_rad=self.stars_sigma_rad,
        )
        localisation = localise(image, prediction, self.nav)
        seconds = time.perf_counter() - began
        frame = self._frame_log(image, prediction, localisation, true_pose, seconds)
        self.log.frames.append(frame)
        self.on_frame(frame)
        fix = localisation.fix
        if fix.status is not FixStatus.OK:
            self._stars(k)
            return None
        vision_fix, error_m, variance_m2 = fix_for_filter(localisation, self.map_cpu)
        there = torch.ones(1, dtype=torch.bool)
        self.state = clone(self._travelled())
        self.state, innovation = update_vision(self.state, vision_fix, there, R_B_C, self.config)
        self.state, ground = update_ground(self.state, error_m, variance_m2, there, self.config)
        self.log.innovations.append(innovation)
        if bool(ground.present[0]):
            self.log.innovations.append(ground)
        return innovation

    def _travelled(self, relief_m2: Float64[Tensor, "1"] | None = None) -> FilterState:
        height_m = agl_over(self.map_cpu, self.state.position_L)
        half_rad = min(self.world.camera.fov_rad / 2, _HALF_FOV_MAX_RAD)
        footprint_m = torch.tensor([2 * math.tan(half_rad) * height_m], dtype=torch.float64)
        agl_m = torch.tensor([height_m], dtype=torch.float64).nan_to_num()
        view = view_of(self.state, agl_m, footprint_m.nan_to_num(), self.spec)
        return travel(self.state, view, self.config, relief_m2)

    def _frame_log(
        self,
        image: Float32[Tensor, "1 1 h w"],
        prediction: Prediction,
        localisation: Localisation,
        true_pose: Pose,
        seconds: float,
    ) -> FrameLog:
        truth = self.world.truth
        beam_L = true_pose.R_L_C[0] @ self.nav.boresight_C
        hits = cast(truth, true_pose.position_L, beam_L[None])
        return FrameLog(
            t_s=prediction.t_s,
            image=image[0, 0].cpu(),
            prediction=prediction,
            localisation=localisation,
            true_pose=true_pose,
            true_agl_m=agl_over(truth, true_pose.position_L),
            true_range_m=float(hits.range_m[0]),
            seconds=seconds,
        )

    def _stars(self, k: int) -> None:
        reading = StarTrackerReading(
            self.state.t_s, self.stars_R_L_B[k : k + 1], self.stars_sigma_rad
        )
        self.state, innovation = update_star_tracker(self.state, reading, self.config)
        self.log.innovations.append(innovation)

    def _range(self, epoch: int, vision: Innovation | None) -> None:
        t_s, (range_m, valid) = self.state.t_s, self.readings
        reading = AltimeterReading(t_s, range_m[epoch : epoch + 1], valid[epoch : epoch + 1])
        # Ground that nobody ranges to need not be known.
        relief_m2 = reading.valid * relief_around_m2(self.state, self.map_cpu, self.spec)
        self.state = self._travelled(relief_m2)
        prediction, H = predict_range(self.state, self.map_cpu, self.spec, self.config)
        self.state, innovation = update_altimeter(
            self.state, reading, prediction, H, self.spec, self.config
        )
        assert self.log.monitor is not None
        present = bool(innovation.present[0])
        self.log.monitor.step(t_s, prediction, reading, innovation if present else None, vision)
        if present:
            self.log.innovations.append(innovation)
        self._log_range(epoch, reading, prediction)

    def _log_range(
        self, epoch: int, reading: AltimeterReading, prediction: RangePrediction
    ) -> None:
        true_m = float(self.true_range_m[epoch])
        defined = bool(prediction.defined[0])
        self.log.altimeter.append(
            AltimeterEpoch(
                t_s=reading.t_s,
                true_range_m=true_m if math.isfinite(true_m) else None,
                range_m=float(reading.range_m[0]) if bool(reading.valid[0]) else None,
                predicted_m=float(prediction.range_m[0]) if defined else None,
                predicted_sigma_m=float(prediction.sigma_m[0]) if defined else None,
            )
        )


def _with_fault(
    scenario: Scenario, healthy: AltimeterLog
) -> tuple[Float64[Tensor, " n"], Bool[Tensor, " n"]]:
    return apply_fault(
        scenario.fault, healthy.t_s, healthy.range_m, healthy.valid, scenario.seeds.fault
    )


def fix_for_filter(
    localisation: Localisation, terrain_map: Terrain
) -> tuple[VisionFix, Float64[Tensor, "1"], Float64[Tensor, "1"]]:
    """A good fix, what it says of the map's error under the lander, m, and its variance, m^2."""
    fix, altitude = localisation.fix, localisation.altitude
    assert fix.position_L is not None
    assert fix.R_L_C is not None
    assert fix.covariance is not None
    assert fix.map_covariance is not None
    assert altitude is not None
    vision_fix = VisionFix(
        t_s=fix.t_s,
        position_L=fix.position_L[None],
        R_L_C=fix.R_L_C[None],
        covariance=fix.covariance[None],
        map_covariance=fix.map_covariance[None],
    )
    over_map_m = agl_over(terrain_map, vision_fix.position_L)
    return vision_fix, altitude.agl_m.cpu() - over_map_m, altitude.agl_sigma_m.cpu().square()


def _initial(world: World, config: FilterConfig) -> FilterState:
    """The filter's start: truth plus one seeded draw of the initial error."""
    error, seeds = world.scenario.initial_error, world.scenario.seeds
    generator = torch.Generator().manual_seed(seeds.initial)
    draw = torch.randn(3, 1, 3, generator=generator, dtype=torch.float64)
    attitude_rad = math.radians(error.attitude_deg)
    trajectory = world.trajectory
    return initial_state(
        float(trajectory.t_s[0]),
        trajectory.position_L[:1] + error.position_m * draw[0],
        trajectory.velocity_L[:1] + error.velocity_m_s * draw[1],
        so3_exp(attitude_rad * draw[2]) @ trajectory.R_L_B[:1],
        position_sigma_m=error.position_m,
        velocity_sigma_m_s=error.velocity_m_s,
        attitude_sigma_rad=attitude_rad,
        config=config,
    )


def _steps(trajectory: Trajectory, t_s: Float64[Tensor, " n"]) -> dict[int, int]:
    """Steps of the inertial grid at which a sensor speaks, with the number of its epoch."""
    return {trajectory.index_at(float(t)): i for i, t in enumerate(t_s)}
