"""What a healthy laser altimeter reads of the truth, for ``b`` descents.

A reading is::

    z = (1 + s) r + b + n,    n ~ N(0, s0^2 + (k r)^2 + (theta r tan i)^2)

r is the range along the true beam and i its angle of incidence on the ground. Scale s, bias b and
the beam's misalignment are drawn once a descent. The last term is the spread of the echo over a
tilted footprint of half-angle theta (Gardner 1992, "Ranging performance of satellite laser
altimeters", IEEE TGRS 30, 1061-1072: rms width of the echo).

A range is detected with a probability that is a logistic function of the received power in
decibels. Ground that holds the whole footprint returns, by the same paper and Lambert's law::

    P ~ albedo cos(i) / r^2

so that doubling the range costs 6.02 dB. The maker promises ``detection_probability`` up to
``range_max_m``, on ground of ``reference_albedo`` tilted by up to ``incidence_max_deg``: the
promise is met exactly in that corner, and exceeded on level ground. Speed has no effect.

Nominal laser range finders lie within: s0 0.1 to 1 m, k 0.05 to 0.5 %, 1 to 20 Hz, latency 10 to
100 ms, boresight error 0.05 to 0.5 deg (general knowledge, traced to no data sheet). Albedo,
divergence and resolution are this project's choice. Bias and scale are zero unless given: those of
0.1 to 10 % and 5 m or more are faults.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from pydantic import Field
from torch import Tensor

from tnav.config import Recipe
from tnav.geometry.pose import so3_exp
from tnav.records import AltimeterSpec
from tnav.simulate.descent import Trajectory
from tnav.simulate.instruments import Direction, epochs_s
from tnav.terrain.heightfield import Terrain
from tnav.terrain.raycast import cast

_LOGISTIC_10_TO_90 = 2 * math.log(9)  # width from 10 to 90 % over the scale of a logistic curve
_GRAZING_RAD = math.radians(89.0)  # the tangent of a steeper incidence is no spread of an echo


class Altimeter(Recipe):
    """Laser altimeter along a body axis, and how far its maker promises that it ranges."""

    boresight_B: Direction = (0.0, 0.0, -1.0)
    misalignment_deg: float = Field(default=0.05, ge=0)  # 1 sigma an axis, unknown to navigation
    range_max_m: float = Field(default=3000.0, gt=0)
    detection_probability: float = Field(default=0.99, gt=0.5, lt=1)
    incidence_max_deg: float = Field(default=30.0, gt=0, lt=90)
    reference_albedo: float = Field(default=0.12, gt=0, le=1)  # of the ground of the promise
    noise_floor_m: float = Field(default=0.3, gt=0)
    noise_fraction: float = Field(default=0.001, ge=0)
    rate_hz: float = Field(default=10.0, gt=0)
    # Detection fades from 90 to 10 % over this: the slope of the logistic curve at range_max_m.
    range_edge_m: float = Field(default=200.0, gt=0)
    divergence_rad: float = Field(default=5e-4, ge=0, lt=0.1)  # half-angle of the beam, 1 sigma
    resolution_m: float = Field(default=0.1, ge=0)  # ranges are multiples of it; 0: any value
    latency_s: float = Field(default=0.05, ge=0)  # a range of time t is delivered at t + this
    scale_sigma: float = Field(default=0.0, ge=0, lt=0.1)  # 1e-3 is 0.1 % of the range
    bias_sigma_m: float = Field(default=0.0, ge=0)

    def spec(self) -> AltimeterSpec:
        """The promise, without what only truth knows."""
        return AltimeterSpec(
            boresight_B=self.boresight_B,
            range_max_m=self.range_max_m,
            detection_probability=self.detection_probability,
            incidence_max_deg=self.incidence_max_deg,
            noise_floor_m=self.noise_floor_m,
            noise_fraction=self.noise_fraction,
            rate_hz=self.rate_hz,
        )


@dataclass(frozen=True, slots=True)
class AltimeterErrors:
    """What is wrong with the altimeters of ``b`` descents, besides noise."""

    beam_B: Float64[Tensor, "b 3"]  # unit vectors: the boresight, misaligned
    scale: Float64[Tensor, " b"]  # of the range; 0 is perfect
    bias_m: Float64[Tensor, " b"]

    def to(self, device: torch.device | str) -> "AltimeterErrors":
        """The same errors on another device."""
        return AltimeterErrors(
            self.beam_B.to(device), self.scale.to(device), self.bias_m.to(device)
        )


@dataclass(frozen=True, slots=True)
class AltimeterLog:
    """Readings of one altimeter, before its fault, with the true range."""

    t_s: Float64[Tensor, " n"]  # epochs: the geometry is of these times
    delivered_s: Float64[Tensor, " n"]  # when navigation is given them
    true_range_m: Float64[Tensor, " n"]
    range_m: Float64[Tensor, " n"]
    valid: Bool[Tensor, " n"]


def draw_altimeter(altimeter: Altimeter, batch: int, generator: torch.Generator) -> AltimeterErrors:
    """Errors of the altimeters of a batch of descents; one whose sigma is zero draws nothing.

    Args:
        altimeter: the recipe.
        batch: number of descents.
        generator: of the altimeters' errors, on the CPU.

    Returns:
        The errors, on the CPU: move them once, with ``to``, to where descents are flown.
    """
    # Misalignment stays in single precision: a seed means the same flight as it always did.
    tilt = torch.randn(batch, 3, generator=generator).double()
    boresight_B = torch.tensor(altimeter.boresight_B, dtype=torch.float64)
    scale, bias_m = torch.zeros(2, batch, dtype=torch.float64)
    if altimeter.scale_sigma > 0:
        drawn = torch.randn(batch, generator=generator, dtype=torch.float64)
        scale = altimeter.scale_sigma * drawn
    if altimeter.bias_sigma_m > 0:
        drawn = torch.randn(batch, generator=generator, dtype=torch.float64)
        bias_m = altimeter.bias_sigma_m * drawn
    beam_B = so3_exp(math.radians(altimeter.misalignment_deg) * tilt) @ boresight_B
    return AltimeterErrors(beam_B, scale, bias_m)


def beam_L(errors: AltimeterErrors, R_L_B: Float64[Tensor, "b 3 3"]) -> Float64[Tensor, "b 3"]:
    """Unit vectors along which the altimeters truly look."""
    return (R_L_B @ errors.beam_B[..., None])[..., 0]


def incidence_of(
    direction_L: Float64[Tensor, "b 3"], normal_L: Float64[Tensor, "b 3"]
) -> Float64[Tensor, " b"]:
    """Angle in rad between reversed beams and the ground's upward normals, both unit vectors."""
    return torch.acos(-(direction_L * normal_L).sum(-1).clamp(-1.0, 1.0))


def link_margin_db(
    altimeter: Altimeter,
    range_m: Float64[Tensor, " b"],
    incidence_rad: Float64[Tensor, " b"],
    albedo: Float64[Tensor, " b"] | None = None,
) -> Float64[Tensor, " b"]:
    """Received power over that in the corner of the promise, dB; -inf from beyond grazing.

    Args:
        altimeter: the recipe.
        range_m: true ranges.
        incidence_rad: of the beam on the ground.
        albedo: of the ground, as ``reference_albedo`` is counted; None: just that.
    """
    power = incidence_rad.cos().clamp_min(0.0) * (altimeter.range_max_m / range_m).square()
    if albedo is not None:
        power = power * albedo / altimeter.reference_albedo
    return 10 * (power / math.cos(math.radians(altimeter.incidence_max_deg))).log10()


def detection_chance(
    altimeter: Altimeter,
    range_m: Float64[Tensor, " b"],
    incidence_rad: Float64[Tensor, " b"],
    albedo: Float64[Tensor, " b"] | None = None,
) -> Float64[Tensor, " b"]:
    """Probability that a range is detected; arguments as of ``link_margin_db``."""
    promised = altimeter.detection_probability
    # Decibels by range: d(20 log10 r) / dr = 20 / (r ln 10).
    edge_db = 20 / math.log(10) * altimeter.range_edge_m / altimeter.range_max_m
    margin_db = link_margin_db(altimeter, range_m, incidence_rad, albedo)
    odds = math.log(promised / (1 - promised))
    return torch.sigmoid(odds + margin_db * _LOGISTIC_10_TO_90 / edge_db)


def noise_sigma_m(
    altimeter: Altimeter, range_m: Float64[Tensor, " b"], incidence_rad: Float64[Tensor, " b"]
) -> Float64[Tensor, " b"]:
    """1-sigma noise of a range, the slope's share included."""
    slope = range_m * altimeter.divergence_rad * incidence_rad.clamp_max(_GRAZING_RAD).tan()
    return torch.hypot(altimeter.spec().noise_sigma_m(range_m), slope)


def read_ranges(
    altimeter: Altimeter,
    errors: AltimeterErrors,
    true_range_m: Float64[Tensor, " b"],
    incidence_rad: Float64[Tensor, " b"],
    hit: Bool[Tensor, " b"],
    generator: torch.Generator,
    albedo: Float64[Tensor, " b"] | None = None,
) -> tuple[Float64[Tensor, " b"], Bool[Tensor, " b"]]:
    """One epoch of the altimeters. Its ranges are delivered ``altimeter.latency_s`` later.

    Args:
        altimeter: the recipe.
        errors: of these descents, on their device.
        true_range_m: along the true beams; may be anything where ``hit`` is false.
        incidence_rad: of the true beams on the ground.
        hit: the beam meets ground.
        generator: of noise and detection, on the CPU.
        albedo: of the ground, as ``reference_albedo`` is counted; None: just that.

    Returns:
        Ranges in m, which mean nothing where they are not valid, and where they are valid.
    """
    device, shape = true_range_m.device, true_range_m.shape
    noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(device)
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64).to(device)
    noise_m = noise_sigma_m(altimeter, true_range_m, incidence_rad) * noise
    range_m = (1 + errors.scale) * true_range_m + errors.bias_m + noise_m
    if altimeter.resolution_m > 0:
        range_m = (range_m / altimeter.resolution_m).round() * altimeter.resolution_m
    return range_m, hit & (drawn < detection_chance(altimeter, true_range_m, incidence_rad, albedo))


def read_altimeter(
    altimeter: Altimeter, trajectory: Trajectory, truth: Terrain, seed: int
) -> AltimeterLog:
    """Ranges of one healthy altimeter at its own rate over a whole flight, all in one cast.

    Args:
        altimeter: the instrument.
        trajectory: where it is.
        truth: the ground, on any device; its albedo is the reference.
        seed: of misalignment, noise and detection.
    """
    generator = torch.Generator().manual_seed(seed)
    t_s = epochs_s(trajectory, altimeter.rate_hz)
    index = [trajectory.index_at(float(t)) for t in t_s]
    errors = draw_altimeter(altimeter, 1, generator)
    direction_L = beam_L(errors, trajectory.R_L_B[index])
    origin_L = trajectory.position_L[index]
    hits = cast(truth, origin_L.to(truth.device), direction_L.to(truth.device))
    true_range_m, hit = hits.range_m.cpu(), hits.hit.cpu()
    incidence_rad = incidence_of(direction_L, hits.normal_L.cpu())
    range_m, valid = read_ranges(altimeter, errors, true_range_m, incidence_rad, hit, generator)
    return AltimeterLog(t_s, t_s + altimeter.latency_s, true_range_m, range_m, valid)
