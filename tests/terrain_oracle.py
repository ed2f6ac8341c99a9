"""Rays against nested heightfields by brute force, in NumPy float64: every ray against every cell.

It shares no code and no algebra with the ray caster: a cell's patch is evaluated as a weighted mean
of its four posts, and the quadratic along the ray is the parabola through three of those values.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tnav.terrain.heightfield import Level, Terrain

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class OracleHits:
    range_m: Array  # inf where not hit
    normal_L: Array  # n 3
    level: NDArray[np.int64]  # -1 where not hit


def rough_level(
    post_m: float, west_m: float, south_m: float, shape: tuple[int, int], seed: int, relief_m: float
) -> Level:
    """Independent heights at every post: steeper than any ground."""
    generator = torch.Generator().manual_seed(seed)
    z_L = (torch.rand(shape, generator=generator) * 2 - 1) * relief_m
    return Level(west_m=west_m, south_m=south_m, post_m=post_m, z_L=z_L)


def single_terrain() -> Terrain:
    return Terrain([rough_level(10.0, -70.0, -90.0, (22, 17), 1, 25.0)])


def nested_terrain() -> Terrain:
    """Three levels whose posts do not line up and whose rims are not blended: open seams."""
    return Terrain(
        [
            rough_level(1.7, -9.3, -12.1, (12, 10), 2, 4.0),
            rough_level(5.0, -31.0, -29.0, (12, 14), 3, 9.0),
            rough_level(13.0, -83.0, -77.0, (13, 12), 4, 25.0),
        ],
        rim_posts=0,
    )


def _span(o: Array, d: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """Interval of t in which o + t d lies in [low, high], for rays by cells."""
    parallel = d == 0
    step = np.where(parallel, 1.0, d)
    a, b = (low - o) / step, (high - o) / step
    outside = (o < low) | (o > high)
    near = np.where(parallel, np.where(outside, np.inf, -np.inf), np.minimum(a, b))
    far = np.where(parallel, np.where(outside, -np.inf, np.inf), np.maximum(a, b))
    return near, far


def _patch(corners: list[Array], u: Array, v: Array) -> Array:
    z00, z10, z01, z11 = corners
    return (1 - u) * (1 - v) * z00 + u * (1 - v) * z10 + (1 - u) * v * z01 + u * v * z11


def _first_below(f0: Array, f1: Array, f2: Array) -> Array:
    """First x in [0, 1] where the parabola through f0, f1, f2 at 0, 1/2, 1 is <= 0; else inf."""
    a = 2 * f0 - 4 * f1 + 2 * f2
    b = -3 * f0 + 4 * f1 - f2
    disc = b * b - 4 * a * f0
    root = np.sqrt(np.maximum(disc, 0))
    q = -0.5 * (b + np.where(b >= 0, root, -root))
    best = np.full(f0.shape, np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        for x in (q / a, f0 / q):
            good = (disc >= 0) & np.isfinite(x) & (x >= 0) & (x <= 1)
            best = np.where(good & (x < best), x, best)
    best = np.where(f2 <= 0, np.minimum(best, 1.0), best)
    return np.where(f0 <= 0, 0.0, best)


def _rectangle(level: Level, o: Array, d: Array) -> tuple[Array, Array]:
    x = _span(o[:, 0], d[:, 0], np.float64(level.west_m), np.float64(level.east_m))
    y = _span(o[:, 1], d[:, 1], np.float64(level.south_m), np.float64(level.north_m))
    return np.maximum(x[0], y[0]), np.minimum(x[1], y[1])


def brute_force(terrain: Terrain, origin: Tensor, direction: Tensor, first: int = 0) -> OracleHits:
    """First t >= 0 at which a ray is on or below the ground, over all cells of all levels."""
    o, d = origin.numpy(), direction.numpy()
    n = len(o)
    best = OracleHits(np.full(n, np.inf), np.full((n, 3), np.nan), np.full(n, -1))
    for index in range(first, len(terrain.levels)):
        level = terrain.levels[index]
        pieces = [(np.zeros(n), np.full(n, np.inf))]
        if index > first:
            near, far = _rectangle(terrain.levels[index - 1], o, d)
            crossed = (near <= far) & (far >= 0)
            before = np.where(near > 0, near, -1.0)  # a border belongs to the level inside it
            pieces = [
                (np.zeros(n), np.where(crossed, before, np.inf)),
                (np.where(crossed, far, np.inf), np.full(n, np.inf)),
            ]
        for start, end in pieces:
            _search(level, index, o, d, start, end, best)
    return best


def _search(
    level: Level, index: int, o: Array, d: Array, start: Array, end: Array, best: OracleHits
) -> None:
    z = level.z_L.double().numpy()
    rows, cols = z.shape
    i, j = (g.ravel() for g in np.mgrid[0 : rows - 1, 0 : cols - 1])
    corners = [z[i, j], z[i, j + 1], z[i + 1, j], z[i + 1, j + 1]]
    lines_x = (
        level.west_m + np.arange(cols) * level.post_m
    )  # shared by neighbours: no gap between them
    lines_y = level.south_m + np.arange(rows) * level.post_m
    west, south = lines_x[j], lines_y[i]
    near_x, far_x = _span(o[:, :1], d[:, :1], west, lines_x[j + 1])
    near_y, far_y = _span(o[:, 1:2], d[:, 1:2], south, lines_y[i + 1])
    near = np.maximum(np.maximum(near_x, near_y), start[:, None])
    far = np.minimum(np.minimum(far_x, far_y), end[:, None])
    with np.errstate(
        divide="ignore", invalid="ignore"
    ):  # a vertical ray is below everything from here on
        deep = np.where(d[:, 2] < 0, (z.min() - 1 - o[:, 2]) / d[:, 2], np.inf)[:, None]
        high = np.where(d[:, 2] > 0, (z.max() + 1 - o[:, 2]) / d[:, 2], np.inf)[:, None]
    far = np.minimum(far, np.maximum(np.minimum(deep, high), near))
    ray, cell = np.nonzero((near <= far) & np.isfinite(near) & np.isfinite(far))
    near, far = near[ray, cell], far[ray, cell]
    own = [c[cell] for c in corners]

    def place(t: Array) -> tuple[Array, Array]:
        u = (o[ray, 0] + t * d[ray, 0] - west[cell]) / level.post_m
        v = (o[ray, 1] + t * d[ray, 1] - south[cell]) / level.post_m
        return u, v

    def above(t: Array) -> Array:
        return o[ray, 2] + t * d[ray, 2] - _patch(own, *place(t))

    share = _first_below(above(near), above((near + far) / 2), above(far))
    t = np.where(
        np.isfinite(share), near + (far - near) * np.where(np.isfinite(share), share, 0), np.inf
    )
    u, v = place(np.where(np.isfinite(t), t, near))
    slope_x = ((1 - v) * (own[1] - own[0]) + v * (own[3] - own[2])) / level.post_m
    slope_y = ((1 - u) * (own[2] - own[0]) + u * (own[3] - own[1])) / level.post_m
    normal = np.stack([-slope_x, -slope_y, np.ones_like(u)], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    for k in np.flatnonzero(np.isfinite(t)):
        if t[k] < best.range_m[ray[k]]:
            best.range_m[ray[k]] = t[k]
            best.normal_L[ray[k]] = normal[k]
            best.level[ray[k]] = index


def unit(vectors: Tensor) -> Tensor:
    """Rows of length one."""
    return vectors / vectors.norm(dim=-1, keepdim=True)


def camera_rays(tilt_deg: float, heading_deg: float, side: int = 22) -> Tensor:
    """Unit rays of a 60 deg square camera tilted from straight down towards a heading."""
    p = torch.linspace(-0.57, 0.57, side, dtype=torch.float64)
    v, u = torch.meshgrid(p, p, indexing="ij")
    rays = torch.stack([u, v, -torch.ones_like(u)], -1).view(-1, 3)
    tilt, heading = math.radians(tilt_deg), math.radians(heading_deg)
    c, s = math.cos(tilt), math.sin(tilt)
    up = torch.tensor([[1, 0, 0], [0, c, -s], [0, s, c]], dtype=torch.float64)
    c, s = math.cos(heading), math.sin(heading)
    turn = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)
    return unit(rays @ up.T @ turn.T)
