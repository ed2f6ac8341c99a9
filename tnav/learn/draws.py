"""Random numbers by index: what is drawn for one index depends on no other, nor on their order."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import AfterValidator, BeforeValidator

T = TypeVar("T")


def uniform(
    seed: int, index: int, count: int, attempt: int = 0
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Numbers in (0, 1): raw Philox bits (Salmon et al. 2011), one key an index.

    Args:
        seed: of the whole.
        index: below 2^64.
        count: how many.
        attempt: at the same index; another one is another part of the generator's sequence.
    """
    key = np.array([seed % 2**64, index], dtype=np.uint64)
    counter = np.array([0, 0, 0, attempt], dtype=np.uint64)
    raw = np.random.Philox(key=key, counter=counter).random_raw(count)
    return ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


class Draws:
    """Takes the numbers of one index one after the other."""

    __slots__ = ("_numbers",)

    def __init__(self, seed: int, index: int, attempt: int = 0, most: int = 128) -> None:
        self._numbers = iter(uniform(seed, index, most, attempt).tolist())

    def between(self, interval: tuple[float, float]) -> float:
        """Uniform in an interval; its end where it is a single point."""
        low, high = interval
        return low + next(self._numbers) * (high - low)

    def log_between(self, interval: tuple[float, float]) -> float:
        """Uniform in the logarithm; uniform where the interval starts at 0."""
        low, high = interval
        if low <= 0 or low == high:
            return self.between(interval)
        return min(high, max(low, low * math.exp(next(self._numbers) * math.log(high / low))))

    def signed(self, interval: tuple[float, float]) -> float:
        """Uniform magnitude with a random sign."""
        magnitude = self.between(interval)
        return magnitude if next(self._numbers) < 0.5 else -magnitude

    def choice(self, among: Sequence[T]) -> T:
        """One of several, with equal chance."""
        return among[int(next(self._numbers) * len(among))]

    def seed(self) -> int:
        """A seed for something else, below 2^31."""
        return int(next(self._numbers) * 2**31)


def _as_interval(value: Any) -> Any:
    return (value, value) if isinstance(value, (int, float)) else value


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError(f"from {interval[0]:g} to {interval[1]:g}, expected the lower one first")
    return interval


def _not_negative(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] < 0:
        raise ValueError(f"from {interval[0]:g}, expected 0 or more")
    return interval


def _positive(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] <= 0:
        raise ValueError(f"from {interval[0]:g}, expected more than 0")
    return interval


# From low to high; one number stands for both.
Interval = Annotated[tuple[float, float], BeforeValidator(_as_interval), AfterValidator(_ordered)]
Magnitude = Annotated[Interval, AfterValidator(_not_negative)]
PositiveInterval = Annotated[Interval, AfterValidator(_positive)]
