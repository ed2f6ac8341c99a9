"""The ground under a descent: nested levels whose windows follow the ground track.

One local frame L serves the whole flight, with the DEM resampled into it to 600 km east and north
of its origin; the fixed point of that resampling holds wherever the ground is less steep than L's
vertical leans away from it (61 deg at such a corner). A level's lattice is cut into square tiles.
Each is a function of recipe, DEM, seed, level, row and column alone, is made when a view first
needs it, and is kept in memory within a stated budget and on disk under its content hash. Windows
are whole tiles, so that neighbouring frames see the same ones.
"""

import itertools
import math
from collections import OrderedDict
from pathlib import Path

import torch
from jaxtyping import Float32, Float64
from pydantic import Field, model_validator
from torch import Tensor

from tnav.config import Recipe
from tnav.dem.mosaic import open_dem
from tnav.errors import ConfigError
from tnav.geometry.moon import RADIUS_M, LocalFrame
from tnav.terrain.cache import DEFAULT_LIMIT_MB, HeightCache, content_hash, default_folder
from tnav.terrain.heightfield import Level, Terrain
from tnav.terrain.lattice import Window
from tnav.terrain.levels import HALF_SPAN_MAX_M, Pyramid, crop, support, up_in_L_
from tnav.terrain.synthetic import Relief

_BYTES = 4  # of a float32 height
_MIPMAP_SHARE = 1 / 15 + 0.01  # 1/16 + 1/256 + ... of the posts, and their rims
# A view that is being made is held twice (its levels, and packed), and whoever asks for it still
# holds the one before.
_COPIES = 3
# A level's tiles are made from the next coarser one's, which must not be the first to go; those
# that they were made from in turn may have been in use later than some of them.
_LEVELS_OF_TILES = 3


class CorridorRecipe(Recipe):
    """Where the ground is modelled along a descent, how finely, and what it may cost."""

    latitude_deg: float = Field(ge=-90, le=90)  # origin of L
    longitude_deg: float = Field(ge=-180, le=360)
    # manifest entry or path of a raster, or several in order of priority
    dem: str | list[str] = "lola_ldem16_frigoris"
    relief: Relief = Relief()
    finest_post_m: float = Field(default=0.5, gt=0)
    levels: int = Field(default=11, ge=1, le=16)  # posts double from level to level
    posts: int = Field(default=1024, ge=320)  # along each side of a level's window
    # Along each side of a tile. From 80 on, all that a window's tiles are made from lies in the
    # next coarser window: windows of 4 tiles leave a quarter of a tile, and 20 posts are needed.
    tile_posts: int = Field(default=256, ge=80, le=2048, multiple_of=2)
    memory_budget_mb: float = Field(default=512.0, gt=0)  # 1e6 bytes
    cache: Path | None = None  # folder; None stands for TNAV_CACHE, or ~/.cache/tnav
    cache_limit_mb: float = Field(default=DEFAULT_LIMIT_MB, gt=0)

    @model_validator(mode="after")
    def _nests(self) -> "CorridorRecipe":
        if self.posts % self.tile_posts or self.posts < 4 * self.tile_posts:
            raise ValueError(
                f"posts: {self.posts}, expected 4 or more times tile_posts ({self.tile_posts}): "
                "with fewer tiles a level does not always lie inside the next"
            )
        half_m = self.posts / 2 * self.finest_post_m * 2 ** (self.levels - 1)
        if half_m > HALF_SPAN_MAX_M:
            raise ValueError(
                f"{2e-3 * half_m:.0f} km wide, expected at most {2e-3 * HALF_SPAN_MAX_M:.0f} km: "
                "fewer levels, fewer or finer posts"
            )
        return self

    @property
    def frame(self) -> LocalFrame:
        """The local frame of the whole corridor."""
        return LocalFrame(self.latitude_deg, self.longitude_deg)

    @property
    def view_bytes(self) -> int:
        """Memory of a Terrain of all levels."""
        return math.ceil(self.levels * self.posts**2 * _BYTES * (1 + _MIPMAP_SHARE))

    @property
    def least_bytes(self) -> int:
        """The smallest budget that one view fits in."""
        return _COPIES * self.view_bytes + _LEVELS_OF_TILES * self.posts**2 * _BYTES


class Corridor:
    """Ground that is made where a flight needs it. On the CPU; ``Terrain.to`` moves a view.

    Attributes:
        recipe: what it was made from.
        resident_bytes: heights now held: tiles and the latest view.
        peak_bytes: the most ever held, with the copies of a view in the making and the view before.
        tiles_built: tiles computed so far, neither found in memory nor on disk.
    """

    def __init__(self, recipe: CorridorRecipe, seed: int) -> None:
        """Open the DEM and the cache; no height is computed yet.

        Args:
            recipe: where and how fine.
            seed: of the relief.

        Raises:
            ConfigError: the memory budget does not hold one view, or the cache is not writable.
            TileError: the DEM is missing or damaged.
        """
        budget_bytes = int(recipe.memory_budget_mb * 1e6)
        if budget_bytes < recipe.least_bytes:
            raise ConfigError(
                f"corridor.memory_budget_mb: {recipe.memory_budget_mb:g}, but one view of "
                f"{recipe.levels} levels of {recipe.posts} x {recipe.posts} posts needs "
                f"{math.ceil(recipe.least_bytes / 1e6)} MB; raise it, or take fewer levels or posts"
            )
        self.recipe = recipe
        self.tiles_built = 0
        self.peak_bytes = 0
        tile_bytes = recipe.tile_posts**2 * _BYTES
        places = (budget_bytes - _COPIES * recipe.view_bytes) // tile_bytes
        # One block for all tiles: each on its own among views that come and go would leave a heap
        # of holes, many times the budget. Pages that hold no tile yet take no memory.
        self._pool = torch.empty(places, recipe.tile_posts, recipe.tile_posts)
        self._places: OrderedDict[tuple[int, int, int], int] = OrderedDict()  # longest unused first
        self._latest: tuple[tuple[Window, ...], Terrain] | None = None
        folder = recipe.cache or default_folder()
        self._cache = HeightCache(folder, recipe.cache_limit_mb) if folder else None
        self._pyramid = Pyramid(
            frame=recipe.frame,
            finest_post_m=recipe.finest_post_m,
            levels=recipe.levels,
            dem=open_dem(recipe.dem),
            relief=recipe.relief,
            seed=seed,
        )

    @property
    def resident_bytes(self) -> int:
        """Heights now held: tiles and the latest view."""
        return self._tiles_bytes + (_terrain_bytes(self._latest[1]) if self._latest else 0)

    @property
    def _tiles_bytes(self) -> int:
        return len(self._places) * self.recipe.tile_posts**2 * _BYTES

    def terrain_at(
        self, position_L: Float64[Tensor, "3"], *, finest_post_m: float | None = None
    ) -> Terrain:
        """The nested levels around the ground below a point.

        Args:
            position_L: the spacecraft, or a point on the ground.
            finest_post_m: finer posts are left out; a quarter of the pixel on the ground is what a
                view can use. None takes all levels.

        Returns:
            The terrain; the same object as before where no window has moved.

        Raises:
            ConfigError: the windows reach beyond the local frame.
            TileError: the DEM does not cover them.
        """
        if not bool(position_L.isfinite().all()):
            raise ConfigError(f"corridor: position {position_L.tolist()}, expected finite numbers")
        first = self.first_level(finest_post_m)
        east_m, north_m = _ground_below(position_L)
        windows = tuple(
            self._window_around(k, east_m, north_m) for k in range(first, self.recipe.levels)
        )
        if self._latest is None or self._latest[0] != windows:
            self._latest = None  # its memory may be needed
            self._latest = (windows, self._assembled(first, windows))
        return self._latest[1]

    def first_level(self, finest_post_m: float | None) -> int:
        """Index of the finest level whose posts are no finer than a limit, or of the coarsest."""
        if finest_post_m is None:
            return 0
        ratio = finest_post_m / self.recipe.finest_post_m
        wanted = math.ceil(math.log2(ratio) - 1e-9) if ratio > 1 else 0
        return min(wanted, self.recipe.levels - 1)

    def _tile_m(self, level: int, row: int, col: int) -> Float32[Tensor, "n n"]:
        """Rise over the sphere of one tile, from memory, from disk or computed.

        The tile's southernmost row of posts is ``row * tile_posts``. What is returned lies in the
        pool: the next call may overwrite it.
        """
        index = (level, row, col)
        if index in self._places:
            self._places.move_to_end(index)
            return self._pool[self._places[index]]
        key = content_hash({**self._pyramid.content(), "tile": [*index, self.recipe.tile_posts]})
        tile = self._cache.get(key) if self._cache else None
        if tile is None:
            tile = self._built(level, row, col)
            self.tiles_built += 1
            if self._cache:
                self._cache.put(key, tile)
        place = len(self._places)
        if place == len(self._pool):
            _, place = self._places.popitem(last=False)
        self._places[index] = place
        self.peak_bytes = max(self.peak_bytes, self.resident_bytes)
        return self._pool[place].copy_(tile)

    def rise_m(self, level: int, window: Window) -> Float32[Tensor, "rows cols"]:
        """Rise over the sphere on a window, gathered from the tiles that it touches."""
        n = self.recipe.tile_posts
        out = torch.empty(window.rows, window.cols)
        last_row, last_col = window.row0 + window.rows - 1, window.col0 + window.cols - 1
        for row, col in itertools.product(
            range(window.row0 // n, last_row // n + 1), range(window.col0 // n, last_col // n + 1)
        ):
            south, west = max(row * n, window.row0), max(col * n, window.col0)
            north, east = min(row * n + n - 1, last_row), min(col * n + n - 1, last_col)
            part = Window(window.post_m, south, west, north - south + 1, east - west + 1)
            tile = Window(window.post_m, row * n, col * n, n, n)
            crop(out, window, part).copy_(crop(self._tile_m(level, row, col), tile, part))
        return out

    def _built(self, level: int, row: int, col: int) -> Float32[Tensor, "n n"]:
        n = self.recipe.tile_posts
        window = self._pyramid.window(level, row * n, col * n, n, n)
        if level == self.recipe.levels - 1:
            return self._pyramid.coarsest_m(window)
        coarse = support(window)
        return self._pyramid.refine(window, self.rise_m(level + 1, coarse), coarse)

    def _window_around(self, level: int, east_m: float, north_m: float) -> Window:
        """Whole tiles around a point."""
        n, posts = self.recipe.tile_posts, self.recipe.posts
        post_m = self._pyramid.window(level, 0, 0, 1, 1).post_m
        row0, col0 = (
            n * round(centre_m / (n * post_m) - posts / n / 2) for centre_m in (north_m, east_m)
        )
        window = Window(post_m, row0, col0, posts, posts)
        reach_m = max(abs(float(v)) for axis in window.axes_m() for v in (axis[0], axis[-1]))
        if reach_m > HALF_SPAN_MAX_M:
            raise ConfigError(
                f"corridor: the level of {post_m:g} m posts would reach {reach_m / 1e3:.0f} km "
                f"from the local frame's origin, expected at most {HALF_SPAN_MAX_M / 1e3:.0f} km; "
                "move the origin along the track, or take fewer levels or posts"
            )
        return window

    def _assembled(self, first: int, windows: tuple[Window, ...]) -> Terrain:
        numbered = list(enumerate(windows, start=first))
        # Coarsest first: tiles that finer ones are made from are then still in memory.
        levels = [
            Level(w.west_m, w.south_m, w.post_m, up_in_L_(self.rise_m(k, w), w))
            for k, w in numbered[::-1]
        ]
        terrain = Terrain(levels[::-1])
        copies = (_COPIES - 1) * _terrain_bytes(terrain) + self.recipe.view_bytes
        self.peak_bytes = max(self.peak_bytes, self._tiles_bytes + copies)
        return terrain


def _terrain_bytes(terrain: Terrain) -> int:
    return _BYTES * (terrain.packed.posts_m.numel() + terrain.packed.maxima_m.numel())


def _ground_below(position_L: Float64[Tensor, "3"]) -> tuple[float, float]:
    """East and north in L of the sphere's point below a position, along the local vertical."""
    x, y, z = position_L.tolist()
    share = RADIUS_M / math.sqrt(x * x + y * y + (z + RADIUS_M) ** 2)
    return x * share, y * share
