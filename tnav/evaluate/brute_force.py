"""Rays against one heightfield by brute force: what the ray caster is measured against.

Float64 NumPy without any tree: a ray's crossings with *every* line of posts are sorted, and in each
stretch between two of them the height of the ray over the bilinear patch, a parabola in t, is
searched for its first zero. No code and no algebra is shared with `tnav.terrain.kernels`.
"""

import numpy as np
from numpy.typing import NDArray

from tnav.terrain.heightfield import Level

Array = NDArray[np.float64]

_RAYS_AT_ONCE = 256  # times 2 x 4096 lines of posts: 17 MB an array


def first_hits_m(level: Level, origin_L: Array, direction_L: Array) -> Array:
    """Distance along unit directions to the first hit; infinite where there is none.

    Args:
        level: the only ground there is.
        origin_L: n x 3, m.
        direction_L: n x 3, unit.
    """
    z_m = level.z_L.cpu().numpy().astype(np.float64)
    parts = range(0, len(origin_L), _RAYS_AT_ONCE)
    return np.concatenate(
        [
            _first_hits(
                level, z_m, origin_L[k : k + _RAYS_AT_ONCE], direction_L[k : k + _RAYS_AT_ONCE]
            )
            for k in parts
        ]
    )


def _first_hits(level: Level, z_m: Array, origin: Array, direction: Array) -> Array:
    rows, cols = z_m.shape
    x = (origin[:, 0] - level.west_m) / level.post_m
    y = (origin[:, 1] - level.south_m) / level.post_m
    dx, dy = direction[:, 0] / level.post_m, direction[:, 1] / level.post_m
    near_x, far_x = _inside(x, dx, cols - 1)
    near_y, far_y = _inside(y, dy, rows - 1)
    near = np.maximum(np.maximum(near_x, near_y), 0.0)
    far = np.minimum(far_x, far_y)
    # Above the highest post and below the lowest there is nothing to hit: not a tree, but it bounds
    # the far end, also of a ray straight down, which no line of posts does.
    top, bottom = z_m.max() + 1.0, z_m.min() - 1.0
    height, climb = origin[:, 2], direction[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        at_top, at_bottom = (top - height) / climb, (bottom - height) / climb
    near = np.where((climb < 0) & (height > top), np.maximum(near, at_top), near)
    far = np.where(climb > 0, np.minimum(far, at_top), far)
    # (a ray that comes in under the lowest post hits the cut face where it does)
    far = np.where((climb < 0) & (at_bottom > near), np.minimum(far, at_bottom), far)
    crosses = far > near
    near, far = np.where(crosses, near, 0.0), np.where(crosses, far, 0.0)
    lines = [_crossings(x, dx, cols), _crossings(y, dy, rows)]
    t = np.concatenate([near[:, None], *lines, far[:, None]], axis=1)
    t = np.sort(np.clip(t, near[:, None], far[:, None]), axis=1)
    start, length = t[:, :-1], np.diff(t, axis=1)
    used = (length > 0) & crosses[:, None]
    ray, stretch = np.nonzero(used)
    start, length = start[ray, stretch], length[ray, stretch]
    middle = start + 0.5 * length
    column = np.clip(np.floor(x[ray] + middle * dx[ray]).astype(np.int64), 0, cols - 2)
    row = np.clip(np.floor(y[ray] + middle * dy[ray]).astype(np.int64), 0, rows - 2)
    over = []
    for at in (start, middle, start + length):
        u, v = x[ray] + at * dx[ray] - column, y[ray] + at * dy[ray] - row
        ground = (1 - v) * ((1 - u) * z_m[row, column] + u * z_m[row, column + 1])
        ground += v * ((1 - u) * z_m[row + 1, column] + u * z_m[row + 1, column + 1])
        over.append(height[ray] + at * climb[ray] - ground)
    hit = start + length * _first_zero(*over)
    found = np.full(len(origin), np.inf)
    np.minimum.at(found, ray, hit)
    return found


def _inside(at: Array, step: Array, last: int) -> tuple[Array, Array]:
    """Interval of t over which 0 <= at + t step <= last."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.stack([(0 - at) / step, (last - at) / step])
    within = (at >= 0) & (at <= last)
    near = np.where(step == 0, np.where(within, -np.inf, np.inf), ends.min(0))
    far = np.where(step == 0, np.where(within, np.inf, -np.inf), ends.max(0))
    return near, far


def _crossings(at: Array, step: Array, lines: int) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (np.arange(lines) - at[:, None]) / step[:, None]
    return np.where(np.isfinite(t), t, 0.0)  # a ray along the lines crosses none


def _first_zero(f0: Array, f1: Array, f2: Array) -> Array:
    """First s in [0, 1] at which the parabola through f0, f1, f2 at 0, 1/2, 1 is <= 0, or inf."""
    a, b = 2 * f0 - 4 * f1 + 2 * f2, 4 * f1 - 3 * f0 - f2
    root = np.sqrt(np.maximum(b * b - 4 * a * f0, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        # for f0 > 0 the first zero is 2 f0 / (-b + root): no cancellation where the ray descends
        s = np.where(b < 0, 2 * f0 / (root - b), (-b - root) / (2 * a))
    crosses = (b * b >= 4 * a * f0) & np.isfinite(s) & (s >= 0) & (s <= 1)
    s = np.where(crosses, s, np.where(f2 <= 0, 1.0, np.inf))
    return np.where(f0 <= 0, 0.0, s)
