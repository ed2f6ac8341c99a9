"""Sheets of what lies behind a picture: truth channels of a view, the DEM and the levels."""

import math

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from tnav.dem.hillshade import HOLE_BGR, Sun, hillshade
from tnav.dem.mosaic import open_dem
from tnav.dem.rasters import DEGREE_M
from tnav.evaluate.gallery_studio import (
    FIELD_DEG,
    Picture,
    Sheet,
    Studio,
    length_words,
    panel,
)
from tnav.geometry.camera import Camera
from tnav.images import captioned, colour_bar, colourise, contact_sheet
from tnav.render.sunlight import Sunlight
from tnav.terrain.heightfield import Level

_RANGE_M, _OFF_NADIR_DEG, _HEADING_DEG = 600.0, 62.0, 40.0
_SUN_RAYS = 16
_STEEP = 3.0  # what the horizontal part of normals is multiplied by, to be seen
_DEM_HALF_DEG = 6.0  # of latitude shown around the site


def truth_sheet(studio: Studio) -> Sheet:
    """An oblique view and all that is known of its pixels."""
    width_px = studio.width_px
    camera = Camera.from_field_of_view(width_px, width_px * 3 // 4, FIELD_DEG)
    shot = studio.shot(camera, _RANGE_M, off_nadir_deg=_OFF_NADIR_DEG, heading_deg=_HEADING_DEG)
    light = Sunlight(studio.world.sun.sun_L, samples=_SUN_RAYS)
    frame = studio.take(shot, light, truth=True)
    surface = frame.surface
    assert surface is not None
    hit = frame.hit[0]
    range_km = torch.where(hit, frame.range_m[0] / 1e3, math.nan).float()
    z_m = torch.where(hit, frame.xyz_L[0, ..., 2], math.nan).float()
    level = torch.where(hit, surface.level[0].float(), math.nan)
    levels = studio.world.truth.levels
    posts = [length_words(levels[int(k)].post_m) for k in _ends(level)]
    panels = [
        panel(frame.image, ["Image, radiance factor", "16 rays to the Sun's disc for each pixel"]),
        _scaled(range_km, "Range", ".2f", "km", logarithmic=True),
        _scaled(z_m, "Height in the local frame", ".0f", "m"),
        captioned(
            _normals(surface.normal_L[0]),
            ["Normal", f"red, green: east, north x {_STEEP:g}; blue: up"],
        ),
        _scaled(torch.rad2deg(surface.incidence_rad[0]), "Incidence", ".0f", "deg"),
        _scaled(torch.rad2deg(surface.emission_rad[0]), "Emission", ".0f", "deg"),
        _scaled(torch.rad2deg(surface.phase_rad[0]), "Phase", ".0f", "deg"),
        _scaled(surface.sun_fraction[0], "Share of the Sun's disc that is seen", ".0f", ""),
        _scaled(level, f"Level of the terrain: posts of {posts[0]} to {posts[1]}", ".0f", ""),
    ]
    caption = (
        f"One view, {length_words(_RANGE_M)} from the ground and {_OFF_NADIR_DEG:g} deg from "
        f"straight down, towards azimuth {_HEADING_DEG:g} deg ({studio.sun_words}, pixel "
        f"{length_words(shot.gsd_m)} on the axis), with the truth of every pixel's centre. Farther "
        "ground is shown by coarser levels."
    )
    alt = "Nine pictures of one oblique view: image, range, height, normal, angles, shadow, level"
    return Sheet("truth", "Truth channels", caption, alt, contact_sheet(panels, 3))


def dem_sheet(studio: Studio) -> Sheet:
    """The DEM around the site, and levels of the ground that is made of it."""
    site, truth = studio.world.scenario.site, studio.world.truth
    width_px = studio.width_px
    chosen = [truth.levels[k] for k in _spread(len(truth.levels))]
    row = contact_sheet([_level_panel(level, width_px) for level in chosen], 3)
    dem = open_dem(site.dem)
    picture, across_m = _dem_picture(studio, row.shape[1])
    names = site.dem if isinstance(site.dem, str) else ", ".join(site.dem)
    lines = [
        f"DEM {names}",
        f"posting {length_words(dem.posting_m)}, resolution "
        f"{length_words(dem.effective_resolution_m)}; {length_words(across_m)} across the middle",
    ]
    caption = (
        "Hillshades, north up, light from the north-west, heights exaggerated so that slopes show. "
        "Above: the DEM around the site, which the cross marks. Below: levels of the ground that "
        "is made of it. What is smaller than "
        f"{length_words(dem.effective_resolution_m)} is SYNTHETIC."
    )
    alt = "Hillshade of the DEM with the site marked, and of three levels of the modelled ground"
    sheet = contact_sheet([captioned(picture, lines), row], 1)
    return Sheet("dem", "DEM and levels", caption, alt, sheet)


def _scaled(
    value: Float32[Tensor, "h w"], name: str, digits: str, unit: str, *, logarithmic: bool = False
) -> Picture:
    """A channel in colour over its name and scale."""
    low, high = _ends(value)
    scale = value.log() if logarithmic else value
    first, last = (math.log(v) if logarithmic else v for v in (low, high))
    picture = colourise((scale - first) / max(last - first, 1e-9))
    words = [f"{v:{digits}} {unit}".strip() for v in (low, high)]
    bar = colour_bar(picture.shape[1], *words)
    name += ", logarithmic" if logarithmic else ""
    return captioned(np.vstack([picture, bar]), [name])


def _ends(value: Float32[Tensor, "h w"]) -> tuple[float, float]:
    known = value[value.isfinite()]
    return float(known.min()), float(known.max())


def _normals(normal_L: Float32[Tensor, "h w 3"]) -> Picture:
    east, north, up = normal_L.nan_to_num(0.0).unbind(-1)
    parts = [up, (0.5 + 0.5 * _STEEP * north), (0.5 + 0.5 * _STEEP * east)]  # blue, green, red
    picture = torch.stack(parts, -1).clamp(0, 1).mul(255).round()
    return picture.cpu().numpy().astype(np.uint8)


def _spread(levels: int) -> list[int]:
    """Three levels from coarse to fine: the finest, and two above that it is a part of."""
    return sorted({min(levels - 1, k) for k in (7, 4, 0)}, reverse=True)


def _level_panel(level: Level, width_px: int) -> Picture:
    heights_m = level.z_L.double().cpu().numpy()[::-1]
    step_m = np.full(len(heights_m), level.post_m)
    shade = hillshade(heights_m, step_m, level.post_m, Sun())
    side_m = (heights_m.shape[1] - 1) * level.post_m
    lines = [
        f"Level with posts of {length_words(level.post_m)}",
        f"{length_words(side_m)} across, the site in the middle",
    ]
    return captioned(_fitted(shade, width_px), lines)


def _fitted(shade: NDArray[np.float64], width_px: int) -> Picture:
    """A shade in [0, 1] as grey of another size; on a finer grid, posts stay squares."""
    value = torch.from_numpy(np.ascontiguousarray(shade))[None, None].float()
    fitted = torch.nn.functional.interpolate(value, (width_px, width_px), mode="area")
    return (255 * fitted[0, 0]).round().numpy().astype(np.uint8)


def _dem_picture(studio: Studio, width_px: int) -> tuple[Picture, float]:
    """Hillshade of the DEM around the site with a cross on it, and how wide it is in metres."""
    site = studio.world.scenario.site
    dem = open_dem(site.dem)
    height_px = width_px // 3
    step_m = 2 * _DEM_HALF_DEG * DEGREE_M / height_px
    rows = np.arange(height_px) + 0.5 - height_px / 2
    columns = np.arange(width_px) + 0.5 - width_px / 2
    latitude = np.clip(site.latitude_deg - rows * step_m / DEGREE_M, -90, 90)
    per_column_deg = step_m / (DEGREE_M * math.cos(math.radians(site.latitude_deg)))
    longitude = site.longitude_deg + columns * per_column_deg
    grid = np.broadcast_arrays(latitude[:, None], longitude[None, :])
    heights_m = dem.heights_m(*(np.ascontiguousarray(axis) for axis in grid))
    holes = ~np.isfinite(heights_m)
    step_east_m = DEGREE_M * per_column_deg * np.maximum(np.cos(np.deg2rad(latitude)), 1e-6)
    filled = np.where(holes, np.nanmean(heights_m), heights_m)
    grey = np.rint(255 * hillshade(filled, step_east_m, step_m, Sun())).astype(np.uint8)
    picture = np.repeat(grey[..., None], 3, axis=2)
    picture[holes] = HOLE_BGR
    u, v, arm = width_px // 2, height_px // 2, max(4, height_px // 24)
    for reach in range(3, arm + 3):  # a cross with an open middle
        for du, dv in ((reach, 0), (-reach, 0), (0, reach), (0, -reach)):
            picture[v + dv - 1 : v + dv + 1, u + du - 1 : u + du + 1] = (0, 140, 255)
    return picture, width_px * step_m
