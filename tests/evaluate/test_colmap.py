"""COLMAP's text model, read back by a reader of its own from COLMAP's documentation."""

import math

import cv2
import numpy as np
import pytest
import torch
from dataset_scenes import PLAIN, loaded

from tnav.evaluate.colmap import camera_line
from tnav.evaluate.dataset_writer import write_dataset
from tnav.geometry.camera import Camera
from tnav.geometry.distortion import BrownConrady, Fisheye

LENSES = {
    "PINHOLE": None,
    "OPENCV": {"kind": "brown_conrady", "k1": -0.2, "k2": 0.05, "p1": 1e-3, "p2": -5e-4},
    "FULL_OPENCV": {"kind": "brown_conrady", "k1": -0.2, "k3": 0.02, "p2": 1e-3, "k5": 0.01},
    "OPENCV_FISHEYE": {"kind": "fisheye", "k1": -0.02, "k2": 0.003, "k4": 1e-4},
}


def rows_of(path):
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


def read_model(folder):
    """Cameras, images and points as COLMAP's format page describes them."""
    (camera,) = (line.split() for line in rows_of(folder / "cameras.txt"))
    rows = rows_of(folder / "images.txt")
    images = []
    for head, points in zip(rows[::2], rows[1::2], strict=True):
        number, *pose, camera_id, name = head.split()
        assert camera_id == camera[0]
        values = points.split()
        images.append(
            {
                "id": int(number),
                "q": np.array(pose[:4], float),
                "t": np.array(pose[4:], float),
                "name": name,
                "xy": np.array([values[0::3], values[1::3]], float).T,
                "point": [int(v) for v in values[2::3]],
            }
        )
    points = {}
    for line in rows_of(folder / "points3D.txt"):
        number, x, y, z, _, _, _, error, *track = line.split()
        assert float(error) == 0
        pairs = [(int(a), int(b)) for a, b in zip(track[::2], track[1::2], strict=True)]
        points[int(number)] = (np.array([x, y, z], float), pairs)
    return camera[1:], images, points


def rotation(q):
    w, x, y, z = q
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def projected(camera, point_C):
    """Through OpenCV, whose pixels count from their centres: half a pixel less."""
    model, _, _, *numbers = camera
    fx, fy, cx, cy, *lens = map(float, numbers)
    K = np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]])
    zero = np.zeros(3)
    if model == "OPENCV_FISHEYE":
        uv, _ = cv2.fisheye.projectPoints(point_C[:, None], zero, zero, K, np.array(lens))
    else:
        uv, _ = cv2.projectPoints(point_C, zero, zero, K, np.array(lens))
    return uv[:, 0] + 0.5


@pytest.fixture(scope="module", params=LENSES)
def model(request, dataset_cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("colmap")
    camera = {**PLAIN["camera"], "distortion": LENSES[request.param]}
    poses = {"kind": "grid", "east_m": [0, 150, 300], "agl_m": [1500], "tilt_deg": [20, 40]}
    recipe = loaded(folder, {**PLAIN, "camera": camera, "poses": poses})
    write_dataset(recipe, folder / "out", torch.device("cpu"))
    found = read_model(folder / "out/colmap")
    assert found[0][0] == request.param
    return folder / "out", found


def test_truth_lands_on_pixel_centres(model):
    out, (camera, images, _) = model
    assert len(images) == 12
    for image in images[::5]:
        stem = (out / image["name"]).stem
        assert int(stem) == image["id"] - 1
        (path,) = out.glob(f"shard-*/truth/{stem}.npz")
        with np.load(path) as truth:
            xyz_L = truth["xyz_L"]
        point_C = xyz_L.reshape(-1, 3) @ rotation(image["q"]).T + image["t"]
        v, u = np.mgrid[0 : xyz_L.shape[0], 0 : xyz_L.shape[1]] + 0.5
        centres = np.stack([u, v], -1).reshape(-1, 2)
        if camera[0] == "PINHOLE":
            fx, fy, cx, cy = map(float, camera[3:])
            plain = point_C[:, :2] / point_C[:, 2:] * [fx, fy] + [cx, cy]
            assert np.abs(plain - centres).max() < 1e-6
        assert np.abs(projected(camera, point_C) - centres).max() < 1e-6


def test_points_lie_where_images_see_them(model):
    _, (camera, images, points) = model
    by_id = {image["id"]: image for image in images}
    seen = sum(len(image["point"]) for image in images)
    assert seen == sum(len(track) for _, track in points.values())
    for number, (xyz, track) in points.items():
        assert track
        for image_id, index in track:
            image = by_id[image_id]
            assert image["point"][index] == number
            point_C = rotation(image["q"]) @ xyz + image["t"]
            uv = projected(camera, point_C[None])[0]
            assert np.abs(uv - image["xy"][index]).max() < 1e-6
            assert 0 <= uv[0] <= 128
            assert 0 <= uv[1] <= 144
    # Both Suns of a pose see its points, and neighbouring poses see some of them.
    lengths = [len(track) for _, track in points.values()]
    assert min(lengths) >= 2
    assert np.mean(lengths) > 4
    assert len(points) == 6 * int(math.sqrt(50)) ** 2


def test_hidden_points_are_no_observations(model):
    """What an image is said to see lies on the surface that its own rays met there."""
    out, (_, images, points) = model
    for image in images[::7]:
        (path,) = out.glob(f"shard-*/truth/{(out / image['name']).stem}.npz")
        with np.load(path) as truth:
            range_m = truth["range_m"]
        centre_L = -rotation(image["q"]).T @ image["t"]
        for (u, v), number in zip(image["xy"], image["point"], strict=True):
            distance_m = np.linalg.norm(points[number][0] - centre_L)
            row, column = int(v), int(u)
            window = range_m[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
            assert window.min() * 0.98 < distance_m < window.max() * 1.02


def test_the_order_of_parameters():
    """fx, fy, cx, cy, k1, k2, p1, p2, k3 ... k6 (COLMAP, src/colmap/sensor/models.h)."""
    size = (640, 480, 500.0, 320.0, 240.0)
    full = BrownConrady(k1=0.01, k2=0.02, p1=0.003, p2=0.004, k3=0.05, k4=0.06, k5=0.07, k6=0.08)
    assert camera_line(Camera(*size, full)) == (
        "1 FULL_OPENCV 640 480 500.0 500.0 320.0 240.0 0.01 0.02 0.003 0.004 0.05 0.06 0.07 0.08"
    )
    few = BrownConrady(k1=0.01, p2=0.004)
    assert camera_line(Camera(*size, few)).split()[8:] == ["0.01", "0.0", "0.0", "0.004"]
    fish = Fisheye(k1=0.1, k2=0.2, k3=0.3, k4=0.4)
    assert camera_line(Camera(*size, fish)).split()[1:] == [
        "OPENCV_FISHEYE", "640", "480", "500.0", "500.0", "320.0", "240.0", "0.1", "0.2", "0.3",
        "0.4",
    ]  # fmt: skip
    assert camera_line(Camera(*size)) == "1 PINHOLE 640 480 500.0 500.0 320.0 240.0"
