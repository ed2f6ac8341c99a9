"""The ground under a closed-loop descent, and what its camera makes of it, in two fidelities.

`image`: truth and map are two terrains; every image is rendered, matched and solved (one descent).
`model`: there is one terrain, the map, and the ground differs from it by an error drawn for every
descent from the process of ``tnav.navigate.map_error``; fixes are drawn from an error model that
was fitted to image runs. So one terrain serves thousands of descents.
"""

import math
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.evaluate.filter_setup import fix_floor_m
from tnav.evaluate.fix_model import FixModel, draw_fixes, gsd_ratio_of
from tnav.evaluate.localise import Localisation, Prediction, localise
from tnav.evaluate.run import fix_for_filter
from tnav.evaluate.scenario import Scenario
from tnav.evaluate.world import R_B_C, World, navigation_of, observe
from tnav.geometry.moon import up_L
from tnav.geometry.pose import Pose, so3_exp
from tnav.navigate.altimetry import beam_offset_m
from tnav.navigate.map_error import (
    Way,
    carried,
    extrapolated_m2,
    mean_kept,
    mean_share,
    places_m,
    rescaled,
    root_of,
    side_kept,
    travelled,
)
from tnav.records import FixStatus, VisionFix
from tnav.simulate.altimeter import incidence_of
from tnav.terrain.heightfield import Terrain
from tnav.terrain.raycast import cast

_LIFT_M = 1000.0
_LEAST_M = 1.0
_REACH_M = 100e3  # beside the map, a vertical enters it from the side, far below its ground


@dataclass(frozen=True, slots=True)
class Ranges:
    """True ranges along beams, with their angle of incidence."""

    range_m: Float64[Tensor, " b"]
    incidence_rad: Float64[Tensor, " b"]
    hit: Bool[Tensor, " b"]


@dataclass(frozen=True, slots=True)
class Exposure:
    """What one image says: a fix, and the map's error under the lander beside its mean."""

    fix: VisionFix
    available: Bool[Tensor, " b"]
    ground_error_m: Float64[Tensor, " b"]
    ground_variance_m2: Float64[Tensor, " b"]
    localisation: Localisation | None  # of a rendered image

    def where(self, wanted: Bool[Tensor, " b"]) -> "Exposure":
        """The same, for some descents only."""
        return replace(self, available=self.available & wanted)


@runtime_checkable
class Ground(Protocol):
    """Truth under the descents."""

    def agl_m(self, position_L: Float64[Tensor, "b 3"]) -> Float64[Tensor, " b"]:
        """Height over the ground along the local vertical; NaN beside it."""
        ...

    def ranges(self, position_L: Float64[Tensor, "b 3"], beam_L: Float64[Tensor, "b 3"]) -> Ranges:
        """What altimeters at these places truly have before them."""
        ...

    def expose(
        self,
        t_s: float,
        position_L: Float64[Tensor, "b 3"],
        R_L_B: Float64[Tensor, "b 3 3"],
        stars_R_L_B: Float64[Tensor, "b 3 3"],
        expected_L: Float64[Tensor, "b 3"],
        expected_covariance: Float64[Tensor, "b 3 3"],
    ) -> Exposure:
        """An image from the true pose, solved with what navigation expects."""
        ...


def map_agl_m(
    terrain: Terrain, position_L: Float64[Tensor, "b 3"]
) -> tuple[Float64[Tensor, " b"], Bool[Tensor, " b"]]:
    """Height over a terrain along the local vertical, m, and where there is terrain.

    Negative under it: the ray starts well above.
    """
    up = up_L(position_L)
    hits = cast(terrain, position_L + _LIFT_M * up, -up)
    return hits.range_m - _LIFT_M, hits.hit & (hits.range_m < _REACH_M)


class ModelGround:
    """The map plus a drawn error; fixes from the error model."""

    def __init__(
        self, scenario: Scenario, terrain_map: Terrain, model: FixModel, batch: int,
        footprint_per_m: float, relief_sigma_m: float, sun_elevation_deg: float,
    ) -> None:  # fmt: skip
        device = terrain_map.device
        error = scenario.map.error_model()
        self._map, self._model, self._device = terrain_map, model, device
        self._sigma_m, self._correlation_m = error.sigma_m, error.correlation_m
        self._generator = torch.Generator().manual_seed(scenario.seeds.map)
        self._relief = torch.Generator().manual_seed(scenario.seeds.terrain)
        self._fixes = torch.Generator().manual_seed(scenario.seeds.camera)
        self._footprint_per_m = footprint_per_m
        self._relief_sigma_m = relief_sigma_m
        self._sun_deg = torch.tensor([sun_elevation_deg], dtype=torch.float64, device=device)
        self._focal_px = scenario.camera.camera().focal_px
        self._coarser, self._post_m = float(scenario.map.coarser), terrain_map.levels[0].post_m
        self.shift_m = error.horizontal_sigma_m * self._normal(batch, 2)
        self.mean_m = torch.zeros(batch, dtype=torch.float64, device=device)
        self.local_m = error.sigma_m * self._normal(batch, 1)[:, 0]
        self.beam_m = self.local_m  # until the first look beside the nadir
        self._mean_m2 = torch.zeros_like(self.mean_m)
        self.side_m = torch.zeros(batch, 2, dtype=torch.float64, device=device)
        self._side_m2 = torch.zeros_like(self.mean_m)
        self._floor_m = fix_floor_m(scenario)
        self._places_m: Float64[Tensor, "b 2 2"] | None = None
        self._imaged_m: Float64[Tensor, "b 2"] | None = None
        down_L = torch.tensor([[0.0, 0.0, -1.0]], dtype=torch.float64, device=device)
        self._beam_L = down_L.repeat(batch, 1)

    def _normal(self, *shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=self._generator, dtype=torch.float64)
        return drawn.to(self._device)

    def agl_m(self, position_L: Float64[Tensor, "b 3"]) -> Float64[Tensor, " b"]:
        """Height over map and error."""
        height_m, there = map_agl_m(self._map, position_L)
        return torch.where(there, height_m + self.local_m, torch.nan)

    def ranges(self, position_L: Float64[Tensor, "b 3"], beam_L: Float64[Tensor, "b 3"]) -> Ranges:
        """To a ground that lies lower than the map by its error, and is rough under its posts."""
        self._beam_L = beam_L
        self._travel(position_L)
        lowered = torch.zeros_like(position_L)
        lowered[:, 2] = self.beam_m
        hits = cast(self._map, position_L + lowered, beam_L)
        rough = torch.randn(len(position_L), generator=self._relief, dtype=torch.float64)
        range_m = hits.range_m + self._relief_sigma_m * rough.to(self._device)
        return Ranges(range_m, incidence_of(beam_L, hits.normal_L), hits.hit)

    def _travel(self, position_L: Float64[Tensor, "b 3"]) -> None:
        height_m, there = map_agl_m(self._map, position_L)
        agl_m = torch.where(there, height_m, 0.0)
        places = places_m(position_L, beam_offset_m(self._beam_L, agl_m))
        before = places[:, :1].expand_as(places) if self._places_m is None else self._places_m
        # Before the first image all places are far from the last.
        imaged_m = places[:, 0] + torch.inf if self._imaged_m is None else self._imaged_m
        way = Way(before, places, imaged_m)
        footprint_m = self._footprint_per_m * agl_m
        self._move(*travelled(way, footprint_m, self._mean_m2, self._sigma_m, self._correlation_m))
        slow = mean_kept(way.nadir_m(), footprint_m, self._correlation_m)
        self._move_sideways(self._side_m2, slow)
        self._places_m = places

    def _move_sideways(
        self, after_m2: Float64[Tensor, " b"], correlation: Float64[Tensor, " b"]
    ) -> None:
        factor, news_m2 = carried(self._side_m2, after_m2, correlation)
        news_m = news_m2.clamp_min(0.0).sqrt()[:, None] * self._normal(len(after_m2), 2)
        self.side_m, self._side_m2 = factor[:, None] * self.side_m + news_m, after_m2

    def _move(self, F: Float64[Tensor, "b 3 3"], Q: Float64[Tensor, "b 3 3"]) -> None:
        """A draw of the process that the filter assumes of the map."""
        errors = torch.stack([self.mean_m, self.local_m, self.beam_m], -1)
        drawn = F @ errors[..., None] + root_of(Q) @ self._normal(len(errors), 3)[..., None]
        self.mean_m, self.local_m, self.beam_m = drawn.squeeze(-1).unbind(-1)

    def expose(
        self,
        t_s: float,
        position_L: Float64[Tensor, "b 3"],
        R_L_B: Float64[Tensor, "b 3 3"],
        stars_R_L_B: Float64[Tensor, "b 3 3"],
        expected_L: Float64[Tensor, "b 3"],
        expected_covariance: Float64[Tensor, "b 3 3"],
    ) -> Exposure:
        """A fix drawn about the true pose; the map's error is this descent's own."""
        self._travel(position_L)
        # All are drawn for, also who is on the ground or beside the map: nobody takes those fixes.
        agl_m = self.agl_m(position_L).nan_to_num(nan=_LEAST_M).clamp_min(_LEAST_M)
        ratio = gsd_ratio_of(agl_m, self._focal_px, self._coarser, self._post_m)
        draw = draw_fixes(self._model, agl_m, self._sun_deg, ratio, self._fixes)
        share_m2 = mean_share(draw.map_position_covariance[:, 2, 2], self._sigma_m)
        assert self._places_m is not None  # it has travelled
        apart_m = (self._places_m[:, 1] - self._places_m[:, 0]).norm(dim=-1)
        apart = apart_m / self._correlation_m
        side_m2 = draw.map_position_covariance.diagonal(dim1=-2, dim2=-1)[:, :2].mean(-1)
        self._move_sideways(side_m2, side_kept(self._side_m2, side_m2))
        own_m2 = extrapolated_m2(self._footprint_per_m * agl_m, self._floor_m, self._correlation_m)
        self._move(*rescaled(self._mean_m2, share_m2, self._sigma_m, apart, own_m2))
        self._mean_m2, self._imaged_m = share_m2, position_L[:, :2]
        common = torch.randn(len(agl_m), 2, generator=self._fixes, dtype=torch.float64)
        across_m = self.shift_m + self.side_m + self._floor_m * common.to(self._device)
        of_map = torch.cat([across_m, self.mean_m[:, None]], -1)
        variances_m2 = torch.stack([side_m2, side_m2, share_m2], -1)
        map_covariance = torch.zeros_like(draw.covariance)
        map_covariance[:, :3, :3] = torch.diag_embed(variances_m2)
        fix = VisionFix(
            t_s=t_s,
            position_L=position_L + draw.error[:, :3] + of_map,
            R_L_C=so3_exp(draw.error[:, 3:]) @ R_L_B @ R_B_C.to(self._device),
            covariance=draw.covariance + map_covariance,
            map_covariance=map_covariance,
        )
        variance_m2 = draw.agl_sigma_m.square()
        ground_m = self._news_m(variance_m2, draw.agl_error)
        return Exposure(fix, draw.available, ground_m, variance_m2, None)

    def _news_m(
        self, variance_m2: Float64[Tensor, " b"], white: Float64[Tensor, " b"]
    ) -> Float64[Tensor, " b"]:
        """What an image says of the map's error under the lander, beside its mean.

        The posterior mean ``(1 - v / s^2) (local - mean + w)``, w ~ N(0, v / (1 - v / s^2)), that
        leaves the variance v of a prior s^2 (`tnav.navigate.filter.update_ground`).
        """
        prior_m2 = self._sigma_m**2 - self._mean_m2
        share = (1 - variance_m2 / prior_m2.clamp_min(1e-12)).clamp_min(0.0)
        return share * (self.local_m - self.mean_m) + (share * variance_m2).sqrt() * white


class ImageGround:
    """Truth and map as two terrains; images are rendered and solved. One descent."""

    def __init__(self, world: World, attitude_sigma_rad: float) -> None:
        self._world = world
        self._nav = navigation_of(world.scenario, world.terrain_map)
        self._map_cpu = world.terrain_map.to("cpu")
        self._truth_cpu = world.truth.to("cpu")
        self._attitude_sigma_rad = attitude_sigma_rad
        self._images = 0

    def agl_m(self, position_L: Float64[Tensor, "1 3"]) -> Float64[Tensor, "1"]:
        """Height over the truth."""
        height_m, there = map_agl_m(self._truth_cpu, position_L)
        return torch.where(there, height_m, torch.nan)

    def ranges(self, position_L: Float64[Tensor, "1 3"], beam_L: Float64[Tensor, "1 3"]) -> Ranges:
        """To the truth."""
        hits = cast(self._truth_cpu, position_L, beam_L)
        return Ranges(hits.range_m, incidence_of(beam_L, hits.normal_L), hits.hit)

    def expose(
        self,
        t_s: float,
        position_L: Float64[Tensor, "1 3"],
        R_L_B: Float64[Tensor, "1 3 3"],
        stars_R_L_B: Float64[Tensor, "1 3 3"],
        expected_L: Float64[Tensor, "1 3"],
        expected_covariance: Float64[Tensor, "1 3 3"],
    ) -> Exposure:
        """Renders what the camera sees, and solves it."""
        world = self._world
        seed = world.scenario.seeds.camera * 4096 + self._images
        self._images += 1
        image = observe(world, Pose(R_L_B @ R_B_C, position_L).to(world.device), seed)
        prediction = Prediction(
            t_s=t_s,
            pose=Pose(stars_R_L_B @ R_B_C, expected_L).to(world.device),
            position_covariance=expected_covariance[0],
            attitude_sigma_rad=self._attitude_sigma_rad,
        )
        found = localise(image, prediction, self._nav)
        if found.fix.status is FixStatus.OK:
            fix, error_m, variance_m2 = fix_for_filter(found, self._map_cpu)
            return Exposure(fix, torch.ones(1, dtype=torch.bool), error_m, variance_m2, found)
        identity = torch.eye(6, dtype=torch.float64)[None]
        fix = VisionFix(t_s, expected_L, stars_R_L_B @ R_B_C, identity, 0 * identity)
        none = torch.zeros(1, dtype=torch.float64)
        return Exposure(fix, torch.zeros(1, dtype=torch.bool), none, none + math.inf, found)
