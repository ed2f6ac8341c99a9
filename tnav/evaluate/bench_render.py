"""The ray caster against Embree, against brute force, and against itself on one thread.

One 4097 x 4097 heightfield with 10 m posts, synthetic mare with the Moon's curvature, made for this
and stored nowhere; 1024 x 1024 rays from four poses, and as many to a Sun at 10 deg.
"""

import contextlib
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from tnav.errors import ConfigError
from tnav.evaluate.brute_force import first_hits_m
from tnav.evaluate.embree import Embree, peak_resident_bytes, resident_bytes
from tnav.evaluate.limits import Row
from tnav.evaluate.world import R_B_C
from tnav.geometry.camera import Camera
from tnav.geometry.moon import RADIUS_M
from tnav.geometry.pose import so3_exp
from tnav.terrain.heightfield import Level, Terrain
from tnav.terrain.lattice import Window
from tnav.terrain.raycast import SHADOW_LIFT_M, Hits, cast, occluded
from tnav.terrain.site import Site, build_truth
from tnav.terrain.synthetic import Relief, relief_m

Say = Callable[[str], None]

_POSTS, _POST_M, _SEED = 4097, 10.0, 20250605
_SUN_ELEVATION_DEG, _SUN_AZIMUTH_DEG = 10.0, 108.0
_REPEATS = 7
_BRUTE_FORCE_RAYS = 2048  # of each view, spread evenly over its pixels
_RANGE_LIMIT_M = 1e-3
_BUILD_LIMIT, _MEMORY_LIMIT = 1 / 20, 1 / 10
_SPEEDUP_LIMIT = 1.6
_SITE_LIMIT_GB = 0.6


@dataclass(frozen=True, slots=True)
class View:
    """A camera of 45 deg that looks at the middle of the field, and what it may cost of Embree."""

    name: str
    height_m: float
    tilt_deg: float
    embree_limit: float


VIEWS = (
    View("nadir overview, 49 km", 49e3, 0.0, 0.5),
    View("nadir 1 km", 1e3, 0.0, 0.9),
    View("60 deg, 5 km", 5e3, 60.0, 0.8),
    View("60 deg, 15 km", 15e3, 60.0, 0.8),
)


@dataclass(frozen=True, slots=True)
class _Rays:
    """A view's rays, what they hit, and the way from there to the Sun."""

    origin_L: torch.Tensor
    direction_L: torch.Tensor
    point_L: (
        torch.Tensor
    )  # where nothing was hit: the camera's own place, so that no one is favoured
    hits: Hits
    blocked: torch.Tensor


def measure_render(device: torch.device, say: Say) -> list[Row]:
    """All tables of the ray caster; those against Embree only where embreex is installed."""
    say("heightfield")
    level = _field()
    began = time.process_time()
    terrain = Terrain([level])
    build_s = time.process_time() - began
    views = [(view, _rays_of(terrain, view)) for view in VIEWS]
    rows = _against_embree(terrain, views, build_s, say)
    for view, rays in views:
        say(f"{view.name}: brute force")
        rows += _against_brute_force(level, view, rays)
    say("threads")
    rows += _against_one_thread(terrain, views)
    if device.type != "cpu":
        rows += _on_device(terrain.to(device), views, device)
    say("memory of a site of 6 levels, 2048 x 2048")
    return [*rows, _site_memory()]


def _field() -> Level:
    half = (_POSTS - 1) // 2
    window = Window(_POST_M, -half, -half, _POSTS, _POSTS)
    relief = relief_m(window, Relief(), diameter_max_m=4000.0, wavelength_max_m=4000.0, seed=_SEED)
    east_m, north_m = window.axes_m()
    sag_m = (RADIUS_M**2 - east_m.square() - north_m.square()[:, None]).sqrt() - RADIUS_M
    return Level(window.west_m, window.south_m, _POST_M, (relief + sag_m).float())


def _sun_L() -> torch.Tensor:
    elevation, azimuth = math.radians(_SUN_ELEVATION_DEG), math.radians(_SUN_AZIMUTH_DEG)
    east, north = math.sin(azimuth) * math.cos(elevation), math.cos(azimuth) * math.cos(elevation)
    return torch.tensor([east, north, math.sin(elevation)], dtype=torch.float64)


def _rays_of(terrain: Terrain, view: View) -> _Rays:
    camera = Camera.from_field_of_view(1024, 1024, 45.0)
    tilt = torch.tensor([math.radians(view.tilt_deg), 0.0, 0.0], dtype=torch.float64)
    R_L_C = so3_exp(tilt) @ R_B_C
    # off the posts, as cameras are; their own lines are another test's
    target = torch.tensor([[3.0, 5.0]], dtype=torch.float64)
    ground_m = terrain.height_L(target)[0]
    distance_m = view.height_m / math.cos(math.radians(view.tilt_deg))
    position_L = torch.cat([target[0], ground_m]) - distance_m * R_L_C[:, 2]
    ray_C = camera.unproject(camera.pixel_centres(torch.device("cpu")).view(-1, 2))
    direction_L = ((ray_C / ray_C.norm(dim=-1, keepdim=True)) @ R_L_C.T).contiguous()
    origin_L = position_L.expand_as(direction_L).contiguous()
    hits = cast(terrain, origin_L, direction_L)
    point_L = origin_L + torch.where(hits.hit, hits.range_m, 0.0)[:, None] * direction_L
    return _Rays(origin_L, direction_L, point_L, hits, occluded(terrain, point_L, _sun_L()))


def _against_embree(
    terrain: Terrain, views: list[tuple[View, _Rays]], build_s: float, say: Say
) -> list[Row]:
    """CPU time on one thread each, interleaved, medians; then what building costs."""
    say("Embree: 33.5 million triangles")
    try:
        embree = Embree(terrain.levels[0])
    except ImportError as error:
        raise ConfigError(
            "bench render: embreex is not installed, and there is nothing to compare with; "
            "install it (pip install embreex; wheels for x86-64)"
        ) from error
    rows = []
    with _torch_threads(1):
        for view, rays in views:
            say(f"{view.name}: {_REPEATS} interleaved repeats")
            rows += _interleaved(terrain, embree, view, rays)
    held = terrain.packed.posts_m.nbytes + terrain.packed.maxima_m.nbytes
    ratios = (
        ("build, CPU time", build_s, embree.build_s, "s", _BUILD_LIMIT),
        ("memory", held / 1e9, embree.added_bytes / 1e9, "GB", _MEMORY_LIMIT),
    )
    for name, ours, theirs, unit, limit in ratios:
        ratio = ours / theirs
        rows += [
            Row(f"{name}", round(ours, 3), unit, None, None, 1, "cpu"),
            Row(f"{name}, Embree", round(theirs, 3), unit, None, None, 1, "cpu"),
            Row(f"{name}, of Embree", round(ratio, 4), "", f"< {limit:g}", ratio < limit, 1, "cpu"),
        ]
    return rows


def _interleaved(terrain: Terrain, embree: Embree, view: View, rays: _Rays) -> list[Row]:
    sun_L = _sun_L()
    lift = torch.tensor([0.0, 0.0, SHADOW_LIFT_M], dtype=torch.float64)
    origin, direction = rays.origin_L.float().numpy(), rays.direction_L.float().numpy()
    point = (rays.point_L + lift).float().numpy()
    to_sun = np.ascontiguousarray(np.broadcast_to(sun_L.float().numpy(), point.shape))
    calls: dict[str, Callable[[], object]] = {
        "primary": lambda: cast(terrain, rays.origin_L, rays.direction_L),
        "primary, Embree": lambda: embree.distances(origin, direction),
        "shadow": lambda: occluded(terrain, rays.point_L, sun_L),
        "shadow, Embree": lambda: embree.blocked(point, to_sun),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_REPEATS):
        for name, call in calls.items():
            began = time.process_time()
            call()
            seconds[name].append(time.process_time() - began)
    middle = {name: statistics.median(each) for name, each in seconds.items()}
    rows = [
        Row(f"{view.name}: {name}", round(1e3 * value, 1), "CPU ms", None, None, _REPEATS, "cpu")
        for name, value in middle.items()
    ]
    ratio = (middle["primary"] + middle["shadow"]) / (
        middle["primary, Embree"] + middle["shadow, Embree"]
    )
    limit = view.embree_limit
    name = f"{view.name}: primary + shadow, of Embree"
    passed = ratio <= limit
    return [*rows, Row(name, round(ratio, 3), "", f"<= {limit:g}", passed, _REPEATS, "cpu")]


def _against_brute_force(level: Level, view: View, rays: _Rays) -> list[Row]:
    """Mismatches and the largest difference of range, on rays spread over the view."""
    chosen = torch.linspace(0, len(rays.origin_L) - 1, _BRUTE_FORCE_RAYS).long()
    n = _BRUTE_FORCE_RAYS
    expected_m = first_hits_m(
        level, rays.origin_L[chosen].numpy(), rays.direction_L[chosen].numpy()
    )
    hit = rays.hits.hit[chosen].numpy()
    mismatches = int(np.count_nonzero(hit != np.isfinite(expected_m)))
    both = hit & np.isfinite(expected_m)
    worst_m = float(np.abs(rays.hits.range_m[chosen].numpy()[both] - expected_m[both]).max())
    lifted = rays.point_L[chosen].numpy() + np.array([0.0, 0.0, SHADOW_LIFT_M])
    to_sun = np.broadcast_to(_sun_L().numpy(), lifted.shape)
    blocked = np.isfinite(first_hits_m(level, lifted, to_sun))
    shadows = int(np.count_nonzero((rays.blocked[chosen].numpy() != blocked)[hit]))
    limit = f"<= {_RANGE_LIMIT_M:g}"
    return [
        Row(
            f"{view.name}: hit or miss, mismatches",
            mismatches,
            "",
            "= 0",
            mismatches == 0,
            n,
            "cpu",
        ),
        Row(f"{view.name}: shadow, mismatches", shadows, "", "= 0", shadows == 0, n, "cpu"),
        Row(
            f"{view.name}: range, largest error",
            worst_m,
            "m",
            limit,
            worst_m <= _RANGE_LIMIT_M,
            n,
            "cpu",
        ),
    ]


def _against_one_thread(terrain: Terrain, views: list[tuple[View, _Rays]]) -> list[Row]:
    """Wall clock with two threads against one, interleaved, and whether the bits agree."""
    rows = []
    for view, rays in views:
        wall: dict[int, list[float]] = {1: [], 2: []}
        found: dict[int, tuple[Hits, torch.Tensor]] = {}
        for _ in range(_REPEATS):
            for threads, each in wall.items():
                with _torch_threads(threads):
                    began = time.perf_counter()
                    hits = cast(terrain, rays.origin_L, rays.direction_L)
                    blocked = occluded(terrain, rays.point_L, _sun_L())
                    each.append(time.perf_counter() - began)
                found[threads] = (hits, blocked)
        speedup = statistics.median(wall[1]) / statistics.median(wall[2])
        same = _identical(found[1], found[2])
        name, limit = f"{view.name}: 2 threads", f">= {_SPEEDUP_LIMIT:g}"
        ms = round(1e3 * statistics.median(wall[2]), 1)
        rows += [
            Row(f"{name}, primary + shadow", ms, "ms", None, None, _REPEATS, "cpu"),
            Row(
                f"{name}, faster than 1 by",
                round(speedup, 2),
                "",
                limit,
                speedup >= _SPEEDUP_LIMIT,
                _REPEATS,
                "cpu",
            ),
            Row(
                f"{name}, same bits",
                "yes" if same else "no",
                "",
                "= yes",
                same,
                len(rays.origin_L),
                "cpu",
            ),
        ]
    return rows


def _identical(a: tuple[Hits, torch.Tensor], b: tuple[Hits, torch.Tensor]) -> bool:
    pairs = [
        (a[0].range_m.view(torch.int64), b[0].range_m.view(torch.int64)),
        (a[0].normal_L.view(torch.int64), b[0].normal_L.view(torch.int64)),
        (a[0].hit, b[0].hit),
        (a[0].level, b[0].level),
        (a[1], b[1]),
    ]
    return all(torch.equal(x, y) for x, y in pairs)


def _on_device(
    terrain: Terrain, views: list[tuple[View, _Rays]], device: torch.device
) -> list[Row]:
    """Time on an accelerator, and what differs from the CPU."""
    rows = []
    sun_L = _sun_L().to(device)
    for view, rays in views:
        origin_L, direction_L = rays.origin_L.to(device), rays.direction_L.to(device)
        point_L = rays.point_L.to(device)
        seconds: dict[str, list[float]] = {"primary": [], "shadow": []}
        for _ in range(_REPEATS + 1):
            torch.cuda.synchronize(device)
            began = time.perf_counter()
            hits = cast(terrain, origin_L, direction_L)
            torch.cuda.synchronize(device)
            cast_by = time.perf_counter()
            blocked = occluded(terrain, point_L, sun_L)
            torch.cuda.synchronize(device)
            seconds["primary"].append(cast_by - began)
            seconds["shadow"].append(time.perf_counter() - cast_by)
        for name, each in seconds.items():
            ms = round(1e3 * statistics.median(each[1:]), 3)  # the first one loads the module
            rows.append(Row(f"{view.name}: {name}", ms, "ms", None, None, _REPEATS, str(device)))
        differs = int(
            (hits.hit.cpu() != rays.hits.hit).sum() + (blocked.cpu() != rays.blocked).sum()
        )
        n = 2 * len(rays.origin_L)
        rows.append(
            Row(
                f"{view.name}: hits and shadows unlike the CPU's",
                differs,
                "",
                None,
                None,
                n,
                str(device),
            )
        )
    return rows


def _site_memory() -> Row:
    """Most memory that building a site of 6 levels adds to a fresh process, the site included."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        gigabytes = pool.submit(_build_large_site).result()
    value, passed = round(gigabytes, 3), gigabytes < _SITE_LIMIT_GB
    name = "site of 6 levels, 2048 x 2048 posts: peak memory of build and site"
    return Row(name, value, "GB", f"< {_SITE_LIMIT_GB:g}", passed, 1, "cpu")


def _build_large_site() -> float:
    small = Site(latitude_deg=60.5, longitude_deg=-4.6, finest_post_m=2.0, levels=2, cells=64)
    build_truth(small, seed=1)  # loads what is loaded lazily
    before = resident_bytes()
    build_truth(small.model_copy(update={"levels": 6, "cells": 2048}), seed=1)
    return (peak_resident_bytes() - before) / 1e9


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
