"""Displacement fields from many uncertain patches: a start, an affine fit, neighbours' medians."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor
from torch.nn.functional import grid_sample, max_pool2d, pad

from tnav.match.correlate import OUTSIDE, Peaks, find_peaks

# Patches that the vote of a shift counts with score 0, so that shifts which leave only one or two
# patches inside the image do not win by chance.
_VOTE_PRIOR = 4.0
# Steps of the reweighted fit; the scale of residuals shrinks from the search's to the peaks'.
_FIT_STEPS = 8
_FIT_SCALE_CELLS = 0.5
# Prior of the linear part, about none: a prediction's rotation and scale err by a few percent.
_LINEAR_SIGMA = 0.05
# Pairs of patches that propose a similarity: at a fifth of right peaks 10 pairs of 256 are right.
_HYPOTHESES = 256
_BASE_CELLS = 16.0  # such a pair is at least this far apart
_LINEAR_MOST = 0.25  # |a - 1|: a tenth of scale and 5 deg together are 0.13
_AGREE_CELLS = 2.0  # relief and perspective bend a similarity by so much
_AGREE_SCORE = 0.2
# Peaks that agree: so many, and so many times those that would by chance. Of 100 random peaks in a
# window of 61 x 61 cells 0.3 lie within 2 cells of a given place, in one of 19 x 19 cells 3.5; the
# best of 256 proposals finds a few more.
_AGREE_LEAST, _AGREE_TIMES = 8, 4.0


@dataclass(frozen=True, slots=True)
class Affine:
    """Places (u, v) of a view in an image, px: ``matrix x + offset``."""

    matrix: Float32[Tensor, "b 2 2"]
    offset: Float32[Tensor, "b 2"]

    @classmethod
    def identity(cls, b: int, device: torch.device) -> "Affine":
        """Every point of ``b`` views where it is."""
        eye = torch.eye(2, device=device)
        return cls(eye.expand(b, 2, 2), torch.zeros(b, 2, device=device))

    def of(self, uv_px: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n 2"]:
        """Places of points, at their precision."""
        matrix, offset = self.matrix.to(uv_px.dtype), self.offset.to(uv_px.dtype)
        return uv_px @ matrix.mT + offset[:, None]

    def spread(self, covariance_px2: Float[Tensor, "b n 2 2"]) -> Float[Tensor, "b n 2 2"]:
        """Covariance in the image of places in the view."""
        matrix = self.matrix.to(covariance_px2.dtype)[:, None]
        return matrix @ covariance_px2 @ matrix.mT

    def resampled(self, image: Float32[Tensor, "b 1 h w"]) -> Float32[Tensor, "b 1 h w"]:
        """The image as the view would show it, by cubic convolution; its edges are repeated."""
        h, w = image.shape[-2:]
        u = torch.arange(w, device=image.device) + 0.5
        v = torch.arange(h, device=image.device) + 0.5
        # Rows and columns apart: an affine grid is a sum of both.
        across = u[:, None] * self.matrix[:, None, :, 0]  # b w 2
        along = v[:, None] * self.matrix[:, None, :, 1] + self.offset[:, None]  # b h 2
        place = across[:, None] + along[:, :, None]
        grid = torch.stack([2 * place[..., 0] / w - 1, 2 * place[..., 1] / h - 1], -1)
        found = grid_sample(image, grid, "bicubic", "border", align_corners=False)
        return found.clamp_min(0.0)


def affine_field(
    surface: Float32[Tensor, "b m k k"],
    at_px: Float32[Tensor, "b m 2"],
    *,
    spread: int,
    cell_px: int,
    patch_px: int,
) -> Affine:
    """Where a view's points lie in an image, from a robust affine fit to correlation surfaces.

    The start is the similarity that most patches' own peaks agree on, be it turned or scaled
    (``_consensus``), or, where too few agree, one shift: every patch votes for those within
    ``spread`` of its high scores, and the highest mean wins. Each patch's peak near the start then
    enters an affine fit, reweighted by Geman and McClure's function with a shrinking scale (Black
    and Rangarajan 1996).

    Args:
        surface: scores against offsets, as ``correlate`` gives them.
        at_px: (u, v) of the patches, full resolution.
        spread: deviation from the common shift, cells of the surface.
        cell_px: size of a cell at full resolution.
        patch_px: side of the patches, cells.
    """
    k = surface.shape[-1]
    middle, length = at_px.mean(1, keepdim=True), at_px.std((1, 2))[:, None, None] + 1.0
    design = _design((at_px - middle) / length)
    own = find_peaks(surface, patch_px=patch_px)
    start, agreed = _consensus(own, at_px / cell_px, design, k * k)
    row, column = _vote(surface, spread)
    shift = torch.stack([column, row], -1) - k // 2  # b 2, cells
    voted = torch.cat([shift[:, None], torch.zeros_like(start[:, 1:])], 1)
    start = torch.where(agreed[:, None, None], start, voted)
    common = design @ start  # b m 2, cells
    span = torch.arange(k, device=surface.device) - k // 2
    near = ((span - common[..., 1:].round()).abs() <= spread)[..., :, None]
    near = near & ((span - common[..., :1].round()).abs() <= spread)[..., None, :]
    peaks = find_peaks(torch.where(near, surface, OUTSIDE), patch_px=patch_px)
    offset = peaks.offset_px - common
    weight = torch.where(peaks.resolved, peaks.score.clamp_min(0.0).square(), 0.0)
    prior = 1.0 / (_LINEAR_SIGMA * length / cell_px).square()
    field = cell_px * (start + _fit(design, offset, weight, prior[:, 0], float(spread)))
    linear = field[:, 1:].mT / length
    eye = torch.eye(2, device=at_px.device)
    return Affine(eye + linear, field[:, 0] - (linear @ middle.mT).squeeze(-1))


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


def _consensus(
    peaks: Peaks, at: Float32[Tensor, "b m 2"], design: Float32[Tensor, "b m 3"], cells: int
) -> tuple[Float32[Tensor, "b 3 2"], Bool[Tensor, " b"]]:
    """Coefficients of the similarity that most peaks agree on, and whether enough of them do.

    ``cells`` is how many places each peak could have had.

    Two peaks fix a similarity: with places and displaced places as complex numbers, z -> a z + b
    (the minimal case of Umeyama 1991). Pairs are drawn once, by a seed of their own.
    """
    b, m = at.shape[:2]
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(m, (2, _HYPOTHESES), generator=generator).to(at.device)
    z = torch.view_as_complex(at.contiguous())
    w = torch.view_as_complex((at + peaks.offset_px).contiguous())
    apart = z[:, second] - z[:, first]
    far = apart.abs() > _BASE_CELLS
    a = (w[:, second] - w[:, first]) / torch.where(far, apart, 1.0)
    residual = w[:, None] - w[:, first, None] - a[..., None] * (z[:, None] - z[:, first, None])
    strength = torch.where(peaks.resolved, peaks.score.clamp_min(0.0), 0.0)
    held = (residual.abs() < _AGREE_CELLS) & (peaks.score > _AGREE_SCORE)[:, None]
    usable = far & ((a - 1).abs() < _LINEAR_MOST)
    support = torch.where(usable, (held * strength[:, None]).sum(-1), -1.0)
    best = support.argmax(-1)
    rows = torch.arange(b, device=at.device)
    inlier = held[rows, best]
    displaced = peaks.offset_px * inlier[..., None]
    weighted = design * inlier[..., None]
    ridge = 1e-3 * torch.eye(3, device=at.device)
    field = torch.linalg.solve_ex(weighted.mT @ design + ridge, design.mT @ displaced)[0]
    by_chance = m * math.pi * _AGREE_CELLS**2 / cells
    enough = inlier.sum(-1) >= _AGREE_LEAST + _AGREE_TIMES * by_chance
    enough = enough & (support[rows, best] > 0)
    return field, enough


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
