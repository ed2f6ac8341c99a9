"""Numbers of a fault: fixed, or drawn anew for every descent."""

import math
from typing import Annotated

import torch
from jaxtyping import Float64
from pydantic import AfterValidator, Discriminator, Tag, model_validator
from torch import Tensor

from tnav.config import Recipe


class Span(Recipe):
    """A number drawn for every descent: uniform, or with a uniform logarithm."""

    low: float
    high: float
    log: bool = False
    either_sign: bool = False  # then as often negative as positive

    @model_validator(mode="after")
    def _possible(self) -> "Span":
        found = f"range from {self.low:g} to {self.high:g}"
        if self.low > self.high:
            raise ValueError(f"{found}: expected low <= high")
        if self.log and self.low <= 0:
            raise ValueError(f"{found} with log: expected low > 0")
        if self.either_sign and self.low < 0:
            raise ValueError(f"{found} with either_sign: expected low >= 0")
        return self


def _form(value: object) -> str:
    return "range" if isinstance(value, dict | Span) else "number"


Drawn = Annotated[
    Annotated[float, Tag("number")] | Annotated[Span, Tag("range")], Discriminator(_form)
]


def reach(drawn: float | Span) -> tuple[float, float]:
    """Least and greatest value that can be drawn."""
    if not isinstance(drawn, Span):
        return drawn, drawn
    return (-drawn.high if drawn.either_sign else drawn.low), drawn.high


def _bounded(expected: str, least: float, most: float = math.inf, *, open_: bool = False) -> object:
    """Check that all that can be drawn lies within bounds; ``open_``: the least itself does not."""

    def check(drawn: float | Span) -> float | Span:
        low, high = reach(drawn)
        if low < least or high > most or (open_ and low <= least):
            found = f", found {low:g} to {high:g}" if isinstance(drawn, Span) else ""
            raise ValueError(f"expected {expected}{found}")
        return drawn

    return AfterValidator(check)


Positive = Annotated[Drawn, _bounded("> 0", 0.0, open_=True)]
NotNegative = Annotated[Drawn, _bounded(">= 0", 0.0)]
Share = Annotated[Drawn, _bounded("a share from 0 to 1", 0.0, 1.0)]
Factor = Annotated[Drawn, _bounded("a factor >= 1", 1.0)]
Fraction = Annotated[Drawn, _bounded("a fraction from -0.5 to 0.5", -0.5, 0.5)]
Gap = Annotated[Drawn, _bounded("0 to 30 s", 0.0, 30.0)]
Angle = Annotated[Drawn, _bounded("0 to 180 deg", 0.0, 180.0)]
Lobe = Annotated[Drawn, _bounded("0 to 60 deg", 0.0, 60.0)]


def draw(
    drawn: float | Span, batch: int, values: torch.Generator, signs: torch.Generator
) -> Float64[Tensor, " b"]:
    """One number for each descent, on the CPU; one that is fixed draws nothing.

    Args:
        drawn: the number.
        batch: number of descents.
        values: generator of the values, on the CPU.
        signs: generator of their signs, on the CPU.
    """
    if not isinstance(drawn, Span):
        return torch.full((batch,), drawn, dtype=torch.float64)
    u = torch.rand(batch, generator=values, dtype=torch.float64)
    if drawn.log:
        value = drawn.low * (math.log(drawn.high / drawn.low) * u).exp()
    else:
        value = drawn.low + (drawn.high - drawn.low) * u
    value = value.clamp(drawn.low, drawn.high)  # against rounding
    if not drawn.either_sign:
        return value
    return torch.where(torch.rand(batch, generator=signs) < 0.5, -value, value)
