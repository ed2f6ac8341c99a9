"""The sheet of what a camera adds to the light that reaches it."""

import math
from dataclasses import replace

import torch

from tnav.evaluate.gallery_studio import (
    Picture,
    Sheet,
    Shot,
    Studio,
    length_words,
    panel,
)
from tnav.geometry.camera import Camera
from tnav.geometry.distortion import BrownConrady, Fisheye
from tnav.images import contact_sheet
from tnav.render.detector import Detector, expose_with_record
from tnav.render.dust import DustPlume
from tnav.render.motion import Motion
from tnav.render.optics import Vignetting
from tnav.render.sunlight import Sunlight
from tnav.terrain.synthetic import craters

_COLUMNS = 4
_HEIGHT_M = 400.0
_COARSE = 2  # what shows single pixels has fewer of them, each so many wide
_FRESH_STATE = 0.03  # wear kappa t / R^2 up to which a crater still has a sharp rim
_SHADOW_HALF_M = 150.0  # where a crater is looked for whose shadow to show
_SHADOW_RAYS = 64
_DUST_HEIGHT_M = 18.0


def camera_sheet(studio: Studio) -> Sheet:
    """Twelve small pictures, one effect each."""
    width_px = studio.panel_px(_COLUMNS)
    plain = studio.nadir(_HEIGHT_M, width_px)
    panels = [
        _seen(studio, plain, ["No effect", f"pinhole, {_HEIGHT_M:g} m high"]),
        *_distorted(studio, plain),
        *_moving(studio, plain),
        *_detected(studio),
        _dusty(studio, width_px),
        *_penumbrae(studio, width_px),
    ]
    caption = (
        f"What the camera adds, on the ground of the site from {_HEIGHT_M:g} m where nothing else "
        f"is said ({studio.sun_words}). Effects are larger than a good camera's, so as to be seen; "
        "their sizes stand under the pictures. All are off by default but a quiet sensor's noise "
        "and blur."
    )
    alt = (
        "Twelve small pictures: distortion, blur, rolling shutter, noise, blooming, dust, penumbra"
    )
    return Sheet("camera", "Camera effects", caption, alt, contact_sheet(panels, _COLUMNS))


def _seen(studio: Studio, shot: Shot, lines: list[str]) -> Picture:
    return panel(studio.take(shot).image, lines)


def _distorted(studio: Studio, plain: Shot) -> list[Picture]:
    width_px = plain.camera.width_px
    barrel = Camera.from_field_of_view(width_px, width_px, 80.0, BrownConrady(k1=-0.22, k2=0.03))
    fisheye = Camera.from_field_of_view(width_px, width_px, 150.0, Fisheye())
    return [
        _seen(
            studio,
            replace(plain, camera=barrel),
            ["Brown-Conrady distortion", "k1 = -0.22, k2 = 0.03, field 80 deg"],
        ),
        _seen(
            studio,
            studio.shot(fisheye, _HEIGHT_M, off_nadir_deg=35.0, heading_deg=20.0),
            ["Fisheye", "field 150 deg, 35 deg from straight down"],
        ),
    ]


def _moving(studio: Studio, plain: Shot) -> list[Picture]:
    still = torch.zeros(3, dtype=torch.float64)
    east = torch.tensor([60.0, 0.0, 0.0], dtype=torch.float64)
    spin = torch.tensor([0.0, 0.0, math.radians(30.0)], dtype=torch.float64)
    blur = Motion(velocity_L=east, rate_C=still, exposure_s=0.1, samples=16)
    rolling = Motion(velocity_L=still, rate_C=spin, readout_s=1.0)
    return [
        panel(
            studio.take(plain, motion=blur).image,
            ["Motion blur", "60 m/s to the east, exposed for 100 ms"],
        ),
        panel(
            studio.take(plain, motion=rolling).image,
            ["Rolling shutter", "rolling at 30 deg/s, read out in 1 s"],
        ),
    ]


def _detected(studio: Studio) -> list[Picture]:
    """Effects of single pixels, shown large."""
    width_px = studio.panel_px(_COLUMNS)
    few_px = width_px // _COARSE
    shot = studio.nadir(_HEIGHT_M / _COARSE, few_px)
    radiance = studio.take(shot).image
    cases = (
        (
            "Point spread and noise",
            "sigma 1.2 px, 600 e- where bright",
            Detector(psf_sigma_px=1.2, exposure_level=0.03, read_noise_e=25.0),
            None,
        ),
        (
            "Vignetting",
            "a quarter of the light left in the corners",
            Detector(vignetting=Vignetting(polynomial=(-0.75,))),
            None,
        ),
        (
            "Hot pixels and column noise",
            "1 % hot, 60 e- a column",
            Detector(
                hot_share=0.01,
                hot_current_e_s=1e7,
                exposure_level=0.15,
                column_noise_e=60.0,
            ),
            None,
        ),
        (
            "Saturation and blooming",
            "median at 75 % of full well",
            Detector(exposure_percentile=0.5, exposure_level=0.75, blooming=1.0),
            1.0,
        ),
    )
    panels = []
    for number, (name, size, detector, white) in enumerate(cases):
        image, record = expose_with_record(radiance, detector, seed=number)
        large = image.repeat_interleave(_COARSE, 2).repeat_interleave(_COARSE, 3)
        exposure_ms = 1e3 * float(record.exposure_s[0])
        panels.append(panel(large, [name, f"{size}; {exposure_ms:.2g} ms"], white=white))
    return panels


def _dusty(studio: Studio, width_px: int) -> Picture:
    camera = Camera.from_field_of_view(width_px, width_px, 90.0)
    shot, dust = studio.shot(camera, _DUST_HEIGHT_M), DustPlume()
    image = studio.take(shot).image.clone()
    right = slice(width_px // 2, None)
    image[..., right] = studio.take(shot, dust=dust).image[..., right]
    lines = ["Dust haze, on the right", f"{_DUST_HEIGHT_M:g} m high, blown from {dust.onset_m:g} m"]
    return panel(image, lines, white=float(image.max()))


def _penumbrae(studio: Studio, width_px: int) -> list[Picture]:
    """The shadow in a fresh crater, without and with the Sun's disc."""
    xy_L, diameter_m = _crater_with_shadow(studio)
    height_m = 1000.0
    field_deg = 2 * math.degrees(math.atan(0.55 * diameter_m / height_m))
    camera = Camera.from_field_of_view(width_px, width_px, field_deg)
    shot = studio.shot(camera, height_m, xy_L=xy_L)
    sun_L = studio.world.sun.sun_L
    crater = f"crater of {length_words(diameter_m)}"
    disc = Sunlight(sun_L, samples=_SHADOW_RAYS)
    return [
        panel(studio.take(shot).image, ["The Sun as a point", crater]),
        panel(
            studio.take(shot, disc).image,
            ["Penumbra of the Sun's disc", f"{crater}, 0.53 deg, {_SHADOW_RAYS} rays"],
        ),
    ]


def _crater_with_shadow(studio: Studio) -> tuple[tuple[float, float], float]:
    """The largest fresh synthetic crater near the site; a place without one where there is none."""
    scenario, half_m = studio.world.scenario, _SHADOW_HALF_M
    found = craters.craters_near(
        (-half_m, -half_m, half_m, half_m),
        scenario.site.relief,
        diameter_min_m=4.0,
        diameter_max_m=half_m,
        seed=scenario.seeds.terrain,
        reach_radii=0.0,
    )
    fresh = found.where(found.state < _FRESH_STATE)
    if len(fresh) == 0:
        return (0.0, 0.0), half_m / 4
    k = int(fresh.diameter_m.argmax())
    place = (float(fresh.east_m[k]), float(fresh.north_m[k]))
    return place, float(fresh.diameter_m[k])
