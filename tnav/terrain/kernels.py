"""Warp kernels of the ray caster: one source for the CPU and for CUDA, float64 throughout.

A ray p(t) = o + t d visits the levels it crosses from the outside inwards and out again. In a level
it walks a maximum mipmap: a node that the ray passes above is skipped whole, any other is opened,
down to the cell, where ray minus bilinear patch is a quadratic in t (Tevs, Ihrke and Seidel 2008).

Three rules keep it exact and inside its arrays. Cells are integers and change by one at a time; a
division only picks the child *within* the node that is being opened. The exit from a node is never
before the entry into it. A ray that enters a cell or a segment below the ground hits there, which
closes the seams between cells and between levels.
"""

import math
from typing import no_type_check

import warp as wp

wp.set_module_options({"enable_backward": False, "fast_math": False})

ZERO = wp.constant(wp.float64(0.0))
ONE = wp.constant(wp.float64(1.0))
FOUR = wp.constant(wp.float64(4.0))
MINUS_HALF = wp.constant(wp.float64(-0.5))
MISS = wp.constant(wp.float64(-1.0))  # a hit has t >= 0
NAN = wp.constant(wp.float64(math.nan))
FAR = wp.constant(wp.float64(1.0e300))  # no bound
NONE = wp.constant(wp.float64(1.0e301))  # beyond any bound
PARALLEL = wp.constant(wp.float64(1.0e-150))  # cells per metre below which an axis is never crossed
SLAB_MARGIN_M = wp.constant(wp.float64(1.0e-3))  # so that rounding starts no ray underground

# Threads a CUDA block, and blocks a multiprocessor: holds the walks to 96 and 128 registers without
# a spill. Shadow rays, which also stop at the top of the relief, need some more.
_PRIMARY_BOUNDS = (128, 5)
_SHADOW_BOUNDS = (128, 4)

# Where a walk starts: most primary rays begin far above the ground, shadow rays on it.
PRIMARY_MIP = wp.constant(3)
SHADOW_MIP = wp.constant(0)

# Columns of heightfield.Packed.origin_m, then of .layout
WEST = wp.constant(0)
SOUTH = wp.constant(1)
POST = wp.constant(2)
TOP = wp.constant(3)
ROWS = wp.constant(0)
COLS = wp.constant(1)
POSTS_START = wp.constant(2)
MIPS = wp.constant(3)
MAPS_START = wp.constant(4)


@wp.struct
@no_type_check
class Ground:
    """`heightfield.Packed` as the kernels see it."""

    posts_m: wp.array[wp.float32]
    maxima_m: wp.array[wp.float32]
    origin_m: wp.array2d[wp.float64]
    layout: wp.array2d[wp.int32]
    first_level: wp.int32


@wp.struct
@no_type_check
class Crossing:
    """Where a ray meets the ground: t < 0 where it does not."""

    t: wp.float64
    level: wp.int32
    x: wp.int32
    y: wp.int32


@wp.struct
@no_type_check
class Span:
    """An interval of t, empty where near > far."""

    near: wp.float64
    far: wp.float64


@wp.struct
@no_type_check
class Patch:
    """z(u, v) = z + p u + q v + w u v over one cell, u and v in [0, 1]."""

    z: wp.float64
    p: wp.float64
    q: wp.float64
    w: wp.float64
    top: wp.float64


@wp.func
@no_type_check
def patch_of(ground: Ground, start: wp.int32, cols: wp.int32, x: wp.int32, y: wp.int32):
    """The patch over cell (x, y), and its highest post."""
    corner = start + y * cols + x
    z00 = wp.float64(ground.posts_m[corner])
    z10 = wp.float64(ground.posts_m[corner + 1])
    z01 = wp.float64(ground.posts_m[corner + cols])
    z11 = wp.float64(ground.posts_m[corner + cols + 1])
    patch = Patch()
    patch.z = z00
    patch.p = z10 - z00
    patch.q = z01 - z00
    patch.w = z11 - z10 - z01 + z00
    patch.top = wp.max(wp.max(z00, z10), wp.max(z01, z11))
    return patch


@wp.func
@no_type_check
def smallest_root(a: wp.float64, b: wp.float64, c: wp.float64):
    """Smallest positive root of a s^2 + b s + c for c > 0, without cancellation; NONE if none."""
    root = NONE
    disc = b * b - FOUR * a * c
    if disc >= ZERO and (b < ZERO or a < ZERO):
        # falling (b < 0): both roots are positive, or (a < 0) this one alone
        size = wp.sqrt(disc)
        over = c
        under = MINUS_HALF * (b - size)
        if b >= ZERO:
            over = MINUS_HALF * (b + size)
            under = a
        root = over / under
    return root


@wp.func
@no_type_check
def clip_axis(o: wp.float64, d: wp.float64, low: wp.float64, high: wp.float64, span: Span):
    """The part of `span` in which low <= o + t d <= high."""
    clipped = Span()
    clipped.near = span.near
    clipped.far = span.far
    if d != ZERO:
        t_low = (low - o) / d
        t_high = (high - o) / d
        clipped.near = wp.max(span.near, wp.min(t_low, t_high))
        clipped.far = wp.min(span.far, wp.max(t_low, t_high))
    elif o < low or o > high:
        clipped.near = FAR
        clipped.far = MISS
    return clipped


@wp.func
@no_type_check
def clip(ground: Ground, level: wp.int32, o: wp.vec3d, d: wp.vec3d):
    """The part of the ray above (or below) the rectangle of a level."""
    span = Span()
    span.near = ZERO
    span.far = FAR
    post = ground.origin_m[level, POST]
    west = ground.origin_m[level, WEST]
    south = ground.origin_m[level, SOUTH]
    east = west + post * wp.float64(ground.layout[level, COLS] - 1)
    north = south + post * wp.float64(ground.layout[level, ROWS] - 1)
    in_x = clip_axis(o[0], d[0], west, east, span)
    return clip_axis(o[1], d[1], south, north, in_x)


@wp.func
@no_type_check
def walk(
    ground: Ground,
    level: wp.int32,
    o: wp.vec3d,
    d: wp.vec3d,
    near: wp.float64,
    far: wp.float64,
    mip: wp.int32,
):
    """First crossing between two t, between which the ray is over the level's rectangle."""
    miss = Crossing()
    miss.t = MISS
    miss.level = -1
    start = near
    end = far
    slab = ground.origin_m[level, TOP] + SLAB_MARGIN_M - o[2]
    if d[2] < ZERO:
        start = wp.max(start, slab / d[2])
    elif d[2] > ZERO:
        if mip == SHADOW_MIP:  # primary rays seldom climb, and have no register to spare for it
            end = wp.min(end, slab / d[2])
    elif slab < ZERO:
        return miss
    if start > end:
        return miss

    # the ray in cells
    post = ground.origin_m[level, POST]
    ax = (o[0] - ground.origin_m[level, WEST]) / post
    ay = (o[1] - ground.origin_m[level, SOUTH]) / post
    bx = d[0] / post
    by = d[1] / post
    along_x = wp.abs(bx) > PARALLEL
    along_y = wp.abs(by) > PARALLEL
    rx = ONE
    ry = ONE
    if along_x:
        rx = ONE / bx
    if along_y:
        ry = ONE / by
    # The side of its node through which the ray leaves. A ray along a post line must not leave
    # through the line that it runs on: along that axis it never does (tx or ty stays FAR).
    ahead_x = wp.where(bx >= ZERO, 1, 0)
    ahead_y = wp.where(by >= ZERO, 1, 0)

    posts_start = ground.layout[level, POSTS_START]
    last_x = ground.layout[level, COLS] - 2
    last_y = ground.layout[level, ROWS] - 2
    mips = ground.layout[level, MIPS]
    k = wp.min(mip, mips)
    t = wp.float64(start)
    # truncation is floor here: what it gets wrong is negative, and clamped
    x = wp.clamp(wp.int32(ax + t * bx), 0, last_x) >> (2 * k)
    y = wp.clamp(wp.int32(ay + t * by), 0, last_y) >> (2 * k)

    while True:
        shift = 2 * k
        tx = FAR
        ty = FAR
        if along_x:
            tx = (wp.float64((x + ahead_x) << shift) - ax) * rx
        if along_y:
            ty = (wp.float64((y + ahead_y) << shift) - ay) * ry
        across_x = tx <= ty
        leave = wp.min(wp.max(wp.min(tx, ty), t), end)
        z = o[2] + t * d[2]
        lowest = wp.min(z, o[2] + leave * d[2])

        opened = wp.bool(False)
        if k > 0:
            maps_start = ground.layout[level, MAPS_START + k - 1]
            node = maps_start + y * ((last_x >> shift) + 1) + x
            if lowest <= wp.float64(ground.maxima_m[node]):
                opened = True
                k = k - 1
                shift = 2 * k
                x = wp.clamp(wp.int32(ax + t * bx) >> shift, 4 * x, 4 * x + 3)
                y = wp.clamp(wp.int32(ay + t * by) >> shift, 4 * y, 4 * y + 3)
                x = wp.min(x, last_x >> shift)
                y = wp.min(y, last_y >> shift)
        else:
            patch = patch_of(ground, posts_start, last_x + 2, x, y)
            if lowest <= patch.top:
                u = ax + t * bx - wp.float64(x)
                v = ay + t * by - wp.float64(y)
                above = z - (patch.z + patch.p * u + (patch.q + patch.w * u) * v)
                s = ZERO
                if above > ZERO:
                    slope = d[2] - (patch.p + patch.w * v) * bx - (patch.q + patch.w * u) * by
                    s = smallest_root(-patch.w * bx * by, slope, above)
                if s <= leave - t:
                    hit = Crossing()
                    hit.t = t + s
                    hit.level = level
                    hit.x = x
                    hit.y = y
                    return hit

        if not opened:
            if leave >= end:
                return miss
            t = leave
            changed = wp.int32(0)
            if across_x:
                from_x = x
                x = x + 2 * ahead_x - 1
                changed = (x >> 2) ^ (from_x >> 2)
            else:
                from_y = y
                y = y + 2 * ahead_y - 1
                changed = (y >> 2) ^ (from_y >> 2)
            if x < 0 or y < 0 or x > (last_x >> shift) or y > (last_y >> shift):
                return miss
            if changed != 0 and k < mips:
                k = k + 1
                x = x >> 2
                y = y >> 2

    return miss


@wp.func
@no_type_check
def first_crossing(
    ground: Ground,
    i: wp.int32,
    origin_L: wp.array[wp.vec3d],
    direction_L: wp.array[wp.vec3d],
    lift_m: wp.float64,
    mip: wp.int32,
    hit: wp.array[wp.bool],
):
    """First crossing over all levels: outer, inner, outer, each on its part of the ray.

    Rectangles are convex and each lies strictly inside the next, so the parts of the ray over them
    are nested too, and where one ends another begins.

    What a step needs is read and computed again rather than kept through the walk, where registers
    are short: writing `hit` is what makes a compiler read the ray again.
    """
    outermost = ground.origin_m.shape[0] - 1
    found = Crossing()
    found.t = MISS
    found.level = -1
    o = origin_L[i]
    d = direction_L[i]
    if not wp.isfinite(o[0] + o[1] + o[2] + d[0] + d[1] + d[2]):
        hit[i] = False  # a ray that starts where another one missed
        return found
    level = wp.int32(outermost)
    inwards = wp.bool(True)
    while level <= outermost and found.t < ZERO:
        hit[i] = False
        o = origin_L[i]
        o = wp.vec3d(o[0], o[1], o[2] + lift_m)
        d = direction_L[i]
        over = clip(ground, level, o, d)
        if over.near > over.far:  # never of an inner level
            return found
        start = over.near
        end = over.far
        deeper = wp.bool(False)
        if level > ground.first_level:
            inner = clip(ground, level - 1, o, d)
            if inner.near <= inner.far:
                if inwards:
                    deeper = True
                    end = inner.near
                else:
                    start = inner.far
        # a part without length belongs to the level inside it, and the innermost has none
        if start < end or (inwards and not deeper):
            found = walk(ground, level, o, d, start, wp.max(start, end), mip)
        inwards = deeper
        level = wp.where(deeper, level - 1, level + 1)
    hit[i] = found.t >= ZERO
    return found


@wp.kernel(grid_stride=False, launch_bounds=_PRIMARY_BOUNDS)
@no_type_check
def cast_kernel(
    ground: Ground,
    first_ray: wp.int32,
    origin_L: wp.array[wp.vec3d],
    direction_L: wp.array[wp.vec3d],
    range_m: wp.array[wp.float64],
    hit: wp.array[wp.bool],
    level: wp.array[wp.int32],
    cell: wp.array[wp.vec2i],
):
    """Range, level and cell of the first crossing; range NaN and level -1 where there is none."""
    i = first_ray + wp.tid()
    found = first_crossing(ground, i, origin_L, direction_L, ZERO, PRIMARY_MIP, hit)
    level[i] = found.level
    cell[i] = wp.vec2i(found.x, found.y)
    range_m[i] = wp.where(found.t >= ZERO, found.t, NAN)


@wp.kernel(grid_stride=False)
@no_type_check
def normal_kernel(
    ground: Ground,
    first_ray: wp.int32,
    origin_L: wp.array[wp.vec3d],
    direction_L: wp.array[wp.vec3d],
    range_m: wp.array[wp.float64],
    hit: wp.array[wp.bool],
    level: wp.array[wp.int32],
    cell: wp.array[wp.vec2i],
    normal_L: wp.array[wp.vec3d],
):
    """Normals of the patches that `cast_kernel` found, which has no registers left for it."""
    i = first_ray + wp.tid()
    if not hit[i]:
        normal_L[i] = wp.vec3d(NAN, NAN, NAN)
        return
    k = level[i]
    o = origin_L[i]
    d = direction_L[i]
    t = range_m[i]
    x = cell[i][0]
    y = cell[i][1]
    post = ground.origin_m[k, POST]
    patch = patch_of(ground, ground.layout[k, POSTS_START], ground.layout[k, COLS], x, y)
    u = (o[0] + t * d[0] - ground.origin_m[k, WEST]) / post - wp.float64(x)
    v = (o[1] + t * d[1] - ground.origin_m[k, SOUTH]) / post - wp.float64(y)
    slope_x = (patch.p + patch.w * v) / post
    slope_y = (patch.q + patch.w * u) / post
    normal_L[i] = wp.normalize(wp.vec3d(-slope_x, -slope_y, ONE))


@wp.kernel(grid_stride=False, launch_bounds=_SHADOW_BOUNDS)
@no_type_check
def occluded_kernel(
    ground: Ground,
    first_ray: wp.int32,
    origin_L: wp.array[wp.vec3d],
    direction_L: wp.array[wp.vec3d],
    lift_m: wp.float64,
    blocked: wp.array[wp.bool],
):
    """Whether a ray that starts `lift_m` above its origin crosses anything."""
    i = first_ray + wp.tid()
    first_crossing(ground, i, origin_L, direction_L, lift_m, SHADOW_MIP, blocked)
