import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tnav.cli import main
from tnav.images import write_png8, write_png16

ROOT = Path(__file__).resolve().parent.parent


def _fails_in_one_line(capsys, argv, *words):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in argv])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1, error
    assert error.startswith("error: ")
    assert "Traceback" not in error
    for word in words:
        assert word in error, error


def _scenario(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text("name: bad\nepoch_utc: 2025-06-05T19:17:00Z\n" + text)
    return path


SITE = "site:\n  latitude_deg: 60.5\n  longitude_deg: -4.6\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SITE + "  dem: gone.tif\n", ["gone.tif", "no such DEM"]),
        (SITE + "camera:\n  focal_px: -1\n", ["bad.yaml:7", "camera.focal_px", "greater than 0"]),
        (SITE + "camera:\n  focal: 1\n", ["bad.yaml:7", "camera.focal", "'focal_px'"]),
        (SITE + "imaging:\n  first_s: 500\n", ["imaging.first_s: 500", "within the flight"]),
        (SITE + "weather: fine\n", ["bad.yaml:6", "weather: unknown key"]),
        (SITE.replace("60.5", "north"), ["bad.yaml:4", "site.latitude_deg", "'north'"]),
    ],
)
def test_a_bad_recipe_is_one_line_and_writes_nothing(tmp_path, capsys, text, words):
    out = tmp_path / "out"
    _fails_in_one_line(capsys, ["run", _scenario(tmp_path, text), "--out", out], *words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("crs", "value", "words"),
    [
        ("EPSG:4326", 0.0, ["dem.tif", "6378.1 km", "expected the Moon's"]),
        ("IAU_2015:30100", np.nan, ["dem.tif", "missing or NaN posts"]),
    ],
)
def test_a_bad_dem_is_one_line_and_writes_nothing(tmp_path, capsys, crs, value, words):
    import rasterio
    from rasterio.transform import Affine

    heights = np.full((400, 800), value, np.float32)
    profile = {"driver": "GTiff", "dtype": "float32", "count": 1, "height": 400, "width": 800}
    transform = Affine(0.1, 0.0, -40.0, 0.0, -0.1, 80.0)
    with rasterio.open(
        tmp_path / "dem.tif", "w", crs=crs, transform=transform, **profile
    ) as raster:
        raster.write(heights, 1)
    recipe = _scenario(tmp_path, SITE + f"  dem: {tmp_path / 'dem.tif'}\n")
    _fails_in_one_line(capsys, ["run", recipe, "--out", tmp_path / "out"], *words)
    assert not (tmp_path / "out").exists()


def test_bad_images_are_one_line(tmp_path, capsys):
    (tmp_path / "text.png").write_text("not an image")
    _fails_in_one_line(capsys, ["infer", tmp_path / "text.png"], "text.png", "not an image")
    _fails_in_one_line(capsys, ["infer", tmp_path / "none.png"], "none.png", "no such file")
    _fails_in_one_line(capsys, ["infer", tmp_path], "no such file", "image")
    write_png16(tmp_path / "flat.png", torch.full((64, 64), 0.5))
    _fails_in_one_line(capsys, ["infer", tmp_path / "flat.png"], "flat.png", "every pixel is")
    write_png8(tmp_path / "grey.png", np.arange(64, dtype=np.uint8).reshape(8, 8))
    _fails_in_one_line(capsys, ["infer", tmp_path / "grey.png"], "grey.json", "cannot be read")


def test_other_bad_input(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    _fails_in_one_line(capsys, ["run", "nowhere"], "scenario 'nowhere'", "resilience")
    _fails_in_one_line(capsys, ["demo", "--device", "cuda", "--out", tmp_path / "o"], "no CUDA")
    _fails_in_one_line(capsys, ["eval", tmp_path], "run.npz: missing")
    _fails_in_one_line(capsys, ["report", tmp_path], "run.json: missing")
    _fails_in_one_line(
        capsys, ["bench", "speed"], "bench 'speed'", "demo, render, match, covariance"
    )
    _fails_in_one_line(capsys, ["dem", "info", "mars"], "mars: no such DEM")
    render = ["render", "resilience", "--at", "1e6", "--out", tmp_path / "r"]
    _fails_in_one_line(capsys, render, "outside the flight")
    assert not (tmp_path / "r").exists()
    assert not (tmp_path / "o").exists()


def test_an_output_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    argv = ["render", "resilience", "--at", "90", "--out", tmp_path / "file" / "out"]
    _fails_in_one_line(capsys, argv, "file/out", "Not a directory")


def test_dem_commands(capsys):
    _ok(["dem", "verify"])
    assert "lola_ldem16_frigoris: ok" in capsys.readouterr().out
    _ok(["dem", "info"])
    out = capsys.readouterr().out
    assert "posting 1895 m" in out
    assert "LDEM_16" in out


def test_render_command_writes_pictures_and_truth(tmp_path):
    import json

    recipe = _scenario(tmp_path, SITE + "  cells: 128\ncamera: {width_px: 160, height_px: 128}\n")
    _ok(["render", str(recipe), "--at", "20", "--at", "80", "--out", str(tmp_path / "r")])
    lines = (tmp_path / "r/frames.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [0, 1]
    with np.load(tmp_path / "r/shard-00000/truth/000001.npz") as truth:
        assert truth["range_m"].shape == (128, 160)
        assert truth["hit"].all()
    assert "SYNTHETIC" in json.loads((tmp_path / "r/dataset.json").read_text())["relief"]
    assert not list((tmp_path / "r").glob("*.part"))


def test_help_is_light():
    """No torch, no warp, no OpenCV before a command needs them."""
    code = (
        "import sys, tnav.cli\n"
        "try:\n    tnav.cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'warp', 'cv2', 'rasterio', 'scipy', 'plotly'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_infer_script_is_the_command(tmp_path):
    argv = [sys.executable, "infer.py", str(tmp_path / "none.png")]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "no such file" in done.stderr


def _ok(argv):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert not stop.value.code
