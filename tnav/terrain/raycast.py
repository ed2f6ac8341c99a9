"""The one ray caster: camera, Sun and altimeter all ask it what a ray meets.

The surface is that of `tnav.terrain.heightfield`: one bilinear patch per cell gives range, normal
and shadow alike. NVIDIA Warp runs `tnav.terrain.kernels` on the terrain's device; this module is
the only one that calls it, and loads it at the first ray.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int32
from torch import Tensor

from tnav.errors import DeviceError
from tnav.terrain.heightfield import Terrain

SHADOW_LIFT_M = 1e-3  # clears the rounding of a hit point; moves a shadow's tip 5 mm at 11 deg
_BAND_RAYS = 8192  # fewer rays than this are not worth another thread
_BANDS_PER_THREAD = 8  # bands cost unevenly; more of them than threads evens it out


@dataclass(frozen=True, slots=True)
class Hits:
    """What rays met first."""

    range_m: Float64[Tensor, " n"]  # from the origin along the unit direction; NaN where not hit
    hit: Bool[Tensor, " n"]
    normal_L: Float64[Tensor, "n 3"]  # unit, upwards; NaN where not hit
    level: Int32[Tensor, " n"]  # index of the level hit; -1 where not hit


def cast(
    terrain: Terrain,
    origin_L: Float64[Tensor, "n 3"],
    direction_L: Float64[Tensor, "n 3"],
    *,
    first_level: int = 0,
) -> Hits:
    """First intersection of rays with the ground.

    A ray that starts below the ground, or enters the terrain's rectangle below it, hits right
    there. Beyond the coarsest level there is nothing to hit. Rays that are not finite miss.

    Args:
        terrain: on the rays' device.
        origin_L: where each ray starts, m; inside or outside the terrain, above or below it.
        direction_L: unit vectors.
        first_level: levels finer than this one are not there (``Terrain.level_for``).

    Raises:
        ConfigError: no such level.
        DeviceError: rays and terrain on different devices.
    """
    n, device = origin_L.shape[0], origin_L.device
    hits = Hits(
        range_m=torch.empty(n, dtype=torch.float64, device=device),
        hit=torch.empty(n, dtype=torch.bool, device=device),
        normal_L=torch.empty(n, 3, dtype=torch.float64, device=device),
        level=torch.empty(n, dtype=torch.int32, device=device),
    )
    cell = torch.empty(n, 2, dtype=torch.int32, device=device)
    rays = (origin_L, direction_L)
    found = (hits.range_m, hits.hit, hits.level, cell)
    passes = (
        _Pass("cast_kernel", rays, found),
        _Pass("normal_kernel", (*rays, *found), (hits.normal_L,)),
    )
    _launch(terrain, first_level, passes)
    return hits


def occluded(
    terrain: Terrain,
    origin_L: Float64[Tensor, "n 3"],
    direction_L: Float64[Tensor, "n 3"] | Float64[Tensor, "3"],
    *,
    first_level: int = 0,
    lift_m: float = SHADOW_LIFT_M,
) -> Bool[Tensor, " n"]:
    """Whether the ground blocks the way from points on it, to the Sun for one.

    A point is lit where its normal faces the Sun *and* it is not occluded: ask both.

    Args:
        terrain: on the points' device.
        origin_L: points, m, as `cast` finds them.
        direction_L: unit vectors, or one for all points.
        first_level: as the points were cast.
        lift_m: height above the point at which the ray starts. It shortens shadows by
            lift / tan(elevation).

    Raises:
        ConfigError: no such level.
        DeviceError: points and terrain on different devices.
    """
    blocked = torch.empty(origin_L.shape[0], dtype=torch.bool, device=origin_L.device)
    rays = (origin_L, direction_L.expand(origin_L.shape))
    _launch(terrain, first_level, (_Pass("occluded_kernel", (*rays, lift_m), (blocked,)),))
    return blocked


def memory_of(tensor: Tensor) -> Tensor:
    """The tensor whose memory Warp may read and write: itself, on the CPU and on CUDA.

    This is Warp's one door. The tests' simulated accelerator replaces it.
    """
    return tensor


@contextlib.contextmanager
def _without_driver_warning() -> Iterator[None]:
    """Where torch sees no CUDA, hide the line on the missing driver that Warp's C side prints."""
    if torch.cuda.is_available():
        yield
        return
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


@functools.cache
def _loaded(device: str) -> ModuleType:
    """The kernels, compiled and loaded for a device by this thread and not by one of the pool."""
    import warp as wp

    wp.config.log_level = wp.LOG_WARNING
    # Warp's default keeps scratch for tiles behind one static pointer a module, which launches in
    # several threads overwrite and follow into each other's stacks. No kernel here uses tiles.
    wp.config.enable_tiles_in_stack_memory = None
    with _without_driver_warning():
        wp.init()
    from tnav.terrain import kernels

    wp.load_module(kernels, device=device)
    return kernels


@dataclass(frozen=True, slots=True)
class _Pass:
    """One kernel over all rays."""

    kernel: str
    inputs: tuple[Tensor | float, ...]  # the first two are origins and directions
    outputs: tuple[Tensor, ...]


def _launch(terrain: Terrain, first_level: int, passes: Sequence[_Pass]) -> None:
    """Kernels one after the other over the same rays: band by band on the CPU."""
    import warp as wp

    terrain.check_level(first_level)
    origin_L, direction_L = passes[0].inputs[:2]
    assert isinstance(origin_L, Tensor)
    assert isinstance(direction_L, Tensor)
    for what, tensor in (("origins", origin_L), ("directions", direction_L)):
        if tensor.device != terrain.device:
            raise DeviceError(f"rays: {what} on {tensor.device}, terrain on {terrain.device}")
    n = origin_L.shape[0]
    if n == 0:
        return
    device = str(memory_of(origin_L).device)
    kernels = _loaded(device)
    ground = _ground(kernels, terrain, first_level)
    launches = [
        (
            getattr(kernels, each.kernel),
            [_array(x) if isinstance(x, Tensor) else x for x in each.inputs],
            [_array(x) for x in each.outputs],
        )
        for each in passes
    ]

    def run(first: int, count: int) -> None:
        for kernel, inputs, outputs in launches:
            given = [ground, first, *inputs]
            wp.launch(kernel, dim=count, inputs=given, outputs=outputs, device=device)

    if device == "cpu":
        _run_bands(run, n)
    else:
        current = torch.cuda.current_stream(device)
        with wp.ScopedStream(wp.stream_from_torch(current), sync_enter=False):
            run(0, n)


def _ground(kernels: ModuleType, terrain: Terrain, first_level: int) -> Any:
    """The terrain as the kernels see it."""
    packed = terrain.packed
    ground = kernels.Ground()
    ground.posts_m = _array(packed.posts_m)
    ground.maxima_m = _array(packed.maxima_m)
    ground.origin_m = _array(packed.origin_m, vectors=False)
    ground.layout = _array(packed.layout, vectors=False)
    ground.first_level = first_level
    return ground


def _array(tensor: Tensor, *, vectors: bool = True) -> Any:
    """A tensor as a Warp array without a copy; rows of two or three as vectors."""
    import warp as wp

    memory = memory_of(tensor)
    if not vectors or tensor.dim() == 1:
        return wp.from_torch(memory)
    if memory.stride(1) != 1:
        memory = memory.contiguous()
    return wp.from_torch(memory, dtype=wp.vec3d if tensor.shape[1] == 3 else wp.vec2i)


def _run_bands(run: Callable[[int, int], None], n: int) -> None:
    """Share rays among as many threads as torch uses; a launch runs in one and frees the GIL."""
    workers = torch.get_num_threads()
    band = max(_BAND_RAYS, -(-n // (workers * _BANDS_PER_THREAD)))
    if workers == 1 or n <= band:
        run(0, n)
        return
    with ThreadPoolExecutor(workers) as pool:
        bands = [pool.submit(run, first, min(band, n - first)) for first in range(0, n, band)]
        for done in bands:
            done.result()
