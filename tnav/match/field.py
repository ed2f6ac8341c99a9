"""Displacement fields from many uncertain patches: one vote, an affine fit, neighbours' medians."""

import torch
from jaxtyping import Bool, Float32
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from tnav.match.correlate import OUTSIDE, find_peaks

# Patches that the vote of a shift counts with score 0, so that shifts which leave only one or two
# patches inside the image do not win by chance.
_VOTE_PRIOR = 4.0
# Steps of the reweighted fit; the scale of residuals shrinks from the search's to the peaks'.
_FIT_STEPS = 8
_FIT_SCALE_CELLS = 0.5
# Prior of the linear part, about none: a prediction's rotation and scale err by a few percent.
_LINEAR_SIGMA = 0.05


def affine_field(
    surface: Float32[Tensor, "b m k k"],
    at_px: Float32[Tensor, "b m 2"],
    to_px: Float32[Tensor, "b n 2"],
    *,
    spread: int,
    cell_px: int,
    patch_px: int,
) -> Float32[Tensor, "b n 2"]:
    """Displacement of points from a robust affine fit to correlation surfaces.

    Every patch votes for the shifts within ``spread`` of its high scores; the shift with the
    highest mean wins. Each patch's own peak near the winner then enters an affine fit, reweighted
    by Geman and McClure's function with a shrinking scale (Black and Rangarajan 1996).

    Args:
        surface: scores against offsets, as ``correlate`` gives them.
        at_px: (u, v) of the patches, full resolution.
        to_px: (u, v) where the field is wanted.
        spread: deviation from the common shift, cells of the surface.
        cell_px: size of a cell at full resolution.
        patch_px: side of the patches, cells.

    Returns:
        Displacement (u, v), px at full resolution.
    """
    k = surface.shape[-1]
    row, column = _vote(surface, spread)
    span = torch.arange(k, device=surface.device)
    near = ((span - row[:, None]).abs() <= spread)[:, :, None]
    near = near & ((span - column[:, None]).abs() <= spread)[:, None, :]
    peaks = find_peaks(torch.where(near[:, None], surface, OUTSIDE), patch_px=patch_px)
    common = torch.stack([column, row], -1) - k // 2  # b 2, cells
    offset = peaks.offset_px - common[:, None]
    weight = torch.where(peaks.resolved, peaks.score.clamp_min(0.0).square(), 0.0)
    middle, length = at_px.mean(1, keepdim=True), at_px.std((1, 2))[:, None, None] + 1.0
    design = _design((at_px - middle) / length)
    prior = 1.0 / (_LINEAR_SIGMA * length / cell_px).square()
    field = _fit(design, offset, weight, prior[:, 0], float(spread))
    moved = _design((to_px - middle) / length) @ field + common[:, None]
    return moved * cell_px


def smoothed_field(
    residual_px: Float32[Tensor, "b n 2"],
    good: Bool[Tensor, "b n"],
    shape: tuple[int, int],
    tolerance_px: float,
) -> Float32[Tensor, "b n 2"]:
    """Residual displacements with those replaced that are missing or that no neighbour shares.

    Args:
        residual_px: (u, v) on a regular grid, row by row.
        good: which to believe.
        shape: rows and columns of the grid.
        tolerance_px: farthest from the median of the 5 x 5 neighbourhood.

    Returns:
        The residual itself, or that median, or 0 where the neighbourhood holds nothing good.
    """
    b = residual_px.shape[0]
    masked = torch.where(good[..., None], residual_px, torch.nan).mT.reshape(2 * b, 1, *shape)
    around = pad(masked, (2, 2, 2, 2), value=torch.nan).unfold(2, 5, 1).unfold(3, 5, 1)
    median = around.flatten(4).nanmedian(-1).values.reshape(b, 2, -1).mT
    median = torch.nan_to_num(median, nan=0.0)
    own = good & ((residual_px - median).norm(dim=-1) <= tolerance_px)
    return torch.where(own[..., None], residual_px, median)


def _vote(surface: Tensor, spread: int) -> tuple[Tensor, Tensor]:
    """Row and column of the cell that most patches have a high score near."""
    size = 2 * spread + 1
    high = max_pool2d(surface, (1, size), stride=1, padding=(0, spread))
    high = max_pool2d(high, (size, 1), stride=1, padding=(spread, 0))
    inside = surface > OUTSIDE
    score = torch.where(inside, high, 0.0).sum(1) / (inside.sum(1) + _VOTE_PRIOR)
    # Pooling makes plateaus: the plain mean breaks ties towards their middle.
    score = score + 0.1 * torch.where(inside, surface, 0.0).mean(1)
    best = score.flatten(1).argmax(-1)
    k = surface.shape[-1]
    return best // k, best % k


def _design(x: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(x[..., :1]), x], -1)


def _fit(design: Tensor, offset: Tensor, weight: Tensor, prior: Tensor, spread: float) -> Tensor:
    """Coefficients ``b 3 2`` of an affine field, cells, by reweighted least squares."""
    scale = max(spread, _FIT_SCALE_CELLS)
    shrink = (_FIT_SCALE_CELLS / scale) ** (1 / (_FIT_STEPS - 1))
    # A weak pull of the mean to the vote keeps the system regular where no patch counts.
    ridge = torch.cat([torch.full_like(prior, 1e-3), prior, prior], -1).diag_embed()
    residual = offset
    for _ in range(_FIT_STEPS):
        w = weight * (scale**2 / (scale**2 + residual.square().sum(-1))).square()
        left = design.mT @ (w[..., None] * design) + ridge
        right = design.mT @ (w[..., None] * offset)
        field = torch.linalg.solve_ex(left, right)[0]
        residual = offset - design @ field
        scale *= shrink
    return field
