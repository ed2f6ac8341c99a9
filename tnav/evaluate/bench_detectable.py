"""The least bias of the altimeter that the monitor finds, by height, against theory.

Theory: the mean of w ranges against what is predicted without altimeter is a normal variable of
unit variance, so that a bias of s sigma is found with the probability ``Phi(s - K)``, K the
threshold of its false-alarm rate; 99 % take ``s = K + 2.33`` (Baarda 1968). Measured: the bias of
which 99 % are found within two windows, by whatever detector, from a probit of middle and width
(maximum likelihood); and how many are found of those over 1.5 times theory's.

There is no axis of the Sun: in `model` fidelity its factors on height and its share of lost images
are one between 4 and 25 deg, as they were fitted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import norm

from tnav.evaluate.descent_plan import Descent
from tnav.evaluate.flight import Flight, Monitoring
from tnav.evaluate.flight_detectable import DETECTED, least_error
from tnav.evaluate.flight_runs import Site, fly_model
from tnav.evaluate.limits import Row
from tnav.simulate.fault_spans import Span
from tnav.simulate.faults import BiasFault, Onset

HEIGHTS_M = (100.0, 250.0, 600.0, 1300.0, 2800.0)
TIMES_THEORY = 1.5
_BIAS_M = Span(low=0.3, high=60.0, log=True, either_sign=True)
_WINDOWS = 2.0
_UP = 2
_LEAST_TRIALS = 20

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


def measure_detectable(descent: Descent, site: Site, count: int, seed: int, say: Say) -> list[Row]:
    """Rows of least detectable biases over theory's.

    Args:
        descent: the recipe.
        site: ground and map.
        count: descents.
        seed: of the draw.
        say: told what goes on.
    """
    say(f"least detectable bias: {count} descents")
    begins = Onset(below_agl_m=Span(low=HEIGHTS_M[0], high=HEIGHTS_M[-1], log=True))
    fault = BiasFault(kind="bias", begins=begins, bias_m=_BIAS_M)
    flight = fly_model(
        descent, site, count, seed, lambda text, share: None, faults=(fault,),
        monitor=Monitoring.WATCHES,
    )  # fmt: skip
    return _rows(tried_of(flight), str(site.terrain_map.device))


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


def least_sigmas(sigmas: Floats, found: Flags) -> float:
    """Sigmas of which 99 % are found: ``Phi((s - middle) / width)``, by maximum likelihood.

    Where a step divides the found from the others, the width is of no consequence but small.
    """
    sign = np.where(found, 1.0, -1.0)

    def cost(of: Floats) -> float:
        return -float(norm.logcdf(sign * (sigmas - of[0]) / np.exp(of[1])).sum())

    fit = minimize(cost, (float(np.median(sigmas)), 0.0), method="Nelder-Mead",
                   options={"xatol": 1e-4, "fatol": 1e-6, "maxiter": 2000})  # fmt: skip
    middle, width = float(fit.x[0]), float(np.exp(fit.x[1]))
    return middle + float(norm.ppf(DETECTED)) * width


def _rows(tried: Tried, device: str) -> list[Row]:
    rows, theory = [], least_error(tried.threshold)
    for low, high in pairwise(HEIGHTS_M):
        here = (tried.agl_m >= low) & (tried.agl_m < high)
        n, name = int(here.sum()), f"least detectable bias, {low:g} to {high:g} m"
        sigmas, found = tried.sigmas[here], tried.found[here]
        large = sigmas >= TIMES_THEORY * theory
        if n < _LEAST_TRIALS or found.all() or not found.any():
            rows.append(Row(f"{name}: over theory's", None, "", None, None, n, device))
            continue
        ratio = least_sigmas(sigmas, found) / theory
        median_m = theory * float(np.median(tried.sigma_m[here]))
        caught, of = int(found[large].sum()), int(large.sum())
        rows += [
            Row(f"{name}: over theory's {median_m:.1f} m", round(ratio, 2), "",
                f"<= {TIMES_THEORY:g}", ratio <= TIMES_THEORY, n, device),
            Row(f"{name}: found, of over {TIMES_THEORY:g} times theory's", caught, "descents",
                f">= {DETECTED:g} of them", caught >= DETECTED * of if of else None, of, device),
        ]  # fmt: skip
    return rows
