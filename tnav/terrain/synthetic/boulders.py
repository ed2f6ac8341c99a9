"""Boulders around fresh craters.

A crater of diameter D throws boulders of up to K D^(2/3) (Bart and Melosh 2007), of which
n0 (d / d_max)^-b exceed d. K, n0 and b are those of the mare crater Linne (Pajola et al. 2019):
D = 2.2 km, largest 30.8 m, 12 000 over 4.4 m, b = 4.03. Their density falls off exponentially from
the rim outwards, so that some tens of those are left 5 km from it, as there. Impacts break them:
half are gone after 40 to 80 Myr, 99 % after 150 to 300 (Basilevsky, Head and Horz 2013).
Craters that do not reach through the regolith throw none.

They are candidates of a Poisson process over tiles of their own, thinned to the density that the
craters around them give.
"""

import math

import numpy as np

from tnav.terrain.synthetic import craters, hashing
from tnav.terrain.synthetic.craters import Box, Craters
from tnav.terrain.synthetic.recipe import Relief, Resolution
from tnav.terrain.synthetic.stamping import Features, Floats

_SCALE = 30.8 / 2200.0 ** (2 / 3)  # K, in m^(1/3)
_EXPONENT = 4.03
_LARGEST_COUNT = 12000 * (4.4 / 30.8) ** _EXPONENT  # n0
_FALL_OFF_RADII = 0.7
_REACH_RADII = 6.0  # 0.3 % lie beyond
_SURVIVAL_MEDIAN_GYR = 0.06
_AGE_MAX_GYR = 0.3
_CRATER_MIN_M = 30.0  # about six times a mare regolith of 5 m
_DENSEST = 0.1  # boulders of an octave [d, 2 d) per d^2: ground cannot hold many more
_TILE_DIAMETERS = 64
_HEIGHT_MIN, _HEIGHT_SPAN = 0.35, 0.25  # what stands out of the ground over the diameter
_PAIRS = 2_000_000  # candidates times craters worked on at once
_COUNT, _EAST, _NORTH, _SIZE, _KEEP, _HEIGHT = range(50, 56)  # keys of the hash


def largest_boulder_m(crater_diameter_m: Floats) -> Floats:
    """Diameter of the largest boulder that a crater throws."""
    return _SCALE * np.asarray(crater_diameter_m) ** (2 / 3)


def boulders_near(
    box: Box,
    recipe: Relief,
    *,
    diameter_min_m: float,
    diameter_max_m: float,
    seed: int,
    resolution: Resolution | None = None,
) -> Features:
    """At least every boulder over a diameter that touches a box, from craters up to a diameter."""
    smallest_source_m = max(_CRATER_MIN_M, (diameter_min_m / _SCALE) ** 1.5)
    if smallest_source_m >= diameter_max_m:
        return _none()
    sources = craters.craters_near(
        box,
        recipe,
        diameter_min_m=smallest_source_m,
        diameter_max_m=diameter_max_m,
        seed=seed,
        reach_radii=_REACH_RADII,
    ).not_in(resolution)
    sources = sources.where((sources.age_gyr < _AGE_MAX_GYR) & sources.primary)
    if len(sources) == 0:
        return _none()
    largest_m = float(largest_boulder_m(sources.diameter_m).max())
    first, last = (math.floor(math.log2(d)) for d in (diameter_min_m, largest_m))
    parts = [_octave(box, k, sources, seed) for k in range(first, last + 1)]
    every = Features(
        np.concatenate([p.east_m for p in parts]),
        np.concatenate([p.north_m for p in parts]),
        np.concatenate([p.radius_m for p in parts]),
        np.concatenate([p.height_m for p in parts]),
        np.concatenate([p.state for p in parts]),
    )
    return every.where(2 * every.radius_m >= diameter_min_m)


def density_per_m2(
    east_m: Floats, north_m: Floats, diameter_m: Floats, octave: int, sources: Craters
) -> Floats:
    """Boulders of an octave per m^2 at places, from craters whose largest are no smaller."""
    largest_m = largest_boulder_m(sources.diameter_m)
    over = _LARGEST_COUNT * (2.0**octave / largest_m) ** -_EXPONENT
    count = over * (1 - 2.0**-_EXPONENT) * 0.5 ** (sources.age_gyr / _SURVIVAL_MEDIAN_GYR)
    radius_m = sources.diameter_m / 2
    at_rim = count / (2 * math.pi * radius_m**2 * _FALL_OFF_RADII * (1 + _FALL_OFF_RADII))
    total = np.zeros(len(east_m))
    rows = max(1, _PAIRS // len(sources))
    for first in range(0, len(east_m), rows):
        part = slice(first, first + rows)
        de = east_m[part, None] - sources.east_m
        dn = north_m[part, None] - sources.north_m
        range_radii = np.hypot(de, dn) / radius_m
        near = (range_radii >= 1) & (range_radii < _REACH_RADII)
        near &= diameter_m[part, None] <= largest_m
        fall = np.exp((1 - range_radii) / _FALL_OFF_RADII)
        total[part] = np.where(near, at_rim * fall, 0.0).sum(1)
    return total


def _octave(box: Box, octave: int, sources: Craters, seed: int) -> Features:
    size_m = 2.0**octave
    side_m = _TILE_DIAMETERS * size_m
    tiles = craters.tiles_of(box, side_m, 2 * size_m)
    mean = _DENSEST * _TILE_DIAMETERS**2
    counts = hashing.poisson(mean, hashing.uniform(seed, octave, _COUNT, *tiles))
    column, row, number = craters.spread(tiles, counts)
    key = hashing.hash_keys(seed, octave, _COUNT, column, row, number).view(np.int64)
    east_m = (column + hashing.uniform(seed, octave, _EAST, key)) * side_m
    north_m = (row + hashing.uniform(seed, octave, _NORTH, key)) * side_m
    # Inversion of the power law's share within the octave.
    draw = hashing.uniform(seed, octave, _SIZE, key)
    diameter_m = size_m * (1 - draw * (1 - 2.0**-_EXPONENT)) ** (-1 / _EXPONENT)
    density = density_per_m2(east_m, north_m, diameter_m, octave, sources)
    kept = hashing.uniform(seed, octave, _KEEP, key) * _DENSEST / size_m**2 < density
    share = _HEIGHT_MIN + _HEIGHT_SPAN * hashing.uniform(seed, octave, _HEIGHT, key)
    height_m = share * diameter_m
    every = Features(east_m, north_m, diameter_m / 2, height_m, np.zeros(len(key)))
    return every.where(kept)


def _none() -> Features:
    none = np.zeros(0)
    return Features(none, none, none, none, none)
