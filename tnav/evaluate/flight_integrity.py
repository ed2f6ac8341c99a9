"""What the monitor of a closed-loop descent was worth, against the truth: alerts and Stanford.

Looked at twice a second where true heights are known. The alert limit is the height that is left
over the way that stopping takes (``tnav.monitor.integrity.alert_limit``), at the lander's thrust.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.evaluate.stanford import Tally
from tnav.monitor.integrity import Stanford, alert_limit, stanford
from tnav.monitor.watch import Watch
from tnav.simulate.lander import Lander, LanderState

_GRAVITY_M_S2 = 1.62


@dataclass(slots=True)
class IntegrityLog:
    """Filled while a batch flies; tensors stay on its device."""

    batch: int
    device: torch.device
    looks: Float64[Tensor, "b 4"] = field(init=False)  # of each class of `Stanford`
    beside: Float64[Tensor, " b"] = field(init=False)  # with a place off by more than its level ...
    placed: Float64[Tensor, " b"] = field(init=False)  # ... of those without an alert
    alert_limit_m: Float64[Tensor, " b"] = field(init=False)  # at the alert; NaN without
    alert_agl_m: Float64[Tensor, " b"] = field(init=False)
    alert_margin_s: Float64[Tensor, " b"] = field(init=False)  # until the point of no return
    no_return_s: Float64[Tensor, " b"] = field(init=False)  # first time too low to stop; inf: none
    seen: Bool[Tensor, " b"] = field(init=False)
    tally: Tally = field(init=False)

    def __post_init__(self) -> None:
        self.looks = torch.zeros(self.batch, len(Stanford), dtype=torch.float64, device=self.device)
        never = torch.full((self.batch,), math.nan, dtype=torch.float64, device=self.device)
        self.alert_limit_m = self.alert_agl_m = self.alert_margin_s = never
        self.seen = torch.zeros(self.batch, dtype=torch.bool, device=self.device)
        self.no_return_s = torch.full_like(never, math.inf)
        self.tally = Tally(self.device)
        self.beside = self.placed = torch.zeros_like(never)

    @property
    def in_time(self) -> Bool[Tensor, " b"]:
        """Who could still stop before the ground at the last look."""
        return self.no_return_s.isinf()

    def look(
        self,
        lander: Lander,
        state: LanderState,
        agl_m: Float64[Tensor, " b"],
        agl_error_m: Float64[Tensor, " b"],
        watch: Watch,
        across: tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]],
    ) -> None:
        """Takes one moment.

        Args:
            lander: for its thrust.
            state: the truth.
            agl_m: true height over the ground; NaN where it is not known.
            agl_error_m: of navigation.
            watch: what the monitor says.
            across: horizontal error of navigation, and its protection level, m.
        """
        mass_kg = lander.dry_mass_kg + state.propellant_kg
        net_m_s2 = lander.thrust_max_n * state.thrust_scale / mass_kg - _GRAVITY_M_S2
        net_m_s2 = torch.where(state.propellant_kg > 0, net_m_s2, -_GRAVITY_M_S2)
        limit = alert_limit(agl_m, -state.velocity_L[:, 2], net_m_s2)
        flown = agl_m.isfinite() & ~state.landed
        alert = watch.alert_s.isfinite()
        usable = watch.protection_m.isfinite() & flown
        classes = stanford(agl_error_m, watch.protection_m, limit.limit_m, alert)
        one = torch.nn.functional.one_hot(classes, len(Stanford)) * usable[:, None]
        self.looks = self.looks + one
        self.tally.look(agl_error_m, watch.protection_m, limit.limit_m, usable & ~alert)
        placed = usable & ~alert
        self.placed = self.placed + placed
        self.beside = self.beside + (placed & (across[0] > across[1]))
        too_low = flown & (limit.limit_m <= 0)
        self.no_return_s = torch.where(too_low & self.in_time, state.t_s, self.no_return_s)
        first = alert & ~self.seen & flown
        self.seen = self.seen | alert
        self.alert_limit_m = torch.where(first, limit.limit_m, self.alert_limit_m)
        self.alert_agl_m = torch.where(first, agl_m, self.alert_agl_m)
        self.alert_margin_s = torch.where(first, limit.time_to_alert_s, self.alert_margin_s)
