"""What a page of closed-loop descents shows, as plain numbers.

Errors are estimate minus truth, as in ``DescentRecord``. Angles are in degrees here, for people.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from scipy.stats import chi2, norm
from torch import Tensor

from tnav.evaluate.descent_folder import DescentGroup
from tnav.evaluate.descent_record import DescentRecord, InnovationSeries, Outcome
from tnav.evaluate.flight_log import EDGES_M
from tnav.evaluate.flight_score import (
    ACROSS_MAX_M_S,
    DOWN_MAX_M_S,
    Arrays,
    coverage_rows,
    means_of,
)
from tnav.geometry.moon import RADIUS_M, altitude_m, up_L
from tnav.geometry.pose import so3_log
from tnav.navigate.state import FilterConfig, GatePolicy
from tnav.records import Sensor
from tnav.simulate.guidance import Phase

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_NAVIGATED = 9  # of a series' sigmas: position, velocity, attitude
_TO_SHOWN = np.array([1.0] * 6 + [math.degrees(1.0)] * 3)  # m, m/s, deg


@dataclass(frozen=True, slots=True)
class Stretch:
    """A phase of guidance from begin to end."""

    phase: str
    begin_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Track:
    """One descent over time, to its touchdown. NaN where something is not known."""

    name: str
    seed: int
    t_s: Floats
    range_m: Floats  # along the sphere, to the target
    height_m: Floats  # over the ground where it ended
    down_m_s: Floats
    across_m_s: Floats
    propellant_kg: Floats
    agl_m: Floats
    agl_error_percent: Floats  # of the true height, without sign
    error: Floats  # n 9: m, m/s, deg; along east, north, up
    sigma: Floats  # n 9, of the same
    stretches: tuple[Stretch, ...]
    end_m: tuple[float, float]  # east and north of the target, in truth ...
    end_believed_m: tuple[float, float]  # ... and as navigation had it
    speeds_m_s: tuple[float, float] | None  # at contact, down and across
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class SensorNis:
    """Normalised innovations squared of one sensor in one descent, where there was one."""

    sensor: Sensor
    seed: int
    degrees: int
    t_s: Floats
    nis: Floats
    fused: Bools


@dataclass(frozen=True, slots=True)
class Band:
    """Mean normalised square in a band of heights, over its degrees of freedom: honest is 1."""

    height_m: float  # over the site, under which it begins
    value: float
    n: int
    own: tuple[float, float]  # 95 % bounds of this mean ...
    together: tuple[float, float]  # ... and those that hold for all means of the table at once


@dataclass(frozen=True, slots=True)
class Consistency:
    """Whether a batch of descents knows how wrong it is."""

    bands: dict[str, tuple[Band, ...]]  # by what it is of: "NEES position", "NIS vision", ...
    within: dict[str, tuple[float, ...]]  # share of errors within 1, 2, 3 sigma (%), by quantity
    honest: tuple[float, ...]  # what a Gaussian gives (%)


@dataclass(frozen=True, slots=True)
class Ending:
    """One line of the table of touchdowns; None where it is not known or never came."""

    seed: int
    outcome: Outcome
    t_s: float | None
    down_m_s: float | None
    across_m_s: float | None
    miss_m: float | None
    agl_error_m: float | None
    horizontal_error_m: float | None
    velocity_error_m_s: float | None
    propellant_kg: float
    fixes: int
    exposures: int | None


def track_of(record: DescentRecord) -> Track:
    """A history to its touchdown, in what people read."""
    series, end = record.series, record.touchdown
    last_s = math.inf if end is None else end.t_s
    # A lander on the ground stays as it was at contact, but navigation goes on: errors end before
    # that, while the place is that of the moment after.
    n = max(int((series.t_s <= last_s).sum()), 1)
    after = min(n, len(series.t_s) - 1)
    position_L, velocity_L = series.position_L[:n], series.velocity_L[:n]
    believed_L = series.position_nav_L[:n]
    up = up_L(position_L)
    rise = (velocity_L * up).sum(-1)
    altitude = altitude_m(position_L)
    agl_m = series.agl_m[:n]
    agl_error_percent = 100 * (series.agl_nav_m[:n] - agl_m).abs() / agl_m
    attitude = so3_log(series.R_nav_L_B[:n] @ series.R_L_B[:n].mT)
    error = torch.cat(
        [believed_L - position_L, series.velocity_nav_L[:n] - velocity_L, attitude], 1
    )
    return Track(
        name=record.name,
        seed=record.seed,
        t_s=series.t_s[:n].numpy(),
        range_m=_range_m(position_L).numpy(),
        height_m=(altitude - altitude_m(series.position_L[after])).numpy(),
        down_m_s=-rise.numpy(),
        across_m_s=(velocity_L - rise[:, None] * up).norm(dim=-1).numpy(),
        propellant_kg=series.propellant_kg[:n].numpy(),
        agl_m=agl_m.numpy(),
        agl_error_percent=torch.where(agl_m > 0, agl_error_percent, torch.nan).numpy(),
        error=error.numpy() * _TO_SHOWN,
        sigma=series.sigma[:n, :_NAVIGATED].numpy() * _TO_SHOWN,
        stretches=_stretches(series.t_s[:n].numpy(), series.phase[:n].numpy()),
        end_m=_level(series.position_L[after]),
        end_believed_m=_level(series.position_nav_L[after]),
        speeds_m_s=None if end is None else (end.speed_down_m_s, end.speed_horizontal_m_s),
        outcome=outcome_of(record),
    )


def beyond_3_sigma(tracks: list[Track]) -> tuple[float, ...]:
    """Share of moments (%) at which each of the nine errors is larger than three of its sigmas."""
    beyond = np.concatenate([np.abs(track.error) > 3 * track.sigma for track in tracks])
    return tuple(float(share) for share in 100 * beyond.mean(0))


def nis_of(record: DescentRecord) -> list[SensorNis]:
    """Every sensor's innovations that were there."""
    return [
        _nis(record.seed, series) for series in record.innovations if bool(series.present.any())
    ]


def gate_of(sensor: Sensor, degrees: int, policy: str) -> float | None:
    """NIS from which the filter refuses a measurement; None where it has no gate."""
    if sensor is Sensor.ALTIMETER and policy == GatePolicy.NONE.value:
        return None
    return float(chi2.ppf(FilterConfig().gate_probability, degrees))


def consistency_of(flown: Arrays) -> Consistency:
    """Mean normalised squares by band with their bounds, and coverage; of joined arrays."""
    means = means_of(flown)
    all_of_them = 1 - 0.05 / max(len(means), 1)
    bands: dict[str, list[Band]] = {}
    for mean in means:
        what, under = mean.name.rsplit(", under ", 1)
        height_m = float(under.removesuffix(" m"))
        band = Band(height_m, mean.value, mean.n, mean.bounds(0.95), mean.bounds(all_of_them))
        bands.setdefault(what, []).append(band)
    within: dict[str, list[float]] = {}
    for row in coverage_rows(flown, "", ""):
        if isinstance(row.value, float):
            within.setdefault(row.name.split()[1], []).append(row.value)
    honest = tuple(100 * float(2 * norm.cdf(k) - 1) for k in (1, 2, 3))
    return Consistency(
        {what: tuple(each) for what, each in bands.items()},
        {what: tuple(each) for what, each in within.items()},
        honest,
    )


def agl_rms(flown: Arrays) -> list[tuple[float, float]]:
    """Height over the ground (m) and rms error there in per cent of it, by band."""
    percent = 100 * np.abs(flown["agl_error_m"]) / flown["agl_m"]
    found = []
    for k in range(len(EDGES_M)):
        known = np.isfinite(percent[:, k])
        if known.any():
            rms = math.sqrt(float(np.mean(percent[known, k] ** 2)))
            found.append((float(flown["agl_m"][known, k].mean()), rms))
    return found


def endings_of(group: DescentGroup) -> list[Ending]:
    """A line a descent, from the arrays where there are any, else from the histories."""
    if group.flown is None:
        return [_ending_of_record(record) for record in group.records]
    outcomes = {record.seed: outcome_of(record) for record in group.records}
    return [_ending(group.flown, k, seed, outcomes.get(seed)) for k, seed in enumerate(group.seeds)]


def outcome_of(record: DescentRecord) -> Outcome:
    """How a descent ended; one without touchdown was still in the air."""
    return "timeout" if record.touchdown is None else record.touchdown.outcome


def _range_m(position_L: Float64[Tensor, "n 3"]) -> Float64[Tensor, " n"]:
    """Arc along the sphere from below a point to the origin of L, which is the target."""
    up = up_L(position_L)
    return RADIUS_M * torch.atan2(up[:, :2].norm(dim=-1), up[:, 2])


def _stretches(t_s: Floats, phase: NDArray[np.int64]) -> tuple[Stretch, ...]:
    """Phases of guidance in their order; one lasts until the next begins."""
    starts = np.flatnonzero(np.diff(phase, prepend=phase[0] - 1))
    ends = [*(float(t_s[k]) for k in starts[1:]), float(t_s[-1])]
    return tuple(
        Stretch(_phase_name(int(phase[k])), float(t_s[k]), end)
        for k, end in zip(starts, ends, strict=True)
    )


def _phase_name(number: int) -> str:
    known = number in {phase.value for phase in Phase}
    return Phase(number).name.lower() if known else f"phase {number}"


def _level(position_L: Float64[Tensor, "3"]) -> tuple[float, float]:
    return float(position_L[0]), float(position_L[1])


def _nis(seed: int, series: InnovationSeries) -> SensorNis:
    there = series.present.numpy()
    return SensorNis(
        sensor=series.sensor,
        seed=seed,
        degrees=series.value.shape[1],
        t_s=series.t_s.numpy()[there],
        nis=series.nis.numpy()[there],
        fused=series.fused.numpy()[there],
    )


def _ending(flown: Arrays, k: int, seed: int, told: Outcome | None) -> Ending:
    def one(name: str) -> float | None:
        value = float(flown[name][k])
        return value if math.isfinite(value) else None

    level = np.linalg.norm(flown["contact_position_error_L"][k, :2])
    velocity = np.linalg.norm(flown["contact_velocity_error_L"][k])
    contact = one("contact_t_s")
    return Ending(
        seed=seed,
        outcome=told or _outcome(flown, k),
        t_s=contact,
        down_m_s=one("contact_down_m_s"),
        across_m_s=one("contact_horizontal_m_s"),
        miss_m=one("contact_miss_m"),
        agl_error_m=one("contact_agl_error_m"),
        horizontal_error_m=None if contact is None else float(level),
        velocity_error_m_s=None if contact is None else float(velocity),
        propellant_kg=float(flown["propellant_kg"][k]),
        fixes=int(flown["fixes"][k]),
        exposures=int(flown["exposures"][k]),
    )


def _outcome(flown: Arrays, k: int) -> Outcome:
    """As `flight_runs.record_of` tells it."""
    if not math.isfinite(flown["contact_t_s"][k]):
        return "timeout"
    soft = flown["contact_down_m_s"][k] <= DOWN_MAX_M_S
    if soft and flown["contact_horizontal_m_s"][k] <= ACROSS_MAX_M_S:
        return "landed"
    return "ran_dry" if flown["propellant_kg"][k] <= 0 else "crashed"


def _ending_of_record(record: DescentRecord) -> Ending:
    end = record.touchdown
    fixes = [int(i.present.sum()) for i in record.innovations if i.sensor is Sensor.VISION]
    return Ending(
        seed=record.seed,
        outcome=outcome_of(record),
        t_s=None if end is None else end.t_s,
        down_m_s=None if end is None else end.speed_down_m_s,
        across_m_s=None if end is None else end.speed_horizontal_m_s,
        miss_m=None if end is None else end.miss_m,
        agl_error_m=None if end is None else end.agl_error_m,
        horizontal_error_m=None if end is None else end.horizontal_error_m,
        velocity_error_m_s=None if end is None else end.velocity_error_m_s,
        propellant_kg=float(record.series.propellant_kg[-1]),
        fixes=fixes[0] if fixes else 0,
        exposures=None,
    )
