"""Small datasets for tests: one site, built once and kept in a cache of the test run."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from tnav.cli import main
from tnav.evaluate.dataset import RenderRecipe, load_render_recipe

SITE = {
    "latitude_deg": 60.5,
    "longitude_deg": -4.6,
    "cells": 128,
    "levels": 6,
    "finest_post_m": 8.0,
}
PLAIN = {
    "name": "plain",
    "site": SITE,
    "camera": {"width_px": 128, "height_px": 144, "fov_deg": 40.0},
    "poses": {
        "kind": "random",
        "count": 5,
        "agl_m": [600.0, 9000.0],
        "east_m": [-1500.0, 1500.0],
        "north_m": [-1500.0, 1500.0],
        "tilt_deg": [0.0, 35.0],
        "roll_deg": [-30.0, 30.0],
    },
    "sun": {"kind": "random", "elevation_deg": [8.0, 60.0]},
    "suns_per_pose": 2,
    "samples": 1,
    "colmap_points": 50,
    "frames_per_shard": 4,
}
# All that a recipe can ask for at once, on a flight.
RICH = {
    **PLAIN,
    "name": "rich",
    "camera": {
        "width_px": 128,
        "height_px": 128,
        "fov_deg": 50.0,
        "distortion": {"kind": "brown_conrady", "k1": -0.2, "k2": 0.05, "p1": 1e-3, "k4": 0.01},
    },
    "poses": {
        "kind": "flight",
        "times_s": [20.0, 50.0, 90.0, 97.0],
        "descent": {"end_height_m": 20.0},
    },
    "sun": {"kind": "angles", "azimuth_deg": [100.0, 250.0, 30.0], "elevation_deg": [20.0]},
    "light": {"sun_samples": 4, "earthshine": True},
    "reflectance": {"kind": "hapke"},
    "albedo": {"kind": "field", "contrast": 0.1},
    "motion": {"readout_s": 0.01, "samples": 2},
    "dust": {"onset_m": 60.0},
    "detector": {"exposure_s": 1e-3, "prnu": 0.02, "dsnu_e": 4.0, "blooming": 0.5},
    "samples": 4,
    "image_format": "tiff",
    "truth": {"precision": "float32", "compression": "none"},
}


def written(folder: Path, recipe: dict, name: str = "recipe.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def loaded(folder: Path, recipe: dict) -> RenderRecipe:
    return load_render_recipe(str(written(folder, recipe)))


def tree(folder: Path) -> dict[str, str]:
    """Hash of every file of a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def lines_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "frames.jsonl").read_text().splitlines()]


def fails(capsys, argv, *words) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in argv])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1, error
    assert error.startswith("error: ")
    for word in words:
        assert word in error, error
