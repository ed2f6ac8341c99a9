"""Cameras: by hand, against OpenCV, there and back, and lenses that no image can have."""

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st
from simulated_device import count_syncs
from torch import Tensor

from tnav.errors import ConfigError
from tnav.geometry.camera import Camera
from tnav.geometry.distortion import BrownConrady, Fisheye

BROWN = BrownConrady(k1=-0.28, k2=0.09, p1=8e-4, p2=-5e-4, k3=-0.012)
RATIONAL = BrownConrady(k1=0.6, k2=0.1, p1=-2e-4, p2=3e-4, k3=0.01, k4=0.9, k5=0.25, k6=0.02)
FISHEYE = Fisheye(k1=-0.015, k2=0.004, k3=-0.002, k4=2e-4)
LENSES = (BROWN, RATIONAL, FISHEYE)


def off_centre(distortion: BrownConrady | Fisheye | None, focal_px: float = 900.0) -> Camera:
    """Neither square nor centred: 60 by 50 deg."""
    return Camera(1000, 800, focal_px, 480.0, 420.0, distortion)


def whole_image(camera: Camera, n: int = 41) -> Tensor:
    """A grid over the image from edge to edge, corners and principal point included."""
    u_px = torch.linspace(0, camera.width_px, n, dtype=torch.float64)
    v_px = torch.linspace(0, camera.height_px, n, dtype=torch.float64)
    grid = torch.cartesian_prod(u_px, v_px)
    return torch.cat([grid, torch.tensor([[camera.cx_px, camera.cy_px]], dtype=torch.float64)])


def opencv_of(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Camera matrix and coefficients: OpenCV counts pixels from their centres."""
    f = camera.focal_px
    matrix = np.array([[f, 0, camera.cx_px - 0.5], [0, f, camera.cy_px - 0.5], [0, 0, 1]])
    d = camera.distortion
    if isinstance(d, Fisheye):
        return matrix, np.array([d.k1, d.k2, d.k3, d.k4])
    assert d is not None
    return matrix, np.array([d.k1, d.k2, d.p1, d.p2, d.k3, d.k4, d.k5, d.k6])


# --- the pinhole ---


def test_projection_by_hand():
    camera = Camera(200, 100, 50.0, 100.0, 50.0)
    point_C = torch.tensor([[2.0, -1.0, 4.0]], dtype=torch.float64)
    assert camera.project(point_C).tolist() == [[125.0, 37.5]]


def test_pixel_centres_and_their_rays():
    camera = Camera.from_field_of_view(64, 48, 45.0)
    uv = camera.pixel_centres("cpu")
    assert uv.shape == (48, 64, 2)
    assert uv[3, 5].tolist() == [5.5, 3.5]  # row, column against u, v
    rays = camera.unproject(uv)
    assert (rays[..., 2] == 1).all()
    assert torch.allclose(camera.project(rays * 7.0), uv)


def test_field_of_view_and_ground_sample_distance():
    camera = Camera.from_field_of_view(1024, 1024, 45.0)
    assert camera.focal_px == pytest.approx(512 / math.tan(math.radians(22.5)))
    assert camera.fov_rad == pytest.approx(math.radians(45.0))
    assert camera.ground_sample_distance_m(10e3) == pytest.approx(
        2 * 10e3 * math.tan(math.radians(22.5)) / 1024
    )


def test_a_lens_without_coefficients_is_the_ideal_one():
    uv, point_C = whole_image(off_centre(None)), torch.randn(50, 3, dtype=torch.float64)
    point_C[:, 2] = point_C[:, 2].abs() + 3.0
    plain, brown, fisheye = (off_centre(d) for d in (None, BrownConrady(), Fisheye()))
    assert torch.equal(brown.project(point_C), plain.project(point_C))
    assert torch.allclose(brown.unproject(uv), plain.unproject(uv), rtol=0, atol=1e-15)
    ray = fisheye.unproject(uv)  # equidistant: the angle from the axis is the distance over f
    angle = torch.atan2(ray[:, :2].norm(dim=-1), ray[:, 2])
    centre_px = torch.tensor([480.0, 420.0], dtype=torch.float64)
    assert torch.allclose(angle, (uv - centre_px).norm(dim=-1) / 900.0, rtol=0, atol=1e-14)


# --- against OpenCV ---


@pytest.mark.parametrize("lens", LENSES, ids=("brown", "rational", "fisheye"))
def test_projects_as_opencv_does(lens):
    camera = off_centre(lens)
    draw = torch.Generator().manual_seed(3)
    point_C = torch.rand(500, 3, generator=draw, dtype=torch.float64) * 2 - 1
    point_C[:, 2] = point_C[:, 2].abs() + 1.0
    matrix, coefficients = opencv_of(camera)
    project = cv2.fisheye.projectPoints if isinstance(lens, Fisheye) else cv2.projectPoints
    args = (point_C.numpy()[:, None], np.zeros(3), np.zeros(3), matrix, coefficients)
    expected = project(*args)[0].reshape(-1, 2) + 0.5
    assert np.abs(camera.project(point_C).numpy() - expected).max() < 1e-9


@pytest.mark.parametrize("lens", LENSES, ids=("brown", "rational", "fisheye"))
def test_unprojects_as_opencv_does(lens):
    camera = off_centre(lens)
    uv = whole_image(camera)
    matrix, coefficients = opencv_of(camera)
    criteria = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 500, 1e-14)
    pixels = (uv.numpy() - 0.5)[:, None]
    if isinstance(lens, Fisheye):
        plane = cv2.fisheye.undistortPoints(pixels, matrix, coefficients, criteria=criteria)
    else:
        plane = cv2.undistortPoints(pixels, matrix, coefficients, None, None, None, criteria)
    ray = camera.unproject(uv)
    error = (ray[:, :2] / ray[:, 2:]).numpy() - plane.reshape(-1, 2)
    assert np.abs(error).max() * camera.focal_px < 1e-6  # how far OpenCV's iteration gets


# --- there and back ---


@st.composite
def brown_conrady(draw) -> BrownConrady:
    k = [draw(st.floats(-0.5, 0.5)) for _ in range(6)]
    p = [draw(st.floats(-3e-3, 3e-3)) for _ in range(2)]
    return BrownConrady(k1=k[0], k2=k[1], p1=p[0], p2=p[1], k3=k[2], k4=k[3], k5=k[4], k6=k[5])


@st.composite
def fisheye(draw) -> Fisheye:
    return Fisheye(**{f"k{i}": draw(st.floats(-0.1 / i, 0.1 / i)) for i in (1, 2, 3, 4)})


def accepted(lens: BrownConrady | Fisheye, focal_px: float) -> Camera:
    """The camera; another example where its lens is refused."""
    try:
        return off_centre(lens, focal_px)
    except ConfigError:
        reject()


@settings(max_examples=150, deadline=None)
@given(st.one_of(brown_conrady(), fisheye()), st.floats(350.0, 3000.0))
@example(BrownConrady(k1=-0.2), 653.0)  # a stretch of 0.1 at the farthest corner: next to folding
@example(Fisheye(k1=-0.09), 484.0)
@example(Fisheye(), 213.0)  # the farthest corner nearly straight behind
def test_whole_image_there_and_back(lens, focal_px):
    camera = accepted(lens, focal_px)
    uv = whole_image(camera)
    ray = camera.unproject(uv)
    assert camera.sees(ray).all()
    assert float((camera.project(ray) - uv).abs().max()) < 1e-9
    assert float((camera.project(ray * 321.0) - uv).abs().max()) < 1e-9
    if isinstance(lens, Fisheye):
        assert torch.allclose(ray.norm(dim=-1), torch.ones(len(uv), dtype=torch.float64))
    else:
        assert (ray[:, 2] == 1).all()


@settings(max_examples=60, deadline=None)
@given(st.one_of(brown_conrady(), fisheye(), st.none()), st.floats(350.0, 3000.0))
def test_jacobian_is_that_of_autograd(lens, focal_px):
    camera = off_centre(None, focal_px) if lens is None else accepted(lens, focal_px)
    ray = camera.unproject(whole_image(camera, 5))
    point_C = (ray * torch.linspace(0.5, 40.0, len(ray), dtype=torch.float64)[:, None]).detach()
    expected = torch.stack(
        [torch.autograd.functional.jacobian(camera.project, point) for point in point_C]
    )
    scale = focal_px / point_C.norm(dim=-1)[:, None, None]
    assert float(((camera.jacobian(point_C) - expected) / scale).abs().max()) < 1e-10


@pytest.mark.parametrize("lens", [None, *LENSES])
def test_jacobian_is_that_of_finite_differences(lens):
    camera = off_centre(lens)
    point_C = 30.0 * camera.unproject(whole_image(camera, 7))
    step_m = 1e-4
    columns = []
    for axis in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[axis] = step_m
        columns.append((camera.project(point_C + step) - camera.project(point_C - step)) / 2)
    numeric = torch.stack(columns, -1) / step_m
    assert torch.allclose(camera.jacobian(point_C), numeric, rtol=1e-6, atol=1e-6)


# --- beyond a right angle, and fields of view ---


def test_a_fisheye_sees_behind_its_own_plane():
    camera = Camera.from_field_of_view(1000, 1000, 220.0, Fisheye())
    assert camera.focal_px == pytest.approx(500 / math.radians(110.0))
    left, right = camera.unproject(torch.tensor([[0.0, 500.0], [1000.0, 500.0]]).double())
    for ray, sign in ((left, -1.0), (right, 1.0)):
        angle = math.radians(110.0)
        expected = torch.tensor([sign * math.sin(angle), 0.0, math.cos(angle)]).double()
        assert torch.allclose(ray, expected, atol=1e-7)
        assert camera.sees(ray)
    point_C = torch.tensor([[0.0, 2.0, 0.0]], dtype=torch.float64)  # straight down, z = 0
    assert camera.project(point_C)[0, 1].item() == pytest.approx(
        500 + camera.focal_px * math.pi / 2
    )
    assert math.degrees(camera.fov_rad) == pytest.approx(220.0)


@pytest.mark.parametrize(
    ("lens", "fov_deg"), [(BROWN, 45.0), (RATIONAL, 70.0), (FISHEYE, 45.0), (FISHEYE, 190.0)]
)
def test_the_field_of_view_is_the_one_asked_for(lens, fov_deg):
    camera = Camera.from_field_of_view(640, 480, fov_deg, lens)
    # Tangential terms shift both edges alike, so the field changes in second order only.
    assert math.degrees(camera.fov_rad) == pytest.approx(fov_deg, abs=1e-3)


def test_what_a_camera_sees():
    points_C = torch.tensor(
        [[0.0, 0, 5], [0, 0, 1.1e-3], [0, 0, 0.9e-3], [0, 0, -5], [1.0, 0, 2], [9.0, 0, 1]],
        dtype=torch.float64,
    )
    assert off_centre(None).sees(points_C).tolist() == [True, True, False, False, True, True]
    # r (1 - r^2 / 5) stretches by 1 - 0.6 r^2, which is 0.1 at r = sqrt(1.5)
    barrel = off_centre(BrownConrady(k1=-0.2), 1100.0)
    assert barrel.sees(points_C).tolist() == [True, True, False, False, True, False]
    edge_C = torch.tensor([[1.5**0.5 + s * 1e-2, 0, 1] for s in (-1, 1)], dtype=torch.float64)
    assert barrel.sees(edge_C).tolist() == [True, False]
    assert Camera.from_field_of_view(100, 100, 90.0, Fisheye()).sees(points_C)[[0, 4, 5]].all()


# --- refusals ---


@pytest.mark.parametrize(("field", "value"), [("focal_px", -1.0), ("width_px", 0)])
def test_nonsense_is_refused_by_name(field, value):
    good = {"width_px": 8, "height_px": 8, "focal_px": 9.0, "cx_px": 4.0, "cy_px": 4.0}
    with pytest.raises(ConfigError, match=rf"camera\.{field}: .*expected > 0"):
        Camera(**{**good, field: value})


@pytest.mark.parametrize(
    ("lens", "focal_px"),
    [
        # r - r^3/5 has stretch 0.1 at r = sqrt(1.5), r' = 0.857; the corner lies at 668.4 px
        (BrownConrady(k1=-0.2), 668.4 / 0.857),
        # theta - theta^3/10: 1 - 0.3 theta^2 = 0.1 at sqrt(3), r' = 1.2124
        (Fisheye(k1=-0.1), 668.4 / 1.2124),
        (Fisheye(), 668.4 / math.pi),  # the whole sphere, and no more
    ],
)
def test_a_lens_that_folds_inside_the_image_is_refused(lens, focal_px):
    off_centre(lens, focal_px * 1.01)
    with pytest.raises(ConfigError, match=r"^camera\.distortion: .*folds .* expected one-to-one"):
        off_centre(lens, focal_px * 0.99)


def test_tangential_terms_alone_can_fold_an_image():
    # p2 (r^2 + 2 x^2) + x has slope 1 + 6 p2 x along x, 0.1 at x = -0.3 for p2 = 0.5
    for p2, fine in ((0.1, True), (0.5, False)):
        if fine:
            off_centre(BrownConrady(p2=p2))
        else:
            with pytest.raises(ConfigError, match="one-to-one"):
                off_centre(BrownConrady(p2=p2))


@pytest.mark.parametrize(
    ("lens", "fov_deg", "message"),
    [
        (None, 180.0, r"camera\.fov_deg: 180\.0, expected in \(0, 180\)"),
        (Fisheye(), 360.0, r"expected in \(0, 360\)"),
        # 1 - 3 r^2 has its pole 30 deg from the axis
        (BrownConrady(k4=-3.0), 60.1, r"camera\.fov_deg: 60.1, but the distortion folds at 60\.0"),
        (BrownConrady(k1=-0.9), 90.0, r"camera\.fov_deg: 90, but the distortion folds at 60\.0"),
    ],
)
def test_a_field_of_view_that_cannot_be(lens, fov_deg, message):
    with pytest.raises(ConfigError, match=message):
        Camera.from_field_of_view(100, 100, fov_deg, lens)


def test_cameras_compare_by_what_they_are_and_describe_themselves():
    camera = off_centre(FISHEYE)
    assert camera == off_centre(FISHEYE)
    assert hash(camera) == hash(off_centre(FISHEYE))
    assert camera != off_centre(None)
    assert off_centre(None).described()["distortion"] is None
    assert camera.described() == {
        "width_px": 1000, "height_px": 800, "focal_px": 900.0, "cx_px": 480.0, "cy_px": 420.0,
        "distortion": {
            "kind": "fisheye", "k1": -0.015, "k2": 0.004, "k3": -0.002, "k4": 2e-4,
        },
    }  # fmt: skip


# --- devices ---


@pytest.mark.parametrize("lens", [None, *LENSES])
def test_same_on_the_accelerator_without_waiting_for_it(lens, simgpu):
    camera = off_centre(lens)
    uv = whole_image(camera, 9)

    def run(device: str) -> list[Tensor]:
        there = uv.to(device)
        with count_syncs() as waits:
            ray = camera.unproject(there)
            results = [ray, camera.project(ray), camera.jacobian(ray), camera.sees(ray)]
        assert not waits
        return results

    for mine, theirs in zip(run(simgpu), run("cpu"), strict=True):
        assert mine.device.type == simgpu
        assert torch.allclose(mine.cpu().double(), theirs.double(), rtol=1e-12, atol=1e-12)
