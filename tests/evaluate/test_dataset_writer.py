"""What a dataset holds: files, lines, arrays; every frame alone and in company."""

import json

import numpy as np
import pytest
import torch
import yaml
from dataset_scenes import PLAIN, fails, lines_of, loaded, tree, written

from tnav.cli import main
from tnav.errors import ConfigError
from tnav.evaluate.dataset import load_render_recipe
from tnav.evaluate.dataset_frames import Studio, earthshine
from tnav.evaluate.dataset_ground import Ground
from tnav.evaluate.dataset_plan import plan_of
from tnav.evaluate.dataset_writer import write_dataset
from tnav.geometry.moon import LocalFrame
from tnav.geometry.pose import matrix_from_quaternion
from tnav.geometry.sun import direction_L
from tnav.images import read_image

CPU = torch.device("cpu")


def test_the_folder(whole):
    _, out = whole
    files = tree(out)
    names = set(files)
    assert {f"shard-0000{k // 4}/images/{k:06d}.png" for k in range(10)} <= names
    assert {f"shard-0000{k // 4}/truth/{k:06d}.npz" for k in range(10)} <= names
    rest = {name for name in names if not name.endswith((".png", ".npz"))}
    assert rest == {
        *(f"shard-0000{k}/frames.jsonl" for k in range(3)), "frames.jsonl", "dataset.json",
        "inputs.json", "recipe.yaml", "README.md", "preview.jpg", "colmap/cameras.txt",
        "colmap/images.txt", "colmap/points3D.txt",
    }  # fmt: skip
    together = "".join((out / f"shard-0000{k}/frames.jsonl").read_text() for k in range(3))
    assert together == (out / "frames.jsonl").read_text()
    dataset = json.loads((out / "dataset.json").read_text())
    assert (dataset["frames"], dataset["planned"], dataset["schema"]) == (10, 10, 1)
    assert dataset["dem"] == "lola_ldem16_frigoris"
    assert all(files[name] == digest for name, digest in dataset["files"].items())
    for k, line in enumerate(lines_of(out)):
        assert line["id"] == k
        assert files[line["image"]] == line["image_sha256"]
        assert files[line["truth"]] == line["truth_sha256"]


def test_a_line_and_its_arrays_agree(whole):
    """An independent reading: every array from pose, camera and Sun of the line."""
    _, out = whole
    for line in lines_of(out)[::3]:
        with np.load(out / line["truth"]) as data:
            truth = {name: data[name] for name in data.files}
        q, camera = torch.tensor(line["q_L_C_wxyz"], dtype=torch.float64), line["camera"]
        R = matrix_from_quaternion(q).numpy()
        v, u = np.mgrid[0 : camera["height_px"], 0 : camera["width_px"]] + 0.5
        ray = np.stack(
            [
                (u - camera["cx_px"]) / camera["focal_px"],
                (v - camera["cy_px"]) / camera["focal_px"],
                np.ones_like(u),
            ],
            -1,
        )
        ray_L = ray / np.linalg.norm(ray, axis=-1, keepdims=True) @ R.T
        hit = truth["hit"]
        assert hit.mean() == line["hit_share"] == 1
        xyz_L = np.array(line["position_L"]) + truth["range_m"][..., None] * ray_L
        np.testing.assert_allclose(xyz_L, truth["xyz_L"], atol=1e-6)
        sun_L, normal_L = np.array(line["sun_L"]), truth["normal_L"].astype(float)
        np.testing.assert_allclose(np.linalg.norm(normal_L, axis=-1), 1, atol=1e-6)
        for name, cosine in (
            ("incidence_rad", normal_L @ sun_L),
            ("emission_rad", -(normal_L * ray_L).sum(-1)),
            ("phase_rad", -(ray_L @ sun_L)),
        ):
            np.testing.assert_allclose(np.cos(truth[name]), cosine, atol=1e-6)
        assert np.array_equal(truth["lit"], truth["sun_fraction"] >= 0.5)
        assert truth["lit"].mean() == line["lit_share"]
        dark = truth["incidence_rad"] > np.pi / 2 + 1e-3
        assert not truth["lit"][dark].any()
        assert set(np.unique(truth["level"])) <= set(range(6))
        middle = truth["range_m"][camera["height_px"] // 2, camera["width_px"] // 2]
        assert line["gsd_centre_m"] == pytest.approx(middle / camera["focal_px"])
        elevation = np.degrees(np.arcsin(sun_L[2]))
        assert elevation == pytest.approx(line["sun_elevation_deg"])
        image = read_image(out / line["image"])[0, 0]
        levels = image.double() * 4095  # the detector has 12 bits, the file 16
        assert float((levels - levels.round()).abs().max()) < 0.04
        assert line["exposure"]["saturated"] == pytest.approx(0, abs=0.01)
        lit = image.numpy()[truth["lit"]]
        assert lit.mean() > 3 * image.numpy()[dark].mean() if dark.any() else lit.mean() > 0.1


def test_pairs_share_a_pose_and_not_their_light(whole):
    lines = lines_of(whole[1])
    for a, b in zip(lines[::2], lines[1::2], strict=True):
        assert a["pose_id"] == b["pose_id"]
        assert a["position_L"] == b["position_L"]
        assert a["sun_L"] != b["sun_L"]
        assert a["seeds"]["noise"] != b["seeds"]["noise"]
        assert a["image_sha256"] != b["image_sha256"]
    assert len({line["seeds"]["noise"] for line in lines}) == 10


@pytest.mark.parametrize("which", ["whole", "rich"])
def test_a_frame_is_the_same_alone_and_in_any_company(which, request):
    recipe, out = request.getfixturevalue(which)
    ground = Ground(recipe, CPU)
    studio = Studio(recipe, plan_of(recipe, ground), ground)
    lines = lines_of(out)
    for numbers in ([3], [len(lines) - 1, 0, 1, 5]):
        for frame in studio.frames(numbers):
            line = lines[frame.number]
            stored = read_image(out / line["image"])[0, 0]
            assert torch.equal((frame.image * 65535).round(), (stored * 65535).round())
            with np.load(out / line["truth"]) as truth:
                assert set(truth.files) == set(frame.truth)
                for name, array in frame.truth.items():
                    assert array.dtype == truth[name].dtype
                    np.testing.assert_array_equal(array, truth[name])


def test_an_accelerator_renders_the_same_frames(whole, rich, simgpu):
    for recipe, out in (whole, rich):
        ground = Ground(recipe, torch.device(simgpu))
        studio = Studio(recipe, plan_of(recipe, ground), ground)
        (frame,) = studio.frames([5])
        line = lines_of(out)[5]
        with np.load(out / line["truth"]) as truth:
            for name, array in frame.truth.items():
                np.testing.assert_allclose(array, truth[name], rtol=1e-6, atol=1e-6)
        difference = (frame.image - read_image(out / line["image"])[0, 0]).abs()
        assert float((difference > 2 / 4095).double().mean()) < 1e-3


def test_all_that_a_recipe_can_ask_for(rich):
    _, out = rich
    lines = lines_of(out)
    assert len(lines) == 8
    assert [line["t_s"] for line in lines[::2]] == pytest.approx([20, 50, 90, 97], abs=0.03)
    first, last = lines[0], lines[-1]
    assert first["camera"]["distortion"]["k1"] == -0.2
    assert first["motion"]["velocity_L_m_s"][2] < -40
    assert first["motion"]["exposure_s"] == 1e-3
    assert first["exposure"]["exposure_s"] == np.float32(1e-3)
    assert first["motion"]["readout_s"] == 0.01
    assert first["reflectance"] == "hapke"
    assert 0 < first["earth_irradiance_ratio"] < 1e-4
    assert first["image"].endswith(".tiff")
    with np.load(out / last["truth"]) as truth:
        assert truth["range_m"].dtype == np.float32
        assert truth["hit"].all()
        penumbra = truth["sun_fraction"]
        assert set(np.unique(penumbra * 4)) <= {0, 1, 2, 3, 4}
    assert read_image(out / last["image"]).shape == (1, 1, 128, 128)
    # A rolling shutter has no COLMAP model: poses without points.
    assert (out / "colmap/points3D.txt").read_text() == ""
    assert "shutter rolls" in (out / "README.md").read_text()


def test_the_readme_s_program_runs(whole, monkeypatch, capsys):
    _, out = whole
    text = (out / "README.md").read_text()
    program = text.split("```python\n")[1].split("```")[0]
    assert len(program.splitlines()) <= 10
    monkeypatch.chdir(out)
    found: dict = {}
    exec(compile(program, "README.md", "exec"), found)
    assert found["image"].shape == (144, 128)
    assert found["truth"]["xyz_L"].shape == (144, 128, 3)
    assert "(144, 128)" in capsys.readouterr().out


def test_the_kept_recipe_makes_the_same_dataset(whole, tmp_path):
    recipe, out = whole
    again = load_render_recipe(str(out / "recipe.yaml"))
    assert again == recipe
    assert write_dataset(again, tmp_path / "again", CPU).rendered == 10
    assert tree(tmp_path / "again") == tree(out)


def test_poses_of_a_file_travel_with_the_dataset(whole, tmp_path):
    lines = lines_of(whole[1])[:4:2]
    rows = [",".join(map(repr, line["position_L"] + line["q_L_C_wxyz"])) for line in lines]
    (tmp_path / "p.csv").write_text("\n".join(["x_m,y_m,z_m,qw,qx,qy,qz", *rows]) + "\n")
    recipe = loaded(tmp_path, {**PLAIN, "poses": {"kind": "file", "path": "p.csv"}})
    write_dataset(recipe, tmp_path / "out", CPU)
    for ours, theirs in zip(lines_of(tmp_path / "out")[::2], lines, strict=True):
        assert ours["position_L"] == theirs["position_L"]
        assert ours["q_L_C_wxyz"] == pytest.approx(theirs["q_L_C_wxyz"], abs=1e-15)
    text = (tmp_path / "out/recipe.yaml").read_text()
    assert yaml.safe_load(text)["poses"]["path"] == "poses.csv"
    kept = load_render_recipe(str(tmp_path / "out/recipe.yaml"))
    (tmp_path / "p.csv").write_text("x_m,y_m,z_m,qw,qx,qy,qz\n" + rows[0] + "\n")
    assert write_dataset(kept, tmp_path / "again", CPU).rendered == 4
    assert tree(tmp_path / "again") == tree(tmp_path / "out")
    with pytest.raises(ConfigError, match="poses_sha256 was"):
        write_dataset(recipe, tmp_path / "out", CPU)


def test_views_of_a_scenario(dataset_cache, tmp_path, capsys):
    scenario = {
        "name": "s",
        "epoch_utc": "2025-06-05T19:17:00Z",
        "site": PLAIN["site"],
        "camera": {"width_px": 160, "height_px": 128},
    }
    path = written(tmp_path, scenario, "scenario.yaml")
    argv = ["render", str(path), "--at", "20", "--at", "80", "--out", str(tmp_path / "r")]
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert not stop.value.code
    assert "2 of 2 frames, 2 rendered now" in capsys.readouterr().out
    lines = lines_of(tmp_path / "r")
    assert [line["t_s"] for line in lines] == pytest.approx([20, 80])
    assert lines[0]["epoch_utc"] == "2025-06-05T19:17:00+00:00"
    with np.load(tmp_path / "r" / lines[1]["truth"]) as truth:
        assert truth["range_m"].shape == (128, 160)
        assert truth["hit"].all()
    fails(capsys, [*argv[:2], "--at", "1e6", "--out", tmp_path / "x"], "outside the flight")
    assert not (tmp_path / "x").exists()


def test_views_along_a_corridor(dataset_cache, tmp_path):
    corridor = {
        "latitude_deg": 60.5,
        "longitude_deg": -4.6,
        "finest_post_m": 16.0,
        "levels": 5,
        "posts": 320,
        "tile_posts": 80,
        "cache": str(dataset_cache),
    }
    rest = {k: v for k, v in PLAIN.items() if k != "site"}
    poses = {"kind": "grid", "east_m": [-20000.0, 20000.0], "agl_m": [3000.0, 9000.0]}
    recipe = loaded(tmp_path, {**rest, "corridor": corridor, "poses": poses, "suns_per_pose": 1})
    out = tmp_path / "out"
    assert write_dataset(recipe, out, CPU).frames == 4
    lines = lines_of(out)
    assert [line["hit_share"] for line in lines] == [1.0] * 4
    assert [line["agl_m"] for line in lines] == pytest.approx([3000, 9000, 3000, 9000], abs=20)
    assert lines[0]["finest_post_m"] < lines[1]["finest_post_m"]
    with np.load(out / lines[1]["truth"]) as truth:
        posts_m = np.array(lines[1]["level_posts_m"])[truth["level"]]
    assert posts_m.min() == lines[1]["finest_post_m"]
    # What only costs differently is the same dataset.
    other = recipe.corridor.model_copy(update={"memory_budget_mb": 900.0})
    done = write_dataset(recipe.model_copy(update={"corridor": other}), out, CPU)
    assert done.rendered == 0
    (out / lines[2]["image"]).unlink()
    before = lines[2]["image_sha256"]
    assert write_dataset(recipe, out, CPU).rendered == 1
    assert lines_of(out)[2]["image_sha256"] == before


def test_earthshine_by_the_phase_of_the_earth():
    near = LocalFrame(0.0, 0.0)
    # The Earth stands overhead; with the Sun beside it the Earth is dark, opposite to it full.
    beside = earthshine(near, direction_L(0.0, 90.0))
    opposite = earthshine(near, direction_L(0.0, -90.0))
    assert beside.irradiance_ratio == pytest.approx(0, abs=1e-12)
    assert opposite.irradiance_ratio == pytest.approx(5.44e-5, rel=0.01)
    torch.testing.assert_close(
        opposite.earth_L, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-12
    )
    assert earthshine(LocalFrame(0.0, 180.0), direction_L(0.0, 20.0)) is None
    far_north = earthshine(LocalFrame(60.0, 0.0), direction_L(0.0, 20.0))
    assert far_north.earth_L[1] == pytest.approx(-np.sin(np.radians(60)))  # due south
