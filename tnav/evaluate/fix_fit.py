"""The error model of fixes, fitted from image runs.

The stated covariance C of a fix contains the map's share M. The model keeps ``C - M`` plus M's
attitude block, and M's position block apart, since a flight adds the map's position error itself;
what links the two blocks of M is left out. Errors are counted on the map: its shift is taken off.
A correction is kept where its interval excludes that there is none.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float64
from scipy.stats import chi2, t
from torch import Tensor

from tnav.errors import RunFileError
from tnav.evaluate.fix_model import (
    Factor,
    FixModel,
    Knot,
    Scale,
    Share,
    agl_sigma_m,
    news_sigma_m,
)
from tnav.evaluate.fix_trials import (
    ATTITUDE,
    POSITION,
    SAME_RATIO,
    FixTrial,
    errors_of,
    good_of,
    map_share_of,
    own_of,
    solved_of,
    stated_of,
    usual_of,
)
from tnav.evaluate.match_scores import binomial_interval

SCENARIO = "resilience"
_LEAST_FIXES = 3  # of a knot that has a covariance of its own
GSD_AT = (1.0, 2.0, 4.0)  # times the usual posting
_FREE_RATIO = 4.2  # of a knot whose images the map's finest posts do not limit
_LEVEL, _BIAS_LEVEL = 0.99, 0.999  # of intervals
_UNBOUNDED = 1e6  # a factor that nothing bounds
_LEAST_SIGMA = (1e-6,) * 3 + (1e-12,) * 3  # m and rad: a map may be called perfect
# Of the map's sigma: nearer to it, an image says next to nothing of the ground under the camera.
_NEWS_SHARE = 0.95
_MIX = 1e-6  # of the unit matrix in a correlation, which makes it positive definite


def fit(trials: Sequence[FixTrial], scenario: str = SCENARIO, map_sigma_m: float = 3.0) -> FixModel:
    """Fit the model.

    Args:
        trials: of any heights, Suns and map postings; those of the first posting make the knots.
        scenario: named in the model.
        map_sigma_m: vertical error of the trials' maps, 1 sigma, as the pose solver was told.

    Raises:
        RunFileError: too few trials for two knots.
    """
    heights = sorted({trial.knot_m for trial in trials}, reverse=True)
    groups = [[trial for trial in trials if trial.knot_m == height] for height in heights]
    enough = [usual_of(group) for group in groups]
    if len(heights) < 2 or not any(len(solved_of(group)) >= _LEAST_FIXES for group in enough):
        raise RunFileError(
            f"fix model: {len(trials)} trials at {len(heights)} heights; expected 2 heights or "
            f"more, and {_LEAST_FIXES} fixes at one of them"
        )
    knots = _knots(groups, map_sigma_m)
    by_height = dict(zip(heights, knots, strict=True))
    return FixModel(
        scenario=scenario,
        setup=trials[0].setup,
        trials=len(trials),
        map_sigma_m=map_sigma_m,
        gsd_ratio_max=max(trial.gsd_ratio for trial in trials),
        sun=_sun_factor(trials, by_height, map_sigma_m),
        gsd=_gsd_factor(trials, by_height, map_sigma_m),
        knots=tuple(knots),
    )


def _knots(groups: list[list[FixTrial]], map_sigma_m: float) -> list[Knot]:
    """One knot a height; where there are too few fixes, the covariance is that of the next one."""
    fixes = [solved_of(usual_of(group)) for group in groups]
    usable = [k for k, solved in enumerate(fixes) if len(solved) >= _LEAST_FIXES]
    good = [good_of(each) for each in fixes]
    biases = [_bias(each) for each in good]
    all_good = [trial for each in good for trial in each]
    all_biases = [bias[0] for bias, each in zip(biases, good, strict=True) for _ in each]
    pooled = [_scale(all_good, part, all_biases) for part in (POSITION, ATTITUDE)]
    pooled.append(_ground_scale(all_good, map_sigma_m))
    pooled = [_or_one(scale) for scale in pooled]
    knots = []
    for k, group in enumerate(groups):
        _, donor = min((abs(other - k), other) for other in usable)
        knots.append(_knot(group, fixes[donor], good[k], biases[k], pooled, map_sigma_m))
    return knots


def _knot(
    group: list[FixTrial],
    stated: list[FixTrial],
    good: list[FixTrial],
    bias: tuple[tuple[float, ...], tuple[float, ...]],
    pooled: list[Scale],
    map_sigma_m: float,
) -> Knot:
    usual = usual_of(group)
    n = len(solved_of(usual))
    own, of_map = own_of(stated), map_share_of(stated)
    sigma, correlation = _typical(own, _LEAST_SIGMA)
    place, place_correlation = _typical(of_map[:, POSITION, POSITION], _LEAST_SIGMA[:3])
    turn, turn_correlation = _typical(of_map[:, ATTITUDE, ATTITUDE], _LEAST_SIGMA[3:])
    ratios = [math.log(trial.gsd_ratio) for trial in usual or group]
    found = {
        "agl_m": group[0].knot_m,
        "gsd_ratio": math.exp(sum(ratios) / len(ratios)),
        "availability": _share(n, len(usual)),
        "outlier_rate": _share(n - len(good), n),
        "bias": bias[0],
        "bias_half_width": bias[1],
        "sigma": sigma,
        "correlation": correlation,
        "map_position_sigma_m": place,
        "map_position_correlation": place_correlation,
        "map_attitude_sigma_rad": turn,
        "map_attitude_correlation": turn_correlation,
        "position_scale": _or_pooled(_scale(good, POSITION, [bias[0]] * len(good)), pooled[0]),
        "attitude_scale": _or_pooled(_scale(good, ATTITUDE, [bias[0]] * len(good)), pooled[1]),
        "ground_sigma_m": float(_news_m(stated, map_sigma_m).quantile(0.5)),
        "ground_scale": _or_pooled(_ground_scale(good, map_sigma_m), pooled[2]),
    }
    return Knot.model_validate(found)


def _news_m(trials: Sequence[FixTrial], map_sigma_m: float) -> Float64[Tensor, " n"]:
    """What images alone say of the ground under the camera; of trials whose map is there."""
    stated = [t.agl_sigma_m for t in trials if t.agl_sigma_m is not None]
    return news_sigma_m(torch.tensor(stated, dtype=torch.float64), map_sigma_m)


def news_of(trials: Sequence[FixTrial], map_sigma_m: float) -> list[FixTrial]:
    """Trials whose image adds to what the map says of the ground under the camera."""
    most_m = _NEWS_SHARE * map_sigma_m
    return [t for t in trials if t.agl_sigma_m is not None and t.agl_sigma_m < most_m]


def _ground_scale(good: Sequence[FixTrial], map_sigma_m: float) -> Scale:
    """Mean square of errors over stated sigma of heights, with its interval, 99 % (chi-square)."""
    there = news_of(good, map_sigma_m)
    n = len(there)
    if n == 0:
        return Scale(value=1.0, n=0, low=0.0, high=_UNBOUNDED)
    pairs = torch.tensor([(t.agl_error_m, t.agl_sigma_m) for t in there], dtype=torch.float64)
    total = float((pairs[:, 0] / pairs[:, 1]).square().sum())
    low, high = (total / float(chi2.ppf(0.5 + side * _LEVEL / 2, n)) for side in (1, -1))
    return Scale(value=total / n, n=n, low=low, high=high)


def _or_pooled(own: Scale, pooled: Scale) -> Scale:
    return own.model_copy(update={"value": pooled.value}) if _holds(own, pooled.value) else own


def _or_one(scale: Scale) -> Scale:
    return scale.model_copy(update={"value": 1.0}) if _holds(scale, 1.0) else scale


def _holds(scale: Scale, value: float) -> bool:
    return scale.low <= value <= scale.high


def _scale(
    trials: Sequence[FixTrial],
    part: slice,
    biases: Sequence[Sequence[float]],
    times: Float64[Tensor, " n"] | None = None,
) -> Scale:
    """Mean normalised square of errors, which is the factor on covariances that makes it one.

    Its interval, 99 %, is that of a sum of squares of normal errors (chi-square).

    Args:
        trials: fixes without outliers.
        part: of the six components.
        biases: taken off the errors, one a trial.
        times: what the covariances are multiplied by beforehand.
    """
    n = 3 * len(trials)
    if n == 0:
        return Scale(value=1.0, n=0, low=0.0, high=_UNBOUNDED)
    error = (errors_of(trials) - torch.tensor(biases, dtype=torch.float64))[:, part]
    squares = (error * torch.linalg.solve(stated_of(trials)[:, part, part], error)).sum(-1)
    total = float((squares if times is None else squares / times).sum())
    low, high = (total / float(chi2.ppf(0.5 + side * _LEVEL / 2, n)) for side in (1, -1))
    return Scale(value=total / n, n=n, low=low, high=high)


def _bias(trials: list[FixTrial]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean error where a t-test at 99.9 % tells it from zero, and the half-width of the test."""
    n = len(trials)
    if n < 2:
        return (0.0,) * 6, (0.0,) * 6
    error = errors_of(trials)
    mean = error.mean(0)
    half = float(t.ppf(0.5 + 0.5 * _BIAS_LEVEL, n - 1)) * error.std(0) / math.sqrt(n)
    return tuple(torch.where(mean.abs() > half, mean, 0.0).tolist()), tuple(half.tolist())


def _typical(
    covariance: Float64[Tensor, "n k k"], least: Sequence[float]
) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
    """Median sigma of each component, and the mean of all correlations."""
    k = covariance.shape[-1]
    floor = torch.tensor(least, dtype=torch.float64)
    sigma = torch.maximum(covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt(), floor)
    unit = covariance / (sigma[:, :, None] * sigma[:, None, :])
    # Shares of a difference of matrices may be a little negative: cut them off.
    values, vectors = torch.linalg.eigh(0.5 * (unit + unit.mT))
    unit = (vectors * values.clamp_min(0.0)[:, None, :]) @ vectors.mT
    eye = torch.eye(k, dtype=torch.float64)
    diagonal = unit.diagonal(dim1=-2, dim2=-1).clamp_min(_MIX).sqrt()
    mean = (unit / (diagonal[:, :, None] * diagonal[:, None, :])).mean(0)
    mean = (1 - _MIX) * 0.5 * (mean + mean.mT) + _MIX * eye
    mean = mean - torch.diag(mean.diagonal()) + eye
    return tuple(sigma.quantile(0.5, dim=0).tolist()), tuple(tuple(r) for r in mean.tolist())


def _sun_factor(trials: Sequence[FixTrial], knots: dict[float, Knot], map_sigma_m: float) -> Factor:
    """Over the Sun's elevation, against the mean of all Suns; on the usual map posting."""
    usual = usual_of(trials)
    at = tuple(sorted({trial.sun_elevation_deg for trial in usual}))
    bands = [[trial for trial in usual if trial.sun_elevation_deg == sun] for sun in at]
    return _factor(at, bands, usual, knots, map_sigma_m)


def _gsd_factor(trials: Sequence[FixTrial], knots: dict[float, Knot], map_sigma_m: float) -> Factor:
    """Over the posting against the usual one, where the map has finer posts than it shows."""
    free = [trial for trial in trials if knots[trial.knot_m].gsd_ratio < _FREE_RATIO]
    bands = [
        [trial for trial in free if low <= trial.gsd_ratio / knots[trial.knot_m].gsd_ratio < high]
        for low, high in ((at / SAME_RATIO, at * SAME_RATIO) for at in GSD_AT)
    ]
    return _factor(GSD_AT, bands, bands[0], knots, map_sigma_m)


def _factor(
    at: tuple[float, ...],
    bands: list[list[FixTrial]],
    usual: Sequence[FixTrial],
    knots: dict[float, Knot],
    map_sigma_m: float,
) -> Factor:
    own, of_map = (x.mean(0).nan_to_num(0.0) for x in _log_excess(solved_of(usual), knots))
    usual_news = _log_news(solved_of(usual), knots, map_sigma_m).mean().nan_to_num(0.0)
    rate = len(solved_of(usual)) / max(len(usual), 1)
    rows = []
    for band in bands:
        solved = solved_of(band)
        band_own, band_map = _log_excess(solved, knots)
        good = good_of(band)
        rows.append(
            {
                "sigma": [_sigma_factor(x) for x in (band_own - own).unbind(1)],
                "map_sigma": [_sigma_factor(x) for x in (band_map - of_map).unbind(1)],
                "position_scale": _scale_factor(good, POSITION, knots),
                "attitude_scale": _scale_factor(good, ATTITUDE, knots),
                "availability": _share_factor(len(solved), len(band), rate),
                "ground_sigma": _sigma_factor(_log_news(solved, knots, map_sigma_m) - usual_news),
            }
        )
    return Factor.model_validate({"at": at} | {name: [r[name] for r in rows] for name in rows[0]})


def _log_excess(
    solved: Sequence[FixTrial], knots: dict[float, Knot]
) -> tuple[Float64[Tensor, "n 4"], Float64[Tensor, "n 4"]]:
    """Log of a fix's sigma over its knot's, without and of the map: as `Factor` orders them."""
    floor = torch.tensor(_LEAST_SIGMA, dtype=torch.float64)
    usual = [
        (*k.sigma, *k.map_position_sigma_m, *k.map_attitude_sigma_rad)
        for k in (knots[trial.knot_m] for trial in solved)
    ]
    usual_sigma = torch.tensor(usual, dtype=torch.float64).reshape(-1, 2, 6)
    excess = []
    for k, covariance in enumerate((own_of(solved), map_share_of(solved))):
        sigma = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
        log = (torch.maximum(sigma, floor) / usual_sigma[:, k]).log()
        excess.append(
            torch.stack([log[:, :2].mean(1), log[:, 2], log[:, 3:5].mean(1), log[:, 5]], 1)
        )
    return excess[0], excess[1]


def _log_news(
    solved: Sequence[FixTrial], knots: dict[float, Knot], map_sigma_m: float
) -> Float64[Tensor, " n"]:
    """Log of what images say of the ground over what their knot's do, where those say anything."""
    most_m = _NEWS_SHARE * map_sigma_m
    there = [
        trial
        for trial in solved
        if trial.agl_sigma_m is not None
        and float(
            agl_sigma_m(torch.tensor([knots[trial.knot_m].ground_sigma_m]).double(), map_sigma_m)
        )
        < most_m
    ]
    usual = torch.tensor([knots[t.knot_m].ground_sigma_m for t in there], dtype=torch.float64)
    return (_news_m(there, map_sigma_m) / usual).log()


def _sigma_factor(excess: Float64[Tensor, " n"]) -> Scale:
    """Geometric mean where its t-interval of 99 % excludes one."""
    n = excess.shape[0]
    if n < _LEAST_FIXES:
        return Scale(value=1.0, n=n, low=0.0, high=_UNBOUNDED)
    mean = float(excess.mean())
    half = float(t.ppf(0.5 + 0.5 * _LEVEL, n - 1)) * float(excess.std()) / math.sqrt(n)
    value = math.exp(mean) if abs(mean) > half else 1.0
    return Scale(value=value, n=n, low=math.exp(mean - half), high=math.exp(mean + half))


def _scale_factor(good: Sequence[FixTrial], part: slice, knots: dict[float, Knot]) -> Scale:
    """What the knots' scale must be multiplied by, where its 99 % interval excludes one."""
    at = [knots[trial.knot_m] for trial in good]
    values = [k.position_scale.value if part is POSITION else k.attitude_scale.value for k in at]
    times = torch.tensor(values, dtype=torch.float64)
    return _or_one(_scale(good, part, [k.bias for k in at], times))


def _share_factor(solved: int, n: int, usual_rate: float) -> Scale:
    """Share of images with a fix over the usual one, where its 99 % interval excludes that.

    The share is (k + 1/2) / (n + 1), Jeffreys' mean: of few trials without a fix it is not zero.
    """
    if n == 0 or usual_rate == 0:
        return Scale(value=1.0, n=n, low=0.0, high=_UNBOUNDED)
    low, high = binomial_interval(solved, n, _LEVEL)
    differs = not low <= usual_rate <= high
    value = (solved + 0.5) / (n + 1) / usual_rate if differs else 1.0
    return Scale(value=value, n=n, low=low / usual_rate, high=high / usual_rate)


def _share(successes: int, n: int) -> Share:
    if n == 0:
        return Share(value=0.0, n=0, low=0.0, high=1.0)
    low, high = binomial_interval(successes, n)
    return Share(value=successes / n, n=n, low=low, high=high)
