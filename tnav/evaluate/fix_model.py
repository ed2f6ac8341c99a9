"""Fixes of images drawn from a model of their errors, thousands at once, and the model's file.

Between knots of height, standard deviations follow power laws (linear in log over log), and
correlations and shares are linear in log height: a convex sum of correlation matrices is one. A
factor for the Sun's elevation and one for the map's posting over the image's ground sample distance
multiply standard deviations and the share of images that give a fix. Outside the heights, ratios
and the light that were flown, no fix is drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import torch
import yaml
from jaxtyping import Bool, Float64
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from tnav.config import Recipe, datasets_dir, load_recipe
from tnav.evaluate.fix_trials import OUTLIER_NEES
from tnav.files import written_aside

FILE = "fix_model.yaml"
# Radius of outliers over the least one, whitened: uniform in the logarithm. A convention, not a
# fit: runs show too few of them for a law.
_OUTLIER_SPAN = 20.0
_SYMMETRIC = 1e-9
_LEAST_EIGENVALUE = 1e-9  # keeps the factor of a matrix apart from rounding
_LEAST_NEWS_M = 1e-3
_MOST_NEWS = 0.999  # of the map's sigma; beyond, a posterior is the prior but for rounding
_DIGITS = 10  # of a number in the file

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Share(Recipe):
    """A measured probability with its exact 95 % interval."""

    value: Probability
    n: int = Field(ge=0)
    low: Probability
    high: Probability

    @model_validator(mode="after")
    def _ordered(self) -> "Share":
        if not self.low <= self.value <= self.high:
            raise ValueError(f"expected low <= value <= high; found {self.low}, {self.high}")
        return self


class Scale(Recipe):
    """A measured factor with its interval; 1 where the data do not support another."""

    value: Positive
    n: int = Field(ge=0)
    low: float = Field(ge=0)
    high: Positive


def _correlation(rows: Sequence[Sequence[float]]) -> Sequence[Sequence[float]]:
    matrix = torch.tensor(rows, dtype=torch.float64)
    if float((matrix - matrix.T).abs().max()) > _SYMMETRIC:
        raise ValueError("expected a symmetric matrix")
    if float((matrix.diagonal() - 1).abs().max()) > _SYMMETRIC:
        raise ValueError("expected ones on the diagonal of a correlation matrix")
    least = float(torch.linalg.eigvalsh(matrix)[0])
    if least <= 0:
        raise ValueError(f"expected a positive definite matrix; its least eigenvalue is {least:g}")
    return rows


_V3 = tuple[float, float, float]
_V6 = tuple[float, float, float, float, float, float]
_P3 = tuple[Positive, Positive, Positive]
_P6 = tuple[Positive, Positive, Positive, Positive, Positive, Positive]
Correlation3 = Annotated[tuple[_V3, _V3, _V3], AfterValidator(_correlation)]
Correlation6 = Annotated[tuple[_V6, _V6, _V6, _V6, _V6, _V6], AfterValidator(_correlation)]


class Knot(Recipe):
    """Fixes at one height, over all Suns, on the map posting that was flown first.

    Six components are (dp_L, dtheta_L) in m and rad; all matrices are in the local level frame.
    """

    agl_m: Positive
    gsd_ratio: Positive  # map posting over ground sample distance, geometric mean
    availability: Share  # images that give a fix
    outlier_rate: Share  # fixes called good whose NEES exceeds the 99.99 % point
    bias: _V6  # of the error; zero where 0 lies within the half-width below
    bias_half_width: _V6  # 99.9 %, of the mean that was measured
    sigma: _P6  # stated, without the map's share: median
    correlation: Correlation6  # of the same
    map_position_sigma_m: _P3  # share of the map's error: median
    map_position_correlation: Correlation3
    map_attitude_sigma_rad: _P3
    map_attitude_correlation: Correlation3
    # What the stated covariance must be multiplied by to be the true one. The value is that of all
    # knots together where this one's interval does not exclude it, and one where theirs does not.
    position_scale: Scale
    attitude_scale: Scale
    # Of the map's error under the camera, from the image alone (`news_sigma_m`): median, and the
    # factor on the square of the height over ground that follows.
    ground_sigma_m: Positive
    ground_scale: Scale


_Four = tuple[Scale, Scale, Scale, Scale]


class Factor(Recipe):
    """Factors over one condition, at ascending values; log-linear between, constant beyond.

    Each is relative to the knots. Four are of horizontal and vertical position, tilt and heading.
    """

    at: tuple[Positive, ...] = Field(min_length=1)
    sigma: tuple[_Four, ...]  # of what is stated, without the map's share
    map_sigma: tuple[_Four, ...]  # of the map's share
    position_scale: tuple[Scale, ...]
    attitude_scale: tuple[Scale, ...]
    availability: tuple[Scale, ...]
    ground_sigma: tuple[Scale, ...]

    @model_validator(mode="after")
    def _alike(self) -> "Factor":
        if any(b <= a for a, b in pairwise(self.at)):
            raise ValueError("at: expected strictly increasing values")
        for name in type(self).model_fields:
            if len(getattr(self, name)) != len(self.at):
                raise ValueError(f"{name}: expected {len(self.at)} entries, one for each of `at`")
        return self

    def row(self, k: int) -> list[float]:
        """All factors at one value: 4 of sigma, 4 of the map's, 2 scales, availability, height."""
        one = (
            self.position_scale[k],
            self.attitude_scale[k],
            self.availability[k],
            self.ground_sigma[k],
        )
        return [scale.value for scale in (*self.sigma[k], *self.map_sigma[k], *one)]


class FixModel(Recipe):
    """``fix_model.yaml``: errors of fixes against height, Sun and map posting."""

    schema_name: Literal["tnav-fix-model/2"] = "tnav-fix-model/2"
    scenario: str  # whose ground, map, camera and star tracker were flown
    setup: str  # hash of all that the trials depend on
    trials: int = Field(ge=0)  # that the fit has seen
    map_sigma_m: Positive  # vertical error of their maps, as the pose solver was told
    gsd_ratio_max: Positive  # of the trials
    sun: Factor  # over its elevation, deg
    gsd: Factor  # over the map's posting, times the usual one
    knots: tuple[Knot, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _descending(self) -> "FixModel":
        heights = [knot.agl_m for knot in self.knots]
        if any(b >= a for a, b in pairwise(heights)):
            raise ValueError(f"knots: expected strictly decreasing agl_m; found {heights}")
        return self


@dataclass(frozen=True, slots=True)
class FixConditions:
    """The model at the conditions of ``b`` images."""

    availability: Float64[Tensor, " b"]
    outlier_rate: Float64[Tensor, " b"]
    bias: Float64[Tensor, "b 6"]  # (dp_L, dtheta_L), m and rad
    covariance: Float64[Tensor, "b 6 6"]  # as stated, less the map's share of position
    scale: Float64[Tensor, "b 6"]  # of sigma, from stated to true
    map_position_covariance: Float64[Tensor, "b 3 3"]  # m^2
    agl_sigma_m: Float64[Tensor, " b"]  # as stated
    agl_scale: Float64[Tensor, " b"]  # of its square, from stated to true


@dataclass(frozen=True, slots=True)
class FixDraw:
    """Drawn fixes, on the device; errors and covariances mean nothing where not available."""

    available: Bool[Tensor, " b"]
    error: Float64[Tensor, "b 6"]  # (dp_L, dtheta_L), m and rad, without the map's position error
    covariance: Float64[Tensor, "b 6 6"]  # as the fix states it, less the map's share of position
    map_position_covariance: Float64[Tensor, "b 3 3"]  # that share, m^2
    agl_sigma_m: Float64[Tensor, " b"]  # of the height over ground, as stated
    agl_error: Float64[Tensor, " b"]  # of the same, in true sigmas: the normal number, scaled
    outlier: Bool[Tensor, " b"]


def draw_fixes(
    model: FixModel,
    agl_m: Float64[Tensor, " b"],
    sun_elevation_deg: Float64[Tensor, "#b"],
    gsd_ratio: Float64[Tensor, "#b"],
    generator: torch.Generator,
) -> FixDraw:
    """Draw one fix for each of ``b`` images.

    Args:
        model: the fitted errors.
        agl_m: true height above the ground.
        sun_elevation_deg: above the site's horizon, one or ``b``.
        gsd_ratio: map posting over the image's ground sample distance (`gsd_ratio_of`).
        generator: on the CPU; each call takes 10 numbers an image, whatever comes of them.
    """
    b = agl_m.shape[0]
    drawn = torch.randn(b, 7, generator=generator, dtype=torch.float64).to(agl_m.device)
    z, of_ground = drawn[:, :6], drawn[:, 6]
    u = torch.rand(b, 3, generator=generator, dtype=torch.float64).to(agl_m.device)
    at = conditions(model, agl_m, sun_elevation_deg, gsd_ratio)
    outlier = u[:, 1] < at.outlier_rate
    radius = math.sqrt(OUTLIER_NEES) * _OUTLIER_SPAN ** u[:, 2:]
    far = radius * z / z.norm(dim=-1, keepdim=True)
    unit = torch.where(outlier[:, None], far, z)
    error = at.bias + at.scale * (_factor(at.covariance) @ unit[..., None])[..., 0]
    return FixDraw(
        available=u[:, 0] < at.availability,
        error=error,
        covariance=at.covariance,
        map_position_covariance=at.map_position_covariance,
        agl_sigma_m=at.agl_sigma_m,
        agl_error=at.agl_scale.sqrt() * of_ground,
        outlier=outlier,
    )


def conditions(
    model: FixModel,
    agl_m: Float64[Tensor, " b"],
    sun_elevation_deg: Float64[Tensor, "#b"],
    gsd_ratio: Float64[Tensor, "#b"],
) -> FixConditions:
    """The model at given heights, Sun elevations and posting ratios, as `draw_fixes` takes them."""
    device, knots = agl_m.device, model.knots[::-1]
    log_m = _tensor([math.log(knot.agl_m) for knot in knots], device)
    x = agl_m.clamp(knots[0].agl_m, knots[-1].agl_m).log()

    def between(values: Sequence[object]) -> Tensor:
        return _interpolate(log_m, _tensor(values, device), x)

    sun_deg = sun_elevation_deg.expand_as(agl_m)
    ratio, usual = gsd_ratio.expand_as(agl_m), between([math.log(k.gsd_ratio) for k in knots]).exp()
    change = _factors(model.sun, sun_deg) * _factors(model.gsd, ratio / usual)
    four = _tensor([0, 0, 1, 2, 2, 3], device).long()
    own, of_map = change[:, four], change[:, 4 + four]
    sigma = between([[math.log(s) for s in knot.sigma] for knot in knots]).exp() * own
    map_p = between([[math.log(s) for s in k.map_position_sigma_m] for k in knots]).exp()
    map_a = between([[math.log(s) for s in k.map_attitude_sigma_rad] for k in knots]).exp()
    turn = _scaled(between([k.map_attitude_correlation for k in knots]), map_a * of_map[:, 3:])
    place = _scaled(between([k.map_position_correlation for k in knots]), map_p * of_map[:, :3])
    covariance = _scaled(between([knot.correlation for knot in knots]), sigma)
    scales = [[math.log(k.position_scale.value), math.log(k.attitude_scale.value)] for k in knots]
    scale = (between(scales).exp() * change[:, 8:10]).sqrt().repeat_interleave(3, dim=1)
    flown = (agl_m >= knots[0].agl_m) & (agl_m <= knots[-1].agl_m)
    flown = flown & (ratio <= model.gsd_ratio_max) & (sun_deg > 0)
    usually = between([knot.availability.value for knot in knots])
    news_m = between([math.log(knot.ground_sigma_m) for knot in knots]).exp() * change[:, 11]
    return FixConditions(
        availability=torch.where(flown, (usually * change[:, 10]).clamp(0.0, 1.0), 0.0),
        outlier_rate=between([knot.outlier_rate.value for knot in knots]),
        bias=between([knot.bias for knot in knots]),
        covariance=covariance + torch.nn.functional.pad(turn, (3, 0, 3, 0)),
        scale=scale,
        map_position_covariance=place,
        agl_sigma_m=agl_sigma_m(news_m, model.map_sigma_m),
        agl_scale=between([math.log(knot.ground_scale.value) for knot in knots]).exp(),
    )


def agl_sigma_m(news_sigma_m: Float64[Tensor, " b"], map_sigma_m: float) -> Float64[Tensor, " b"]:
    """Sigma of a height over ground, m: an image's own word and the map's, combined."""
    return (1 / (news_sigma_m.square().reciprocal() + map_sigma_m**-2)).sqrt()


def news_sigma_m(agl_sigma_m: Float64[Tensor, " b"], map_sigma_m: float) -> Float64[Tensor, " b"]:
    """The inverse of `agl_sigma_m`: what the image alone says; large where it says next to nothing.

    The pose solver states the posterior, whose prior is the map's error: 1/v = 1/n^2 + 1/s^2.
    """
    variance_m2 = agl_sigma_m.clamp(_LEAST_NEWS_M, _MOST_NEWS * map_sigma_m).square()
    return (1 / (variance_m2.reciprocal() - map_sigma_m**-2)).sqrt()


def gsd_ratio_of(
    agl_m: Float64[Tensor, " b"], focal_px: float, coarser: float, map_post_m: float
) -> Float64[Tensor, " b"]:
    """Posting of the map's level that a fix looks at, over the image's ground sample distance.

    Levels double from the finest; the finest one of at least ``coarser`` ground sample distances
    is shown (`Terrain.level_for`).

    Args:
        agl_m: height above the ground.
        focal_px: of the camera.
        coarser: what the map must be coarser by, at least.
        map_post_m: finest posting of the map, twice that of the ground.
    """
    gsd_m = agl_m / focal_px
    doublings = (coarser * gsd_m / map_post_m).log2().ceil().clamp_min(0.0)
    return map_post_m * torch.exp2(doublings) / gsd_m


def load_fix_model(path: Path | None = None) -> FixModel:
    """The model in a file, or the one among the datasets.

    Raises:
        ConfigError: no such file, or one that does not fit; file, line and field are named.
    """
    return load_recipe(path or datasets_dir() / FILE, FixModel)


def write_fix_model(model: FixModel, path: Path) -> None:
    """Write a model as YAML, whole or not at all."""
    data = _rounded(model.model_dump(mode="json"))
    head = (
        "# Errors of vision fixes against height, fitted from rendered images.\n"
        "# Written by the fix-model benchmark; six components are (dp_L, dtheta_L) in m and rad.\n"
    )
    with written_aside(path) as aside:
        aside.write_text(
            head + yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=100),
            encoding="utf-8",
        )


def _rounded(value: object) -> object:
    match value:
        case float():
            return float(f"{value:.{_DIGITS}g}")
        case dict():
            return {key: _rounded(each) for key, each in value.items()}
        case list():
            return [_rounded(each) for each in value]
    return value


def _tensor(values: Sequence[object], device: torch.device) -> Float64[Tensor, "k *rest"]:
    return torch.tensor(values, dtype=torch.float64).to(device)


def _interpolate(
    at: Float64[Tensor, " k"], values: Float64[Tensor, "k *rest"], x: Float64[Tensor, " b"]
) -> Float64[Tensor, "b *rest"]:
    """Piecewise linear, constant beyond the ends; ``at`` ascends."""
    if at.shape[0] == 1:
        return values.expand(x.shape[0], *values.shape[1:])
    upper = torch.searchsorted(at, x.contiguous()).clamp(1, at.shape[0] - 1)
    low, high = at[upper - 1], at[upper]
    weight = ((x - low) / (high - low)).clamp(0.0, 1.0)
    weight = weight.view(-1, *([1] * (values.dim() - 1)))
    return (1 - weight) * values[upper - 1] + weight * values[upper]


def _factors(factor: Factor, value: Float64[Tensor, " b"]) -> Float64[Tensor, "b 12"]:
    """As `Factor.row` lists them."""
    at = _tensor([math.log(v) for v in factor.at], value.device)
    rows = [[math.log(v) for v in factor.row(k)] for k in range(len(factor.at))]
    return _interpolate(at, _tensor(rows, value.device), value.clamp_min(factor.at[0]).log()).exp()


def _scaled(
    correlation: Float64[Tensor, "b k k"], sigma: Float64[Tensor, "b k"]
) -> Float64[Tensor, "b k k"]:
    return correlation * sigma[:, :, None] * sigma[:, None, :]


def _factor(covariance: Float64[Tensor, "b k k"]) -> Float64[Tensor, "b k k"]:
    """Lower factor, found on the correlations: metres and radians differ by orders."""
    sigma = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    unit = covariance / (sigma[:, :, None] * sigma[:, None, :]) + _LEAST_EIGENVALUE * eye
    factor, _ = torch.linalg.cholesky_ex(unit)
    return sigma[:, :, None] * factor
