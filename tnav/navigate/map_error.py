"""How the map's vertical error, which images and ranges share, changes along a descent.

Three states of one Gaussian field of variance s^2: ``mean``, the error as one image averages it
over its footprint; ``local``, the error under the lander; ``beam``, the error where the altimeter's
beam meets the ground, which a tilted lander has hundreds of metres beside its nadir. The mean's
variance m is what the pose solver reports for each fix (the map's share of its height), so it
carries camera, altitude and attitude with it. The leads ``local - mean`` and ``beam - mean`` then
have the variance s^2 - m each, are uncorrelated with the mean, and correlated with one another by
``k = exp(-d^2 / (2 l^2))`` of their distance d on the ground and the field's correlation length l.

Coming down, footprints are nested, and the mean over a smaller one is the mean over the larger plus
news: a martingale, whose correlation between two heights is the root of their variances' ratio (for
short correlation lengths: the ratio of heights). Going up, it is smoothed. From m to m' the two
share ``g = min(m, m')``, and the news has the covariance m' - g with either point::

    mean' = (g / m) mean + b ((local - mean) + (beam - mean)) + w
    b = (m' - g) / ((s^2 - m)(1 + k)),      var w = m' - g^2 / m - 2 b^2 (s^2 - m)(1 + k)

(b at most 1/2, where two points say no more). So all become one on the ground.

Under a few hundred metres the solver's mean is no mean: from matches within half a footprint r it
extrapolates how the field bends over its length l, which what all matches of an image have in
common, e, looks like. So heights of two images differ by ``e (l / r)^2`` beside, and g is less by
its square; but never less than what two images share that know of one another by the ground under
the lander alone, ``m m' / s^2``. (Image descents: AGL right to 0.1 m, heights apart by 1 to 2.5 m.)

Along the ground the mean forgets by ``R = exp(-d / (l + footprint))``; the leads go by the
conditional distribution of the field at the new two places, given the old two: what was under the
beam is remembered by who comes to stand over it. A Gaussian field is so smooth that its next metre
follows from the last ones, of which the filter keeps none: told of one place alone, small steps
would hardly ever forget. So each step forgets as much as it adds to the way D since the last image,
``exp(-(D + d)^2 / (2 l^2)) / exp(-D^2 / (2 l^2))``; beyond D = l at the rate ``1 / l`` of there,
which is a first-order Gauss-Markov process.

Sideways an image sees what the map's error tilts and bends: two errors ``side``, of the variance
that the solver reports for the map's share of the fix's place. Along the ground they forget by R as
the mean does; between footprints they hardly do, by the ratio of their variances to the power of
1/16. (Image descents: at 0 their fixes scatter more than stated, at 1/4 less, and their velocity
with them. Errors of a mean, as nested as that of the height, would have 1/2.)
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from tnav.navigate.mechanisation import MAP_BEAM, MAP_MEAN, MAP_SIDE
from tnav.navigate.state import FilterConfig, FilterState

_THREE = slice(MAP_MEAN, MAP_BEAM + 1)
# A mean over a footprint never has quite the variance of a point.
_MEAN_SHARE_MAX = 0.999
# Two places that are as alike as this are one: apart by 5e-5 correlation lengths.
_ONE_PLACE = 1e-9
_SIDE_POWER = 1 / 16
_LEAST_ROOT_M = 1e-6  # smaller news is rounding


@dataclass(frozen=True, slots=True)
class View:
    """What of the ground a lander has before it."""

    footprint_m: Float64[Tensor, " b"]  # side of the ground that the camera sees
    beam_m: Float64[Tensor, "b 2"]  # east and north, from nadir to where the beam meets the ground


@dataclass(frozen=True, slots=True)
class Way:
    """Over the ground, from where to where."""

    before_m: Float64[Tensor, "b 2 2"]  # east and north of nadir and of the beam on the ground
    after_m: Float64[Tensor, "b 2 2"]
    imaged_m: Float64[Tensor, "b 2"]  # nadir at the last image

    def nadir_m(self) -> Float64[Tensor, " b"]:
        """How far the lander has come."""
        return (self.after_m - self.before_m)[:, 0].norm(dim=-1)


def travelled(
    way: Way,
    footprint_m: Float64[Tensor, " b"],
    mean_m2: Float64[Tensor, " b"],
    sigma_m: float,
    correlation_m: float,
    relief_m2: Float64[Tensor, " b"] | None = None,
) -> tuple[Float64[Tensor, "b 3 3"], Float64[Tensor, "b 3 3"]]:
    """Transition F of (mean, local, beam) over a way, and the covariance Q of its news, m^2.

    Args:
        way: over the ground.
        footprint_m: side of the ground in view.
        mean_m2: variance of the mean, m^2.
        sigma_m: of the field.
        correlation_m: of the field.
        relief_m2: variance that relief around adds to the field's.
    """
    slow = mean_kept(way.nadir_m(), footprint_m, correlation_m)
    lead_m2 = sigma_m**2 - mean_m2
    if relief_m2 is not None:
        lead_m2 = lead_m2 + relief_m2
    since = (way.before_m[:, 0] - way.imaged_m).norm(dim=-1) / correlation_m
    kept = torch.exp(-since.clamp_max(1.0) * way.nadir_m() / correlation_m)
    W, left = _kriged(way.before_m / correlation_m, way.after_m / correlation_m, kept)
    F = W.new_zeros(len(W), 3, 3)
    F[:, 1:, 1:] = W
    F[:, 0, 0] = slow
    F[:, 1:, 0] = slow[:, None] - W.sum(-1)
    Q = ((1 - slow.square()) * mean_m2)[:, None, None].expand(-1, 3, 3).clone()
    Q[:, 1:, 1:] += lead_m2[:, None, None] * left
    return F, Q


def mean_kept(
    ground_m: Float64[Tensor, " b"], footprint_m: Float64[Tensor, " b"], correlation_m: float
) -> Float64[Tensor, " b"]:
    """Correlation of an image's mean with that of another one beside it."""
    return torch.exp(-ground_m / (correlation_m + footprint_m))


def _alike(apart: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
    """Correlation of a Gaussian field over so many correlation lengths."""
    return torch.exp(-0.5 * apart.square())


def _kriged(
    old: Float64[Tensor, "b 2 2"], new: Float64[Tensor, "b 2 2"], kept: Float64[Tensor, " b"]
) -> tuple[Float64[Tensor, "b 2 2"], Float64[Tensor, "b 2 2"]]:
    """Weights W of a unit field at two old places for two new ones, and what is left.

    Simple kriging, ``W = K_no K_oo^-1`` and ``K_nn - W K_on``, with the inverse in the sum and the
    difference of the old two: where these are one place, there is no difference to weigh. All
    correlation of new with old is less by the factor ``kept``.
    """
    K_no = kept[:, None, None] * _alike((new[:, :, None] - old[:, None]).norm(dim=-1))
    k_old, k_new = (_alike((x[:, 0] - x[:, 1]).norm(dim=-1)) for x in (old, new))
    total, across = K_no.sum(-1), K_no[..., 0] - K_no[..., 1]  # b 2: a row for each new place
    of_total = total / (1 + k_old)[:, None]
    apart = (1 - k_old)[:, None]
    of_across = torch.where(apart > _ONE_PLACE, across / apart.clamp_min(_ONE_PLACE), 0.0)
    W = 0.5 * torch.stack([of_total + of_across, of_total - of_across], -1)
    explained = 0.5 * (
        of_total[:, :, None] * total[:, None] + of_across[:, :, None] * across[:, None]
    )
    one = torch.ones_like(k_new)
    K_nn = torch.stack([torch.stack([one, k_new], -1), torch.stack([k_new, one], -1)], -2)
    left = K_nn - explained
    return W, 0.5 * (left + left.mT)


def rescaled(
    before_m2: Float64[Tensor, " b"],
    after_m2: Float64[Tensor, " b"],
    sigma_m: float,
    apart: Float64[Tensor, " b"],
    own_m2: Float64[Tensor, " b"] | None = None,
) -> tuple[Float64[Tensor, "b 3 3"], Float64[Tensor, "b 3 3"]]:
    """Transition F of (mean, local, beam) between two footprints, and Q of its news, m^2.

    Args:
        before_m2: variance of the mean before.
        after_m2: after.
        sigma_m: of the field.
        apart: distance of nadir and beam on the ground, in correlation lengths.
        own_m2: of the mean's variance after, what is that image's own (`extrapolated_m2`).
    """
    lead_m2 = (sigma_m**2 - before_m2) * (1 + _alike(apart))
    common_m2 = torch.minimum(before_m2, after_m2)
    if own_m2 is not None:
        known_m2 = before_m2 * after_m2 / sigma_m**2  # by the ground under the lander alone
        common_m2 = torch.maximum(common_m2 - own_m2, known_m2)
    known = before_m2 > 0
    kept = torch.where(known, common_m2 / torch.where(known, before_m2, 1.0), 1.0)
    pull = ((after_m2 - common_m2) / lead_m2).clamp_max(0.5)
    F = torch.eye(3, dtype=pull.dtype, device=pull.device).repeat(len(pull), 1, 1)
    F[:, 0, 0] = kept - 2 * pull
    F[:, 0, 1], F[:, 0, 2] = pull, pull
    Q = torch.zeros_like(F)
    Q[:, 0, 0] = after_m2 - kept * common_m2 - 2 * pull.square() * lead_m2
    return F, Q


def carried(
    before_m2: Float64[Tensor, " b"],
    after_m2: Float64[Tensor, " b"],
    correlation: Float64[Tensor, " b"],
) -> tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]]:
    """Factor and variance of the news that take an error from one variance to another's."""
    factor = correlation * (after_m2 / before_m2.clamp_min(_LEAST_ROOT_M**2)).sqrt()
    factor = torch.where(before_m2 > _LEAST_ROOT_M**2, factor, 0.0)
    return factor, after_m2 - factor.square() * before_m2


def side_kept(
    before_m2: Float64[Tensor, " b"], after_m2: Float64[Tensor, " b"]
) -> Float64[Tensor, " b"]:
    """Correlation of what is sideways between two footprints, by its variances."""
    least, most = torch.minimum(before_m2, after_m2), torch.maximum(before_m2, after_m2)
    return (least / most.clamp_min(_LEAST_ROOT_M**2)) ** _SIDE_POWER


def extrapolated_m2(
    footprint_m: Float64[Tensor, " b"], floor_m: float, correlation_m: float
) -> Float64[Tensor, " b"]:
    """Variance of a fix's height that is this image's own, m^2.

    Args:
        footprint_m: side of the ground that the camera sees.
        floor_m: what all matches of an image have in common.
        correlation_m: of the map's error.
    """
    return (floor_m * (2 * correlation_m / footprint_m).square()).square()


def mean_share(mean_variance_m2: Float64[Tensor, " b"], sigma_m: float) -> Float64[Tensor, " b"]:
    """The variance of a mean, kept under that of a point."""
    return mean_variance_m2.clamp(min=0.0, max=_MEAN_SHARE_MAX * sigma_m**2)


def root_of(Q: Float64[Tensor, "b n n"]) -> Float64[Tensor, "b n n"]:
    """Lower triangular root of covariances that may be singular (Cholesky, by columns)."""
    left, columns = Q, []
    for k in range(Q.shape[-1]):
        pivot = left[:, k, k].clamp_min(0.0)
        column = left[:, :, k] / pivot.sqrt().clamp_min(_LEAST_ROOT_M)[:, None]
        columns.append(torch.where(pivot[:, None] > _LEAST_ROOT_M**2, column, 0.0))
        left = left - columns[-1][:, :, None] * columns[-1][:, None]
    return torch.stack(columns, -1)


def places_m(
    position_L: Float64[Tensor, "b 3"], beam_m: Float64[Tensor, "b 2"]
) -> Float64[Tensor, "b 2 2"]:
    """East and north of the nadir and of where the beam meets the ground."""
    nadir_m = position_L[:, :2]
    return torch.stack([nadir_m, nadir_m + beam_m], 1)


def travel(
    state: FilterState,
    view: View,
    config: FilterConfig,
    relief_m2: Float64[Tensor, " b"] | None = None,
) -> FilterState:
    """Renews the map's error for the ground covered since it was last renewed.

    Args:
        view: of the ground, now.
        relief_m2: what the relief around adds to the local error of a lander that knows its place
            badly (`tnav.navigate.altimetry.relief_around_m2`).
    """
    after_m = places_m(state.position_L, view.beam_m)
    way = Way(state.map_places_m, after_m, state.clone_position_L[:, :2])
    F, Q = travelled(
        way,
        view.footprint_m,
        state.map_mean_variance_m2,
        config.map_sigma_m,
        config.map_correlation_m,
        relief_m2,
    )
    slow = mean_kept(way.nadir_m(), view.footprint_m, config.map_correlation_m)
    side_m2 = state.map_side_variance_m2
    state = _moved(state, F, Q, carried(side_m2, side_m2, slow))
    return replace(state, map_places_m=after_m, map_footprint_m=view.footprint_m)


def rescale(
    state: FilterState,
    mean_variance_m2: Float64[Tensor, " b"],
    config: FilterConfig,
    side_variance_m2: Float64[Tensor, " b"] | None = None,
    own_m2: Float64[Tensor, " b"] | None = None,
) -> FilterState:
    """Takes the mean, and what is sideways, from the last fix's footprint to another one's.

    Args:
        mean_variance_m2: the map's share of the variance of a fix's height, m^2.
        side_variance_m2: of its place, along each axis; None: that stays as it is.
        own_m2: of the height's variance, what the next image will not share; None: nothing.
    """
    after_m2 = mean_share(mean_variance_m2, config.map_sigma_m)
    before_m2 = state.map_side_variance_m2
    side_m2 = before_m2 if side_variance_m2 is None else side_variance_m2
    apart_m = (state.map_places_m[:, 1] - state.map_places_m[:, 0]).norm(dim=-1)
    F, Q = rescaled(
        state.map_mean_variance_m2,
        after_m2,
        config.map_sigma_m,
        apart_m / config.map_correlation_m,
        own_m2,
    )
    side = carried(before_m2, side_m2, side_kept(before_m2, side_m2))
    state = _moved(state, F, Q, side)
    return replace(state, map_mean_variance_m2=after_m2, map_side_variance_m2=side_m2)


def _moved(
    state: FilterState,
    F: Float64[Tensor, "b 3 3"],
    Q: Float64[Tensor, "b 3 3"],
    side: tuple[Float64[Tensor, " b"], Float64[Tensor, " b"]],
) -> FilterState:
    """``x' = F x + w`` on the three map errors, and as `carried` has it on the two sideways."""
    factor, news_m2 = side[0][:, None], side[1][:, None]
    errors = torch.stack([state.map_mean_m, state.map_local_m, state.map_beam_m], -1)
    mean_m, local_m, beam_m = (F @ errors[..., None]).squeeze(-1).unbind(-1)
    P = state.covariance.clone()
    P[:, _THREE, :] = F @ P[:, _THREE, :]
    P[:, :, _THREE] = P[:, :, _THREE] @ F.mT
    P[:, _THREE, _THREE] += Q
    P[:, MAP_SIDE, :] *= factor[..., None]
    P[:, :, MAP_SIDE] *= factor[..., None]
    P[:, MAP_SIDE, MAP_SIDE] += torch.diag_embed(news_m2.expand(-1, 2))
    return replace(
        state,
        map_mean_m=mean_m,
        map_local_m=local_m,
        map_beam_m=beam_m,
        map_side_m=factor * state.map_side_m,
        covariance=P,
    )
