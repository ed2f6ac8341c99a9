"""Random numbers of a camera: functions of a key and of the pixel's place, on any device.

Counter-based (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): no state and no
order, so a frame has the same noise alone and in a batch, on a CPU and on an accelerator (there up
to the rounding of erfinv and exp). The mixing function is the 32-bit finaliser "lowbias32" of the
hash-prospector project (Wellons), applied twice with a 32-bit key each.
"""

import math
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Float32, Int32
from torch import Tensor

_MIX_1, _MIX_2 = 0x7FEB352D, 0x846CA68B - 2**32  # as signed 32-bit numbers
_UNIFORM_BITS = 23  # (n + 1/2) / 2^23 is exact in float32, and never 0 or 1
_POISSON_EXACT_BELOW = 10.0
_POISSON_COUNT_MAX = 32  # P(more | mean 10) = 1e-8, a sixth of the uniform numbers' last step


class Stream(IntEnum):
    """What a number is drawn for; values are part of what a seed means."""

    SHOT = 1
    READ = 2
    COLUMN = 3
    PRNU = 4
    DSNU = 5
    HOT_PLACE = 6
    HOT_RATE = 7


def uniform(
    seeds: Sequence[int], stream: Stream, height: int, width: int, device: torch.device
) -> Float32[Tensor, "b 1 {height} {width}"]:
    """Uniform numbers strictly between 0 and 1, one frame for each seed."""
    keys = [_key(seed, stream) for seed in seeds]
    first, second = (_each(words, device) for words in zip(*keys, strict=True))
    place = torch.arange(height * width, dtype=torch.int32, device=device).view(1, 1, height, width)
    bits = _mix(_mix(place ^ first) ^ second)
    whole = (bits >> (32 - _UNIFORM_BITS)) & (2**_UNIFORM_BITS - 1)
    return whole.float().add_(0.5).mul_(2.0**-_UNIFORM_BITS)


def normal(
    seeds: Sequence[int], stream: Stream, height: int, width: int, device: torch.device
) -> Float32[Tensor, "b 1 {height} {width}"]:
    """Standard normal numbers, within 5.2 sigma, one frame for each seed."""
    return _normal_quantile(uniform(seeds, stream, height, width, device))


def poisson(mean: Float32[Tensor, "*b"], u: Float32[Tensor, "*b"]) -> Float32[Tensor, "*b"]:
    """Poisson counts as quantiles of their distribution.

    Below a mean of 10 by summing the distribution, exactly; above by the Cornish-Fisher expansion
    of the quantile (Giles 2016, Algorithm 955, ACM TOMS 42, its approximation Q_N with the
    continuity correction), whose total variation distance from the Poisson law is at most 1.4e-4.

    Args:
        mean: not negative.
        u: uniform numbers.
    """
    large = mean.clamp_min(_POISSON_EXACT_BELOW)
    w, root = _normal_quantile(u), large.sqrt()
    w2 = w * w
    quantile = (
        large
        + root * w
        + (1 / 3 + w2 / 6)
        - w * (1 / 36 + w2 / 72) / root
        + (-8 / 405 + w2 * (7 / 810 + w2 / 270)) / large
    )
    counts = quantile.floor().clamp_min(0.0)
    return torch.where(mean < _POISSON_EXACT_BELOW, _poisson_summed(mean, u), counts)


def _poisson_summed(mean: Tensor, u: Tensor) -> Tensor:
    small = mean.clamp_max(_POISSON_EXACT_BELOW)
    mass = torch.exp(-small)
    cumulative = mass.clone()
    count = torch.gt(u, cumulative).float()
    for k in range(1, _POISSON_COUNT_MAX + 1):
        cumulative += mass.mul_(small).mul_(1 / k)
        count += u > cumulative
    return count


def _normal_quantile(u: Tensor) -> Tensor:
    return torch.erfinv(2 * u - 1).mul_(math.sqrt(2))


def _key(seed: int, stream: Stream) -> list[int]:
    """Two mixed 32-bit words (NumPy promises that SeedSequence stays as it is)."""
    words = np.random.SeedSequence([seed % 2**64, int(stream)]).generate_state(2, np.uint32)
    return words.view(np.int32).tolist()


def _each(words: Sequence[int], device: torch.device) -> Int32[Tensor, "b 1 1 1"]:
    # Filled where they are used: a tensor of them would be copied there, which the host waits for.
    return torch.cat(
        [torch.full((1, 1, 1, 1), word, dtype=torch.int32, device=device) for word in words]
    )


def _mix(x: Int32[Tensor, "*b"]) -> Int32[Tensor, "*b"]:
    # A signed shift drags the sign along: the masks take it off again.
    x = (x ^ ((x >> 16) & 0xFFFF)) * _MIX_1
    x = (x ^ ((x >> 15) & 0x1FFFF)) * _MIX_2
    return x ^ ((x >> 16) & 0xFFFF)
