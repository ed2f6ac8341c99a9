"""The least bias of the altimeter that the monitor finds, by height and Sun, against theory.

Theory: the mean of w ranges against what is predicted without altimeter is a normal variable of
unit variance, so that a bias of s sigma is found with the probability ``Phi(s - K)``, K the
threshold of its false-alarm rate; 99 % take ``s = K + 2.33`` (Baarda 1968). Measured: the K that
fits best (maximum likelihood) to which of many biases were found within two windows, by whatever
detector.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from tnav.errors import ConfigError
from tnav.evaluate.descent_plan import Descent
from tnav.evaluate.flight import Flight, Monitoring
from tnav.evaluate.flight_detectable import DETECTED, least_error
from tnav.evaluate.flight_runs import Site, fly_model
from tnav.evaluate.limits import Row
from tnav.geometry.moon import LocalFrame
from tnav.geometry.sun import sun_at
from tnav.simulate.fault_spans import Span
from tnav.simulate.faults import BiasFault, Onset

HEIGHTS_M = (100.0, 250.0, 600.0, 1300.0, 2800.0)
SUNS_DEG = (5.0, 12.0, 25.0)
TIMES_THEORY = 1.5
_BIAS_M = Span(low=0.3, high=60.0, log=True, either_sign=True)
_WINDOWS = 2.0
_UP = 2
_LUNAR_DAY = timedelta(days=29.53)
_STEP = timedelta(minutes=20)
_K_MAX = 40.0

Say = Callable[[str], None]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Tried:
    """Biases that began at known heights, and whether they were found."""

    agl_m: Floats
    sigmas: Floats  # bias over the sigma of the mean of ranges, without sign
    sigma_m: Floats
    found: Flags
    threshold: float  # K of the separation


def measure_detectable(
    descent: Descent,
    site: Site,
    count: int,
    seed: int,
    say: Say,
    suns_deg: Sequence[float] = SUNS_DEG,
) -> list[Row]:
    """Rows of least detectable biases over theory's.

    Args:
        descent: the recipe.
        site: ground and map.
        count: descents of each Sun.
        seed: of the draw.
        say: told what goes on.
        suns_deg: elevations of the Sun; sunrise to noon.
    """
    rows = []
    for sun_deg in suns_deg:
        say(f"least detectable bias, Sun {sun_deg:g} deg: {count} descents")
        tried = _tried(descent, _lit(site, sun_deg), count, seed)
        rows += _rows(tried, sun_deg, str(site.terrain_map.device))
    return rows


def epoch_of(frame: LocalFrame, after: datetime, elevation_deg: float) -> datetime:
    """When the Sun next climbs through an elevation, to 20 minutes.

    Raises:
        ConfigError: it never stands so high there.
    """
    before_deg = float("inf")
    for i in range(int(_LUNAR_DAY / _STEP)):
        at = after + i * _STEP
        now_deg = sun_at(frame, at).elevation_deg
        if before_deg < elevation_deg <= now_deg:
            return at
        before_deg = now_deg
    raise ConfigError(f"Sun at {elevation_deg:g} deg: never, at {frame.latitude_deg:.1f} deg")


def _lit(site: Site, sun_deg: float) -> Site:
    scenario = site.scenario
    epoch = epoch_of(scenario.site.frame, scenario.epoch_utc, sun_deg)
    return Site(scenario.model_copy(update={"epoch_utc": epoch}), site.terrain_map)


def _tried(descent: Descent, site: Site, count: int, seed: int) -> Tried:
    low, high = HEIGHTS_M[0], HEIGHTS_M[-1]
    begins = Onset(below_agl_m=Span(low=low, high=high, log=True))
    fault = BiasFault(kind="bias", begins=begins, bias_m=_BIAS_M)
    flight = fly_model(
        descent, site, count, seed, lambda text, share: None, faults=(fault,),
        monitor=Monitoring.WATCHES,
    )  # fmt: skip
    return tried_of(flight)


def tried_of(flight: Flight) -> Tried:
    """Of a flight whose altimeters have biases: those that showed in a range."""
    assert flight.monitor is not None
    assert flight.detectable is not None
    setup, watch, seen = flight.monitor.setup, flight.monitor.watch, flight.detectable
    values = flight.faults.bank.faults[0].values
    within_s = _WINDOWS * setup.tuning.kinematic_window / setup.spec.rate_hz
    delay_s = watch.alert_s - seen.wrong_s
    # Who alarmed before is no trial of this bias.
    use = seen.wrong_s.isfinite() & ~(delay_s < 0)
    columns = (
        flight.faults.bank.below_agl_m[:, 0], values["bias_m"].abs() / seen.wrong_sigma_m,
        seen.wrong_sigma_m, delay_s <= within_s,
    )  # fmt: skip
    agl_m, sigmas, sigma_m, found = (column[use].cpu().numpy() for column in columns)
    return Tried(agl_m, sigmas, sigma_m, found, setup.multipliers.false_alarm[_UP])


def least_k(sigmas: Floats, found: Flags) -> float:
    """Threshold K of ``P(found) = Phi(s - K)`` by maximum likelihood."""
    sign = np.where(found, 1.0, -1.0)

    def cost(k: float) -> float:
        return -float(norm.logcdf(sign * (sigmas - k)).sum())

    return float(minimize_scalar(cost, bounds=(0.0, _K_MAX), method="bounded").x)


def _rows(tried: Tried, sun_deg: float, device: str) -> list[Row]:
    rows = []
    k_md, theory = float(norm.isf(1 - DETECTED)), least_error(tried.threshold)
    for low, high in pairwise(HEIGHTS_M):
        here = (tried.agl_m >= low) & (tried.agl_m < high)
        n = int(here.sum())
        name = f"least detectable bias, Sun {sun_deg:g} deg, {low:g} to {high:g} m"
        if n < 5:
            rows.append(Row(f"{name}: over theory", None, "", None, None, n, device))
            continue
        ratio = (least_k(tried.sigmas[here], tried.found[here]) + k_md) / theory
        median_m = theory * float(np.median(tried.sigma_m[here]))
        rows.append(
            Row(f"{name}: over theory's {median_m:.1f} m", round(ratio, 2), "",
                f"<= {TIMES_THEORY:g}", ratio <= TIMES_THEORY, n, device)
        )  # fmt: skip
    return rows
