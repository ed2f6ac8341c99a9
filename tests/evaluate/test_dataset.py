"""Recipes of datasets, and the poses and Suns that follow from them."""

import math

import numpy as np
import pytest
import torch
from dataset_scenes import PLAIN, RICH, SITE, loaded, written
from scipy import stats

from tnav.errors import ConfigError
from tnav.evaluate.dataset import RenderRecipe, flight_recipe, load_render_recipe
from tnav.evaluate.dataset_ground import Ground
from tnav.evaluate.dataset_plan import look_down, plan_of, suns_of
from tnav.evaluate.scenario import load_scenario
from tnav.geometry.moon import LocalFrame, altitude_m, up_L
from tnav.geometry.pose import quaternion_from_matrix
from tnav.geometry.sun import direction_L, sun_at

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ground(dataset_cache, tmp_path_factory) -> Ground:
    return Ground(loaded(tmp_path_factory.mktemp("r"), PLAIN), CPU)


def planned(tmp_path, ground, **changes):
    return plan_of(loaded(tmp_path, {**PLAIN, **changes}), ground)


@pytest.mark.parametrize("name", ["pairs-small", "pairs-training"])
def test_the_shipped_recipes(name):
    recipe = load_render_recipe(name)
    assert recipe.name == name
    assert recipe.scenario is None
    assert recipe.site is not None
    assert recipe.camera is not None


def test_a_recipe_survives_its_own_file(tmp_path):
    for recipe in (PLAIN, RICH):
        first = loaded(tmp_path, recipe)
        assert loaded(tmp_path, first.model_dump(mode="json")) == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nmae": "x"}, r"recipe.yaml:\d+: nmae: unknown key \(did you mean 'name'"),
        ({"poses": {"kind": "spiral"}}, r"poses: .*'spiral'.*'random'"),
        ({"poses": {"kind": "flight"}}, r"one of times_s and every_s"),
        ({"poses": {"kind": "grid", "agl_m": []}}, r"poses.grid.agl_m: .*at least 1"),
        (
            {"poses": {"kind": "random", "count": 1, "agl_m": [9, 1]}},
            r"poses.random.agl_m: .*smaller number first",
        ),
        (
            {"poses": {"kind": "random", "count": 1, "agl_m": [1, 9], "titl_deg": [0, 1]}},
            r"titl_deg: unknown key .*'tilt_deg'",
        ),
        ({"site": None}, r"expected one of site, corridor and scenario"),
        ({"sun": None}, r"sun: missing"),
        (
            {"sun": {"kind": "angles", "azimuth_deg": [1, 2], "elevation_deg": [1, 2, 3]}},
            r"2 azimuths and 3 elevations",
        ),
        (
            {
                "sun": {"kind": "angles", "azimuth_deg": [1, 2], "elevation_deg": [9]},
                "suns_per_pose": 3,
            },
            r"suns_per_pose: 3, but 2 given",
        ),
        ({"detector": {"sensor_seed": 3}}, r"say seeds.sensor instead"),
        ({"motion": {"velocity_L_m_s": [1, 2, 3]}}, r"motion.blur: needs a fixed"),
        ({"motion": {"blur": False}}, r"(?i)motion.velocity_L_m_s: missing"),
        ({"truth": {"channels": ["depth"]}}, r"truth.channels.0: .*'range_m'"),
        ({"image_format": "jpeg"}, r"image_format: .*'png' or 'tiff'"),
        ({"samples": 5}, r"samples: .*1, 4, 9 or 16"),
        ({"seeds": {"nose": 1}}, r"seeds.nose: unknown key \(did you mean 'noise'"),
        ({"frames_per_shard": 0}, r"frames_per_shard"),
        ({"camera": {"width_px": 64}}, r"camera.width_px"),
    ],
)
def test_mistakes_are_named_with_file_line_and_field(tmp_path, changes, message):
    recipe = {k: v for k, v in {**PLAIN, **changes}.items() if v is not None}
    with pytest.raises(ConfigError, match=message) as caught:
        loaded(tmp_path, recipe)
    assert len(str(caught.value).splitlines()) == 1
    assert "recipe.yaml:" in str(caught.value)


def test_names(tmp_path):
    with pytest.raises(ConfigError, match=r"recipe 'none': not found; known: .*pairs-small"):
        load_render_recipe("none")
    with pytest.raises(ConfigError, match=r"'resilience' is a scenario.*--at T"):
        load_render_recipe("resilience")


def test_a_scenario_gives_what_the_recipe_leaves_out(tmp_path):
    scenario = load_scenario("resilience")
    short = {"name": "s", "scenario": "resilience", "poses": {"kind": "flight", "every_s": 30.0}}
    recipe = loaded(tmp_path, short)
    assert recipe.site == scenario.site
    assert recipe.camera == scenario.camera
    assert recipe.poses.descent == scenario.descent
    assert recipe.sun.epochs_utc == (scenario.epoch_utc,)
    assert recipe.scenario is None
    other = loaded(tmp_path, {**short, "site": SITE, "camera": {"width_px": 200}})
    assert other.site.levels == 6
    assert other.camera.width_px == 200


def test_views_of_a_scenario_have_its_truth():
    scenario = load_scenario("resilience")
    recipe = flight_recipe(scenario.with_seed(2), (1.0,))
    assert recipe == flight_recipe(scenario, (1.0,)).model_copy(update={"seeds": recipe.seeds})
    assert recipe.seeds.terrain == scenario.seeds.terrain + 2000
    assert recipe.seeds.albedo == scenario.seeds.albedo + 2000


def test_a_shifted_recipe_moves_every_seed_by_as_much():
    before = RenderRecipe.model_validate(PLAIN)
    moved = before.with_seed(3).seeds.model_dump()
    assert moved == {name: value + 3000 for name, value in before.seeds.model_dump().items()}
    assert before.with_seed(0) == before


def test_cameras_that_look_down():
    place = torch.tensor([[0.0, 0.0, 1000.0]], dtype=torch.float64)

    def axes(heading, tilt, roll=0.0):
        given = (torch.tensor([v], dtype=torch.float64) for v in (heading, tilt, roll))
        return look_down(place, *given)[0]

    east, north, up = torch.eye(3, dtype=torch.float64)
    nadir = axes(0.0, 0.0)
    torch.testing.assert_close(nadir, torch.stack([east, -north, -up], 1))
    # The top of the image points to the heading, and the tilt leans that way.
    torch.testing.assert_close(-axes(90.0, 0.0)[:, 1], east)
    torch.testing.assert_close(axes(90.0, 90.0)[:, 2], east)
    torch.testing.assert_close(axes(0.0, 60.0)[:, 2], math.sqrt(0.75) * north - 0.5 * up)
    # Turning the camera clockwise brings its x axis to where y was.
    torch.testing.assert_close(axes(0.0, 0.0, 90.0)[:, 0], nadir[:, 1])
    R = axes(123.0, 45.0, 67.0)
    torch.testing.assert_close(R @ R.T, torch.eye(3, dtype=torch.float64))
    assert float(torch.linalg.det(R)) == pytest.approx(1.0)


def test_random_poses_follow_their_laws(tmp_path, ground):
    plan = planned(tmp_path, ground, poses={**PLAIN["poses"], "count": 400})
    position_L = plan.poses.pose.position_L
    height = ground.agl_m(position_L)
    low, high = PLAIN["poses"]["agl_m"]
    share = (height.log() - math.log(low)) / math.log(high / low)
    z_C = plan.poses.pose.R_L_C[:, :, 2]
    tilt = torch.rad2deg(torch.acos((-(z_C * up_L(position_L)).sum(1)).clamp(-1, 1))) / 35.0
    east = (position_L[:, 0] / (1 + position_L[:, 2] / 1737.4e3) + 1500.0) / 3000.0
    for draws in (share, tilt, east):
        assert float(draws.min()) >= -2e-3
        assert float(draws.max()) <= 1 + 2e-3
        assert stats.kstest(draws.numpy(), "uniform").pvalue > 1e-3
    # A vertical meets no ground above the one that it was measured from.
    torch.testing.assert_close(height, plan.poses.agl_m, rtol=0, atol=0.01)


def test_a_pose_depends_on_its_number_only(tmp_path, ground):
    few = planned(tmp_path, ground)
    many = planned(tmp_path, ground, poses={**PLAIN["poses"], "count": 9})
    assert torch.equal(many.poses.pose.position_L[:5], few.poses.pose.position_L)
    assert torch.equal(many.poses.pose.R_L_C[:5], few.poses.pose.R_L_C)
    for a, b in zip(many.suns, few.suns, strict=False):
        assert [s.azimuth_deg for s in a] == [s.azimuth_deg for s in b]
    other = planned(tmp_path, ground, seeds={"poses": 99})
    assert not torch.equal(other.poses.pose.position_L, few.poses.pose.position_L)
    assert other.suns[0][0].azimuth_deg == few.suns[0][0].azimuth_deg


def test_frames_are_poses_times_suns(tmp_path, ground):
    plan = planned(tmp_path, ground)
    assert len(plan) == 10
    assert plan.of_frame(7)[0] == 3
    assert plan.of_frame(7)[1] is plan.suns[3][1]
    assert plan.suns[3][0].azimuth_deg != plan.suns[3][1].azimuth_deg


def test_listed_suns(tmp_path):
    angles = {"kind": "angles", "azimuth_deg": [10, 20, 30, 40], "elevation_deg": [5]}
    full = loaded(tmp_path, {**PLAIN, "sun": angles, "suns_per_pose": 4})
    assert [s.azimuth_deg for s in suns_of(full, 3)] == [10, 20, 30, 40]
    assert torch.equal(suns_of(full, 0)[1].sun_L, direction_L(20.0, 5.0))
    some = loaded(tmp_path, {**PLAIN, "sun": angles, "suns_per_pose": 2})
    drawn = [tuple(s.azimuth_deg for s in suns_of(some, k)) for k in range(200)]
    assert all(len(set(pair)) == 2 for pair in drawn)
    counts = np.bincount([int(a) // 10 - 1 for pair in drawn for a in pair], minlength=4)
    assert stats.chisquare(counts).pvalue > 1e-3
    epochs = ["2025-06-05T19:17:00Z", "2025-06-06T19:17:00"]
    timed = loaded(tmp_path, {**PLAIN, "sun": {"kind": "epoch", "epochs_utc": epochs}})
    first, second = suns_of(timed, 0)
    assert first.elevation_deg == sun_at(LocalFrame(60.5, -4.6), first.epoch_utc).elevation_deg
    assert second.epoch_utc.utcoffset().total_seconds() == 0
    assert second.azimuth_deg != first.azimuth_deg


def test_a_grid_has_every_combination(tmp_path, ground):
    poses = {"kind": "grid", "east_m": [0, 100], "agl_m": [500, 1000], "heading_deg": [0, 90, 180]}
    plan = planned(tmp_path, ground, poses=poses)
    assert len(plan.poses) == 12
    assert plan.poses.agl_m.tolist() == [500] * 3 + [1000] * 3 + [500] * 3 + [1000] * 3
    assert float(plan.poses.pose.position_L[6, 0]) == pytest.approx(100, rel=2e-3)


def test_a_flight_in_regular_steps(tmp_path, ground):
    plan = planned(tmp_path, ground, poses={"kind": "flight", "every_s": 20.0})
    assert plan.poses.t_s == pytest.approx([0, 20, 40, 60, 80])
    falling = plan.poses.velocity_L[:, 2]
    assert (falling < 0).all()
    # The rate is that of the attitude: it turns one pose into the next over a short time.
    close = planned(tmp_path, ground, poses={"kind": "flight", "times_s": [80.0, 80.1]})
    turn = close.poses.pose.R_L_C[0].T @ close.poses.pose.R_L_C[1]
    rate = torch.stack([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    mean = close.poses.rate_C.mean(0)
    torch.testing.assert_close(rate / 2 / 0.1, mean, rtol=1e-2, atol=1e-6)
    with pytest.raises(ConfigError, match=r"1000\.0.*: outside the flight, expected 0 to 97"):
        planned(tmp_path, ground, poses={"kind": "flight", "times_s": [1000.0]})


def _csv(tmp_path, *lines):
    (tmp_path / "poses.csv").write_text("\n".join(lines) + "\n")
    return {"kind": "file", "path": "poses.csv"}


def test_poses_of_a_file(tmp_path, ground):
    frame = LocalFrame(60.5, -4.6)
    point_L = torch.tensor([[300.0, -200.0, 1000.0]], dtype=torch.float64)
    latitude, longitude, height = (float(v) for v in frame.geodetic(point_L))
    poses = _csv(tmp_path, "x_m,y_m,z_m,qw,qx,qy,qz,t_s", "300,-200,1000.0,0,2,0,0,7.5")
    local = planned(tmp_path, ground, poses=poses)
    assert torch.equal(local.poses.pose.position_L, point_L)
    assert quaternion_from_matrix(local.poses.pose.R_L_C)[0].tolist() == [0, 1, 0, 0]
    assert local.poses.t_s == (7.5,)
    moon = _csv(
        tmp_path,
        "qw,qx,qy,qz,latitude_deg,longitude_deg,altitude_m",
        f"0,1,0,0,{latitude!r},{longitude!r},{height!r}",
    )
    same = planned(tmp_path, ground, poses=moon)
    torch.testing.assert_close(same.poses.pose.position_L, point_L, rtol=0, atol=1e-6)
    assert float(altitude_m(same.poses.pose.position_L)) == pytest.approx(height)
    # 0.1 m at 1e5 m is lost in single precision.
    far = _csv(tmp_path, "x_m,y_m,z_m,qw,qx,qy,qz", "1000.0123456789,0,1000,0,1,0,0")
    x_m = planned(tmp_path, ground, poses=far).poses.pose.position_L[0, 0]
    assert float(x_m) == 1000.0123456789


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["x_m,y_m,z_m,qw,qx,qy"], r"poses.csv:1: columns .*expected x_m,y_m,z_m or latitude_deg"),
        (["x_m,y_m,z_m,qw,qx,qy,qz"], r"no pose after the header"),
        (["x_m,y_m,z_m,qw,qx,qy,qz", "1,2,3,0,1,0"], r"poses.csv:2: expected 7 finite numbers"),
        (["x_m,y_m,z_m,qw,qx,qy,qz", "1,2,nan,0,1,0,0"], r"poses.csv:2: expected 7 finite"),
        (["x_m,y_m,z_m,qw,qx,qy,qz", "1,2,up,0,1,0,0"], r"poses.csv:2: .*'up'"),
        (["x_m,y_m,z_m,qw,qx,qy,qz", "1,2,3,0,0,0,0"], r"poses.csv:2: quaternion of norm 0"),
        (["x_m,y_m,z_m,qw,qx,qy,qz", "0,0,-9000,0,1,0,0"], r"number 0 of 1 is on or under the gr"),
        (["x_m,y_m,z_m,qw,qx,qy,qz", "9e5,0,3,0,1,0,0"], r"number 0 of 1 is not over the modelled"),
    ],
)
def test_files_of_poses_that_do_not_fit(tmp_path, ground, lines, message):
    with pytest.raises(ConfigError, match=message):
        planned(tmp_path, ground, poses=_csv(tmp_path, *lines))


def test_poses_beside_the_ground(tmp_path, ground):
    far = {**PLAIN["poses"], "east_m": [9e5, 9e5]}
    with pytest.raises(ConfigError, match=r"number 0 of 5 is not over the modelled ground"):
        planned(tmp_path, ground, poses=far)


def test_a_missing_file_of_poses(tmp_path, ground):
    recipe = load_render_recipe(
        str(written(tmp_path, {**PLAIN, "poses": {"kind": "file", "path": "gone.csv"}}))
    )
    with pytest.raises(ConfigError, match=r"gone.csv: cannot be read"):
        plan_of(recipe, ground)
