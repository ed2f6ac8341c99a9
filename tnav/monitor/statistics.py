"""Sequential statistics and their thresholds, each derived from a false-alarm rate.

CUSUM (Page 1954): ``S_n = max(0, S_{n-1} + x_n)``, an alarm at ``S_n >= h``. For standard normal
innovations ``x = +-z - k`` sees a lasting shift of 2k soonest; for a valid flag x is the
log-likelihood ratio of "fails" against "works". Sequences are batched tensors and stay on their
device; thresholds are host floats.
"""

import math

import torch
from jaxtyping import Bool, Float64, Int64
from scipy.special import chdtri
from torch import Tensor

from tnav.errors import ConfigError

# Siegmund's correction for the excess over the boundary, on both ends: 2 x 0.583.
_OVERSHOOT = 1.166
_HIGHEST_THRESHOLD = 300.0  # k = 0.5: a mean run of 1e130 samples
_BISECTIONS = 60  # 300 / 2^60 is below double precision at any threshold in use


def normalised(
    value: Float64[Tensor, "*b m"], covariance: Float64[Tensor, "*b m m"]
) -> Float64[Tensor, "*b m"]:
    """Innovations by their own standard deviations: each N(0, 1), not independent of each other.

    Not whitened, so that a component keeps its meaning (east, north, up, or a turn about them).
    """
    return value / covariance.diagonal(dim1=-2, dim2=-1).sqrt()


def cusum(
    increment: Float64[Tensor, "b n"], present: Bool[Tensor, "b n"]
) -> tuple[Float64[Tensor, "b n"], Int64[Tensor, "b n"]]:
    """Page's recursion over whole sequences at once, ``S_n = X_n - min(0, min_{j<=n} X_j)``.

    Args:
        increment: x_n; where absent the level stands still.

    Returns:
        The level S_n, and the index of the sample with which its present excursion from zero
        began (the maximum-likelihood onset of a change); n + 1 while the level is zero.
    """
    total = torch.where(present, increment, torch.zeros_like(increment)).cumsum(-1)
    total = torch.cat([torch.zeros_like(total[:, :1]), total], -1)
    lowest, at = torch.cummin(total, -1)
    return (total - lowest)[:, 1:], at[:, 1:]


def two_sided_cusum(
    z: Float64[Tensor, "b n"], present: Bool[Tensor, "b n"], reference: float
) -> tuple[Float64[Tensor, "b n"], Int64[Tensor, "b n"]]:
    """Larger of the CUSUMs of ``z - k`` and ``-z - k``, with its onset index."""
    high, high_at = cusum(z - reference, present)
    low, low_at = cusum(-z - reference, present)
    return torch.maximum(high, low), torch.where(high >= low, high_at, low_at)


def absence_cusum(
    valid: Bool[Tensor, "b n"],
    expected: Bool[Tensor, "b n"],
    detection_probability: float,
    faulty_probability: float,
) -> tuple[Float64[Tensor, "b n"], Int64[Tensor, "b n"]]:
    """Bernoulli CUSUM of "expected but absent" over the epochs where a range is expected."""
    seen, missed = absence_increments(detection_probability, faulty_probability)
    increment = torch.where(valid, seen, missed).to(torch.float64)
    return cusum(increment, expected)


def absence_increments(
    detection_probability: float, faulty_probability: float
) -> tuple[float, float]:
    """Log-likelihood ratios (fails against works) of a valid epoch and of a missed one.

    Raises:
        ConfigError: not ``0 < faulty < detection < 1``.
    """
    p0, p1 = detection_probability, faulty_probability
    if not 0 < p1 < p0 < 1:
        raise ConfigError(
            f"altimeter detection probability {p0} against {p1} when faulty: expected "
            "0 < faulty < healthy < 1"
        )
    return math.log(p1 / p0), math.log((1 - p1) / (1 - p0))


def windowed_sum(
    value: Float64[Tensor, "b n"], present: Bool[Tensor, "b n"], window: int
) -> tuple[Float64[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """Sum of the last ``window`` values that were present, and whether there were that many.

    Of NIS with m degrees of freedom each it is chi-square with ``window * m``.
    """
    kept = torch.where(present, value, torch.zeros_like(value))
    zero = torch.zeros_like(kept[:, :1])
    total = torch.cat([zero, kept], -1).cumsum(-1)
    count = torch.cat([zero, present.to(kept.dtype)], -1).cumsum(-1)
    before = count[:, 1:] - window
    start = torch.searchsorted(count, before.clamp_min(0.0))
    return total[:, 1:] - total.gather(-1, start), before >= 0


def average_run_length(reference: float, threshold: float, shift: float = 0.0) -> float:
    """Mean number of samples until a one-sided normal CUSUM alarms (Siegmund 1985, eq. 2.57).

    ``(exp(-2 d b) + 2 d b - 1) / (2 d^2)`` with ``d = shift - k`` and ``b = h + 1.166``. For
    k = 0.5 and h = 5 it gives 938 (exact: 930); two-sided it is half of that.
    """
    d, b = shift - reference, threshold + _OVERSHOOT
    if abs(d * b) < 1e-6:  # the limit, free of cancellation
        return b * b
    return (math.expm1(-2 * d * b) + 2 * d * b) / (2 * d * d)


def cusum_threshold(reference: float, samples: float, false_alarm_probability: float) -> float:
    """Threshold of a two-sided normal CUSUM for a false-alarm probability over ``samples``.

    Run lengths are all but exponential under no change, so ``P = 1 - exp(-samples / ARL)`` with
    ``ARL = ARL_one_sided / 2``.
    """
    _check_probability(false_alarm_probability)
    needed = -2 * samples / math.log1p(-false_alarm_probability)
    low, high = 0.0, _HIGHEST_THRESHOLD
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if average_run_length(reference, middle) < needed:
            low = middle
        else:
            high = middle
    return high


def likelihood_threshold(samples: float, false_alarm_probability: float) -> float:
    """Threshold ``h = ln(n / P)`` of a log-likelihood-ratio CUSUM over n samples.

    From each start the likelihood ratio is a martingale of mean 1 under no change, so it ever
    reaches e^h with probability at most e^-h (Ville); n starts make ``P <= n e^-h``.
    """
    _check_probability(false_alarm_probability)
    return math.log(samples / false_alarm_probability)


def chi_square_quantile(upper_tail: float, degrees: int) -> float:
    """Value that a chi-square variable exceeds with probability ``upper_tail``."""
    _check_probability(upper_tail)
    return float(chdtri(degrees, upper_tail))


def _check_probability(p: float) -> None:
    if not 0 < p < 1:
        raise ConfigError(f"false-alarm probability {p}: expected in (0, 1)")
