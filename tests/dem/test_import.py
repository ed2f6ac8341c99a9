import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine
from rasters_made import (
    DEGREE_M,
    NORTH_POLE,
    RADIUS_M,
    cylinder,
    polar,
    relief_m,
    write_ldem,
    write_polar_float,
    write_tiff,
)

from tnav.cli import main
from tnav.dem.importing import Claims, import_dem
from tnav.dem.survey import Survey, read_as_heights
from tnav.dem.tiles import load_manifest, open_tile, sample_height_m
from tnav.errors import TileError

SHARED = Path(os.environ.get("TNAV_REAL_DEMS", "nowhere"))  # GLD100 and LOLA crops of Frigoris


def _quiet(text: str, share: float) -> None:
    assert 0 <= share <= 1


def _imported(path, name=None, **claims):
    done = import_dem(path, Claims(**claims), _quiet, name=name, overwrite=True)
    return open_tile(done.name), " | ".join(done.lines)


def _fails(capsys, argv, *words):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in argv])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def _agrees(tile, latitude, longitude, tolerance_m):
    found = sample_height_m(tile, latitude, longitude)
    assert found == pytest.approx(relief_m(latitude, longitude), abs=tolerance_m)


def test_lola_label_radius_becomes_height_and_its_rounded_scale_is_mended(tmp_path):
    tile, said = _imported(write_ldem(tmp_path))
    assert "radius in m less 1737.4 km: height = 0.5 * DN + 0 m" in said
    assert "MAP_SCALE is rounded" in said
    assert tile.posting_m == pytest.approx(DEGREE_M / 2, rel=1e-12)
    assert tile.grid.periodic
    latitude, longitude = np.array([0.0, 45.3, 60.5, -70.2]), np.array([10.0, 300.1, -4.6, 179.9])
    # half a metre of DN, and the spline's error h^4/384 |f''''| summed over both axes
    _agrees(tile, latitude, longitude, 0.4)
    with rasterio.open(tile.path) as raster:
        assert raster.dtypes == ("int16",)
        assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert raster.overviews(1)


def test_a_pds_image_is_opened_by_its_label_and_not_without(tmp_path, capsys):
    label = write_ldem(tmp_path)
    by_label, _ = _imported(label)
    by_image, _ = _imported(label.with_suffix(".IMG"), name="image")
    at = np.array([12.3]), np.array([45.6])
    assert sample_height_m(by_label, *at) == sample_height_m(by_image, *at)
    label.unlink()
    image = tmp_path / "LDEM_2.IMG"
    _fails(capsys, ["dem", "import", image, "--name", "b"], "without its label", "LDEM_2.LBL")
    label = write_ldem(tmp_path / "b")
    label.with_suffix(".IMG").unlink()
    _fails(capsys, ["dem", "import", label, "--name", "c"], "the image that it names is missing")


def test_polar_float_kilometres_over_the_pole(tmp_path):
    tile, said = _imported(write_polar_float(tmp_path))
    assert "radius in km less 1737.4 km: height = 1000 * DN + 0 m" in said
    latitude = np.array([90.0, 89.99, 85.0, 82.0, 88.0])
    longitude = np.array([0.0, 170.0, -90.0, 33.0, 200.0])
    _agrees(tile, latitude, longitude, 0.05)  # 1 cm of LERC, float32 km, spline
    west, south, east, north = tile.grid.bounds_deg
    assert (west, east, north) == (-180.0, 180.0, 90.0)
    assert south == pytest.approx(90 - 2 * np.rad2deg(np.arctan(300e3 * 2**0.5 / 2 / RADIUS_M)))


def test_jpeg2000_needs_a_scale_and_takes_it_from_the_label(tmp_path, capsys):
    height = cylinder(200, 300)
    path = tmp_path / "SLDEM2015_T.JP2"
    stored = np.rint(2 * height).astype(np.int16)
    write_tiff(path, stored, driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES")
    _fails(capsys, ["dem", "import", path], "JPEG 2000 holds no scale", "--scale")
    _agrees(_imported(path, scale=0.5)[0], np.array([58.0]), np.array([1.0]), 0.3)
    text = "OBJECT = IMAGE\n SCALING_FACTOR = 0.5\n OFFSET = 1737400.\n UNIT = METER\nEND_OBJECT\n"
    (tmp_path / "SLDEM2015_T_JP2.LBL").write_text("PDS_VERSION_ID = PDS3\n" + text + "END\n")
    tile, said = _imported(path)
    assert "radius in m" in said
    _agrees(tile, np.array([58.0]), np.array([1.0]), 0.3)


@pytest.mark.parametrize(
    ("scale", "more", "claims", "said"),
    [
        (1.0, {}, {}, "heights in m"),
        (1e-3, {"units": "km"}, {}, "heights in km"),
        (1e-3, {}, {"units": "km"}, "heights in km"),
        (1.0, {"shift": RADIUS_M}, {}, "radius in m"),
        (1e-3, {"shift": RADIUS_M}, {"radius": True, "units": "km"}, "radius in km"),
        (1.0, {"shift": -600.0}, {"datum_radius_m": 1738e3}, "above 1738 km"),
    ],
)
def test_floats_become_heights_whatever_their_units_and_datum(tmp_path, scale, more, claims, said):
    shift = more.pop("shift", 0.0)
    values = ((cylinder(200, 200) + shift) * scale).astype(np.float64)
    tile, lines = _imported(write_tiff(tmp_path / "a.tif", values, **more), **claims)
    assert said in lines
    _agrees(tile, np.array([57.0, 55.5]), np.array([-1.0, 2.2]), 0.012)
    assert (tile.scale, tile.offset) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.linspace(-2.6, 1.4, 6400), ["heights in km, or a plain in m", "--units"]),
        (np.linspace(1735.0, 1739.0, 6400), ["a radius in km, or heights in m", "--radius"]),
        (np.linspace(-30e3, 0.0, 6400), ["spans -30000 to 0 m", "--nodata"]),
        (np.linspace(3396e3, 3397e3, 6400), ["1737.4 km sphere", "--datum-radius"]),
        (np.full(6400, np.nan), ["no post has a height"]),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path, own_tiles, capsys, values, words):
    path = write_tiff(tmp_path / "odd.tif", values.reshape(80, 80).astype(np.float64))
    _fails(capsys, ["dem", "import", path], "odd.tif", *words)
    assert not list(own_tiles.glob("*.tif")) + list(own_tiles.glob("*.yaml"))


@given(
    low=st.floats(-9e3, 10e3),
    relief=st.floats(100.0, 500.0),
    unit=st.sampled_from(["m", "km"]),
    radius=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_declared_units_and_datum_always_give_the_height_back(low, relief, unit, radius):
    factor = {"m": 1.0, "km": 1e-3}[unit]
    shift = RADIUS_M if radius else 0.0
    found = Survey(low=(low + shift) * factor, high=(low + relief + shift) * factor)
    reading = read_as_heights(
        found,
        Path("x"),
        scale=1.0,
        offset=0.0,
        units=unit,
        radius=radius,
        datum_radius_m=RADIUS_M,
    )
    assert reading.scale * found.low + reading.offset == pytest.approx(low, abs=1e-6)


@pytest.mark.parametrize(
    ("crs", "words"),
    [
        ("EPSG:4326", ["6378.1 km", "expected the Moon's"]),
        ("+proj=eqc +R=3396190 +units=m +no_defs", ["3396.2 km", "expected the Moon's"]),
        (None, ["no CRS", "--crs IAU_2015:30100"]),
    ],
)
def test_other_bodies_and_no_crs_are_refused(tmp_path, capsys, crs, words):
    path = write_tiff(tmp_path / "w.tif", cylinder(80, 80).astype(np.float32), crs=crs)
    _fails(capsys, ["dem", "import", path], *words)
    if crs is None:
        tile, _ = _imported(path, crs="IAU_2015:30100")
        assert tile.crs.is_geographic
        again = ["dem", "import", path, "--overwrite", "--crs"]
        _fails(capsys, [*again, "EPSG:4326"], "6378.1 km")
        _fails(capsys, [*again, "nonsense"], "not a CRS that GDAL knows")


@pytest.mark.parametrize(
    ("dtype", "value", "declared", "said"),
    [
        (np.int16, -32768, -32768, "holes: 6 of 40000"),
        (np.int16, -32768, None, "6 posts hold -32768, no height on the Moon"),
        (np.float32, np.nan, None, "holes: 6 of 40000"),
        (np.float32, -3.4028227e38, None, "6 posts are beyond 1e30"),
        (np.float32, -9999.0, None, "6 posts hold -9999, no height on the Moon"),
        (np.float32, -9999.0, -9999.0, "holes: 6 of 40000"),
    ],
)
def test_holes_are_found_reported_and_stay_holes(tmp_path, dtype, value, declared, said):
    values = np.rint(cylinder(200, 200)).astype(dtype)
    values[100:102, 50:53] = value
    tile, lines = _imported(write_tiff(tmp_path / "h.tif", values, nodata=declared))
    assert said in lines
    assert "(0.015 %), rows 100 to 101, columns 50 to 52; latitude 56.9000 to 57.0000" in lines
    assert "longitude -2.5000 to -2.3500 deg" in lines
    with rasterio.open(tile.path) as raster:
        mask = raster.dataset_mask()
        assert (mask[100:102, 50:53] == 0).all()
        assert np.count_nonzero(mask == 0) == 6
        back = raster.read(1, masked=True)
        assert np.abs(back - np.rint(cylinder(200, 200))).max() <= 0.0101
    entry = load_manifest().tiles["h"]
    assert entry.hole_share == pytest.approx(6 / 40000)
    there = cylinder(200, 200)[np.asarray(mask) > 0]
    assert entry.height_range_m == pytest.approx((there.min(), there.max()), abs=0.51)
    with pytest.raises(TileError, match=r"1 of 2 points.* missing or NaN posts"):
        sample_height_m(tile, np.array([56.95, 60.0]), np.array([-2.42, 0.0]))


def test_a_value_that_a_height_can_have_is_kept_unless_it_is_said_to_be_missing(tmp_path):
    values = np.rint(cylinder(200, 200)).astype(np.int16)
    values[10, 10] = 0
    path = write_tiff(tmp_path / "z.tif", values, scale=0.5)
    tile, said = _imported(path)
    assert "holes: none" in said
    with rasterio.open(tile.path) as raster:
        assert (raster.read(1) == values).all()
    _, said = _imported(path, nodata=0.0)
    zeros = int(np.count_nonzero(values == 0))
    assert f"holes: {zeros} of 40000" in said


def test_integers_keep_their_numbers_and_zero_precision_keeps_every_float(tmp_path):
    values = np.rint(2 * cylinder(1100, 700)).astype(np.int16)  # more than one block
    tile, _ = _imported(write_tiff(tmp_path / "i.tif", values, scale=0.5, offset=3.0))
    with rasterio.open(tile.path) as raster:
        assert (raster.read(1) == values).all()
    assert (tile.scale, tile.offset) == (0.5, 3.0)
    floats = cylinder(300, 300).astype(np.float32)
    tile, _ = _imported(write_tiff(tmp_path / "f.tif", floats), precision_m=0.0)
    with rasterio.open(tile.path) as raster:
        assert (raster.read(1) == floats).all()


def test_point_and_area_rasters_of_the_same_posts_agree(tmp_path):
    values = cylinder(200, 200).astype(np.float32)
    area, _ = _imported(write_tiff(tmp_path / "area.tif", values))
    with rasterio.open(
        tmp_path / "point.tif",
        "w",
        driver="GTiff",
        count=1,
        dtype="float32",
        width=200,
        height=200,
        crs="IAU_2015:30100",
        transform=Affine(0.05, 0, -5.0, 0, -0.05, 62.0),
    ) as raster:
        raster.update_tags(AREA_OR_POINT="Point")
        raster.write(values, 1)
    point, _ = _imported(tmp_path / "point.tif")
    at = np.array([57.123, 58.9]), np.array([1.234, -3.3])
    assert sample_height_m(point, *at) == pytest.approx(sample_height_m(area, *at), abs=1e-9)
    _agrees(point, *at, 0.02)


def test_a_raster_without_a_position_is_refused_in_one_line(tmp_path, capsys):
    path = tmp_path / "x.tif"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_tiff(path, cylinder(80, 80).astype(np.float32), transform=None)
    _fails(capsys, ["dem", "import", path], "no geotransform")


def test_names_are_kept_apart(tmp_path, own_tiles, capsys):
    path = write_tiff(tmp_path / "Mare Test.tif", cylinder(80, 80).astype(np.float32))
    main_argv = ["dem", "import", path]
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in main_argv])
    assert stop.value.code in (None, 0)
    assert "mare_test: " in capsys.readouterr().out
    assert set(load_manifest().tiles) == {"lola_ldem16_frigoris", "mare_test"}
    before = (own_tiles / "manifest.yaml").read_text()
    _fails(capsys, main_argv, "already in", "--overwrite")
    _fails(capsys, [*main_argv, "--name", "lola_ldem16_frigoris"], "travels with tnav")
    _fails(capsys, [*main_argv, "--name", "a/b"], "expected letters")
    _fails(capsys, [*main_argv, path, "--name", "x"], "2 sources")
    _fails(capsys, ["dem", "import", tmp_path / "no.tif"], "no such file")
    assert (own_tiles / "manifest.yaml").read_text() == before
    assert yaml.safe_load(before)["tiles"]["mare_test"]["file"] == "mare_test.tif"


def test_damaged_sources_leave_nothing(tmp_path, own_tiles, capsys):
    path = write_tiff(
        tmp_path / "d.tif", cylinder(400, 400).astype(np.float32), compress="deflate", tiled=True
    )
    data = bytearray(path.read_bytes())
    data[2000:-2000] = bytes(len(data) - 4000)
    path.write_bytes(data)
    _fails(capsys, ["dem", "import", path], "damaged")
    (tmp_path / "t.tif").write_text("text")
    _fails(capsys, ["dem", "import", tmp_path / "t.tif"], "not a raster that GDAL can read")
    assert [p.name for p in own_tiles.iterdir() if p.suffix != ".lock"] == []


def test_another_folder_is_used_once_it_is_named(tmp_path, monkeypatch, capsys):
    path = write_tiff(tmp_path / "e.tif", cylinder(80, 80).astype(np.float32))
    import_dem(path, Claims(), _quiet, folder=tmp_path / "elsewhere")
    with pytest.raises(TileError, match="no such DEM"):
        open_tile("e")
    monkeypatch.setenv("TNAV_TILES", str(tmp_path / "elsewhere"))
    assert open_tile("e").name == "e"


def test_rotated_and_south_up_rasters_sample_as_north_up_ones(tmp_path):
    values = cylinder(200, 240).astype(np.float32)
    plain, _ = _imported(write_tiff(tmp_path / "n.tif", values), precision_m=0.0)
    flipped = write_tiff(
        tmp_path / "s.tif", values[::-1].copy(), transform=Affine(0.05, 0, -5, 0, 0.05, 52.0)
    )
    turned = write_tiff(
        tmp_path / "r.tif", values.T.copy(), transform=Affine(0, 0.05, -5, -0.05, 0, 62.0)
    )
    at = np.array([57.123, 58.9, 53.0]), np.array([1.234, -3.3, 6.5])
    for path in (flipped, turned):
        tile, _ = _imported(path, precision_m=0.0)
        assert tile.posting_m == pytest.approx(0.05 * DEGREE_M)
        assert tile.grid.bounds_deg == pytest.approx(plain.grid.bounds_deg)
        assert sample_height_m(tile, *at) == pytest.approx(sample_height_m(plain, *at), abs=1e-6)


def test_projected_polar_tiff_with_a_vrt_over_it(tmp_path):
    step = 3000.0
    transform = Affine(step, 0, -100 * step, 0, -step, 100 * step)
    values = polar(200, step).astype(np.float32)
    path = write_tiff(tmp_path / "p.tif", values, crs=NORTH_POLE, transform=transform)
    rasterio.shutil.copy(path, tmp_path / "p.vrt", driver="VRT")
    tile, _ = _imported(tmp_path / "p.vrt", name="vrt")
    _agrees(tile, np.array([86.0, 89.0]), np.array([77.0, -120.0]), 0.05)


def test_verify_says_what_is_wrong_and_exits_2(tmp_path, own_tiles, capsys):
    path = write_tiff(tmp_path / "v.tif", cylinder(300, 300).astype(np.float32))
    tile, _ = _imported(path)
    main_ok = pytest.raises(SystemExit)
    with main_ok as stop:
        main(["dem", "verify"])
    assert stop.value.code in (None, 0)
    assert "v: ok" in capsys.readouterr().out
    data = bytearray(tile.path.read_bytes())
    data[len(data) // 2] ^= 1
    tile.path.write_bytes(data)
    _fails(capsys, ["dem", "verify"], "v.tif: sha256", "manifest.yaml says")
    tile.path.unlink()
    _fails(capsys, ["dem", "verify", "v"], "missing file of tile 'v'")
    _fails(capsys, ["dem", "verify", "mars"], "no such entry")
    (own_tiles / "manifest.yaml").write_text("tiles: {v: {file: v.tif}}\n")
    with pytest.raises(SystemExit) as stop:
        main(["dem", "info"])
    assert stop.value.code == 2
    assert "manifest.yaml:1: tiles.v.product" in capsys.readouterr().err


def test_info_prints_posting_bounds_heights_and_holes(tmp_path, capsys):
    values = cylinder(200, 200).astype(np.float32)
    values[:20] = np.nan
    path = write_tiff(tmp_path / "k.tif", values)
    for what in (str(path), "k"):
        if what == "k":
            _imported(path)
        with pytest.raises(SystemExit):
            main(["dem", "info", what])
        text = capsys.readouterr().out
        assert "posting 1516 m" in text
        assert "latitude 52 to 62, longitude -5 to 5 deg" in text
        assert "holes 10 %" in text
        low, high = np.nanmin(values), np.nanmax(values)
        assert f"{low:.3f}"[:7] in text
        assert f"{high:.3f}"[:6] in text


@pytest.mark.skipif(not SHARED.exists(), reason="TNAV_REAL_DEMS names no folder")
def test_real_products_agree_with_each_other():
    source = SHARED / "lola_ldem16_35_75N_70W_70E.tif"
    tile, said = _imported(source)
    assert "holes: none" in said
    at = np.array([60.5]), np.array([-4.6])
    shipped = sample_height_m(open_tile("lola_ldem16_frigoris"), *at)
    assert sample_height_m(tile, *at) == pytest.approx(shipped, abs=2.0)
