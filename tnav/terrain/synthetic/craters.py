"""Craters as a marked point process on the plane of L.

Every octave of diameters [2^o, 2^(o+1)) m has its own tiles of 64 x 2^o m; what lies in a tile is
a function of the seed, the octave and the tile. A share of the smaller ones are secondaries in
elongated clusters (Neyman and Scott 1958) around hashed parents; both kinds together follow the
expected count.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tnav.terrain.lattice import Window
from tnav.terrain.synthetic import hashing, population, profile
from tnav.terrain.synthetic.recipe import Relief, Resolution
from tnav.terrain.synthetic.stamping import Features

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Box = tuple[float, float, float, float]  # west, south, east, north in m

_TILE_DIAMETERS = 64  # tile side over the octave's smallest diameter
_KNOTS = 129  # of the tabulated sizes of one octave
_DEPTH_SCATTER = 0.15  # of the fresh depth, either way
_SECONDARY_DEPTH_RATIO = 0.11  # fresh secondaries are shallow (McEwen and Bierhaus 2006)
CLUSTER_MEAN = 10.0  # secondaries in a cluster
_CLUSTER_REACH, _CLUSTER_ASPECT = 8.0, 3.0  # long half axis in smallest diameters; its elongation

# What a hashed number is for: the second key of every draw, after the octave.
(
    _COUNT, _EAST, _NORTH, _SIZE, _AGE, _DEPTH, _PARENT_COUNT, _PARENT_EAST, _PARENT_NORTH,
    _CHILDREN, _AZIMUTH, _CLUSTER_AGE, _OFFSET, _BEARING,
) = range(14)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Craters:
    """Craters of the ground, in metres of L."""

    east_m: Floats
    north_m: Floats
    diameter_m: Floats  # rim to rim, as made
    depth_m: Floats  # rim to floor, as made
    state: Floats  # wear kappa t / R^2
    age_gyr: Floats  # of today's flux
    primary: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.diameter_m)

    def features(self) -> Features:
        """What is stamped: heights scale with the depth, distances with the rim's radius."""
        return Features(self.east_m, self.north_m, self.diameter_m / 2, self.depth_m, self.state)

    def not_in(self, resolution: Resolution | None) -> "Craters":
        """Those that are smaller than what a DEM holds at their centres."""
        if resolution is None:
            return self
        kept = self.diameter_m < resolution.steps_m[0]
        asked = np.flatnonzero(~kept)
        if len(asked):
            held_m = resolution.at(self.east_m[asked], self.north_m[asked])
            kept[asked] = self.diameter_m[asked] < held_m
        return self.where(kept)

    def where(self, chosen: NDArray[np.bool_]) -> "Craters":
        """Those of a mask."""
        return Craters(
            self.east_m[chosen],
            self.north_m[chosen],
            self.diameter_m[chosen],
            self.depth_m[chosen],
            self.state[chosen],
            self.age_gyr[chosen],
            self.primary[chosen],
        )


def craters_near(
    box: Box,
    recipe: Relief,
    *,
    diameter_min_m: float,
    diameter_max_m: float,
    seed: int,
    reach_radii: float = profile.REACH_RADII,
) -> Craters:
    """Every crater between two diameters that touches a box with so many of its radii."""
    octaves = []
    if diameter_max_m > diameter_min_m:
        first, last = (math.floor(math.log2(d)) for d in (diameter_min_m, diameter_max_m))
        for octave in range(first, last + 1):
            margin_m = reach_radii * 2.0**octave
            grown = (box[0] - margin_m, box[1] - margin_m, box[2] + margin_m, box[3] + margin_m)
            octaves.append(_octave(grown, octave, recipe, seed))
    every = _joined(octaves)
    reach_m = reach_radii * every.diameter_m / 2
    east_m, north_m = every.east_m, every.north_m
    return every.where(
        (every.diameter_m >= diameter_min_m)
        & (every.diameter_m < diameter_max_m)
        & (east_m > box[0] - reach_m)
        & (east_m < box[2] + reach_m)
        & (north_m > box[1] - reach_m)
        & (north_m < box[3] + reach_m)
    )


def _octave(box: Box, octave: int, recipe: Relief, seed: int) -> Craters:
    """All craters of the tiles of one octave that a box touches."""
    size_m = 2.0**octave
    side_m = _TILE_DIAMETERS * size_m
    diameters = size_m * 2.0 ** np.linspace(0, 1, _KNOTS)
    above = population.visible_per_m2(diameters, recipe)
    mean = float(above[0] - above[-1]) * side_m**2
    clustered = recipe.secondary_share if size_m < recipe.secondary_diameter_max_m else 0.0
    singles = _singles(tiles_of(box, side_m, 0.0), mean * (1 - clustered), side_m, octave, seed)
    parents = mean * clustered / CLUSTER_MEAN
    spread_m = _CLUSTER_REACH * size_m
    members = _members(tiles_of(box, side_m, spread_m), parents, side_m, octave, seed)
    east_m, north_m, keys, age_draw = (
        np.concatenate([a, b]) for a, b in zip(singles, members, strict=True)
    )
    primary = np.arange(len(east_m)) < len(singles[0])
    key = keys.astype(np.int64)
    # Size by inversion of the falling cumulative count.
    level = above[-1] + hashing.uniform(seed, octave, _SIZE, key) * (above[0] - above[-1])
    diameter_m = np.exp(np.interp(-level, -above, np.log(diameters)))
    scatter = 1 + _DEPTH_SCATTER * (2 * hashing.uniform(seed, octave, _DEPTH, key) - 1)
    ratio = np.where(primary, profile.fresh_depth_ratio(diameter_m), _SECONDARY_DEPTH_RATIO)
    life = population.visible_life(diameter_m, recipe)
    age = age_draw * np.minimum(life, population.flux_age(recipe.age_gyr))
    state = population.wear_per_gyr(diameter_m, recipe) * age
    depth_m = ratio * scatter * diameter_m
    return Craters(east_m, north_m, diameter_m, depth_m, state, age, primary)


def tiles_of(box: Box, side_m: float, margin_m: float) -> tuple[Ints, Ints]:
    """Columns and rows of the tiles that a box with a margin touches."""
    low = [math.floor((edge - margin_m) / side_m) for edge in box[:2]]
    high = [math.floor((edge + margin_m) / side_m) for edge in box[2:]]
    rows, columns = np.meshgrid(
        np.arange(low[1], high[1] + 1), np.arange(low[0], high[0] + 1), indexing="ij"
    )
    return columns.ravel().astype(np.int64), rows.ravel().astype(np.int64)


_Points = tuple[Floats, Floats, Ints, Floats]  # east, north, key, draw of the age


def spread(tiles: tuple[Ints, Ints], counts: Ints) -> tuple[Ints, Ints, Ints]:
    """Tile column, row and running number within the tile of every point."""
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    number = np.arange(len(starts), dtype=np.int64) - starts
    return np.repeat(tiles[0], counts), np.repeat(tiles[1], counts), number


def _singles(
    tiles: tuple[Ints, Ints], mean: float, side_m: float, octave: int, seed: int
) -> _Points:
    counts = hashing.poisson(mean, hashing.uniform(seed, octave, _COUNT, *tiles))
    column, row, number = spread(tiles, counts)
    key = hashing.hash_keys(seed, octave, _COUNT, column, row, number).view(np.int64)
    east_m = (column + hashing.uniform(seed, octave, _EAST, key)) * side_m
    north_m = (row + hashing.uniform(seed, octave, _NORTH, key)) * side_m
    return east_m, north_m, key, hashing.uniform(seed, octave, _AGE, key)


def _members(
    tiles: tuple[Ints, Ints], mean: float, side_m: float, octave: int, seed: int
) -> _Points:
    """Secondaries: hashed parents, each with its number of children, heading and one age."""
    counts = hashing.poisson(mean, hashing.uniform(seed, octave, _PARENT_COUNT, *tiles))
    column, row, number = spread(tiles, counts)
    parent = hashing.hash_keys(seed, octave, _PARENT_COUNT, column, row, number).view(np.int64)
    children = hashing.poisson(CLUSTER_MEAN, hashing.uniform(seed, octave, _CHILDREN, parent))
    origin = np.repeat(np.arange(len(parent)), children)
    _, parent_key, child = spread((parent, parent), children)
    key = hashing.hash_keys(seed, octave, _CHILDREN, parent_key, child).view(np.int64)
    reach_m = _CLUSTER_REACH * 2.0**octave
    out = np.sqrt(hashing.uniform(seed, octave, _OFFSET, key)) * reach_m
    bearing = 2 * math.pi * hashing.uniform(seed, octave, _BEARING, key)
    along, across = out * np.cos(bearing), out * np.sin(bearing) / _CLUSTER_ASPECT
    azimuth = 2 * math.pi * hashing.uniform(seed, octave, _AZIMUTH, parent)[origin]
    east_m = (column + hashing.uniform(seed, octave, _PARENT_EAST, parent))[origin] * side_m
    north_m = (row + hashing.uniform(seed, octave, _PARENT_NORTH, parent))[origin] * side_m
    east_m = east_m + along * np.sin(azimuth) + across * np.cos(azimuth)
    north_m = north_m + along * np.cos(azimuth) - across * np.sin(azimuth)
    return east_m, north_m, key, hashing.uniform(seed, octave, _CLUSTER_AGE, parent)[origin]


def _joined(parts: list[Craters]) -> Craters:
    if not parts:
        none = np.zeros(0)
        return Craters(none, none, none, none, none, none, none.astype(np.bool_))
    return Craters(
        np.concatenate([p.east_m for p in parts]),
        np.concatenate([p.north_m for p in parts]),
        np.concatenate([p.diameter_m for p in parts]),
        np.concatenate([p.depth_m for p in parts]),
        np.concatenate([p.state for p in parts]),
        np.concatenate([p.age_gyr for p in parts]),
        np.concatenate([p.primary for p in parts]),
    )


def box_of(window: Window) -> Box:
    """The ground that a window's posts span."""
    return (
        window.west_m,
        window.south_m,
        window.west_m + (window.cols - 1) * window.post_m,
        window.south_m + (window.rows - 1) * window.post_m,
    )
