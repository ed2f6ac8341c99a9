"""Dense matching of a view rendered from the map with a camera image, coarse to fine.

1. A large search starts on a downsampled pair: an affine map is fitted robustly to what its patches
   agree on, and the image is laid over the view by it.
2. At half resolution each point of the fine grid is searched, and compared with its neighbours.
3. Each is refined to sub-pixel, matched back, and judged: at full resolution with features made by
   hand, at half resolution with learned ones.

A small search is step 3 alone. With a network, step 1 is done with its features, and so is step 2,
at a quarter: there they are held against signed gradients, which tells frame by frame which of the
two does step 3 (``_middle``, ``_chosen``). Nothing here waits for the device.
"""

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from tnav.errors import ConfigError, ImageError
from tnav.match.channels import Channel
from tnav.match.correlate import Peaks, correlate
from tnav.match.field import Affine, affine_field, smoothed_field
from tnav.match.grid import Grid, centred_grid, spacing_for, usable_patches
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
    middle_patch_cells: int = 23  # of four pixels: 92 px
    coarse_patch_px: int = 31  # about 250 px of the image at 1/8
    coarse_spacing_px: int = 12  # overlapping, since the shared area may be small
    coarse_side_px: int = 96  # coarsest level keeps at least this, to hold a few patches
    distortion: float = 0.03  # deviation of the field from one shift, over the image's longer side

    def __post_init__(self) -> None:
        for name in ("patch_px", "learned_patch_cells", "middle_patch_cells", "coarse_patch_px"):
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
# Median distance between both kinds of match at a quarter, over their stated sigmas. On validation
# regions it is 0.2 to 0.6 under the true Sun, 0.4 to 0.8 at 30 deg, where both err alike, and over
# 1.5 from 60 deg on, where gradients are off by 1 to 2 px.
_APART_SIGMAS = 0.75
_KEPT_SHARE = 0.5  # of the patches that learned features find; a map 8 times too coarse keeps 0.3
_FEW = 12  # matches that a pose needs; fewer judge nothing


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
) -> Matches:
    """Match what the map predicts with what the camera saw.

    Args:
        map_view: rendered at the predicted pose with the camera's own intrinsics and Sun.
        image: linear camera image of the same size, of any exposure.
        search_radius_px: largest displacement along u or v that the prediction's error may cause.
        network: of learned features, in ``eval`` mode and on the image's device.
        config: sizes and thresholds.
        fine_channel: features of the final matches. By default signed gradients, and with a network
            those or learned ones, frame by frame: gradients where the Sun is as predicted.
        coarse_channel: features of the first, downsampled search. By default learned ones with a
            network, and CFOG without.

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
    grid = _grid(image, config, learned=learned)
    usable = usable_patches(
        map_view, view, grid, config.patch_px,
        min_lit_fraction=config.min_lit_fraction, min_contrast=config.min_contrast,
    )  # fmt: skip
    task = _Task(map_view, images, affine, config, grid, usable)
    if learned and fine_channel is None:
        return _chosen(task, _middle(task))
    start_px = torch.zeros(task.cell.shape, device=image.device)
    if fine_channel is Channel.LEARNED:
        return _learned(task, _middle(task).start_px if rough else start_px)
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
    grid: Grid
    usable: Bool[Tensor, "b n"]

    @property
    def cell(self) -> Int64[Tensor, "b n 2"]:
        """Pixels (row, column) of the grid."""
        image = self.images.image
        return self.grid.cells(len(image), image.device)


@dataclass(frozen=True, slots=True)
class _Middle:
    """What a look at a quarter of the resolution leaves to the last one."""

    start_px: Float32[Tensor, "b n 2"]  # displacement (u, v)
    found: Int64[Tensor, "b"]  # patches
    gradients_agree: Bool[Tensor, "b"]  # so the Sun is as predicted


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


def _grid(image: Tensor, config: MatcherConfig, *, learned: bool) -> Grid:
    """The grid of the final matches."""
    size = (image.shape[-2], image.shape[-1])
    spacing = spacing_for(size, config.grid_per_side, config.min_spacing_patches * config.patch_px)
    # Half a search beyond the patch, so that the way back can be tested on both sides.
    half_px = config.patch_px // 2
    if learned:
        half_px = max(half_px, STRIDE * (config.learned_patch_cells // 2 + 1))
    return centred_grid(size, half_px + config.fine_radius_px // 2, spacing)


def _coarse_factor(shorter_px: int, radius_px: float, config: MatcherConfig) -> int:
    """Downsampling that leaves a short search on an image that still holds several patches."""
    for factor in _LEVELS:
        holds_patches = shorter_px >= config.coarse_side_px * factor
        if holds_patches and radius_px >= config.fine_radius_px * factor:
            return factor
    return _LEVELS[-1]


def _coarse(
    images: Images, radius_px: float, channel: Channel | None, config: MatcherConfig
) -> Affine:
    """Where the view lies in the image, from the downsampled search."""
    factor = _coarse_factor(min(images.view.shape[-2:]), radius_px, config)
    dense = images.at(channel or images.coarse_channel, factor)
    h, w = dense.view.shape[-2:]
    patch, spacing = config.coarse_patch_px, config.coarse_spacing_px
    cell = centred_grid((h, w), patch // 2, spacing).cells(len(dense.view), dense.view.device)
    radius = math.ceil(radius_px / factor) + 1
    surface = correlate(dense.view, dense.image, cell, cell, patch_px=patch, radius_px=radius)
    spread = math.ceil(config.distortion * max(h, w))
    at_px = (cell.flip(-1) + 0.5) * factor
    return affine_field(surface, at_px, spread=spread, cell_px=factor, patch_px=patch)


def _half(task: _Task, start_px: Tensor, channel: Channel) -> Float32[Tensor, "b n 2"]:
    """Displacement (u, v), px, refined at half resolution and held against the neighbours."""
    config, shift = task.config, (start_px / 2).round()
    peaks = _at_half(task, shift, channel, config.fine_radius_px)
    residual_px = (shift + peaks.offset_px) * 2 - start_px
    good = _good(peaks, config.min_score, config)
    tolerance_px = config.fine_radius_px / 2
    return start_px + smoothed_field(residual_px, good, task.grid.shape, tolerance_px)


def _at_half(task: _Task, shift: Tensor, channel: Channel, radius_cells: int) -> Peaks:
    """Peaks at half resolution about places that are shifted by (u, v) cells."""
    cell = task.cell // 2
    return look(
        task.images.at(channel, 2), cell, cell + shift.long().flip(-1),
        patch_cells=task.config.patch_px, radius_cells=radius_cells,
    )  # fmt: skip


def _good(peaks: Peaks, min_score: float, config: MatcherConfig) -> Bool[Tensor, "b n"]:
    """Peaks that are high and single."""
    good = peaks.resolved & (peaks.score >= min_score)
    return good & (peaks.second_ratio <= config.max_second_ratio)


def _middle(task: _Task) -> _Middle:
    """Displacements by learned features at a quarter of the resolution, held against gradients.

    Shading moves with the Sun, features should not: where the two say the same within what they
    state, the Sun is as predicted. At a quarter both cost little.
    """
    config, factor = task.config, 2 * STRIDE
    dense, cell = task.images.at(Channel.LEARNED, factor), task.cell // factor
    patch, radius = config.middle_patch_cells, config.fine_radius_px // 2
    there = look(dense, cell, cell, patch_cells=patch, radius_cells=radius)
    good = _good(there, config.min_learned_score, config)
    moved_px = factor * there.offset_px
    start_px = smoothed_field(moved_px, good, task.grid.shape, factor * radius / 2)
    shift = (start_px / 2).round()
    shaded = _at_half(task, shift, Channel.SIGNED_GRADIENT, radius)
    good = good & task.usable
    both = good & _good(shaded, config.min_score, config)
    place = cell.flip(-1) + 0.5 + there.offset_px
    variance_px2 = stated_variance_px2(dense, cell, place, patch)
    variance_px2 = variance_px2 + 4 * shaded.covariance_px2.diagonal(dim1=-2, dim2=-1).mean(-1)
    apart_px = ((shift + shaded.offset_px) * 2 - moved_px).norm(dim=-1)
    apart = torch.where(both, apart_px / variance_px2.sqrt(), torch.nan).nanmedian(-1).values
    found = good.sum(-1)
    return _Middle(start_px, found, _agree(apart, both.sum(-1), found))


def _agree(
    apart_sigmas: Float32[Tensor, "b"], shared: Int64[Tensor, "b"], found: Int64[Tensor, "b"]
) -> Bool[Tensor, "b"]:
    """Whether gradients say what learned features say, and of enough of the patches these find.

    Where they share nothing the distance is NaN, and not less than any.
    """
    enough = (shared >= _FEW) & (shared >= _KEPT_SHARE * found)
    return enough & (apart_sigmas <= _APART_SIGMAS)


def _chosen(task: _Task, middle: _Middle) -> Matches:
    """Signed gradients where the Sun is as predicted, learned features elsewhere; by frame.

    Gradients resolve finer, and errors of neighbours are less alike than at half resolution, which
    a height of decimetres feels. A map that is much too coarse leaves few of them: then, too,
    learned features are kept; and where these find hardly anything, whichever finds more. On a CPU
    what no frame wants is not computed; an accelerator would have to be waited for.
    """
    gradients, wanted = None, middle.gradients_agree
    if _may_any(wanted):
        gradients = _fine(task, middle.start_px, Channel.SIGNED_GRADIENT)
        wanted = wanted & (gradients.valid.sum(-1) >= _KEPT_SHARE * middle.found)
        if not _may_any(~wanted):
            return gradients
    learned = _learned(task, middle.start_px)
    count = learned.valid.sum(-1)
    if gradients is None:
        if not _may_any(count < _FEW):
            return learned
        gradients = _fine(task, middle.start_px, Channel.SIGNED_GRADIENT)
    wanted = wanted | ((count < _FEW) & (gradients.valid.sum(-1) > count))
    picked = []
    for field in fields(Matches):
        first, second = getattr(gradients, field.name), getattr(learned, field.name)
        picked.append(torch.where(wanted.view(-1, *(1 for _ in first.shape[1:])), first, second))
    return Matches(*picked)


def _may_any(flags: Bool[Tensor, "b"]) -> bool:
    """Whether any is true, or it would cost a wait to know."""
    return flags.device.type != "cpu" or bool(flags.any())


def _learned(task: _Task, start_px: Tensor) -> Matches:
    """Refine with learned features, there and back, and judge."""
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
    valid = task.usable & _accepted(there, covariance_px2, config.min_learned_score, config)
    valid = valid & returned & (back_cells * STRIDE <= config.max_return_px)
    uv_map_px, point_L, _ = ground_of(task.map_view, cell, STRIDE)
    return _matches(
        task, uv_map_px, place.double() * STRIDE, covariance_px2, there.score, point_L, valid,
        half_px=STRIDE * patch // 2, learned=True,
    )  # fmt: skip


def _fine(task: _Task, start_px: Tensor, channel: Channel) -> Matches:
    """Refine at full resolution, there and back, and judge."""
    config, cell, dense = task.config, task.cell, task.images.at(channel, 1)
    patch, radius = config.patch_px, config.fine_radius_px
    seen = cell + start_px.round().long().flip(-1)
    there = look(dense, cell, seen, patch_cells=patch, radius_cells=radius)
    back_px, returned = look_back(dense, cell, seen, there, patch_cells=patch, radius_cells=radius)
    eye = torch.eye(2, device=cell.device)
    covariance_px2 = there.covariance_px2 + config.map_sigma_px**2 * eye
    valid = task.usable & _accepted(there, covariance_px2, config.min_score, config)
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
    return _good(peaks, min_score, config) & (worst <= config.max_sigma_px**2)
