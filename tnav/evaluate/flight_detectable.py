"""Which faults are larger than the least that can be detected, and are so in time.

A bias b of a test statistic of unit variance is found with the probability p at the threshold K
where ``b >= K + Q^-1(1 - p)``: the minimum detectable bias (Baarda 1968). Here in truth, beside
the monitor:

- ranges: the error of each of the last w of them, to one side, against ``(K_fa + K_md) sqrt(s^2 +
  n^2 / w)``, s of what is predicted without altimeter, n of its noise (the separation of
  `tnav.monitor.watch`, a mean over w);
- absent ranges and fixes: as many in a row, where they are promised, as their CUSUM takes;
- fixes: their error on any axis against ``(K + K_md)`` sigma of their innovation, K of the gate
  count, for as many images as the count takes;
- a map: what its offset adds since the last image, against the same for one image;
- engines: against what healthy ones differ by (`bench_monitor`).

What counts must be so before the point of no return.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from tnav.evaluate.flight_ground import Ranges
from tnav.monitor.bounds import upper_quantile
from tnav.monitor.detectors import pushed
from tnav.monitor.watch import WatchSetup
from tnav.records import RangePrediction

DETECTED = 0.99  # of faults of the least size, to be detected
_K_MD = upper_quantile(1 - DETECTED)
_UP = 2


@dataclass(frozen=True, slots=True)
class Readings:
    """Ranges of one epoch."""

    range_m: Float64[Tensor, " b"]
    valid: Bool[Tensor, " b"]


def least_error(k: float) -> float:
    """Sigmas of an error that a test with the threshold k finds (Baarda 1968)."""
    return k + _K_MD


def misses_needed(level: float, missed: float) -> int:
    """Misses in a row that bring a CUSUM from zero to its level."""
    return math.ceil(level / missed)


@dataclass(slots=True)
class Detectable:
    """Filled while a batch flies; tensors stay on its device."""

    setup: WatchSetup
    batch: int
    device: torch.device
    exceeded: Bool[Tensor, " b"] = field(init=False)  # its fault was larger, in time
    wrong_s: Float64[Tensor, " b"] = field(init=False)  # first range with an error; NaN before
    wrong_sigma_m: Float64[Tensor, " b"] = field(init=False)  # of the mean of ranges, then
    _error_sigma: Float64[Tensor, "b w"] = field(init=False)
    _taken: Int64[Tensor, " b"] = field(init=False)
    _missed: Int64[Tensor, " b"] = field(init=False)  # ranges in a row
    _lost: Int64[Tensor, " b"] = field(init=False)  # fixes in a row
    _wrong: Int64[Tensor, " b"] = field(init=False)  # fixes, of all

    def __post_init__(self) -> None:
        window = self.setup.tuning.kinematic_window
        self.exceeded = torch.zeros(self.batch, dtype=torch.bool, device=self.device)
        never = torch.full((self.batch,), math.nan, dtype=torch.float64, device=self.device)
        self.wrong_s = self.wrong_sigma_m = never
        none = self.exceeded.to(torch.int64)
        self._taken = self._missed = self._lost = self._wrong = none
        self._error_sigma = torch.zeros(self.batch, window, dtype=torch.float64, device=self.device)

    def ranges(
        self,
        healthy: Readings,
        read: Readings,
        true: Ranges,
        alone: RangePrediction,
        in_time: Bool[Tensor, " b"],
    ) -> None:
        """Takes one epoch of the altimeter.

        Args:
            healthy: as it would be without faults, of the same noise.
            read: as it is.
            true: of the beam.
            alone: what is predicted without altimeter.
            in_time: who can still stop before the ground.
        """
        spec, limits, window = self.setup.spec, self.setup.thresholds, self._error_sigma.shape[1]
        noise_m = spec.noise_sigma_m(true.range_m)
        sigma_m = (alone.sigma_m.square() + noise_m.square() / window).sqrt()
        there = healthy.valid & read.valid & sigma_m.isfinite()
        error = torch.where(there, (read.range_m - healthy.range_m) / sigma_m, 0.0)
        first = there & (error != 0) & self.wrong_s.isnan()
        self.wrong_s = torch.where(first, alone.t_s, self.wrong_s)
        self.wrong_sigma_m = torch.where(first, sigma_m, self.wrong_sigma_m)
        self._error_sigma = pushed(self._error_sigma, error, there)
        self._taken = (self._taken + there.to(torch.int64)).clamp_max(window)
        k_fa = self.setup.multipliers.false_alarm[_UP]
        least = least_error(k_fa)
        off = (self._error_sigma >= least).all(1) | (self._error_sigma <= -least).all(1)
        off = there & off & (self._taken == window)
        steepest_deg = true.incidence_rad.rad2deg() + self.setup.incidence_margin_deg
        promised = true.hit & (true.range_m < spec.range_max_m)
        promised = promised & (steepest_deg < spec.incidence_max_deg)
        missed = promised & healthy.valid & ~read.valid
        # A chance miss of a healthy altimeter neither counts nor ends the row.
        told = promised & (healthy.valid | read.valid)
        self._missed = torch.where(told, (self._missed + 1) * missed, self._missed)
        absence = limits.absence
        gone = self._missed >= misses_needed(absence.level, absence.missed)
        self.exceeded = self.exceeded | (in_time & (off | gone))

    def fixes(
        self,
        error_L: Float64[Tensor, "b 3"],
        map_step_L: Float64[Tensor, "b 3"],
        sigma_m: Float64[Tensor, "b 3"],
        lost: Bool[Tensor, " b"],
        imaged: Bool[Tensor, " b"],
        in_time: Bool[Tensor, " b"],
    ) -> None:
        """Takes one image.

        Args:
            error_L: what a fault of the camera adds to its fix, m.
            map_step_L: what a fault of the map adds, since the last image.
            sigma_m: of the fix's innovation.
            lost: whose fix a fault takes.
            imaged: who took an image.
            in_time: who can still stop before the ground.
        """
        limits = self.setup.thresholds
        k = math.sqrt(limits.vision.count.gate)
        self._lost = torch.where(imaged, (self._lost + 1) * lost, self._lost)
        worst = (error_L / sigma_m).abs().amax(1)
        wrong = imaged & ~lost & (worst >= least_error(k))
        stepped = imaged & ((map_step_L / sigma_m).abs().amax(1) >= least_error(k))
        self._wrong = self._wrong + wrong.to(torch.int64)
        blindness = limits.blindness
        blind = self._lost >= misses_needed(blindness.level, blindness.missed)
        off = self._wrong >= limits.vision.count.count
        self.exceeded = self.exceeded | (in_time & (blind | off | stepped))
