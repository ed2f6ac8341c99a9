"""Dense matching of a view rendered from the map with a camera image, coarse to fine.

1. A large search starts on a downsampled pair with CFOG: all surfaces vote for one shift, each
   patch then finds its own near it, and an affine field is fitted to them robustly.
2. At half resolution each point of the fine grid is searched around that field, and compared with
   its neighbours.
3. At full resolution each is refined to sub-pixel, matched back, and judged.

A small search is step 3 alone. Nothing here waits for the device.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor
from torch.nn.functional import avg_pool2d

from tnav.errors import ConfigError, ImageError
from tnav.match.channels import Channel, compress, features
from tnav.match.correlate import Peaks, correlate, find_peaks
from tnav.match.field import affine_field, smoothed_field
from tnav.records import Frame, Matches


@dataclass(frozen=True, slots=True)
class MatcherConfig:
    """Sizes and thresholds of the matcher; thresholds are those under which a match is valid."""

    patch_px: int = 47  # odd, so centred on a pixel; with radius 8 the window's FFT has length 64
    fine_radius_px: int = 8  # holds what a coarse affine field leaves of relief parallax
    grid_per_side: int = 18  # 324 matches: enough that the pose is limited by the map, not by count
    min_spacing_patches: float = 0.75  # closer patches share most of their errors
    min_lit_fraction: float = 0.4  # below, the patch is shadow, whose edges a coarse map misplaces
    min_contrast: float = 0.01  # rms of log brightness; a rendered plain has 0
    min_score: float = 0.4  # wrong peaks of 47 px patches stay under it, see the tests
    max_second_ratio: float = 0.85  # a rival nearly as high makes the choice a guess
    max_return_px: float = 0.7  # forward then backward; right matches return within 0.3
    max_sigma_px: float = 1.0  # along the worse axis: a ridge fixes one coordinate only
    coarse_patch_px: int = 31  # about 250 px of the image at 1/8
    coarse_spacing_px: int = 12  # overlapping, since the shared area may be small
    coarse_side_px: int = 96  # coarsest level keeps at least this, to hold a few patches
    distortion: float = 0.03  # deviation of the field from one shift, over the image's longer side

    def __post_init__(self) -> None:
        for name in ("patch_px", "coarse_patch_px"):
            value = getattr(self, name)
            if value < 7 or value % 2 == 0:
                raise ConfigError(f"matcher.{name}: {value}, expected an odd number of at least 7")
        for name in ("fine_radius_px", "grid_per_side", "coarse_spacing_px", "coarse_side_px"):
            if getattr(self, name) < 2:
                raise ConfigError(f"matcher.{name}: {getattr(self, name)}, expected at least 2")


_DEFAULT = MatcherConfig()
_LEVELS = (16, 8, 4, 2)  # downsampling of the coarse search


def match(
    map_view: Frame,
    image: Float32[Tensor, "b 1 h w"],
    *,
    search_radius_px: float,
    config: MatcherConfig = _DEFAULT,
    fine_channel: Channel = Channel.SIGNED_GRADIENT,
    coarse_channel: Channel = Channel.CFOG,
) -> Matches:
    """Match what the map predicts with what the camera saw.

    Args:
        map_view: rendered at the predicted pose with the camera's own intrinsics and the true Sun.
        image: linear camera image of the same size, of any exposure.
        search_radius_px: largest displacement along u or v that the prediction's error may cause.
        config: sizes and thresholds.
        fine_channel: features at full and half resolution.
        coarse_channel: features of the first, downsampled search.

    Returns:
        One match per grid point of the map view, row by row; read them only where ``valid``.

    Raises:
        ImageError: sizes differ, or the image is smaller than a patch and its search.
        ConfigError: the radius is not a positive number, or leaves no overlap.
    """
    _check(map_view, image, search_radius_px, config)
    view = torch.where(map_view.hit[:, None], map_view.image, 0.0)
    b, _, height_px, width_px = image.shape
    rows, columns, spacing = _grid(height_px, width_px, config)
    device = image.device
    cell = _cells(rows, columns, b, device)
    start_px = torch.zeros(cell.shape, device=device)
    if search_radius_px >= config.fine_radius_px:
        factor = _coarse_factor(min(height_px, width_px), search_radius_px, config)
        start_px = _coarse(view, image, cell, factor, search_radius_px, coarse_channel, config)
        if factor > 2:
            shape = (len(rows), len(columns))
            start_px = _half(view, image, cell, shape, start_px, fine_channel, config)
    usable = _usable(map_view, view, rows, columns, spacing, config)
    return _fine(map_view, view, image, cell, start_px, usable, fine_channel, config)


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


def _grid(height_px: int, width_px: int, config: MatcherConfig) -> tuple[range, range, int]:
    """Rows and columns of patch centres, and their spacing, the same along both axes."""
    least = config.min_spacing_patches * config.patch_px
    spacing = math.ceil(max(least, max(height_px, width_px) / config.grid_per_side))
    # Half a search beyond the patch, so that the way back can be tested on both sides.
    margin = config.patch_px // 2 + config.fine_radius_px // 2
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


def _usable(
    map_view: Frame,
    view: Tensor,
    rows: range,
    columns: range,
    spacing: int,
    config: MatcherConfig,
) -> Bool[Tensor, "b n"]:
    """Patches that are wholly on the ground, lit enough and textured."""
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
    hit, lit, mean, square = avg_pool2d(maps, patch, stride=spacing).flatten(2).unbind(1)
    contrast = (square - mean.square()).clamp_min(0.0).sqrt()
    whole = hit > 1 - 0.5 / patch**2
    return whole & (lit >= config.min_lit_fraction) & (contrast >= config.min_contrast)


def _coarse(
    view: Tensor,
    image: Tensor,
    cell: Tensor,
    factor: int,
    radius_px: float,
    channel: Channel,
    config: MatcherConfig,
) -> Float32[Tensor, "b n 2"]:
    """Displacement (u, v), px, at the fine grid from the downsampled search."""
    small_view, small_image = avg_pool2d(view, factor), avg_pool2d(image, factor)
    h, w = small_view.shape[-2:]
    patch, spacing = config.coarse_patch_px, config.coarse_spacing_px
    rows, columns = _line(h, patch // 2, spacing), _line(w, patch // 2, spacing)
    coarse_cell = _cells(rows, columns, view.shape[0], view.device)
    surface = correlate(
        features(small_view, channel), features(small_image, channel), coarse_cell, coarse_cell,
        patch_px=patch, radius_px=math.ceil(radius_px / factor) + 1,
    )  # fmt: skip
    spread = math.ceil(config.distortion * max(h, w))
    at = (coarse_cell.flip(-1) + 0.5) * factor
    to = cell.flip(-1) + 0.5
    return affine_field(surface, at, to, spread=spread, cell_px=factor, patch_px=patch)


def _half(
    view: Tensor,
    image: Tensor,
    cell: Tensor,
    shape: tuple[int, int],
    start_px: Tensor,
    channel: Channel,
    config: MatcherConfig,
) -> Float32[Tensor, "b n 2"]:
    """Displacement (u, v), px, refined at half resolution and held against the neighbours."""
    half_view, half_image = avg_pool2d(view, 2), avg_pool2d(image, 2)
    half_cell = cell // 2
    shift = (start_px / 2).round()
    surface = correlate(
        features(half_view, channel), features(half_image, channel), half_cell,
        half_cell + shift.long().flip(-1), patch_px=config.patch_px,
        radius_px=config.fine_radius_px,
    )  # fmt: skip
    peaks = find_peaks(surface, patch_px=config.patch_px)
    good = peaks.resolved & (peaks.score >= config.min_score)
    good = good & (peaks.second_ratio <= config.max_second_ratio)
    residual = (shift + peaks.offset_px) * 2 - start_px
    return start_px + smoothed_field(residual, good, shape, config.fine_radius_px / 2)


def _fine(
    map_view: Frame,
    view: Tensor,
    image: Tensor,
    cell: Tensor,
    start_px: Tensor,
    usable: Tensor,
    channel: Channel,
    config: MatcherConfig,
) -> Matches:
    """Refine at full resolution, there and back, and judge."""
    patch, radius = config.patch_px, config.fine_radius_px
    view_features, image_features = features(view, channel), features(image, channel)
    seen = cell + start_px.round().long().flip(-1)
    surface = correlate(view_features, image_features, cell, seen, patch_px=patch, radius_px=radius)
    there = find_peaks(surface, patch_px=patch)
    found = seen + there.cell
    surface = correlate(
        image_features, view_features, found, cell, patch_px=patch, radius_px=radius
    )
    back = find_peaks(surface, patch_px=patch)
    # The patch at ``found`` lies ``offset - cell`` short of the peak, and so does its way back.
    round_trip = there.offset_px - there.cell.flip(-1) + back.offset_px
    valid = usable & _accepted(there, config) & back.resolved
    valid = valid & (round_trip.norm(dim=-1) <= config.max_return_px)
    uv_map_px = cell.flip(-1).double() + 0.5
    flat = cell[..., 0] * image.shape[-1] + cell[..., 1]
    point_L = map_view.xyz_L.flatten(1, 2).gather(1, flat[..., None].expand(-1, -1, 3))
    hit = map_view.hit.flatten(1).gather(1, flat)
    return Matches(
        uv_map_px=uv_map_px,
        uv_px=seen.flip(-1).double() + 0.5 + there.offset_px.double(),
        covariance_px2=there.covariance_px2.double(),
        score=there.score,
        point_L=torch.where(hit[..., None], point_L, 0.0),
        valid=valid,
    )


def _accepted(peaks: Peaks, config: MatcherConfig) -> Bool[Tensor, "b n"]:
    """Peaks that are high, single, sharp and inside."""
    uu, vv = peaks.covariance_px2[..., 0, 0], peaks.covariance_px2[..., 1, 1]
    uv = peaks.covariance_px2[..., 0, 1]
    worst = (uu + vv) / 2 + ((uu - vv).square() / 4 + uv.square()).sqrt()
    return (
        peaks.resolved
        & (peaks.score >= config.min_score)
        & (peaks.second_ratio <= config.max_second_ratio)
        & (worst <= config.max_sigma_px**2)
    )
