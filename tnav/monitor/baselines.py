"""What others watch an altimeter with, behind one interface: a statistic per epoch.

An alarm is a statistic at or over a threshold; which threshold, a false-alarm rate says. None of
them names anybody but the altimeter.

=============== ================================================================================
hard gate       innovation of one range in navigation's own filter, in sigma (HAKUTO-R M1)
timeout         ranges in a row beyond that gate at 3 sigma (a gate that opens again; a reset
                after N is the same alarm)
two sources     one range against what is predicted without any, in sigma: the second source is
                trusted
rate            PX4's consistency of the range with the vertical speed, low-pass filtered
=============== ================================================================================
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.monitor.altimeter_checks import RatioLimits, RatioTest, update_ratio
from tnav.monitor.watch import RangeLook
from tnav.records import AltimeterSpec

NAMES = ("hard gate", "timeout", "two sources", "rate")
_GATE_SIGMA = 3.0
_NEVER = torch.inf


@dataclass(slots=True)
class Baselines:
    """The four, of ``b`` descents, and when each of them first reached each threshold."""

    batch: int
    device: torch.device
    levels: Float64[Tensor, " n"]  # thresholds; a common grid
    first_s: Float64[Tensor, "b k n"] = field(init=False)  # inf: never
    _run: Float64[Tensor, " b"] = field(init=False)
    _ratio: RatioTest = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.batch, len(NAMES), len(self.levels))
        self.levels = self.levels.to(self.device)
        self.first_s = torch.full(shape, _NEVER, dtype=torch.float64, device=self.device)
        self._run = torch.zeros(self.batch, dtype=torch.float64, device=self.device)
        self._ratio = RatioTest.fresh(self.batch, self.device)

    def look(
        self,
        look: RangeLook,
        spec: AltimeterSpec,
        cosine: Float64[Tensor, " b"],
        climb_m_s: Float64[Tensor, " b"],
        climb_sigma_m_s: Float64[Tensor, " b"],
    ) -> None:
        """Takes one epoch.

        Args:
            look: the reading and what was expected of it.
            spec: of the altimeter.
            cosine: of the beam's angle to the vertical, as navigation has it.
            climb_m_s: vertical speed, upward, as navigation has it.
            climb_sigma_m_s: its sigma.
        """
        own, alone = look.own, look.alone
        gate = torch.where(own.present, own.nis.sqrt(), 0.0)
        self._run = torch.where(own.present, (self._run + 1) * (gate >= _GATE_SIGMA), self._run)
        noise_m = spec.noise_sigma_m(alone.range_m)
        there = look.valid & alone.defined
        off = (look.range_m - alone.range_m).abs() / torch.hypot(alone.sigma_m, noise_m)
        off = torch.where(there & off.isfinite(), off, 0.0)
        self._ratio = update_ratio(
            self._ratio,
            look.t_s,
            look.range_m * cosine,
            spec.noise_sigma_m(look.range_m) * cosine,
            climb_m_s,
            climb_sigma_m_s,
            there,
            RatioLimits(),
        )
        rate = torch.where(there, self._ratio.statistic.abs(), 0.0)
        self._reached(look.t_s, torch.stack([gate, self._run, off, rate], 1), look.aloft)

    def _reached(
        self, t_s: float, statistic: Float64[Tensor, "b k"], aloft: Bool[Tensor, " b"]
    ) -> None:
        over = (statistic[:, :, None] >= self.levels) & aloft[:, None, None]
        new = over & self.first_s.isinf()
        self.first_s = torch.where(new, t_s, self.first_s)
