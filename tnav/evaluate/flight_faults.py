"""Faults in a closed-loop descent, put in where truth becomes a reading.

The ground and the map are one fault apart: who flies over ground that lies lower than the map says,
or has a map that lies too high, sees the ground from as much further up. So both move the place
from which a lander looks at the ground, and the ground itself stays as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.evaluate.flight_ground import Exposure, Ranges
from tnav.geometry.moon import up_L
from tnav.simulate.altimeter import Altimeter, noise_sigma_m
from tnav.simulate.fault_bank import FaultBank, advance, before_faults, draw_faults
from tnav.simulate.fault_effects import (
    faulty_contact,
    faulty_fix,
    faulty_increments,
    ground_fall_m,
    map_offset_m,
    not_fused,
    thrust_factor,
)
from tnav.simulate.fault_ranges import BeamTruth, faulty_ranges
from tnav.simulate.faults import Fault
from tnav.simulate.lander import LanderState


@dataclass(frozen=True, slots=True)
class FixEffects:
    """What faults did to the last image."""

    lost: Bool[Tensor, " b"]
    error_L: Float64[Tensor, "b 3"]  # of the camera, m
    map_step_L: Float64[Tensor, "b 3"]  # of map and ground, since the image before


class Injection:
    """The faults of a batch in flight; without any it hands through what it is given."""

    def __init__(
        self, faults: Sequence[Fault], batch: int, seed: int, device: torch.device
    ) -> None:
        """Draws them.

        Args:
            faults: their recipes.
            batch: number of descents.
            seed: of all that is random in them.
            device: of the descents.
        """
        generator = torch.Generator().manual_seed(seed)
        self.bank: FaultBank = draw_faults(faults, batch, generator, device)
        self.state = before_faults(self.bank)
        self._last: tuple[Tensor, Tensor] | None = None  # increments that were read
        self._thrust_scale: Tensor | None = None
        self._looked_L: Tensor | None = None  # offset of the place of each one's last image
        self.fixes: FixEffects | None = None

    @property
    def any(self) -> bool:
        """Whether there is a fault at all."""
        return bool(self.bank.faults)

    def advance(self, t_s: float, agl_m: Float64[Tensor, " b"]) -> None:
        """Faults begin that are due, at these true heights over the ground."""
        self.state = advance(self.bank, self.state, t_s, agl_m)

    def looks_from_L(
        self, t_s: float, position_L: Float64[Tensor, "b 3"]
    ) -> Float64[Tensor, "b 3"]:
        """Places from which the ground looks as it does, were there no fault in it or the map."""
        if not self.any:
            return position_L
        too_high_m, moved_m = map_offset_m(self.bank, self.state, t_s)
        lower_m = ground_fall_m(self.bank, self.state, t_s) + too_high_m
        return position_L + torch.cat([moved_m, lower_m[:, None]], -1)

    def thrust(self, t_s: float, lander: LanderState) -> LanderState:
        """Landers whose engines give what they do now."""
        if not self.any:
            return lander
        if self._thrust_scale is None:
            self._thrust_scale = lander.thrust_scale
        factor = thrust_factor(self.bank, self.state, t_s)
        return replace(lander, thrust_scale=self._thrust_scale * factor)

    def increments(
        self,
        t_s: float,
        dt_s: float,
        delta_v_B: Float64[Tensor, "b 3"],
        delta_theta_B: Float64[Tensor, "b 3"],
    ) -> tuple[Float64[Tensor, "b 3"], Float64[Tensor, "b 3"]]:
        """Increments as navigation has them: the last ones where the unit says that there are none.

        Args:
            t_s: end of the step.
            dt_s: its length.
            delta_v_B: as healthy units read them, m/s.
            delta_theta_B: rad.
        """
        if not self.any:
            return delta_v_B, delta_theta_B
        read_v_B, read_theta_B, present = faulty_increments(
            self.bank, self.state, t_s, dt_s, delta_v_B, delta_theta_B
        )
        if self._last is not None:
            read_v_B = torch.where(present[:, None], read_v_B, self._last[0])
            read_theta_B = torch.where(present[:, None], read_theta_B, self._last[1])
        self._last = read_v_B, read_theta_B
        return read_v_B, read_theta_B

    def ranges(
        self,
        t_s: float,
        range_m: Float64[Tensor, " b"],
        valid: Bool[Tensor, " b"],
        true: Ranges,
        lander: LanderState,
        beam_L: Float64[Tensor, "b 3"],
        altimeter: Altimeter,
    ) -> tuple[Float64[Tensor, " b"], Bool[Tensor, " b"]]:
        """One epoch of the altimeters, from that of healthy ones."""
        if not self.any:
            return range_m, valid
        truth = BeamTruth.along(
            beam_L,
            lander.velocity_L,
            up_L(lander.position_L),
            true.range_m,
            true.incidence_rad,
            noise_sigma_m(altimeter, true.range_m, true.incidence_rad),
        )
        self.state, range_m, valid = faulty_ranges(
            self.bank, self.state, t_s, range_m, valid, truth
        )
        return range_m, valid

    def fused(self, t_s: float, valid: Bool[Tensor, " b"]) -> Bool[Tensor, " b"]:
        """Ranges that navigation is given, of those that are valid."""
        if not self.any:
            return valid
        return valid & ~not_fused(self.bank, self.state, t_s)

    def exposure(
        self,
        t_s: float,
        exposure: Exposure,
        seen_from_L: Float64[Tensor, "b 3"],
        offset_L: Float64[Tensor, "b 3"],
        agl_m: Float64[Tensor, " b"],
    ) -> Exposure:
        """What cameras with these faults say.

        Args:
            t_s: of the exposure.
            exposure: of healthy cameras.
            seen_from_L: places that are seen, from which errors of fixes count.
            offset_L: of these from the true ones.
            agl_m: true heights over the ground.
        """
        if not self.any:
            return exposure
        found = faulty_fix(self.bank, self.state, t_s, agl_m)
        error_L = found.error_scale[:, None] * (exposure.fix.position_L - seen_from_L)
        fix = replace(exposure.fix, position_L=seen_from_L + error_L + found.offset_L)
        error_L = fix.position_L - exposure.fix.position_L
        looked_L = torch.zeros_like(offset_L) if self._looked_L is None else self._looked_L
        step_L, kept = offset_L - looked_L, exposure.available & ~found.lost
        self._looked_L = torch.where(kept[:, None], offset_L, looked_L)
        self.fixes = FixEffects(found.lost, error_L, step_L)
        return replace(exposure, fix=fix, available=exposure.available & ~found.lost)

    def contact(self, t_s: float, contact: Bool[Tensor, " b"]) -> Bool[Tensor, " b"]:
        """What touchdown switches say."""
        return faulty_contact(self.bank, self.state, t_s, contact) if self.any else contact
