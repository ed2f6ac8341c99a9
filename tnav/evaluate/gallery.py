"""Contact sheets of what the terrain and the renderer make, from the demo's site.

What is seen below the DEM's resolution is SYNTHETIC: statistics of mare, not places on the Moon.
"""

from collections.abc import Callable

import torch

from tnav.evaluate.gallery_camera import camera_sheet
from tnav.evaluate.gallery_studio import (
    FIELD_DEG,
    Sheet,
    Studio,
    length_words,
    panel,
    quantile,
    sun_words,
)
from tnav.evaluate.gallery_truth import dem_sheet, truth_sheet
from tnav.evaluate.scenario import Scenario, load_scenario
from tnav.evaluate.world import build_world
from tnav.geometry.camera import Camera
from tnav.geometry.sun import direction_L
from tnav.images import contact_sheet
from tnav.render.detector import Detector, expose_with_record
from tnav.render.reflectance import (
    Hapke,
    Lambert,
    LommelSeeliger,
    LunarLambert,
    Minnaert,
    ReflectanceModel,
)

Tell = Callable[[str, float], None]
_HEIGHTS_M = (9000.0, 2500.0, 400.0)
_HIGH_SUN_DEG, _LOW_SUN_DEG = (250.0, 35.0), (288.4, 4.0)  # azimuth and elevation
_OPPOSITION_DEG = 45.0  # elevation of the Sun behind the camera, which looks down by as much
_LAWS: tuple[tuple[str, ReflectanceModel], ...] = (
    ("Lambert", Lambert()),
    ("Minnaert, k = 0.5", Minnaert()),
    ("Lommel-Seeliger", LommelSeeliger()),
    ("Lunar-Lambert (default)", LunarLambert()),
    ("Hapke, mare", Hapke()),
)


def draw_gallery(
    device: torch.device, tell: Tell, scenario: Scenario | None = None, width_px: int = 480
) -> list[Sheet]:
    """Every sheet.

    Args:
        device: to render on.
        tell: told what is being done, and the share of the work that lies behind.
        scenario: whose site is shown; the demo's when absent.
        width_px: of a panel, three of which make a sheet.
    """
    tell("terrain", 0.0)
    world = build_world(scenario or load_scenario("resilience"), device)
    studio = Studio(world, width_px)
    steps: tuple[tuple[str, float, Callable[[Studio], Sheet]], ...] = (
        ("three altitudes", 0.2, altitude_sheet),
        ("three Suns", 0.27, sun_sheet),
        ("five reflectances", 0.34, reflectance_sheet),
        ("truth channels", 0.5, truth_sheet),
        ("camera effects", 0.6, camera_sheet),
        ("DEM and levels", 0.95, dem_sheet),
    )
    sheets = []
    for name, share, draw in steps:
        tell(name, share)
        sheets.append(draw(studio))
    return sheets


def altitude_sheet(studio: Studio) -> Sheet:
    """One site from three heights, as the camera delivers it."""
    panels = []
    for number, height_m in enumerate(_HEIGHTS_M):
        shot = studio.nadir(height_m, studio.width_px)
        frame = studio.take(shot)
        image, record = expose_with_record(frame.image, Detector(), seed=number)
        field_m = shot.gsd_m * studio.width_px
        panels.append(
            panel(
                image,
                [
                    f"{length_words(height_m)} above the ground",
                    f"pixel {length_words(shot.gsd_m)}, field {length_words(field_m)}",
                    f"exposure {1e3 * float(record.exposure_s[0]):.2f} ms, "
                    f"median I/F {quantile(frame.image, 0.5):.4f}",
                ],
            )
        )
    caption = (
        f"The site seen straight down, north up, as the detector delivers it ({studio.sun_words}, "
        "Lunar-Lambert of normal albedo 0.13, automatic exposure, 12 bit). Every picture zooms "
        "into the middle of the one before it."
    )
    alt = "The site from 9 km, 2.5 km and 400 m: cratered mare, each picture a part of the last"
    return Sheet("altitudes", "Three altitudes", caption, alt, contact_sheet(panels, 3))


def sun_sheet(studio: Studio) -> Sheet:
    """One ground under three Suns."""
    shot = studio.nadir(2500.0, studio.width_px)
    own = studio.world.sun
    suns = (
        ("the scenario's Sun", (own.azimuth_deg, own.elevation_deg)),
        ("a high Sun from the other side", _HIGH_SUN_DEG),
        ("a grazing Sun", _LOW_SUN_DEG),
    )
    panels = []
    for name, (azimuth_deg, elevation_deg) in suns:
        frame = studio.take(shot, direction_L(azimuth_deg, elevation_deg))
        dark = 100 * (1 - float(frame.lit[frame.hit].double().mean()))
        lines = [
            name[0].upper() + name[1:],
            sun_words(azimuth_deg, elevation_deg),
            f"{dark:.1f} % in shadow, median I/F {quantile(frame.image, 0.5):.4f}",
        ]
        # A high Sun leaves little contrast: what nothing is darker than is shown black.
        panels.append(panel(frame.image, lines, black=0.9 * quantile(frame.image, 0.005)))
    caption = (
        f"The same ground from 2.5 km (pixel {length_words(shot.gsd_m)}) under three Suns, each "
        "picture stretched from its darkest to its brightest half percent (Lunar-Lambert, normal "
        "albedo 0.13). Every level of the relief casts shadows."
    )
    alt = "One ground under three Suns: shadows change side and length"
    return Sheet("suns", "Three Suns", caption, alt, contact_sheet(panels, 3))


def reflectance_sheet(studio: Studio) -> Sheet:
    """Five laws, far from opposition and around it."""
    width_px, own = studio.panel_px(len(_LAWS)), studio.world.sun
    camera = Camera.from_field_of_view(width_px, width_px, FIELD_DEG)
    views = (
        (studio.shot(camera, 2500.0), own.sun_L),
        (
            studio.shot(camera, 2500.0, off_nadir_deg=90 - _OPPOSITION_DEG, heading_deg=0.0),
            direction_L(180.0, _OPPOSITION_DEG),
        ),
    )
    panels = []
    for shot, sun_L in views:
        images = [studio.take(shot, sun_L, reflectance=law).image for _, law in _LAWS]
        white = max(quantile(image, 0.995) for image in images)
        for (name, _), image in zip(_LAWS, images, strict=True):
            middle = image[..., width_px // 2 - 8 : width_px // 2 + 8, :]
            middle = middle[..., width_px // 2 - 8 : width_px // 2 + 8]
            line = f"I/F: median {quantile(image, 0.5):.3f}, middle {quantile(middle, 0.5):.3f}"
            panels.append(panel(image, [name, line], white=white))
    caption = (
        "Five laws of one ground from 2.5 km, one scale of brightness in each row. Above: "
        f"straight down, {studio.sun_words}. Below: the Sun stands {_OPPOSITION_DEG:g} deg high "
        "behind the camera, which looks along its light: the phase angle is zero in the middle and "
        f"{FIELD_DEG / 2:g} deg at the sides. There Hapke's law shows the opposition surge; the "
        "others, which say how brightness changes with slope, show none. Albedo 0.13 in all but "
        "Hapke's, whose parameters are those of mare at 643 nm (Sato et al. 2014)."
    )
    alt = "Two rows of five pictures; only Hapke's brightens around the point opposite to the Sun"
    sheet = contact_sheet(panels, len(_LAWS))
    return Sheet("reflectances", "Five reflectances", caption, alt, sheet)
