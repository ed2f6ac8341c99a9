"""The fault catalogue: what can go wrong in a closed-loop descent, as recipes.

Numbers are fixed or drawn for every descent (``tnav.simulate.fault_spans``). ``fault_bank`` draws
them and keeps the time, ``fault_ranges`` and ``fault_effects`` put them in where truth becomes a
reading.

Defaults are the whole ranges of the study of altimetry faults in real landings. Letters say how
well a number is sourced: A agency, operator or paper; B press that quotes them; C general
knowledge; D derived from the others; P is a choice of this project. A range that spans more than a
decade is drawn with a uniform logarithm (P). Where a fault begins is P unless said otherwise.
"""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from tnav.config import Recipe
from tnav.simulate.fault_spans import (
    Angle,
    Drawn,
    Factor,
    Fraction,
    Gap,
    Lobe,
    NotNegative,
    Positive,
    Share,
    Span,
)


class Place(StrEnum):
    """Where a fault is put in."""

    ALTIMETER = "altimeter"
    INERTIAL = "inertial"
    CAMERA = "camera"
    CONTACT = "contact"
    GROUND = "ground"
    MAP = "map"
    FUSION = "fusion"
    THRUST = "thrust"


class Onset(Recipe):
    """When a fault begins: at a time, or when the lander is first so low. Exactly one of them."""

    below_agl_m: Positive | None = None  # true height over the ground
    at_s: NotNegative | None = None

    @model_validator(mode="after")
    def _one(self) -> "Onset":
        if (self.below_agl_m is None) == (self.at_s is None):
            found = "neither" if self.at_s is None else "both"
            raise ValueError(f"expected one of below_agl_m and at_s, found {found}")
        return self


_START = Onset(at_s=0.0)
# From the altimeter's promise to the last minute.
_LOW = Onset(below_agl_m=Span(low=100.0, high=3000.0, log=True))


class _Fault(Recipe):
    """What all faults share."""

    place: ClassVar[Place] = Place.ALTIMETER
    # At one place, the lower one acts first. In an altimeter: echo (0 and 1), factors (2), sums
    # (3), outliers (4), then its electronics.
    order: ClassVar[int] = 0
    stream: ClassVar[str | None] = None  # faults of one stream and seed draw the same numbers

    begins: Onset = _LOW
    lasts_s: Positive | None = None  # None: to the end


# Altimeter: is there a range? ---------------------------------------------------------------------


class DropoutFault(_Fault):
    """Ranges are lost for a while. Surveyor 3: 2 to 6 s below 15 m (A)."""

    order = 7
    kind: Literal["dropout"]
    lasts_s: Positive | None = Span(low=2.0, high=6.0)
    lost_share: Share = 1.0  # of readings; IM-2: 0.5 to 0.9, beside noise and outliers (B)


class LateAcquisitionFault(_Fault):
    """Echoes only from nearby, and from nearer the faster and the more slanted. RESILIENCE.

    A range is found with a probability that is a logistic function of it about::

        R_max = range_max_m exp(-(v - of_speed_m_s) / speed_scale_m_s) cos(i)^incidence_power

    with closing speed v and incidence i. A loss in the link, under the inverse square of the range,
    says instead: range_max_m = specified_range_m 10^(-link_loss_db / 20).
    """

    kind: Literal["late_acquisition"]
    begins: Onset = _START
    range_max_m: Positive = Span(low=400.0, high=2500.0, log=True)  # event: 893 m at 66 m/s (B)
    edge_m: Positive = Span(low=50.0, high=200.0)  # from 10 to 90 % (P)
    of_speed_m_s: NotNegative = 0.0  # closing speed at which range_max_m holds
    speed_scale_m_s: Positive | None = Span(low=50.0, high=150.0)  # P; None: speed has no effect
    incidence_power: NotNegative = Span(low=1.0, high=2.0)  # C
    link_loss_db: NotNegative | None = None  # 6 to 21 dB; event 10.5 dB (D)
    specified_range_m: Positive = 3000.0  # B

    @model_validator(mode="after")
    def _one(self) -> "LateAcquisitionFault":
        if self.link_loss_db is not None and "range_max_m" in self.model_fields_set:
            raise ValueError("expected one of range_max_m and link_loss_db, found both")
        return self


class PermanentOutageFault(_Fault):
    """No range from a height on. IM-1: the last good altitude at 15 km (B)."""

    order = 7
    kind: Literal["permanent_outage"]
    begins: Onset = Onset(below_agl_m=Span(low=5e3, high=30e3))
    lasts_s: None = None


class NotFusedFault(_Fault):
    """Valid ranges that navigation never takes in: the twin of IM-1's outage (A)."""

    place = Place.FUSION
    kind: Literal["not_fused"]
    begins: Onset = _START


# Altimeter: is the range right? -------------------------------------------------------------------


class _Step(_Fault):
    """A step, crossed in a while; terrain and sensor draw the same one from the same seed."""

    stream = "step"
    begins: Onset = Onset(below_agl_m=Span(low=1e3, high=8e3, log=True))
    size_m: Drawn = Span(low=500.0, high=4000.0)  # event: about 3 km (B)
    crossed_in_s: Positive = Span(low=2.0, high=10.0)  # a linear ramp


class StepTerrainFault(_Step):
    """The ground falls away as the map does not say; the altimeter is healthy. HAKUTO-R M1."""

    place = Place.GROUND
    kind: Literal["step_terrain"]


class StepSensorFault(_Step):
    """The range grows as if the ground fell away; it does not: the twin of ``step_terrain``."""

    order = 3
    kind: Literal["step_sensor"]


class BiasFault(_Fault):
    """A constant is added to the range. Apollo 12's first update: -300 m (A)."""

    order = 3
    kind: Literal["bias"]
    bias_m: Drawn = Span(low=5.0, high=500.0, log=True, either_sign=True)


class ScaleFault(_Fault):
    """The range is multiplied by ``1 + scale``."""

    order = 2
    kind: Literal["scale"]
    scale: Fraction = Span(low=0.002, high=0.1, log=True, either_sign=True)  # IM-2: 0.05 (C)


class DriftFault(_Fault):
    """An error that grows with time."""

    order = 3
    kind: Literal["drift"]
    drift_m_s: Drawn = Span(low=0.1, high=10.0, log=True, either_sign=True)


class StuckFault(_Fault):
    """One value for ever, said to be valid: the last good one, or the first, or zero. Luna 25."""

    order = 5
    kind: Literal["stuck"]
    at: Literal["last", "zero"] = "last"


class SpikeFault(_Fault):
    """Some ranges are anything between zero and the altimeter's end. IM-2: 5 to 30 % (C)."""

    order = 4
    kind: Literal["spike"]
    share: Share = Span(low=0.01, high=0.3, log=True)  # of the valid readings
    within_m: Positive = 3000.0  # P


class NoiseInflationFault(_Fault):
    """Noise grows to a multiple of its 1 sigma. IM-2: 10 to 100 times (C)."""

    order = 3
    kind: Literal["noise_inflation"]
    factor: Factor = Span(low=3.0, high=100.0, log=True)


class LatencyFault(_Fault):
    """Ranges come late, beyond what is promised, with the time tags of fresh ones."""

    order = 6
    kind: Literal["latency"]
    delay_s: NotNegative = Span(low=0.05, high=2.0, log=True)


class TiltCoupledFault(_Fault):
    """The error grows with tilt t: the range is multiplied by ``1 + gain (1/cos(t) - 1)``.

    A gain of 1 takes a slant for a height: 15.5 % at 30 deg (Vikram, D). One of -1 corrects for
    the tilt where nobody asked for it.
    """

    order = 2
    kind: Literal["tilt_coupled"]
    gain: Drawn = Span(low=1.0, high=1.0, either_sign=True)  # P


class VelocityCoupledFault(_Fault):
    """The error is a time multiplied by the closing speed, as in a range mixed with Doppler."""

    order = 3
    kind: Literal["velocity_coupled"]
    coupling_s: Drawn = Span(low=0.05, high=2.0, log=True, either_sign=True)  # P: as of a latency


class FalseLockFault(_Fault):
    """The echo of another pulse, or of a side lobe.

    ambiguity: the range modulo ``ambiguity_m``, which is half the way of light between two pulses.
    side lobe: the range over the cosine of ``lobe_deg``, on level ground.
    """

    order = 1
    kind: Literal["false_lock"]
    on: Literal["ambiguity", "side_lobe"] = "ambiguity"
    ambiguity_m: Positive = Span(low=300.0, high=3000.0, log=True)  # P: pulses at 50 to 500 kHz
    lobe_deg: Lobe = Span(low=5.0, high=20.0)  # P: 0.38 to 6.4 % (D)


# The other sensors, the map and the lander --------------------------------------------------------


class ImuSaturationFault(_Fault):
    """A gyro at its end: about one axis, drawn for each descent, it reads a constant rate.

    The rate is such that attitude is wrong by ``turned_deg`` in the end, on a lander that does not
    turn about that axis. Schiaparelli: for about 1 s (A), by about 165 deg (C).
    """

    place = Place.INERTIAL
    kind: Literal["imu_saturation"]
    lasts_s: Positive = Span(low=0.5, high=2.0)
    turned_deg: Angle = Span(low=20.0, high=180.0)


class ImuDropoutFault(_Fault):
    """Increments of zero, taken for data (Luna 25, A) or known to be missing (Beresheet, B)."""

    place = Place.INERTIAL
    order = 1
    kind: Literal["imu_dropout"]
    lasts_s: Positive | None = Span(low=1.0, high=10.0)
    reads: Literal["zeros", "missing"] = "zeros"
    sensors: Literal["both", "accelerometers", "gyros"] = "both"


class SpuriousEventFault(_Fault):
    """One false signal of contact. Mars Polar Lander's came at the deployment of its legs (A)."""

    place = Place.CONTACT
    kind: Literal["spurious_event"]
    begins: Onset = Onset(below_agl_m=Span(low=10.0, high=1500.0, log=True))
    lasts_s: Positive = 0.5  # P


class MapFault(_Fault):
    """Onboard, a map that lies too high, beside its place, or over another sphere."""

    place = Place.MAP
    kind: Literal["map_fault"]
    begins: Onset = _START
    vertical_m: Drawn = Span(low=5.0, high=300.0, log=True, either_sign=True)  # positive: too high
    shift_m: NotNegative = 0.0  # of a tile, to a side drawn for each descent
    datum_m: Drawn = 0.0  # added to vertical_m; 600: heights over a sphere of 1738 km


class CameraFault(_Fault):
    """Images lost or poor, and fixes beside the truth, as of a low Sun, blur or a blocked lens."""

    place = Place.CAMERA
    kind: Literal["camera_fault"]
    lost_share: Share = Span(low=0.1, high=1.0)  # of images, P
    error_scale: Factor = 1.0  # the fix's error is multiplied by it, its covariance is not
    bias_m: Drawn = 0.0  # fixes are moved by so much ...
    bias_of_agl: Fraction = 0.0  # ... and by this share of the height, one way for each descent
    toward: Literal["any", "horizontal", "vertical"] = "any"


class ThrustBiasFault(_Fault):
    """The engines give more than was commanded. Vikram: about 1 to 3 % (A)."""

    place = Place.THRUST
    kind: Literal["thrust_bias"]
    begins: Onset = _START
    bias: Fraction = Span(low=0.01, high=0.03)


SingleFault = Annotated[
    DropoutFault
    | LateAcquisitionFault
    | PermanentOutageFault
    | NotFusedFault
    | StepTerrainFault
    | StepSensorFault
    | BiasFault
    | ScaleFault
    | DriftFault
    | StuckFault
    | SpikeFault
    | NoiseInflationFault
    | LatencyFault
    | TiltCoupledFault
    | VelocityCoupledFault
    | FalseLockFault
    | ImuSaturationFault
    | ImuDropoutFault
    | SpuriousEventFault
    | MapFault
    | CameraFault
    | ThrustBiasFault,
    Field(discriminator="kind"),
]


class CompoundFault(Recipe):
    """Several faults; all but the first begin ``gap_s`` after it."""

    kind: Literal["compound"]
    faults: tuple[SingleFault, ...] = Field(min_length=2)
    gap_s: Gap = Span(low=0.0, high=30.0)

    @model_validator(mode="after")
    def _followers(self) -> "CompoundFault":
        for fault in self.faults[1:]:
            if "begins" in fault.model_fields_set:
                raise ValueError(f"begins of '{fault.kind}': it begins gap_s after the first fault")
        return self


Fault = Annotated[SingleFault | CompoundFault, Field(discriminator="kind")]
