"""The synthetic relief against published statistics of lunar mare.

Counted: craters over a diameter, against the production function and the equilibrium line. Seen:
how many of them the finished heights still show. Measured: median slope, RMS deviation and Hurst
exponent against baseline, as Rosenburg et al. (2011) define them. The relief is taken alone, with
everything up to kilometres drawn, as if there were no DEM below it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from scipy.stats import chi2
from torch import Tensor

from tnav.dem.mosaic import open_dem
from tnav.evaluate.limits import Row
from tnav.evaluate.relief_charts import (
    BASELINE_M,
    HURST,
    HURST_TO_M,
    SLOPE_DEG,
    Chart,
    count_chart,
    count_point,
    deviation_chart,
    slope_chart,
)
from tnav.terrain.lattice import Window
from tnav.terrain.site import Site, build_truth
from tnav.terrain.synthetic import Relief, craters, population, relief_m

Floats = NDArray[np.float64]
Say = Callable[[str], None]

_DIAMETER_MAX_M, _WAVELENGTH_MAX_M = 8192.0, 16384.0

# Counts: boxes of so many diameters, so that some hundreds are over each diameter.
_COUNTED_M = (2.0, 8.0, 32.0, 128.0, 512.0, 2048.0)
_BOX_DIAMETERS, _BOX_MAX_M = 200.0, 200e3
_TRASK = 10**-1.1  # N(>D) = this * D^-2 (Trask 1966)
_RATIO_MIN, _RATIO_MAX = 0.7, 1.15  # where the two curves meet, a count lies under both
_CONFIDENCE = 0.95

# Geometric saturation, N(>D) = 1.54 D^-2, of which mare show 1 to 10 % (Gault 1970).
_SATURATION, _SEEN_MIN, _SEEN_MAX = 1.54, 0.01, 0.10
_SEEN_POSTS_M = (0.5, 2.0, 8.0)
_SEEN_CELLS = 1024
_SEEN_MIN_POSTS, _SEEN_MAX_POSTS = 16.0, 64.0  # diameters looked at
_BUILT_MIN_POSTS, _BUILT_MAX_POSTS = 8.0, 64.0  # below 8, ring and middle share their posts
_BUILT_SHARE, _FRESH_STATE, _BUILT_TOLERANCE = 0.8, 0.03, 0.05
_CHANCE = 0.05  # of random places that pass for craters

# Limits around the published figures are this project's.
_SLOPE_TOLERANCE_DEG, _HURST_TOLERANCE = 0.3, 0.2
_HURST_FROM_M = 50.0  # Rosenburg et al. (2011) fit from 57 m; in whole posts
# Cai and Fa (2020): 0.7 to 0.95 from metres to 0.2 km, median 0.9 in maria as in highlands.
_HURST_FINE_MIN, _HURST_FINE_MAX = 0.7, 0.95
_WINDOWS = 6
_WINDOW_POSTS = 769
_SURVEYS = ((1.0, (2, 4, 8, 17, 32)), (4.25, (4, 8)), (17.0, (3, 7, 13, 20, 31, 59, 118)))  # lags


def measure_relief(seed: int, say: Say, recipe: Relief | None = None) -> tuple[list[Row], Chart]:
    """Figures of the relief with their limits, and what a figure of them shows.

    Args:
        seed: of the relief.
        say: told what is being done.
        recipe: of the relief; its defaults stand for mare.

    Returns:
        Rows, and plain lists of curves and points for three charts: ``counts``, ``slope`` and
        ``deviation``.
    """
    recipe = recipe or Relief()
    say("crater counts")
    count_rows, counted = count_rows_and_points(seed, recipe)
    seen_rows, seen = [], []
    for post_m in _SEEN_POSTS_M:
        say(f"craters seen on the heights, posts of {post_m:g} m")
        row, point = seen_row_and_point(post_m, seed, recipe)
        seen_rows.append(row)
        seen.append(point)
    say("depths of craters on the levels of a site")
    built = built_depth_row(seed, recipe)
    say("slopes and deviations")
    fine, metres, coarse = (survey(post_m, lags, seed, recipe) for post_m, lags in _SURVEYS)
    baseline_m = np.concatenate([s.baseline_m for s in (fine, metres, coarse)])
    slope_deg = np.concatenate([s.slope_deg for s in (fine, metres, coarse)])
    deviation_m = np.concatenate([s.pooled_deviation_m() for s in (fine, metres, coarse)])
    figure = {
        "counts": count_chart(recipe, counted, seen),
        "slope": slope_chart(baseline_m, slope_deg),
        "deviation": deviation_chart(baseline_m, deviation_m),
    }
    rows = [*count_rows, *seen_rows, built, *_survey_rows(fine, metres, coarse)]
    return rows, figure


def published_per_m2(diameter_m: Floats, recipe: Relief) -> Floats:
    """The lower of production (Neukum et al. 2001) at a recipe's age and equilibrium (Trask 1966).

    Nothing else is the recipe's: what it takes for equilibrium is what is being judged.
    """
    made = population.production_per_m2(diameter_m) * population.flux_age(recipe.age_gyr)
    return np.minimum(made, _TRASK / np.asarray(diameter_m) ** 2)


def count_interval(count: int, recipe: Relief) -> tuple[float, float]:
    """Exact 95 % Poisson interval (Garwood 1936) of an expected count.

    Clusters make counts scatter more than Poisson's: by 1 + share x mean members in variance, as
    if so many fewer craters had been counted.
    """
    spread = 1 + recipe.secondary_share * craters.CLUSTER_MEAN
    n, tail = count / spread, (1 - _CONFIDENCE) / 2
    low = float(chi2.ppf(tail, 2 * n)) / 2 if n > 0 else 0.0
    return spread * low, spread * float(chi2.ppf(1 - tail, 2 * n + 2)) / 2


def count_rows_and_points(seed: int, recipe: Relief) -> tuple[list[Row], list[Chart]]:
    """Craters over each diameter whose centres lie in a box, against the published curve."""
    rows, points = [], []
    for diameter_m in _COUNTED_M:
        half_m = min(_BOX_DIAMETERS * diameter_m, _BOX_MAX_M) / 2
        found = craters.craters_near(
            (-half_m, -half_m, half_m, half_m),
            recipe,
            diameter_min_m=diameter_m,
            diameter_max_m=16 * diameter_m,
            seed=seed,
            reach_radii=0.0,
        )
        area_m2 = (2 * half_m) ** 2
        # What is larger than was drawn adds its expectation, under a hundredth.
        larger = area_m2 * _at(population.visible_per_m2, 16 * diameter_m, recipe)
        low, high = (n + larger for n in count_interval(len(found), recipe))
        published = area_m2 * _at(published_per_m2, diameter_m, recipe)
        ratio = (len(found) + larger) / published
        rows.append(
            Row(
                f"craters over {diameter_m:g} m, over the published curve",
                round(ratio, 3),
                "",
                f"{_RATIO_MIN:g} to {_RATIO_MAX:g} in its 95 % interval",
                high / published > _RATIO_MIN and low / published < _RATIO_MAX,
                len(found),
                "cpu",
            )
        )
        points.append(count_point(diameter_m, len(found) + larger, low, high, area_m2))
    return rows, points


def seen_row_and_point(post_m: float, seed: int, recipe: Relief) -> tuple[Row, Chart]:
    """Craters that the finished heights show where they were drawn.

    A crater is seen where its ring stands over its middle, relative to the diameter, by more than
    at 95 of 100 random places of the same diameters. Of craters that nothing shows 5 % pass, too,
    and are taken off.
    """
    window = Window(post_m, -_SEEN_CELLS // 2, -_SEEN_CELLS // 2, _SEEN_CELLS + 1, _SEEN_CELLS + 1)
    heights = relief_m(
        window,
        recipe,
        diameter_max_m=_DIAMETER_MAX_M,
        wavelength_max_m=_WAVELENGTH_MAX_M,
        seed=seed,
    )
    diameter_min_m, diameter_max_m = (n * post_m for n in (_SEEN_MIN_POSTS, _SEEN_MAX_POSTS))
    half_m = (_SEEN_CELLS / 2 - _SEEN_MAX_POSTS) * post_m  # every ring lies on the window
    drawn = craters.craters_near(
        (-half_m, -half_m, half_m, half_m),
        recipe,
        diameter_min_m=diameter_min_m,
        diameter_max_m=diameter_max_m,
        seed=seed,
        reach_radii=0.0,
    )
    shown = apparent_depth_ratio(heights, window, drawn.east_m, drawn.north_m, drawn.diameter_m)
    places = np.random.default_rng(seed).uniform(-half_m, half_m, (2, 4000))
    diameters = np.resize(drawn.diameter_m, places.shape[1])
    chance = apparent_depth_ratio(heights, window, places[0], places[1], diameters)
    passing = float((shown > np.quantile(chance, 1 - _CHANCE)).mean())
    share = max(0.0, (passing - _CHANCE) / (1 - _CHANCE))
    area_m2 = (2 * half_m) ** 2
    larger = area_m2 * _at(population.visible_per_m2, diameter_max_m, recipe)
    count = share * len(drawn)
    low, high = count_interval(round(count), recipe)
    saturation = (count + share * larger) / area_m2 * diameter_min_m**2 / _SATURATION
    row = Row(
        f"craters over {diameter_min_m:g} m seen on the heights, of geometric saturation",
        round(100 * saturation, 2),
        "%",
        f"{100 * _SEEN_MIN:g} to {100 * _SEEN_MAX:g}",
        _SEEN_MIN <= saturation <= _SEEN_MAX,
        len(drawn),
        "cpu",
    )
    more = share * larger
    point = count_point(diameter_min_m, count + more, low + more, high + more, area_m2)
    return row, point


def built_depth_row(seed: int, recipe: Relief) -> Row:
    """Depth that fresh craters have on a site's levels, over that with which they were drawn.

    Levels are made to average to one another after craters are drawn on each: this shows that it
    does not take the craters away.
    """
    site = Site(
        latitude_deg=60.5,
        longitude_deg=-4.6,
        finest_post_m=0.5,
        levels=6,
        cells=1024,
        relief=recipe,
    )
    terrain = build_truth(site, seed)
    limit_m = open_dem(site.dem).effective_resolution_m
    ratios, sizes = [], []
    for level in terrain.levels[:-1]:  # the coarsest is as it was drawn
        post_m, half_m = level.post_m, _BUILT_SHARE * site.cells / 2 * level.post_m
        posts = -(site.cells // 2)
        window = Window(post_m, posts, posts, site.cells + 1, site.cells + 1)
        drawn_m = relief_m(
            window, recipe, diameter_max_m=limit_m, wavelength_max_m=limit_m, seed=seed
        )
        found = craters.craters_near(
            (-half_m, -half_m, half_m, half_m),
            recipe,
            diameter_min_m=_BUILT_MIN_POSTS * post_m,
            diameter_max_m=_BUILT_MAX_POSTS * post_m,
            seed=seed,
            reach_radii=0.0,
        )
        fresh = found.where(found.state < _FRESH_STATE)
        places = (fresh.east_m, fresh.north_m, fresh.diameter_m)
        built = apparent_depth_ratio(level.z_L, window, *places)
        ratios.append(built / apparent_depth_ratio(drawn_m, window, *places))
        sizes.append(fresh.diameter_m / post_m)
    ratio, across = np.concatenate(ratios), np.concatenate(sizes)
    # by half octaves: what a level lacks, it takes from craters of some sizes only
    octave = np.floor(2 * np.log2(across / _BUILT_MIN_POSTS))
    medians = [float(np.median(ratio[octave == k])) for k in np.unique(octave)]
    worst = max(medians, key=lambda median: abs(median - 1))
    span = f"{_BUILT_MIN_POSTS:g} to {_BUILT_MAX_POSTS:g} posts"
    name = f"fresh craters of {span}: built depth over drawn, median of the worst half octave"
    limit, passed = f"1 +- {_BUILT_TOLERANCE:g}", abs(worst - 1) <= _BUILT_TOLERANCE
    return Row(name, round(worst, 3), "", limit, passed, len(ratio), "cpu")


def apparent_depth_ratio(
    heights_m: Float32[Tensor, "rows cols"],
    window: Window,
    east_m: Floats,
    north_m: Floats,
    diameter_m: Floats,
) -> Floats:
    """How far rings of given diameters stand over their middles, over the diameter."""
    angle = np.arange(24) * (2 * math.pi / 24)
    means = []
    for radii in (1.0, 0.15):
        out_m = radii * diameter_m[:, None] / 2
        column = (east_m[:, None] + out_m * np.cos(angle)) / window.post_m - window.col0
        row = (north_m[:, None] + out_m * np.sin(angle)) / window.post_m - window.row0
        means.append(heights_m[np.rint(row), np.rint(column)].double().mean(1).numpy())
    return (means[0] - means[1]) / diameter_m


def bidirectional_slope(
    heights_m: Float32[Tensor, "rows cols"], lag: int, post_m: float
) -> Float32[Tensor, " n"]:
    """Magnitude of the gradient from two perpendicular differences over a baseline."""
    corner = heights_m[:-lag, :-lag]
    east, north = heights_m[:-lag, lag:] - corner, heights_m[lag:, :-lag] - corner
    return torch.hypot(east, north).flatten() / (lag * post_m)


def mean_square_deviation_m2(heights_m: Float32[Tensor, "rows cols"], lag: int) -> float:
    """Mean squared difference of heights a lag apart, along both axes."""
    east, north = heights_m[:, lag:] - heights_m[:, :-lag], heights_m[lag:] - heights_m[:-lag]
    return float(torch.cat([east.flatten(), north.flatten()]).double().square().mean())


@dataclass(frozen=True, slots=True)
class Survey:
    """Roughness of windows of one posting against baseline."""

    baseline_m: Floats  # (b,)
    slope_deg: Floats  # (b,), median over all windows
    deviation_m: Floats  # (w, b), RMS of each window

    def hurst(self) -> float:
        """Median over the windows of the slope of log deviation against log baseline."""
        return float(np.median([hurst_exponent(self.baseline_m, d) for d in self.deviation_m]))

    def pooled_deviation_m(self) -> Floats:
        """RMS over all windows."""
        return np.sqrt(np.mean(self.deviation_m**2, axis=0))


def survey(post_m: float, lags: tuple[int, ...], seed: int, recipe: Relief) -> Survey:
    """Roughness of windows of the relief that lie far apart, over baselines of so many posts."""
    fields = []
    for k in range(_WINDOWS):
        window = Window(post_m, 40 * k * _WINDOW_POSTS, 0, _WINDOW_POSTS, _WINDOW_POSTS)
        fields.append(
            relief_m(
                window,
                recipe,
                diameter_max_m=_DIAMETER_MAX_M,
                wavelength_max_m=_WAVELENGTH_MAX_M,
                seed=seed,
            )
        )
    gradients = [
        torch.cat([bidirectional_slope(z, lag, post_m) for z in fields]).median() for lag in lags
    ]
    return Survey(
        np.array(lags) * post_m,
        np.array([math.degrees(math.atan(float(g))) for g in gradients]),
        np.array([[math.sqrt(mean_square_deviation_m2(z, lag)) for lag in lags] for z in fields]),
    )


def hurst_exponent(baseline_m: Floats, deviation_m: Floats) -> float:
    """Slope of the line fitted to the logarithms of deviation and baseline, up to the breakover."""
    chosen = baseline_m <= HURST_TO_M
    return float(np.polyfit(np.log(baseline_m[chosen]), np.log(deviation_m[chosen]), 1)[0])


def _survey_rows(fine: Survey, metres: Survey, coarse: Survey) -> list[Row]:
    posts = _WINDOWS * _WINDOW_POSTS**2
    slope, hurst, hurst_fine = float(metres.slope_deg[0]), coarse.hurst(), fine.hurst()
    kilometre = int(np.argmin(abs(coarse.baseline_m - 1000.0)))
    return [
        Row(
            f"median bidirectional slope over {BASELINE_M:g} m",
            round(slope, 2),
            "deg",
            f"{SLOPE_DEG:g} +- {_SLOPE_TOLERANCE_DEG:g}",
            abs(slope - SLOPE_DEG) <= _SLOPE_TOLERANCE_DEG,
            posts,
            "cpu",
        ),
        Row(
            "median bidirectional slope over 1 km",
            round(float(coarse.slope_deg[kilometre]), 2),
            "deg",
            None,
            None,
            posts,
            "cpu",
        ),
        Row(
            f"RMS deviation over {BASELINE_M:g} m",
            round(float(metres.pooled_deviation_m()[0]), 2),
            "m",
            None,
            None,
            posts,
            "cpu",
        ),
        Row(
            f"Hurst exponent, {_HURST_FROM_M:g} to {HURST_TO_M:g} m, median of windows",
            round(hurst, 3),
            "",
            f"{HURST:g} +- {_HURST_TOLERANCE:g}",
            abs(hurst - HURST) <= _HURST_TOLERANCE,
            _WINDOWS,
            "cpu",
        ),
        Row(
            f"Hurst exponent, {fine.baseline_m[0]:g} to {fine.baseline_m[-1]:g} m, "
            "median of windows",
            round(hurst_fine, 3),
            "",
            f"{_HURST_FINE_MIN:g} to {_HURST_FINE_MAX:g}",
            _HURST_FINE_MIN <= hurst_fine <= _HURST_FINE_MAX,
            _WINDOWS,
            "cpu",
        ),
    ]


def _at(
    count_per_m2: Callable[[Floats, Relief], Floats], diameter_m: float, recipe: Relief
) -> float:
    return float(count_per_m2(np.array([diameter_m]), recipe)[0])
