"""The rows of `tnav bench match` as data, and their scenes, on regions that no training saw.

All are 1024 px, 45 deg, 10 to 12 km, over a map without albedo and with its own error. The prior is
wrong by 0.1 to 2 km (uniform in the logarithm), 2 % of height and 0.1 deg about any axis. One drawn
scene serves all rows of its number, which differ in what is done to its view or its image: rows can
be compared pair by pair, and little is rendered twice.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from tnav.errors import ConfigError
from tnav.geometry.pose import Pose, so3_exp
from tnav.geometry.sun import direction_L
from tnav.learn.regions import Modelled, Split, load_splits
from tnav.learn.scenes import Scene, SceneMaker, SceneRecipe
from tnav.render.renderer import render

SEED = 4
# One mare and one highland: building ground takes longer than a quick look may.
_QUICK_REGIONS = ("resilience", "democritus")
_OTHER_PLACES = 10_000  # numbers of the scenes whose images another view is shown
# Light in a shadow over that on the sunlit ground: scattered by slopes that face it.
_SHADOW_LIGHT = 0.004
_SHADOW_EDGE_PX = 12.0  # how far a shadow's edge strays from a straight line
_GOLDEN_TURN = 0.618034  # directions of successive pairs never repeat (Weyl)

Twist = Literal["none", "blocked", "saturated", "shadow", "blank", "other place"]

_BASE = SceneRecipe(
    # 4 m posts reach 4.1 km from the middle of the region, 8 m posts 8.2 km; maps, 8 to 64 m.
    ground=Modelled(finest_post_m=4.0, levels=4, cells=2048),
    maps=2,
    place_m=1500.0,
    agl_m=(10e3, 12e3),
    tilt_deg=(0.0, 10.0),
    horizontal_m=(100.0, 2000.0),
    height_percent=(0.0, 2.0),
    attitude_deg=(0.0, 0.1),
    sun_elevation_deg=(5.0, 31.0),
    coarser=(1.0, 2.0, 4.0),
    map_rms_m=(0.0, 3.0),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the shipped matcher must reach on a row; ``None``: nothing is asked."""

    solved_percent: float | None = None
    within_percent: float | None = None  # of matches, 3 px
    median_px: float | None = None


@dataclass(frozen=True, slots=True)
class MatchCase:
    """One row of the table. Signs of its errors alternate from pair to pair."""

    name: str
    slug: str  # for files and the command line
    limits: Limits = field(default_factory=Limits)
    sun_elevation_deg: tuple[float, float] = _BASE.sun_elevation_deg
    sun_azimuth_error_deg: float = 0.0
    coarser: float | None = None  # of the map; else as drawn
    roll_error_deg: float = 0.0
    scale_error: float = 0.0  # share of the range by which the camera stands too far ahead
    twist: Twist = "none"  # what is done to the image; the last two leave nothing to find

    @property
    def answerable(self) -> bool:
        """The image shows the ground of the view."""
        return self.twist not in ("blank", "other place")

    @property
    def changes_view(self) -> bool:
        """The map is shown from elsewhere, under another Sun or coarser than was drawn."""
        errors = (self.sun_azimuth_error_deg, self.roll_error_deg, self.scale_error)
        return self.coarser is not None or any(errors)

    @property
    def search_radius_px(self) -> float:
        """Displacement along u or v that the largest errors of the row's prior may cause.

        The same for all of its pairs: how wrong its prior is, no matcher knows.
        """
        assert _BASE.horizontal_m is not None
        camera, half_px = _BASE.camera(), max(_BASE.width_px, _BASE.height_px) / 2
        gsd_m = camera.ground_sample_distance_m(_BASE.agl_m[0])
        shift_px = _BASE.horizontal_m[1] / gsd_m
        shift_px += camera.focal_px * math.radians(_BASE.attitude_deg[1])
        scale = 0.01 * _BASE.height_percent[1] + abs(self.scale_error)
        bend_px = half_px * (scale + math.sin(math.radians(abs(self.roll_error_deg))))
        return (shift_px + bend_px) / math.cos(math.radians(_BASE.tilt_deg[1]))

    @property
    def attitude_sigma_rad(self) -> float:
        """Stated 1 sigma of the predicted attitude about each axis: its largest error."""
        return math.radians(_BASE.attitude_deg[1] + abs(self.roll_error_deg))

    def digest(self, index: int, regions: Sequence[str]) -> str:
        """What a pair of this row follows from; another digest is another pair."""
        recipe = _recipe(self, regions).model_dump_json()
        parts = (
            recipe, SEED, index, self.sun_azimuth_error_deg, self.coarser, self.roll_error_deg,
            self.scale_error, self.twist,
        )  # fmt: skip
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


_PRECISE = Limits(solved_percent=100.0, within_percent=99.0, median_px=0.25)
_ROBUST = Limits(solved_percent=100.0, within_percent=95.0, median_px=0.5)
_SUN_ERRORS_DEG = (30, 60, 90, 135, 180)
CASES = (
    MatchCase("true Sun, map 1-4 x coarser", "true-sun", _PRECISE),
    MatchCase("true Sun, map 8 x coarser", "coarse-map", Limits(98.0), coarser=8.0),
    *(
        MatchCase(
            f"Sun azimuth wrong by {deg} deg", f"sun-{deg}", _ROBUST,
            sun_azimuth_error_deg=float(deg),
        )
        for deg in _SUN_ERRORS_DEG
    ),
    MatchCase("Sun elevation 2-5 deg", "low-sun", Limits(98.0), sun_elevation_deg=(2.0, 5.0)),
    MatchCase(
        "rotation off by 5 deg, scale by 10 %", "turned", Limits(98.0), roll_error_deg=5.0,
        scale_error=0.1,
    ),
    MatchCase("half of the frame blocked", "blocked", Limits(95.0), twist="blocked"),
    MatchCase("half of the frame saturated", "saturated", Limits(95.0), twist="saturated"),
    MatchCase("half of the frame in shadow", "shadow", Limits(95.0), twist="shadow"),
    MatchCase("image of another place", "other-place", twist="other place"),
    MatchCase("image without ground", "blank", twist="blank"),
)  # fmt: skip


def named_cases(slugs: Sequence[str] | None, apart: Sequence[str] = ()) -> tuple[MatchCase, ...]:
    """Rows by their slugs, all of them for ``None``.

    Args:
        slugs: of the rows.
        apart: further names that a table knows, and that are no such row.

    Raises:
        ConfigError: one that is not there.
    """
    if slugs is None:
        return CASES
    known = [*(case.slug for case in CASES), *apart]
    for slug in slugs:
        if slug not in known:
            raise ConfigError(f"row '{slug}': not known; expected of {', '.join(known)}")
    return tuple(case for case in CASES if case.slug in slugs)


class CaseScenes:
    """Scenes of rows by the number of the pair; what was drawn last stays for the other rows.

    Attributes:
        regions: names of those that are drawn from.
    """

    def __init__(self, device: torch.device, *, quick: bool, split: Split = "test") -> None:
        """Choose the regions; nothing is built yet."""
        splits = load_splits()
        self._split, self._seed = split, SEED + ("test", "validation", "train").index(split)
        self.regions = _QUICK_REGIONS if quick else tuple(r.name for r in splits.of(split))
        self._kinds = {name: splits.named(name).kind for name in self.regions}
        self._device = device
        self._makers: dict[tuple[float, float], SceneMaker] = {}
        self._drawn: dict[tuple[float, float], tuple[int, Scene]] = {}

    def scene(self, case: MatchCase, index: int) -> Scene:
        """The scene of a row and a pair."""
        scene = self._base(case, index)
        sign = 1.0 if index % 2 else -1.0
        level, sun_L, pose = scene.level, scene.view_sun_L, scene.predicted_pose
        if case.coarser is not None:
            level = _level(scene, case.coarser)
        if case.sun_azimuth_error_deg != 0:
            azimuth_deg = scene.case.sun_azimuth_deg + sign * case.sun_azimuth_error_deg
            sun_L = direction_L(azimuth_deg, scene.case.sun_elevation_deg).to(self._device)
        if case.roll_error_deg != 0 or case.scale_error != 0:
            nearer = 1.0 if index // 2 % 2 else -1.0
            pose = _turned(scene, sign * case.roll_error_deg, nearer * case.scale_error)
        if case.changes_view:
            posts = scene.map_posts_per_pixel_coarser * scene.terrain_map.levels[level].post_m
            scene = replace(
                scene,
                map_view=render(scene.terrain_map, scene.camera, pose, sun_L, first_level=level),
                level=level,
                view_sun_L=sun_L,
                predicted_pose=pose,
                map_posts_per_pixel_coarser=posts / scene.terrain_map.levels[scene.level].post_m,
            )
        return self._twisted(scene, case, index)

    def kind(self, scene: Scene) -> str:
        """Mare or highland."""
        return self._kinds[scene.case.region]

    def _maker(self, case: MatchCase) -> SceneMaker:
        key = case.sun_elevation_deg
        if key not in self._makers:
            recipe = _recipe(case, self.regions)
            self._makers[key] = SceneMaker(recipe, self._split, self._seed, self._device)
        return self._makers[key]

    def _base(self, case: MatchCase, index: int) -> Scene:
        held = self._drawn.get(case.sun_elevation_deg)
        if held is None or held[0] != index:
            held = (index, self._maker(case).scene(index))
            self._drawn[case.sun_elevation_deg] = held
        return held[1]

    def _twisted(self, scene: Scene, case: MatchCase, index: int) -> Scene:
        if case.twist == "none":
            return scene
        if case.twist == "other place":
            return replace(scene, image=self._other_place(scene, case, index))
        if case.twist == "blank":
            return replace(scene, image=blank_image(scene.image, index))
        image, hidden = half_hidden(scene.image, case.twist, index, scene.case.read_noise_e)
        return replace(scene, image=image, blocked=scene.blocked | hidden)

    def _other_place(self, scene: Scene, case: MatchCase, index: int) -> Float32[Tensor, "1 1 h w"]:
        """The image of a scene in another region, so that no ground is shared."""
        maker, number = self._maker(case), _OTHER_PLACES * (index + 1)
        while True:
            if maker.case(number).region != scene.case.region:
                other = maker.scene(number)
                if other.case.region != scene.case.region:
                    return other.image
            number += 1


def half_hidden(
    image: Float32[Tensor, "1 1 h w"], how: str, index: int, read_noise_e: float
) -> tuple[Float32[Tensor, "1 1 h w"], Bool[Tensor, "h w"]]:
    """An image of which half shows no ground, and which half.

    Args:
        image: detector output in [0, 1].
        how: ``blocked`` (no light, read noise), ``saturated`` (full), or ``shadow`` (little light,
            read noise, an edge that is not straight).
        index: of the pair; decides the direction and the noise.
        read_noise_e: 1 sigma over a full well of 20 000 electrons.
    """
    height, width = image.shape[-2:]
    turn = 2 * math.pi * ((index + 1) * _GOLDEN_TURN % 1.0)
    row = torch.arange(height, device=image.device)[:, None] + 0.5 - height / 2
    column = torch.arange(width, device=image.device)[None] + 0.5 - width / 2
    depth_px = math.cos(turn) * column + math.sin(turn) * row
    if how == "shadow":
        along_px = math.cos(turn) * row - math.sin(turn) * column
        for waves, share in ((3, 0.6), (7, 0.3), (17, 0.1)):
            phase = 2 * math.pi * (waves * along_px / width + waves * _GOLDEN_TURN)
            depth_px = depth_px + _SHADOW_EDGE_PX * share * torch.sin(phase)
    hidden = depth_px <= depth_px.flatten().kthvalue(height * width // 2).values
    noise = _noise(image, index) * (read_noise_e / 20e3)
    light = {"blocked": 0.0, "saturated": 1.0, "shadow": _SHADOW_LIGHT}[how]
    dark = (light * image + noise).clamp(0.0, 1.0)
    covered = torch.ones_like(image) if how == "saturated" else dark
    return torch.where(hidden, covered, image), hidden


def blank_image(image: Float32[Tensor, "1 1 h w"], index: int) -> Float32[Tensor, "1 1 h w"]:
    """In turn black, full, a noisy grey, and a smooth noisy ramp: nothing to navigate by."""
    ramp = torch.linspace(0.1, 0.8, image.shape[-1], device=image.device).expand_as(image)
    grey = torch.full_like(image, 0.4)
    light = (torch.zeros_like(image), torch.ones_like(image), grey, ramp)[index % 4]
    noise = _noise(image, index) * 0.01 if index % 4 >= 2 else 0.0
    return (light + noise).clamp(0.0, 1.0)


def _noise(image: Float32[Tensor, "1 1 h w"], index: int) -> Float32[Tensor, "1 1 h w"]:
    generator = torch.Generator().manual_seed(SEED + 1000 * index)
    return torch.randn(image.shape, generator=generator).to(image.device)


def _recipe(case: MatchCase, regions: Sequence[str]) -> SceneRecipe:
    changes = {"regions": tuple(regions), "sun_elevation_deg": case.sun_elevation_deg}
    return _BASE.model_copy(update=changes)


def _level(scene: Scene, coarser: float) -> int:
    """The level of the map whose posts are nearest to so many of the image's pixels, by ratio."""
    levels = scene.terrain_map.levels
    gsd_m = levels[scene.level].post_m / scene.map_posts_per_pixel_coarser
    away = [abs(math.log(level.post_m / (coarser * gsd_m))) for level in levels]
    return away.index(min(away))


def _turned(scene: Scene, roll_deg: float, scale: float) -> Pose:
    """The prediction turned about its axis, and moved along the true one by a share of range."""
    pose, case = scene.predicted_pose, scene.case
    range_m = case.agl_m / math.cos(math.radians(case.tilt_deg))
    turn_C = so3_exp(pose.position_L.new_tensor([[0.0, 0.0, math.radians(roll_deg)]]))
    forward_m = scale * range_m * scene.true_pose.R_L_C[:, :, 2]
    return Pose(pose.R_L_C @ turn_C, pose.position_L + forward_m)
