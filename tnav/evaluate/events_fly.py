"""Flies a historical event: as it failed, with tnav, and with tnav but without the fault.

All three are closed-loop descents in `model` fidelity with the same seeds. An alert is worth what
is left of the way to the point of no return when it is raised::

    AL = h - v^2 / (2 a_net),   AL / v

with true height over the ground h and descent rate v (``tnav.monitor.integrity.alert_limit``:
proposed here from controllability, no standard).
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from jaxtyping import Float64
from torch import Tensor

from tnav.evaluate.descent_plan import Descent
from tnav.evaluate.events import Event
from tnav.evaluate.flight import Flight, Monitoring, Progress
from tnav.evaluate.flight_log import height_over_site_m
from tnav.evaluate.flight_runs import Site, model_flight, site_of
from tnav.evaluate.flight_score import ACROSS_MAX_M_S, DOWN_MAX_M_S
from tnav.geometry.moon import up_L
from tnav.monitor.integrity import alert_limit
from tnav.monitor.watch import HEALTHY, KINDS, UNDECIDED
from tnav.records import FaultKind

SAVED_M_S = 3.0  # at contact, of all of the velocity


class How(StrEnum):
    """How a descent ended."""

    SOFT = "landed"  # within the bounds of a landing
    HARD = "hard"  # faster, but under 3 m/s
    CRASHED = "crashed"
    DRY = "ran_dry"  # and crashed
    AIR = "in_the_air"  # still, at the end of the longest flight


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of one descent."""

    how: How
    speed_m_s: float | None  # at contact, of all of the velocity
    down_m_s: float | None
    miss_m: float | None  # horizontal, of the site
    propellant_kg: float

    @property
    def saved(self) -> bool:
        """Whether it reached the ground slowly enough."""
        return self.how in (How.SOFT, How.HARD)


@dataclass(frozen=True, slots=True)
class Heard:
    """What the monitor said of one descent; None: it did not."""

    kinds: tuple[FaultKind, ...]  # that it named, in their order
    last: FaultKind  # that stood at the end
    begun_s: float | None  # truth: the first fault
    onset_s: float | None  # its estimate
    alert_s: float | None
    named_s: float | None
    agl_m: float | None  # truth at the alert, over the ground
    descent_rate_m_s: float | None
    margin_m: float | None  # to the point of no return; negative: past it
    margin_s: float | None  # None: rising

    @property
    def kind(self) -> FaultKind:
        """First one that it named; undecided where it named none but alarmed."""
        return self.verdict()

    def verdict(self, besides: Collection[FaultKind] = ()) -> FaultKind:
        """The same, of what is not asked for besides."""
        for kind in self.kinds:
            if kind not in besides:
                return kind
        return FaultKind.HEALTHY if self.alert_s is None else FaultKind.UNDECIDED

    @property
    def delay_s(self) -> float | None:
        """From the fault's begin to the alert; negative: a false alarm before it."""
        if self.alert_s is None or self.begun_s is None:
            return None
        return self.alert_s - self.begun_s


@dataclass(frozen=True, slots=True)
class Flown:
    """One batch."""

    endings: tuple[Ending, ...]
    heard: tuple[Heard, ...]  # empty without a monitor


@dataclass(frozen=True, slots=True)
class EventResult:
    """The three flights of one event."""

    event: Event
    seed: int
    device: str
    as_flown: Flown | None
    with_tnav: Flown
    twin: Flown  # without the fault


@dataclass(slots=True)
class Shared:
    """What events have in common: the ground, and twins that are the same descent."""

    sites: dict[str, Site] = field(default_factory=dict)
    healthy: dict[str, Flown] = field(default_factory=dict)


def run_event(
    event: Event,
    device: torch.device,
    descents: int = 4,
    seed: int = 0,
    progress: Progress = lambda text, share: None,
    shared: Shared | None = None,
) -> EventResult:
    """Flies an event as it failed, with tnav, and with tnav but without the fault.

    Args:
        event: the recipe.
        device: of terrain and filters.
        descents: number of draws of everything that is drawn; the fault's numbers are fixed.
        seed: number of the first draw.
        progress: told what goes on.
        shared: kept from event to event, for speed.

    Raises:
        ConfigError: the event's descents do not fit.
    """
    shared = shared or Shared()
    descent, then, number = event.flown_with_tnav(), event.flown_then(), seed + event.seed

    def tell(what: str, part: float) -> Progress:
        return lambda text, share: progress(f"{event.name}, {what}: {text}", (part + share) / 3)

    def fly(flown: Descent, faulty: bool, monitor: Monitoring, told: Progress) -> Flown:
        key = f"{flown.model_dump_json()} {number} {descents} {device}"
        if not faulty and monitor is Monitoring.ACTS and key in shared.healthy:
            return shared.healthy[key]
        if flown.scenario not in shared.sites:
            told("terrain", 0.0)
            shared.sites[flown.scenario] = site_of(flown, device)
        site = shared.sites[flown.scenario]
        done = _fly(flown, site, descents, number, event if faulty else None, monitor, told)
        if not faulty and monitor is Monitoring.ACTS:
            shared.healthy[key] = done
        return done

    with_tnav = fly(descent, bool(event.faults), Monitoring.ACTS, tell("with tnav", 0.0))
    twin = fly(descent, False, Monitoring.ACTS, tell("without the fault", 1.0))
    as_flown = None
    if then is not None:
        as_flown = fly(then, bool(event.faults), Monitoring.OFF, tell("as flown", 2.0))
    return EventResult(event, number, str(device), as_flown, with_tnav, twin)


def _fly(
    descent: Descent,
    site: Site,
    batch: int,
    number: int,
    event: Event | None,
    monitor: Monitoring,
    progress: Progress,
) -> Flown:
    faults = event.faults if event is not None else ()
    flight = model_flight(descent, site, batch, number, faults=faults, monitor=monitor)
    alerts = Alerts(flight) if flight.monitor is not None else None
    flight.after_step = alerts.look if alerts is not None else None
    flight.fly(progress)
    return Flown(_endings(flight), alerts.heard() if alerts is not None else ())


class Alerts:
    """What the monitor of a flight says before touchdown, and where the landers truly were then.

    A batch flies until all are down; what is said of a lander on the ground counts for nothing.
    """

    def __init__(self, flight: Flight) -> None:
        """Beside a flight that has not begun."""
        assert flight.monitor is not None
        self.flight, watch = flight, flight.monitor.watch
        lander = flight.lander
        self.raised = torch.zeros_like(lander.landed)
        self.kind, self.named_s = watch.kind, watch.named_s
        self.codes = torch.arange(len(KINDS)).to(watch.kind.device)
        # Since when each verdict stood first; infinite where it did not.
        self.since_s = torch.full_like(lander.propellant_kg, math.inf)[:, None].repeat(
            1, len(KINDS)
        )
        self.looks_from_L = lander.position_L
        self.agl_m = torch.full_like(lander.propellant_kg, math.nan)
        self.rate_m_s = torch.full_like(self.agl_m, math.nan)

    def look(self) -> None:
        """After a step: keeps verdicts, and height and speed of the descents that alert now."""
        flight, lander = self.flight, self.flight.lander
        assert flight.monitor is not None
        watch, aloft = flight.monitor.watch, ~lander.landed
        now = watch.alert_s.isfinite() & aloft & ~self.raised
        self.raised = self.raised | now
        self.kind = torch.where(aloft, watch.kind, self.kind)
        stands = (self.kind[:, None] == self.codes) & (aloft & self.raised)[:, None]
        self.since_s = torch.where(stands & self.since_s.isinf(), flight.state.t_s, self.since_s)
        self.named_s = torch.where(aloft, watch.named_s, self.named_s)
        # Over the site where there is no terrain; by a ray from each place at the end.
        height_m = height_over_site_m(lander, flight.site_z_m)
        rate_m_s = -(lander.velocity_L * up_L(lander.position_L)).sum(-1)
        looks_from_L = flight.faults.looks_from_L(lander.t_s, lander.position_L)
        self.agl_m = torch.where(now, height_m, self.agl_m)
        self.rate_m_s = torch.where(now, rate_m_s, self.rate_m_s)
        self.looks_from_L = torch.where(now[:, None], looks_from_L, self.looks_from_L)

    def heard(self) -> tuple[Heard, ...]:
        """After the flight: what was said of each descent."""
        flight = self.flight
        assert flight.monitor is not None
        watch, begun_s = flight.monitor.watch, flight.faults.state.begun_s
        over_ground_m = flight.ground.agl_m(self.looks_from_L)
        known = over_ground_m.isfinite() & self.raised
        agl_m = torch.where(known, over_ground_m, self.agl_m)
        limit = alert_limit(
            agl_m,
            self.rate_m_s,
            torch.full_like(agl_m, flight.scenario.net_deceleration_m_s2),
        )
        none = torch.full_like(agl_m, math.nan)
        columns: dict[str, Tensor] = {
            "begun_s": begun_s.amin(1) if begun_s.shape[1] else none,
            "onset_s": torch.where(self.raised, watch.onset_s, none),
            "alert_s": torch.where(self.raised, watch.alert_s, none),
            "named_s": self.named_s,
            "agl_m": agl_m,
            "descent_rate_m_s": self.rate_m_s,
            "margin_m": limit.limit_m,
            "margin_s": limit.time_to_alert_s,
        }
        values = {name: _listed(column) for name, column in columns.items()}
        return tuple(
            Heard(_in_order(since_s), KINDS[last], **{name: row[i] for name, row in values.items()})
            for i, (since_s, last) in enumerate(
                zip(self.since_s.tolist(), self.kind.tolist(), strict=True)
            )
        )


def _in_order(since_s: list[float]) -> tuple[FaultKind, ...]:
    """Kinds that name somebody, by when they stood first."""
    said = sorted((at_s, code) for code, at_s in enumerate(since_s) if math.isfinite(at_s))
    return tuple(KINDS[code] for _, code in said if code not in (HEALTHY, UNDECIDED))


def _endings(flight: Flight) -> tuple[Ending, ...]:
    contact, log = flight.log.contact, flight.log
    speed_m_s = torch.hypot(contact.down_m_s, contact.horizontal_m_s)
    soft = (contact.down_m_s <= DOWN_MAX_M_S) & (contact.horizontal_m_s <= ACROSS_MAX_M_S)
    rows = zip(
        _listed(speed_m_s), _listed(contact.down_m_s), _listed(contact.miss_m),
        log.propellant_kg.tolist(), soft.tolist(), log.landed.tolist(), strict=True,
    )  # fmt: skip
    return tuple(
        Ending(_how(speed, is_soft, landed, kg), speed, down, miss, kg)
        for speed, down, miss, kg, is_soft, landed in rows
    )


def _how(speed_m_s: float | None, soft: bool, landed: bool, propellant_kg: float) -> How:
    if not landed or speed_m_s is None:
        return How.AIR
    if soft:
        return How.SOFT
    if speed_m_s < SAVED_M_S:
        return How.HARD
    return How.DRY if propellant_kg <= 0 else How.CRASHED


def _listed(values: Float64[Tensor, " b"]) -> list[float | None]:
    """Numbers on the host; None for what is not one."""
    return [value if math.isfinite(value) else None for value in values.tolist()]
