"""A closed-loop descent in one recipe: lander, guidance, instruments, what navigation is told."""

import math

from pydantic import Field, model_validator

from tnav.config import Recipe, find_recipe, load_recipe
from tnav.evaluate.scenario import Scenario, load_scenario
from tnav.navigate.state import FilterConfig, GatePolicy
from tnav.simulate.altimeter import Altimeter
from tnav.simulate.guidance import Guidance
from tnav.simulate.inertial import InertialUnit
from tnav.simulate.instruments import CameraTiming, StarTracker
from tnav.simulate.lander import Lander

_LEAST_SIGMA = 1e-12  # a recipe may call an instrument perfect; a covariance may not
_LEAST_MAP_SIGMA_M = 0.1  # no map is exact
_CONSTANT_S = 1e7  # biases that do not walk
_RELIEF_UNDER_POSTS = 0.2  # rms relief between posts of a map, over their distance


class Dispersion(Recipe):
    """Standard deviations of what differs from descent to descent, per axis."""

    orbit_position_m: float = Field(default=500.0, ge=0)  # of the truth about the plan
    orbit_velocity_m_s: float = Field(default=1.0, ge=0)
    thrust: float = Field(default=0.01, ge=0)  # of the engines, relative
    position_m: float = Field(default=200.0, gt=0)  # of navigation about the truth
    velocity_m_s: float = Field(default=0.2, gt=0)
    attitude_deg: float = Field(default=0.02, gt=0)


class Seeing(Recipe):
    """Where navigation lets the camera speak."""

    agl_max_m: float = Field(default=12_000.0, gt=0)
    agl_min_m: float = Field(default=60.0, gt=0)  # lower, a view has a few map posts to match
    tilt_max_deg: float = Field(default=25.0, gt=0, lt=90)

    @model_validator(mode="after")
    def _in_order(self) -> "Seeing":
        if self.agl_min_m >= self.agl_max_m:
            raise ValueError(
                f"agl_min_m: {self.agl_min_m:g}, expected under agl_max_m {self.agl_max_m:g}"
            )
        return self


class Descent(Recipe):
    """One closed-loop descent. Ground, map, camera, detector, Sun and seeds are a scenario's."""

    name: str
    scenario: str
    lander: Lander = Lander()
    guidance: Guidance = Guidance()
    dispersion: Dispersion = Dispersion()
    inertial: InertialUnit = InertialUnit(
        accelerometer_scale=1e-4, accelerometer_misalignment_deg=0.0057, gyro_scale=2e-5
    )
    star_tracker: StarTracker = StarTracker()
    altimeter: Altimeter = Altimeter(bias_sigma_m=0.1)
    timing: CameraTiming = CameraTiming()
    seeing: Seeing = Seeing()
    gate: GatePolicy = GatePolicy.TERRAIN_AWARE
    with_altimeter: bool = True
    with_vision: bool = True
    step_s: float = Field(default=0.1, gt=0, le=0.5)
    duration_max_s: float = Field(default=900.0, ge=1)

    @model_validator(mode="after")
    def _on_the_grid(self) -> "Descent":
        """Every instrument speaks on the grid of steps."""
        for name, period_s in (
            ("star_tracker.rate_hz", 1 / self.star_tracker.rate_hz),
            ("altimeter.rate_hz", 1 / self.altimeter.rate_hz),
            ("timing.interval_s", self.timing.interval_s),
            ("timing.latency_s", self.timing.latency_s),
        ):
            steps = period_s / self.step_s
            if abs(steps - round(steps)) > 1e-6 or (round(steps) < 1 and period_s > 0):
                raise ValueError(
                    f"{name}: {period_s:g} s is not a number of steps of {self.step_s}"
                )
        if self.timing.latency_s >= self.timing.interval_s:
            raise ValueError(
                f"timing.latency_s: {self.timing.latency_s:g} s, expected under the interval of "
                f"{self.timing.interval_s:g} s"
            )
        return self

    @model_validator(mode="after")
    def _told_to_the_filter(self) -> "Descent":
        """Errors that the filter is not told of would make it overconfident."""
        for name, value, expected in (
            ("altimeter.scale_sigma", self.altimeter.scale_sigma, 0.0),
            ("star_tracker.boresight_factor", self.star_tracker.boresight_factor, 1.0),
            (
                "inertial.accelerometer_bias_walk_m_s2_sqrt_s",
                self.inertial.accelerometer_bias_walk_m_s2_sqrt_s,
                0.0,
            ),
            (
                "inertial.gyro_bias_walk_rad_s_sqrt_s",
                self.inertial.gyro_bias_walk_rad_s_sqrt_s,
                0.0,
            ),
        ):
            if value != expected:
                raise ValueError(
                    f"{name}: {value:g}, which the filter does not model: expected {expected:g}"
                )
        return self

    def steps(self, period_s: float) -> int:
        """Steps in a period."""
        return max(1, round(period_s / self.step_s))


def load_descent(name_or_path: str) -> Descent:
    """A descent by its name in the datasets folder, or by path.

    Raises:
        ConfigError: no such descent, or one that does not fit; file, line and field are named.
    """
    return load_recipe(find_recipe(name_or_path, "descents", "descent"), Descent)


def scenario_of(descent: Descent) -> Scenario:
    """Ground, map, camera, Sun and seeds of a descent."""
    return load_scenario(descent.scenario)


def filter_config(descent: Descent, scenario: Scenario) -> FilterConfig:
    """What the filter is told of its sensors: their data sheets, and the map's."""
    unit, error = descent.inertial, scenario.map.error_model()
    return FilterConfig(
        accelerometer_random_walk_m_s_sqrts=max(unit.velocity_random_walk_m_s_sqrt_s, _LEAST_SIGMA),
        accelerometer_bias_sigma_m_s2=max(unit.accelerometer_bias_m_s2, _LEAST_SIGMA),
        gyro_random_walk_rad_sqrts=max(unit.angle_random_walk_rad_sqrt_s, _LEAST_SIGMA),
        gyro_bias_sigma_rad_s=max(unit.gyro_bias_rad_s, _LEAST_SIGMA),
        accelerometer_bias_time_s=_CONSTANT_S,
        gyro_bias_time_s=_CONSTANT_S,
        thrust_scale_sigma=max(
            unit.accelerometer_scale,
            math.radians(unit.accelerometer_misalignment_deg),
            _LEAST_SIGMA,
        ),
        gyro_scale_sigma=max(unit.gyro_scale, _LEAST_SIGMA),
        gyro_misalignment_rad=max(math.radians(unit.gyro_misalignment_deg), _LEAST_SIGMA),
        map_sigma_m=max(error.sigma_m, _LEAST_MAP_SIGMA_M),
        map_correlation_m=error.correlation_m,
        map_shift_sigma_m=max(error.horizontal_sigma_m, _LEAST_SIGMA),
        range_bias_sigma_m=max(descent.altimeter.bias_sigma_m, 1e-3),
        relief_sigma_m=_RELIEF_UNDER_POSTS * 2 * scenario.site.finest_post_m,
        altimeter_gate=descent.gate,
        altimeter_gate_patience=FilterConfig.heard_first(
            descent.timing.interval_s, descent.altimeter.rate_hz
        ),
    )
