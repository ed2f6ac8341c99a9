import math

import pytest
import torch
from render_scenes import CAMERA, NADIR, flat, ground, hills, pose_over, vector

from tnav.errors import ConfigError
from tnav.geometry.camera import Camera
from tnav.geometry.pose import so3_exp
from tnav.geometry.sun import direction_L
from tnav.render import renderer
from tnav.render.motion import Motion, Readout, pose_at
from tnav.render.reflectance import Lambert
from tnav.render.renderer import render
from tnav.render.sampling import CENTRE, stratified
from tnav.render.sunlight import Sunlight

SUN_L = direction_L(90.0, 40.0)
STILL = vector(0.0, 0.0, 0.0)


def test_pose_turns_about_the_cameras_axes():
    pose, rate_C = pose_over(z=100.0), vector(0.01, -0.02, 0.03)
    velocity_L = vector(10.0, 20.0, -5.0)
    t_s = vector(-1.0, 0.0, 2.0)
    R, position_L = pose_at(pose, velocity_L[None], rate_C[None], t_s)
    assert torch.equal(R[0, 1], pose.R_L_C[0])
    assert torch.equal(position_L[0, 1], pose.position_L[0])
    assert torch.allclose(R[0, 2], NADIR @ so3_exp(2 * rate_C), atol=1e-15)
    assert torch.allclose(position_L[0, 0], vector(-10.0, -20.0, 105.0))
    # to first order a point fixed in C moves by the cross product
    R, _ = pose_at(pose, velocity_L[None], rate_C[None], vector(1e-6))
    point_C = vector(0.3, -0.2, 1.0)
    moved_L = (R[0, 0] - NADIR) @ point_C / 1e-6
    assert torch.allclose(moved_L, NADIR @ torch.linalg.cross(rate_C, point_C), atol=1e-7)


def _edge_profile(speed_m_s, exposure_s, samples=16, times=16, camera=None):
    """A row across the crease between a flat and a slope under a camera that moves across it.

    Lambert's law gives each its own constant radiance. Returned is the slope's share.
    """
    terrain = ground(lambda x, y: 0.3 * x.clamp_min(0.0))
    camera = camera or Camera.from_field_of_view(64, 8, 35.0)
    motion = Motion(vector(speed_m_s, 0.0, 0.0), STILL, exposure_s=exposure_s, samples=times)
    frame = render(
        terrain, camera, pose_over(0.0, 3.0, 200.0), SUN_L,
        samples=samples, motion=motion, reflectance=Lambert(),
    )  # fmt: skip
    row = frame.image[0, 0, 4].double()
    return (row - row[0]) / (row[-1] - row[0]), camera


@pytest.mark.parametrize(("samples", "times"), [(16, 16), (4, 16), (1, 16), (9, 1)])
def test_blur_is_as_long_as_the_way_in_pixels(samples, times):
    """An edge becomes a ramp of v t / gsd pixels: its variance is a box's, L^2/12."""
    gsd_m = 200.0 / Camera.from_field_of_view(64, 8, 35.0).focal_px
    length_px = 12.0
    profile, _ = _edge_profile(length_px * gsd_m / 0.02, 0.02, samples, times)
    share = profile.diff()
    at = torch.arange(len(share), dtype=torch.float64) + 1.0  # between pixel k and k + 1
    mean = float((share * at).sum())
    variance = float((share * (at - mean) ** 2).sum())
    assert mean == pytest.approx(32.0, abs=0.6)
    assert variance == pytest.approx(length_px**2 / 12, rel=0.12)
    spread = (profile > 0.02) & (profile < 0.98)
    assert int(spread.sum()) == pytest.approx(length_px, abs=2)


def test_no_blur_without_exposure():
    profile, _ = _edge_profile(1000.0, 0.0)
    assert int(((profile > 0.02) & (profile < 0.98)).sum()) <= 1


def test_turning_blurs_by_rate_times_focal_length():
    """A rate w about the image's y axis sweeps f w t pixels at the centre."""
    camera = Camera.from_field_of_view(64, 8, 35.0)
    terrain = ground(lambda x, y: 0.3 * x.clamp_min(0.0))
    length_px = 10.0
    motion = Motion(
        STILL, vector(0.0, length_px / camera.focal_px / 0.1, 0.0), exposure_s=0.1, samples=16
    )
    frame = render(
        terrain, camera, pose_over(0.0, 3.0, 200.0), SUN_L,
        samples=4, motion=motion, reflectance=Lambert(),
    )  # fmt: skip
    row = frame.image[0, 0, 4].double()
    profile = (row - row[0]) / (row[-1] - row[0])
    assert int(((profile > 0.02) & (profile < 0.98)).sum()) == pytest.approx(length_px, abs=2)


@pytest.mark.parametrize("readout", list(Readout))
def test_rolling_shutter_shears_flat_ground_by_velocity_times_time(readout):
    velocity_L = vector(40.0, -25.0, 0.0)
    motion = Motion(velocity_L, STILL, readout_s=0.1, readout=readout)
    plain = render(flat(), CAMERA, pose_over(), SUN_L)
    rolled = render(flat(), CAMERA, pose_over(), SUN_L, motion=motion)
    by_rows = readout is Readout.TOP_TO_BOTTOM
    lines = 40 if by_rows else 48
    t_s = ((torch.arange(lines, dtype=torch.float64) + 0.5) / lines - 0.5) * 0.1
    t_s = t_s[:, None] if by_rows else t_s[None, :]
    shift = (rolled.xyz_L - plain.xyz_L)[0]
    assert torch.allclose(shift, t_s[..., None] * velocity_L, atol=1e-9)


def test_rolling_shutter_turns_each_row_by_its_time():
    rate_C = vector(0.0, 0.2, 0.1)
    motion = Motion(STILL, rate_C, readout_s=0.3)
    frame = render(flat(), CAMERA, pose_over(), SUN_L, motion=motion)
    rays_C = CAMERA.unproject(CAMERA.pixel_centres("cpu"))
    rays_C = rays_C / rays_C.norm(dim=-1, keepdim=True)
    for row in (0, 13, 39):
        t_s = ((row + 0.5) / 40 - 0.5) * 0.3
        expected = rays_C[row] @ (NADIR @ so3_exp(rate_C * t_s)).T
        seen = (frame.xyz_L[0, row] - pose_over().position_L[0]) / frame.range_m[0, row, :, None]
        assert torch.allclose(seen, expected, atol=1e-12)


@pytest.mark.parametrize("samples", [1, 4, 9])
def test_no_motion_is_the_plain_picture_bit_for_bit(samples):
    motion = Motion(STILL, STILL, exposure_s=0.02, readout_s=0.1, samples=samples)
    light = Sunlight(direction_L(108.0, 12.0), samples=3)
    plain = render(hills(), CAMERA, pose_over(tilt_deg=20.0), light, samples=samples, truth=True)
    moved = render(
        hills(), CAMERA, pose_over(tilt_deg=20.0), light, samples=samples, truth=True, motion=motion
    )
    assert torch.equal(plain.image, moved.image)
    assert torch.equal(plain.xyz_L, moved.xyz_L)
    assert torch.equal(plain.surface.normal_L, moved.surface.normal_L)


def test_geometry_is_that_of_mid_exposure():
    motion = Motion(vector(300.0, 0.0, 0.0), STILL, exposure_s=0.5, samples=16)
    plain = render(hills(), CAMERA, pose_over(), SUN_L)
    moved = render(hills(), CAMERA, pose_over(), SUN_L, motion=motion)
    assert torch.equal(plain.xyz_L, moved.xyz_L)
    assert torch.equal(plain.lit, moved.lit)
    assert not torch.equal(plain.image, moved.image)


def test_each_pose_has_its_own_motion():
    poses = pose_over()
    both = type(poses)(poses.R_L_C.repeat(2, 1, 1), poses.position_L.repeat(2, 1))
    velocity_L = torch.stack([vector(100.0, 0.0, 0.0), vector(0.0, -50.0, 10.0)])
    rate_C = torch.stack([vector(0.0, 0.1, 0.0), STILL])
    motion = Motion(velocity_L, rate_C, exposure_s=0.05, readout_s=0.1)
    frame = render(hills(), CAMERA, both, SUN_L, samples=4, motion=motion)
    for k in range(2):
        alone = Motion(velocity_L[k], rate_C[k], exposure_s=0.05, readout_s=0.1)
        single = render(hills(), CAMERA, poses, SUN_L, samples=4, motion=alone)
        assert torch.equal(frame.image[k], single.image[0])
        assert torch.equal(frame.xyz_L[k], single.xyz_L[0])


def test_samples_take_their_own_times_at_no_cost(monkeypatch):
    casts = []

    def counted(*args, **options):
        casts.append(1)
        return cast(*args, **options)

    cast = renderer.cast
    monkeypatch.setattr(renderer, "cast", counted)
    motion = Motion(vector(50.0, 0.0, 0.0), STILL, exposure_s=0.1, samples=4)
    render(flat(), CAMERA, pose_over(), SUN_L, samples=4, motion=motion)
    assert len(casts) == 5  # the centre, and four samples


@pytest.mark.parametrize("lines", [1, 2, 40])
def test_readout_is_the_time_of_all_lines(lines):
    """n lines take readout/n each, so the last begins n - 1 of these after the first."""
    t_s = Motion(STILL, STILL, readout_s=0.1).line_times_s(lines, torch.device("cpu"))
    assert float(t_s[-1] - t_s[0]) == pytest.approx(0.1 * (lines - 1) / lines)
    assert float(t_s.sum()) == pytest.approx(0.0, abs=1e-12)
    if lines > 1:
        assert t_s.diff().tolist() == pytest.approx([0.1 / lines] * (lines - 1))


@pytest.mark.parametrize(("samples", "times"), [(1, 1), (1, 5), (4, 1), (4, 10), (9, 9), (16, 3)])
def test_cells_and_times_are_stratified(samples, times):
    plan = stratified(samples, times)
    count = len(plan)
    assert count >= max(samples, times)
    assert count < samples + max(samples, times)
    expected = [(k + 0.5) / count - 0.5 for k in range(count)]
    assert sorted(s.time for s in plan) == pytest.approx(expected)
    cells = [(s.right_px, s.down_px) for s in plan]
    assert all(cells.count(cell) == count // samples for cell in cells)
    assert sum(s.right_px for s in plan) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("samples", [9, 16])
def test_rows_and_columns_of_cells_have_one_mean_time(samples):
    plan = stratified(samples)
    for axis in ("right_px", "down_px"):
        lean = sum(getattr(s, axis) * s.time for s in plan)
        assert lean == pytest.approx(0.0, abs=1e-12)


def test_one_sample_is_the_centre():
    assert stratified(1) == (CENTRE,)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"exposure_s": -1.0}, "motion.exposure_s: -1.0"),
        ({"readout_s": math.nan}, "motion.readout_s: nan"),
        ({"samples": 0}, "motion.samples: 0"),
    ],
)
def test_nonsense_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        Motion(STILL, STILL, **options)
