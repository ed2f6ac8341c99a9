"""The Sun against DE421 and the Moon's high-accuracy orientation kernels (skyfield, lunarsky)."""

import importlib.util
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from tnav.geometry.moon import LocalFrame
from tnav.geometry.sun import direction_L, sun_at

SITE = LocalFrame(60.5, -4.6)


@pytest.fixture(scope="module")
def oracle():
    """DE421, a time scale and the Moon's orientation, with their files closed afterwards."""
    api = pytest.importorskip("skyfield.api")
    planetary = pytest.importorskip("skyfield.planetarylib")
    kernels = _folder("lunarsky") / "data"
    constants = planetary.PlanetaryConstants()
    with (kernels / "fk/satellites/moon_080317.tf").open("rb") as stream:
        constants.read_text(stream)
    load = api.Loader(str(_folder("skyfield_data") / "data"))
    ephemeris = load("de421.bsp")
    with (kernels / "pck/moon_pa_de421_1900-2050.bpc").open("rb") as stream:
        constants.read_binary(stream)
        yield ephemeris, load.timescale(builtin=True), constants, planetary
    ephemeris.close()


def _folder(package):
    """Where a package lies, without importing it (which would bring warnings of its own)."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed")
    return Path(spec.submodule_search_locations[0])


def _oracle_azimuth_elevation(oracle, when):
    ephemeris, timescale, constants, planetary = oracle
    frame = constants.build_frame_named("MOON_ME_DE421")
    t = timescale.from_datetime(when)
    site = planetary.PlanetTopos.from_latlon_distance(
        frame, _angle(60.5), _angle(-4.6), _distance_km(1737.4)
    )
    apparent = (ephemeris["moon"] + site).at(t).observe(ephemeris["sun"]).apparent()
    elevation, azimuth, _ = apparent.altaz()
    return azimuth.degrees, elevation.degrees


def _angle(degrees):
    from skyfield.units import Angle

    return Angle(degrees=degrees)


def _distance_km(km):
    from skyfield.units import Distance

    return Distance(km=km)


def test_landing_of_resilience():
    sun = sun_at(SITE, datetime(2025, 6, 5, 19, 17, tzinfo=UTC))
    # Published beside DE421 and DE440: azimuth 108.36, elevation 11.86 deg
    assert sun.azimuth_deg == pytest.approx(108.36, abs=0.01)
    assert sun.elevation_deg == pytest.approx(11.86, abs=0.01)


@pytest.mark.parametrize("day", [0, 3, 9, 400, 1234, 3650, -2500])
def test_agrees_with_de421(oracle, day):
    when = datetime(2025, 6, 5, 19, 17, tzinfo=UTC) + timedelta(days=day)
    azimuth, elevation = _oracle_azimuth_elevation(oracle, when)
    sun = sun_at(SITE, when)
    apart = torch.dot(sun.sun_L, direction_L(azimuth, elevation)).clamp(-1, 1)
    # 10 arcsec; leap seconds before 2017 are one less, which is 0.5 arcsec of lunar rotation
    assert math.degrees(math.acos(float(apart))) < 15 / 3600


def test_the_zone_of_the_time_counts():
    utc = datetime(2025, 6, 5, 19, 17, tzinfo=UTC)
    assert sun_at(SITE, utc.astimezone()).azimuth_deg == sun_at(SITE, utc).azimuth_deg


def test_sun_never_rises_high_at_the_site():
    start = datetime(2025, 1, 1, tzinfo=UTC)
    highest = max(
        sun_at(SITE, start + timedelta(hours=12 * k)).elevation_deg for k in range(2 * 365)
    )
    assert 29 < highest < 31.2  # 90 - 60.5 + 1.54 deg of obliquity


def test_direction_of_the_compass():
    assert np.allclose(direction_L(90.0, 0.0), [1, 0, 0])
    assert np.allclose(direction_L(0.0, 0.0), [0, 1, 0])
    assert np.allclose(direction_L(17.0, 90.0), [0, 0, 1])
