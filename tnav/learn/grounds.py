"""Ground of regions as it is needed: the truth, and several maps of it, each wrong in its own way.

What was built stays, up to a number; what was not used for longest goes first.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from tnav.learn.cases import MapCase, SceneRecipe, draw_map
from tnav.learn.regions import Region
from tnav.records import MapErrorModel
from tnav.terrain.cache import default_cache
from tnav.terrain.heightfield import Terrain
from tnav.terrain.site import MapQuality, build_truth, degrade

_TRUTHS_HELD = 16  # 110 MB each with the default ground
_MAPS_HELD = 48  # 28 MB each
_LEAST_SIGMA_M = 0.05  # nobody states a map without error, and a solver could not use it
Key = TypeVar("Key")
Held = TypeVar("Held")


@dataclass(frozen=True, slots=True)
class ShownMap:
    """A map and how it differs from the ground."""

    terrain: Terrain
    error: MapErrorModel  # what its maker states
    shift_m: tuple[float, float]  # east and north by which it shows the ground off its place
    case: MapCase


class Grounds:
    """Truths and maps of a recipe's regions, on a device."""

    def __init__(self, recipe: SceneRecipe, seed: int, device: torch.device) -> None:
        self.device = device
        self._recipe, self._seed = recipe, seed
        self._truths: OrderedDict[str, Terrain] = OrderedDict()
        self._maps: OrderedDict[tuple[str, int], ShownMap] = OrderedDict()

    def truth(self, region: Region) -> Terrain:
        """The ground; built, or read from the cache on disk, at first use.

        Raises:
            TileError: the DEM is missing, damaged, or does not cover the region.
            ConfigError: a cache that cannot be written.
        """

        def build() -> Terrain:
            site = region.site(self._recipe.ground)
            return build_truth(site, region.seed, cache=default_cache()).to(self.device)

        return _held(self._truths, region.name, build, _TRUTHS_HELD)

    def map_of(self, region: Region, number: int) -> ShownMap:
        """One of the maps of a region."""

        def build() -> ShownMap:
            truth = self.truth(region)
            case = draw_map(self._recipe, region, self._seed, number)
            quality = MapQuality(
                vertical_rms_m=case.rms_m,
                vertical_correlation_m=case.correlation_m,
                shift_m=case.shift_m,
            )
            shown = degrade(truth.to("cpu"), quality, case.seed)
            ground, first = truth.levels[0], shown.levels[0]
            shift_m = (first.west_m - ground.west_m, first.south_m - ground.south_m)
            error = quality.error_model()
            stated = replace(error, sigma_m=max(error.sigma_m, _LEAST_SIGMA_M))
            return ShownMap(shown.to(self.device), stated, shift_m, case)

        return _held(self._maps, (region.name, number), build, _MAPS_HELD)


def _held(kept: OrderedDict[Key, Held], key: Key, build: Callable[[], Held], most: int) -> Held:
    if key not in kept:
        while len(kept) >= most:
            kept.popitem(last=False)
        kept[key] = build()
    kept.move_to_end(key)
    return kept[key]
