"""Three altimeter faults of a descent on a prescribed trajectory, whose times are known.

Closed-loop descents take theirs from the catalogue of ``tnav.simulate.faults``.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float64
from pydantic import Field
from torch import Tensor

from tnav.config import Recipe

_LOGISTIC_10_TO_90 = 4.394  # 2 ln 9: width from 10 to 90 % over the scale of a logistic curve


class NoFault(Recipe):
    """A healthy altimeter."""

    kind: Literal["none"] = "none"


class LateAcquisition(Recipe):
    """Valid only near a range far below the specified one: RESILIENCE first ranged at 893 m."""

    kind: Literal["late_acquisition"]
    range_max_m: float = Field(default=893.0, gt=0)  # probability of a valid range is 1/2 here
    edge_m: float = Field(default=50.0, gt=0)  # from 10 to 90 %


class Dropout(Recipe):
    """No valid range between two times."""

    kind: Literal["dropout"]
    start_s: float = Field(ge=0)
    duration_s: float = Field(gt=0)


class Bias(Recipe):
    """A constant added to the range from a time on."""

    kind: Literal["bias"]
    start_s: float = Field(ge=0)
    bias_m: float


AltimeterFault = Annotated[NoFault | LateAcquisition | Dropout | Bias, Field(discriminator="kind")]


def lock_chance(
    range_m: Float64[Tensor, " b"],
    range_max_m: Float64[Tensor, " b"] | float,
    edge_m: Float64[Tensor, " b"] | float,
) -> Float64[Tensor, " b"]:
    """Probability of an echo: a logistic, 1/2 at range_max_m, from 90 to 10 % over edge_m."""
    return torch.sigmoid((range_max_m - range_m) * _LOGISTIC_10_TO_90 / edge_m)


def apply_fault(
    fault: NoFault | LateAcquisition | Dropout | Bias,
    t_s: Float64[Tensor, " n"],
    range_m: Float64[Tensor, " n"],
    valid: Bool[Tensor, " n"],
    seed: int,
) -> tuple[Float64[Tensor, " n"], Bool[Tensor, " n"]]:
    """Readings of a faulty altimeter from those of a healthy one.

    Args:
        fault: the fault.
        t_s: epochs.
        range_m: healthy ranges.
        valid: where they are valid.
        seed: of the fault's own randomness.
    """
    match fault:
        case NoFault():
            return range_m, valid
        case LateAcquisition(range_max_m=range_max_m, edge_m=edge_m):
            u = torch.rand(t_s.shape, generator=torch.Generator().manual_seed(seed)).double()
            return range_m, valid & (u < lock_chance(range_m, range_max_m, edge_m))
        case Dropout(start_s=start_s, duration_s=duration_s):
            gone = (t_s >= start_s) & (t_s < start_s + duration_s)
            return range_m, valid & ~gone
        case Bias(start_s=start_s, bias_m=bias_m):
            return torch.where(t_s >= start_s, range_m + bias_m, range_m), valid
