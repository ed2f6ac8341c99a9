import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_scenes import SMALL, grid, made_of, pose, small
from simulated_device import count_syncs

from tnav.errors import ConfigError
from tnav.geometry.camera import Camera
from tnav.geometry.moon import up_L
from tnav.geometry.pose import so3_log
from tnav.learn.cases import draw_case, draw_map
from tnav.learn.draws import Draws, uniform
from tnav.learn.pairs import PairRecipe
from tnav.learn.regions import load_splits
from tnav.learn.scenes import SceneMaker, SceneRecipe, true_place
from tnav.terrain.raycast import cast

CAMERA = Camera.from_field_of_view(64, 48, 40.0)
CAMERA_96 = Camera.from_field_of_view(96, 96, 20.0)


@pytest.fixture(scope="module")
def maker(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TNAV_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield SceneMaker(small(), "train", seed=3)


# Numbers


def test_numbers_are_uniform_and_each_attempt_has_others():
    first, again, second = (uniform(5, 7, 4000, attempt) for attempt in (0, 0, 1))
    assert (first == again).all()
    assert not (first == second).any()
    assert 0 < first.min() < first.max() < 1
    # mean and variance within 5 sigma of those of the uniform law
    assert abs(first.mean() - 0.5) < 5 / math.sqrt(12 * 4000)
    assert abs(first.var() - 1 / 12) < 5 / math.sqrt(180 * 4000)


@given(st.integers(0, 2**62), st.floats(0.001, 1e4), st.floats(1.0, 1e3))
def test_draws_stay_within_their_interval(index, low, ratio):
    draws, interval = Draws(0, index), (low, low * ratio)
    for value in (draws.between(interval), draws.log_between(interval)):
        assert low <= value <= low * ratio * (1 + 1e-12)
    assert low <= abs(draws.signed(interval)) <= low * ratio * (1 + 1e-12)
    assert Draws(0, index).between((low, low)) == low
    assert draws.choice((4,)) == 4


def test_half_of_a_logarithmic_draw_lies_below_the_geometric_mean():
    n = 2000
    below = sum(Draws(1, k).log_between((1.0, 10000.0)) < 100.0 for k in range(n))
    assert abs(below / n - 0.5) < 5 * 0.5 / math.sqrt(n)


# Cases

DRAWN = {
    "agl_m": "agl_m",
    "tilt_deg": "tilt_deg",
    "heading_deg": "heading_deg",
    "roll_deg": "roll_deg",
    "sun_elevation_deg": "sun_elevation_deg",
    "sun_azimuth_deg": "sun_azimuth_deg",
    "albedo_contrast": "albedo_contrast",
    "psf_sigma_px": "psf_sigma_px",
    "read_noise_e": "read_noise_e",
    "exposure_level": "exposure_level",
    "blocked": "blocked",
}
CHOSEN = {
    "coarser": "coarser",
    "law": "reflectance",
    "view_law": "view_reflectance",
    "samples": "samples",
    "blocked_by": "blocked_by",
    "blocked_shape": "blocked_shape",
}


def test_every_number_lies_in_its_interval_and_comes_near_both_ends():
    recipe = PairRecipe(blocked=(0.1, 0.5), read_noise_e=(5.0, 40.0))
    regions = load_splits().of("train")
    n = 600
    cases = [draw_case(recipe, regions, 1, k, 0) for k in range(n)]
    missed = math.exp(-0.05 * n)  # chance that none lies in the last 5 % on one side
    assert missed < 1e-12
    for name, field in DRAWN.items():
        low, high = getattr(recipe, field)
        values = [getattr(case, name) for case in cases]
        assert low <= min(values), name
        assert max(values) <= high, name
        edge = 0.05 * (high - low) if field != "agl_m" else low * ((high / low) ** 0.05 - 1)
        assert min(values) < low + edge, name
        assert max(values) > (high - 0.05 * (high - low) if field != "agl_m" else 0.8 * high), name
    for name, field in CHOSEN.items():
        assert {getattr(case, name) for case in cases} == set(getattr(recipe, field)), name
    assert {case.region for case in cases} == {region.name for region in regions}
    assert {case.map_number for case in cases} == set(range(recipe.maps))
    for case in cases:
        reach_m = min(recipe.place_m, recipe.place_agl * case.agl_m)
        assert max(abs(case.east_m), abs(case.north_m)) <= reach_m
        assert 0.0005 <= case.horizontal_m / case.agl_m <= 0.05 * (1 + 1e-12)
        assert abs(case.height_m) <= 0.03 * case.agl_m
        assert abs(case.scale) <= 0.08
        assert abs(case.roll_error_deg) <= 5
        assert math.hypot(*case.attitude_rad) <= math.radians(0.3)
        assert abs(case.view_azimuth_deg - case.sun_azimuth_deg) <= 180
        assert recipe.view_elevation_least_deg <= case.view_elevation_deg <= 34
    signs = sum(case.scale > 0 for case in cases)
    assert abs(signs - n / 2) < 5 * math.sqrt(n) / 2


def test_a_recipe_of_single_points_is_one_row_of_a_benchmark():
    recipe = small(
        agl_m=3000.0, horizontal_m=500.0, sun_elevation_deg=11.0, sun_azimuth_error_deg=90.0,
        height_percent=1.0, scale_percent=10.0, roll_error_deg=5.0, attitude_deg=0.2,
        albedo_contrast=0.1, coarser=(4.0,), blocked=0.5,
    )  # fmt: skip
    regions = load_splits().of("train")
    for index in range(20):
        case = draw_case(recipe, regions, 1, index, 0)
        assert (case.agl_m, case.horizontal_m, case.sun_elevation_deg) == (3000.0, 500.0, 11.0)
        assert (case.coarser, case.albedo_contrast, case.blocked) == (4.0, 0.1, 0.5)
        assert abs(case.view_azimuth_deg - case.sun_azimuth_deg) == pytest.approx(90.0)
        assert abs(case.height_m) == pytest.approx(30.0)
        assert abs(case.scale) == pytest.approx(0.1)
        assert abs(case.roll_error_deg) == 5.0
        assert math.hypot(*case.attitude_rad) == pytest.approx(math.radians(0.2))


def test_a_number_and_a_pair_of_it_are_the_same_recipe():
    assert small(agl_m=3000) == small(agl_m=(3000.0, 3000.0)) == small(agl_m=[3000.0, 3000.0])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"agl_m": (9.0, 8.0)}, "from 9 to 8, expected the lower one first"),
        ({"agl_m": (0.0, 8.0)}, "from 0, expected more than 0"),
        ({"tilt_deg": (-1.0, 8.0)}, "from -1, expected 0 or more"),
        ({"tilt_deg": 81.0}, "tilt_deg: up to 81, expected <= 80"),
        ({"blocked": (0.0, 0.96)}, "blocked: up to 0.96"),
        ({"horizontal_m": 1.0, "horizontal_agl": 0.1}, "are both given"),
        ({"focal_px": 100.0}, "fov_deg and focal_px are both given"),
        ({"albedo_waves_px": (2.0, 3.0)}, "expected 1 to 16 octaves"),
        ({"coarser": ()}, "coarser"),
    ],
)
def test_what_does_not_fit_is_told(changes, told):
    with pytest.raises(ValueError, match=told):
        small(**changes)


def test_maps_of_a_region_differ_and_follow_from_their_number():
    recipe, (region, other, *_) = small(), load_splits().of("train")
    cases = [draw_map(recipe, region, 1, k) for k in range(50)]
    assert cases == [draw_map(recipe, region, 1, k) for k in range(50)]
    assert len({case.seed for case in cases}) == 50
    assert not {case.seed for case in cases} & {
        draw_map(recipe, other, 1, k).seed for k in range(50)
    }
    for case in cases:
        assert 0 <= case.rms_m <= 4
        assert 150 <= case.correlation_m <= 1000
        assert 0 <= case.shift_m <= 2


def test_regions_must_be_of_the_split_and_ground_must_fit_it():
    with pytest.raises(ConfigError, match="regions: imbrium-north is of train, not test"):
        SceneMaker(small(), "test", 0)
    wide = SMALL.model_copy(update={"finest_post_m": 800.0})
    with pytest.raises(ConfigError, match="expected at most"):
        SceneMaker(small(ground=wide), "train", 0)


# Scenes


def _same(a, b) -> bool:
    return (
        torch.equal(a.image, b.image)
        and torch.equal(a.map_view.image, b.map_view.image)
        and torch.equal(a.predicted_pose.position_L, b.predicted_pose.position_L)
        and a.case == b.case
    )


def test_a_scene_follows_from_seed_and_index_alone(maker):
    other = SceneMaker(small(), "train", seed=3)
    others = [other.scene(k) for k in (5, 2)]
    assert _same(maker.scene(2), others[1])
    assert _same(maker.scene(5), others[0])
    assert not _same(maker.scene(2), SceneMaker(small(), "train", seed=4).scene(2))
    assert maker.case(2) == others[1].case


def test_poses_are_those_of_the_case(maker):
    for index in range(6):
        scene = maker.scene(index)
        case, true, predicted = scene.case, scene.true_pose, scene.predicted_pose
        down = -up_L(true.position_L)
        below = cast(scene.truth, true.position_L, down)
        assert float(below.range_m[0]) == pytest.approx(case.agl_m, rel=1e-3)
        axis_L = true.R_L_C[0, :, 2]
        assert math.degrees(math.acos(float(axis_L @ down[0]))) == pytest.approx(case.tilt_deg)
        # the axis meets the place that is looked at, up to the relief between it and the nadir
        offset = (predicted.position_L - true.position_L)[0]
        offset = offset - case.scale * case.agl_m / math.cos(math.radians(case.tilt_deg)) * axis_L
        assert float(offset @ -down[0]) == pytest.approx(
            case.height_m, abs=3e-3 * case.horizontal_m
        )
        assert float(offset[:2].norm()) == pytest.approx(case.horizontal_m, rel=1e-2)
        turn = so3_log(predicted.R_L_C @ true.R_L_C.mT).norm()
        assert float(turn) == pytest.approx(math.hypot(*case.attitude_rad), abs=1e-9)


def test_ratio_of_posts_is_that_of_level_and_pixel(maker):
    for index in range(12):
        scene = maker.scene(index)
        range_m = scene.case.agl_m / math.cos(math.radians(scene.case.tilt_deg))
        gsd_m = range_m / scene.camera.focal_px
        post_m = scene.terrain_map.levels[scene.level].post_m
        assert scene.map_posts_per_pixel_coarser == pytest.approx(post_m / gsd_m)
        wished_m = scene.case.coarser * gsd_m
        nearest = min(abs(math.log(x.post_m / wished_m)) for x in scene.terrain_map.levels)
        assert abs(math.log(post_m / wished_m)) == pytest.approx(nearest)


def test_perfect_pairs_are_the_same_picture_at_true_places():
    """Same posts, Sun and law, no noise: the image at the true places is the view, resampled.

    A map level is the mean of the level of half its posts, and so is the truth's next level: at
    equal posts, of four pixels here, both are the same ground.
    """
    quiet = {"full_well_e": 1e9, "exposure_max_s": 1e6, "bits": 16}
    recipe = small(
        width_px=96, height_px=96, fov_deg=20.0, agl_m=(1000.0, 1020.0), tilt_deg=(0.0, 10.0),
        place_agl=0.2, horizontal_agl=(0.01, 0.04), roll_error_deg=3.0, scale_percent=2.0,
        sun_elevation_deg=20.0, exposure_level=0.4, coarser=(4.0,), posts_per_pixel=0.25,
        map_rms_m=0.0, map_shift_m=1.5, albedo_contrast=0.0, reflectance=("lambert",),
        view_reflectance=("lambert",), detector=quiet, psf_sigma_px=0.0, read_noise_e=0.0,
    )  # fmt: skip
    maker = SceneMaker(recipe, "train", 1)
    for index in range(4):
        scene = maker.scene(index)
        level_m = scene.terrain_map.levels[scene.level].post_m
        assert level_m == scene.truth.levels[scene.truth_level].post_m
        view = scene.map_view.image[0, 0].flatten()
        uv_px, seen = scene.true_uv_px(scene.map_view.xyz_L.view(-1, 3))
        inner = seen & ((uv_px - 48).abs().amax(1) < 45)
        assert int(inner.sum()) > 3000

        def misfit(places, view=view, image=scene.image, inner=inner) -> float:
            """Median difference over the view's own spread, at the best gain."""
            found = torch.nn.functional.grid_sample(
                image, (places / 96 * 2 - 1).float()[None, None], align_corners=False
            )[0, 0, 0][inner]
            shown = view[inner]
            gain = (found * shown).sum() / shown.square().sum()
            return float((found / gain - shown).abs().median() / shown.std())

        best = misfit(uv_px)
        assert best < 0.015
        for du, dv in ((0.3, 0.0), (-0.3, 0.0), (0.0, 0.3), (0.0, -0.3)):
            assert misfit(uv_px + torch.tensor([du, dv], dtype=torch.float64)) > best
        assert misfit(CAMERA_96.pixel_centres("cpu").view(-1, 2)) > 10 * best


def test_places_on_flat_ground_are_those_of_a_homography():
    truth, shown = grid(torch.zeros(65, 65), 50.0), grid(torch.full((65, 65), 7.0), 50.0)
    true = pose((30.0, -20.0, 1500.0), (0.05, -0.1, 0.3))
    predicted = pose((60.0, 40.0, 1450.0), (0.0, 0.02, 0.25))
    scene = made_of(truth, shown, true, predicted, CAMERA, shift_m=(3.0, -5.0))
    view = scene.map_view
    uv_px, seen = scene.true_uv_px(view.xyz_L[0].view(-1, 3))
    # Through each view pixel's ray to the plane z = 7, less the shift, on the plane z = 0: a
    # homography, here as 3 x 3 matrices on (x, y, 1) of either plane.
    K = torch.tensor(
        [[CAMERA.focal_px, 0, 32.0], [0, CAMERA.focal_px, 24.0], [0, 0, 1]], dtype=torch.float64
    )

    def from_plane(of, height_m: float) -> torch.Tensor:
        R, p = of.R_L_C[0].T, of.position_L[0].clone()
        p[2] -= height_m
        return K @ torch.stack([R[:, 0], R[:, 1], -R @ p], 1)

    shift = torch.eye(3, dtype=torch.float64)
    shift[0, 2], shift[1, 2] = -3.0, 5.0
    H = from_plane(true, 0.0) @ shift @ torch.linalg.inv(from_plane(predicted, 7.0))
    centres = CAMERA.pixel_centres("cpu").view(-1, 2)
    expected = torch.cat([centres, torch.ones(len(centres), 1, dtype=torch.float64)], 1) @ H.T
    expected = expected[:, :2] / expected[:, 2:]
    torch.testing.assert_close(uv_px, expected, atol=1e-6, rtol=0)
    size = torch.tensor([64.0, 48.0], dtype=torch.float64)
    inside = ((expected >= 0) & (expected < size)).all(1)
    assert torch.equal(seen, inside)
    assert 0.3 < float(inside.double().mean()) < 1.0


def test_ground_behind_a_ridge_is_not_seen():
    x = torch.linspace(-1, 1, 257)
    ridge = 300.0 * torch.exp(-((x / 0.05) ** 2)).expand(257, 257)
    truth = grid(ridge, 10.0)
    camera = Camera.from_field_of_view(96, 96, 40.0)
    oblique = pose((-1500.0, 0.0, 700.0), (0.0, -1.0, 0.0))
    above = pose((0.0, 0.0, 3000.0), (0.0, 0.0, 0.0))
    scene = made_of(truth, truth, oblique, above, camera)
    point_L = scene.map_view.xyz_L[scene.map_view.hit]
    uv_px, seen = scene.true_uv_px(point_L)
    inside = ((uv_px >= 0) & (uv_px < 96)).all(1)
    ray = point_L - oblique.position_L
    distance_m = ray.norm(dim=1)
    hits = cast(truth, oblique.position_L.expand_as(ray).contiguous(), ray / distance_m[:, None])
    gap_m = distance_m - hits.range_m
    gsd_m = distance_m / camera.focal_px
    clear, hidden = inside & (gap_m < 0.5 * gsd_m), inside & (gap_m > 4 * gsd_m)
    assert int(clear.sum()) > 300
    assert int(hidden.sum()) > 100
    assert bool(seen[clear].all())
    # a point may pass for seen only where the edge that hides it runs through its pixel's square
    assert float(seen[hidden].double().mean()) < 0.1
    assert not bool(seen[~inside].any())


def test_half_of_the_image_can_be_blocked(maker):
    plain = maker.scene(0)
    assert not bool(plain.blocked.any())
    for cover in ("black", "saturated"):
        for shape in ("half_plane", "rectangle"):
            recipe = small(blocked=0.5, blocked_by=(cover,), blocked_shape=(shape,))
            scene = SceneMaker(recipe, "train", seed=3).scene(1)
            n = scene.blocked.numel()
            border = (64 + 48) / n
            assert abs(float(scene.blocked.double().mean()) - 0.5) < border
            covered = scene.image[0, 0][scene.blocked]
            if cover == "saturated":
                assert bool((covered == 1).all())
            else:  # the noise of reading and light that the point spread brings in from the edge
                assert float(covered.median()) < 0.01
            assert float(scene.image[0, 0][~scene.blocked].median()) > 0.02
            uv_px, seen = scene.true_uv_px(scene.map_view.xyz_L[scene.map_view.hit])
            where = uv_px[seen].long()
            assert int(seen.sum()) > 100
            assert not bool(scene.blocked[where[:, 1], where[:, 0]].any())


def test_a_pose_that_leaves_the_ground_is_drawn_again():
    recipe = small(place_m=4000.0, place_agl=2.0, tilt_deg=0.0)
    maker = SceneMaker(recipe, "train", seed=0)
    attempts = [maker.scene(index).case.attempt for index in range(12)]
    assert max(attempts) > 0
    assert attempts == [maker.scene(index).case.attempt for index in range(12)]
    index = attempts.index(max(attempts))
    assert maker.scene(index).case == maker.case(index, attempts[index])


def test_a_recipe_that_sees_no_ground_ends_in_an_error():
    maker = SceneMaker(small(agl_m=100e3), "train", seed=0)
    with pytest.raises(ConfigError, match="scene 4: none of 50 poses shows ground"):
        maker.scene(4)


def test_a_prediction_too_far_off_shares_no_ground():
    maker = SceneMaker(small(horizontal_agl=0.5, place_agl=0.0, tilt_deg=0.0), "train", seed=0)
    with pytest.raises(ConfigError, match="in common"):
        maker.scene(0)


def test_true_places_wait_for_nothing_on_a_device(maker, simgpu):
    scene = maker.scene(1)
    point_L = scene.map_view.xyz_L.view(-1, 3)
    there = dataclasses.replace(
        scene,
        true_pose=scene.true_pose.to(simgpu),
        truth=scene.truth.to(simgpu),
        true_range_m=scene.true_range_m.to(simgpu),
        blocked=scene.blocked.to(simgpu),
    )
    point = point_L.to(simgpu)
    with count_syncs() as waits:
        uv_px, seen = true_place(there, point)
    assert not waits
    expected, expected_seen = true_place(scene, point_L)
    torch.testing.assert_close(uv_px.cpu(), expected, rtol=0, atol=1e-9, equal_nan=True)
    assert torch.equal(seen.cpu(), expected_seen)


def test_a_scene_on_a_device_is_that_of_the_cpu(maker, simgpu):
    there, here = SceneMaker(small(), "train", 3, simgpu).scene(0), maker.scene(0)
    assert there.image.device.type == simgpu
    torch.testing.assert_close(there.image.cpu(), here.image, rtol=0, atol=1e-3)
    torch.testing.assert_close(there.map_view.image.cpu(), here.map_view.image)
    assert there.case == here.case


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**40))
def test_any_index_makes_a_scene(maker, index):
    scene = maker.scene(index)
    assert isinstance(maker.recipe, SceneRecipe)
    assert 0 <= float(scene.image.amin()) <= float(scene.image.amax()) <= 1
    assert float(scene.map_view.hit.double().mean()) > 0.85
