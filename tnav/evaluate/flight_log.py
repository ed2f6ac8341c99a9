"""What a batch of closed-loop descents leaves: errors at set heights, innovations, touchdowns.

Whole histories of thousands of descents would fill a disk and answer no more: chi-square bounds
want one draw a descent. So each descent is looked at once where it first comes below each of
``EDGES_M``, and each sensor at its first word after that. One descent can be kept whole.
"""

from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from tnav.evaluate.flight_ground import Exposure
from tnav.geometry.moon import altitude_m, up_L
from tnav.geometry.pose import so3_log
from tnav.navigate.mechanisation import ATTITUDE
from tnav.navigate.state import SENSORS, FilterState, core_sigma
from tnav.records import Innovation, Sensor
from tnav.simulate.lander import LanderState

# Heights over the site's ground at which errors are looked at, and where bands of altitude begin.
EDGES_M = (15_000.0, 10_000.0, 7_000.0, 4_000.0, 2_000.0, 1_000.0, 500.0, 200.0, 50.0)
_NAVIGATED = ATTITUDE.stop  # position, velocity and attitude

Record = TypeVar("Record", LanderState, FilterState)


@dataclass(frozen=True, slots=True)
class Contact:
    """Touchdowns of a batch; NaN where a descent was still in the air at the end."""

    t_s: Float64[Tensor, " b"]
    down_m_s: Float64[Tensor, " b"]
    horizontal_m_s: Float64[Tensor, " b"]
    miss_m: Float64[Tensor, " b"]
    agl_error_m: Float64[Tensor, " b"]  # of navigation, over the ground
    agl_sigma_m: Float64[Tensor, " b"]
    position_error_L: Float64[Tensor, "b 3"]
    velocity_error_L: Float64[Tensor, "b 3"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment of the descent that is kept whole, on the host."""

    t_s: float
    lander: LanderState
    state: FilterState
    sigma: Float64[Tensor, "1 26"]
    phase: Int64[Tensor, "1"]
    agl_m: Float64[Tensor, "1"]
    agl_nav_m: Float64[Tensor, "1"]


@dataclass(slots=True)
class Tally:
    """NIS of one sensor: the first in each band for each descent, and of all of them."""

    first: Float64[Tensor, "b k"]
    total: Float64[Tensor, " k"]
    count: Float64[Tensor, " k"]
    rejected: Float64[Tensor, " b"]


@dataclass(slots=True)
class FlightLog:
    """Filled while a batch flies; tensors stay on its device."""

    batch: int
    device: torch.device
    keep: int | None
    band: Int64[Tensor, " b"] = field(init=False)  # edges that were passed
    error: Float64[Tensor, "b k 9"] = field(init=False)  # true minus estimate
    covariance: Float64[Tensor, "b k 9 9"] = field(init=False)
    agl_m: Float64[Tensor, "b k"] = field(init=False)
    agl_error_m: Float64[Tensor, "b k"] = field(init=False)
    agl_sigma_m: Float64[Tensor, "b k"] = field(init=False)
    tallies: dict[Sensor, Tally] = field(init=False)
    degrees: dict[Sensor, int] = field(default_factory=dict)
    contact: Contact = field(init=False)
    exposures: Float64[Tensor, " b"] = field(init=False)  # images asked for and answered
    fixes: Float64[Tensor, " b"] = field(init=False)
    samples: list[Sample] = field(default_factory=list)
    innovations: list[Innovation] = field(default_factory=list)
    propellant_kg: Float64[Tensor, " b"] = field(init=False)
    landed: Bool[Tensor, " b"] = field(init=False)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        b, k, device = self.batch, len(EDGES_M), self.device

        def empty(*shape: int) -> Tensor:
            return torch.full(shape, torch.nan, dtype=torch.float64, device=device)

        self.band = torch.zeros(b, dtype=torch.int64, device=device)
        self.error, self.covariance = empty(b, k, _NAVIGATED), empty(b, k, _NAVIGATED, _NAVIGATED)
        self.agl_m, self.agl_error_m, self.agl_sigma_m = empty(b, k), empty(b, k), empty(b, k)
        none = torch.zeros(k, dtype=torch.float64, device=device)
        self.exposures = torch.zeros(b, dtype=torch.float64, device=device)
        self.fixes = torch.zeros_like(self.exposures)
        self.tallies = {
            sensor: Tally(empty(b, k), none, none, torch.zeros_like(self.exposures))
            for sensor in SENSORS
        }
        one = empty(b)
        self.contact = Contact(one, one, one, one, one, one, empty(b, 3), empty(b, 3))

    def snapshot(
        self,
        lander: LanderState,
        state: FilterState,
        height_m: Float64[Tensor, " b"],
        agl_m: Float64[Tensor, " b"],
        agl_nav_m: Float64[Tensor, " b"],
        agl_sigma_m: Float64[Tensor, " b"],
    ) -> None:
        """Keeps the errors of descents that came below an edge since the last call.

        Args:
            height_m: over the site, which says when.
            agl_m: over the true ground; NaN where that is not modelled.
        """
        edges = torch.tensor(EDGES_M, dtype=torch.float64).to(self.device)
        band = torch.maximum(self.band, (height_m[:, None] < edges).sum(-1))
        number = torch.arange(len(EDGES_M)).to(self.device)
        # One that falls past two edges between two looks is looked at once, for the lower one.
        crossed = (band > self.band)[:, None] & (number == band[:, None] - 1)
        self.band = band
        error = torch.cat(
            [
                lander.position_L - state.position_L,
                lander.velocity_L - state.velocity_L,
                so3_log(lander.R_L_B @ state.R_L_B.mT),
            ],
            -1,
        )
        P = state.covariance[:, :_NAVIGATED, :_NAVIGATED]
        self.error = torch.where(crossed[..., None], error[:, None], self.error)
        self.covariance = torch.where(crossed[..., None, None], P[:, None], self.covariance)
        self.agl_m = torch.where(crossed, agl_m[:, None], self.agl_m)
        self.agl_error_m = torch.where(crossed, (agl_nav_m - agl_m)[:, None], self.agl_error_m)
        self.agl_sigma_m = torch.where(crossed, agl_sigma_m[:, None], self.agl_sigma_m)

    def innovation(self, innovation: Innovation, lander: LanderState) -> None:
        """Counts the normalised innovations of descents in the air."""
        tally = self.tallies[innovation.sensor]
        self.degrees[innovation.sensor] = innovation.value.shape[-1]
        there = innovation.present & ~lander.landed
        number = torch.arange(len(EDGES_M)).to(self.device)
        now = there[:, None] & (number == self.band[:, None] - 1)
        nis = torch.where(there, innovation.nis, 0.0)
        tally.first = torch.where(now & tally.first.isnan(), nis[:, None], tally.first)
        tally.total = tally.total + (now * nis[:, None]).sum(0)
        tally.count = tally.count + now.sum(0)
        tally.rejected = tally.rejected + (there & ~innovation.fused & (self.band > 0))
        if self.keep is not None:
            self.innovations.append(_one(innovation, there, self.keep))

    def exposure(self, exposure: Exposure, wanted: Bool[Tensor, " b"]) -> None:
        """Counts images that were wanted, and those that gave a fix."""
        self.exposures = self.exposures + wanted
        self.fixes = self.fixes + (wanted & exposure.available)

    def touchdown(
        self,
        just: Bool[Tensor, " b"],
        lander: LanderState,
        state: FilterState,
        agl_error_m: Float64[Tensor, " b"],
        agl_sigma_m: Float64[Tensor, " b"],
    ) -> None:
        """Keeps the contact of descents that touched the ground just now."""
        up, old = up_L(lander.position_L), self.contact
        rise = (lander.velocity_L * up).sum(-1)
        level = lander.velocity_L - rise[:, None] * up
        one, three = just, just[:, None]
        time_s = torch.full_like(rise, lander.t_s)
        self.contact = Contact(
            t_s=torch.where(one, time_s, old.t_s),
            down_m_s=torch.where(one, -rise, old.down_m_s),
            horizontal_m_s=torch.where(one, level.norm(dim=-1), old.horizontal_m_s),
            miss_m=torch.where(one, lander.position_L[:, :2].norm(dim=-1), old.miss_m),
            agl_error_m=torch.where(one, agl_error_m, old.agl_error_m),
            agl_sigma_m=torch.where(one, agl_sigma_m, old.agl_sigma_m),
            position_error_L=torch.where(
                three, state.position_L - lander.position_L, old.position_error_L
            ),
            velocity_error_L=torch.where(
                three, state.velocity_L - lander.velocity_L, old.velocity_error_L
            ),
        )

    def history(
        self,
        lander: LanderState,
        state: FilterState,
        phase: Int64[Tensor, " b"],
        agl_m: Float64[Tensor, " b"],
        agl_nav_m: Float64[Tensor, " b"],
    ) -> None:
        """Keeps this moment of the descent that is kept whole; the host waits for the device."""
        assert self.keep is not None
        lane = slice(self.keep, self.keep + 1)
        self.samples.append(
            Sample(
                lander.t_s,
                _lane(lander, self.keep),
                _lane(state, self.keep),
                core_sigma(state)[lane].cpu(),
                phase[lane].cpu(),
                agl_m[lane].cpu(),
                agl_nav_m[lane].cpu(),
            )
        )

    def finish(self, lander: LanderState, seconds: float) -> None:
        """Keeps how the descents ended."""
        self.propellant_kg, self.landed, self.seconds = (
            lander.propellant_kg,
            lander.landed,
            seconds,
        )


def normalised2(
    error: Float64[Tensor, "*b m"], covariance: Float64[Tensor, "*b m m"]
) -> Float64[Tensor, "*b"]:
    """e^T P^-1 e (NEES); NaN where there is no error."""
    factor = torch.linalg.cholesky_ex(covariance).L
    white = torch.linalg.solve_triangular(factor, error[..., None], upper=False)
    return white.square().sum((-1, -2))


def height_over_site_m(lander: LanderState, site_z_m: float) -> Float64[Tensor, " b"]:
    """Altitude less that of the site's ground."""
    return altitude_m(lander.position_L) - site_z_m


def _one(innovation: Innovation, there: Bool[Tensor, " b"], lane: int) -> Innovation:
    one = slice(lane, lane + 1)
    return Innovation(
        innovation.t_s,
        innovation.sensor,
        innovation.value[one].cpu(),
        innovation.covariance[one].cpu(),
        innovation.nis[one].cpu(),
        there[one].cpu(),
        (there & innovation.fused)[one].cpu(),
    )


def _lane(record: Record, lane: int) -> Record:
    """One descent of a record, on the host."""
    one = slice(lane, lane + 1)
    values = {name: getattr(record, name) for name in record.__slots__}
    kept: dict[str, Any] = {n: v[one].cpu() for n, v in values.items() if isinstance(v, Tensor)}
    return replace(record, **kept)
