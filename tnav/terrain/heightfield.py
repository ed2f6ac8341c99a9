"""Nested heightfields: square-post grids in the local frame L, one inside the other.

Between four posts the surface is the bilinear patch

    z(u, v) = z00 + u (z10 - z00) + v (z01 - z00) + u v (z11 - z10 - z01 + z00),   u, v in [0, 1],

and this patch is the ground for every height, range, normal and shadow. A maximum mipmap over the
cells, four by four children a node, lets the ray caster step over empty space (Tevs, Ihrke and
Seidel, "Maximum Mipmaps for Fast, Accurate, and Scalable Dynamic Height Field Rendering", 2008).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float32, Float64, Int32
from torch import Tensor

from tnav.errors import ConfigError, TileError

MIN_POSTS = 8  # a smaller grid has no interior left once its rim is blended
MAX_MIPS = 8  # 4^8 cells a side at most
_MAX_VALUES = 2**31 - 1  # the kernels index with 32 bits


@dataclass(frozen=True, slots=True)
class Level:
    """One grid of posts, parallel to the axes of L."""

    west_m: float  # east coordinate of post [0, 0] in L
    south_m: float  # north coordinate of post [0, 0] in L
    post_m: float  # distance between neighbouring posts
    z_L: Float32[Tensor, "rows cols"]  # up in L, m; row 0 is south, column 0 is west

    @property
    def east_m(self) -> float:
        """East coordinate of the last column."""
        return self.west_m + (self.z_L.shape[1] - 1) * self.post_m

    @property
    def north_m(self) -> float:
        """North coordinate of the last row."""
        return self.south_m + (self.z_L.shape[0] - 1) * self.post_m


@dataclass(frozen=True, slots=True)
class Packed:
    """All levels in a few flat tensors: what the kernels read. Row i belongs to level i."""

    posts_m: Float32[Tensor, " p"]  # heights of all levels, row by row
    maxima_m: Float32[Tensor, " q"]  # maximum mipmaps of all levels, finest first
    origin_m: Float64[Tensor, "levels 4"]  # west, south, post, greatest height
    # rows, columns, start in posts_m, number of mipmaps, starts in maxima_m of mipmap 1, 2, ...
    layout: Int32[Tensor, "levels 12"]

    def to(self, device: torch.device) -> "Packed":
        """The same on another device."""
        return Packed(
            self.posts_m.to(device),
            self.maxima_m.to(device),
            self.origin_m.to(device),
            self.layout.to(device),
        )


class Terrain:
    """Nested levels, finest first. Immutable; making one synchronises with its device.

    Attributes:
        levels: finest first; heights as given, with inner rims blended into the level around.
        packed: the same heights with their maximum mipmaps, for the kernels.
    """

    __slots__ = ("levels", "packed")
    levels: tuple[Level, ...]
    packed: Packed

    def __init__(self, levels: Sequence[Level], *, rim_posts: int = 16) -> None:
        """Check, blend and index the levels.

        Args:
            levels: finest first, each rectangle strictly inside the next one; all on one device.
            rim_posts: width of the strip along an inner level's border over which it fades, with a
                cubic weight, into the surface around it. 0 leaves the heights as they are.

        Raises:
            TileError: no level, fewer than 8 posts a side, heights or posting that are not finite,
                levels on several devices, or levels that are not nested finest first.
        """
        if rim_posts < 0:
            raise ConfigError(f"rim_posts: {rim_posts}, expected 0 or more")
        _check(levels)
        self._set(*_pack(levels, rim_posts))

    def _set(self, levels: tuple[Level, ...], packed: Packed) -> None:
        object.__setattr__(self, "levels", levels)
        object.__setattr__(self, "packed", packed)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Terrain is immutable: cannot set {name}")

    def __repr__(self) -> str:
        posts = ", ".join(f"{level.post_m:g} m {tuple(level.z_L.shape)}" for level in self.levels)
        return f"Terrain({posts}, device={self.device})"

    @property
    def device(self) -> torch.device:
        """Where the heights are."""
        return self.packed.posts_m.device

    def to(self, device: torch.device | str) -> "Terrain":
        """The same terrain on another device (itself when it is there already)."""
        target = torch.device(device)
        packed = self.packed.to(target)
        if packed.posts_m is self.packed.posts_m:
            return self
        moved = object.__new__(Terrain)
        moved._set(_views(self.levels, packed.posts_m), packed)
        return moved

    def height_L(
        self, xy_L: Float64[Tensor, "*b 2"], *, first_level: int = 0
    ) -> tuple[Float64[Tensor, "*b"], Bool[Tensor, "*b"]]:
        """Height of the ground below (or above) points, bilinear on the finest level there.

        Args:
            xy_L: east and north in L, m.
            first_level: levels finer than this one are not there.

        Returns:
            Up coordinate in L, m (NaN outside the coarsest level), and whether the point is inside.
        """
        self.check_level(first_level)
        x_m, y_m = xy_L.unbind(-1)
        inside = torch.zeros_like(x_m, dtype=torch.bool)
        index = torch.zeros_like(x_m, dtype=torch.int64)
        for i in reversed(range(first_level, len(self.levels))):
            level = self.levels[i]
            within = (x_m >= level.west_m) & (x_m <= level.east_m)
            within = within & (y_m >= level.south_m) & (y_m <= level.north_m)
            inside = inside | within
            index = torch.where(within, i, index)
        west_m, south_m, post_m, _ = self.packed.origin_m[index].unbind(-1)
        rows, cols, start = self.packed.layout[index, :3].long().unbind(-1)
        column = torch.where(inside, (x_m - west_m) / post_m, 0.0)
        row = torch.where(inside, (y_m - south_m) / post_m, 0.0)
        j = torch.minimum(column.long(), cols - 2)
        i0 = torch.minimum(row.long(), rows - 2)
        corner = start + i0 * cols + j
        posts = self.packed.posts_m
        z00, z10 = posts[corner].double(), posts[corner + 1].double()
        z01, z11 = posts[corner + cols].double(), posts[corner + cols + 1].double()
        u, v = column - j, row - i0
        z_m = z00 + u * (z10 - z00) + v * (z01 - z00) + u * v * (z11 - z10 - z01 + z00)
        return torch.where(inside, z_m, math.nan), inside

    def level_for(self, ground_sample_distance_m: float, *, posts_per_pixel: float = 2.0) -> int:
        """Finest level that a view should look at.

        Args:
            ground_sample_distance_m: size of the view's pixel on the ground.
            posts_per_pixel: posts across that pixel beyond which finer ones only alias.

        Returns:
            Index of the finest level whose posting is at least pixel / posts_per_pixel; the
            coarsest where none is.
        """
        limit_m = ground_sample_distance_m / posts_per_pixel
        for i, level in enumerate(self.levels):
            if level.post_m >= limit_m:
                return i
        return len(self.levels) - 1

    def check_level(self, first_level: int) -> None:
        """Raises ConfigError for a level that is not there."""
        if not 0 <= first_level < len(self.levels):
            raise ConfigError(
                f"first_level: {first_level}, expected 0 to {len(self.levels) - 1} of {self!r}"
            )


def _check(levels: Sequence[Level]) -> None:
    if not levels:
        raise TileError("terrain: no level given, expected one or more, finest first")
    for i, level in enumerate(levels):
        where = f"terrain level {i} ({level.post_m:g} m posts)"
        if min(level.z_L.shape) < MIN_POSTS:
            raise TileError(
                f"{where}: {tuple(level.z_L.shape)} posts, expected {MIN_POSTS} or more a side"
            )
        if max(level.z_L.shape) - 1 > 4**MAX_MIPS:
            raise TileError(
                f"{where}: {tuple(level.z_L.shape)} posts, expected at most {4**MAX_MIPS + 1}"
            )
        if not (math.isfinite(level.west_m + level.south_m) and 0 < level.post_m < math.inf):
            raise TileError(
                f"{where}: corner ({level.west_m}, {level.south_m}) m, expected finite numbers "
                "and a positive posting"
            )
        if level.z_L.device != levels[0].z_L.device:
            raise TileError(
                f"{where}: on {level.z_L.device}, level 0 on {levels[0].z_L.device}; expected one"
            )
        bad = int((~torch.isfinite(level.z_L)).sum())
        if bad:
            raise TileError(f"{where}: {bad} heights are not finite; fill or crop the DEM first")
    for i, (inner, outer) in enumerate(itertools.pairwise(levels)):
        nested = (
            inner.west_m > outer.west_m
            and inner.east_m < outer.east_m
            and inner.south_m > outer.south_m
            and inner.north_m < outer.north_m
        )
        if not nested or inner.post_m > outer.post_m:
            raise TileError(
                f"terrain level {i} ({inner.post_m:g} m posts) is not strictly inside level "
                f"{i + 1} ({outer.post_m:g} m posts), or is coarser; expected them nested, finest "
                "first"
            )


def _blend_(levels: Sequence[Level], rim_posts: int) -> None:
    """Fade every level but the coarsest into the one around it, in place, from the outside in."""
    for inner, outer in reversed(list(itertools.pairwise(levels))):
        rows, cols = inner.z_L.shape
        rim = min(rim_posts, rows, cols)
        strips = (
            (slice(0, rim), slice(None)),
            (slice(rows - rim, rows), slice(None)),
            (slice(None), slice(0, rim)),
            (slice(None), slice(cols - rim, cols)),
        )
        # all of them before any is written: strips overlap at the corners and must agree there
        faded = [_faded(inner, outer, rim, i, j) for i, j in strips]
        for (i, j), z_L in zip(strips, faded, strict=True):
            inner.z_L[i, j] = z_L


def _faded(
    inner: Level, outer: Level, rim: int, i: slice, j: slice
) -> Float32[Tensor, "rows cols"]:
    rows, cols = inner.z_L.shape
    device = inner.z_L.device
    row = torch.arange(rows, dtype=torch.float64, device=device)[i, None]
    column = torch.arange(cols, dtype=torch.float64, device=device)[None, j]
    to_border = torch.minimum(
        torch.minimum(row, rows - 1 - row), torch.minimum(column, cols - 1 - column)
    )
    share = (to_border / max(rim, 1)).clamp(max=1)
    weight = share * share * (3 - 2 * share)  # slope 0 at both ends: no crease
    row = (inner.south_m + row * inner.post_m - outer.south_m) / outer.post_m
    column = (inner.west_m + column * inner.post_m - outer.west_m) / outer.post_m
    i0, j0 = row.long(), column.long()  # strictly inside: never the last post
    v, u = row - i0, column - j0
    z = outer.z_L
    z00, z10 = z[i0, j0].double(), z[i0, j0 + 1].double()
    z01, z11 = z[i0 + 1, j0].double(), z[i0 + 1, j0 + 1].double()
    around = (1 - v) * ((1 - u) * z00 + u * z10) + v * ((1 - u) * z01 + u * z11)
    return (weight * inner.z_L[i, j] + (1 - weight) * around).float()


def _mipmaps(z_L: Float32[Tensor, "rows cols"]) -> list[Float32[Tensor, "r c"]]:
    """Greatest height over 4 x 4 cells, 16 x 16 cells, ... up to one node."""
    rows, cols = z_L.shape

    def pooled(grid: Tensor, cells: tuple[int, int], kernel: int) -> Tensor:
        nodes = [-(-n // 4) for n in cells]
        extra = [4 * (n - 1) + kernel - size for n, size in zip(nodes, grid.shape, strict=True)]
        padded = torch.nn.functional.pad(
            grid[None, None], (0, extra[1], 0, extra[0]), value=-math.inf
        )
        return torch.nn.functional.max_pool2d(padded, kernel, stride=4)[0, 0]

    maps = [pooled(z_L, (rows - 1, cols - 1), 5)]  # 4 cells have 5 posts
    while max(maps[-1].shape) > 1:
        maps.append(pooled(maps[-1], (maps[-1].shape[0], maps[-1].shape[1]), 4))
    return maps


def _pack(levels: Sequence[Level], rim_posts: int) -> tuple[tuple[Level, ...], Packed]:
    """A copy of the heights in one tensor, blended there, and all that the kernels read of it."""
    device = levels[0].z_L.device
    count = sum(level.z_L.numel() for level in levels)
    if count > _MAX_VALUES:
        raise TileError(f"terrain: {count} posts in all, expected at most {_MAX_VALUES}")
    posts_m = torch.empty(count, dtype=torch.float32, device=device)
    own = _views(levels, posts_m)
    for level, given in zip(own, levels, strict=True):
        level.z_L.copy_(given.z_L)
    _blend_(own, rim_posts)
    maxima: list[Tensor] = []
    origin: list[list[float]] = []
    layout: list[list[int]] = []
    post_start, node_start = 0, 0
    for level in own:
        maps = _mipmaps(level.z_L)
        origin.append([level.west_m, level.south_m, level.post_m, float(maps[-1].max())])
        starts = [node_start]
        for grid in maps:
            starts.append(starts[-1] + grid.numel())
        rows, cols = level.z_L.shape
        unused = [0] * (MAX_MIPS - len(maps))
        layout.append([rows, cols, post_start, len(maps), *starts[:-1], *unused])
        maxima += [grid.reshape(-1) for grid in maps]
        node_start = starts[-1]
        post_start += rows * cols
    packed = Packed(
        posts_m=posts_m,
        maxima_m=torch.cat(maxima),
        origin_m=torch.tensor(origin, dtype=torch.float64).to(device),
        layout=torch.tensor(layout, dtype=torch.int32).to(device),
    )
    return own, packed


def _views(levels: Sequence[Level], posts_m: Float32[Tensor, " p"]) -> tuple[Level, ...]:
    """The levels with their heights as views of the packed ones, so that memory is spent once."""
    sizes = [level.z_L.numel() for level in levels]
    return tuple(
        replace(level, z_L=part.view(level.z_L.shape))
        for level, part in zip(levels, posts_m.split(sizes), strict=True)
    )
