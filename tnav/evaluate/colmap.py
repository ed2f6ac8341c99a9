"""COLMAP's text model of a dataset: ``cameras.txt``, ``images.txt``, ``points3D.txt``.

World is L. An image has the rotation world to camera as a quaternion wxyz and ``t = -R C``; pixel
centres lie at halves (COLMAP, documentation of the output format; src/colmap/sensor/models.h), as
they do here, so that a pinhole and OpenCV's two lens models carry over number by number. Points are
points of the true ground, their observations exact projections.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.files import written_aside
from tnav.geometry.camera import Camera
from tnav.geometry.distortion import Fisheye
from tnav.geometry.pose import Pose, quaternion_from_matrix
from tnav.terrain.heightfield import Terrain
from tnav.terrain.raycast import cast

FILES = ("cameras.txt", "images.txt", "points3D.txt")
_CAMERA_ID = 1
_GREY = "128 128 128"
_SAME_PIXELS = 3.0  # a point is seen where the ground along its ray lies this near, in footprints
_IN_FRONT_M = 1e-3  # COLMAP's cameras see nothing beside or behind them


@dataclass(frozen=True, slots=True)
class Observations:
    """Points that one pose sees, on the host."""

    point: tuple[int, ...]  # ids from 1
    uv_px: Float64[Tensor, "n 2"]


@dataclass(frozen=True, slots=True)
class Image:
    """One image: a name, and which pose it was taken from."""

    name: str
    pose: int


def sample_points(
    terrain: Terrain, level: int, camera: Camera, pose: Pose, count: int
) -> Float64[Tensor, "n 3"]:
    """Points of the ground at pixel centres, spread over a view of one pose; on the host.

    Args:
        terrain: on any device.
        level: finest one to look at.
        camera: through which.
        pose: one, on the host.
        count: at most so many; those that meet no ground are left out.
    """
    side = int(count**0.5)
    centres = camera.pixel_centres("cpu")
    rows, columns = (
        ((torch.arange(side) + 0.5) * size / side).long()
        for size in (camera.height_px, camera.width_px)
    )
    rays_C = camera.unproject(centres[rows][:, columns].reshape(-1, 2))
    rays_C = rays_C / rays_C.norm(dim=1, keepdim=True)
    range_m, hit = _ranges(terrain, level, pose, rays_C @ pose.R_L_C[0].T)
    seen = hit & (rays_C[:, 2] * range_m > _IN_FRONT_M)
    return (pose.position_L + range_m[:, None] * (rays_C @ pose.R_L_C[0].T))[seen]


def visible(
    terrain: Terrain, level: int, camera: Camera, pose: Pose, point_L: Float64[Tensor, "n 3"]
) -> tuple[Float64[Tensor, "n 2"], Bool[Tensor, " n"]]:
    """Where points appear to a pose, and which of them it sees inside the image; on the host."""
    away_L = point_L - pose.position_L
    point_C = away_L @ pose.R_L_C[0]
    uv_px = camera.project(point_C)
    size = torch.tensor([camera.width_px, camera.height_px], dtype=torch.float64)
    inside = ((uv_px > 0) & (uv_px < size)).all(1)
    distance_m = away_L.norm(dim=1)
    range_m, hit = _ranges(terrain, level, pose, away_L / distance_m[:, None])
    near = (range_m - distance_m).abs() < _SAME_PIXELS * distance_m / camera.focal_px
    return uv_px, camera.sees(point_C) & (point_C[:, 2] > _IN_FRONT_M) & inside & hit & near


def write_model(
    folder: Path,
    camera: Camera,
    poses: Pose,
    images: Sequence[Image],
    points_L: Sequence[Float64[Tensor, "_ 3"]],
    seen: Sequence[Observations],
) -> None:
    """Write the three files.

    Args:
        folder: made when absent.
        camera: of all images.
        poses: of all poses.
        images: numbered from 1 in this order.
        points_L: of each pose, numbered from 1 through all poses.
        seen: by each pose; empty where there are no points.
    """
    folder.mkdir(exist_ok=True)
    _write(folder / "cameras.txt", [camera_line(camera)])
    _write(folder / "images.txt", _image_lines(poses, images, seen))
    _write(folder / "points3D.txt", _point_lines(images, points_L, seen))


def camera_line(camera: Camera) -> str:
    """The camera as the simplest of COLMAP's models that holds it."""
    lens = camera.distortion
    head = [camera.focal_px, camera.focal_px, camera.cx_px, camera.cy_px]
    if lens is None:
        model, extra = "PINHOLE", []
    elif isinstance(lens, Fisheye):
        model, extra = "OPENCV_FISHEYE", [lens.k1, lens.k2, lens.k3, lens.k4]
    elif lens.k3 == lens.k4 == lens.k5 == lens.k6 == 0:
        model, extra = "OPENCV", [lens.k1, lens.k2, lens.p1, lens.p2]
    else:
        model = "FULL_OPENCV"
        extra = [lens.k1, lens.k2, lens.p1, lens.p2, lens.k3, lens.k4, lens.k5, lens.k6]
    numbers = " ".join(repr(float(v)) for v in head + extra)
    return f"{_CAMERA_ID} {model} {camera.width_px} {camera.height_px} {numbers}"


def _image_lines(
    poses: Pose, images: Sequence[Image], seen: Sequence[Observations]
) -> Iterator[str]:
    R_C_L = poses.R_L_C.transpose(1, 2)
    q, t = quaternion_from_matrix(R_C_L), -(R_C_L @ poses.position_L[..., None])[..., 0]
    for number, image in enumerate(images, start=1):
        numbers = q[image.pose].tolist() + t[image.pose].tolist()
        yield f"{number} {' '.join(map(repr, numbers))} {_CAMERA_ID} {image.name}"
        if not seen:
            yield ""
            continue
        found = seen[image.pose]
        pairs = zip(found.uv_px.tolist(), found.point, strict=True)
        yield " ".join(f"{u!r} {v!r} {point}" for (u, v), point in pairs)


def _point_lines(
    images: Sequence[Image],
    points_L: Sequence[Float64[Tensor, "_ 3"]],
    seen: Sequence[Observations],
) -> Iterator[str]:
    images_of: dict[int, list[int]] = {}
    for number, image in enumerate(images, start=1):
        images_of.setdefault(image.pose, []).append(number)
    tracks: dict[int, list[str]] = {}
    for pose, found in enumerate(seen):
        for index, point in enumerate(found.point):
            track = tracks.setdefault(point, [])
            track.extend(f"{number} {index}" for number in images_of.get(pose, ()))
    number = 0
    for own_L in points_L:
        for x, y, z in own_L.tolist():
            number += 1
            yield f"{number} {x!r} {y!r} {z!r} {_GREY} 0 {' '.join(tracks.get(number, ()))}"


def _ranges(
    terrain: Terrain, level: int, pose: Pose, ray_L: Float64[Tensor, "n 3"]
) -> tuple[Float64[Tensor, " n"], Bool[Tensor, " n"]]:
    origin_L = pose.position_L.expand(len(ray_L), 3).contiguous().to(terrain.device)
    hits = cast(terrain, origin_L, ray_L.contiguous().to(terrain.device), first_level=level)
    return hits.range_m.cpu(), (hits.hit & (hits.range_m > 0)).cpu()


def _write(path: Path, lines: Iterable[str]) -> None:
    with written_aside(path) as aside, aside.open("w", encoding="utf-8") as stream:
        for line in lines:
            stream.write(line + "\n")
