"""What the ground along a 500 km descent costs: time a frame, memory, disk."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tnav.evaluate.limits import Row
from tnav.geometry.camera import Camera
from tnav.geometry.moon import RADIUS_M
from tnav.terrain.corridor import Corridor, CorridorRecipe

Say = Callable[[str], None]

_TRACK_M, _FRAMES = 500e3, 30
_HIGHEST_M, _LOWEST_M = 15e3, 100.0  # above the sphere, falling as the square of the way to go
_POSTS_PER_PIXEL = 4.0


def measure_corridor(say: Say) -> list[Row]:
    """A track from west to east over Mare Frigoris, twice: with an empty cache and a full one."""
    with tempfile.TemporaryDirectory() as folder:
        # 10 levels: the windows of an origin half-way must reach both ends within 600 km
        recipe = CorridorRecipe(
            latitude_deg=60.5, longitude_deg=-4.6, levels=10, cache=Path(folder)
        )
        cold = _fly(recipe, "empty cache", say)
        warm = _fly(recipe, "full cache", say)
        stored = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    rows = []
    for name, (seconds, corridor) in (("empty cache", cold), ("full cache", warm)):
        peak_mb, budget_mb = corridor.peak_bytes / 1e6, recipe.memory_budget_mb
        limit, passed = f"<= {budget_mb:g}", peak_mb <= budget_mb
        median = round(statistics.median(seconds), 2)
        rows += [
            Row(f"{name}: whole track", round(sum(seconds), 1), "s", None, None, _FRAMES, "cpu"),
            Row(f"{name}: frame, median", median, "s", None, None, _FRAMES, "cpu"),
            Row(f"{name}: tiles made", corridor.tiles_built, "", None, None, _FRAMES, "cpu"),
            Row(f"{name}: heights held, peak", round(peak_mb), "MB", limit, passed, _FRAMES, "cpu"),
        ]
    return [*rows, Row("disk", round(stored / 1e6), "MB", None, None, 1, "cpu")]


def _fly(recipe: CorridorRecipe, name: str, say: Say) -> tuple[list[float], Corridor]:
    corridor = Corridor(recipe, seed=1)
    camera = Camera.from_field_of_view(1024, 1024, 45.0)
    seconds = []
    for k in range(_FRAMES):
        share = k / (_FRAMES - 1)
        height_m = _LOWEST_M + (_HIGHEST_M - _LOWEST_M) * (1 - share) ** 2
        east_m = _TRACK_M * (share - 0.5)
        up_m = height_m - east_m**2 / (2 * RADIUS_M)
        position_L = torch.tensor([east_m, 0.0, up_m], dtype=torch.float64)
        gsd_m = camera.ground_sample_distance_m(height_m)
        began = time.perf_counter()
        corridor.terrain_at(position_L, finest_post_m=gsd_m / _POSTS_PER_PIXEL)
        seconds.append(time.perf_counter() - began)
        say(f"{name}: frame {k + 1} of {_FRAMES}, {height_m / 1e3:.1f} km high")
    return seconds, corridor
