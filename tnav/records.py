"""What passes between stages: frozen records of tensors, with their shapes, units and frames.

Batches come first (``b`` frames, ``n`` matches). Missing is a mask or ``None``, never 0.
"""

from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, Int32
from torch import Tensor

from tnav.geometry.pose import Pose


@dataclass(frozen=True, slots=True)
class SurfaceTruth:
    """Photometry of the ground at every pixel's centre; NaN (level: -1) where not hit."""

    normal_L: Float32[Tensor, "b h w 3"]  # unit, upwards
    incidence_rad: Float32[Tensor, "b h w"]  # between normal and the Sun's centre
    emission_rad: Float32[Tensor, "b h w"]  # between normal and camera
    phase_rad: Float32[Tensor, "b h w"]  # between the Sun's centre and camera
    sun_fraction: Float32[Tensor, "b h w"]  # of the Sun's light that arrives, in [0, 1]
    level: Int32[Tensor, "b h w"]  # of the terrain


@dataclass(frozen=True, slots=True)
class Frame:
    """A rendered view: radiance and its geometry, every pixel at its centre."""

    image: Float32[Tensor, "b 1 h w"]  # linear radiance factor, or detector output in [0, 1]
    range_m: Float64[Tensor, "b h w"]  # along the unit ray; undefined where not hit
    xyz_L: Float64[Tensor, "b h w 3"]  # surface point, m; undefined where not hit
    hit: Bool[Tensor, "b h w"]
    lit: Bool[Tensor, "b h w"]  # faces the Sun and sees it: at least half of its light
    surface: SurfaceTruth | None = None  # only where it was asked for


@dataclass(frozen=True, slots=True)
class Matches:
    """Correspondences between a view rendered from the map and a camera image."""

    uv_map_px: Float64[Tensor, "b n 2"]  # in the rendered view
    uv_px: Float64[Tensor, "b n 2"]  # in the camera image
    covariance_px2: Float64[Tensor, "b n 2 2"]  # of uv_px
    score: Float32[Tensor, "b n"]  # peak correlation in [-1, 1]
    point_L: Float64[Tensor, "b n 3"]  # surface point of uv_map_px on the map, m
    valid: Bool[Tensor, "b n"]
    learned: Bool[Tensor, "b"]  # the frame's matches are those of a network's features

    def to(self, device: torch.device | str) -> "Matches":
        """The same matches on another device."""
        return Matches(
            self.uv_map_px.to(device),
            self.uv_px.to(device),
            self.covariance_px2.to(device),
            self.score.to(device),
            self.point_L.to(device),
            self.valid.to(device),
            self.learned.to(device),
        )


class FixStatus(StrEnum):
    """Why there is, or is not, a pose."""

    OK = "ok"
    TOO_FEW_MATCHES = "too_few_matches"
    NO_CONSENSUS = "no_consensus"
    ILL_CONDITIONED = "ill_conditioned"
    NOT_SETTLED = "not_settled"
    IMPLAUSIBLE = "implausible"


FIX_STATUSES = tuple(FixStatus)  # PoseSolution.status_code indexes this


@dataclass(frozen=True, slots=True)
class PoseSolution:
    """What the pose solver says of a batch, all on the device. Read a pose only where it is OK.

    The covariance is of ``(dp_L, dtheta_L)`` (m, rad), as ``tnav.geometry.pose`` perturbs.
    """

    pose: Pose
    covariance: Float64[Tensor, "b 6 6"]
    map_covariance: Float64[Tensor, "b 6 6"]  # the part of it that the map's error brings
    status_code: Int[Tensor, "b"]  # index into FIX_STATUSES
    inlier: Bool[Tensor, "b n"]
    residual_px: Float64[Tensor, "b n 2"]
    rms_px: Float64[Tensor, "b"]  # of inliers
    map_error: "MapErrorPosterior"


@dataclass(frozen=True, slots=True)
class MapErrorModel:
    """What the map's maker states of its error: a Gaussian field in height, a shift in place."""

    sigma_m: float
    correlation_m: float  # K(d) = sigma^2 exp(-d^2 / (2 correlation^2))
    horizontal_sigma_m: float = 0.0  # per axis, of the whole map; 0: not stated

    def absolute(self, covariance: Float64[Tensor, "*b k k"]) -> Float64[Tensor, "*b k k"]:
        """Covariance of a position on the Moon, from that of the same position on the map.

        Images and ranges both refer to the map, so a shift of the whole map moves every fix alike:
        no number of fixes averages it away, and it is added once, to the first two components.
        """
        axis = torch.arange(covariance.shape[-1], device=covariance.device)
        shift = torch.where(axis < 2, self.horizontal_sigma_m**2, 0.0).to(covariance.dtype)
        return covariance + torch.diag(shift)


@dataclass(frozen=True, slots=True)
class MapErrorPosterior:
    """What the residuals of one image say of the map's vertical error n (map minus ground).

    At a horizontal place whose covariance with the matches' points is ``k`` (``K`` between x and
    ``point_L``), and with C the pose's covariance and ``c = coupling^T k``: the mean of n is
    ``k^T alpha``, its variance ``sigma^2 - k^T precision k + c^T C c`` and its covariance with the
    pose ``C c``, errors of both counted as true minus estimate (Rasmussen and Williams 2006,
    sections 2.2 and 2.7).
    """

    point_L: Float64[Tensor, "b n 3"]  # of the matches, m; zero where there is none
    alpha: Float64[Tensor, "b n"]  # -J_n^T S^-1 (r - J_x dx), 1/m; zero for matches not used
    precision: Float64[Tensor, "b n n"]  # J_n^T S^-1 J_n, 1/m^2
    coupling: Float64[Tensor, "b n 6"]  # J_n^T S^-1 J_x


@dataclass(frozen=True, slots=True)
class AltitudeEstimate:
    """Altitude in its three meanings, m, each with its standard deviation."""

    altitude_m: Float64[Tensor, "b"]  # above the 1737.4 km sphere
    altitude_sigma_m: Float64[Tensor, "b"]
    agl_m: Float64[Tensor, "b"]  # above the ground along the local vertical
    agl_sigma_m: Float64[Tensor, "b"]
    range_m: Float64[Tensor, "b"]  # along a boresight
    range_sigma_m: Float64[Tensor, "b"]
    range_valid: Bool[Tensor, "b"]  # the boresight meets the map


@dataclass(frozen=True, slots=True)
class PoseFix:
    """A pose fix as the filter takes it, on the host. A failed fix has a status and no pose."""

    t_s: float
    status: FixStatus
    n_matches: int
    n_inliers: int
    rms_px: float | None
    position_L: Float64[Tensor, "3"] | None  # camera centre, m
    R_L_C: Float64[Tensor, "3 3"] | None
    covariance: Float64[Tensor, "6 6"] | None  # of (dp_L, dtheta_L)
    map_covariance: Float64[Tensor, "6 6"] | None  # its part that fixes over one place share


@dataclass(frozen=True, slots=True)
class VisionFix:
    """Pose fixes of one exposure for ``b`` descents, as the filter fuses them."""

    t_s: float  # of the exposure
    position_L: Float64[Tensor, "b 3"]  # camera centre, m
    R_L_C: Float64[Tensor, "b 3 3"]
    covariance: Float64[Tensor, "b 6 6"]  # of (dp_L, dtheta_L)
    map_covariance: Float64[Tensor, "b 6 6"]  # its part that the map's error brings


@dataclass(frozen=True, slots=True)
class InertialIncrements:
    """Integrated specific force and rotation in body axes over one step, for ``b`` descents."""

    t_s: float  # end of the step
    dt_s: float
    delta_v_B: Float64[Tensor, "b 3"]  # m/s
    delta_theta_B: Float64[Tensor, "b 3"]  # rad, against inertial space


@dataclass(frozen=True, slots=True)
class StarTrackerReading:
    """Attitude of the body, with isotropic error."""

    t_s: float
    R_L_B: Float64[Tensor, "b 3 3"]
    sigma_rad: float


@dataclass(frozen=True, slots=True)
class AltimeterReading:
    """One epoch of a laser altimeter. An invalid range is masked, and its value means nothing."""

    t_s: float
    range_m: Float64[Tensor, "b"]
    valid: Bool[Tensor, "b"]


@dataclass(frozen=True, slots=True)
class AltimeterSpec:
    """What the altimeter's maker promises, and what navigation may therefore expect of it."""

    boresight_B: tuple[float, float, float]  # unit vector
    range_max_m: float  # ranges up to here are acquired ...
    detection_probability: float  # ... with at least this probability an epoch
    incidence_max_deg: float  # on a surface tilted by up to this from the beam
    noise_floor_m: float  # 1 sigma
    noise_fraction: float  # 1 sigma grows by this fraction of the range
    rate_hz: float

    def noise_sigma_m(self, range_m: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """1-sigma range noise at a range."""
        return (self.noise_floor_m**2 + (self.noise_fraction * range_m) ** 2).sqrt()


class Sensor(StrEnum):
    """Sources of innovations."""

    STAR_TRACKER = "star_tracker"
    VISION = "vision"
    ALTIMETER = "altimeter"
    GROUND = "ground"  # height over the ground in an image, beside that over the map


@dataclass(frozen=True, slots=True)
class Innovation:
    """Measurement minus prediction, its covariance, and whether it was fused."""

    t_s: float
    sensor: Sensor
    value: Float64[Tensor, "b m"]
    covariance: Float64[Tensor, "b m m"]
    nis: Float64[Tensor, "b"]  # normalised innovation squared, m degrees of freedom
    present: Bool[Tensor, "b"]  # a measurement was there
    fused: Bool[Tensor, "b"]


@dataclass(frozen=True, slots=True)
class RangePrediction:
    """What navigation expects the altimeter to read, from its state and the map."""

    t_s: float
    range_m: Float64[Tensor, "b"]
    sigma_m: Float64[Tensor, "b"]  # state and map, without the sensor's noise
    incidence_rad: Float64[Tensor, "b"]
    defined: Bool[Tensor, "b"]  # the boresight meets the map


class FaultKind(StrEnum):
    """Verdicts of the monitor."""

    HEALTHY = "healthy"
    LATE_ACQUISITION = "late_acquisition"  # expected, never yet seen
    DROPOUT = "dropout"  # seen before, then absent where expected
    ALTIMETER_INCONSISTENT = "altimeter_inconsistent"  # vision and state agree against it
    ALTIMETER_NOISE = "altimeter_noise"  # ... by scatter, not by an offset
    STUCK = "stuck"  # it repeats itself while the ground comes nearer
    NOT_FUSED = "not_fused"  # good ranges that navigation does not take
    TERRAIN = "terrain"  # altimeter and vision agree against state and map: the ground differs
    VISION_INCONSISTENT = "vision_inconsistent"  # altimeter and state agree against it
    VISION_ABSENT = "vision_absent"  # images were taken, and no fix came
    INERTIAL = "inertial"  # at its limit, silent, or both others disagree with it sideways too
    SPURIOUS_EVENT = "spurious_event"  # a touchdown high above the ground
    UNDECIDED = "undecided"  # both disagree with the state: no third witness


@dataclass(frozen=True, slots=True)
class FaultVerdict:
    """One alert of the monitor, with what a reader needs to check it."""

    kind: FaultKind
    onset_s: float  # estimated begin of the fault
    alert_s: float  # when it was raised
    cleared_s: float | None  # when the evidence for it ended
    statistic: float  # value that crossed
    threshold: float
    reason: str
