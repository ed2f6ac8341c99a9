"""What the network is trained on: descriptors that find each other, templates that peak in place.

Three parts, each on true correspondences of a pair:

- descriptors: dual-softmax InfoNCE (van den Oord et al. 2018; the dual softmax of Rocco et al.
  2018) of one place against others of the pair, near ones included; a place's probability is also
  what its keypoint logit learns to tell;
- templates: cross-entropy of the correlation surface with the true place, which lies between
  cells and is shared among the four around it, through the very correlator that navigation uses;
- uncertainty: negative log-likelihood of the sub-cell peak's error under the stated sigma.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import (
    avg_pool2d,
    binary_cross_entropy_with_logits,
    grid_sample,
    log_softmax,
)

from tnav.learn.pairs import PairBatch
from tnav.match.correlate import OUTSIDE, correlate, find_peaks
from tnav.match.network import DESCRIPTOR_STRIDE, STRIDE, DenseFeatures

_PLACES = 320  # correspondences of descriptors a pair
_NEGATIVES = 512  # cells of the image that are nobody's, beside them
_NEAR_PX = 8.0  # such a cell this near to a place says nothing against it
_TEMPERATURE = 0.07  # of cosine similarities
_PATCH_CELLS = 17  # templates are 34 px wide: smaller than those of the matcher, so harder
# Reach of the search about the true place, cells, and how many templates a pair afford it. A short
# one sharpens the peak, a long one keeps others down; they take turns.
_SEARCHES = ((8, 40), (24, 16))
_SHARPNESS = 30.0  # score to logit: a peak 0.1 above the rest has 95 % of the probability
_FAR_PX = 6.0  # an error beyond this is another place, not noise
_WEIGHTS = {"info_nce": 1.0, "keypoint": 0.2, "fine": 1.0, "sigma": 0.25}
_NEVER = -1e4  # a logit


class LossReport(NamedTuple):
    """The sum to descend, and its parts and measures by name (scalars on the device)."""

    total: Tensor
    parts: dict[str, Tensor]


def pair_loss(net: nn.Module, batch: PairBatch, generator: torch.Generator) -> LossReport:
    """Loss of a batch of pairs.

    Args:
        net: a ``FeatureNet``, perhaps wrapped or compiled.
        batch: pairs with their true correspondence.
        generator: of the places that are drawn; on the CPU, so that devices draw alike.
    """
    b = batch.view.shape[0]
    both = net(torch.cat([batch.view, batch.image]))
    view, image = (DenseFeatures(*(f.float().split(b)[k] for f in both)) for k in (0, 1))
    parts = _descriptors(view, image, batch, generator)
    parts |= _templates(view, image, batch, generator)
    total = torch.stack([weight * parts[name] for name, weight in _WEIGHTS.items()]).sum()
    return LossReport(total, {"total": total.detach()} | {k: v.detach() for k, v in parts.items()})


def draw_cells(
    known: Bool[Tensor, "b h w"],
    stride: int,
    margin: int,
    count: int,
    generator: torch.Generator,
) -> tuple[Int64[Tensor, "b n 2"], Bool[Tensor, "b n"]]:
    """Random (row, column) of a map at a stride whose centres are known, and which truly are.

    Drawn without replacement; where fewer are known the rest is there, but masked.
    """
    b, h, w = known.shape
    rows, columns = h // stride, w // stride
    centre = torch.ones(b, rows, columns, dtype=torch.bool, device=known.device)
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):  # the pixels that meet in the centre
        first_row, first_column = stride // 2 + row, stride // 2 + column
        centre &= known[:, first_row::stride, first_column::stride][:, :rows, :columns]
    inside = torch.zeros_like(centre)
    inside[:, margin : rows - margin, margin : columns - margin] = True
    usable = (centre & inside).flatten(1)
    order = torch.rand(b, rows * columns, generator=generator).to(known.device)
    chosen = (order + usable).topk(count, dim=1).indices
    cell = torch.stack([chosen // columns, chosen % columns], -1)
    return cell, usable.gather(1, chosen)


def _descriptors(
    view: DenseFeatures, image: DenseFeatures, batch: PairBatch, generator: torch.Generator
) -> dict[str, Tensor]:
    stride, device = DESCRIPTOR_STRIDE, batch.view.device
    cell, there = draw_cells(batch.known, stride, 1, _PLACES, generator)
    uv_px = _true_uv_px(batch, cell, stride)
    here = _at(view.descriptor, cell)
    place = _sample(image.descriptor, uv_px, stride)
    place = place / place.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    own = torch.eye(_PLACES, dtype=torch.bool, device=device)
    similar = here @ place.mT / _TEMPERATURE
    similar = similar.masked_fill(~(there[:, None] & there[:, :, None]) & ~own, _NEVER)
    against = _against(here, uv_px, image.descriptor, generator)
    forth = log_softmax(torch.cat([similar, against], -1), -1)[..., :_PLACES]
    log_p = (forth + log_softmax(similar, -2)).diagonal(dim1=-2, dim2=-1)
    p = log_p.exp().detach()
    told = _bce(_at(view.keypoint, cell).squeeze(-1), p)
    seen = _bce(_sample(image.keypoint, uv_px, stride).squeeze(-1), p)
    right = similar.diagonal(dim1=-2, dim2=-1)
    first = (right >= similar.amax(-1)) & (right > against.amax(-1))
    return {
        "info_nce": _mean(-0.5 * log_p, there),
        "keypoint": _mean(told + seen, there),
        "accuracy": _mean(first.float(), there),
    }


def _against(
    here: Tensor, uv_px: Tensor, descriptor: Tensor, generator: torch.Generator
) -> Float[Tensor, "b n m"]:
    """Logits against random cells of the image, except those near to the true place."""
    size = torch.tensor(descriptor.shape[-2:])
    cell = (torch.rand(len(uv_px), _NEGATIVES, 2, generator=generator) * size).long()
    cell = cell.to(uv_px.device)
    near = torch.cdist(uv_px, (cell.flip(-1) + 0.5) * DESCRIPTOR_STRIDE) < _NEAR_PX
    return (here @ _at(descriptor, cell).mT / _TEMPERATURE).masked_fill(near, _NEVER)


def _templates(
    view: DenseFeatures, image: DenseFeatures, batch: PairBatch, generator: torch.Generator
) -> dict[str, Tensor]:
    """Cross-entropy of correlation surfaces about the true place, and the error of their peaks."""
    which = int(torch.randint(len(_SEARCHES), (), generator=generator))
    radius, count = _SEARCHES[which]
    cell, there = draw_cells(batch.known, STRIDE, _PATCH_CELLS // 2, count, generator)
    uv_px = _true_uv_px(batch, cell, STRIDE)
    true_cell = uv_px.flip(-1) / STRIDE - 0.5  # (row, column), between cells
    jitter = torch.randint(2 - radius, radius - 1, cell.shape, generator=generator)
    window = true_cell.round().long() + jitter.to(cell.device)
    surface = correlate(
        view.fine, image.fine, cell, window, patch_px=_PATCH_CELLS, radius_px=radius
    )
    k, offset = surface.shape[-1], true_cell - window  # (row, column) from the window's centre
    inside = surface > OUTSIDE
    log_p = torch.where(inside, surface * _SHARPNESS, _NEVER).flatten(2).log_softmax(-1)
    shared = _shares(offset + k // 2, k)
    scored = there & ((shared * inside).sum((-2, -1)) > 0.999)
    entropy = -(shared.flatten(2) * log_p).sum(-1)
    peaks = find_peaks(surface, patch_px=_PATCH_CELLS)
    error_px = (peaks.offset_px.flip(-1) - offset).norm(dim=-1) * STRIDE
    close = scored & (error_px.detach() < _FAR_PX)
    log_sigma = _stated(view, image, cell, uv_px)
    # In two dimensions -ln p = e^2 / (2 s^2) + 2 ln s. A far peak widens s, but moves no feature.
    square = torch.where(close, error_px, _FAR_PX).square()
    likelihood = 0.5 * square * (-2 * log_sigma).exp() + 2 * log_sigma
    normalised = square.detach() * (-2 * log_sigma.detach()).exp() / 2
    error_px = error_px.detach()
    return {
        "fine": _mean(entropy, scored),
        "sigma": _mean(likelihood, scored),
        "fine_px": _median(error_px, scored),
        "within_3px": _mean((error_px < 3.0).float(), scored),
        "normalised_square": _mean(normalised, close),  # 1 where sigma is honest
    }


def _stated(
    view: DenseFeatures, image: DenseFeatures, cell: Tensor, uv_px: Tensor
) -> Float[Tensor, "b n"]:
    """Logarithm of sigma: the mean of both images' variances, geometric over the template."""
    spread = [
        avg_pool2d(f.log_sigma, _PATCH_CELLS, 1, _PATCH_CELLS // 2, count_include_pad=False)
        for f in (view, image)
    ]
    told = 2 * _at(spread[0], cell).squeeze(-1)
    seen = 2 * _sample(spread[1], uv_px, STRIDE).squeeze(-1)
    return 0.5 * (torch.logaddexp(told, seen) - math.log(2))


def _true_uv_px(
    batch: PairBatch, cell: Int64[Tensor, "b n 2"], stride: int
) -> Float[Tensor, "b n 2"]:
    """Place in the image of cell centres of a view: corners of four pixels, hence their mean."""
    width = batch.uv_px.shape[2]
    corner = cell * stride + stride // 2  # the pixel right below and right of the centre
    total = torch.zeros_like(cell, dtype=torch.float32)
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        flat = (corner[..., 0] + row) * width + corner[..., 1] + column
        total = total + batch.uv_px.flatten(1, 2).gather(1, flat[..., None].expand(-1, -1, 2))
    return torch.nan_to_num(total / 4, nan=-1e3).clamp(-1e3, 1e5)


def _at(x: Float[Tensor, "b c h w"], cell: Int64[Tensor, "b n 2"]) -> Float[Tensor, "b n c"]:
    flat = cell[..., 0] * x.shape[-1] + cell[..., 1]
    return x.flatten(2).gather(2, flat[:, None].expand(-1, x.shape[1], -1)).mT


def _sample(
    x: Float[Tensor, "b c h w"], uv_px: Float[Tensor, "b n 2"], stride: int
) -> Float[Tensor, "b n c"]:
    """Bilinear; the edge repeats."""
    size = torch.tensor([x.shape[-1], x.shape[-2]], device=x.device) * stride
    at = (2 * uv_px / size - 1)[:, None]
    found = grid_sample(x, at, mode="bilinear", padding_mode="border", align_corners=False)
    return found[:, :, 0].mT


def _shares(at: Float[Tensor, "b n 2"], k: int) -> Float[Tensor, "b n k k"]:
    """Bilinear weights of a (row, column) between cells on k x k cells."""
    span = torch.arange(k, device=at.device)
    row = (1 - (at[..., :1] - span).abs()).clamp_min(0.0)
    column = (1 - (at[..., 1:] - span).abs()).clamp_min(0.0)
    return row[..., :, None] * column[..., None, :]


def _bce(logit: Tensor, target: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logit, target, reduction="none")


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp_min(1)


def _median(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x, torch.nan).nanmedian()
