import cv2
import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from rasters_made import DEGREE_M, NORTH_POLE, cylinder, polar, relief_m, write_tiff

from tnav.cli import main
from tnav.dem.hillshade import HOLE_BGR, Sun, hillshade
from tnav.dem.importing import Claims, import_dem
from tnav.dem.tiles import open_tile, sample_height_m
from tnav.images import read_image


def _run(argv, code=0):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in argv])
    assert (stop.value.code or 0) == code


def _fails(capsys, argv, *words):
    _run(argv, 2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert all(word in lines[0] for word in words), lines


def _picture(path):
    return cv2.imread(str(path)).astype(int)  # rows, columns, blue green red


def _window(west, south, east, north):
    values = {"--west": west, "--south": south, "--east": east, "--north": north}
    return [text for pair in values.items() for text in pair]


@pytest.mark.parametrize(
    ("azimuth_deg", "lit", "dark"),
    [(315.0, "nw", "se"), (135.0, "se", "nw"), (45.0, "ne", "sw"), (225.0, "sw", "ne")],
)
def test_slopes_that_face_the_sun_are_lit(azimuth_deg, lit, dark):
    """A cone: its flank towards the Sun is bright, the other dark."""
    y, x = np.mgrid[-50:51, -50:51] * 100.0
    shade = hillshade(
        -0.3 * np.hypot(x, y), np.full(101, 100.0), 100.0, Sun(azimuth_deg, 35.0, 1.0)
    )
    flank = {
        "nw": shade[20:40, 20:40].mean(),
        "ne": shade[20:40, 61:81].mean(),
        "sw": shade[61:81, 20:40].mean(),
        "se": shade[61:81, 61:81].mean(),
    }
    assert max(flank, key=flank.get) == lit
    assert min(flank, key=flank.get) == dark


def test_shade_of_a_plane_is_the_cosine_of_its_incidence():
    """A plane of slope 0.2 to the west, Sun due west at 30 deg: cos i = n . s."""
    height_m = np.broadcast_to(0.2 * np.arange(40) * 50.0, (30, 40))  # rises to the east
    shade = hillshade(height_m, np.full(30, 50.0), 70.0, Sun(270.0, 30.0, 1.0))
    normal = np.array([-0.2, 0.0, 1.0]) / np.hypot(0.2, 1.0)  # east, north, up
    sun = np.array([-np.cos(np.pi / 6), 0.0, np.sin(np.pi / 6)])
    assert shade == pytest.approx(0.12 + 0.88 * normal @ sun, abs=1e-12)


def test_show_marks_holes_and_keeps_the_ground_s_shape(tmp_path, capsys):
    values = cylinder(200, 400).astype(np.float32)
    values[60:100, 100:180] = np.nan
    path = write_tiff(tmp_path / "s.tif", values)
    out = tmp_path / "new" / "s.png"
    _run(["dem", "show", path, "--out", out, "--width", 200])
    picture = _picture(out)
    height, width = picture.shape[:2]
    # 20 deg of longitude at 57 N against 10 deg of latitude
    assert width == 200
    assert height == pytest.approx(200 * 10 / (20 * np.cos(np.deg2rad(57))), abs=1)
    red = (picture == HOLE_BGR).all(-1)
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    assert (columns[0], columns[-1]) == (50, 89)
    assert rows[0] == pytest.approx(0.3 * height, abs=1)
    assert rows[-1] == pytest.approx(0.5 * height - 1, abs=1)
    grey = picture[~red]
    assert (grey == grey[:, :1]).all()
    assert read_image(out).shape == (1, 1, height, width)
    out.unlink()
    _fails(capsys, ["dem", "show", path, "--out", out, "--width", 5], "--width 5")
    _fails(capsys, ["dem", "show", path, "--out", out, "--sun-elevation", 0], "--sun-elevation 0")
    void = write_tiff(tmp_path / "v.tif", np.full((40, 40), np.nan, np.float32))
    _fails(capsys, ["dem", "show", void, "--out", out], "nothing but holes")
    assert not out.exists()


@pytest.mark.parametrize("turn", ["south up", "rotated", "mosaic"])
def test_every_raster_is_shown_north_up(tmp_path, turn):
    """A hill in the north-west of each, lit from the north-west."""
    y, x = np.mgrid[0:200, 0:200]
    values = (2000 * np.exp(-((y - 60) ** 2 + (x - 60) ** 2) / 800)).astype(np.float32)
    if turn == "south up":
        name = write_tiff(
            tmp_path / "a.tif", values[::-1].copy(), transform=Affine(0.05, 0, 0, 0, 0.05, -5.0)
        )
    elif turn == "rotated":
        name = write_tiff(
            tmp_path / "a.tif", values.T.copy(), transform=Affine(0, 0.05, 0, -0.05, 0, 5.0)
        )
    else:
        one = write_tiff(tmp_path / "a.tif", values[:, :120].copy(), west=0.0, north=5.0)
        two = write_tiff(tmp_path / "b.tif", values, west=0.0, north=5.0)
        name = f"{one},{two}"
    _run(["dem", "show", name, "--out", tmp_path / "a.png", "--width", 180])
    grey = _picture(tmp_path / "a.png")[..., 0]
    rows, columns = grey.shape
    hill = grey[int(0.1 * rows) : int(0.5 * rows), int(0.1 * columns) : int(0.5 * columns)]
    assert grey[rows // 2 :, columns // 2 :].std() < 3
    half = np.array(hill.shape) // 2
    assert hill[: half[0], : half[1]].mean() > 1.3 * hill[half[0] :, half[1] :].mean()


def test_a_giant_raster_is_shown_from_its_overviews(tmp_path, monkeypatch):
    """Only blocks of overviews are read: the full ones are overwritten with rubbish first."""
    path = write_tiff(tmp_path / "g.tif", cylinder(2048, 2048, step=0.005).astype(np.float32))
    done = import_dem(path, Claims(), lambda text, share: None)
    _run(["dem", "show", done.path, "--out", tmp_path / "a.png", "--width", 200])
    whole = _picture(tmp_path / "a.png")
    with rasterio.open(done.path) as raster:
        assert raster.overviews(1) == [2, 4]
        offset = int(raster.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    data = bytearray(done.path.read_bytes())
    data[offset : offset + 500] = bytes(500)
    done.path.write_bytes(data)
    _run(["dem", "show", done.path, "--out", tmp_path / "b.png", "--width", 200])
    assert (_picture(tmp_path / "b.png") == whole).all()


def test_cut_keeps_posts_values_and_holes(tmp_path):
    values = np.rint(2 * cylinder(200, 300)).astype(np.int16)
    values[50:60, 100:110] = -32768
    path = write_tiff(tmp_path / "c.tif", values, nodata=-32768, scale=0.5)
    out = tmp_path / "sub" / "cut.tif"
    _run(["dem", "cut", path, out, *_window(-1.0, 57.0, 3.0, 60.0)])
    with rasterio.open(out) as raster:
        assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert raster.bounds == pytest.approx((-1.0, 57.0, 3.0, 60.0))
        back = raster.read(1, masked=True)
    part = values[40:100, 80:160]
    assert (np.ma.getmaskarray(back) == (part == -32768)).all()
    assert (back.data[part != -32768] == part[part != -32768]).all()
    at = np.array([58.0]), np.array([2.0])
    cut = sample_height_m(open_tile(str(out)), *at)
    assert cut == pytest.approx(sample_height_m(open_tile(str(path)), *at), abs=1e-3)


def test_cut_goes_over_the_seam_of_a_global_tile(tmp_path):
    values = cylinder(180, 360, west=0.0, north=90.0, step=1.0)
    path = write_tiff(tmp_path / "g.tif", values, west=0.0, north=90.0, step=1.0)
    for west, east in ((350.0, 10.0), (-10.0, 10.0)):
        _run(["dem", "cut", path, tmp_path / "o.tif", *_window(west, -20.0, east, 20.0)])
        tile = open_tile(str(tmp_path / "o.tif"))
        assert (tile.grid.width, tile.grid.height) == (20, 40)
        latitude, longitude = np.array([5.0, -7.7]), np.array([-6.2, 3.3])
        found = sample_height_m(tile, latitude, longitude)
        assert found == pytest.approx(relief_m(latitude, longitude), abs=0.1)


def test_cut_of_a_projected_tile_holds_the_window(tmp_path, capsys):
    step = 3000.0
    grid = Affine(step, 0, -100 * step, 0, -step, 100 * step)
    path = write_tiff(
        tmp_path / "p.tif", polar(200, step).astype(np.float32), crs=NORTH_POLE, transform=grid
    )
    out = tmp_path / "o.tif"
    _run(["dem", "cut", path, out, *_window(80.0, 83.0, 100.0, 86.0)])
    tile = open_tile(str(out))
    assert tile.grid.width < 100
    lat, lon = np.meshgrid(np.linspace(83.1, 85.9, 9), np.linspace(81, 99, 9), indexing="ij")
    assert sample_height_m(tile, lat, lon) == pytest.approx(relief_m(lat, lon), abs=0.05)
    _fails(capsys, ["dem", "cut", path, out, *_window(0.0, 20.0, 5.0, 25.0)], "lies outside")
    _fails(capsys, ["dem", "cut", path, out, *_window(0.0, 85.0, 5.0, 84.0)], "an empty window")
    _fails(capsys, ["dem", "cut", path, out, "--align", *_window(0.0, 84.0, 5.0, 85.0)], "--align")


def test_cut_of_a_mosaic_fills_and_aligns(tmp_path, capsys):
    high = write_tiff(tmp_path / "high.tif", np.full((100, 200), 100.0, np.float32), north=60.0)
    low = write_tiff(
        tmp_path / "low.tif", np.zeros((120, 160), np.float32), west=-8.0, north=64.0, step=0.1
    )
    out = tmp_path / "m.tif"
    window = _window(-2.0, 58.0, 2.0, 65.0)
    _run(["dem", "cut", f"{high},{low}", out, *window])
    with rasterio.open(out) as raster:
        assert raster.transform.a == pytest.approx(0.05)
        back = raster.read(1, masked=True)
    latitude = 65 - 0.05 * (np.arange(140) + 0.5)
    assert np.ma.getmaskarray(back)[latitude > 64].all()
    assert not np.ma.getmaskarray(back)[latitude < 63.9].any()
    assert back[latitude < 59.5].data == pytest.approx(100.0, abs=0.011)
    assert back[(latitude > 60) & (latitude < 63.9)].data == pytest.approx(0.0, abs=0.011)
    seam = back[:, 40].data[(latitude > 60 - 10e3 / DEGREE_M) & (latitude < 60)]
    assert (np.diff(seam) < 0).sum() == 0  # rises southwards, rows run south
    capsys.readouterr()
    _run(["dem", "cut", f"{high},{low}", out, "--align", *window])
    assert "low: +100.00 m added, to agree with high" in capsys.readouterr().out
    with rasterio.open(out) as raster:
        assert raster.read(1, masked=True).max() == pytest.approx(100.0, abs=0.02)
        assert raster.read(1, masked=True).min() == pytest.approx(100.0, abs=0.02)
