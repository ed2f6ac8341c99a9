"""Several tiles as one surface: by priority, with seams feathered inside the higher tile.

With weights ``a_k`` that rise smoothly from 0 at the edges and holes of tile k to 1 at the
feather's width inside it, the height is ``sum(w_k h_k) / sum(w_k)``, where
``w_k = a_k prod_{j<k} (1 - a_j)``.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tnav.dem.tiles import Tile, open_tile
from tnav.errors import TileError

FEATHER_M = 10e3
_LEAST_WEIGHT = 1e-6  # of a valid point on its tile's very edge, so that no sum of weights is zero
_OVERLAP_GRID = 96  # points along each side of an overlap where tiles are compared
_MAD_TO_SIGMA = 1.4826  # of a normal distribution


@dataclass(frozen=True, slots=True)
class Mosaic:
    """Tiles in order of priority; a lower one shows where the higher ones end or have holes."""

    tiles: tuple[Tile, ...]
    feather_m: float
    offsets_m: tuple[float, ...]  # added to each tile's heights

    @property
    def posting_m(self) -> float:
        """Of the finest tile."""
        return min(tile.posting_m for tile in self.tiles)

    @property
    def effective_resolution_m(self) -> float:
        """Of the coarsest tile: what is in the data everywhere."""
        return max(tile.effective_resolution_m for tile in self.tiles)

    @property
    def fingerprint(self) -> str:
        """Hex digest of all tiles, their order, offsets and the feather's width."""
        parts = [tile.fingerprint for tile in self.tiles]
        text = "|".join([*parts, repr(self.offsets_m), repr(self.feather_m)])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def label(self) -> str:
        """Names for messages."""
        return "mosaic of " + ", ".join(tile.name for tile in self.tiles)

    def heights_m(
        self, latitude_deg: NDArray[np.float64], longitude_deg: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Heights above the 1737.4 km sphere, NaN where no tile has data."""
        total, height_m = np.zeros(latitude_deg.shape), np.zeros(latitude_deg.shape)
        for weight, found_m in self._layers(latitude_deg, longitude_deg):
            total += weight
            height_m += weight * np.nan_to_num(found_m)
        return np.where(total > 0, height_m / np.where(total > 0, total, 1.0), np.nan)

    def explain(self, latitude_deg: NDArray[np.float64], longitude_deg: NDArray[np.float64]) -> str:
        """Why there is no height at such points, tile by tile."""
        each = [f"{t.name}: {t.explain(latitude_deg, longitude_deg)}" for t in self.tiles]
        return "no tile has them: " + "; ".join(each)

    def resolution_m(
        self, latitude_deg: NDArray[np.float64], longitude_deg: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Effective resolution at points, blended as the heights are; NaN where no data is."""
        layers = self._layers(latitude_deg, longitude_deg)
        weights = np.stack([weight for weight, _ in layers])
        each = np.array([tile.effective_resolution_m for tile in self.tiles])
        total = weights.sum(0)
        blended = np.tensordot(each, weights, 1)
        return np.where(total > 0, blended / np.where(total > 0, total, 1.0), np.nan)

    def at_posting(self, posting_m: float) -> "Mosaic":
        """The same mosaic, its tiles read from overviews that are not coarser than a posting."""
        return replace(self, tiles=tuple(tile.at_posting(posting_m) for tile in self.tiles))

    def _layers(
        self, latitude_deg: NDArray[np.float64], longitude_deg: NDArray[np.float64]
    ) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Weight and height of each tile at points; the weight is 0 where there is no height."""
        left = np.ones(latitude_deg.shape)
        layers = []
        for tile, offset_m in zip(self.tiles, self.offsets_m, strict=True):
            found = tile.samples(latitude_deg, longitude_deg, reach_m=self.feather_m)
            height_m = tile.to_height_m(found.value) + offset_m
            share = np.clip(found.distance_m / self.feather_m, 0.0, 1.0)
            weight = np.maximum(share * share * (3 - 2 * share), _LEAST_WEIGHT)
            weight = np.where(np.isfinite(height_m), weight, 0.0)
            layers.append((left * weight, height_m))
            left = left * (1 - weight)
        return layers


@dataclass(frozen=True, slots=True)
class Offset:
    """How far a tile lies above the first one, where both have data."""

    name: str
    reference: str
    median_m: float
    sigma_m: float  # robust: 1.4826 times the median absolute deviation
    points: int


def open_dem(spec: str | Sequence[str], feather_m: float = FEATHER_M) -> Tile | Mosaic:
    """A tile by name or path, or a mosaic of several.

    Args:
        spec: one name or path, or several in order of priority.
        feather_m: width of the seams, measured inwards from a tile's edges and holes.

    Raises:
        TileError: none named, a tile that cannot be opened, or a width that is not positive.
    """
    names = [spec] if isinstance(spec, str) else list(spec)
    if not names:
        raise TileError("dem: no tile named, expected a name or path, or a list of them")
    if not feather_m > 0:
        raise TileError(f"feather of {feather_m:g} m, expected more than 0")
    tiles = tuple(open_tile(name) for name in names)
    if len(tiles) == 1:
        return tiles[0]
    return Mosaic(tiles, feather_m, (0.0,) * len(tiles))


def measure_offsets(mosaic: Mosaic) -> tuple[Offset, ...]:
    """Vertical offsets of the lower tiles against the first, on a grid over each overlap.

    Tiles without an overlap are left out: nothing can be said of them.
    """
    first = mosaic.tiles[0]
    found = []
    for tile in mosaic.tiles[1:]:
        latitude, longitude = _overlap(first, tile)
        if latitude.size == 0:
            continue
        difference = tile.heights_m(latitude, longitude) - first.heights_m(latitude, longitude)
        difference = difference[np.isfinite(difference)]
        if difference.size == 0:
            continue
        median = float(np.median(difference))
        sigma = _MAD_TO_SIGMA * float(np.median(np.abs(difference - median)))
        found.append(Offset(tile.name, first.name, median, sigma, difference.size))
    return tuple(found)


def aligned(mosaic: Mosaic, offsets: Sequence[Offset]) -> Mosaic:
    """The mosaic with measured offsets taken out: all agree with the first tile in the median."""
    correction = {offset.name: -offset.median_m for offset in offsets}
    return replace(mosaic, offsets_m=tuple(correction.get(tile.name, 0.0) for tile in mosaic.tiles))


def _overlap(a: Tile, b: Tile) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A grid of points inside the bounds of both."""
    west, south, east, north = a.grid.bounds_deg
    other_west, other_south, other_east, other_north = b.grid.bounds_deg
    south, north = max(south, other_south), min(north, other_north)
    latitude, longitude = np.meshgrid(
        np.linspace(south, north, _OVERLAP_GRID + 2)[1:-1],
        np.linspace(west, east, _OVERLAP_GRID + 2)[1:-1],
        indexing="ij",
    )
    inside = (longitude - other_west) % 360.0 <= other_east - other_west
    inside &= south < north
    return latitude[inside], longitude[inside]
