"""Named regions of the Moon, split so that no ground is shared by training, choosing and judging.

A region is a centre, the character of its synthetic relief, and a seed. What is modelled of it may
differ (fine and narrow for training, coarse and wide for a benchmark), but never reaches farther
than the half side that ``datasets/splits.yaml`` states, so that the split holds whatever is built.
"""

import itertools
import math
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from tnav.config import Recipe, datasets_dir, load_recipe
from tnav.errors import ConfigError
from tnav.geometry.moon import RADIUS_M
from tnav.terrain.site import Site
from tnav.terrain.synthetic import Relief

Split = Literal["train", "validation", "test"]
_FILE = "splits.yaml"


class Modelled(Recipe):
    """How finely and how widely ground is built: posts double from level to level."""

    finest_post_m: float = Field(default=1.0, gt=0)
    levels: int = Field(default=6, ge=1, le=16)
    cells: int = Field(default=2048, ge=64, le=8192, multiple_of=8)  # along each side of a level

    @property
    def half_side_m(self) -> float:
        """From the centre to the border of the coarsest level."""
        return self.cells / 2 * self.finest_post_m * 2.0 ** (self.levels - 1)


class Region(Recipe):
    """A place, what its relief is like, and to which split it belongs."""

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    split: Split
    kind: Literal["mare", "highland"]
    latitude_deg: float = Field(ge=-90, le=90)
    longitude_deg: float = Field(ge=-180, le=360)
    seed: int = Field(ge=0)  # of the terrain
    relief: Relief = Relief()
    dem: str = "lola_ldem16_frigoris"

    def site(self, modelled: Modelled) -> Site:
        """The site to build on this region."""
        return Site(
            latitude_deg=self.latitude_deg,
            longitude_deg=self.longitude_deg,
            dem=self.dem,
            relief=self.relief,
            finest_post_m=modelled.finest_post_m,
            levels=modelled.levels,
            cells=modelled.cells,
        )


class Splits(Recipe):
    """All regions, checked to share no ground between splits."""

    half_side_m: float = Field(gt=0)  # most that a site may reach along east or north
    margin_m: float = Field(ge=0)  # between the outermost grounds of two splits
    regions: tuple[Region, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _apart(self) -> "Splits":
        faults = [
            f"{what} {value} is given to {' and '.join(names)}"
            for what, named in (("name", self._by("name")), ("seed", self._by("seed")))
            for value, names in named.items()
            if len(names) > 1
        ]
        for a, b in itertools.combinations(self.regions, 2):
            if a.split != b.split and distance_m(a, b) <= self.least_distance_m:
                faults.append(
                    f"{a.name} ({a.split}) and {b.name} ({b.split}) are "
                    f"{distance_m(a, b) / 1e3:.1f} km apart, expected more than "
                    f"{self.least_distance_m / 1e3:.1f}"
                )
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def least_distance_m(self) -> float:
        """Between centres of different splits: two half diagonals and the margin."""
        return 2 * math.sqrt(2) * self.half_side_m + self.margin_m

    def of(self, split: Split) -> tuple[Region, ...]:
        """Regions of a split, in the file's order.

        Raises:
            ConfigError: there is none.
        """
        found = tuple(region for region in self.regions if region.split == split)
        if not found:
            raise ConfigError(f"{_FILE}: no region of split '{split}', expected one or more")
        return found

    def named(self, name: str) -> Region:
        """A region by its name.

        Raises:
            ConfigError: there is none.
        """
        for region in self.regions:
            if region.name == name:
                return region
        known = ", ".join(region.name for region in self.regions)
        raise ConfigError(f"{_FILE}: no region '{name}'; expected one of {known}")

    def check(self, modelled: Modelled) -> None:
        """Raises ConfigError for ground wider than the splits allow."""
        if modelled.half_side_m > self.half_side_m:
            raise ConfigError(
                f"ground: reaches {modelled.half_side_m / 1e3:.1f} km from a region's centre, "
                f"expected at most {self.half_side_m / 1e3:.1f} ({_FILE}: half_side_m); fewer "
                "levels, fewer cells or finer posts"
            )

    def _by(self, field: Literal["name", "seed"]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for region in self.regions:
            found.setdefault(str(getattr(region, field)), []).append(region.name)
        return found


def load_splits(path: Path | None = None) -> Splits:
    """Read the regions; the file beside the manifest when no other is given.

    Raises:
        ConfigError: it cannot be read or does not fit, names or seeds are given twice, or regions
            of different splits come too near each other; all of it in one message.
    """
    return load_recipe(path or datasets_dir() / _FILE, Splits)


def distance_m(a: Region, b: Region) -> float:
    """Great-circle distance of two centres (haversine; Sinnott 1984, Sky and Telescope 68, 159)."""
    lat_a, lat_b = math.radians(a.latitude_deg), math.radians(b.latitude_deg)
    turn = math.radians(b.longitude_deg - a.longitude_deg)
    square = math.sin((lat_b - lat_a) / 2) ** 2
    square += math.cos(lat_a) * math.cos(lat_b) * math.sin(turn / 2) ** 2
    return 2 * RADIUS_M * math.asin(min(1.0, math.sqrt(square)))
