"""The gallery: its poses against closed forms, its drawing, and every sheet, small."""

import math

import numpy as np
import pytest
import torch

from tnav.errors import ImageError
from tnav.evaluate.gallery import draw_gallery
from tnav.evaluate.gallery_studio import Studio, length_words, panel
from tnav.evaluate.gallery_truth import _normals
from tnav.evaluate.scenario import load_scenario
from tnav.evaluate.world import build_world
from tnav.geometry.camera import Camera
from tnav.images import captioned, colour_bar, colourise, contact_sheet, display_grey
from tnav.report.gallery import write_gallery

SHEETS = ["altitudes", "suns", "reflectances", "truth", "camera", "dem"]


@pytest.fixture(scope="module")
def scenario():
    demo = load_scenario("resilience")
    return demo.model_copy(update={"site": demo.site.model_copy(update={"cells": 128})})


@pytest.fixture(scope="module")
def sheets(scenario):
    told = []
    drawn = draw_gallery(
        torch.device("cpu"), lambda text, share: told.append((text, share)), scenario, 48
    )
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert 0 == shares[0] < shares[-1] < 1
    return drawn


def test_every_sheet_is_drawn_and_said_to_be_synthetic_where_it_is(sheets):
    assert [sheet.name for sheet in sheets] == SHEETS
    for sheet in sheets:
        assert sheet.picture.dtype == np.uint8
        assert abs(sheet.picture.shape[1] - (3 * 48 + 20)) <= 20  # as wide as each other
        assert sheet.picture.std() > 5
        assert sheet.caption.endswith(".")
        assert sheet.alt
    assert "SYNTHETIC" in sheets[-1].caption


def test_the_gallery_is_written_whole_and_offline(sheets, tmp_path):
    paths = write_gallery(tmp_path / "out", sheets)
    assert [path.name for path in paths] == [f"{name}.jpg" for name in SHEETS] + ["index.html"]
    page = paths[-1].read_text()
    assert page.count('src="data:image/jpeg;base64,') == len(SHEETS)
    assert page.count("src=") == len(SHEETS)
    assert "http:" not in page
    assert "https:" not in page
    assert "SYNTHETIC" in page
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in paths)
    assert all(path.read_bytes()[:2] == b"\xff\xd8" for path in paths[:-1])


def test_the_same_seeds_draw_the_same_pictures(scenario, sheets):
    again = draw_gallery(torch.device("cpu"), lambda *_: None, scenario, 48)
    for one, other in zip(sheets, again, strict=True):
        assert np.array_equal(one.picture, other.picture)
        assert one.caption == other.caption


def test_a_shot_looks_at_its_place_from_where_it_says(scenario):
    studio = Studio(build_world(scenario, torch.device("cpu")), 48)
    camera = Camera.from_field_of_view(32, 32, 20.0)
    place, range_m, lean, heading = (12.0, -7.0), 900.0, math.radians(35.0), math.radians(120.0)
    shot = studio.shot(camera, range_m, xy_L=place, off_nadir_deg=35.0, heading_deg=120.0)
    axis_L = shot.pose.R_L_C[0, :, 2].numpy()
    expected = [
        math.sin(lean) * math.sin(heading),
        math.sin(lean) * math.cos(heading),
        -math.cos(lean),
    ]
    assert axis_L == pytest.approx(expected, abs=1e-12)
    target = shot.pose.position_L[0].numpy() + range_m * axis_L
    assert target == pytest.approx([*place, studio.ground_m(place)], abs=1e-9)
    # The image's top lies towards the heading: -y of the camera is the leaning axis' own azimuth.
    up_image = -shot.pose.R_L_C[0, :, 1].numpy()
    assert up_image[:2] == pytest.approx(
        math.cos(lean) * np.array([math.sin(heading), math.cos(heading)]), abs=1e-12
    )
    assert shot.gsd_m == pytest.approx(range_m / camera.focal_px)


@pytest.mark.parametrize(
    ("metres", "words"),
    [
        (0.5, "0.5 m"),
        (999.0, "999 m"),
        (1000.0, "1 km"),
        (1895.0, "1.9 km"),
        (65_536.0, "65.5 km"),
        (1_093_400.0, "1093 km"),
    ],
)
def test_lengths_in_words(metres, words):
    assert length_words(metres) == words


def test_normals_as_colours():
    flat_and_east = torch.tensor([[[0.0, 0.0, 1.0], [0.6, 0.0, 0.8], [math.nan] * 3]])
    blue, green, red = _normals(flat_and_east)[0].astype(int).T
    assert list(blue) == [255, 204, 0]
    assert list(green) == [128, 128, 128]
    assert list(red) == [128, 255, 128]


def test_colours_grow_brighter_with_the_value_and_show_gaps():
    share = torch.linspace(0, 1, 64)[None]
    picture = colourise(share)[0].astype(float)
    luminance = picture @ [0.0722, 0.7152, 0.2126]
    assert (np.diff(luminance) > 0).all()
    assert colourise(torch.tensor([[math.nan, 2.0, -1.0]])).tolist()[0] == [
        [128, 128, 128],
        picture[-1].tolist(),
        picture[0].tolist(),
    ]
    assert colour_bar(80, "0 m", "9 m").shape[1:] == (80, 3)


def test_display_white_is_what_it_is_told():
    image = torch.tensor([[0.0, 0.25, 0.5, 1.0]])
    shown = display_grey(image, 0.5)[0]
    assert shown.tolist() == [0, int(255 * 0.5 ** (1 / 2.2)), 255, 255]
    lifted = panel(image[None, None], ["x"], black=0.25, white=0.5)
    assert lifted[0, :, 0].tolist() == [0, 0, 255, 255]


def test_captions_keep_the_picture_and_fit():
    picture = np.full((30, 90), 77, np.uint8)
    for line in ("short", "a line that is far too long for a picture of ninety pixels"):
        framed = captioned(picture, [line])
        assert framed.shape[1] == 90
        assert (framed[:30] == 77).all()
        ink = (framed[30:] < 128).any(axis=(0, 2))
        assert ink.any()
        assert not ink[-3:].any()  # nothing is cut off at the edge
    with pytest.raises(ImageError, match="ASCII"):
        captioned(picture, ["5 °"])


def test_a_sheet_puts_pictures_in_rows():
    pictures = [np.full((h, 20, 3), v, np.uint8) for h, v in ((10, 1), (14, 2), (8, 3))]
    sheet = contact_sheet(pictures, 2)
    assert sheet.shape == (14 + 10 + 8, 50, 3)
    assert (sheet[:10, :20] == 1).all()
    assert (sheet[:14, 30:] == 2).all()
    assert (sheet[24:, :20] == 3).all()
    rest = np.ones(sheet.shape[:2], bool)
    for rows, columns in (
        (slice(10), slice(20)),
        (slice(14), slice(30, 50)),
        (slice(24, 32), slice(20)),
    ):
        rest[rows, columns] = False
    assert (sheet[rest] == 255).all()
