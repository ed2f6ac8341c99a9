"""Datasets stopped, resumed, shared out and tampered with: the same bytes every time."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_scenes import PLAIN, fails, lines_of, tree, written

from tnav.errors import ConfigError
from tnav.evaluate.dataset import load_render_recipe
from tnav.evaluate.dataset_folder import Shard, encode_npz, locked, opened, sealed
from tnav.evaluate.dataset_writer import Part, verify_dataset, write_dataset

CPU = torch.device("cpu")

ROOT = Path(__file__).resolve().parents[2]


def copied(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole[1], tmp_path / "out"))


def test_a_second_run_has_nothing_to_do(whole):
    recipe, out = whole
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    done = write_dataset(recipe, out, CPU)
    assert (done.frames, done.rendered) == (10, 0)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert verify_dataset(recipe, out) == 10


def test_killed_half_way_and_resumed_gives_the_same_bytes(whole, tmp_path):
    out = tmp_path / "out"
    path = written(tmp_path, PLAIN)
    command = [sys.executable, "-m", "tnav.cli", "render", str(path), "--out", str(out)]
    command = [sys.executable, "-c", "from tnav.cli import main; main()", *command[3:]]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while len(list(out.glob("shard-*/images/*.png"))) < 2 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    left = tree(out)
    assert "dataset.json" not in left
    assert 2 <= len([name for name in left if name.endswith(".png")]) < 10
    done = write_dataset(load_render_recipe(str(path)), out, CPU)
    assert 0 < done.rendered <= 10
    assert tree(out) == tree(whole[1])


def test_any_torn_state_is_mended(whole, tmp_path):
    """What a kill can leave behind at its worst moments, made by hand."""
    recipe, reference = whole
    out = copied(whole, tmp_path)
    for name in ("dataset.json", "README.md"):
        (out / name).unlink()
    (out / "recipe.yaml.4711.part").write_text("name: pl")
    (out / "frames.jsonl.part").write_text("{")
    # A shard that was closed and whose records were not yet removed; one file torn aside.
    records = out / "shard-00000/records"
    records.mkdir()
    first = (out / "shard-00000/frames.jsonl").read_text().splitlines(keepends=True)[0]
    (records / "000000.json").write_text(first)
    (records / "000001.json.part").write_text(first[:50])
    # A shard that was not closed: one record whole, one cut, one frame without a record.
    shard = out / "shard-00001"
    lines = (shard / "frames.jsonl").read_text().splitlines(keepends=True)
    (shard / "frames.jsonl").unlink()
    (shard / "records").mkdir()
    (shard / "records/000004.json").write_text(lines[0])
    (shard / "records/000005.json").write_text(lines[1][:-40])
    (shard / "images/000006.png.part").write_bytes(b"\x89PNG")
    done = write_dataset(recipe, out, CPU)
    assert done.rendered == 3
    assert tree(out) == tree(reference)


@pytest.mark.parametrize(
    ("name", "rendered"),
    [
        ("shard-00001/images/000005.png", 1),
        ("shard-00002/truth/000009.npz", 1),
        ("shard-00000/frames.jsonl", 1),
        ("frames.jsonl", 0),
        ("colmap/images.txt", 0),
        ("README.md", 0),
        ("preview.jpg", 0),
    ],
)
def test_tampering_is_found_and_mended(whole, tmp_path, capsys, name, rendered):
    recipe, reference = whole
    out = copied(whole, tmp_path)
    path, yaml_path = out / name, written(tmp_path, PLAIN)
    data = bytearray(path.read_bytes())
    data[len(data) // 8] ^= 1
    path.write_bytes(data)
    fails(capsys, ["render", yaml_path, "--out", out, "--verify"], "1 damaged", name, "(changed)")
    assert write_dataset(recipe, out, CPU).rendered == rendered
    assert tree(out) == tree(reference)
    assert verify_dataset(recipe, out) == 10


def test_missing_files_are_named(whole, tmp_path, capsys):
    out = copied(whole, tmp_path)
    lost = ["shard-00000/images/000001.png", "shard-00000/truth/000001.npz"]
    for name in lost:
        (out / name).unlink()
    argv = ["render", written(tmp_path, PLAIN), "--out", out, "--verify"]
    fails(capsys, argv, "2 damaged", *(f"{name} (missing)" for name in lost), "render again")
    (out / "dataset.json").unlink()
    fails(capsys, argv, "dataset.json: missing; expected a finished dataset")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"samples": 4}, ["samples was 1, is now 4"]),
        ({"camera": {"width_px": 128, "height_px": 144, "fov_deg": 41}}, ["camera.fov_deg was 40"]),
        ({"seeds": {"noise": 9}}, ["seeds.noise was 4, is now 9"]),
        ({"light": {"earthshine": True}}, ["light.earthshine was false, is now true"]),
    ],
)
def test_another_recipe_is_refused_by_its_keys(whole, tmp_path, capsys, changes, words):
    before = tree(whole[1])
    path = written(tmp_path, {**PLAIN, **changes})
    fails(capsys, ["render", path, "--out", whole[1]], "holds another dataset", *words)
    assert tree(whole[1]) == before


def test_other_inputs_are_refused(whole, tmp_path):
    recipe, _ = whole
    out = copied(whole, tmp_path)
    inputs = json.loads((out / "inputs.json").read_text())
    for key, value in (("dem_fingerprint", "0" * 64), ("tnav", "0.0.1"), ("device", "cuda")):
        (out / "inputs.json").write_text(json.dumps({**inputs, key: value}))
        with pytest.raises(ConfigError, match=f"holds another dataset: {key} was"):
            write_dataset(recipe, out, CPU)


def test_folders_that_are_none_of_ours(whole, tmp_path, capsys):
    path = written(tmp_path, PLAIN)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    fails(capsys, ["render", path, "--out", tmp_path / "mine"], "not empty (thesis.tex)")
    (tmp_path / "file").write_text("in the way")
    fails(capsys, ["render", path, "--out", tmp_path / "file/out"], "file/out", "Not a directory")
    fails(capsys, ["render", path, "--out", tmp_path / "file"], "Not a directory")
    fails(capsys, ["render", path, "--out", tmp_path / "none", "--verify"], "dataset.json: missing")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "mine", "recipe.yaml"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(whole, tmp_path, capsys):
    (tmp_path / "closed").mkdir(mode=0o500)
    argv = ["render", written(tmp_path, PLAIN), "--out", tmp_path / "closed/out"]
    fails(capsys, argv, "Permission denied")


def test_permission_is_asked_for_before_any_work(whole, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ConfigError, match=r"out: cannot be written \(Permission denied"):
        write_dataset(whole[0], tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()


def test_bad_input_writes_nothing(tmp_path, capsys, dataset_cache):
    out = tmp_path / "out"
    far = {**PLAIN, "poses": {**PLAIN["poses"], "east_m": [9e5, 9e5]}}
    for recipe, words in (
        ({**PLAIN, "smaples": 4}, ["recipe.yaml:", "smaples", "'samples'"]),
        (far, ["number 0 of 5 is not over the modelled ground"]),
        ({**PLAIN, "site": {**PLAIN["site"], "dem": "gone.tif"}}, ["gone.tif", "no such DEM"]),
        (
            {**PLAIN, "albedo": {"kind": "raster", "path": "gone.tif", "post_m": 50}},
            ["gone.tif", "cannot be read"],
        ),
    ):
        fails(capsys, ["render", written(tmp_path, recipe), "--out", out], *words)
    path = written(tmp_path, PLAIN)
    fails(capsys, ["render", path, "--out", out, "--shard", "3/2"], "--shard 3/2: expected K/N")
    fails(capsys, ["render", path, "--out", out, "--shard", "1/2", "--limit", 1], "expected one of")
    fails(capsys, ["render", path, "--out", out, "--at", "-1"], "--at -1.0")
    assert not out.exists()


def test_shards_of_two_processes_and_a_merge(whole, tmp_path):
    recipe, reference = whole
    out = tmp_path / "out"
    second = write_dataset(recipe, out, CPU, part=Part.parse("2/2"))
    assert (second.frames, second.rendered, second.finished) == (4, 4, False)
    assert not (out / "dataset.json").exists()
    assert write_dataset(recipe, out, CPU, part=Part(1, 2)).rendered == 6
    assert write_dataset(recipe, out, CPU).rendered == 0
    assert tree(out) == tree(reference)


def test_a_shard_under_way_is_left_alone(whole, tmp_path):
    recipe, _ = whole
    out = tmp_path / "out"
    shard = Shard(out, 0, range(4), ".png")
    shard.prepare()
    shutil.copy(whole[1] / "recipe.yaml", out)
    shutil.copy(whole[1] / "inputs.json", out)
    message = r"shard-00000: another process is at work on it"
    with locked(shard.folder), pytest.raises(ConfigError, match=message):
        write_dataset(recipe, out, CPU)
    assert write_dataset(recipe, out, CPU, limit=1).rendered == 1


def test_a_first_look_grows_into_the_whole(whole, tmp_path):
    recipe, reference = whole
    out = tmp_path / "out"
    look = write_dataset(recipe, out, CPU, limit=3)
    assert (look.frames, look.rendered, look.planned, look.finished) == (3, 3, 10, True)
    assert len(lines_of(out)) == 3
    assert (out / "preview.jpg").is_file()
    assert "a first look: 10 are planned" in (out / "README.md").read_text()
    assert verify_dataset(recipe, out) == 3
    assert write_dataset(recipe, out, CPU, limit=2).rendered == 0
    assert write_dataset(recipe, out, CPU).rendered == 7
    assert tree(out) == tree(reference)


def test_records_are_sealed():
    record = sealed({"id": 3, "agl_m": float("nan"), "name": "a"})
    assert record["agl_m"] is None
    line = json.dumps(record)
    assert opened(line) == record
    assert opened(line.replace('"a"', '"b"')) is None
    assert opened(line[:-3]) is None
    assert opened("3") is None


def test_archives_of_equal_arrays_are_equal_bytes(tmp_path):
    arrays = {"a": np.arange(12.0).reshape(3, 4), "b": np.array([True, False])}
    for compression in ("deflate", "none"):
        data = encode_npz(arrays, compression)
        time.sleep(0.01)
        assert encode_npz({k: v.copy(order="F") for k, v in arrays.items()}, compression) == data
        (tmp_path / "x.npz").write_bytes(data)
        with np.load(tmp_path / "x.npz", allow_pickle=False) as back:
            for name, array in arrays.items():
                np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "a/b", "1/2/3", "-1/2"])
def test_parts_that_are_none(text):
    with pytest.raises(ConfigError, match="expected K/N"):
        Part.parse(text)
