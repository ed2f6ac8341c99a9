"""How white the innovations of ranges are: the spread of sums of many in a row, by height.

A sum of W innovations, each by its own sigma, over ``sqrt(W)`` has the variance 1 where they are
white. The tests of lasting shifts count on no more than the square of their overbound.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from jaxtyping import Float64
from torch import Tensor

from tnav.evaluate.limits import Row
from tnav.monitor.watch import RangeLook

WINDOW = 20
# Of the expected range, m: narrow where the lander slows down.
EDGES_M = (3.0, 20.0, 50.0, 70.0, 100.0, 120.0, 150.0, 200.0, 300.0, 600.0, 1000.0, 2000.0, 3000.0)
_LEAST_SUMS = 100  # fewer say little of a variance


@dataclass(slots=True)
class Whiteness:
    """Filled while a batch flies (`Flight.after_range`); tensors stay on its device."""

    batch: int
    device: torch.device
    total: Float64[Tensor, " b"] = field(init=False)  # of the innovations of this window
    taken: Float64[Tensor, " b"] = field(init=False)
    squares: Float64[Tensor, " k"] = field(init=False)  # of whole sums, by band
    sums: Float64[Tensor, " k"] = field(init=False)  # how many

    def __post_init__(self) -> None:
        self.total = self.taken = torch.zeros(self.batch, dtype=torch.float64, device=self.device)
        none = torch.zeros(len(EDGES_M) - 1, dtype=torch.float64, device=self.device)
        self.squares, self.sums = none, none.clone()

    def look(self, look: RangeLook) -> None:
        """Takes one epoch of the altimeter."""
        own = look.own
        z = own.value[:, 0] / own.covariance[:, 0, 0].sqrt()
        there = own.present & z.isfinite()
        self.total = self.total + torch.where(there, z, 0.0)
        self.taken = self.taken + there
        whole = self.taken >= WINDOW
        square = torch.where(whole, self.total.square() / WINDOW, 0.0)
        edges_m = torch.tensor(EDGES_M, dtype=torch.float64).to(self.device)
        band = torch.bucketize(look.alone.range_m, edges_m) - 1
        inside = whole & (band >= 0) & (band < len(self.sums))
        band = torch.where(inside, band, 0)
        self.squares = self.squares.index_add(0, band, torch.where(inside, square, 0.0))
        self.sums = self.sums.index_add(0, band, inside.to(torch.float64))
        self.total = torch.where(whole, 0.0, self.total)
        self.taken = torch.where(whole, 0.0, self.taken)


def whiteness_rows(logs: Sequence[Whiteness], overbound: float, device: str) -> list[Row]:
    """The variance of sums over all heights, and where it is largest."""
    squares = torch.stack([log.squares.cpu() for log in logs]).sum(0)
    sums = torch.stack([log.sums.cpu() for log in logs]).sum(0)
    count = int(sums.sum())
    name, limit = f"nominal: variance of sums of {WINDOW} range innovations", overbound**2
    overall = round(float(squares.sum()) / count, 3) if count else None
    rows = [Row(f"{name}, all heights", overall, "", "white: 1", None, count, device)]
    bands = [
        (float(square / n), int(n), low, high)
        for square, n, (low, high) in zip(squares, sums, pairwise(EDGES_M), strict=True)
        if n >= _LEAST_SUMS
    ]
    if bands:
        worst, n, low, high = max(bands)
        name = f"{name}, where it is largest: {low:g} to {high:g} m"
        rows.append(Row(name, round(worst, 3), "", f"<= {limit:.3g}", worst <= limit, n, device))
    return rows
