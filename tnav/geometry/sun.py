"""Direction of the Sun in the Moon-fixed frame, from the date, without an ephemeris file.

Orientation of the Moon: IAU WGCCRE (Archinal et al. 2018, table 3), mean Earth / polar axis. Sun:
VSOP87 truncated as in Meeus, Astronomical Algorithms (1998), appendix III; Moon: his chapter 47,
cut to what the parallax of the Moon against the Earth (0.15 deg) needs. Apparent direction, with
aberration. The tests hold it against DE421.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
from jaxtyping import Float64
from torch import Tensor

from tnav.geometry.moon import LocalFrame

_J2000 = datetime(2000, 1, 1, 12, tzinfo=UTC)
_TT_MINUS_UTC_S = 37.0 + 32.184  # leap seconds since 2017, and TT - TAI
_ASTRONOMICAL_UNIT_KM = 149597870.7
_ARCSEC = math.pi / 180 / 3600
_OBLIQUITY_J2000 = 84381.406 * _ARCSEC
_ABERRATION = 20.4898 * _ARCSEC  # constant of aberration for the mean distance, Meeus eq. 25.10

# VSOP87 Earth, mean ecliptic and equinox of date: (amplitude 1e-8, phase, frequency per millennium)
_L0 = (
    (175347046, 0.0, 0.0), (3341656, 4.6692568, 6283.0758500), (34894, 4.62610, 12566.15170),
    (3497, 2.7441, 5753.3849), (3418, 2.8289, 3.5231), (3136, 3.6277, 77713.7715),
    (2676, 4.4181, 7860.4194), (2343, 6.1352, 3930.2097), (1324, 0.7425, 11506.7698),
    (1273, 2.0371, 529.6910), (1199, 1.1096, 1577.3435), (990, 5.233, 5884.927),
    (902, 2.045, 26.298), (857, 3.508, 398.149), (780, 1.179, 5223.694), (753, 2.533, 5507.553),
    (505, 4.583, 18849.228), (492, 4.205, 775.523), (357, 2.920, 0.067), (317, 5.849, 11790.629),
    (284, 1.899, 796.298), (271, 0.315, 10977.079), (243, 0.345, 5486.778), (206, 4.806, 2544.314),
    (205, 1.869, 5573.143), (202, 2.458, 6069.777),
)  # fmt: skip
_L1 = (
    (628331966747, 0.0, 0.0), (206059, 2.678235, 6283.075850), (4303, 2.6351, 12566.1517),
    (425, 1.590, 3.523), (119, 5.796, 26.298), (109, 2.966, 1577.344), (93, 2.59, 18849.23),
)  # fmt: skip
_L2 = ((52919, 0.0, 0.0), (8720, 1.0721, 6283.0758), (309, 0.867, 12566.152))
_B0 = ((280, 3.199, 84334.662), (102, 5.422, 5507.553), (80, 3.88, 5223.69))
_R0 = (
    (100013989, 0.0, 0.0), (1670700, 3.0984635, 6283.0758500), (13956, 3.05525, 12566.15170),
    (3084, 5.1985, 77713.7715), (1628, 1.1739, 5753.3849),
)  # fmt: skip

# IAU WGCCRE: E1..E13 = (degrees at J2000, degrees per day)
_E = (
    (125.045, -0.0529921), (250.089, -0.1059842), (260.008, 13.0120009), (176.625, 13.3407154),
    (357.529, 0.9856003), (311.589, 26.4057084), (134.963, 13.0649930), (276.617, 0.3287146),
    (34.226, 1.7484877), (15.134, -0.1589763), (119.743, 0.0036096), (239.961, 0.1643573),
    (25.053, 12.9590088),
)  # fmt: skip
_RIGHT_ASCENSION = {
    1: -3.8787, 2: -0.1204, 3: 0.0700, 4: -0.0172, 6: 0.0072, 10: -0.0052, 13: 0.0043,
}  # fmt: skip
_DECLINATION = {
    1: 1.5419, 2: 0.0239, 3: -0.0278, 4: 0.0068, 6: -0.0029, 7: 0.0009, 10: 0.0008, 13: -0.0009,
}  # fmt: skip
_MERIDIAN = {
    1: 3.5610, 2: 0.1208, 3: -0.0642, 4: 0.0158, 5: 0.0252, 6: -0.0066, 7: -0.0047, 8: -0.0046,
    9: 0.0028, 10: 0.0052, 11: 0.0040, 12: 0.0019, 13: -0.0044,
}  # fmt: skip

_Vector = tuple[float, float, float]
_Matrix = tuple[_Vector, _Vector, _Vector]


@dataclass(frozen=True, slots=True)
class SunPosition:
    """The Sun's centre as seen from a site."""

    azimuth_deg: float  # from north over east
    elevation_deg: float  # above the plane normal to the local vertical
    sun_L: Float64[Tensor, "3"]  # unit vector to the Sun


def sun_at(frame: LocalFrame, when: datetime) -> SunPosition:
    """Apparent direction of the Sun at the origin of a local frame.

    Args:
        frame: the site.
        when: a time with its zone; leap seconds are those since 2017.
    """
    sun_M = torch.tensor(_sun_direction_M(when), dtype=torch.float64)
    sun_L = frame.R_M_L.T @ sun_M
    east, north, up = sun_L.tolist()
    azimuth_deg = math.degrees(math.atan2(east, north)) % 360.0
    return SunPosition(azimuth_deg, math.degrees(math.asin(up)), sun_L)


def direction_L(azimuth_deg: float, elevation_deg: float) -> Float64[Tensor, "3"]:
    """Unit vector in L towards an azimuth (from north over east) and elevation."""
    az, el = math.radians(azimuth_deg), math.radians(elevation_deg)
    return torch.tensor(
        [math.sin(az) * math.cos(el), math.cos(az) * math.cos(el), math.sin(el)],
        dtype=torch.float64,
    )


def _sun_direction_M(when: datetime) -> _Vector:
    """Unit vector from the Moon to the Sun in mean Earth / polar axis coordinates."""
    days = ((when - _J2000).total_seconds() + _TT_MINUS_UTC_S) / 86400.0
    sun_km = _to_equator(_precess_to_j2000(_sun_of_date_km(days), days))
    moon_km = _to_equator(_precess_to_j2000(_moon_of_date_km(days), days))
    to_sun = (sun_km[0] - moon_km[0], sun_km[1] - moon_km[1], sun_km[2] - moon_km[2])
    length = math.hypot(*to_sun)
    x, y, z = _apply(_moon_from_icrf(days), to_sun)
    return (x / length, y / length, z / length)


def _series(terms: tuple[tuple[float | int, float, float], ...], millennia: float) -> float:
    return 1e-8 * sum(a * math.cos(phase + rate * millennia) for a, phase, rate in terms)


def _sun_of_date_km(days: float) -> _Vector:
    """Apparent geocentric Sun, ecliptic and equinox of date."""
    tau = days / 365250.0
    longitude = _series(_L0, tau) + tau * _series(_L1, tau) + tau**2 * _series(_L2, tau) + math.pi
    latitude = -_series(_B0, tau)
    distance_km = _series(_R0, tau) * _ASTRONOMICAL_UNIT_KM
    return _spherical(longitude - _ABERRATION, latitude, distance_km)


def _moon_of_date_km(days: float) -> _Vector:
    """Geocentric Moon, ecliptic and equinox of date, to 0.1 deg: 1 arcsec in the Sun's place."""
    t = days / 36525.0
    mean_longitude = math.radians(218.3164477 + 481267.88123421 * t)
    d = math.radians(297.8501921 + 445267.1114034 * t)
    m = math.radians(357.5291092 + 35999.0502909 * t)
    mp = math.radians(134.9633964 + 477198.8675055 * t)
    f = math.radians(93.2720950 + 483202.0175233 * t)
    longitude = mean_longitude + math.radians(
        6.288774 * math.sin(mp) + 1.274027 * math.sin(2 * d - mp) + 0.658314 * math.sin(2 * d)
        + 0.213618 * math.sin(2 * mp) - 0.185116 * math.sin(m) - 0.114332 * math.sin(2 * f)
        + 0.058793 * math.sin(2 * d - 2 * mp) + 0.057066 * math.sin(2 * d - m - mp)
        + 0.053322 * math.sin(2 * d + mp) + 0.045758 * math.sin(2 * d - m)
    )  # fmt: skip
    latitude = math.radians(
        5.128122 * math.sin(f) + 0.280602 * math.sin(mp + f) + 0.277693 * math.sin(mp - f)
        + 0.173237 * math.sin(2 * d - f)
    )  # fmt: skip
    distance_km = (
        385000.56 - 20905.355 * math.cos(mp) - 3699.111 * math.cos(2 * d - mp)
        - 2955.968 * math.cos(2 * d) - 569.925 * math.cos(2 * mp)
    )  # fmt: skip
    return _spherical(longitude, latitude, distance_km)


def _precess_to_j2000(of_date: _Vector, days: float) -> _Vector:
    """Ecliptic of date to ecliptic of J2000 (Meeus eq. 21.5, by rotations, inverted)."""
    t = days / 36525.0
    eta = (47.0029 * t - 0.03302 * t * t) * _ARCSEC
    node = math.radians(174.876384) - (869.8089 * t - 0.03536 * t * t) * _ARCSEC
    general = (5029.0966 * t + 1.11113 * t * t) * _ARCSEC
    x, y, z = _apply(_rotation_z(general + node), of_date)
    x, y, z = _apply(_rotation_x(-eta), (x, y, z))
    return _apply(_rotation_z(-node), (x, y, z))


def _to_equator(ecliptic: _Vector) -> _Vector:
    return _apply(_rotation_x(-_OBLIQUITY_J2000), ecliptic)


def _moon_from_icrf(days: float) -> _Matrix:
    """Rotation from ICRF to the Moon's mean Earth / polar axis frame."""
    t = days / 36525.0
    e = [math.radians(start + rate * days) for start, rate in _E]
    ra = 269.9949 + 0.0031 * t + sum(c * math.sin(e[i - 1]) for i, c in _RIGHT_ASCENSION.items())
    dec = 66.5392 + 0.0130 * t + sum(c * math.cos(e[i - 1]) for i, c in _DECLINATION.items())
    w = 38.3213 + 13.17635815 * days - 1.4e-12 * days * days
    w += sum(c * math.sin(e[i - 1]) for i, c in _MERIDIAN.items())
    pole = _multiply(_rotation_x(math.radians(90.0 - dec)), _rotation_z(math.radians(90.0 + ra)))
    return _multiply(_rotation_z(math.radians(w)), pole)


def _spherical(longitude: float, latitude: float, radius: float) -> _Vector:
    c = radius * math.cos(latitude)
    return (c * math.cos(longitude), c * math.sin(longitude), radius * math.sin(latitude))


def _rotation_x(angle: float) -> _Matrix:
    """Coordinates in axes turned by ``angle`` about x."""
    c, s = math.cos(angle), math.sin(angle)
    return ((1.0, 0.0, 0.0), (0.0, c, s), (0.0, -s, c))


def _rotation_z(angle: float) -> _Matrix:
    c, s = math.cos(angle), math.sin(angle)
    return ((c, s, 0.0), (-s, c, 0.0), (0.0, 0.0, 1.0))


def _apply(matrix: _Matrix, v: _Vector) -> _Vector:
    x, y, z = (row[0] * v[0] + row[1] * v[1] + row[2] * v[2] for row in matrix)
    return (x, y, z)


def _multiply(a: _Matrix, b: _Matrix) -> _Matrix:
    columns = [_apply(a, (b[0][k], b[1][k], b[2][k])) for k in range(3)]
    c0, c1, c2 = columns
    return ((c0[0], c1[0], c2[0]), (c0[1], c1[1], c2[1]), (c0[2], c1[2], c2[2]))
