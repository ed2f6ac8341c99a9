"""Fractal roughness, octave by octave, as a function of place.

Octave b is a random spline: hashed white noise on a lattice of 2^b m, high-passed by what a
binomial (1 4 6 4 1)/16 takes away, on cubic B-splines: band-limited noise (Cook and DeRose 2005).
Its amplitude grows as 2^(b H), so that the RMS deviation over a baseline L grows as L^H. A level
shows an octave averaged by the hat of its posts, as it does with craters.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import BSpline

from tnav.terrain.lattice import Window
from tnav.terrain.synthetic import hashing
from tnav.terrain.synthetic.recipe import Relief, Resolution

Floats = NDArray[np.float64]

NODES_PER_WAVELENGTH = 4.0  # an octave's strongest wave over its node spacing
_SMOOTH = np.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
_HAT_SAMPLES = 8  # midpoints on each side of the hat
_NOISE, _SHIFT = 101, 102  # keys of the hash
_OCTAVES_FOR_SCALE = range(-30, 41)  # those that any baseline can tell
_RESOLUTION_STEP_M = 512.0  # a seam is feathered over km
_BASELINE_M = 17.0


def rough_heights(
    window: Window,
    recipe: Relief,
    *,
    wavelength_max_m: float,
    seed: int,
    resolution: Resolution | None = None,
) -> torch.Tensor:
    """Heights (rows, cols) float64 of all octaves that the posts can carry, up to a wavelength."""
    out = torch.zeros(window.rows, window.cols, dtype=torch.float64)
    if recipe.rms_deviation_17m_m == 0:
        return out
    first = math.ceil(math.log2(window.post_m) - 1e-9)
    last = math.floor(math.log2(wavelength_max_m / NODES_PER_WAVELENGTH) + 1e-9)
    scale = recipe.rms_deviation_17m_m / _unit_deviation(_BASELINE_M, recipe.hurst)
    held_m = None
    for octave in range(first, last + 1):
        amplitude_m = scale * 2.0 ** (octave * recipe.hurst)
        heights = amplitude_m * _octave_heights(window, octave, seed).double()
        wavelength_m = NODES_PER_WAVELENGTH * 2.0**octave
        if resolution is not None and wavelength_m > resolution.steps_m[0]:
            held_m = _resolution_grid_m(window, resolution) if held_m is None else held_m
            # from none of an octave on a tile that holds it to all of it on one that does not
            finer_m = max(step for step in resolution.steps_m if step < wavelength_m)
            coarser_m = min(step for step in resolution.steps_m if step >= wavelength_m)
            heights *= ((held_m - finer_m) / (coarser_m - finer_m)).clamp(0, 1)
        out += heights
    return out


def _resolution_grid_m(window: Window, resolution: Resolution) -> torch.Tensor:
    """A DEM's resolution at a window's posts: linear between places at multiples of a distance."""
    stride = max(1, round(_RESOLUTION_STEP_M / window.post_m))
    grids = []
    for first, count in ((window.row0, window.rows), (window.col0, window.cols)):
        low, high = first // stride, (first + count - 1) // stride + 1
        node = np.arange(low, high + 1)
        at = np.arange(first, first + count) / stride - low
        grids.append((node * stride * window.post_m, at))
    (north_m, row), (east_m, column) = grids
    east, north = np.meshgrid(east_m, north_m)
    held = torch.from_numpy(resolution.at(east.ravel(), north.ravel()).reshape(east.shape))
    for axis, at in ((0, row), (1, column)):
        below = torch.from_numpy(np.minimum(at.astype(np.int64), held.shape[axis] - 2))
        share = torch.from_numpy(at) - below
        share = share[:, None] if axis == 0 else share
        sides = [held.index_select(axis, below + k) for k in (0, 1)]
        held = torch.lerp(sides[0], sides[1], share)
    return held


def _octave_heights(window: Window, octave: int, seed: int) -> torch.Tensor:
    """One octave of unit noise on a window."""
    spacing_m = 2.0**octave
    shift = hashing.uniform(seed, octave, _SHIFT, np.array([0, 1], dtype=np.int64))
    north = (window.row0 + np.arange(window.rows)) * (window.post_m / spacing_m) + shift[0]
    east = (window.col0 + np.arange(window.cols)) * (window.post_m / spacing_m) + shift[1]
    half_width = window.post_m / spacing_m
    row0, by_row = _weights(north, half_width)
    col0, by_col = _weights(east, half_width)
    rows = np.arange(row0 - 2, row0 + by_row.shape[1] + 2, dtype=np.int64)
    cols = np.arange(col0 - 2, col0 + by_col.shape[1] + 2, dtype=np.int64)
    noise = torch.from_numpy(
        hashing.near_normal(seed, octave, _NOISE, rows[:, None], cols[None, :])
    )
    smooth = torch.from_numpy(_SMOOTH).float()
    low = torch.nn.functional.conv2d(noise[None, None], smooth[:, None].mul(smooth)[None, None])
    node = noise[2:-2, 2:-2] - low[0, 0]
    return torch.from_numpy(by_row).float() @ node @ torch.from_numpy(by_col).float().T


def _weights(at: Floats, half_width: float) -> tuple[int, Floats]:
    """First node and weights (posts, nodes) of cubic B-splines averaged by a hat."""
    first = math.floor(at[0] - half_width) - 1
    count = math.floor(at[-1] + half_width) + 3 - first
    weights = np.zeros((len(at), count))
    post = np.arange(len(at))
    offset = (np.arange(2 * _HAT_SAMPLES) + 0.5) / _HAT_SAMPLES - 1
    hat = (1 - np.abs(offset)) / _HAT_SAMPLES
    for share, delta in zip(hat, offset, strict=True):
        place = at + delta * half_width
        node = np.floor(place)
        rest = place - node
        column = node.astype(np.int64) - first
        for k, value in enumerate(_cubic(rest)):
            weights[post, column - 1 + k] += share * value
    return first, weights


def _cubic(t: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """The four cubic B-splines that are not zero between two nodes."""
    s = 1 - t
    return (
        s**3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (3 * s**3 - 6 * s**2 + 4) / 6,
        t**3 / 6,
    )


@lru_cache(maxsize=64)
def _unit_deviation(baseline_m: float, hurst: float) -> float:
    """RMS deviation over a baseline of all octaves together, each of amplitude 2^(b H)."""
    total = sum(
        2.0 ** (2 * hurst * octave) * _structure(baseline_m / 2.0**octave)
        for octave in _OCTAVES_FOR_SCALE
    )
    return math.sqrt(total)


def _structure(lag: float) -> float:
    """Mean squared difference of one octave over a lag in nodes, averaged over places.

    With a = the spline and b = the spline of the smoothed noise, an octave's kernel is a(x) a(y) -
    b(x) b(y), and the difference of its autocorrelations at 0 and at the lag is a sum of products
    of one-dimensional ones.
    """
    aa, ab, bb = (_correlation(np.array([0.0, lag]), n) for n in (0, 1, 2))
    change = aa[0] * (aa[0] - aa[1]) - 2 * ab[0] * (ab[0] - ab[1]) + bb[0] * (bb[0] - bb[1])
    return max(0.0, 2 * float(change))


def _correlation(lag: Floats, times_smoothed: int) -> Floats:
    """Autocorrelation of the cubic B-spline (a septic one), smoothed by the binomial n times."""
    kernel = np.ones(1)
    for _ in range(times_smoothed):
        kernel = np.convolve(kernel, _SMOOTH)
    septic = BSpline.basis_element(np.arange(-4.0, 5.0), extrapolate=False)
    half = len(kernel) // 2
    values = [w * np.nan_to_num(septic(lag - k + half)) for k, w in enumerate(kernel)]
    return np.sum(values, axis=0)
