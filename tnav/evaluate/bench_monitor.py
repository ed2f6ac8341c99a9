"""The monitor in closed loop, measured: false alarms, detection, isolation, what acting on it buys.

Every kind of fault is drawn over its whole range, in `model` fidelity. A fault that begins after
touchdown never was one, and is not counted.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from pydantic import TypeAdapter
from torch import Tensor

from tnav.errors import ConfigError
from tnav.evaluate.bench_baselines import KINDS as COMPARED
from tnav.evaluate.bench_baselines import compare
from tnav.evaluate.bench_detectable import measure_detectable
from tnav.evaluate.descent_plan import Descent, load_descent
from tnav.evaluate.descent_score import BLIND_DOWN_MAX_M_S
from tnav.evaluate.flight import Flight, Monitoring
from tnav.evaluate.flight_detectable import DETECTED, least_error
from tnav.evaluate.flight_runs import Site, model_flight, site_of
from tnav.evaluate.limits import Row
from tnav.evaluate.match_scores import binomial_interval
from tnav.evaluate.relief_charts import Chart
from tnav.evaluate.stanford import Diagram
from tnav.evaluate.whiteness import Whiteness, whiteness_rows
from tnav.monitor.bounds import upper_quantile
from tnav.monitor.integrity import Stanford
from tnav.monitor.thresholds import Tuning
from tnav.monitor.watch import KINDS
from tnav.records import FaultKind
from tnav.simulate.fault_effects import thrust_factor
from tnav.simulate.faults import Fault

Say = Callable[[str], None]

DESCENT = "resilience"
_COUNT, _QUICK = 1000, 20
SEED = 7
_QUICK_KINDS = ("step_terrain", "bias", "late_acquisition")
_BATCH = 250
_FALSE_ALARMS_PER_DESCENT = 1e-3
_NAMED = 0.95
_COST_MS = 1.0
# Of these the whole range is larger than the least that can be detected.
_ANY_SIZE = (
    "not_fused",
    "step_terrain",
    "stuck",
    "spike",
    "noise_inflation",
    "imu_saturation",
    "imu_dropout",
    "spurious_event",
)
# Commands against what the inertial unit reads, were they compared: a share of the false alarms.
_K_THRUST = upper_quantile(0.05 * _FALSE_ALARMS_PER_DESCENT / 2)

_ALTIMETER = (
    FaultKind.ALTIMETER_INCONSISTENT,
    FaultKind.ALTIMETER_NOISE,
)
_ABSENT = (FaultKind.LATE_ACQUISITION, FaultKind.DROPOUT)
# Right verdicts of each kind of fault; the first is the one that is meant.
VERDICTS: dict[str, tuple[FaultKind, ...]] = {
    "dropout": (FaultKind.DROPOUT,),
    "late_acquisition": _ABSENT,
    "permanent_outage": _ABSENT,
    "not_fused": (FaultKind.NOT_FUSED,),
    "step_terrain": (FaultKind.TERRAIN,),
    "step_sensor": _ALTIMETER,
    "bias": _ALTIMETER,
    "scale": _ALTIMETER,
    "drift": _ALTIMETER,
    "stuck": (FaultKind.STUCK,),
    "spike": _ALTIMETER,
    "noise_inflation": _ALTIMETER,
    "latency": _ALTIMETER,
    "tilt_coupled": _ALTIMETER,
    "velocity_coupled": _ALTIMETER,
    "false_lock": _ALTIMETER,
    "imu_saturation": (FaultKind.INERTIAL,),
    "imu_dropout": (FaultKind.INERTIAL,),
    "spurious_event": (FaultKind.SPURIOUS_EVENT,),
    "map_fault": (FaultKind.TERRAIN,),
    "camera_fault": (FaultKind.VISION_INCONSISTENT, FaultKind.VISION_ABSENT),
    "thrust_bias": (FaultKind.INERTIAL,),
}


@dataclass(frozen=True, slots=True)
class Scored:
    """One batch of one kind of fault, by descent."""

    begun: Bool[Tensor, " b"]  # before touchdown
    sized: Bool[Tensor, " b"]  # larger than the least that can be detected, in time
    early: Bool[Tensor, " b"]  # alerted before there was anything
    alerted: Bool[Tensor, " b"]
    in_time: Bool[Tensor, " b"]  # before the point of no return
    right: Bool[Tensor, " b"]
    named: Bool[Tensor, " b"]
    soft: Bool[Tensor, " b"]
    hazardous: Bool[Tensor, " b"]
    delay_s: Tensor


def measure_monitor(
    device: torch.device, *, quick: bool, say: Say, count: int | None = None,
    kinds: Sequence[str] = (), seed: int = SEED,
) -> tuple[list[Row], dict[str, Chart], Chart]:  # fmt: skip
    """The monitor's table, its curves against baselines by kind of fault, its Stanford diagram.

    Args:
        device: of terrain and descents.
        quick: five minutes at most.
        say: told what goes on.
        count: descents of each kind, instead of 1,000.
        kinds: of faults, instead of all.
        seed: number of the first batch.

    Raises:
        ConfigError: no such kind.
    """
    unknown = sorted(set(kinds) - set(VERDICTS))
    if unknown:
        raise ConfigError(f"kind of fault {unknown[0]!r}, expected one of: {', '.join(VERDICTS)}")
    descent = load_descent(DESCENT)
    say("terrain")
    site = site_of(descent, device)
    n = count or (_QUICK if quick else _COUNT)
    wanted = tuple(kinds) or (_QUICK_KINDS if quick else tuple(VERDICTS))
    rows, diagram = _nominal(descent, site, n, str(device), say, seed)
    parts: list[Scored] = []
    for kind in wanted:
        flights = _flown(descent, site, kind, n, say, seed)
        diagram.add([(f.integrity.looks, f.integrity.tally) for f in flights])
        scored = _joined([score(f, kind) for f in flights])
        _say_missed(kind, scored, say, seed)
        rows += _kind_rows(kind, scored, str(device))
        parts.append(scored)
    rows += _total_rows(_joined(parts), str(device))
    rows += diagram.rows(str(device))
    against = [] if quick else [kind for kind in wanted if kind in COMPARED]
    if not against:
        return rows, {}, diagram.chart()
    compared, charts = compare(descent, site, min(n, _BATCH), seed, _begun_in_time, say, against)
    least = [] if kinds else measure_detectable(descent, site, min(n, _BATCH), seed, say)
    return rows + compared + least, charts, diagram.chart()


def _flown(
    descent: Descent,
    site: Site,
    kind: str | None,
    count: int,
    say: Say,
    seed: int,
    begun: Callable[[Flight], None] = lambda flight: None,
) -> list[Flight]:
    """Batches of one kind of fault; ``begun`` is given each before it flies."""
    flights: list[Flight] = []
    faults = () if kind is None else (TypeAdapter(Fault).validate_python({"kind": kind}),)
    while count > 0:
        batch = min(count, _BATCH)
        say(f"{kind or 'nominal'}: {batch} descents")
        began = time.perf_counter()
        flight = model_flight(
            descent, site, batch, seed + len(flights), faults=faults, monitor=Monitoring.ACTS
        )
        begun(flight)
        flight.fly(lambda text, share: None)
        say(f"{kind or 'nominal'}: {time.perf_counter() - began:.0f} s")
        flights.append(flight)
        count -= batch
    return flights


def score(flight: Flight, kind: str) -> Scored:
    """What became of a batch."""
    assert flight.monitor is not None
    watch, contact = flight.monitor.watch, flight.log.contact
    begun_s = flight.faults.state.begun_s[:, 0]
    begun = begun_s < contact.t_s.nan_to_num(nan=torch.inf)
    alerted = watch.alert_s.isfinite()
    early = alerted & (watch.alert_s < begun_s)
    codes = [KINDS.index(verdict) for verdict in VERDICTS[kind]]
    named = watch.named_s.isfinite()
    right = torch.stack([watch.first_kind == code for code in codes]).any(0) & named
    return Scored(
        begun=begun,
        sized=begun & ~early & _sized(flight, kind),
        early=early,
        alerted=alerted & ~early & begun,
        in_time=alerted & ~early & begun & (flight.integrity.alert_limit_m > 0),
        right=right & begun,
        named=named & begun,
        soft=flight.log.landed & (contact.down_m_s < BLIND_DOWN_MAX_M_S),
        hazardous=flight.integrity.looks[:, int(Stanford.HAZARDOUS)] > 0,
        delay_s=watch.alert_s - begun_s,
    )


def _say_missed(kind: str, scored: Scored, say: Say, seed: int) -> None:
    """Names the descents that count against the monitor: batch of the seed, and place in it."""
    for what, which in (
        ("missed", scored.sized & ~scored.in_time),
        ("wrong verdict", scored.named & ~scored.right),
    ):
        for i in which.nonzero()[:, 0].tolist():
            say(f"{kind}: {what}, seed {seed + i // _BATCH}, descent {i % _BATCH}")


def _begun_in_time(flight: Flight, _: str) -> Bool[Tensor, " b"]:
    """Whose fault began before the point of no return, whatever its size."""
    return flight.faults.state.begun_s[:, 0] < flight.integrity.no_return_s


def _sized(flight: Flight, kind: str) -> Bool[Tensor, " b"]:
    """Whose fault is larger than the least that can be detected, before the point of no return."""
    assert flight.detectable is not None
    faults, end_s = flight.faults, flight.state.t_s
    if kind in _ANY_SIZE:
        return _begun_in_time(flight, kind)
    if kind == "thrust_bias":
        bias = (thrust_factor(faults.bank, faults.state, end_s) - 1).abs()
        return bias >= least_error(_K_THRUST) * flight.descent.dispersion.thrust
    return flight.detectable.exceeded


def _joined(parts: Sequence[Scored]) -> Scored:
    return Scored(*(torch.cat([getattr(p, n) for p in parts]) for n in Scored.__slots__))


def _nominal(
    descent: Descent, site: Site, count: int, device: str, say: Say, seed: int
) -> tuple[list[Row], Diagram]:
    white: list[Whiteness] = []

    def listen(flight: Flight) -> None:
        white.append(Whiteness(len(flight.lander.landed), site.terrain_map.device))
        flight.after_range = white[-1].look

    began = time.perf_counter()
    flights = _flown(descent, site, None, count, say, seed, listen)
    seconds = time.perf_counter() - began
    alarms = steps = soft = beside = placed = 0
    for flight in flights:
        assert flight.monitor is not None
        alarms += int(flight.monitor.watch.alert_s.isfinite().sum())
        beside += int(flight.integrity.beside.sum())
        placed += int(flight.integrity.placed.sum())
        down = flight.log.contact.down_m_s
        soft += int((flight.log.landed & (down < BLIND_DOWN_MAX_M_S)).sum())
        steps += len(down) * round(flight.state.t_s / flight.descent.step_s)
    low, high = binomial_interval(alarms, count)
    rate = f"95 %: {100 * low:.2g} to {100 * high:.2g} %"
    expected = max(1, round(_FALSE_ALARMS_PER_DESCENT * count))
    each_ms = 1e3 * seconds / steps
    diagram = Diagram()
    diagram.add([(f.integrity.looks, f.integrity.tally) for f in flights])
    rows = [
        Row(
            f"nominal: descents with an alarm ({rate})", alarms, "descents", f"<= {expected}",
            alarms <= expected, count, device,
        ),
        Row("nominal: contact under 3 m/s", soft, "descents", f"= {count}", soft == count, count,
            device),
        Row("nominal: places off by more than their horizontal protection level", beside, "looks",
            "= 0", beside == 0, placed, device),
        Row("flight and monitor, per epoch and descent", round(each_ms, 4), "ms", f"< {_COST_MS:g}",
            each_ms < _COST_MS, count, device),
    ]  # fmt: skip
    return rows + whiteness_rows(white, Tuning().overbound, device), diagram


def _kind_rows(kind: str, scored: Scored, device: str) -> list[Row]:
    begun = int(scored.begun.sum())
    alerted, in_time = int(scored.alerted.sum()), int(scored.in_time.sum())
    named, right = int(scored.named.sum()), int(scored.right.sum())
    sized, found = int(scored.sized.sum()), int((scored.sized & scored.in_time).sum())
    soft = int((scored.soft & scored.begun).sum())
    delay = scored.delay_s[scored.alerted]
    median_s = round(float(delay.median()), 2) if len(delay) else None
    early = int(scored.early.sum())
    return [
        Row(f"{kind}: detected", alerted, "descents", None, None, begun, device),
        Row(f"{kind}: ... before the point of no return", in_time, "descents", None, None, begun,
            device),
        Row(f"{kind}: ... of those larger than detectable", found, "descents",
            f">= {DETECTED:g} of them" if sized else "none is so large",
            found >= DETECTED * sized if sized else None, sized, device),
        Row(f"{kind}: right verdict of those named", right, "descents", None, None, named, device),
        Row(f"{kind}: named, of those detected", int((scored.named & scored.alerted).sum()),
            "descents", None, None, alerted, device),
        Row(f"{kind}: delay, median", median_s, "s", None, None, alerted, device),
        Row(f"{kind}: alarm before the fault", early, "descents", None, None, len(scored.early),
            device),
        Row(f"{kind}: contact under 3 m/s", soft, "descents", None, None, begun, device),
    ]  # fmt: skip


def _total_rows(scored: Scored, device: str) -> list[Row]:
    begun, in_time = int(scored.begun.sum()), int(scored.in_time.sum())
    sized, found = int(scored.sized.sum()), int((scored.sized & scored.in_time).sum())
    named, right = int(scored.named.sum()), int(scored.right.sum())
    hazardous = int(scored.hazardous.sum())
    return [
        Row("all faults: detected before the point of no return", round(in_time / max(begun, 1), 4),
            "", None, None, begun, device),
        Row("all faults: ... of those larger than detectable", round(found / max(sized, 1), 4), "",
            f">= {DETECTED:g}", found >= DETECTED * sized, sized, device),
        Row("all faults: right verdict of those named", round(right / max(named, 1), 4), "",
            f">= {_NAMED:g}", right >= _NAMED * named, named, device),
        Row("all faults: descents with hazardously misleading heights", hazardous, "descents",
            "= 0", hazardous == 0, len(scored.begun), device),
    ]  # fmt: skip
