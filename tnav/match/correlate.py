"""Batched zero-normalised cross-correlation by FFT, and the peaks of its surfaces.

Cells are (row, column) of pixels, offsets (u, v) in px. A patch of odd size is centred on a cell.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from tnav.match.channels import box_sum

OUTSIDE = -2.0  # score of a placement that leaves the image; any true score is at least -1

# Mean square of a feature below which a patch is flat: rounding, not texture (features are of
# order 0.03 to 1).
_FLAT = 1e-6
# Patches are correlated in groups whose windows hold at most this many samples. Fewer on a CPU:
# arrays of 16 MiB spend half of their time on fresh pages of memory.
_CHUNK_SAMPLES, _CPU_CHUNK_SAMPLES = 1 << 22, 1 << 20
# Times that windows cover the image from which on sums over all of it cost less than over each:
# measured at 8, with patches of 31 and 47 and radii of 4 and 8.
_OVERLAP = 8
# Scores are floored here before the logarithm that makes a peak quadratic.
_SCORE_FLOOR = 0.02
# Score that no fit may exceed: a perfect match would claim to have no error.
_SCORE_CEILING = 0.9999
# Samples of a patch per independent error sample: what one of the two images lacks is correlated
# over a few pixels. Measured, see ``find_peaks``.
CORRELATED_SAMPLES = 11.0
# Error of the sub-pixel fit itself, 1 sigma an axis: what is left between an image and its exact
# shift by Fourier phase, without noise.
FIT_SIGMA_PX = 0.01


@dataclass(frozen=True, slots=True)
class Peaks:
    """Highest point of each correlation surface."""

    cell: Int64[Tensor, "b n 2"]  # (row, column) from the window's centre
    offset_px: Float32[Tensor, "b n 2"]  # (u, v) from the window's centre, sub-pixel
    covariance_px2: Float32[Tensor, "b n 2 2"]  # identity where not resolved
    score: Float32[Tensor, "b n"]  # correlation at the highest cell, -1 where there is none
    second_ratio: Float32[Tensor, "b n"]  # highest score away from the peak over the peak's
    resolved: Bool[Tensor, "b n"]  # inside the surface, and concave


def correlate(
    template: Float32[Tensor, "b c h w"],
    image: Float32[Tensor, "b c h2 w2"],
    template_cell: Int64[Tensor, "b n 2"],
    window_cell: Int64[Tensor, "b n 2"],
    *,
    patch_px: int,
    radius_px: int,
) -> Float32[Tensor, "b n k k"]:
    """Correlation of patches of one image with all placements in a window of another.

    For a patch T and the image I under it at a placement, with means over the patch taken off each
    channel, the score is ``sum_c T_c I_c / sqrt(sum_c T_c^2 sum_c I_c^2)``.

    Args:
        template: features that patches are cut from.
        image: features that are searched.
        template_cell: centres of the patches.
        window_cell: cell of ``image`` that offset (0, 0) means, for each patch.
        patch_px: odd side of a patch.
        radius_px: offsets run from minus to plus this, so ``k = 2 radius_px + 1``.

    Returns:
        Scores, axis order (row, column) of the offset; ``OUTSIDE`` where a placement leaves the
        image. Where either patch is flat the score tends to 0.
    """
    k, n = 2 * radius_px + 1, template_cell.shape[1]
    b, c, h, w = image.shape
    window_px = patch_px + k - 1
    most = _CPU_CHUNK_SAMPLES if image.device.type == "cpu" else _CHUNK_SAMPLES
    step = max(1, most // (b * c * window_px**2))
    # What lies under a placement is summed once for the image where windows cover it many times.
    overlap = n * window_px**2 > _OVERLAP * h * w and min(h, w) >= patch_px
    energy = _energy(image, patch_px)[:, None] if overlap else None
    floor = _FLAT * patch_px**2 * c
    upper_left = window_cell - (patch_px // 2 + radius_px)
    parts = []
    for cell, corner in zip(template_cell.split(step, 1), upper_left.split(step, 1), strict=True):
        window, _ = _crop(image, corner, window_px)
        sums = _energy(window, patch_px) if energy is None else _crop(energy, corner, k)[0][:, 0]
        numerator = _products(template, window, cell, patch_px, k)
        parts.append(numerator * sums.clamp_min(floor).rsqrt())
    inside = _inside(upper_left, k, (h - patch_px, w - patch_px))
    return torch.where(inside, torch.cat(parts, 1).clamp(-1.0, 1.0), OUTSIDE)


def patch_means(
    x: Float32[Tensor, "b 1 h w"], cell: Int64[Tensor, "b n 2"], patch_px: int
) -> Float32[Tensor, "b n"]:
    """Means over patches of one channel; what leaves the image repeats the nearest edge."""
    return _crop(x, cell - patch_px // 2, patch_px)[0].mean((-2, -1))[:, 0]


def find_peaks(
    surface: Float32[Tensor, "b n k k"], *, patch_px: int, exclusion_px: int = 3
) -> Peaks:
    """Sub-pixel peaks with covariance.

    A quadratic is fitted by least squares to ln(score) on the 3 x 3 cells around the highest one.
    The logarithm makes a Gaussian peak exactly quadratic, so that offsets are not drawn towards
    whole pixels.

    Covariance: let the image be ``a T`` shifted, plus white noise of variance s^2 on each of N
    samples. The Cramer-Rao bound is ``(s^2 / a^2) (sum grad T grad T^T)^-1``. Near its top the
    score is ``rho (1 - d^T M d / 2)`` with ``M = sum grad T grad T^T / sum T^2 = -H(ln score)``,
    and ``(1 - rho^2) / rho^2 = N s^2 / (a^2 sum T^2)``. Hence
    ``cov = (1 - rho^2) / (rho^2 N) M^-1``. Errors are not white, so N is the number of samples
    over ``CORRELATED_SAMPLES``, to which ``FIT_SIGMA_PX`` is added.

    The constant makes the mean normalised squared error 2, its expectation, for signed gradients
    where the map lacks detail: on ten synthetic scenes that it was not set on (2850 matches), it
    is 2.00 and 1.94 with a map twice as coarse as the image (without and with vertical noise) and
    2.00 with one four times as coarse; 2.3 for local contrast, 2.0 to 2.2 for CFOG. A single
    scene scatters by 0.5 about it (its shadows), and errors have heavier tails than a Gaussian.
    Detector noise alone is whiter: there the mean is 0.84, the covariance twice too large.

    Args:
        surface: as ``correlate`` returns it.
        patch_px: side of the patches.
        exclusion_px: cells this near to the peak do not count as a second peak.
    """
    b, n, k, _ = surface.shape
    flat = surface.flatten(2)
    score, best = flat.max(-1)
    row, column = best // k, best % k
    centre = torch.stack([row, column], -1)
    near, complete = _crop(flat.reshape(b * n, 1, k, k), centre.reshape(b * n, 1, 2) - 1, 3)
    near = near.reshape(b, n, 3, 3)
    interior = complete.reshape(b, n, 9).all(-1) & (near > OUTSIDE).flatten(2).all(-1)
    level, gradient, curvature = _quadratic(near.clamp_min(_SCORE_FLOOR).log())
    shift, spread, concave = _solve(gradient, curvature)
    top = (level + (gradient * shift).sum(-1) / 2).exp()
    rho2 = top.clamp(_SCORE_FLOOR, _SCORE_CEILING).square()
    factor = CORRELATED_SAMPLES * (1 - rho2) / (rho2 * patch_px**2)
    resolved = interior & concave & (shift.abs() <= 1.0).all(-1)
    eye = torch.eye(2, device=surface.device)
    cell = centre - k // 2
    ok = resolved[..., None]
    covariance = factor[..., None, None] * spread + FIT_SIGMA_PX**2 * eye
    return Peaks(
        cell=cell,
        offset_px=cell.flip(-1).float() + torch.where(ok, shift, 0.0),
        covariance_px2=torch.where(ok[..., None], covariance, eye),
        score=score.clamp_min(-1.0),
        second_ratio=_second(surface, row, column, exclusion_px) / score.clamp_min(_SCORE_FLOOR),
        resolved=resolved,
    )


def _products(
    template: Tensor, window: Tensor, template_cell: Tensor, patch_px: int, k: int
) -> Tensor:
    """Scalar products of unit-energy, zero-mean patches with every placement in their windows."""
    patch, _ = _crop(template, template_cell - patch_px // 2, patch_px)  # b c m p p
    patch = patch - patch.mean((-2, -1), keepdim=True)
    energy = patch.square().sum((1, 3, 4), keepdim=True)
    floor = _FLAT * patch_px**2 * template.shape[1]
    patch = patch * energy.clamp_min(floor).rsqrt()
    # Wrapped-around terms of a circular correlation of the window's size fall outside the first
    # k x k cells, so no further padding is needed.
    side = _fast_length(patch_px + k - 1)
    spectrum = torch.fft.rfft2(patch, s=(side, side)).conj() * torch.fft.rfft2(
        window, s=(side, side)
    )
    return torch.fft.irfft2(spectrum.sum(1), s=(side, side))[..., :k, :k]


def _energy(x: Tensor, patch_px: int) -> Tensor:
    """Sum over channels, axis 1, of the squares about the mean, for every placement of a patch."""
    squares = box_sum(x.square().sum(1), patch_px)
    return (squares - box_sum(x, patch_px).square().sum(1) / patch_px**2).clamp_min(0.0)


def _inside(corner: Tensor, k: int, last: tuple[int, int]) -> Tensor:
    """Which of ``k`` by ``k`` placements, from a corner on, start between 0 and the last cell."""
    at = corner[..., None] + torch.arange(k, device=corner.device)  # b n 2 k
    row, column = ((x >= 0) & (x <= end) for x, end in zip(at.unbind(-2), last, strict=True))
    return row[..., :, None] & column[..., None, :]


def _crop(x: Tensor, corner: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Squares ``b c n size size`` whose upper left cell is given, and which of their cells exist.

    Cells outside repeat the nearest edge.
    """
    b, c, h, w = x.shape
    span = torch.arange(size, device=x.device)
    row, column = corner[..., :1] + span, corner[..., 1:] + span  # b n size
    in_row, in_column = (row >= 0) & (row < h), (column >= 0) & (column < w)
    flat = row.clamp(0, h - 1)[..., :, None] * w + column.clamp(0, w - 1)[..., None, :]
    index = flat.flatten(1)[:, None].expand(b, c, -1)
    squares = x.flatten(2).gather(2, index).unflatten(2, flat.shape[1:])
    return squares, in_row[..., :, None] & in_column[..., None, :]


def _quadratic(s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient (u, v) and (Huu, Huv, Hvv) of the least-squares quadratic on 3 x 3 cells."""
    left, middle, right = s.sum(-2).unbind(-1)
    upper, centre, lower = s.sum(-1).unbind(-1)
    cross = s[..., 0, 0] - s[..., 0, 2] - s[..., 2, 0] + s[..., 2, 2]
    gradient = torch.stack([right - left, lower - upper], -1) / 6
    h_uu, h_vv = (left + right - 2 * middle) / 3, (upper + lower - 2 * centre) / 3
    level = s.mean((-2, -1)) - (h_uu + h_vv) / 3
    return level, gradient, torch.stack([h_uu, cross / 4, h_vv], -1)


def _solve(gradient: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Offset of the top, ``(-H)^-1``, and whether H is safely negative definite."""
    uu, uv, vv = (-curvature).unbind(-1)
    determinant = uu * vv - uv * uv
    # A ridge a thousand times flatter one way than the other fixes one coordinate only.
    concave = (uu > 0) & (vv > 0) & (determinant > 1e-3 * uu * vv) & (determinant > 1e-12)
    safe = torch.where(concave, determinant, 1.0)
    rows = torch.stack([vv, -uv, -uv, uu], -1).unflatten(-1, (2, 2))
    inverse = rows / safe[..., None, None]
    return (inverse @ gradient[..., None]).squeeze(-1), inverse, concave


def _second(surface: Tensor, row: Tensor, column: Tensor, exclusion_px: int) -> Tensor:
    """Highest score farther than the exclusion from the peak, at least 0."""
    span = torch.arange(surface.shape[-1], device=surface.device)
    near_row = (span - row[..., None]).abs() <= exclusion_px
    near_column = (span - column[..., None]).abs() <= exclusion_px
    near = near_row[..., :, None] & near_column[..., None, :]
    return surface.masked_fill(near, 0.0).flatten(2).amax(-1).clamp_min(0.0)


def _fast_length(length: int) -> int:
    """Smallest even product of powers of 2, 3 and 5 that is at least a length."""
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1 and length % 2 == 0:
            return length
        length += 1
