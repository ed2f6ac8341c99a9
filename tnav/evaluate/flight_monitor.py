"""The monitor in the closed loop: a filter without altimeter beside navigation's, and what is done.

Where the monitor names the altimeter, navigation goes on with the filter that never heard it;
where it names vision or the ground, with a height that the next readings set anew. An altimeter
that is only noisy is heard as such as long as nobody knows the height better.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.evaluate.descent_plan import Descent
from tnav.evaluate.flight_ground import Exposure
from tnav.evaluate.world import R_B_C
from tnav.geometry.moon import LocalFrame
from tnav.monitor.integrity import RiskBudget, separate
from tnav.monitor.statistics import chi_square_quantile
from tnav.monitor.thresholds import DescentSamples, Rates, Tuning, thresholds
from tnav.monitor.verdicts import decide
from tnav.monitor.watch import (
    KINDS,
    RangeLook,
    Watch,
    WatchSetup,
    watch_fix,
    watch_increments,
    watch_range,
    watch_stars,
)
from tnav.navigate.altimetry import predict_range
from tnav.navigate.filter import propagate, update_ground, update_star_tracker, update_vision
from tnav.navigate.map_error import View, travel
from tnav.navigate.mechanisation import ATTITUDE, POSITION, VELOCITY, gravity_in_doubt
from tnav.navigate.state import FilterConfig, FilterState, chosen, clone
from tnav.records import (
    AltimeterReading,
    FaultKind,
    InertialIncrements,
    Innovation,
    RangePrediction,
    StarTrackerReading,
)
from tnav.terrain.heightfield import Terrain

_RANGING_S = 120.0  # a descent within the altimeter's promise, about
_SEEING_S = 150.0  # and within the camera's
_WITNESS = 1e-3  # a fix of six components that agrees is not rarer than this
_FAULTS = (1e-2,)  # of the altimeter, per descent: assumed, no statistic of flights
_LOOKS = 30.0  # independent comparisons of heights a descent: one a fix
# Contact counts where the ground may be this near: an interlock, in sigma and in metres.
_CONTACT_SIGMA, _CONTACT_M = 6.0, 3.0
# Of a lander under thrust that slews: what an inertial unit misses while it reads nothing.
_UNREAD_M_S2, _UNREAD_RAD_S = 4.0, 0.5
# After seconds of thrust in a direction that is not known.
_LOST_RAD, _LOST_M_S, _LOST_M = 1.0, 10.0, 30.0
_BLAMED = {
    "altimeter": (FaultKind.ALTIMETER_INCONSISTENT, FaultKind.STUCK),
    "noise": (FaultKind.ALTIMETER_NOISE,),
    "vision": (FaultKind.VISION_INCONSISTENT,),
}


def watch_setup(
    descent: Descent, rates: Rates | None = None, config: FilterConfig | None = None
) -> WatchSetup:
    """What the monitor is told of a descent: rates of its sensors, their specifications."""
    config = config or FilterConfig()
    spec, timing = descent.altimeter.spec(), descent.timing
    steps = math.ceil(descent.duration_max_s / descent.step_s)
    tuning = Tuning(
        range_noise_m=spec.noise_floor_m,
        range_resolution_m=max(descent.altimeter.resolution_m, 1e-3),
        detection_probability=min(spec.detection_probability, 0.99),
        specific_force_max_m_s2=descent.inertial.accelerometer_max_m_s2,
        rate_max_rad_s=descent.inertial.gyro_max_rad_s,
    )
    samples = DescentSamples(
        altimeter=math.ceil(_RANGING_S * spec.rate_hz),
        vision=math.ceil(_SEEING_S / timing.interval_s),
        star_tracker=math.ceil(descent.duration_max_s * descent.star_tracker.rate_hz),
        inertial=steps,
    )
    rates = rates or Rates()
    risk = RiskBudget(
        fault_probabilities=_FAULTS,
        looks=_LOOKS,
        false_alarm_vertical=rates.false_alarm_probability * rates.shares.separation,
    )
    return WatchSetup(
        spec=spec,
        thresholds=thresholds(rates, samples, tuning),
        tuning=tuning,
        multipliers=risk.multipliers(),
        blind_below_m=descent.seeing.agl_min_m,
        witness_nis=chi_square_quantile(_WITNESS, 6),
        gate_nis=chi_square_quantile(1 - config.gate_probability, 6),
        relief_sigma_m=config.relief_sigma_m,
    )


@dataclass(frozen=True, slots=True)
class Blame:
    """Whom navigation hears no more, and what it is told besides."""

    altimeter: Bool[Tensor, " b"]
    noise: Bool[Tensor, " b"]  # of the altimeter
    noise_scale: Float64[Tensor, " b"]  # by what its maker states
    vision: Bool[Tensor, " b"]
    terrain: Bool[Tensor, " b"]
    unfused: Bool[Tensor, " b"]
    attitude: Bool[Tensor, " b"]  # of the inertial unit: the star tracker contradicts it


class FlightMonitor:
    """A filter without altimeter, detectors and verdicts of a batch, told what navigation is."""

    def __init__(
        self, descent: Descent, state: FilterState, terrain_map: Terrain, config: FilterConfig,
        frame: LocalFrame, acts: bool,
    ) -> None:  # fmt: skip
        """Beside a filter at its start.

        Args:
            descent: the recipe.
            state: of navigation.
            terrain_map: its map.
            config: of its filter.
            frame: of L.
            acts: verdicts change what navigation hears; otherwise they are written down.
        """
        self._descent = descent
        self.setup, self.acts = watch_setup(descent, config=config), acts
        self.spec, self.config, self.frame, self.map = self.setup.spec, config, frame, terrain_map
        self.dt_s, self.batch = descent.step_s, len(state.position_L)
        self.aloft = torch.ones(self.batch, dtype=torch.bool, device=terrain_map.device)
        self._unread = torch.zeros_like(state.map_mean_m)  # steps, of those that count already
        self.alone = state
        self.watch = Watch.fresh(self.batch, self.setup.tuning, terrain_map.device)
        self.others: list[tuple[Watch, WatchSetup]] = []  # at other rates; nobody acts on them
        self._expected: RangePrediction | None = None  # the last, without altimeter
        self.blame = self._blame()

    def propagate(self, increments: InertialIncrements, thrusting: Bool[Tensor, " b"]) -> None:
        """One step."""
        self.alone = propagate(self.alone, increments, self.frame, self.config)
        burning = thrusting & self.aloft
        self._each(
            lambda watch, setup: watch_increments(
                watch, increments.t_s, increments.dt_s, increments.delta_v_B,
                increments.delta_theta_B, burning, setup,
            )
        )  # fmt: skip

    def also(self, rates: Rates) -> None:
        """Verdicts of other false-alarm rates are written down besides."""
        setup = watch_setup(self._descent, rates, self.config)
        watch = Watch.fresh(self.batch, setup.tuning, self.map.device)
        self.others.append((watch, setup))

    def _each(self, step: Callable[[Watch, WatchSetup], Watch]) -> None:
        self.watch = step(self.watch, self.setup)
        self.others = [(step(watch, setup), setup) for watch, setup in self.others]

    def stars(self, reading: StarTrackerReading) -> None:
        """One attitude."""
        self.alone, innovation = update_star_tracker(self.alone, reading, self.config)
        own = self._in_flight(innovation)
        self._each(lambda watch, setup: watch_stars(watch, own, setup))

    def expose(self, view: View) -> None:
        """An exposure, with the ground as navigation has it: keeps the pose."""
        self.alone = clone(travel(self.alone, view, self.config))

    def fix(self, exposure: Exposure, exposed_s: float, imaged: Bool[Tensor, " b"]) -> Innovation:
        """The fix of an image, where there was one, to the sub-filter that hears vision."""
        self.alone, own = update_vision(
            self.alone, exposure.fix, exposure.available, R_B_C, self.config
        )
        self.alone, _ = update_ground(
            self.alone,
            exposure.ground_error_m,
            exposure.ground_variance_m2,
            exposure.available,
            self.config,
        )
        seen, asked = self._in_flight(own), imaged & self.aloft
        self._each(lambda watch, setup: watch_fix(watch, exposed_s, seen, asked, setup))
        return own

    def _in_flight(self, innovation: Innovation) -> Innovation:
        """Nothing is watched on the ground, where the filter has nothing to navigate by."""
        return replace(innovation, present=innovation.present & self.aloft)

    def range(
        self,
        reading: AltimeterReading,
        own: Innovation,
        view: View,
        relief_m2: Float64[Tensor, " b"] | None,
        age_s: float,
    ) -> RangeLook:
        """One epoch of the altimeter, to the sub-filter that hears it.

        Args:
            reading: as delivered.
            own: its innovation in navigation, which may have been given less.
            view: of the ground, as navigation has it.
            relief_m2: around, as navigation has it.
            age_s: of the reading.

        Returns:
            What was looked at.
        """
        self.alone = travel(self.alone, view, self.config, relief_m2)
        alone, _ = predict_range(self.alone, self.map, self.spec, self.config, age_s)
        self._expected = alone
        look = RangeLook(
            reading.t_s,
            reading.range_m,
            reading.valid & self.aloft,
            own.fused,
            self.aloft,
            alone,
            self._in_flight(own),
        )
        self._each(lambda watch, setup: watch_range(watch, look, setup))
        return look

    def contact(
        self,
        contact: Bool[Tensor, " b"],
        agl_m: Float64[Tensor, " b"],
        sigma_m: Float64[Tensor, " b"],
    ) -> Bool[Tensor, " b"]:
        """Contacts that are believed: those that the ground may be near enough for."""
        near = agl_m < _CONTACT_M + _CONTACT_SIGMA * sigma_m
        false = contact & ~near
        self._each(lambda watch, _: replace(watch, spurious=watch.spurious | false))
        return contact & near if self.acts else contact

    def protection_across_m(self, state: FilterState) -> Float64[Tensor, " b"]:
        """Horizontal protection level of navigation, by separation from the other filter.

        Infinite where the two are farther apart than chance has it: then nothing is bounded.
        It bounds what a fault of the altimeter does. Of vision it cannot: nobody else knows the
        place to better than at the start.
        """
        here = (slice(None), POSITION, POSITION)
        found = separate(
            state.position_L,
            state.covariance[here],
            self.alone.position_L[:, None],
            self.alone.covariance[here][:, None],
            torch.ones_like(self.aloft)[:, None],
            self.setup.multipliers,
        )
        return torch.where(found.exceeded[:, 0], math.inf, found.horizontal_m)

    def act(self, state: FilterState) -> FilterState:
        """Verdicts of now, and navigation's state after them."""
        self._each(lambda watch, _: decide(watch, state.t_s))
        if not self.acts:
            return state
        before, self.blame = self.blame, self._blame()
        lost = self.blame.attitude & ~before.attitude
        self.alone, state = _adrift(self.alone, lost), _adrift(state, lost)
        rid = (self.blame.altimeter & ~before.altimeter) | (self.blame.noise & ~before.noise)
        state = chosen(rid, self.alone, state)
        opened = (self.blame.terrain & ~before.terrain) | (self.blame.vision & ~before.vision)
        self.alone = self._unmoored(_opened(self.alone, opened, self.watch.size_m))
        state = self._unmoored(_opened(state, opened, self.watch.size_m))
        self._unread = torch.where(self.watch.inertial.alarm, self.watch.inertial.statistic, 0.0)
        return state

    def _unmoored(self, state: FilterState) -> FilterState:
        """Speed and attitude as they may be after steps that the inertial unit did not read.

        Over n steps in a row they are off by ``a n dt`` and ``w n dt``: one error, not n.
        """
        steps = torch.where(self.watch.inertial.alarm, self.watch.inertial.statistic, 0.0)
        more = (steps.square() - self._unread.square()).clamp_min(0.0) * self.dt_s**2
        added = torch.zeros_like(state.covariance[:, 0])
        added[:, VELOCITY] = (_UNREAD_M_S2**2 * more)[:, None]
        added[:, ATTITUDE] = (_UNREAD_RAD_S**2 * more)[:, None]
        return replace(state, covariance=state.covariance + torch.diag_embed(added))

    def _known_better(self, noise_scale: Float64[Tensor, " b"]) -> Bool[Tensor, " b"]:
        """Whether the next range is known better without altimeter than so noisy a one reads it."""
        if self._expected is None:
            return torch.zeros_like(self.aloft)
        noise_m = noise_scale * self.spec.noise_sigma_m(self._expected.range_m)
        return self._expected.sigma_m < noise_m

    def _blame(self) -> Blame:
        kind = self.watch.kind

        def any_of(kinds: tuple[FaultKind, ...]) -> Bool[Tensor, " b"]:
            return torch.stack([kind == KINDS.index(each) for each in kinds]).any(0)

        noise = any_of(_BLAMED["noise"])
        scale = torch.where(noise, self.watch.unsteady.noise_scale, 1.0)
        # Without an estimate of its noise, or once it repeats itself, it is of no use at all.
        useless = self._known_better(scale) | (scale <= 1.0) | self.watch.stuck.alarm
        return Blame(
            any_of(_BLAMED["altimeter"]) | (noise & useless),
            noise,
            scale,
            any_of(_BLAMED["vision"]),
            any_of((FaultKind.TERRAIN,)),
            any_of((FaultKind.NOT_FUSED,)),
            any_of((FaultKind.INERTIAL,)) & self.watch.star_shift.alarm,
        )


def _opened(
    state: FilterState, here: Bool[Tensor, " b"], size_m: Float64[Tensor, " b"]
) -> FilterState:
    """Opens the height for a step of the ground: the next readings set it anew."""
    covariance = state.covariance.clone()
    added = torch.where(here, size_m.square(), 0.0)
    covariance[:, POSITION.start + 2, POSITION.start + 2] += added
    doubt = gravity_in_doubt(state.R_L_B, torch.where(here, size_m, 0.0))
    covariance = covariance + doubt @ doubt.mT
    return replace(state, covariance=covariance)


def _adrift(state: FilterState, here: Bool[Tensor, " b"]) -> FilterState:
    """Opens what a turn that was not read spoils: the next attitude and fix set it anew."""
    added = torch.zeros_like(state.covariance[:, 0])
    for part, sigma in ((ATTITUDE, _LOST_RAD), (VELOCITY, _LOST_M_S), (POSITION, _LOST_M)):
        added[:, part] = (here * sigma**2)[:, None]
    return replace(state, covariance=state.covariance + torch.diag_embed(added))
