"""Thresholds of streaming tests, each from the probability that a healthy descent ever alarms.

A test that looks n times alarms by chance more often than one look, and less often than n
independent ones, for its looks overlap. Three bounds are used, all of them upper bounds:

- the union of all looks (Bonferroni);
- the union of all *up-crossings*: a sequence that is ever over h either begins there or crosses
  h between two neighbours, so ``P <= P(Y_1 >= h) + (n - 1) P(Y_i >= h, Y_{i-1} < h)``. It counts a
  clump of looks over h once for each time that it is entered, where Bonferroni counts all of its
  members (Leadbetter, Lindgren and Rootzen 1983, ch. 7; Rice's formula in discrete time);
- Ville's inequality for likelihood ratios (``tnav.monitor.statistics.likelihood_threshold``).

CUSUM thresholds (Siegmund's approximation) are in ``tnav.monitor.statistics``. All on the host.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc, chdtr, chdtrc, gammaln, log_ndtr, ndtr, owens_t

from tnav.errors import ConfigError
from tnav.monitor.statistics import chi_square_quantile

_BISECTIONS = 60  # halves any bracket here to 1e-15 of a few hundred
_HIGHEST_SIGMA = 35.0  # of a normal: a probability of 1e-268
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)

Array = NDArray[np.float64]


def upper_tail(level: float) -> float:
    """Probability that a standard normal variable is above a level."""
    return float(ndtr(-level))


def upper_quantile(probability: float) -> float:
    """Level that a standard normal variable exceeds with a probability, 0 from one half on.

    Args:
        probability: also far below what double precision can tell from 1 in its complement.
    """
    if not probability > 0:
        raise ConfigError(f"probability {probability}: expected above 0")
    if probability >= 0.5:
        return 0.0
    wanted = math.log(probability)
    return _level(lambda x: float(log_ndtr(-x)) - wanted, 0.0, 2 * _HIGHEST_SIGMA)


# Counts and runs ----------------------------------------------------------------------------------


def count_bound(exceedance: float, count: int, window: int, samples: float) -> float:
    """Bound on P(ever ``count`` exceedances among ``window`` samples in a row).

    The first such window ends with an exceedance that has ``count - 1`` others among the
    ``window - 1`` samples before: ``n p P(Binomial(window - 1, p) >= count - 1)``.
    """
    _check_window(window, count)
    others = 1.0 if count == 1 else float(bdtrc(count - 2, window - 1, exceedance))
    return samples * exceedance * others


def count_threshold(
    exceedance: float, window: int, samples: float, false_alarm_probability: float
) -> int:
    """Least count of exceedances of a given gate, of ``window`` samples, that keeps a rate.

    Raises:
        ConfigError: not even a window full of exceedances is rare enough.
    """
    _check_probability(false_alarm_probability)
    _check_probability(exceedance)
    for count in range(1, window + 1):
        if count_bound(exceedance, count, window, samples) <= false_alarm_probability:
            return count
    raise ConfigError(
        f"{window} exceedances in a row of a gate that {exceedance:g} of all samples exceed are "
        f"not rarer than {false_alarm_probability:g} in {samples:g} samples: expected a longer "
        "window or a wider gate"
    )


@lru_cache(maxsize=256)
def count_exceedance(
    count: int, window: int, samples: float, false_alarm_probability: float
) -> float:
    """Exceedance probability of the gate whose M-of-N count keeps a rate exactly.

    A count is whole, so a given gate leaves up to a factor of the rate unused; here the gate is
    made to fit the count.
    """
    _check_probability(false_alarm_probability)
    wanted = math.log(false_alarm_probability)
    return math.exp(
        -_level(
            lambda x: math.log(count_bound(math.exp(-x), count, window, samples)) - wanted,
            1e-12,
            600.0 / count,
        )
    )


def run_threshold(chance: float, samples: float, false_alarm_probability: float) -> int:
    """Length n of a run that keeps a rate where each sample continues it with a chance.

    A run of n begins at one of the samples and continues n times: ``P <= samples chance^n``, also
    where ``chance`` is only a bound on the conditional probability.
    """
    _check_probability(false_alarm_probability)
    _check_probability(chance)
    return max(1, math.ceil(math.log(false_alarm_probability / samples) / math.log(chance)))


def repeat_chance(resolution: float, sigma: float) -> float:
    """Bound on the probability that a rounded reading repeats the one before.

    A normal variable falls into a given cell of width q with at most ``2 Phi(q / 2 sigma) - 1``,
    wherever the cell and the mean are.
    """
    if not (resolution > 0 and sigma > 0):
        raise ConfigError(f"resolution {resolution} and sigma {sigma}: expected above 0")
    return math.erf(resolution / (2 * math.sqrt(2) * sigma))


# Sums of chi-square over a window ----------------------------------------------------------------


@lru_cache(maxsize=256)
def scatter_thresholds(
    window: int, degrees: int, samples: float, high_probability: float, low_probability: float
) -> tuple[float, float]:
    """Sums of ``window`` NIS that are too large and too small, each with its rate.

    By up-crossings (down-crossings have the same probability, the sequence reads alike backwards):
    two neighbouring windows share ``C ~ chi2((window - 1) m)`` and differ in one sample each, so
    ``P(S_i >= h, S_{i-1} < h) = int f_C(c) Q_m(h - c) F_m(h - c) dc``.

    Returns:
        high: an alarm at or over it; low: an alarm at or under it.
    """
    if window < 2 or degrees < 1:
        raise ConfigError(f"window {window} of {degrees} degrees: expected at least 2 of 1")
    _check_probability(high_probability)
    _check_probability(low_probability)
    steps = max(0.0, samples - window)

    def over(h: float) -> float:
        inside = float(chdtrc(window * degrees, h))
        return math.log(inside + steps * _crossing(h, window, degrees))

    def under(x: float) -> float:
        level = mean * math.exp(-x)
        inside = float(chdtr(window * degrees, level))
        return math.log(inside + steps * _crossing(level, window, degrees) + 1e-300)

    mean = float(window * degrees)
    wanted = math.log(high_probability)
    widest = chi_square_quantile(min(1e-3, high_probability) / (10 * samples), window * degrees)
    high = _level(lambda h: over(h) - wanted, mean, widest)
    wanted_low = math.log(low_probability)
    return high, mean * math.exp(-_level(lambda x: under(x) - wanted_low, 0.0, 300.0))


def _crossing(level: float, window: int, degrees: int) -> float:
    """P(a sum of the window at or over a level, the one before under it)."""
    half = 0.5 * (window - 1) * degrees
    # c = level sin^2(angle) takes away the roots that one degree of freedom has at both ends.
    angle = 0.25 * math.pi * (_NODES + 1)
    shared, own = level * np.sin(angle) ** 2, level * np.cos(angle) ** 2
    log_density = (half - 1) * np.log(shared) - shared / 2 - half * math.log(2) - gammaln(half)
    both = chdtrc(degrees, own) * chdtr(degrees, own)
    integrand = np.exp(log_density) * both * level * np.sin(2 * angle)
    return float(0.25 * math.pi * (_WEIGHTS * integrand).sum())


# Likelihood ratios with unknown onset ------------------------------------------------------------


@lru_cache(maxsize=256)
def jump_threshold(window: int, samples: float, false_alarm_probability: float) -> float:
    """Threshold of the log-likelihood ratio g of a jump within the last 1 to ``window`` samples."""
    return _change_threshold(jump_shapes(window), samples, false_alarm_probability)


@lru_cache(maxsize=256)
def ramp_threshold(window: int, samples: float, false_alarm_probability: float) -> float:
    """The same of a ramp, zero at its onset, within the last 2 to ``window`` samples."""
    return _change_threshold(ramp_shapes(window), samples, false_alarm_probability)


def jump_shapes(window: int) -> Array:
    """Correlations for `change_bound`, of lengths 2 to the window: ``phi_k = 1``."""
    length = np.arange(2.0, window + 1)
    rho = np.sqrt((length - 1) / length)
    return np.stack([rho, rho], 1)


def ramp_shapes(window: int) -> Array:
    """Correlations for `change_bound`, of lengths 3 to the window: ``phi_k = k``, k = 0, 1, ..."""
    if window < 2:
        raise ConfigError(f"window {window} of a ramp: expected at least 2")
    k = np.arange(1.0, window)
    own = np.cumsum(k * k)  # of lengths 2, 3, ...
    shifted = np.cumsum(k * (k - 1))
    later = shifted[1:] / np.sqrt(own[1:] * own[:-1])
    return np.stack([later, np.sqrt(own[:-1] / own[1:])], 1)


def change_bound(level: float, shapes: Array, samples: float) -> float:
    """Bound on P(any change is ever seen), at ``level = sqrt(2 g)``.

    For a segment of L samples ``Y_{i,L}``, the normalised sum that ends at i, is standard normal.
    Of the first end at which any segment reaches the level take the shortest one that does: then
    neither the segment that begins one later (B) nor the one that ends one earlier (C) reaches it.
    So ``P <= n sum_L 2 P(Y >= b, B < b, C < b)``, a crossing in both directions, and with the
    correlations rho_B and rho_C of each with Y

        P(Y >= b, B < b, C < b) <= int_b^inf phi(y) Phi((b - rho_B y) / sqrt(1 - rho_B^2))
                                                    Phi((b - rho_C y) / sqrt(1 - rho_C^2)) dy,

    because B and C given Y are negatively correlated for jumps and ramps alike (Slepian 1962).
    The shortest segment has neither: ``2 Q(b)``. Willsky and Jones (1976) leave the threshold to
    simulation; Siegmund and Venkatraman (1995) approximate the same rate, but not as a bound.

    Args:
        shapes: (rho_B, rho_C) of each longer length.
    """
    width = min(10.0, 40.0 / max(level, 1.0))  # beyond it phi is 1e-17 of what it is at the level
    y = level + 0.5 * width * (_NODES + 1)
    density = np.exp(-0.5 * y * y) / math.sqrt(2 * math.pi)
    beside = (level - shapes[..., None] * y) / np.sqrt(1 - shapes[..., None] ** 2)
    crossings = (density * ndtr(beside).prod(1) * _WEIGHTS).sum() * 0.5 * width
    return samples * 2 * (upper_tail(level) + float(crossings))


def slope_threshold(window: int, samples: float, false_alarm_probability: float) -> float:
    """Threshold in sigma, both sides, of a least-squares slope over a sliding window.

    Equally spaced white samples. Neighbouring windows' slopes are normal with the correlation
    ``rho = sum_k w_k w_{k-1} / sum_k w_k^2`` of the centred weights w. Up-crossings by Owen's T
    function (Owen 1956): ``P(Y >= b, X < b) = 2 T(b, sqrt((1 - rho) / (1 + rho)))``, on both sides.
    An error that all samples share (of the speed) raises rho and so only lowers the rate.
    """
    _check_probability(false_alarm_probability)
    if window < 3:
        raise ConfigError(f"window {window} of a slope: expected at least 3")
    w = np.arange(window) - (window - 1) / 2
    rho = float((w[1:] * w[:-1]).sum() / (w * w).sum())
    angle = math.sqrt((1 - rho) / (1 + rho))
    steps = max(0.0, samples - window)

    def excess(b: float) -> float:
        bound = 2 * upper_tail(b) + 4 * steps * float(owens_t(b, angle))
        return math.log(bound + 1e-300) - math.log(false_alarm_probability)

    return _level(excess, 0.0, _HIGHEST_SIGMA)


def _change_threshold(shapes: Array, samples: float, false_alarm_probability: float) -> float:
    _check_probability(false_alarm_probability)
    wanted = math.log(false_alarm_probability)
    b = _level(
        lambda x: math.log(change_bound(x, shapes, samples) + 1e-300) - wanted,
        0.0,
        _HIGHEST_SIGMA,
    )
    return 0.5 * b * b


def _level(excess: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function changes sign; the end of the bracket at which it is not positive."""
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if excess(middle) > 0:
            low = middle
        else:
            high = middle
    return high


def _check_probability(p: float) -> None:
    if not 0 < p < 1:
        raise ConfigError(f"probability {p}: expected in (0, 1)")


def _check_window(window: int, count: int) -> None:
    if not 1 <= count <= window:
        raise ConfigError(f"count {count} of {window} samples: expected 1 to {window}")
