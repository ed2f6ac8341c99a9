import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tnav.geometry.moon import GM_M3_S2, RADIUS_M, LocalFrame, altitude_m, gravity_L, up_L


def _point(*xyz):
    return torch.tensor(xyz, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(st.floats(-88, 88), st.floats(-179, 179), st.floats(-5e3, 1e5), st.floats(-8, 8))
def test_geodetic_and_local_invert_each_other(latitude, longitude, height, aside):
    frame = LocalFrame(latitude, longitude)
    near = max(min(latitude + aside, 89.0), -89.0)
    there = [torch.tensor(v, dtype=torch.float64) for v in (near, longitude, height)]
    lat, lon, h = frame.geodetic(frame.local(*there))
    assert abs(float(lat) - near) < 1e-9
    assert abs((float(lon) - longitude + 180) % 360 - 180) < 1e-8
    assert abs(float(h) - height) < 1e-6


def test_axes_point_east_north_up():
    frame = LocalFrame(60.5, -4.6)
    here = [torch.tensor(v, dtype=torch.float64) for v in (60.5, -4.6, 0.0)]
    assert float(frame.local(*here).norm()) < 1e-6
    east = frame.local(here[0], here[1] + 1e-3, here[2])
    north = frame.local(here[0] + 1e-3, here[1], here[2])
    degree_m = math.pi / 180 * RADIUS_M
    assert abs(float(north[1]) - 1e-3 * degree_m) < 1e-3
    assert abs(float(east[0]) - 1e-3 * degree_m * math.cos(math.radians(60.5))) < 1e-3


def test_sag_of_the_sphere_matches_the_published_figures():
    # raycasting notes: 115 m at 20 km, 2.9 km at 100 km, 73.5 km at 500 km
    for distance_m, sag_m, tolerance_m in (
        (20e3, 115, 1),
        (100e3, 2.88e3, 5),
        (500e3, 73.5e3, 100),
    ):
        z = math.sqrt(RADIUS_M**2 - distance_m**2) - RADIUS_M
        assert abs(-z - sag_m) < tolerance_m
        assert abs(float(altitude_m(_point(distance_m, 0.0, z)))) < 1e-6


def test_altitude_is_exact_near_the_origin():
    assert float(altitude_m(_point(0.0, 0.0, 1e-3))) == 1e-3


def test_gravity_is_newtons_and_points_down():
    p = _point(3e3, -4e3, 1e4)
    g = gravity_L(p)
    radius = RADIUS_M + float(altitude_m(p))
    assert abs(float(g.norm()) - GM_M3_S2 / radius**2) < 1e-12
    assert torch.allclose(g / g.norm(), -up_L(p))


def test_spin_is_the_pole_seen_from_the_site():
    spin = LocalFrame(60.5, -4.6).spin_L()
    assert abs(math.degrees(math.atan2(float(spin[2]), float(spin[1]))) - 60.5) < 1e-9
    assert abs(float(spin[0])) < 1e-20
    period_days = 2 * math.pi / float(spin.norm()) / 86400
    assert abs(period_days - 27.3217) < 1e-3  # sidereal month
