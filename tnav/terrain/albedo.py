"""How bright the ground is against its mean: a seeded field with mare statistics, or a raster.

The field is SYNTHETIC: ``a = exp(g - var(g)/2)`` with a Gaussian ``g`` of power spectrum
``P(k) ~ k^-n`` between two wavelengths, so that a has mean 1, is always positive, and leaving out
what is shorter than a pixel leaves the local mean of ``a`` (the mean of a log-normal).

What is published of mare: soil that an engine's jet brightened stands out from the undisturbed
ground around it at 3 to 12 % (Clegg et al. 2014, Icarus, "Effects of rocket exhaust on lunar soil
reflectance properties", abstract), so that within one unit the ground varies by a few percent.
Of its spectrum no published figure was found: n = 2.4 is the mean of 135 photographs of natural
scenes, amplitude slope -1.2, range -0.8 to -1.5 (Tolhurst, Tadmor and Chao 1992).
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, pad

from tnav.dem.tiles import open_raster, sample_value
from tnav.errors import ConfigError, TileError
from tnav.geometry.moon import RADIUS_M, LocalFrame
from tnav.terrain.lattice import Window

_TILE_POSTS = 1024
_POSTS_PER_WAVE = 16  # of the shortest wave of an octave: 64 such waves before a tile repeats
_CONTRAST_MAX = 1.0  # a log-normal with more has a tail that no ground has
_OCTAVES_MAX = 24
# float32 places a point 250 km away to 0.016 m: a 60th of a radian of the shortest wave from here.
_FLOAT32_FROM_M = 4.0
_RASTER_LEVELS_MAX = 8
_SUBPOSTS_MAX = 8  # a raster of more than this many posts in one of the plane's is thinned


@dataclass(frozen=True, slots=True)
class AlbedoField:
    """Relative albedo as a sum of octaves: SYNTHETIC, a function of position and seed only.

    Every octave is the same periodic tile of band-limited Gaussian noise, at its own scale, turned
    and shifted by its own amount: no period and no direction is left in the sum.
    """

    tile: Float32[Tensor, "side side"]  # unit variance; its last row and column repeat the first
    octaves: tuple["AlbedoOctave", ...]  # from the shortest waves to the longest

    @classmethod
    def draw(
        cls,
        seed: int,
        *,
        contrast: float,
        wavelengths_m: tuple[float, float],
        exponent: float = 2.4,
    ) -> "AlbedoField":
        """A seeded field.

        Args:
            seed: of the pattern; fields of one seed share the octaves that both have.
            contrast: 1 sigma over the mean, of all octaves together.
            wavelengths_m: shortest and longest; moved to the nearest powers of two.
            exponent: n of the power spectrum k^-n; 2 has the same contrast in every octave, more
                puts it into the long waves.

        Raises:
            ConfigError: a contrast outside [0, 1), or wavelengths that are no interval.
        """
        if not 0 <= contrast < _CONTRAST_MAX:
            raise ConfigError(f"albedo contrast: {contrast}, expected in [0, {_CONTRAST_MAX:g})")
        low_m, high_m = wavelengths_m
        if not (0 < low_m < high_m and math.isfinite(high_m)):
            raise ConfigError(f"albedo wavelengths_m: {wavelengths_m}, expected 0 < low < high")
        first, last = round(math.log2(low_m)), round(math.log2(high_m))
        powers = range(first, max(last, first + 1))
        if len(powers) > _OCTAVES_MAX:
            raise ConfigError(
                f"albedo wavelengths_m: {len(powers)} octaves, expected at most {_OCTAVES_MAX}"
            )
        share = [2.0 ** (k * (exponent - 2)) for k in powers]
        variance = math.log1p(contrast**2)  # of ln a, when a's relative sigma is the contrast
        sigmas = [math.sqrt(variance * s / sum(share)) for s in share]
        octaves = tuple(_octave(seed, k, s) for k, s in zip(powers, sigmas, strict=True))
        return cls(tile=_noise_tile(seed, exponent), octaves=octaves)

    def to(self, device: torch.device | str) -> "AlbedoField":
        """The same field with its tile on a device."""
        return replace(self, tile=self.tile.to(device))

    def at(
        self, xy_L: Float64[Tensor, "*b 2"], shortest_m: float | Float32[Tensor, "*b"] = 0.0
    ) -> Float32[Tensor, "*b"]:
        """Albedo over its mean at horizontal positions; always positive, mean 1.

        Args:
            xy_L: east and north, m.
            shortest_m: waves shorter than this are left out (two pixels on the ground, say), for
                all points or for each. An octave fades out while the limit passes through it. Where
                it is NaN, so is the albedo, or it is not.
        """
        tile = self.tile.to(xy_L.device)
        x, y = (v.reshape(-1) for v in xy_L.unbind(-1))
        x32, y32 = x.float(), y.float()
        limit = _Limit.of(shortest_m)
        log_a = torch.zeros_like(x32)
        for octave in self.octaves:
            power = math.log2(octave.shortest_m)
            if limit.least >= power + 1:  # nothing is left of it anywhere
                continue
            near = octave.shortest_m < _FLOAT32_FROM_M
            places = octave.tile_turns(x, y) if near else octave.tile_turns(x32, y32)
            wave = _lookup(tile, places, corners=True).mul_(octave.sigma)
            if limit.most <= power:  # all of it is left everywhere
                log_a += wave.sub_(0.5 * octave.sigma**2)
                continue
            share = (power + 1 - limit.power).clamp(0.0, 1.0)  # linear in the limit's logarithm
            log_a += wave.sub_(share * (0.5 * octave.sigma**2)).mul_(share)
        return log_a.exp_().reshape(xy_L.shape[:-1])


@dataclass(frozen=True, slots=True)
class AlbedoOctave:
    """How one octave lays the tile on the ground."""

    shortest_m: float  # its longest wave is twice this
    sigma: float  # of the logarithm
    heading_rad: float
    shift: tuple[float, float]  # in tiles

    def tile_turns(self, x: Tensor, y: Tensor) -> Float32[Tensor, "2 n"]:
        """Place in the tile, in [-1, 1] from edge to edge, of points in metres."""
        turns_m = _POSTS_PER_WAVE / (_TILE_POSTS * self.shortest_m)
        c, s = math.cos(self.heading_rad) * turns_m, math.sin(self.heading_rad) * turns_m
        u = torch.mul(x, c).add_(y, alpha=s).add_(self.shift[0])
        v = torch.mul(y, c).sub_(x, alpha=s).add_(self.shift[1])
        return torch.stack([w.sub_(w.round()).mul_(2.0).float() for w in (u, v)])


@dataclass(frozen=True, slots=True)
class AlbedoRaster:
    """Relative albedo from a raster that the user gives, resampled into the plane of L."""

    window: Window
    levels: tuple[Float32[Tensor, "_ _"], ...]  # south first; posts double from level to level
    missing: int  # posts of the window that the raster does not give; they hold the mean, 1

    @classmethod
    def load(
        cls,
        path: Path,
        frame: LocalFrame,
        window: Window,
        z_L: Float32[Tensor, "rows cols"] | None = None,
    ) -> "AlbedoRaster":
        """Read a raster of anything proportional to albedo: normal albedo, I/F at one geometry.

        Args:
            path: of one band, with a Moon CRS; its scale does not matter, its offset does.
            frame: of the site.
            window: which posts of the plane.
            z_L: heights of the ground at the posts, m; the reference sphere's when absent, which
                moves what lies d from the site by d/1737 for a kilometre of height.

        Raises:
            TileError: the raster cannot be read, is not of the Moon, or gives no post at all.
        """
        tile = open_raster(path)
        side = min(_SUBPOSTS_MAX, max(1, round(window.post_m / tile.posting_m)))
        east, north = window.axes_m()
        total = np.zeros((window.rows, window.cols))
        count = np.zeros_like(total)
        for k in range(side**2):  # finer rasters are averaged, not picked from
            dx, dy = ((k % side + 0.5) / side - 0.5), ((k // side + 0.5) / side - 0.5)
            y, x = torch.meshgrid(
                north + dy * window.post_m, east + dx * window.post_m, indexing="ij"
            )
            sphere = (RADIUS_M**2 - x * x - y * y).clamp_min(0).sqrt() - RADIUS_M
            point_L = torch.stack([x, y, sphere if z_L is None else z_L.double()], -1)
            latitude_deg, longitude_deg, _ = frame.geodetic(point_L)
            value = sample_value(tile, latitude_deg.numpy(), longitude_deg.numpy())
            given = np.nan_to_num(value) > 0
            total += np.where(given, value, 0.0)
            count += given
        if not count.any():
            raise TileError(
                f"{path}: no positive value within {window.cols} x {window.rows} posts of "
                f"{window.post_m:g} m around latitude {frame.latitude_deg:.3f}, longitude "
                f"{frame.longitude_deg:.3f} deg; expected an albedo raster that covers the site"
            )
        mean = total / np.maximum(count, 1)
        relative = np.where(count > 0, mean / mean[count > 0].mean(), 1.0)
        finest = torch.from_numpy(relative).float()
        return cls(window, _halved(finest), int((count == 0).sum()))

    def to(self, device: torch.device | str) -> "AlbedoRaster":
        """The same raster on a device."""
        return replace(self, levels=tuple(level.to(device) for level in self.levels))

    def at(
        self, xy_L: Float64[Tensor, "*b 2"], shortest_m: float | Float32[Tensor, "*b"] = 0.0
    ) -> Float32[Tensor, "*b"]:
        """Albedo over the raster's mean at horizontal positions; 1 outside.

        Args:
            xy_L: east and north, m.
            shortest_m: waves shorter than this are averaged away, for all points or for each.
        """
        w = self.window
        column = (xy_L[..., 0].reshape(-1) - w.west_m) / w.post_m
        row = (xy_L[..., 1].reshape(-1) - w.south_m) / w.post_m
        inside = (column >= 0) & (column <= w.cols - 1) & (row >= 0) & (row <= w.rows - 1)
        limit = _Limit.of(shortest_m, 2 * w.post_m, (0.0, len(self.levels) - 1.0))
        out = torch.zeros(column.shape, dtype=torch.float32, device=column.device)
        for k, level in enumerate(self.levels):
            if k <= limit.least - 1 or k >= limit.most + 1:
                continue
            rows, cols = level.shape
            # A post of level k is the mean of 2^k posts: its centre lies amid theirs.
            turns = torch.stack(
                [
                    (2 * ((column + 0.5) / 2**k) / cols - 1).float(),
                    (2 * ((row + 0.5) / 2**k) / rows - 1).float(),
                ]
            )
            share = (1 - (limit.power - k).abs()).clamp_min(0.0)  # linear in the limit's logarithm
            out += share * _lookup(level.to(column.device), turns, corners=False)
        return torch.where(inside, out, 1.0).reshape(xy_L.shape[:-1])


Albedo = AlbedoField | AlbedoRaster


@dataclass(frozen=True, slots=True)
class _Limit:
    """Shortest wavelengths as octaves over a unit, and bounds that spare lookups."""

    power: Float32[Tensor, " n"] | Float64[Tensor, ""]
    least: float
    most: float

    @classmethod
    def of(
        cls,
        shortest_m: float | Float32[Tensor, "*b"],
        unit_m: float = 1.0,
        powers: tuple[float, float] = (-20.0, 40.0),
    ) -> "_Limit":
        """Logarithm to base 2 of wavelengths over a unit, within powers.

        Bounds over the points are read on the CPU alone, where reading waits for nothing: there
        they leave out what would add 0 or be multiplied by 1, which changes no bit.
        """
        low, high = powers
        if not isinstance(shortest_m, Tensor):
            power = low if shortest_m <= 0 else math.log2(shortest_m / unit_m)
            power = min(max(power, low), high)
            return cls(torch.tensor(power, dtype=torch.float64), power, power)
        octaves = (shortest_m.reshape(-1) / unit_m).log_().mul_(1 / math.log(2)).clamp_(low, high)
        if octaves.device.type != "cpu" or octaves.numel() == 0:
            return cls(octaves, low, high)
        least = float(octaves.nan_to_num(nan=high).amin())
        return cls(octaves, least, float(octaves.nan_to_num(nan=low).amax()))


def _halved(finest: Float32[Tensor, "r c"]) -> tuple[Float32[Tensor, "_ _"], ...]:
    """Means of 2 x 2 posts, again and again; an odd side repeats its last post."""
    levels = [finest]
    while len(levels) < _RASTER_LEVELS_MAX and min(levels[-1].shape) > 1:
        rows, cols = levels[-1].shape
        even = pad(levels[-1][None, None], (0, cols % 2, 0, rows % 2), mode="replicate")
        levels.append(avg_pool2d(even, 2)[0, 0])
    return tuple(levels)


def _lookup(tile: Tensor, turns: Tensor, *, corners: bool) -> Tensor:
    """Bilinear values at places in [-1, 1] between outer posts, or between outer post edges."""
    grid = turns.T[None, None]
    return grid_sample(tile[None, None], grid, padding_mode="border", align_corners=corners)[
        0, 0, 0
    ]


def _octave(seed: int, power: int, sigma: float) -> AlbedoOctave:
    heading, east, north = _uniform(seed, 3, stream=1000 + power).tolist()
    return AlbedoOctave(2.0**power, sigma, 2 * math.pi * heading, (east, north))


@lru_cache(maxsize=4)
def _noise_tile(seed: int, exponent: float) -> Float32[Tensor, "side side"]:
    """Gaussian noise with the wavelengths of one octave, of unit variance between its posts too."""
    n = _TILE_POSTS
    white = torch.special.ndtri(_uniform(seed, n * n, stream=0)).reshape(n, n)
    ky = torch.fft.fftfreq(n, dtype=torch.float64)[:, None]  # cycles a post
    kx = torch.fft.rfftfreq(n, dtype=torch.float64)[None, :]
    k, k_max = (kx.square() + ky.square()).sqrt(), 1 / _POSTS_PER_WAVE
    gain = torch.where((k > k_max / 2) & (k <= k_max), k.clamp_min(1 / n) ** (-exponent / 2), 0.0)
    spectrum = torch.fft.rfft2(white) * gain
    sigma = torch.fft.irfft2(spectrum, s=(n, n)).square().mean().sqrt()
    for axis in (kx, ky):  # bilinear lookup leaves (2 + cos)/3 of a wave's power: undo it
        spectrum = spectrum * (3 / (2 + torch.cos(2 * math.pi * axis))).sqrt()
    tile = torch.fft.irfft2(spectrum, s=(n, n)) / sigma
    return pad(tile[None, None], (0, 1, 0, 1), mode="circular")[0, 0].float()


def _uniform(seed: int, count: int, *, stream: int) -> Float64[Tensor, " n"]:
    """Numbers in (0, 1), the same on every machine: raw Philox bits (Salmon et al. 2011)."""
    key = [seed % 2**64, stream]
    raw = np.random.Philox(key=np.array(key, dtype=np.uint64)).random_raw(count)
    return torch.from_numpy(((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)
