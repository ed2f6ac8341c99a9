"""How the map's vertical error, which images and ranges share, changes along a descent.

Two states: ``mean``, the error as one image averages it over its footprint, and ``local``, the
error under the lander. Both are of one Gaussian field of variance s^2. The mean's variance m is
what the pose solver reports for each fix (the map's share of its height), so it carries camera,
altitude and attitude with it; ``local - mean`` then has the variance s^2 - m,
uncorrelated with the mean.

Coming down, footprints are nested, and the mean over a smaller one is the mean over the larger plus
news: a martingale, whose correlation between two heights is the root of their variances' ratio (for
short correlation lengths: the ratio of heights). From m to m' > m, with a = (s^2 - m')/(s^2 - m)::

    mean' = mean + (1 - a)(local - mean) + w,     var w = (s^2 - m')(1 - a)

So the two become one on the ground. Going up, the mean is smoothed, by c = m'/m < 1::

    mean' = c mean + w,                           var w = m'(1 - c)

Along the ground over a distance d the local error forgets its part by ``r = exp(-d / l)`` with the
field's correlation length l, the mean by the larger ``R = exp(-d / (l + footprint))``: first-order
Gauss-Markov, rougher than a map's smooth error and so never the more confident.
"""

from dataclasses import replace

import torch
from jaxtyping import Float64
from torch import Tensor

from tnav.navigate.mechanisation import MAP_LOCAL, MAP_MEAN
from tnav.navigate.state import FilterConfig, FilterState

_PAIR = slice(MAP_MEAN, MAP_LOCAL + 1)
# A mean over a footprint never has quite the variance of a point.
_MEAN_SHARE_MAX = 0.999


def travelled(
    ground_m: Float64[Tensor, " b"],
    footprint_m: Float64[Tensor, " b"],
    mean_m2: Float64[Tensor, " b"],
    sigma_m: float,
    correlation_m: float,
    relief_m2: Float64[Tensor, " b"] | None = None,
) -> tuple[Float64[Tensor, "b 2 2"], Float64[Tensor, "b 2 2"]]:
    """Transition F of (mean, local) over a distance, and the covariance Q of its news, m^2."""
    r = torch.exp(ground_m / -correlation_m)
    slow = torch.exp(-ground_m / (correlation_m + footprint_m))
    news_m2 = (1 - slow.square()) * mean_m2
    local_m2 = sigma_m**2 - mean_m2
    if relief_m2 is not None:
        local_m2 = local_m2 + relief_m2
    local_m2 = (1 - r.square()) * local_m2
    F = _matrix(slow, torch.zeros_like(r), slow - r, r)
    return F, _matrix(news_m2, news_m2, news_m2, news_m2 + local_m2)


def rescaled(
    before_m2: Float64[Tensor, " b"], after_m2: Float64[Tensor, " b"], sigma_m: float
) -> tuple[Float64[Tensor, "b 2 2"], Float64[Tensor, "b 2 2"]]:
    """Transition F of (mean, local) from one footprint to another's, and Q of its news, m^2."""
    field_m2 = sigma_m**2
    a = (field_m2 - after_m2) / (field_m2 - before_m2)
    c = after_m2 / before_m2.clamp_min(1e-12)
    down, zero = after_m2 >= before_m2, torch.zeros_like(a)
    keep, pull = torch.where(down, a, c), torch.where(down, 1 - a, zero)
    noise_m2 = torch.where(down, (field_m2 - after_m2) * (1 - a), after_m2 * (1 - c))
    F = _matrix(keep, pull, zero, torch.ones_like(a))
    return F, _matrix(noise_m2, zero, zero, zero)


def mean_share(mean_variance_m2: Float64[Tensor, " b"], sigma_m: float) -> Float64[Tensor, " b"]:
    """The variance of a mean, kept under that of a point."""
    return mean_variance_m2.clamp(min=0.0, max=_MEAN_SHARE_MAX * sigma_m**2)


def travel(
    state: FilterState,
    footprint_m: Float64[Tensor, " b"],
    config: FilterConfig,
    relief_m2: Float64[Tensor, " b"] | None = None,
) -> FilterState:
    """Renews the map's error for the ground covered since it was last renewed.

    Args:
        footprint_m: side of the ground in view, m.
        relief_m2: what the relief around adds to the local error of a lander that knows its place
            badly (`tnav.navigate.filter.relief_around_m2`).
    """
    ground_m = (state.position_L - state.map_position_L)[:, :2].norm(dim=-1)
    F, Q = travelled(
        ground_m,
        footprint_m,
        state.map_mean_variance_m2,
        config.map_sigma_m,
        config.map_correlation_m,
        relief_m2,
    )
    return replace(_apply(state, F, Q), map_position_L=state.position_L)


def rescale(
    state: FilterState, mean_variance_m2: Float64[Tensor, " b"], config: FilterConfig
) -> FilterState:
    """Takes the mean from the last fix's footprint to another one's.

    Args:
        mean_variance_m2: the map's share of the variance of a fix's height, m^2.
    """
    after_m2 = mean_share(mean_variance_m2, config.map_sigma_m)
    F, Q = rescaled(state.map_mean_variance_m2, after_m2, config.map_sigma_m)
    return replace(_apply(state, F, Q), map_mean_variance_m2=after_m2)


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Float64[Tensor, "b 2 2"]:
    return torch.stack([torch.stack([a, b], -1), torch.stack([c, d], -1)], -2)


def _apply(
    state: FilterState, F: Float64[Tensor, "b 2 2"], Q: Float64[Tensor, "b 2 2"]
) -> FilterState:
    """``x' = F x + w`` on the two map errors alone."""
    pair = torch.stack([state.map_mean_m, state.map_local_m], -1)[..., None]
    mean_m, local_m = (F @ pair).squeeze(-1).unbind(-1)
    P = state.covariance.clone()
    P[:, _PAIR, :] = F @ P[:, _PAIR, :]
    P[:, :, _PAIR] = P[:, :, _PAIR] @ F.mT
    P[:, _PAIR, _PAIR] += Q
    return replace(state, map_mean_m=mean_m, map_local_m=local_m, covariance=P)
