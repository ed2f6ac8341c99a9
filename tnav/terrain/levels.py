"""Heights of every level as a function of lattice position; the finer averages to the coarser.

Restriction R is the binomial (1 2 1)/4 along both axes at every second post. Prolongation P is the
six-point subdivision S (Deslauriers and Dubuc 1989) after the filter (R S)^-1, so that R P = I.
With F the detail that belongs to the finer posts, a level follows from the coarser one as

    z_fine = F + P(z_coarse - R F),    hence    R z_fine = z_coarse,

the lifting of a biorthogonal wavelet (Sweldens 1996): whatever F is, its averages are replaced by
the coarser level's. F is the synthetic relief, and the DEM too where posts are coarse enough to
show it. No border is repeated anywhere: a window is computed from as much of its surroundings as
its posts depend on, so two windows agree where they overlap.

The algebra is float64. What is stored between levels is the rise over the sphere along L's
vertical, as float32: a few km, rounded by 0.12 mm. Up coordinates in L are rounded once, at the
end: by at most 4 mm at 500 km from the origin (73 km of sag), 1 mm at 250 km, 0.12 mm at 80 km.
"""

import functools
import hashlib
import importlib.metadata
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from tnav.dem.mosaic import Mosaic
from tnav.dem.tiles import Dem, sample_height_m
from tnav.errors import TileError
from tnav.geometry.moon import RADIUS_M, LocalFrame
from tnav.terrain.lattice import Window
from tnav.terrain.synthetic import Relief, Resolution, relief_m

HALF_SPAN_MAX_M = 600e3  # of L: the vertical of L leans 29 deg on the ground at such a corner
_REACH_MAX_M = 620e3  # and what posts at that border depend on
_SUBDIVISION = (3 / 256, -25 / 256, 150 / 256, 150 / 256, -25 / 256, 3 / 256)
_INVERSE_REACH = 17  # taps on either side of (R S)^-1; the first one dropped is 3e-10
_STRIP_ROWS = 512  # rows of a level worked on at once: bounds the float64 temporaries
_BLOCK_POSTS = 512  # side of the squares in which a DEM is sampled
_OVERSAMPLING_MAX = 2  # halvings of the posts at which a DEM is sampled before it is averaged
_GUESS_STRIDE = 8  # the fixed point starts from every eighth post
_TOLERANCE_M = 1e-6  # last step of the fixed point; what is left is its square
_ITERATIONS_MAX = 40
_SLOPE_MAX = 0.9  # of the fixed point's map; beyond, the secant is not trusted

Heights = Float64[Tensor, "_ _"]  # m, rows from south to north, columns from west to east


def restrict(fine_m: Heights) -> Heights:
    """R: averages at rows and columns 1, 3, 5, ... of a grid."""
    rows = 0.25 * (fine_m[:-2:2] + fine_m[2::2]) + 0.5 * fine_m[1:-1:2]
    return 0.25 * (rows[:, :-2:2] + rows[:, 2::2]) + 0.5 * rows[:, 1:-1:2]


def prolong(coarse_m: Heights, coarse: Window, fine: Window) -> Heights:
    """P: the surface at half the posts whose averages are the coarse heights.

    Args:
        coarse_m: heights on ``support(fine)`` or more.
        coarse: where they are.
        fine: where to.
    """
    wanted = support(fine)
    z = crop(coarse_m, coarse, wanted).numpy()
    for axis in (0, 1):
        z = ndimage.correlate1d(z, _inverse(), axis=axis, mode="constant")
    reach = _INVERSE_REACH
    out = torch.from_numpy(z[reach:-reach, reach:-reach])
    first = (fine.row0 // 2 - 2, fine.col0 // 2 - 2)
    for axis, (start, offset, count) in enumerate(
        ((first[0], fine.row0, fine.rows), (first[1], fine.col0, fine.cols))
    ):
        out = _subdivided(out, axis).narrow(axis, offset - 2 * (start + 2), count)
    return out


def support(fine: Window) -> Window:
    """The posts of the coarser level on which a window of the finer one depends."""
    reach = _INVERSE_REACH + 2
    south, west = fine.row0 // 2 - reach, fine.col0 // 2 - reach
    north = (fine.row0 + fine.rows - 1) // 2 + reach + 1
    east = (fine.col0 + fine.cols - 1) // 2 + reach + 1
    return Window(2 * fine.post_m, south, west, north - south + 1, east - west + 1)


def refined_by(coarse: Window) -> Window:
    """The posts of the finer level whose averages are the posts of a coarse window."""
    return Window(
        coarse.post_m / 2,
        2 * coarse.row0 - 1,
        2 * coarse.col0 - 1,
        2 * coarse.rows + 1,
        2 * coarse.cols + 1,
    )


def hull(a: Window, b: Window) -> Window:
    """The smallest window that holds two of one lattice."""
    row0, col0 = min(a.row0, b.row0), min(a.col0, b.col0)
    rows = max(a.row0 + a.rows, b.row0 + b.rows) - row0
    return Window(a.post_m, row0, col0, rows, max(a.col0 + a.cols, b.col0 + b.cols) - col0)


def crop(grid: Tensor, held: Window, wanted: Window) -> Tensor:
    """The part of a grid (a view) that lies on a smaller window."""
    i, j = wanted.row0 - held.row0, wanted.col0 - held.col0
    if min(i, j) < 0 or i + wanted.rows > held.rows or j + wanted.cols > held.cols:
        raise ValueError(f"{wanted} is not inside {held}")
    return grid[i : i + wanted.rows, j : j + wanted.cols]


def up_in_L_(rise_m: Float32[Tensor, "r c"], window: Window) -> Float32[Tensor, "r c"]:
    """Up coordinates in L of a rise over the sphere, in its place."""
    for strip in _strips(window):
        part = crop(rise_m, window, strip)
        part.copy_(part.double() + _sphere_m(*strip.axes_m()))
    return rise_m


@dataclass(frozen=True, slots=True)
class Pyramid:
    """What the heights of all levels depend on. Level k has posts of ``finest_post_m * 2**k``."""

    frame: LocalFrame
    finest_post_m: float
    levels: int
    dem: Dem
    relief: Relief
    seed: int

    def window(self, level: int, row0: int, col0: int, rows: int, cols: int) -> Window:
        """A window of a level."""
        return Window(self.finest_post_m * 2**level, row0, col0, rows, cols)

    def content(self) -> dict[str, object]:
        """All that heights depend on, but for level and window, as JSON holds it."""
        return {
            "latitude_deg": self.frame.latitude_deg,
            "longitude_deg": self.frame.longitude_deg,
            "finest_post_m": self.finest_post_m,
            "levels": self.levels,
            "dem": self.dem.fingerprint,
            "relief": self.relief.model_dump(mode="json"),
            "seed": self.seed,
            "arithmetic": _arithmetic(),
        }

    def coarsest_m(self, window: Window) -> Float32[Tensor, "rows cols"]:
        """Rise of the coarsest level: DEM and the relief that its posts show."""
        strips = [
            (self._detail_m(strip, dem=True) - _sphere_m(*strip.axes_m())).float()
            for strip in _strips(window)
        ]
        return torch.cat(strips)

    def refine(
        self, fine: Window, coarse_m: Float32[Tensor, "r c"], coarse: Window
    ) -> Float32[Tensor, "rows cols"]:
        """Rise on a window of a level from that of the next coarser one.

        Args:
            fine: the window.
            coarse_m: rise of the coarser level on ``support(fine)`` or more.
            coarse: where that is.
        """
        dem = 4 * fine.post_m > self.dem.posting_m  # finer posts have nothing left to take of it
        out = torch.empty(fine.rows, fine.cols)
        for strip in _strips(fine):
            below = support(strip)
            around = refined_by(below)
            detail_m = self._detail_m(around, dem=dem)
            rest_m = crop(coarse_m, coarse, below).double() + _sphere_m(*below.axes_m())
            rest_m -= restrict(detail_m)
            z_L = crop(detail_m, around, strip) + prolong(rest_m, below, strip)
            crop(out, fine, strip).copy_(z_L - _sphere_m(*strip.axes_m()))
        return out

    def rise_m(self, level: int, window: Window) -> Float32[Tensor, "rows cols"]:
        """Rise over the sphere on any window of any level, computed from nothing."""
        if level == self.levels - 1:
            return self.coarsest_m(window)
        coarse = support(window)
        return self.refine(window, self.rise_m(level + 1, coarse), coarse)

    def _detail_m(self, window: Window, *, dem: bool) -> Heights:
        limit_m = self.dem.effective_resolution_m
        z_L = relief_m(
            window,
            self.relief,
            diameter_max_m=limit_m,
            wavelength_max_m=limit_m,
            seed=self.seed,
            resolution=self._resolution(),
        ).double()
        if dem:
            z_L += averaged_dem_m(self.dem, self.frame, window)
        return z_L

    def _resolution(self) -> Resolution | None:
        """Of a mosaic of unequal tiles; None where one number says it."""
        if not isinstance(self.dem, Mosaic):
            return None
        mosaic, frame = self.dem, self.frame
        steps_m = tuple(sorted({tile.effective_resolution_m for tile in mosaic.tiles}))
        if len(steps_m) == 1:
            return None

        def at(east_m: NDArray[np.float64], north_m: NDArray[np.float64]) -> NDArray[np.float64]:
            s = east_m**2 + north_m**2
            up_m = -s / (np.sqrt(RADIUS_M**2 - s) + RADIUS_M)
            point_L = torch.from_numpy(np.stack([east_m, north_m, up_m], -1))
            latitude, longitude, _ = frame.geodetic(point_L)
            held_m = mosaic.resolution_m(np.asarray(latitude), np.asarray(longitude))
            return np.where(np.isfinite(held_m), held_m, mosaic.effective_resolution_m)

        return Resolution(steps_m, at)


def averaged_dem_m(dem: Dem, frame: LocalFrame, window: Window) -> Heights:
    """A DEM in L with curvature, averaged by the hat of a window's posts.

    R from level to level tends to that average, so it is what a level must hold if finer ones are
    to come out as the DEM itself. At half the DEM's posting the average is (1 10 1)/12 along both
    axes, to fourth order; R brings it to coarser posts. At most four times as many samples are
    taken along an axis as the window has posts: what little is finer still aliases.
    """
    ratio = math.log2(2 * window.post_m / dem.posting_m)
    halvings = min(max(round(ratio), 0), _OVERSAMPLING_MAX)
    out = torch.empty(window.rows, window.cols, dtype=torch.float64)
    side = _BLOCK_POSTS >> halvings
    for i in range(0, window.rows, side):
        for j in range(0, window.cols, side):
            block = Window(
                window.post_m,
                window.row0 + i,
                window.col0 + j,
                min(side, window.rows - i),
                min(side, window.cols - j),
            )
            finest = functools.reduce(lambda w, _: refined_by(w), range(halvings), block)
            z_L = _hat_average(resample_m(dem, frame, finest.grown(1)))
            for _ in range(halvings):
                z_L = restrict(z_L)
            crop(out, window, block).copy_(z_L)
    return out


def _hat_average(z: Heights) -> Heights:
    rows = (z[:-2] + z[2:] + 10 * z[1:-1]) / 12
    return (rows[:, :-2] + rows[:, 2:] + 10 * rows[:, 1:-1]) / 12


def resample_m(dem: Dem, frame: LocalFrame, window: Window) -> Heights:
    """DEM heights in the local frame: where does the vertical of L meet them?

    A fixed point of z = sqrt((R + h(x, y, z))^2 - x^2 - y^2) - R, found by secants at every post.
    Its map contracts by the ground's slope times the lean of L's vertical, so few steps do.

    Raises:
        TileError: the DEM does not cover the window, or the fixed point is not found.
    """
    east_m, north_m = window.axes_m()
    extreme_m = float(torch.cat([east_m, north_m]).abs().max())
    if extreme_m > _REACH_MAX_M:
        raise TileError(
            f"terrain: {extreme_m / 1e3:.0f} km east or north of the local frame's origin, "
            f"expected at most {_REACH_MAX_M / 1e3:.0f} km; move the origin along the track, or "
            "take fewer levels or posts"
        )
    coarse = (_knots(east_m), _knots(north_m))
    guess_m = _solve(dem, frame, *coarse, _sphere_m(*coarse))
    # Heights over the sphere are what interpolates well; straight lines do for a guess.
    over_m = guess_m - _sphere_m(*coarse)
    start_m = _sphere_m(east_m, north_m) + _between(over_m, coarse, (east_m, north_m))
    return _solve(dem, frame, east_m, north_m, start_m)


def _solve(
    dem: Dem,
    frame: LocalFrame,
    east_m: Float64[Tensor, " c"],
    north_m: Float64[Tensor, " r"],
    start_m: Heights,
) -> Heights:
    x, y = east_m[None, :].expand_as(start_m), north_m[:, None].expand_as(start_m)
    xx_yy = x.square() + y.square()

    def mapped(z: Tensor) -> Tensor:
        latitude, longitude, _ = frame.geodetic(torch.stack([x, y, z], -1))
        height_m = torch.from_numpy(
            sample_height_m(dem, np.asarray(latitude), np.asarray(longitude))
        )
        return ((RADIUS_M + height_m) ** 2 - xx_yy).sqrt() - RADIUS_M

    z, image = start_m, mapped(start_m)
    following = image
    for _ in range(_ITERATIONS_MAX):
        if float((following - z).abs().max()) < _TOLERANCE_M:
            return following
        step, previous = following - z, image
        z, image = following, mapped(following)
        # Where a step is all rounding, its secant is too: there the map alone is good enough.
        moved = step.abs() > _TOLERANCE_M
        slope = torch.where(moved, (image - previous) / torch.where(moved, step, 1.0), 0.0)
        slope = slope.clamp(-_SLOPE_MAX, _SLOPE_MAX)
        following = z + (image - z) / (1 - slope)
    raise TileError(
        f"terrain: the ground around ({float(x.mean()):.0f}, {float(y.mean()):.0f}) m of the local "
        "frame overhangs seen along its vertical; move the origin closer"
    )


def _sphere_m(east_m: Float64[Tensor, " c"], north_m: Float64[Tensor, " r"]) -> Heights:
    s = east_m.square()[None, :] + north_m.square()[:, None]
    return -s / ((RADIUS_M**2 - s).sqrt() + RADIUS_M)  # sqrt(R^2 - s) - R, uncancelled


def _knots(axis_m: Float64[Tensor, " n"]) -> Float64[Tensor, " k"]:
    """Every eighth coordinate, and the last."""
    count = max(2, -(-(len(axis_m) - 1) // _GUESS_STRIDE) + 1)
    return torch.linspace(float(axis_m[0]), float(axis_m[-1]), count, dtype=torch.float64)


def _between(
    grid: Heights,
    knots: tuple[Float64[Tensor, " _"], Float64[Tensor, " _"]],
    axes: tuple[Float64[Tensor, " _"], Float64[Tensor, " _"]],
) -> Heights:
    """Linear interpolation along east, then north."""
    for knot_m, axis_m in zip(knots, axes, strict=True):
        i = torch.searchsorted(knot_m, axis_m, right=True).clamp(1, len(knot_m) - 1)
        width_m = (knot_m[i] - knot_m[i - 1]).clamp_min(1e-9)  # a single post: no width
        share = (axis_m - knot_m[i - 1]) / width_m
        grid = torch.lerp(grid[:, i - 1], grid[:, i], share).T
    return grid


def _subdivided(z: Heights, axis: int) -> Heights:
    """S along an axis from post 2 to the third before the last: even posts as they are."""
    count = z.shape[axis] - 5
    taps = [w * z.narrow(axis, k, count) for k, w in enumerate(_SUBDIVISION)]
    pairs = torch.stack([z.narrow(axis, 2, count), torch.stack(taps).sum(0)], axis + 1)
    return pairs.flatten(axis, axis + 1)


@functools.cache
def _arithmetic() -> str:
    """SHA-256 of the source that heights come from and of the versions of what it calls.

    What another version kept is not taken.
    """
    package = Path(__file__).parents[1]
    sources = [Path(__file__), Path(__file__).with_name("lattice.py")]
    sources += sorted((package / "terrain" / "synthetic").glob("*.py"))
    sources += [package / "geometry" / "moon.py", *sorted((package / "dem").glob("*.py"))]
    versions = [
        importlib.metadata.version(name) for name in ("torch", "numpy", "scipy", "rasterio")
    ]
    digest = hashlib.sha256(" ".join(versions).encode())
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _inverse() -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """(R S)^-1 of one axis, whose response lies between 1 and 2, as a symmetric filter."""
    taps = np.array([3, -22, 125, 812, 125, -22, 3]) / 1024  # (1 2 1)/4 of S at even posts
    size = 256  # its response is that of a filter that decays by 0.3 a tap: no wrap-around
    ring = np.zeros(size)
    ring[np.arange(-3, 4)] = taps
    inverse = np.fft.ifft(1 / np.fft.fft(ring)).real
    kept = np.roll(inverse, _INVERSE_REACH)[: 2 * _INVERSE_REACH + 1]
    kept = (kept + kept[::-1]) / 2
    kept[_INVERSE_REACH] += 1 - kept.sum()  # a plain stays where it is
    return kept


def _strips(window: Window) -> list[Window]:
    return [
        Window(
            window.post_m,
            window.row0 + i,
            window.col0,
            min(_STRIP_ROWS, window.rows - i),
            window.cols,
        )
        for i in range(0, window.rows, _STRIP_ROWS)
    ]


Progress = Callable[[float], None]  # the share of the work that is done
