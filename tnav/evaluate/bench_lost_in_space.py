"""Lost in space, measured: images of test regions, looked up in maps of 100 x 100 km.

Images are of 256 px: 1024 px of 45 deg at a quarter of their resolution, 10 to 12 km over the
ground, tilted by up to 20 deg, at any heading, of ground with albedo that the map does not have,
and of another law of reflectance. Altitude is known to the band of 9 to 13.2 km over the mean
ground, 10 to 12 km and 10 % more either way; attitude to 0.02 deg.
"""

import hashlib
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from tnav.evaluate.limits import Row
from tnav.evaluate.lost_in_space import AltitudeBand, locate
from tnav.evaluate.map_index import LEVEL_R_L_V, MapIndex
from tnav.evaluate.match_methods import TNAV
from tnav.evaluate.match_scores import PairScore, append_score, read_scores
from tnav.geometry.camera import Camera
from tnav.geometry.pose import Pose, so3_exp
from tnav.geometry.sun import direction_L
from tnav.learn.regions import Modelled, Region, load_splits
from tnav.match.keypoints import Describe
from tnav.records import FixStatus, MapErrorModel
from tnav.render.detector import Detector, expose
from tnav.render.reflectance import Hapke
from tnav.render.renderer import render
from tnav.terrain.albedo import AlbedoField
from tnav.terrain.cache import default_cache
from tnav.terrain.heightfield import Terrain
from tnav.terrain.site import MapQuality, build_truth, degrade

Say = Callable[[str], None]

WITHIN_PX = 3.0
_LEAST_SHARE = 0.9
# 100 km across, on posts of a third of a pixel: the relief that a 256 px image shows.
_GROUND = Modelled(finest_post_m=12.5, levels=1, cells=8000)
_CAMERA = Camera.from_field_of_view(256, 256, 45.0)
_HEIGHT_M = (10e3, 12e3)
_BAND_M = (9e3, 13.2e3)  # over the map's mean ground
_TILT_MAX_DEG = 20.0
_ATTITUDE_SIGMA_RAD = math.radians(0.02)
_VERTICAL_RMS_M, _CORRELATION_M = 3.0, 300.0
_ALBEDO = (0.1, (8.0, 4000.0))  # contrast, wavelengths in m
_STRANGERS = 4  # for every so many images of the map's ground one of other ground


@dataclass(frozen=True, slots=True)
class _Case:
    region: str
    post_m: float  # of the map, 12.5 times a power of two
    azimuth_deg: float
    elevation_deg: float

    @property
    def name(self) -> str:
        return f"{self.region}, map {self.post_m:g} m, Sun at {self.elevation_deg:g} deg"


_CASES = (
    _Case("resilience", 50.0, 130.0, 10.0),
    _Case("resilience", 100.0, 200.0, 4.0),
    _Case("democritus", 50.0, 230.0, 20.0),
    _Case("democritus", 100.0, 160.0, 8.0),
)


SLUG = "lost-in-space"  # of its row, and of the file of its scores


class _Keeper:
    """Scores of images, in memory and, where asked for, in a file that a later run goes on with.

    A score's ``grid_px`` is the error of the position, in three dimensions, over the pixel's
    ground; its ``seconds`` are those of the CPU.
    """

    def __init__(self, out: Path | None, identity: str) -> None:
        self._path = None if out is None else out / f"{SLUG}.jsonl"
        self._identity = identity
        held = [] if self._path is None else read_scores(self._path)
        self._held = {(s.group, s.index, s.key): s for s in held}

    def score(self, group: str, index: int, measure: Callable[[], PairScore]) -> PairScore:
        """What was measured before, or is now."""
        name = (group, index, self._identity)
        if name not in self._held:
            found = replace(measure(), group=group, index=index, key=self._identity)
            self._held[name] = found
            if self._path is not None:
                append_score(self._path, found)
        return self._held[name]


def measure_lost_in_space(
    describe: Describe,
    device: torch.device,
    pairs: int,
    say: Say,
    *,
    out: Path | None = None,
    identity: str = "",
) -> list[Row]:
    """Share of images that are placed right, placed wrong and refused; and what that costs.

    Args:
        describe: keypoints and descriptors, by a network or by hand.
        device: to work on.
        pairs: images of the mapped ground, over all cases; a quarter as many of other ground.
        say: told what goes on.
        out: folder of scores; images that are in it are not looked up again.
        identity: of the descriptors: scores of others, or of another set-up, are not taken.

    Raises:
        RunFileError: a file of scores that cannot be read.
    """
    keeper = _Keeper(out, f"{_digest()}/{identity}")
    regions = {r.name: r for r in load_splits().regions if r.name in {c.region for c in _CASES}}
    grounds = {}
    for name, region in regions.items():
        say(f"ground of {name}, 100 x 100 km")
        grounds[name] = build_truth(region.site(_GROUND), region.seed, cache=default_cache())
    rows, all_own, all_strange = [], [], []
    for k, case in enumerate(_CASES):
        say(f"index of {case.name}")
        sun_L = direction_L(case.azimuth_deg, case.elevation_deg).to(device)
        terrain_map = _map_of(grounds[case.region], case, regions[case.region])
        index = MapIndex.build(terrain_map.to(device), describe, sun_L)
        other = next(name for name in grounds if name != case.region)
        count = len(range(k, pairs, len(_CASES)))
        own = _try(grounds[case.region].to(device), index, count, 10 * k + 1, keeper, case, say)
        strangers = math.ceil(count / _STRANGERS)
        strange = _try(grounds[other].to(device), index, strangers, 10 * k + 2, keeper, case, say)
        rows += _rows_of_case(case, own, index, str(device))
        all_own += own
        all_strange += strange
    return [*rows, *_rows_of_all(all_own, all_strange, str(device))]


def _digest() -> str:
    """What the images and maps follow from, beside case, seed and number."""
    parts = (
        _GROUND.model_dump_json(), _CAMERA, _HEIGHT_M, _BAND_M, _TILT_MAX_DEG,
        _ATTITUDE_SIGMA_RAD, _VERTICAL_RMS_M, _CORRELATION_M, _ALBEDO, _CASES,
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _map_of(truth: Terrain, case: _Case, region: Region) -> Terrain:
    """The ground at the map's posts, with the map's error put on at the last halving."""
    terrain = truth
    for k in range(halvings := round(math.log2(case.post_m / _GROUND.finest_post_m))):
        last = k == halvings - 1
        quality = MapQuality(
            coarser=1, vertical_rms_m=_VERTICAL_RMS_M if last else 0.0,
            vertical_correlation_m=_CORRELATION_M, shift_m=1.0 if last else 0.0,
        )  # fmt: skip
        terrain = degrade(terrain, quality, region.seed)
    return terrain


def _try(
    truth: Terrain,
    index: MapIndex,
    count: int,
    seed: int,
    keeper: _Keeper,
    case: _Case,
    say: Say,
) -> list[PairScore]:
    """Images of a ground, looked up. Whether the index is of the same ground is the caller's."""
    generator = torch.Generator().manual_seed(seed)
    contrast, wavelengths_m = _ALBEDO
    albedo = AlbedoField.draw(seed, contrast=contrast, wavelengths_m=wavelengths_m)
    albedo = albedo.to(truth.device)
    scores = []
    for k in range(count):
        say(f"image {k + 1} of {count}")
        pose, height_m = draw_pose(truth, generator)
        error_rad = _ATTITUDE_SIGMA_RAD * torch.randn(1, 3, generator=generator).double()

        def measure(
            k: int = k,
            pose: Pose = pose,
            height_m: float = height_m,
            error_rad: Tensor = error_rad,
        ) -> PairScore:
            image = _photograph(truth, index, pose, albedo, seed=1000 * seed + k)
            tracked = so3_exp(error_rad.to(truth.device)) @ pose.R_L_C
            return _looked_up(index, image, pose, tracked, height_m, k)

        scores.append(keeper.score(f"{case.name}, seed {seed}", k, measure))
    return scores


def _looked_up(
    index: MapIndex,
    image: Float32[Tensor, "1 1 h w"],
    pose: Pose,
    tracked_R_L_C: Float64[Tensor, "1 3 3"],
    height_m: float,
    seed: int,
) -> PairScore:
    """Where an image is found, held against the truth."""
    ground_m = index.ground_altitude_m
    began = time.process_time()
    located = locate(
        image, _CAMERA, tracked_R_L_C, AltitudeBand(_BAND_M[0] + ground_m, _BAND_M[1] + ground_m),
        index, attitude_sigma_rad=_ATTITUDE_SIGMA_RAD,
        map_error=MapErrorModel(_VERTICAL_RMS_M, _CORRELATION_M), seed=seed,
    )  # fmt: skip
    cpu_s = round(time.process_time() - began, 3)
    found_L, status = located.fix.position_L, located.fix.status
    error_px = None
    if status is FixStatus.OK and found_L is not None:
        error_m = float((found_L - pose.position_L[0].cpu()).norm())
        error_px = error_m / _CAMERA.ground_sample_distance_m(height_m)
    return PairScore(SLUG, 0, TNAV, "", "", status.value, error_px, (), cpu_s)


def draw_pose(truth: Terrain, generator: torch.Generator) -> tuple[Pose, float]:
    """A camera that sees nothing but the ground, and its height over it."""
    draw = torch.rand(6, generator=generator, dtype=torch.float64)
    low_m, high_m = _HEIGHT_M
    height_m = low_m + (high_m - low_m) * float(draw[0])
    tilt_rad, (heading_rad, lean_rad) = (
        math.radians(_TILT_MAX_DEG) * float(draw[1]), (2 * math.pi * draw[2:4]).tolist()
    )  # fmt: skip
    corner_rad = math.atan(math.hypot(_CAMERA.width_px, _CAMERA.height_px) / 2 / _CAMERA.focal_px)
    level = truth.levels[0]
    half_m = (level.east_m - level.west_m) / 2 - 1.1 * height_m * math.tan(tilt_rad + corner_rad)
    xy_L = half_m * (2 * draw[4:] - 1)[None]
    ground_m = truth.height_L(xy_L.to(truth.device))[0].cpu()
    position_L = torch.cat([xy_L, ground_m[:, None] + height_m], -1)
    about_up = torch.tensor([[0.0, 0.0, heading_rad]], dtype=torch.float64)
    lean = [tilt_rad * math.cos(lean_rad), tilt_rad * math.sin(lean_rad), 0.0]
    tilted = so3_exp(torch.tensor([lean], dtype=torch.float64))
    R_L_C = tilted @ so3_exp(about_up) @ LEVEL_R_L_V
    return Pose(R_L_C, position_L).to(truth.device), height_m


def _photograph(
    truth: Terrain, index: MapIndex, pose: Pose, albedo: AlbedoField, seed: int
) -> Float32[Tensor, "1 1 h w"]:
    """What the camera delivers under the index's Sun."""
    sun_L: Float64[Tensor, "3"] = index.sun_L
    view = render(
        truth, _CAMERA, pose, sun_L, samples=4, albedo=albedo, reflectance=Hapke()
    )  # fmt: skip
    return expose(view.image, Detector(), seed, camera=_CAMERA)


def _rows_of_case(case: _Case, own: list[PairScore], index: MapIndex, device: str) -> list[Row]:
    errors = [o.grid_px for o in own if o.grid_px is not None]
    within = 100 * sum(e < WITHIN_PX for e in errors) / max(len(own), 1)
    median = round(statistics.median(errors), 2) if errors else None
    name, n = f"lost in space, {case.name}", len(own)
    keypoints, size_mb = index.descriptor.shape[0], round(index.size_bytes / 1e6, 1)
    return [
        Row(f"{name}: within 3 px", round(within, 1), "%", None, None, n, device),
        Row(f"{name}: median error", median, "px", None, None, len(errors), device),
        Row(f"{name}: index, keypoints", keypoints, "", None, None, 1, device),
        Row(f"{name}: index, size", size_mb, "MB", None, None, 1, device),
        Row(f"{name}: index, time to build", round(index.build_s, 1), "s", None, None, 1, device),
    ]


def _rows_of_all(own: list[PairScore], strange: list[PairScore], device: str) -> list[Row]:
    right = sum(o.grid_px is not None and o.grid_px < WITHIN_PX for o in own)
    wrong = sum(o.grid_px is not None and o.grid_px >= WITHIN_PX for o in own)
    refused = sum(o.grid_px is None for o in own)
    strange_wrong = sum(o.grid_px is not None for o in strange)
    cpu_s = round(statistics.median(o.seconds for o in own), 2) if own else None
    n, share = len(own), right / max(len(own), 1)
    least = f">= {100 * _LEAST_SHARE:g}"
    name = "lost in space, 100 x 100 km"
    return [
        Row(f"{name}: within 3 px", round(100 * share, 1), "%", least, share >= _LEAST_SHARE, n,
            device),
        Row(f"{name}: wrong place accepted", wrong, "images", "= 0", wrong == 0, n, device),
        Row(f"{name}: refused", refused, "images", None, None, n, device),
        Row(f"{name}: image of other ground accepted", strange_wrong, "images", "= 0",
            strange_wrong == 0, len(strange), device),
        Row(f"{name}: an image, CPU", cpu_s, "s", None, None, n, device),
    ]  # fmt: skip
