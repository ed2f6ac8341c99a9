"""The monitor against what others watch altimeters with, at the same false-alarm rate.

All look at the same flights, which nobody's verdict changes, and all faults count that begin before
the point of no return. A baseline's threshold is the lowest on its grid at which no more healthy
descents alarm than with tnav's: the most that it could have. Delays are compared on the descents
that both found. The gates are those of navigation's own filter, which locks an altimeter out where
vision contradicts it, and may have taken part of an error in: a filter that trusts ranges blindly
would take in more.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from pydantic import TypeAdapter
from torch import Tensor

from tnav.errors import ConfigError
from tnav.evaluate.descent_plan import Descent
from tnav.evaluate.flight import Flight, Monitoring
from tnav.evaluate.flight_runs import Site, model_flight
from tnav.evaluate.limits import Row
from tnav.evaluate.relief_charts import Chart
from tnav.geometry.moon import up_L
from tnav.monitor.baselines import NAMES, Baselines
from tnav.monitor.thresholds import Rates
from tnav.monitor.watch import RangeLook
from tnav.simulate.faults import Fault

Sized = Callable[[Flight, str], Bool[Tensor, " b"]]
Say = Callable[[str], None]

# Ranges that are absent no baseline has a statistic of.
KINDS = ("bias", "drift", "scale", "noise_inflation", "stuck", "velocity_coupled")
RATES = (1e-1, 1e-2, 1e-4)  # of tnav's other points; it flies with the one of its defaults
_LEVELS = torch.logspace(-0.5, 4.0, 136, dtype=torch.float64)
_TNAV = "tnav"


@dataclass(frozen=True, slots=True)
class Alarms:
    """First alarms of ``b`` flights by one method at each of its thresholds; inf: none."""

    first_s: Float64[Tensor, "b n"]
    begun_s: Float64[Tensor, " b"]  # the fault; inf without
    end_s: Float64[Tensor, " b"]  # the point of no return, or contact
    sized: Bool[Tensor, " b"]  # that count

    def false(self) -> Float64[Tensor, " n"]:
        """How many alarmed although nothing was wrong."""
        return (self.first_s < self.begun_s[:, None]).double().sum(0)

    def found(self) -> Bool[Tensor, "b n"]:
        """Who alarmed between the fault and the end, of those that count."""
        after = (self.first_s >= self.begun_s[:, None]) & (self.first_s < self.end_s[:, None])
        return after & self.sized[:, None]

    def delay_s(self, n: int, who: Bool[Tensor, " b"] | None = None) -> float | None:
        """Median from the fault to the alarm, at one threshold, of those found."""
        found = self.found()[:, n] if who is None else who
        late = (self.first_s[:, n] - self.begun_s)[found]
        return float(late.median()) if len(late) else None


def compare(
    descent: Descent, site: Site, count: int, seed: int, sized: Sized, say: Say,
    kinds: Sequence[str] = KINDS,
) -> tuple[list[Row], dict[str, Chart]]:  # fmt: skip
    """Flies healthy descents and those with faults; rows, and curves of detection and delay.

    Args:
        descent: the recipe.
        site: ground and map.
        count: descents of each kind, and healthy ones.
        seed: of the draw.
        sized: whose fault counts.
        say: told what goes on.
        kinds: of faults.
    """
    say(f"baselines: {count} healthy descents")
    healthy = _watched(descent, site, count, seed, None, sized)
    rows, charts, device = [], {}, str(site.terrain_map.device)
    for kind in kinds:
        say(f"baselines: {kind}, {count} descents")
        faulty = _watched(descent, site, count, seed, kind, sized)
        rows += _rows(kind, healthy, faulty, device)
        charts[kind] = _chart(kind, healthy, faulty)
    return rows, charts


def _watched(
    descent: Descent, site: Site, count: int, seed: int, kind: str | None, sized: Sized
) -> dict[str, Alarms]:
    faults = () if kind is None else (TypeAdapter(Fault).validate_python({"kind": kind}),)
    flight = model_flight(descent, site, count, seed, faults=faults, monitor=Monitoring.WATCHES)
    baselines = look_on(flight)
    flight.fly(lambda text, share: None)
    return alarms_of(flight, baselines, None if kind is None else sized(flight, kind))


def look_on(flight: Flight) -> Baselines:
    """Baselines, and tnav at its other rates, beside a flight that has not begun."""
    assert flight.monitor is not None
    for probability in RATES:
        flight.monitor.also(Rates(false_alarm_probability=probability))
    baselines = Baselines(len(flight.lander.landed), flight.device, _LEVELS)
    boresight_B = torch.tensor(flight.spec.boresight_B, dtype=torch.float64, device=flight.device)

    def look(what: RangeLook) -> None:
        state = flight.state
        up = up_L(state.position_L)
        climb_m_s = (state.velocity_L * up).sum(-1)
        cosine = -((state.R_L_B @ boresight_B) * up).sum(-1)
        sigma_m_s = state.covariance[:, 5, 5].sqrt()
        baselines.look(what, flight.spec, cosine, climb_m_s, sigma_m_s)

    flight.after_range = look
    return baselines


def alarms_of(
    flight: Flight, baselines: Baselines, sized: Bool[Tensor, " b"] | None
) -> dict[str, Alarms]:
    """First alarms by method, tnav's by rate from the highest on."""
    assert flight.monitor is not None
    contact_s = flight.log.contact.t_s.nan_to_num(nan=math.inf)
    begun = flight.faults.state.begun_s
    begun_s = begun[:, 0] if begun.shape[1] else torch.full_like(contact_s, math.inf)
    end_s = torch.minimum(contact_s, flight.integrity.no_return_s)
    counts = torch.zeros_like(flight.lander.landed) if sized is None else sized
    watches = [flight.monitor.watch, *(watch for watch, _ in flight.monitor.others)]
    rates = (Rates().false_alarm_probability, *RATES)
    order = sorted(range(len(rates)), key=lambda i: -rates[i])
    alert_s = torch.stack([watches[i].alert_s.nan_to_num(nan=math.inf) for i in order], 1)
    first = {_TNAV: alert_s} | {name: baselines.first_s[:, k] for k, name in enumerate(NAMES)}
    # An alarm on the ground counts for nothing.
    return {
        name: Alarms(torch.where(at_s < contact_s[:, None], at_s, math.inf), begun_s, end_s, counts)
        for name, at_s in first.items()
    }


def _own() -> int:
    """Index of the rate that tnav flies with, among tnav's points."""
    rates = sorted((Rates().false_alarm_probability, *RATES), reverse=True)
    return rates.index(Rates().false_alarm_probability)


def _rows(
    kind: str, healthy: dict[str, Alarms], faulty: dict[str, Alarms], device: str
) -> list[Row]:
    own, allowed = _own(), int(healthy[_TNAV].false()[_own()])
    tnav = faulty[_TNAV]
    of, found = int(tnav.sized.sum()), int(tnav.found()[:, own].sum())
    delay = tnav.delay_s(own)
    n = len(tnav.sized)
    rows = [
        Row(f"{kind}: found by tnav, {allowed} false alarms in {n}", found, "descents", None, None,
            of, device),
        Row(f"{kind}: ... delay, median", _rounded(delay), "s", None, None, found, device),
    ]  # fmt: skip
    for name in NAMES:
        level = _level(healthy[name], allowed)
        they = faulty[name].found()[:, level]
        others, both = int(they.sum()), they & tnav.found()[:, own]
        late, ours = faulty[name].delay_s(level, both), tnav.delay_s(own, both)
        rows += [
            Row(f"{kind}: ... by '{name}'", others, "descents", f"<= {found}", others <= found, of,
                device),
            Row(f"{kind}: ... delay where both found it, median", _rounded(late), "s",
                None if ours is None else f">= tnav's {ours:.2f}",
                None if ours is None or late is None else late >= ours, int(both.sum()), device),
        ]  # fmt: skip
    return rows


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _level(healthy: Alarms, allowed: int) -> int:
    """Lowest threshold at which no more healthy descents alarm.

    Raises:
        ConfigError: there is none.
    """
    few = (healthy.false() <= allowed).nonzero()[:, 0]
    if not len(few):
        raise ConfigError(f"baselines: over {allowed} false alarms at every threshold of the grid")
    return int(few[0])


def _chart(kind: str, healthy: dict[str, Alarms], faulty: dict[str, Alarms]) -> Chart:
    """Share of faults that are found against that of healthy descents with an alarm.

    A baseline's thresholds up to the lowest without a false alarm: higher ones only find less.
    """
    curves = []
    for name, alarms in faulty.items():
        of = max(1, int(alarms.sized.sum()))
        false = healthy[name].false() / len(alarms.sized)
        found = alarms.found().double().sum(0) / of
        none = (false == 0).nonzero()[:, 0].tolist()
        upto = len(found) if name == _TNAV or not none else none[0] + 1
        curves.append(
            {
                "label": name,
                "false": false[:upto].tolist(),
                "found": found[:upto].tolist(),
                "delay_s": [alarms.delay_s(i) for i in range(upto)],
            }
        )
    return {"title": kind, "n": len(faulty[_TNAV].sized), "sized": of, "curves": curves}
