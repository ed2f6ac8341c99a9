"""The closed loop: lander and instruments, the filter, and guidance on what the filter believes.

All descents of a batch share the clock and one terrain, and differ in every error. The host asks
the device once a second of flight whether all have landed, and at exposures whether anyone looks;
noise is drawn on the host, step by step.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.evaluate.descent_plan import Descent, told_of
from tnav.evaluate.flight_detectable import Detectable, Readings
from tnav.evaluate.flight_faults import Injection
from tnav.evaluate.flight_ground import Exposure, Ground, map_agl_m
from tnav.evaluate.flight_integrity import IntegrityLog
from tnav.evaluate.flight_log import FlightLog, height_over_site_m
from tnav.evaluate.flight_monitor import FlightMonitor
from tnav.evaluate.flight_start import footprint_per_m, start
from tnav.evaluate.scenario import Scenario
from tnav.evaluate.world import R_B_C
from tnav.geometry.moon import altitude_m
from tnav.monitor.watch import RangeLook
from tnav.navigate.altimetry import (
    agl_sigma_m,
    over_map_L,
    predict_range,
    relief_around_m2,
    view_of,
)
from tnav.navigate.filter import (
    propagate,
    update_altimeter,
    update_ground,
    update_star_tracker,
    update_vision,
)
from tnav.navigate.map_error import View, travel
from tnav.navigate.mechanisation import POSITION
from tnav.navigate.state import FilterState, GatePolicy, clone
from tnav.navigate.tight import update_tight
from tnav.records import AltimeterReading, InertialIncrements, Innovation, StarTrackerReading
from tnav.simulate.altimeter import beam_L, draw_altimeter, read_ranges
from tnav.simulate.faults import Fault
from tnav.simulate.guidance import before_guidance, guide, plan_descent
from tnav.simulate.inertial import draw_inertial, read_increments, walk_biases
from tnav.simulate.instruments import TouchdownState, read_attitude, read_touchdown, tag_exposure
from tnav.simulate.lander import step, touch
from tnav.terrain.heightfield import Terrain

Progress = Callable[[str, float], None]  # what is done now, share of the longest flight

# Ranges are predicted from where one of the descents comes this near to what is promised.
_NEAR = 1.5
_THRUSTING_M_S2 = 0.5  # a command under which an inertial unit may read nothing
_LOW_M = 20e3  # under which true heights over the ground are looked at, and with them contact


class Monitoring(StrEnum):
    """What becomes of verdicts."""

    OFF = "off"
    WATCHES = "watches"  # they are written down
    ACTS = "acts"  # navigation and guidance follow them


class Flight:
    """A batch of descents; its state is lander, filter, guidance and the log."""

    def __init__(
        self,
        descent: Descent,
        scenario: Scenario,
        ground: Ground,
        terrain_map: Terrain,
        batch: int,
        keep: int | None = None,
        faults: Sequence[Fault] = (),
        monitor: Monitoring = Monitoring.OFF,
    ) -> None:
        """All random draws follow from the scenario's seeds.

        Args:
            descent: the recipe.
            scenario: ground, map, camera and seeds.
            ground: truth under the descents, in one fidelity or the other.
            terrain_map: the map that navigation carries; the filter runs on its device.
            batch: number of descents.
            keep: number of the descent whose whole history is logged, if one.
            faults: what fails.
            monitor: whether verdicts are given, and acted on.
        """
        device, seeds = terrain_map.device, scenario.seeds
        self.descent, self.scenario, self.ground, self.map = descent, scenario, ground, terrain_map
        self.frame, self.device = scenario.site.frame, device
        self.spec, self.config = descent.altimeter.spec(), told_of(descent, scenario)
        began = start(descent, scenario, batch, device)
        self.lander, self.state = began.lander, began.state
        height_m, _ = terrain_map.height_L(torch.zeros(1, 2, dtype=torch.float64, device=device))
        self.site_z_m = float(height_m[0])
        self.plan = plan_descent(descent.guidance, self.frame, self.site_z_m, device)
        self.memory = before_guidance(self.plan, 0.0, batch)
        self.noise = {
            name: torch.Generator().manual_seed(getattr(seeds, name))
            for name in ("inertial", "star_tracker", "altimeter", "timing", "touchdown")
        }
        self.inertial_errors = draw_inertial(descent.inertial, batch, self.noise["inertial"])
        self.inertial_errors = self.inertial_errors.to(device)
        self.altimeter_errors = draw_altimeter(descent.altimeter, batch, self.noise["altimeter"])
        self.altimeter_errors = self.altimeter_errors.to(device)
        self.footprint_per_m = footprint_per_m(scenario)
        self.near = self.low = False
        self.pending: _Pending | None = None
        self.probes = TouchdownState.free(batch, device)
        # Height at which the engines were cut off in the air, for good; NaN where they were not.
        self.cut_off_agl_m = torch.full_like(self.lander.propellant_kg, math.nan)
        self.faults = Injection(faults, batch, seeds.fault, device)
        self.integrity = IntegrityLog(batch, device)
        self.monitor: FlightMonitor | None = None
        self.detectable: Detectable | None = None
        if monitor is not Monitoring.OFF:
            acts = monitor is Monitoring.ACTS
            self.monitor = FlightMonitor(
                descent, self.state, terrain_map, self.config, self.frame, acts
            )
            self.detectable = Detectable(self.monitor.setup, batch, device)
        self.log = FlightLog(batch, device, keep)
        self.after_step: Callable[[], None] | None = None  # who looks on
        self.after_range: Callable[[RangeLook], None] | None = None

    def fly(self, progress: Progress) -> FlightLog:
        """From orbit until all are down, or the longest duration is over."""
        began, last = time.perf_counter(), round(self.descent.duration_max_s / self.descent.step_s)
        each_second = self.descent.steps(1.0)
        for k in range(1, last + 1):
            if (k - 1) % each_second == 0:
                self._look_ahead()
                if bool(self.lander.landed.all()):
                    break
                progress(f"{self.state.t_s:.0f} s of flight", k / last)
            self._step(k)
        self.log.finish(self.lander, time.perf_counter() - began)
        return self.log

    def _look_ahead(self) -> None:
        height_m = altitude_m(self.state.position_L) - self.site_z_m
        up = ~self.lander.landed
        least_m = torch.where(up, height_m, torch.inf).min()
        seeing_m = self.descent.seeing.agl_max_m
        self.near = bool(least_m < max(_NEAR * self.spec.range_max_m, _NEAR * seeing_m))
        # The ground is there whatever navigation believes.
        true_m = height_over_site_m(self.lander, self.site_z_m)
        self.low = bool(torch.where(up, true_m, torch.inf).min() < _LOW_M)

    def _step(self, k: int) -> None:
        descent, dt_s = self.descent, self.descent.step_s
        self.memory, command_L = guide(
            self.plan,
            self.memory,
            self.state.t_s,
            over_map_L(self.state),  # as high over the map as over the ground
            self.state.velocity_L,
            self.expected_agl_m()[0],
        )
        off = self.cut_off_agl_m.isfinite()
        command_L = torch.where(off[:, None], 0.0, command_L)
        self.lander, delta_v_B, delta_theta_B = step(
            descent.lander,
            self.faults.thrust(self.state.t_s, self.lander),
            command_L,
            self.frame,
            dt_s,
        )
        self.inertial_errors = walk_biases(
            descent.inertial, self.inertial_errors, dt_s, self.noise["inertial"]
        )
        delta_v_B, delta_theta_B = read_increments(
            descent.inertial,
            self.inertial_errors,
            delta_v_B,
            delta_theta_B,
            dt_s,
            self.noise["inertial"],
        )
        delta_v_B, delta_theta_B = self.faults.increments(k * dt_s, dt_s, delta_v_B, delta_theta_B)
        increments = InertialIncrements(k * dt_s, dt_s, delta_v_B, delta_theta_B)
        self.state = propagate(self.state, increments, self.frame, self.config)
        if self.monitor is not None:
            self.monitor.aloft = ~self.lander.landed
            self.monitor.propagate(increments, command_L.norm(dim=-1) > _THRUSTING_M_S2)
        period = descent.steps(1 / descent.star_tracker.rate_hz)
        # Between exposures: a fix is solved with an attitude of its own.
        if k % period == period // 2:
            self._stars()
        if descent.with_vision and self.near:
            self._vision(k)
        ranging = k % descent.steps(1 / descent.altimeter.rate_hz) == 0
        if descent.with_altimeter and self.near and ranging:
            self._range()
        self._contact(k)
        if self.monitor is not None:
            self.state = self.monitor.act(self.state)
        if self.after_step is not None:
            self.after_step()

    def expected_agl_m(self) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]]:
        """Height over ground as navigation has it, and its sigma; far away, over the sphere."""
        over_sphere_m = altitude_m(self.state.position_L) - self.site_z_m
        if not self.near:
            return over_sphere_m, self.state.covariance[:, 2, 2].sqrt()
        height_m, there = map_agl_m(self.map, over_map_L(self.state))
        return torch.where(there, height_m, over_sphere_m), agl_sigma_m(self.state)

    def _stars(self) -> None:
        tracker = self.descent.star_tracker
        read = read_attitude(tracker, self.lander.R_L_B, self.noise["star_tracker"])
        reading = StarTrackerReading(self.state.t_s, read, math.radians(tracker.sigma_deg))
        self.state, innovation = update_star_tracker(self.state, reading, self.config)
        if self.monitor is not None:
            self.monitor.stars(reading)
        self.log.innovation(innovation, self.lander)

    def _vision(self, k: int) -> None:
        timing = self.descent.timing
        if k % self.descent.steps(timing.interval_s) == 0:
            self._expose(k + round(timing.latency_s / self.descent.step_s))
        if self.pending is not None and self.pending.due == k:
            exposure, star, imaged = self.pending.exposure, self.pending.star, self.pending.imaged
            self.pending = None
            if self.monitor is not None:
                own = self.monitor.fix(exposure, star.t_s, imaged)
                self._fix_faults(own, imaged)
                heard = exposure.available & ~self.monitor.blame.vision
                exposure = replace(exposure, available=heard)
            if self.descent.tight_vision:
                self.state, innovation = self._tight(exposure, star)
            else:
                self.state, innovation = update_vision(
                    self.state, exposure.fix, exposure.available, R_B_C, self.config
                )
            self.log.innovation(innovation, self.lander)
            self.state, innovation = update_ground(
                self.state,
                exposure.ground_error_m,
                exposure.ground_variance_m2,
                exposure.available,
                self.config,
            )
            self.log.innovation(innovation, self.lander)

    def _fix_faults(self, own: Innovation, imaged: Bool[Tensor, " b"]) -> None:
        sigma_m = own.covariance.diagonal(dim1=-2, dim2=-1)[:, :3].sqrt()
        done = self.faults.fixes
        if done is not None and self.detectable is not None:
            in_time = self.integrity.in_time
            self.detectable.fixes(
                done.error_L, done.map_step_L, sigma_m, done.lost, imaged, in_time
            )

    def _expose(self, due: int) -> None:
        agl, seeing = self.expected_agl_m()[0], self.descent.seeing
        upright = self.state.R_L_B[:, 2, 2] > math.cos(math.radians(seeing.tilt_max_deg))
        wanted = (agl < seeing.agl_max_m) & (agl > seeing.agl_min_m) & upright
        wanted = wanted & ~self.lander.landed
        if not bool(wanted.any()):
            return
        self.state = clone(self._travelled(agl))
        if self.monitor is not None:
            self.monitor.expose(self._view(agl))
        stars = read_attitude(
            self.descent.star_tracker, self.lander.R_L_B, self.noise["star_tracker"]
        )
        t_s, truly_L = self.state.t_s, self._seen_from_L()
        seen_from_L = self.faults.looks_from_L(t_s, truly_L)
        exposure = self.ground.expose(
            t_s,
            seen_from_L,
            self.lander.R_L_B,
            stars,
            self.state.position_L,
            self.state.covariance[:, POSITION, POSITION],
        )
        if self.faults.any:
            agl_m = self.ground.agl_m(seen_from_L)
            offset_L = seen_from_L - truly_L
            asked = exposure.where(wanted)
            exposure = self.faults.exposure(t_s, asked, seen_from_L, offset_L, agl_m)
        self.log.exposure(exposure, wanted)
        star = StarTrackerReading(
            self.state.t_s, stars, math.radians(self.descent.star_tracker.sigma_deg)
        )
        self.pending = _Pending(due, exposure.where(wanted), star, wanted)

    def _tight(
        self, exposure: Exposure, star: StarTrackerReading
    ) -> tuple[FilterState, Innovation]:
        assert exposure.localisation is not None  # images are rendered
        matches = exposure.localisation.matches.to(self.device)
        camera = self.scenario.camera.camera()
        return update_tight(self.state, star.t_s, matches, camera, R_B_C, star, self.config)

    def _seen_from_L(self) -> Float64[Tensor, "b 3"]:
        """Where the camera truly was when it exposed: its time tag is off by a little."""
        tagged_s = torch.zeros_like(self.lander.propellant_kg)
        late_s = tag_exposure(self.descent.timing, tagged_s, self.noise["timing"])
        return self.lander.position_L + late_s[:, None] * self.lander.velocity_L

    def _travelled(
        self, agl: Float64[Tensor, " b"], relief_m2: Float64[Tensor, " b"] | None = None
    ) -> FilterState:
        return travel(self.state, self._view(agl), self.config, relief_m2)

    def _view(self, agl: Float64[Tensor, " b"]) -> View:
        return view_of(self.state, agl, self.footprint_per_m * agl.clamp_min(1.0), self.spec)

    def _range(self) -> None:
        altimeter, age_s = self.descent.altimeter, self.descent.altimeter.latency_s
        read_from_L = self.lander.position_L - age_s * self.lander.velocity_L
        beam = beam_L(self.altimeter_errors, self.lander.R_L_B)
        t_s = self.state.t_s
        true = self.ground.ranges(self.faults.looks_from_L(t_s, read_from_L), beam)
        healthy = read_ranges(
            altimeter,
            self.altimeter_errors,
            true.range_m,
            true.incidence_rad,
            true.hit & ~self.lander.landed,
            self.noise["altimeter"],
        )
        range_m, valid = self.faults.ranges(t_s, *healthy, true, self.lander, beam, altimeter)
        delivered = AltimeterReading(t_s, range_m, valid)
        given, noise_scale = self.faults.fused(t_s, valid), None
        if self.monitor is not None and self.monitor.acts:
            blame = self.monitor.blame
            given = torch.where(blame.unfused, valid, given) & ~blame.altimeter
            noise_scale = blame.noise_scale
        relief_m2 = None
        if self.config.altimeter_gate is GatePolicy.TERRAIN_AWARE:
            # Ground that nobody ranges to need not be known.
            relief_m2 = valid * relief_around_m2(self.state, self.map, self.spec)
        agl_m = self.expected_agl_m()[0]
        self.state = self._travelled(agl_m, relief_m2)
        reading = AltimeterReading(self.state.t_s, range_m, given)
        prediction, H = predict_range(self.state, self.map, self.spec, self.config, age_s)
        self.state, innovation = update_altimeter(
            self.state, reading, prediction, H, self.spec, self.config, noise_scale
        )
        if self.monitor is not None:
            look = self.monitor.range(delivered, innovation, self._view(agl_m), relief_m2, age_s)
            if self.after_range is not None:
                self.after_range(look)
            if self.detectable is not None:
                read, in_time = Readings(range_m, valid), self.integrity.in_time
                self.detectable.ranges(Readings(*healthy), read, true, look.alone, in_time)
        self.log.innovation(innovation, self.lander)

    def _switch(
        self,
        true_m: Float64[Tensor, " b"],
        agl: Float64[Tensor, " b"],
        sigma_m: Float64[Tensor, " b"],
    ) -> None:
        """Engines are off for good once the armed switch says contact."""
        switch = self.descent.touchdown
        t_s = self.state.t_s
        self.probes, contact = read_touchdown(
            switch, self.probes, true_m, t_s, self.noise["touchdown"]
        )
        contact = self.faults.contact(t_s, contact)
        if self.monitor is not None:
            contact = self.monitor.contact(contact & ~self.lander.landed, agl, sigma_m)
        first = ~self.lander.landed & ~self.cut_off_agl_m.isfinite()
        cut = first & contact & (agl < switch.armed_below_m) & (true_m > 0)
        self.cut_off_agl_m = torch.where(cut, true_m, self.cut_off_agl_m)

    def _contact(self, k: int) -> None:
        """Touchdown, and a look at the errors twice a second."""
        looked = k % self.descent.steps(0.5) == 0
        if not (self.low or looked or self.faults.any):
            return
        over_site_m = height_over_site_m(self.lander, self.site_z_m)
        agl, sigma_m = self.expected_agl_m()
        looks_from_L = self.faults.looks_from_L(self.state.t_s, self.lander.position_L)
        true_m = self.ground.agl_m(looks_from_L) if self.low else agl * math.nan
        self.faults.advance(self.state.t_s, torch.where(true_m.isfinite(), true_m, over_site_m))
        before = self.lander.landed
        self._switch(torch.where(true_m.isfinite(), true_m, over_site_m), agl, sigma_m)
        self.lander = touch(self.lander, true_m.nan_to_num(nan=math.inf))
        just = self.lander.landed & ~before
        self.log.touchdown(just, self.lander, self.state, agl - true_m, sigma_m)
        if looked and self.monitor is not None:
            off_m = (self.state.position_L - self.lander.position_L)[:, :2].norm(dim=-1)
            across = (off_m, self.monitor.protection_across_m(self.state))
            watch, lander = self.monitor.watch, self.descent.lander
            self.integrity.look(lander, self.lander, true_m, agl - true_m, watch, across)
        if looked:
            self.log.snapshot(self.lander, self.state, over_site_m, true_m, agl, sigma_m)
            if self.log.keep is not None:
                self.log.history(self.lander, self.state, self.memory.phase, true_m, agl)


@dataclass(frozen=True, slots=True)
class _Pending:
    """What an image said, until its fix is there."""

    due: int  # step
    exposure: Exposure
    star: StarTrackerReading  # at the exposure
    imaged: Bool[Tensor, " b"]  # who took one
