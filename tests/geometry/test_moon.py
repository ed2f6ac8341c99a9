import math

import simulated_device
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tnav.geometry.moon import (
    GM_M3_S2,
    J2,
    J2_RADIUS_M,
    RADIUS_M,
    LocalFrame,
    altitude_m,
    gravity_L,
    up_L,
)


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


def _potential(p_M):
    """GM/r [1 - J2 (R/r)^2 P2(sin latitude)] in Moon-fixed axes, from its definition."""
    r = p_M.norm(dim=-1)
    sine = p_M[..., 2] / r
    return GM_M3_S2 / r * (1 - J2 * (J2_RADIUS_M / r) ** 2 * (1.5 * sine**2 - 0.5))


@settings(max_examples=40, deadline=None)
@given(st.floats(-90, 90), st.floats(-180, 180), st.floats(-6e5, 6e5), st.floats(-3e3, 1e5))
def test_gravity_is_the_gradient_of_its_potential(latitude, longitude, aside, height):
    frame = LocalFrame(latitude, longitude)
    p_L = _point(aside, -0.7 * aside, height)
    p_M = (frame.R_M_L @ (p_L - frame.centre_L)).requires_grad_()
    (gradient_M,) = torch.autograd.grad(_potential(p_M), p_M)
    assert torch.allclose(gravity_L(p_L, frame), frame.R_M_L.T @ gradient_M, rtol=0, atol=1e-14)


def test_gravity_in_closed_form_over_the_equator_and_the_poles():
    """On the axis and on the equator flattening is along the radius: +3/2 J2 and -3 J2."""
    p = _point(0.0, 0.0, 1e4)
    r = RADIUS_M + 1e4
    for latitude, factor in ((0.0, 1.5), (90.0, -3.0), (-90.0, -3.0)):
        g = gravity_L(p, LocalFrame(latitude, 30.0))
        newton = GM_M3_S2 / r**2
        assert abs(float(-g[2]) - newton * (1 + factor * J2 * (J2_RADIUS_M / r) ** 2)) < 1e-14
        assert float(g[:2].norm()) < 1e-18
    middle = gravity_L(p, LocalFrame(45.0, 0.0))
    # 3 J2 sin cos g towards the equator: a plumb line at 45 deg north leans south.
    assert abs(float(middle[1]) + 1.5 * J2 * (J2_RADIUS_M / r) ** 2 * newton) < 1e-14
    assert 3e-4 < float(-middle[1]) < 6e-4


def test_gravity_points_down_within_the_flattening():
    p = torch.stack([_point(3e3, -4e3, 1e4), _point(-4e5, 1e5, -2e4)])
    g = gravity_L(p, LocalFrame(60.5, -4.6))
    assert torch.allclose(g / g.norm(dim=-1, keepdim=True), -up_L(p), atol=2 * J2)
    assert not torch.allclose(g / g.norm(dim=-1, keepdim=True), -up_L(p), atol=J2 / 2)


def test_gravity_runs_on_a_device(simgpu):
    frame = LocalFrame(60.5, -4.6)
    p = torch.stack([_point(3e3, -4e3, 1e4), _point(-4e5, 1e5, -2e4)])
    with simulated_device.count_syncs(uploads=True) as syncs:
        there = gravity_L(p.to(simgpu), frame)
    assert syncs == {"copy from host": 1}  # the test's own
    assert torch.equal(there.cpu(), gravity_L(p, frame))


def test_pole_of_a_frame_is_the_axis_that_it_spins_about():
    frame = LocalFrame(-37.0, 110.0)
    assert torch.allclose(frame.R_M_L @ frame.pole_L, _point(0.0, 0.0, 1.0), atol=1e-15)
    assert torch.allclose(frame.pole_L * frame.spin_L().norm(), frame.spin_L(), atol=1e-20)


def test_spin_is_the_pole_seen_from_the_site():
    spin = LocalFrame(60.5, -4.6).spin_L()
    assert abs(math.degrees(math.atan2(float(spin[2]), float(spin[1]))) - 60.5) < 1e-9
    assert abs(float(spin[0])) < 1e-20
    period_days = 2 * math.pi / float(spin.norm()) / 86400
    assert abs(period_days - 27.3217) < 1e-3  # sidereal month
