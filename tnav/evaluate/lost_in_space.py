"""Position without any prior: where on a map of 100 x 100 km was this image taken?

Known are the attitude (star tracker), the Sun, and a band of altitude. An image is turned level,
north up, by its attitude, and its keypoints look up their mutual nearest neighbours in the map's
index (``tnav.evaluate.map_index``). Every such pair votes, for each altitude of the band, for the
one camera position on its line of sight. Right pairs agree on a cell, wrong ones scatter. The
fullest cells get a centre by consensus (``tnav.estimate.ransac``); the map rendered there is
matched densely with the image, and the pose is solved, twice.

The last step decides, and shares nothing with the search: at a wrong place a patch has its peak
anywhere in its window, so few agree with any pose. ``LostConfig.min_agreement`` says how few.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, max_pool2d

from tnav.errors import ConfigError, ImageError
from tnav.estimate.pnp import fixes_on_host, solve_pose
from tnav.estimate.ransac import consensus_centre
from tnav.evaluate.map_index import LEVEL_R_L_V, MapIndex, away_from
from tnav.geometry.camera import Camera
from tnav.geometry.moon import RADIUS_M, altitude_m
from tnav.geometry.pose import Pose
from tnav.match.keypoints import mutual_nearest, select
from tnav.match.matcher import MatcherConfig, match
from tnav.records import FixStatus, MapErrorModel, PoseFix
from tnav.render.renderer import render

_MULTIPLE_PX = 16  # of a levelled image's sides, as networks want it
_WIDEST_PX = 1024  # of a levelled image: an oblique one has its horizon far away
_LEAST_DOWNWARD = 0.5  # cosine to the vertical under which ground is too oblique to compare
_APART_M = 2500.0  # candidates are no nearer to each other along both axes
_LEAST_AGREED = 4  # pairs; two always agree
_SEARCH_PX = 7.0  # around a consensus, good to 1 or 2 px: a single, fine search
_RENDERS = 2  # the first pose is that of a view up to 7 px off
# Patches are smaller than in descent, as the image is: 31 px are a kilometre here. A 256 px image
# has 100 of them.
_DENSE = MatcherConfig(patch_px=31, grid_per_side=12)


@dataclass(frozen=True, slots=True)
class AltitudeBand:
    """Altitudes above the 1737.4 km sphere between which the camera is known to be."""

    low_m: float
    high_m: float

    def __post_init__(self) -> None:
        if not self.low_m < self.high_m:
            raise ConfigError(
                f"altitude band: {self.low_m:g} to {self.high_m:g} m, expected low < high"
            )


@dataclass(frozen=True, slots=True)
class LostConfig:
    """Settings of the search; the reason of each default stands beside it."""

    keypoints: int = 600  # of the image at each scale; about as many as it has maxima
    scale_step: float = 1.25  # widest range of scale that one levelling serves: +- 12 %
    altitude_step: float = 0.02  # of the height over ground: 1 % either way moves a corner by 60 m
    cell_m: float = 250.0  # votes are summed over 3 x 3 cells, as they scatter by 100 m
    candidates: int = 8  # fullest cells that get a consensus
    verified: int = 4  # of them, the most agreed on, that are rendered
    hypotheses: int = 256  # over half of a right cell's votes are right, so this is plenty
    inlier_px: float = 3.0  # of keypoints, which are found on cells of 4 px
    min_agreement: float = 0.35  # share of patches that the pose explains. At 210 wrong places of
    # a mare, 0.5 to 90 km off, at most 2 patches of 100 were valid; at right ones 90 or more
    settled_px: float = 1.5  # that the second rendering may still move


_DEFAULT = LostConfig()


@dataclass(frozen=True, slots=True)
class Located:
    """A fix without a prior. Where its status is not OK no place was agreed on."""

    fix: PoseFix
    agreement: float  # share of the patches that the best pose explains; 0: none was tried
    votes: float  # in the fullest cell
    pairs: int  # mutual nearest neighbours that voted
    verified: int  # candidates that were rendered


@dataclass(frozen=True, slots=True)
class _Search:
    """One image and all that is known of it."""

    image: Float32[Tensor, "1 1 h w"]
    camera: Camera
    R_L_C: Float64[Tensor, "1 3 3"]
    band: AltitudeBand
    index: MapIndex
    attitude_sigma_rad: float
    map_error: MapErrorModel
    t_s: float
    seed: int
    config: LostConfig

    @property
    def heights_m(self) -> tuple[float, float]:
        """The band over the map's mean ground."""
        ground_m = self.index.ground_altitude_m
        return self.band.low_m - ground_m, self.band.high_m - ground_m

    def refused(self, status: FixStatus) -> PoseFix:
        """A fix without a pose."""
        return PoseFix(self.t_s, status, 0, 0, None, None, None, None, None)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Places of the image, and what the index holds that looks like them."""

    uv_px: Float64[Tensor, "n 2"]
    ray_L: Float64[Tensor, "n 3"]  # unit, from the camera
    point_L: Float64[Tensor, "n 3"]


def locate(
    image: Float32[Tensor, "1 1 h w"],
    camera: Camera,
    R_L_C: Float64[Tensor, "1 3 3"],
    band: AltitudeBand,
    index: MapIndex,
    *,
    attitude_sigma_rad: float,
    map_error: MapErrorModel,
    t_s: float = 0.0,
    seed: int = 0,
    config: LostConfig = _DEFAULT,
) -> Located:
    """Find the camera of one image anywhere over an indexed map.

    Args:
        image: linear brightness of any exposure, on the map's device; pixels about as large on the
            ground as the index's (bin a finer image first).
        camera: the one that took it.
        R_L_C: its attitude.
        band: altitudes that are possible.
        index: of the map under this Sun.
        attitude_sigma_rad: 1-sigma error of the attitude about each axis.
        map_error: what the map's maker states.
        t_s: time that the fix carries.
        seed: of the consensus draws.
        config: settings.

    Raises:
        ImageError: the image is not of the camera's size, or looks above the ground.
        ConfigError: the band begins below the map's mean ground.
    """
    if image.shape[-2:] != (camera.height_px, camera.width_px):
        raise ImageError(
            f"image of {image.shape[-1]} x {image.shape[-2]} px, expected its camera's "
            f"{camera.width_px} x {camera.height_px}"
        )
    search = _Search(
        image, camera, R_L_C, band, index, attitude_sigma_rad, map_error, t_s, seed, config
    )
    if not search.heights_m[0] > 0:
        raise ConfigError(
            f"altitude band: from {band.low_m:.0f} m, expected above the map's mean ground at "
            f"{index.ground_altitude_m:.0f} m"
        )
    pairs = _look_up(search)
    found = len(pairs.uv_px)
    if found < _LEAST_AGREED:
        return Located(search.refused(FixStatus.TOO_FEW_MATCHES), 0.0, 0.0, found, 0)
    centres_L, votes = _candidates(search, pairs)
    best = Located(search.refused(FixStatus.NO_CONSENSUS), 0.0, votes, found, 0)
    for tried, centre_L in enumerate(centres_L[: config.verified], start=1):
        fix, agreement = _verify(search, centre_L)
        if fix.status is FixStatus.OK:
            return Located(fix, agreement, votes, found, tried)
        if agreement > best.agreement:
            best = replace(best, fix=fix, agreement=agreement)
        best = replace(best, verified=tried)
    return best


def _look_up(search: _Search) -> _Pairs:
    """Mutual nearest neighbours of the levelled image's keypoints, at every scale of the band."""
    low_m, high_m = search.heights_m
    scales = math.ceil(math.log(high_m / low_m) / math.log(search.config.scale_step))
    parts = []
    for k in range(scales):
        height_m = low_m * (high_m / low_m) ** ((k + 0.5) / scales)
        parts.append(_look_up_at(search, height_m / search.index.gsd_m))
    return _Pairs(*(torch.cat([getattr(p, name) for p in parts]) for name in _Pairs.__slots__))


def _look_up_at(search: _Search, focal_px: float) -> _Pairs:
    level, seen, camera_V = _levelled(search, focal_px)
    index, device = search.index, search.image.device
    descriptor, keypoint = index.describe(level)
    count = min(search.config.keypoints, keypoint.shape[-2] * keypoint.shape[-1])
    found = select(keypoint, descriptor, count, usable=away_from(~seen))
    nearest = mutual_nearest(found.descriptor, index.descriptor[None], found.valid)
    keep = nearest.mutual[0]
    ray_L = camera_V.unproject(found.uv_px[0][keep].double()) @ LEVEL_R_L_V.to(device).T
    ray_L = ray_L / ray_L.norm(dim=-1, keepdim=True)
    uv_px = search.camera.project(ray_L @ search.R_L_C[0])
    return _Pairs(uv_px, ray_L, index.point_L[nearest.index[0][keep]].double())


def _levelled(
    search: _Search, focal_px: float
) -> tuple[Float32[Tensor, "1 1 h w"], Bool[Tensor, "1 1 h w"], Camera]:
    """The image as a camera V at the same place would see it that looks straight down, north up.

    A rotation about the camera's centre moves pixels whatever the ground is: nothing is assumed.

    Returns:
        The levelled image, where the camera sees it, and V.
    """
    camera, device = search.camera, search.image.device
    camera_V = _level_camera(search, focal_px)
    ray_V = camera_V.unproject(camera_V.pixel_centres(device))
    down = ray_V[..., 2] / ray_V.norm(dim=-1)
    ray_C = ray_V @ (LEVEL_R_L_V.to(device).T @ search.R_L_C[0])
    size_px = torch.tensor([camera.width_px, camera.height_px], dtype=torch.float64).to(device)
    grid = 2 * camera.project(ray_C) / size_px - 1  # the image's edges are -1 and 1
    seen = camera.sees(ray_C) & (grid.abs() <= 1).all(-1) & (down > _LEAST_DOWNWARD)
    grid = torch.where(camera.sees(ray_C)[..., None], grid, 2.0).clamp(-2.0, 2.0).float()
    level = grid_sample(search.image, grid[None], padding_mode="border", align_corners=False)
    return level, seen[None, None], camera_V


def _level_camera(search: _Search, focal_px: float) -> Camera:
    """The level camera whose image holds all the ground of the given one."""
    uv_px = search.camera.pixel_centres(search.image.device)
    rim_px = torch.cat([uv_px[0], uv_px[-1], uv_px[:, 0], uv_px[:, -1]])
    ray_L = search.camera.unproject(rim_px) @ search.R_L_C[0].T
    down = -ray_L[:, 2] / ray_L.norm(dim=-1)
    plane = ray_L[:, :2] / -ray_L[:, 2:]
    plane = plane[down > _LEAST_DOWNWARD]
    if plane.shape[0] == 0:
        raise ImageError("image: no ground at its rim under the attitude given, expected some")
    (west, south), (east, north) = plane.amin(0).tolist(), plane.amax(0).tolist()

    def side(length: float) -> int:
        whole = math.ceil(length * focal_px / _MULTIPLE_PX) * _MULTIPLE_PX
        return min(max(whole, 2 * _MULTIPLE_PX), _WIDEST_PX)

    width, height = side(east - west), side(north - south)
    cx_px = width / 2 - focal_px * (east + west) / 2
    cy_px = height / 2 + focal_px * (north + south) / 2
    return Camera(width, height, focal_px, cx_px, cy_px)


def _candidates(search: _Search, pairs: _Pairs) -> tuple[Float64[Tensor, "k 3"], float]:
    """Camera centres that most pairs agree on, the best first; the votes of the fullest cell."""
    config, camera, R_L_C = search.config, search.camera, search.R_L_C
    low_m, high_m = search.heights_m
    steps = math.ceil((high_m - low_m) / (config.altitude_step * (low_m + high_m) / 2))
    altitudes_m = torch.linspace(
        search.band.low_m, search.band.high_m, steps + 1, dtype=torch.float64
    )
    voted_L = _centres_at(pairs, altitudes_m.to(search.image.device))
    home_L, layer, votes = _fullest_cells(search, voted_L[..., :2])
    near = (voted_L[layer][..., :2] - home_L[:, None]).abs().amax(-1) <= 1.5 * config.cell_m
    k, n = near.shape
    centre_L = consensus_centre(
        pairs.uv_px.expand(k, n, 2), pairs.point_L.expand(k, n, 3), near, R_L_C.expand(k, 3, 3),
        camera, threshold_px=config.inlier_px, hypotheses=config.hypotheses, seed=search.seed,
    )  # fmt: skip
    point_C = (pairs.point_L - centre_L[:, None]) @ R_L_C[0]
    error_px = (camera.project(point_C) - pairs.uv_px).norm(dim=-1)
    agreed = (camera.sees(point_C) & (error_px < config.inlier_px)).sum(-1)
    order = agreed.argsort(descending=True, stable=True)
    stands = centre_L[order].isfinite().all(-1) & (agreed[order] >= _LEAST_AGREED)
    return centre_L[order][stands], votes


def _centres_at(pairs: _Pairs, altitudes_m: Float64[Tensor, " a"]) -> Float64[Tensor, "a n 3"]:
    """Where each line of sight, followed up from its point, reaches an altitude."""
    from_centre = pairs.point_L.clone()
    from_centre[:, 2] += RADIUS_M
    along_m = (from_centre * pairs.ray_L).sum(-1)
    rest_m2 = (RADIUS_M + altitudes_m[:, None]).square() - from_centre.square().sum(-1)
    range_m = along_m + (along_m.square() + rest_m2).sqrt()
    return pairs.point_L - range_m[..., None] * pairs.ray_L


def _fullest_cells(
    search: _Search, xy_L: Float64[Tensor, "a n 2"]
) -> tuple[Float64[Tensor, "k 2"], Int64[Tensor, " k"], float]:
    """Cells with the most votes: their middles, the altitude of each, and the votes of the first.

    A camera may stand beside the map and look onto it, so the grid is wider than the map.
    """
    area, cell_m, device = search.index.area, search.config.cell_m, xy_L.device
    reach_m = 2 * search.heights_m[1]
    columns = math.ceil((area.east_m - area.west_m + 2 * reach_m) / cell_m)
    rows = math.ceil((area.north_m - area.south_m + 2 * reach_m) / cell_m)
    corner = torch.tensor([area.west_m - reach_m, area.south_m - reach_m], dtype=torch.float64)
    corner = corner.to(device)
    column, row = ((xy_L - corner) / cell_m).nan_to_num(-1.0).floor().long().unbind(-1)
    inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    votes = torch.zeros(xy_L.shape[0], rows * columns, device=device)
    votes.scatter_add_(1, torch.where(inside, row * columns + column, 0), inside.float())
    votes = 9 * avg_pool2d(votes.view(1, -1, rows, columns), 3, stride=1, padding=1)
    over_altitudes = votes.amax(1, keepdim=True)
    reach = math.ceil(_APART_M / cell_m)
    highest = max_pool2d(over_altitudes, 2 * reach + 1, stride=1, padding=reach)
    peaks = torch.where(highest == over_altitudes, over_altitudes, 0.0).flatten()
    top, cell = peaks.topk(min(search.config.candidates, peaks.numel()))
    place = torch.stack([cell % columns, cell // columns], -1).double()
    layer = votes[0].flatten(1)[:, cell].argmax(0)
    return corner + cell_m * (place + 0.5), layer, float(top[0])


def _verify(search: _Search, centre_L: Float64[Tensor, "3"]) -> tuple[PoseFix, float]:
    """Render the map at a place, match it densely and solve; again from there; and judge.

    Returns:
        The fix, and the share of patches that its pose explains.
    """
    index, config = search.index, search.config
    first_level = index.terrain_map.level_for(index.gsd_m, posts_per_pixel=1.0)
    pose, moved_px = Pose(search.R_L_C, centre_L[None]), math.inf
    for _ in range(_RENDERS):
        view = render(index.terrain_map, search.camera, pose, index.sun_L, first_level=first_level)
        matches = match(view, search.image, search_radius_px=_SEARCH_PX, config=_DENSE)
        solution = solve_pose(
            matches, search.camera, Pose(search.R_L_C, pose.position_L),
            attitude_sigma_rad=search.attitude_sigma_rad, map_error=search.map_error,
            seed=search.seed,
        )  # fmt: skip
        fix = fixes_on_host(solution, matches, [search.t_s])[0]
        agreement = fix.n_inliers / matches.valid.shape[1]
        if fix.status is not FixStatus.OK:
            return fix, agreement
        moved_m = (solution.pose.position_L - pose.position_L).norm(dim=-1)
        pose, moved_px = solution.pose, float(moved_m[0]) / index.gsd_m
    at_m = float(altitude_m(pose.position_L)[0])
    if not search.band.low_m <= at_m <= search.band.high_m:
        return search.refused(FixStatus.IMPLAUSIBLE), agreement
    if moved_px > config.settled_px:
        return search.refused(FixStatus.NOT_SETTLED), agreement
    if agreement < config.min_agreement:
        return search.refused(FixStatus.NO_CONSENSUS), agreement
    return fix, agreement
