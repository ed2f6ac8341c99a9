"""A scene: what the map shows from where the camera is thought to be, and what the camera saw.

Everything of scene ``index`` follows from recipe, split, seed and index. A drawn pose that looks
past the modelled ground is given up and drawn again, from another part of the same sequence.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float32, Float64
from torch import Tensor
from torch.nn.functional import max_pool2d

from tnav.errors import ConfigError
from tnav.geometry.camera import Camera
from tnav.geometry.moon import up_L
from tnav.geometry.pose import Pose, so3_exp
from tnav.geometry.sun import direction_L
from tnav.learn.cases import Law, SceneCase, SceneRecipe, draw_case
from tnav.learn.grounds import Grounds, ShownMap
from tnav.learn.regions import Split, Splits, load_splits
from tnav.records import Frame, MapErrorModel
from tnav.render.detector import expose
from tnav.render.reflectance import (
    Hapke,
    Lambert,
    LommelSeeliger,
    LunarLambert,
    Minnaert,
    ReflectanceModel,
)
from tnav.render.renderer import render
from tnav.terrain.albedo import AlbedoField
from tnav.terrain.heightfield import Terrain
from tnav.terrain.raycast import cast

__all__ = ["Scene", "SceneCase", "SceneMaker", "SceneRecipe", "true_place"]

_ATTEMPTS = 50
_PROBES = 9  # rays along each side of an image that tell whether it shows ground
_LEAST_HEIGHT = 0.2  # a prediction under this share of the height is given up
# A point counts as hidden where it lies farther than the ground seen around its place by more than
# this many pixels' footprints.
_HIDDEN_PX = 2.0


@dataclass(frozen=True, slots=True)
class Scene:
    """A view of the map, the image to match it with, and the truth about both."""

    map_view: Frame  # of one pose, from the predicted one
    image: Float32[Tensor, "1 1 h w"]  # detector output in [0, 1]
    camera: Camera
    true_pose: Pose
    predicted_pose: Pose
    sun_L: Float64[Tensor, "3"]
    view_sun_L: Float64[Tensor, "3"]
    map_error: MapErrorModel
    terrain_map: Terrain
    level: int  # of the map, finest in the view
    map_posts_per_pixel_coarser: float  # the map's post over the image's ground sample distance
    map_shift_m: tuple[float, float]  # east and north by which the map shows ground off its place
    truth: Terrain
    truth_level: int  # finest in the image
    true_range_m: Float64[Tensor, "h w"]  # from the true pose along each pixel's ray; inf: no hit
    blocked: Bool[Tensor, "h w"]  # pixels of the image that show no ground
    case: SceneCase

    def true_uv_px(
        self, point_L: Float64[Tensor, "n 3"]
    ) -> tuple[Float64[Tensor, "n 2"], Bool[Tensor, " n"]]:
        """Where ground that the map shows at its points truly lies in the image.

        Args:
            point_L: points of the map, m.

        Returns:
            Pixel coordinates, and whether the ground is seen there: inside the image, not behind
            other ground, not in the blocked part.
        """
        return true_place(self, point_L)


def true_place(
    scene: Scene, point_L: Float64[Tensor, "n 3"]
) -> tuple[Float64[Tensor, "n 2"], Bool[Tensor, " n"]]:
    """As ``Scene.true_uv_px``: the map's shift taken off, the true height put in, projected."""
    camera, pose = scene.camera, scene.true_pose
    xy = torch.stack([point_L[:, k] - scene.map_shift_m[k] for k in (0, 1)], -1)
    z, inside = scene.truth.height_L(xy, first_level=scene.truth_level)
    point_C = (torch.cat([xy, z[:, None]], -1) - pose.position_L) @ pose.R_L_C[0]
    uv_px = camera.project(point_C)
    u, v = uv_px.unbind(-1)
    width, height = camera.width_px, camera.height_px
    seen = inside & camera.sees(point_C) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    # Among the four pixel centres around the place, the ground that is seen farthest: on the edge
    # of a slope that hides others, both it and what it hides are found there.
    around = max_pool2d(scene.true_range_m[None, None], 2, stride=1)[0, 0].flatten()
    column = (u.nan_to_num(0.0) - 0.5).floor().clamp(0, width - 2).long()
    row = (v.nan_to_num(0.0) - 0.5).floor().clamp(0, height - 2).long()
    farthest_m = around[row * (width - 1) + column]
    distance_m = point_C.norm(dim=-1)
    seen &= distance_m * (1 - _HIDDEN_PX / camera.focal_px) <= farthest_m
    pixel = v.nan_to_num(0.0).clamp(0, height - 1).long() * width
    pixel += u.nan_to_num(0.0).clamp(0, width - 1).long()
    return uv_px, seen & ~scene.blocked.flatten()[pixel]


@dataclass(frozen=True, slots=True)
class _Posed:
    """A case with its poses, before anything is rendered."""

    case: SceneCase
    truth: Terrain
    shown: ShownMap
    true_pose: Pose
    predicted_pose: Pose
    range_m: float  # to the ground along the camera's axis, were it flat


class SceneMaker:
    """Makes scenes of a split by index.

    Attributes:
        recipe: what they are drawn from.
        device: where they are.
    """

    def __init__(
        self,
        recipe: SceneRecipe,
        split: Split,
        seed: int,
        device: torch.device | str = "cpu",
        splits: Splits | None = None,
    ) -> None:
        """Choose the regions; nothing is built yet.

        Raises:
            ConfigError: no such region in this split, or ground wider than the splits allow.
        """
        known = load_splits() if splits is None else splits
        known.check(recipe.ground)
        self.recipe, self.device = recipe, torch.device(device)
        self._seed, self._camera = seed, recipe.camera()
        regions = known.of(split)
        for name in recipe.regions:
            if known.named(name).split != split:
                raise ConfigError(f"regions: {name} is of {known.named(name).split}, not {split}")
        if recipe.regions:
            regions = tuple(r for r in regions if r.name in recipe.regions)
        self._regions = {region.name: region for region in regions}
        self._grounds = Grounds(recipe, seed, self.device)

    def case(self, index: int, attempt: int = 0) -> SceneCase:
        """The numbers of a scene, without making it; it may take another attempt to show ground."""
        return draw_case(self.recipe, tuple(self._regions.values()), self._seed, index, attempt)

    def prepare(self) -> None:
        """Build the ground of all regions, so that it lies in the cache on disk."""
        for region in self._regions.values():
            self._grounds.truth(region)

    def scene(self, index: int) -> Scene:
        """One scene.

        Raises:
            ConfigError: no pose of this recipe that was tried shows enough ground.
            TileError: the DEM is missing, damaged, or does not cover a region.
        """
        for attempt in range(_ATTEMPTS):
            posed = self._posed(self.case(index, attempt))
            if posed is not None and self._shows_ground(posed):
                return self._rendered(posed)
        raise ConfigError(
            f"scene {index}: none of {_ATTEMPTS} poses shows ground in {self.recipe.least_ground:g}"
            f" of its pixels, {self.recipe.least_shared:g} of them in common with the view; "
            "expected lower agl_m, tilt_deg or prior errors, or wider ground"
        )

    def _posed(self, case: SceneCase) -> _Posed | None:
        """Poses of a case; None where the camera would not stand over the modelled ground."""
        region = self._regions[case.region]
        truth = self._grounds.truth(region)
        tilt, heading = math.radians(case.tilt_deg), math.radians(case.heading_deg)
        back_m = case.agl_m * math.tan(tilt)  # from the place that is looked at to the nadir
        xy = self._tensor(
            [case.east_m - back_m * math.sin(heading), case.north_m - back_m * math.cos(heading)]
        )
        z, inside = truth.height_L(xy[None])
        if not bool(inside[0]):
            return None
        place_L = torch.cat([xy, z])[None]
        up = up_L(place_L)
        true = Pose(
            _looking_down(up[0], heading, tilt, math.radians(case.roll_deg))[None],
            place_L + case.agl_m * up,
        )
        range_m = case.agl_m / math.cos(tilt)
        shown = self._grounds.map_of(region, case.map_number)
        return _Posed(case, truth, shown, true, _predicted(true, up, range_m, case), range_m)

    def _shows_ground(self, posed: _Posed) -> bool:
        """Whether rays over image and view meet enough ground, and enough of the same."""
        camera, recipe = self._camera, self.recipe
        share = (torch.arange(_PROBES, dtype=torch.float64, device=self.device) + 0.5) / _PROBES
        v, u = torch.meshgrid(share * camera.height_px, share * camera.width_px, indexing="ij")
        ray_C = camera.unproject(torch.stack([u, v], -1).view(-1, 2))
        ray_C = ray_C / ray_C.norm(dim=-1, keepdim=True)
        for terrain, pose in (
            (posed.truth, posed.true_pose),
            (posed.shown.terrain, posed.predicted_pose),
        ):
            ray_L = ray_C @ pose.R_L_C[0].T
            origin_L = pose.position_L.expand_as(ray_L).contiguous()
            hits = cast(terrain, origin_L, ray_L)
            found = hits.hit & (hits.range_m > 0)
            if float(found.double().mean()) < recipe.least_ground:
                return False
            met_L = torch.where(found[:, None], origin_L + hits.range_m[:, None] * ray_L, 0.0)
        down = -up_L(posed.predicted_pose.position_L)
        below = cast(posed.shown.terrain, posed.predicted_pose.position_L, down)
        if not bool(below.range_m[0] > _LEAST_HEIGHT * posed.case.agl_m):
            return False
        # what the view's rays met, the last ones
        point_C = (met_L - posed.true_pose.position_L) @ posed.true_pose.R_L_C[0]
        u, v = camera.project(point_C).unbind(-1)
        shared = found & camera.sees(point_C) & (u >= 0) & (u < camera.width_px)
        shared &= (v >= 0) & (v < camera.height_px)
        return float(shared.double().mean()) >= recipe.least_shared

    def _rendered(self, posed: _Posed) -> Scene:
        case, camera, shown = posed.case, self._camera, posed.shown
        gsd_m = camera.ground_sample_distance_m(posed.range_m)
        truth_level = posed.truth.level_for(gsd_m, posts_per_pixel=self.recipe.posts_per_pixel)
        sun_L = direction_L(case.sun_azimuth_deg, case.sun_elevation_deg).to(self.device)
        seen = render(
            posed.truth,
            camera,
            posed.true_pose,
            sun_L,
            first_level=truth_level,
            samples=case.samples,
            albedo=_albedo(self.recipe, case, gsd_m, self.device),
            reflectance=_law(case.law),
        )
        blocked = _blocked(case, camera, self.device)
        level = _nearest_level(shown.terrain, case.coarser * gsd_m)
        view_sun_L = direction_L(case.view_azimuth_deg, case.view_elevation_deg).to(self.device)
        view = render(
            shown.terrain,
            camera,
            posed.predicted_pose,
            view_sun_L,
            first_level=level,
            reflectance=_law(case.view_law),
        )
        return Scene(
            map_view=view,
            image=self._delivered(seen.image, blocked, case),
            camera=camera,
            true_pose=posed.true_pose,
            predicted_pose=posed.predicted_pose,
            sun_L=sun_L,
            view_sun_L=view_sun_L,
            map_error=shown.error,
            terrain_map=shown.terrain,
            level=level,
            map_posts_per_pixel_coarser=shown.terrain.levels[level].post_m / gsd_m,
            map_shift_m=shown.shift_m,
            truth=posed.truth,
            truth_level=truth_level,
            true_range_m=torch.where(seen.hit[0], seen.range_m[0], math.inf),
            blocked=blocked,
            case=case,
        )

    def _delivered(
        self, radiance: Float32[Tensor, "1 1 h w"], blocked: Bool[Tensor, "h w"], case: SceneCase
    ) -> Float32[Tensor, "1 1 h w"]:
        """Detector output; what blocks is black before the exposure, or full after it."""
        detector = self.recipe.detector.model_copy(
            update={
                "psf_sigma_px": case.psf_sigma_px,
                "read_noise_e": case.read_noise_e,
                "exposure_level": case.exposure_level,
            }
        )
        if case.blocked == 0:
            return expose(radiance, detector, case.detector_seed, camera=self._camera)
        dark = torch.where(blocked, 0.0, radiance)
        image = expose(dark, detector, case.detector_seed, camera=self._camera)
        return image if case.blocked_by == "black" else torch.where(blocked, 1.0, image)

    def _tensor(self, numbers: list[float]) -> Float64[Tensor, " n"]:
        return torch.tensor(numbers, dtype=torch.float64, device=self.device)


def _predicted(true: Pose, up: Float64[Tensor, "1 3"], range_m: float, case: SceneCase) -> Pose:
    azimuth = math.radians(case.horizontal_azimuth_deg)
    offset = [case.horizontal_m * math.sin(azimuth), case.horizontal_m * math.cos(azimuth), 0.0]
    turns = torch.tensor(
        [case.attitude_rad, (0.0, 0.0, math.radians(case.roll_error_deg))],
        dtype=torch.float64,
        device=up.device,
    )
    turn_L, turn_C = so3_exp(turns)
    axis_L = true.R_L_C[:, :, 2]
    position_L = true.position_L + torch.tensor([offset], dtype=torch.float64, device=up.device)
    position_L = position_L + case.height_m * up + case.scale * range_m * axis_L
    return Pose(turn_L @ true.R_L_C @ turn_C, position_L)


def _looking_down(
    up: Float64[Tensor, "3"], heading: float, tilt: float, roll: float
) -> Float64[Tensor, "3 3"]:
    """``R_L_C``: tilted (rad) from the nadir towards a heading, then rolled about the axis."""
    flat = up.new_tensor([math.sin(heading), math.cos(heading), 0.0])
    ahead = flat - (flat * up).sum() * up
    ahead = ahead / ahead.norm()
    x, z = torch.linalg.cross(ahead, up), math.sin(tilt) * ahead - math.cos(tilt) * up
    y = torch.linalg.cross(z, x)
    c, s = math.cos(roll), math.sin(roll)
    return torch.stack([c * x + s * y, c * y - s * x, z], -1)


def _nearest_level(terrain: Terrain, post_m: float) -> int:
    """The level whose posts are nearest to a size, by ratio."""
    away = [abs(math.log(level.post_m / post_m)) for level in terrain.levels]
    return away.index(min(away))


def _law(name: Law) -> ReflectanceModel:
    match name:
        case "lambert":
            return Lambert()
        case "lommel_seeliger":
            return LommelSeeliger()
        case "lunar_lambert":
            return LunarLambert()
        case "minnaert":
            return Minnaert()
        case "hapke":
            return Hapke()


def _albedo(
    recipe: SceneRecipe, case: SceneCase, gsd_m: float, device: torch.device
) -> AlbedoField | None:
    """A pattern of the drawn contrast, its octaves turned and shifted by drawn amounts."""
    if case.albedo_contrast == 0:
        return None
    low_px, high_px = recipe.albedo_waves_px
    field = AlbedoField.draw(
        case.albedo_pattern,
        contrast=case.albedo_contrast,
        wavelengths_m=(low_px * gsd_m, high_px * gsd_m),
    )
    laid = zip(field.octaves, case.albedo_octaves, strict=False)
    octaves = tuple(
        replace(octave, heading_rad=2 * math.pi * turn, shift=(east, north))
        for octave, (turn, east, north) in laid
    )
    return replace(field, octaves=octaves).to(device)


def _blocked(case: SceneCase, camera: Camera, device: torch.device) -> Bool[Tensor, "h w"]:
    """Which pixels show no ground: a half plane, or a rectangle, of the drawn share."""
    height, width = camera.height_px, camera.width_px
    row = ((torch.arange(height, device=device) + 0.5) / height)[:, None]
    column = ((torch.arange(width, device=device) + 0.5) / width)[None]
    if case.blocked == 0:
        return torch.zeros(height, width, dtype=torch.bool, device=device)
    first, second, third = case.blocked_turns
    if case.blocked_shape == "half_plane":
        along = math.cos(2 * math.pi * first) * column + math.sin(2 * math.pi * first) * row
        limit = along.flatten().kthvalue(max(1, round(case.blocked * height * width))).values
        return along <= limit
    wide = case.blocked**first  # of the width; what is left of the share, of the height
    tall = case.blocked / wide
    left, top = second * (1 - wide), third * (1 - tall)
    across = (column >= left) & (column < left + wide)
    return across & (row >= top) & (row < top + tall)
