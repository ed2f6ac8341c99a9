"""The Stanford diagram of heights: errors against protection levels, both by their alert limit.

Walter, Hansen and Enge (2001). The limit changes along a descent, so both axes are shares of it:
over 1 across is an error that may no longer be, over 1 upward a level that says so. Looks after the
first alert, or past the point of no return, are not in use, and not drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.evaluate.limits import Row
from tnav.evaluate.relief_charts import Chart
from tnav.monitor.integrity import Stanford

# Powers of ten of a share of the alert limit; what lies beyond is counted at the edge.
LOW, HIGH, PER_DECADE = -5, 1, 8
BINS = (HIGH - LOW) * PER_DECADE


@dataclass(slots=True)
class Tally:
    """Looks by error (first axis) and protection level; filled while a batch flies."""

    device: torch.device
    counts: Float64[Tensor, "e p"] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = torch.zeros(BINS, BINS, dtype=torch.float64, device=self.device)

    def look(
        self,
        error_m: Float64[Tensor, " b"],
        protection_m: Float64[Tensor, " b"],
        limit_m: Float64[Tensor, " b"],
        use: Bool[Tensor, " b"],
    ) -> None:
        """Takes one moment, of the descents where it is of use."""
        drawn = use & error_m.isfinite() & protection_m.isfinite() & (limit_m > 0)
        place = _bin(error_m.abs() / limit_m) * BINS + _bin(protection_m / limit_m)
        flat = self.counts.flatten()
        self.counts = flat.index_add(
            0, torch.where(drawn, place, 0), drawn.to(torch.float64)
        ).view_as(self.counts)


def _bin(share: Float64[Tensor, " b"]) -> Tensor:
    power = share.clamp_min(1e-300).log10()
    index = ((power - LOW) * PER_DECADE).floor().nan_to_num(nan=0.0, posinf=BINS, neginf=0.0)
    return index.clamp(0, BINS - 1).to(torch.int64)


@dataclass(slots=True)
class Diagram:
    """Looks of many batches, on the host."""

    classes: Float64[Tensor, "4"] = field(
        default_factory=lambda: torch.zeros(len(Stanford), dtype=torch.float64)
    )
    counts: Float64[Tensor, "e p"] = field(
        default_factory=lambda: torch.zeros(BINS, BINS, dtype=torch.float64)
    )

    def add(self, logs: Sequence[tuple[Tensor, Tally]]) -> None:
        """Takes classes of looks by descent, and their tally, of each batch."""
        for looks, tally in logs:
            self.classes = self.classes + looks.sum(0).cpu()
            self.counts = self.counts + tally.counts.cpu()

    def rows(self, device: str) -> list[Row]:
        """How many looks of each class there are."""
        total = int(self.classes.sum())
        return [
            Row(f"Stanford: {which.name.lower()}", int(self.classes[which]), "looks", None, None,
                total, device)
            for which in Stanford
        ]  # fmt: skip

    def chart(self) -> Chart:
        """For the page: counts by row of protection levels, and the edges' powers of ten."""
        return {
            "classes": {w.name.lower(): int(self.classes[w]) for w in Stanford},
            "power": [LOW + (k + 0.5) / PER_DECADE for k in range(BINS)],
            "counts": self.counts.T.to(torch.int64).tolist(),
        }
