"""A closed-loop descent in one recipe: lander, guidance, instruments, what navigation is told."""

from pydantic import Field, model_validator

from tnav.config import Recipe, find_recipe, load_recipe
from tnav.evaluate.filter_setup import filter_config
from tnav.evaluate.scenario import Scenario, load_scenario
from tnav.navigate.state import FilterConfig, GatePolicy
from tnav.simulate.altimeter import Altimeter
from tnav.simulate.guidance import Guidance
from tnav.simulate.inertial import InertialUnit
from tnav.simulate.instruments import CameraTiming, StarTracker, TouchdownSwitch
from tnav.simulate.lander import Lander


class Dispersion(Recipe):
    """Standard deviations of what differs from descent to descent, per axis."""

    orbit_position_m: float = Field(default=500.0, ge=0)  # of the truth about the plan
    orbit_velocity_m_s: float = Field(default=1.0, ge=0)
    thrust: float = Field(default=0.01, ge=0)  # of the engines, relative
    position_m: float = Field(default=200.0, gt=0)  # of navigation about the truth
    velocity_m_s: float = Field(default=0.2, gt=0)
    attitude_deg: float = Field(default=0.02, gt=0)
    # Navigation's error at the start, estimate minus truth, where it is given, not drawn.
    position_error_L: tuple[float, float, float] | None = None  # m


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
    # In the foot pads: closed by the ground itself, so that nobody falls from the probe's length.
    touchdown: TouchdownSwitch = TouchdownSwitch(probe_m=0.0, delay_s=0.0)
    timing: CameraTiming = CameraTiming()
    seeing: Seeing = Seeing()
    gate: GatePolicy = GatePolicy.TERRAIN_AWARE
    with_altimeter: bool = True
    with_vision: bool = True
    # Matches into the filter, without a pose fix between: of rendered images only.
    tight_vision: bool = False
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


def told_of(descent: Descent, scenario: Scenario) -> FilterConfig:
    """What the filter of a descent is told of its sensors and its map."""
    return filter_config(
        descent.inertial, descent.altimeter, scenario, descent.timing.interval_s, descent.gate
    )
