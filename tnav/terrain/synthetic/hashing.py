"""Counter-based randomness: a number is a function of a seed and of where it stands, nothing else.

The generator is SplitMix64's finaliser (Steele, Lea and Flood 2014) chained over integer keys, so
that a value needs no stream, no order and no library's idea of one: it is the same on every
machine, in every window, for one tile or for a million at once.
"""

import math

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.int64] | int

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_TO_53_BITS, _ULP_53 = np.uint64(11), 2.0**-53
_HALFWORD, _HALFWORD_MASK = np.uint64(16), np.uint64(0xFFFF)


def hash_keys(seed: int, *keys: Keys) -> NDArray[np.uint64]:
    """64 well mixed bits for every broadcast combination of integer keys (at least 1-D)."""
    state = _finalise(np.array([seed & (2**64 - 1)], dtype=np.uint64) + _GOLDEN)
    for key in keys:
        bits = np.atleast_1d(np.asarray(key, dtype=np.int64)).view(np.uint64)
        state = _finalise((state ^ bits) * _GOLDEN + _GOLDEN)
    return state


def uniform(seed: int, *keys: Keys) -> NDArray[np.float64]:
    """Uniform numbers strictly between 0 and 1, one a combination of keys."""
    bits = hash_keys(seed, *keys) >> _TO_53_BITS
    return (bits.astype(np.float64) + 0.5) * _ULP_53


def near_normal(seed: int, *keys: Keys) -> NDArray[np.float32]:
    """Zero mean, unit variance, nearly Gaussian: the sum of four uniform 16-bit numbers."""
    bits = hash_keys(seed, *keys)
    total = (bits & _HALFWORD_MASK).astype(np.float32)
    for k in (1, 2, 3):
        total += ((bits >> np.uint64(16 * k)) & _HALFWORD_MASK).astype(np.float32)
    sigma = math.sqrt(4 * (2.0**32 - 1) / 12)
    return ((total - np.float32(4 * 32767.5)) / np.float32(sigma)).astype(np.float32)


def poisson(mean: float, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Poisson counts of one mean, by inversion of uniform numbers."""
    if mean <= 0:
        return np.zeros(uniforms.shape, dtype=np.int64)
    largest = int(mean + 12 * math.sqrt(mean) + 24)
    log_mass = [k * math.log(mean) - mean - math.lgamma(k + 1) for k in range(largest)]
    cumulative = np.cumsum(np.exp(log_mass))
    return np.searchsorted(cumulative, uniforms).astype(np.int64)


def _finalise(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> _SHIFTS[0])) * _MIX_1
    state = (state ^ (state >> _SHIFTS[1])) * _MIX_2
    return state ^ (state >> _SHIFTS[2])
