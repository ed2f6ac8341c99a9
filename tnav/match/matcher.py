"""Dense matching of a view rendered from the map with a camera image, coarse to fine.

1. A large search starts on a downsampled pair: an affine map is fitted robustly to what its patches
   agree on, and the image is laid over the view by it.
2. At half resolution each point of the fine grid is searched, and compared with its neighbours.
3. Each is refined to sub-pixel, matched back, and judged: at full resolution with features made by
   hand, at half resolution with learned ones.

A small search is step 3 alone. With a network it does steps 1 and 2, where the Sun, the albedo or
the map may be wrong; step 3 is then done with learned features and with signed gradients, and each
frame keeps the one that is better there (``_prefer``). Nothing here waits for the device.
"""

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor
from torch.nn.functional import avg_pool2d

from tnav.errors import ConfigError, ImageError
from tnav.match.channels import Channel, compress
from tnav.match.correlate import Peaks, correlate
from tnav.match.field import Affine, affine_field, smoothed_field
from tnav.match.network import STRIDE, FeatureNet
from tnav.match.search import Images, ground_of, look, look_back, stated_variance_px2
from tnav.records import Frame, Matches


@dataclass(frozen=True, slots=True)
class MatcherConfig:
    """Sizes and thresholds of the matcher; thresholds are those under which a match is valid."""

    patch_px: int = 47  # odd, so centred on a pixel; with radius 8 the window's FFT has length 64
    fine_radius_px: int = 8  # holds what a coarse affine field leaves of relief parallax
    grid_per_side: int = 18  # 324 matches: enough that the pose is limited by the map, not by count
    min_spacing_patches: float = 0.75  # closer patches share most of their errors
    min_lit_fraction: float = 0.4  # below, the patch is shadow, whose edges a coarse map misplaces
    # What relief and the map's interpolation add to a gradient's match, 1 sigma an axis: chosen on
    # the validation regions by the mean normalised square; `tnav bench covariance` judges it.
    map_sigma_px: float = 0.07
    min_contrast: float = 0.01  # rms of log brightness; a rendered plain has 0
    min_score: float = 0.4  # wrong peaks of 47 px patches stay under it, see the tests
    max_second_ratio: float = 0.85  # a rival nearly as high makes the choice a guess
    max_return_px: float = 0.7  # forward then backward; right matches return within 0.3
    max_sigma_px: float = 1.0  # along the worse axis: a ridge fixes one coordinate only
    learned_patch_cells: int = 31  # of two pixels: 62 px
    min_learned_score: float = 0.3
    coarse_patch_px: int = 31  # about 250 px of the image at 1/8
    coarse_spacing_px: int = 12  # overlapping, since the shared area may be small
    coarse_side_px: int = 96  # coarsest level keeps at least this, to hold a few patches
    distortion: float = 0.03  # deviation of the field from one shift, over the image's longer side

    def __post_init__(self) -> None:
        for name in ("patch_px", "learned_patch_cells", "coarse_patch_px"):
            value = getattr(self, name)
            if value < 7 or value % 2 == 0:
                raise ConfigError(f"matcher.{name}: {value}, expected an odd number of at least 7")
        for name in ("fine_radius_px", "grid_per_side", "coarse_spacing_px", "coarse_side_px"):
            if getattr(self, name) < 2:
                raise ConfigError(f"matcher.{name}: {getattr(self, name)}, expected at least 2")
        if not self.map_sigma_px >= 0:
            raise ConfigError(f"matcher.map_sigma_px: {self.map_sigma_px}, expected at least 0")


_DEFAULT = MatcherConfig()
_LEVELS = (16, 8, 4, 2)  # downsampling of the coarse search
# Gradients are drawn off by a wrong Sun (1 to 2 px at 60 deg) and then lose most matches: where
# they are right, most of them agree with the learned features, and they are not many fewer.
_AGREE_PX, _AGREE_SHARE = 1.0, 0.8
_FEW = 12  # matches that a pose needs; fewer learned ones judge nothing


@torch.no_grad()
def match(
    map_view: Frame,
    image: Float32[Tensor, "b 1 h w"],
    *,
    search_radius_px: float,
    network: FeatureNet | None = None,
    config: MatcherConfig = _DEFAULT,
    fine_channel: Channel | None = None,
    coarse_channel: Channel | None = None,
    full_resolution: bool = False,
) -> Matches:
    """Match what the map predicts with what the camera saw.

    Args:
        map_view: rendered at the predicted pose with the camera's own intrinsics and Sun.
        image: linear camera image of the same size, of any exposure.
        search_radius_px: largest displacement along u or v that the prediction's error may cause.
        network: of learned features, in ``eval`` mode and on the image's device.
        config: sizes and thresholds.
        fine_channel: features of the final matches. By default signed gradients, and with a network
            those or learned ones, frame by frame.
        coarse_channel: features of the first, downsampled search. By default learned ones with a
            network, and CFOG without.
        full_resolution: keep gradients wherever learned features say the same, be they surer or
            not: at half resolution errors of neighbours are more alike, which a height of
            decimetres feels.

    Returns:
        One match per grid point of the map view, row by row; read them only where ``valid``. The
        grid of learned features leaves room for their wider patches.

    Raises:
        ImageError: sizes differ, or the image is smaller than a patch and its search.
        ConfigError: the radius is not a positive number, or leaves no overlap; learned features
            without a network.
    """
    _check(map_view, image, search_radius_px, config)
    view = torch.where(map_view.hit[:, None], map_view.image, 0.0)
    images = Images(view, image, network)
    affine = Affine.identity(len(image), image.device)
    rough = search_radius_px > config.fine_radius_px
    if rough:
        affine = _coarse(images, search_radius_px, coarse_channel, config)
        # Turned, scaled and shifted as the view is: patches then differ by relief alone.
        images = Images(view, affine.resampled(image), network)
    learned = network is not None and fine_channel in (None, Channel.LEARNED)
    task = _Task(map_view, images, affine, config, *_grid(image, config, learned=learned))
    start_px = torch.zeros(task.cell.shape, device=image.device)
    if learned:
        by_network, start_px = _learned(task, start_px)
        if fine_channel is Channel.LEARNED:
            return by_network
        by_gradient = _fine(task, start_px, Channel.SIGNED_GRADIENT)
        return _prefer(by_gradient, by_network, full_resolution=full_resolution)
    channel = fine_channel or Channel.SIGNED_GRADIENT
    if rough:
        start_px = _half(task, start_px, channel)
    return _fine(task, start_px, channel)


@dataclass(frozen=True, slots=True)
class _Task:
    """What all steps of one call share."""

    map_view: Frame
    images: Images  # the camera's laid over the view
    affine: Affine  # from there to the camera's own pixels
    config: MatcherConfig
    rows: range
    columns: range
    spacing: int

    @property
    def cell(self) -> Int64[Tensor, "b n 2"]:
        """Pixels (row, column) of the grid."""
        image = self.images.image
        return _cells(self.rows, self.columns, len(image), image.device)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return len(self.rows), len(self.columns)


def _check(map_view: Frame, image: Tensor, radius_px: float, config: MatcherConfig) -> None:
    if map_view.image.shape != image.shape:
        found, expected = tuple(image.shape), tuple(map_view.image.shape)
        raise ImageError(f"image has shape {found}, its map view {expected}: render at its size")
    shorter = min(image.shape[-2:])
    least = config.patch_px + 4 * config.fine_radius_px
    if shorter < least:
        raise ImageError(f"image is {shorter} px on its shorter side, the matcher needs {least}")
    if not (math.isfinite(radius_px) and 0 < radius_px < shorter):
        raise ConfigError(
            f"search_radius_px: {radius_px}, expected above 0 and below the image's {shorter} px"
        )


def _grid(image: Tensor, config: MatcherConfig, *, learned: bool) -> tuple[range, range, int]:
    """Rows and columns of patch centres, and their spacing, the same along both axes."""
    height_px, width_px = image.shape[-2:]
    least = config.min_spacing_patches * config.patch_px
    spacing = math.ceil(max(least, max(height_px, width_px) / config.grid_per_side))
    # Half a search beyond the patch, so that the way back can be tested on both sides.
    half_px = config.patch_px // 2
    if learned:
        half_px = max(half_px, STRIDE * (config.learned_patch_cells // 2 + 1))
    margin = half_px + config.fine_radius_px // 2
    return _line(height_px, margin, spacing), _line(width_px, margin, spacing), spacing


def _line(length: int, margin: int, spacing: int) -> range:
    """Evenly spaced cells, centred in a length."""
    room = length - 1 - 2 * margin
    first = margin + room % spacing // 2
    return range(first, length - margin, spacing)


def _cells(rows: range, columns: range, b: int, device: torch.device) -> Int64[Tensor, "b n 2"]:
    row = torch.arange(rows.start, rows.stop, rows.step, device=device)
    column = torch.arange(columns.start, columns.stop, columns.step, device=device)
    cell = torch.stack(torch.meshgrid(row, column, indexing="ij"), -1)
    return cell.reshape(1, -1, 2).expand(b, -1, -1)


def _coarse_factor(shorter_px: int, radius_px: float, config: MatcherConfig) -> int:
    """Downsampling that leaves a short search on an image that still holds several patches."""
    for factor in _LEVELS:
        holds_patches = shorter_px >= config.coarse_side_px * factor
        if holds_patches and radius_px >= config.fine_radius_px * factor:
            return factor
    return _LEVELS[-1]


def _usable(task: _Task) -> Bool[Tensor, "b n"]:
    """Patches that are wholly on the ground, lit enough and textured."""
    map_view, view, config = task.map_view, task.images.view, task.config
    rows, columns = task.rows, task.columns
    log_view = compress(view)
    maps = torch.cat(
        [map_view.hit[:, None].float(), map_view.lit[:, None].float(), log_view, log_view.square()],
        1,
    )
    patch = config.patch_px
    first_row, first_column = rows[0] - patch // 2, columns[0] - patch // 2
    # The grid is regular: pooling with its spacing as stride visits exactly its patches.
    maps = maps[..., first_row : rows[-1] + patch // 2 + 1, :]
    maps = maps[..., first_column : columns[-1] + patch // 2 + 1]
    hit, lit, mean, square = avg_pool2d(maps, patch, stride=task.spacing).flatten(2).unbind(1)
    contrast = (square - mean.square()).clamp_min(0.0).sqrt()
    whole = hit > 1 - 0.5 / patch**2
    return whole & (lit >= config.min_lit_fraction) & (contrast >= config.min_contrast)


def _coarse(
    images: Images, radius_px: float, channel: Channel | None, config: MatcherConfig
) -> Affine:
    """Where the view lies in the image, from the downsampled search."""
    factor = _coarse_factor(min(images.view.shape[-2:]), radius_px, config)
    dense = images.at(channel or images.coarse_channel, factor)
    h, w = dense.view.shape[-2:]
    patch, spacing = config.coarse_patch_px, config.coarse_spacing_px
    rows, columns = _line(h, patch // 2, spacing), _line(w, patch // 2, spacing)
    cell = _cells(rows, columns, len(dense.view), dense.view.device)
    radius = math.ceil(radius_px / factor) + 1
    surface = correlate(dense.view, dense.image, cell, cell, patch_px=patch, radius_px=radius)
    spread = math.ceil(config.distortion * max(h, w))
    at_px = (cell.flip(-1) + 0.5) * factor
    return affine_field(surface, at_px, spread=spread, cell_px=factor, patch_px=patch)


def _half(task: _Task, start_px: Tensor, channel: Channel) -> Float32[Tensor, "b n 2"]:
    """Displacement (u, v), px, refined at half resolution and held against the neighbours."""
    config, cell = task.config, task.cell // 2
    shift = (start_px / 2).round()
    peaks = look(
        task.images.at(channel, 2), cell, cell + shift.long().flip(-1),
        patch_cells=config.patch_px, radius_cells=config.fine_radius_px,
    )  # fmt: skip
    return _smoothed(task, start_px, shift, peaks, config.min_score)


def _smoothed(
    task: _Task, start_px: Tensor, shift: Tensor, peaks: Peaks, min_score: float
) -> Float32[Tensor, "b n 2"]:
    """Displacement (u, v), px, of peaks at half resolution, or of their neighbours' median."""
    config = task.config
    good = peaks.resolved & (peaks.score >= min_score)
    good = good & (peaks.second_ratio <= config.max_second_ratio)
    residual = (shift + peaks.offset_px) * 2 - start_px
    return start_px + smoothed_field(residual, good, task.shape, config.fine_radius_px / 2)


def _learned(task: _Task, start_px: Tensor) -> tuple[Matches, Float32[Tensor, "b n 2"]]:
    """Matches by learned features, and the displacement (u, v), px, that they leave to refine."""
    config, dense = task.config, task.images.at(Channel.LEARNED, STRIDE)
    cell, patch, radius = task.cell // STRIDE, config.learned_patch_cells, config.fine_radius_px
    shift = (start_px / STRIDE).round()
    seen = cell + shift.long().flip(-1)
    there = look(dense, cell, seen, patch_cells=patch, radius_cells=radius)
    back_cells, returned = look_back(
        dense, cell, seen, there, patch_cells=patch, radius_cells=radius // 2
    )
    place = seen.flip(-1) + 0.5 + there.offset_px  # (u, v), cells
    stated = stated_variance_px2(dense, cell, place, patch)
    covariance_px2 = task.images.calibrated(STRIDE**2 * there.covariance_px2, stated)
    valid = _usable(task) & _accepted(there, covariance_px2, config.min_learned_score, config)
    valid = valid & returned & (back_cells * STRIDE <= config.max_return_px)
    uv_map_px, point_L, _ = ground_of(task.map_view, cell, STRIDE)
    matches = _matches(
        task, uv_map_px, place.double() * STRIDE, covariance_px2, there.score, point_L, valid,
        half_px=STRIDE * patch // 2, learned=True,
    )  # fmt: skip
    return matches, _smoothed(task, start_px, shift, there, config.min_learned_score)


def _fine(task: _Task, start_px: Tensor, channel: Channel) -> Matches:
    """Refine at full resolution, there and back, and judge."""
    config, cell, dense = task.config, task.cell, task.images.at(channel, 1)
    patch, radius = config.patch_px, config.fine_radius_px
    seen = cell + start_px.round().long().flip(-1)
    there = look(dense, cell, seen, patch_cells=patch, radius_cells=radius)
    back_px, returned = look_back(dense, cell, seen, there, patch_cells=patch, radius_cells=radius)
    eye = torch.eye(2, device=cell.device)
    covariance_px2 = there.covariance_px2 + config.map_sigma_px**2 * eye
    valid = _usable(task) & _accepted(there, covariance_px2, config.min_score, config)
    valid = valid & returned & (back_px <= config.max_return_px)
    uv_map_px, point_L, _ = ground_of(task.map_view, cell, 1)
    place = seen.flip(-1).double() + 0.5 + there.offset_px.double()
    return _matches(
        task, uv_map_px, place, covariance_px2, there.score, point_L, valid,
        half_px=patch // 2, learned=False,
    )  # fmt: skip


def _matches(
    task: _Task,
    uv_map_px: Tensor,
    place_px: Tensor,
    covariance_px2: Tensor,
    score: Tensor,
    point_L: Tensor,
    valid: Tensor,
    *,
    half_px: int,
    learned: bool,
) -> Matches:
    """Places on the image that is laid over the view, told in the camera's own pixels."""
    uv_px = task.affine.of(place_px)
    # What was laid over repeats its edges: a patch there shows less of the ground than it seems.
    h, w = task.images.image.shape[-2:]
    inside = (uv_px[..., 0] >= half_px) & (uv_px[..., 0] <= w - half_px)
    inside &= (uv_px[..., 1] >= half_px) & (uv_px[..., 1] <= h - half_px)
    return Matches(
        uv_map_px=uv_map_px,
        uv_px=uv_px,
        covariance_px2=task.affine.spread(covariance_px2.double()),
        score=score,
        point_L=point_L,
        valid=valid & inside,
        learned=torch.full_like(valid[:, 0], learned),
    )


def _accepted(
    peaks: Peaks, covariance_px2: Tensor, min_score: float, config: MatcherConfig
) -> Bool[Tensor, "b n"]:
    """Peaks that are high, single, sharp and inside."""
    uu, vv = covariance_px2[..., 0, 0], covariance_px2[..., 1, 1]
    uv = covariance_px2[..., 0, 1]
    worst = (uu + vv) / 2 + ((uu - vv).square() / 4 + uv.square()).sqrt()
    return (
        peaks.resolved
        & (peaks.score >= min_score)
        & (peaks.second_ratio <= config.max_second_ratio)
        & (worst <= config.max_sigma_px**2)
    )


def _prefer(by_gradient: Matches, by_network: Matches, *, full_resolution: bool) -> Matches:
    """Signed gradients where the Sun is as predicted and they are surer or wanted; by frame.

    Where the network finds hardly anything, whichever finds more.
    """
    count, other = by_gradient.valid.sum(-1), by_network.valid.sum(-1)
    surer = _typical_variance(by_gradient) < _typical_variance(by_network)
    right = _agree(by_gradient, by_network)
    chosen = torch.where(other < _FEW, count > other, right if full_resolution else right & surer)
    picked = []
    for field in fields(Matches):
        first, second = getattr(by_gradient, field.name), getattr(by_network, field.name)
        keep = chosen.view(-1, *(1 for _ in first.shape[1:]))
        picked.append(torch.where(keep, first, second))
    return Matches(*picked)


def _agree(by_gradient: Matches, by_network: Matches) -> Bool[Tensor, " b"]:
    """Whether gradients say of a frame what learned features say: the Sun is then as predicted."""
    moved_px = by_gradient.uv_px - by_gradient.uv_map_px
    apart_px = (moved_px - by_network.uv_px + by_network.uv_map_px).norm(dim=-1)
    near = by_gradient.valid & by_network.valid & (apart_px < _AGREE_PX)
    count, other = by_gradient.valid.sum(-1), by_network.valid.sum(-1)
    return (near.sum(-1) >= _AGREE_SHARE * count) & (count >= _AGREE_SHARE * other)


def _typical_variance(matches: Matches) -> Float64[Tensor, " b"]:
    """Median over the valid matches of the mean variance of an axis, px^2; infinite without any."""
    variance = matches.covariance_px2.diagonal(dim1=-2, dim2=-1).mean(-1)
    median = torch.where(matches.valid, variance, torch.nan).nanmedian(-1).values
    return torch.nan_to_num(median, nan=torch.inf)
