"""`tnav bench match`: how pairs are scored, kept and told, on small scenes of the test regions."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tnav.errors import ConfigError
from tnav.evaluate import bench_match, match_cases
from tnav.evaluate.bench_match import AGAIN, measure_match, score_matches
from tnav.evaluate.match_cases import (
    CASES,
    CaseScenes,
    MatchCase,
    blank_image,
    half_hidden,
    named_cases,
)
from tnav.evaluate.match_methods import NAMES, Method, methods_at_hand
from tnav.evaluate.match_scores import (
    PairScore,
    grid_of,
    pooled,
)
from tnav.learn.regions import Modelled
from tnav.learn.scenes import Scene
from tnav.match.weights import default_model
from tnav.records import Matches

CPU = torch.device("cpu")
TRUE_SUN = CASES[0]
SIDE = 192


def made(**changes: object) -> PairScore:
    score = PairScore("true-sun", 0, "tnav", "k", "mare", "ok", 0.1, (0.1, 0.2), 0.5)
    return dataclasses.replace(score, **changes)  # type: ignore[arg-type]


def case_of(slug: str) -> MatchCase:
    return named_cases([slug])[0]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CaseScenes]:
    """The benchmark's own scenes, an image of 192 px over ground of 24 m posts."""
    small = {
        "width_px": SIDE,
        "height_px": SIDE,
        "ground": Modelled(finest_post_m=24.0, levels=2, cells=768),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TNAV_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setattr(match_cases, "_BASE", match_cases._BASE.model_copy(update=small))
        patch.setattr(match_cases, "_QUICK_REGIONS", ("resilience", "democritus"))
        yield CaseScenes(CPU, quick=True)


@pytest.fixture(scope="module")
def scene(scenes: CaseScenes) -> Scene:
    return scenes.scene(TRUE_SUN, 0)


def told(scene: Scene, moved_px: tuple[float, float] = (0.0, 0.0)) -> Matches:
    """Matches on a grid of the view that are where the truth is, or all off by so much."""
    mask = grid_of(scene.map_view.hit[0], 16)
    point_L = scene.map_view.xyz_L[0][mask]
    true_uv_px, seen = scene.true_uv_px(point_L)
    uv_map_px = scene.camera.pixel_centres("cpu")[mask]
    n = len(point_L)
    return Matches(
        uv_map_px=uv_map_px[None],
        uv_px=(true_uv_px + torch.tensor(moved_px, dtype=torch.float64))[None],
        covariance_px2=0.01 * torch.eye(2, dtype=torch.float64).expand(1, n, 2, 2).clone(),
        score=torch.ones(1, n),
        point_L=point_L[None],
        valid=seen[None],
        learned=torch.zeros(1, dtype=torch.bool),
    )


def test_true_matches_are_solved(scene: Scene) -> None:
    status, pose, grid_px, errors = score_matches(scene, TRUE_SUN, told(scene))
    assert status == "ok"
    assert grid_px is not None
    assert grid_px < 0.1  # the map's height error, which the pose cannot take up
    assert errors[-1] == 0.0
    shift = torch.tensor([*scene.map_shift_m, 0.0], dtype=torch.float64)
    off_m = (pose.position_L[0] - scene.true_pose.position_L[0] - shift).norm()
    assert off_m < 30.0  # a pixel is 44 m


@pytest.mark.parametrize(("moved_px", "solved"), [(2.8, True), (3.2, False), (4.0, False)])
def test_matches_that_are_all_off_give_a_wrong_pose(
    scene: Scene, moved_px: float, solved: bool
) -> None:
    """A common shift moves the pose, leaves no residual, and must not count as solved."""
    matches = told(scene, (0.6 * moved_px, -0.8 * moved_px))
    status, _, grid_px, errors = score_matches(scene, TRUE_SUN, matches)
    score = made(status=status, grid_px=grid_px, error_px=errors)
    assert status == "ok"
    assert grid_px == pytest.approx(moved_px, abs=0.1)
    assert errors[0] == errors[-1] == pytest.approx(moved_px, abs=1e-3)
    assert (score.solved, score.wrong) == (solved, not solved)
    _, within, median = pooled([score])
    assert within == (100.0 if solved else 0.0)
    assert median == pytest.approx(moved_px, abs=1e-3)


def test_a_pose_from_an_image_of_elsewhere_is_wrong(scene: Scene) -> None:
    status, _, grid_px, errors = score_matches(scene, case_of("other-place"), told(scene))
    assert (status, grid_px, errors) == ("ok", None, ())
    assert made(status=status, grid_px=grid_px).wrong
    refused = dataclasses.replace(told(scene), valid=torch.zeros_like(told(scene).valid))
    status, _, grid_px, _ = score_matches(scene, case_of("other-place"), refused)
    score = made(status=status, grid_px=grid_px)
    assert status == "too_few_matches"
    assert not score.wrong
    assert not score.solved


def test_a_run_resumes(scenes: CaseScenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_match, "CaseScenes", lambda device, quick: scenes)
    matched: list[str] = []

    def at_hand(names: object, device: object, say: object) -> list[Method]:
        found = methods_at_hand(["tnav", "sift"], CPU, lambda _: None)
        return [dataclasses.replace(m, match=counted(m)) for m in found]

    def counted(method: Method):
        def call(view, image, radius_px):
            matched.append(method.name)
            return method.match(view, image, radius_px)

        return call

    monkeypatch.setattr(bench_match, "methods_at_hand", at_hand)

    def run(pairs: int, rows: list[str], other_pairs: int | None = None) -> list[dict[str, object]]:
        matched.clear()
        table = measure_match(
            CPU, quick=False, pairs=pairs, methods=None, say=lambda _: None, rows=rows,
            out=tmp_path, other_pairs=other_pairs,
        )  # fmt: skip
        return [row.as_dict() for row in table]

    first = run(1, ["true-sun", "blank"])
    assert matched.count("sift") == 2
    assert {p.name for p in tmp_path.iterdir()} == {"true-sun.jsonl", "blank.jsonl"}
    assert run(1, ["true-sun", "blank"]) == first
    assert matched == []
    alone = run(2, ["true-sun"], other_pairs=1)
    assert matched == ["tnav"]
    counts = {str(row["name"]): row["n"] for row in alone}
    case = "true Sun, map 1-4 x coarser"
    assert counts[f"{case}: tnav: solved"] == 2
    assert counts[f"{case}: {AGAIN}: solved"] == counts[f"{case}: sift: solved"] == 1
    assert counts[f"first: {case}"] == 1
    longer = run(2, ["true-sun"])
    assert sorted(matched) == ["sift", "tnav", "tnav"]  # again, for its second round
    solved = [row for row in longer if str(row["name"]).endswith("coarser: sift: solved")]
    assert [row["n"] for row in solved] == [2]
    # The table tells what was asked for, however much lies in the folder.
    shorter = run(1, ["true-sun"])
    assert matched == []
    assert [r for r in first if "true Sun" in str(r["name"]) and "first" not in str(r["name"])] == [
        r for r in shorter if "true Sun" in str(r["name"]) and "first" not in str(r["name"])
    ]
    names = {str(row["name"]).split(": ")[1] for row in longer if "true Sun" in str(row["name"])}
    assert {"tnav", AGAIN, "sift"} <= names


def test_what_a_pair_follows_from_is_in_its_digest() -> None:
    regions = ["resilience"]
    digests = [case.digest(k, regions) for case in CASES for k in range(3)]
    digests.append(CASES[0].digest(0, ["resilience", "democritus"]))
    assert len(set(digests)) == len(digests)
    assert CASES[0].digest(0, regions) == digests[0]


def test_rows_that_differ_in_the_view_share_the_image(scenes: CaseScenes, scene: Scene) -> None:
    for slug in ("sun-90", "turned"):
        other = scenes.scene(case_of(slug), 0)
        assert torch.equal(other.image, scene.image)
        assert not torch.equal(other.map_view.image, scene.map_view.image)


def test_a_coarse_map_is_the_nearest_that_there_is(scenes: CaseScenes, scene: Scene) -> None:
    posts_m = [level.post_m for level in scene.terrain_map.levels]
    gsd_m = posts_m[scene.level] / scene.map_posts_per_pixel_coarser
    between = math.sqrt(posts_m[0] * posts_m[1]) / gsd_m
    assert match_cases._level(scene, 0.99 * between) == 0
    assert match_cases._level(scene, 1.01 * between) == 1
    coarse = scenes.scene(case_of("coarse-map"), 0)
    assert coarse.level == len(posts_m) - 1  # 8 pixels are more than this ground has posts for
    assert coarse.map_posts_per_pixel_coarser == pytest.approx(posts_m[-1] / gsd_m)


@pytest.mark.parametrize("angle_deg", [30, 90, 180])
@pytest.mark.parametrize("index", [0, 1])
def test_the_view_is_lit_from_the_wrong_side(
    scenes: CaseScenes, angle_deg: int, index: int
) -> None:
    """About the vertical by the row's angle, to either side, and at the same elevation."""
    wrong = scenes.scene(case_of(f"sun-{angle_deg}"), index)
    true, shown = wrong.sun_L, wrong.view_sun_L
    turn = torch.atan2(
        true[0] * shown[1] - true[1] * shown[0], true[0] * shown[0] + true[1] * shown[1]
    )
    assert abs(math.degrees(float(turn))) == pytest.approx(angle_deg, abs=1e-6)
    assert float(shown[2]) == pytest.approx(float(true[2]))


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_the_prediction_is_turned_and_too_near_or_far(scenes: CaseScenes, index: int) -> None:
    turned = scenes.scene(case_of("turned"), index)
    plain = scenes.scene(TRUE_SUN, index)
    turn = plain.predicted_pose.R_L_C[0].T @ turned.predicted_pose.R_L_C[0]
    angle_deg = math.degrees(float(torch.atan2(turn[1, 0], turn[0, 0])))
    assert angle_deg == pytest.approx(5.0 if index % 2 else -5.0, abs=1e-6)
    moved = turned.predicted_pose.position_L - plain.predicted_pose.position_L
    ahead_m = float((moved @ plain.true_pose.R_L_C[0])[0, 2])
    range_m = plain.case.agl_m / math.cos(math.radians(plain.case.tilt_deg))
    assert ahead_m == pytest.approx(range_m * (0.1 if index // 2 % 2 else -0.1))
    assert float(moved.norm()) == pytest.approx(abs(ahead_m))


@pytest.mark.parametrize("slug", ["true-sun", "turned"])
def test_the_search_radius_holds_what_the_prior_may_cause(scenes: CaseScenes, slug: str) -> None:
    """Of all the ground in the views' inner half: farther out turns and scales reach their most."""
    case, farthest = case_of(slug), 0.0
    for index in range(4):
        scene = scenes.scene(case, index)
        matches = told(scene)
        moved = (matches.uv_px - matches.uv_map_px).abs().amax(-1)[matches.valid]
        farthest = max(farthest, float(moved.max()))
    assert 0.1 * case.search_radius_px < farthest < case.search_radius_px


def test_another_place_is_in_another_region(scenes: CaseScenes, scene: Scene) -> None:
    other = scenes.scene(case_of("other-place"), 0)
    assert torch.equal(other.map_view.image, scene.map_view.image)
    assert not torch.equal(other.image, scene.image)
    assert other.image.shape == scene.image.shape


@pytest.mark.parametrize("how", ["blocked", "saturated", "shadow"])
@pytest.mark.parametrize("index", [0, 1, 7])
def test_half_of_the_frame_is_hidden(how: str, index: int) -> None:
    image = 0.3 + 0.4 * torch.rand(1, 1, 64, 96, generator=torch.Generator().manual_seed(1))
    shown, hidden = half_hidden(image, how, index, 12.0)
    assert int(hidden.sum()) == 64 * 96 // 2
    assert torch.equal(shown[0, 0][~hidden], image[0, 0][~hidden])
    dark = shown[0, 0][hidden]
    if how == "saturated":
        assert (dark == 1).all()
    else:
        assert dark.max() < 0.01
        assert dark.std() > 1e-4
    again, _ = half_hidden(image, how, index, 12.0)
    assert torch.equal(again, shown)
    elsewhere, _ = half_hidden(image, how, index + 1, 12.0)
    assert not torch.equal(elsewhere, shown)


def test_hidden_ground_is_not_seen(scenes: CaseScenes, scene: Scene) -> None:
    half = scenes.scene(case_of("blocked"), 0)
    point_L = told(scene).point_L[0]
    (_, before), (uv, after) = scene.true_uv_px(point_L), half.true_uv_px(point_L)
    column, row = uv[before].long().unbind(-1)
    assert torch.equal(after[before], ~half.blocked[row, column])


def test_blank_images_show_nothing() -> None:
    image = torch.rand(1, 1, 32, 32)
    spread: list[Tensor] = [blank_image(image, k) for k in range(4)]
    assert (spread[0] == 0).all()
    assert (spread[1] == 1).all()
    assert 0.005 < spread[2].std() < 0.015
    assert torch.equal(blank_image(image, 6), blank_image(1 - image, 6))


def test_unknown_names_are_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match="row 'mare': not known; expected of true-sun, "):
        named_cases(["mare"])
    with pytest.raises(ConfigError, match="method 'orb': not known; expected of tnav, "):
        methods_at_hand(["orb"], CPU, print)


def test_absent_weights_leave_their_rows_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TNAV_BASELINE_WEIGHTS", raising=False)
    said: list[str] = []
    found = methods_at_hand(None, CPU, said.append)
    assert [m.name for m in found] == ["tnav", "tnav without weights", "cfog", "ncc", "sift"]
    lines = [line for line in said if line.endswith("left out")]
    assert len(lines) == len(NAMES) - 5
    assert all("set TNAV_BASELINE_WEIGHTS to a folder" in line for line in lines)
    monkeypatch.setenv("TNAV_BASELINE_WEIGHTS", str(tmp_path))
    said.clear()
    with pytest.raises(ConfigError, match="no method at hand"):
        measure_match(CPU, quick=True, pairs=1, methods=["loftr"], say=said.append, rows=[])
    assert said == [
        f"loftr: no weights at {tmp_path / 'loftr_outdoor.ckpt'}; put the published file there; "
        "left out"
    ]


def test_the_clock_compares_with_sift_in_the_same_run(
    scenes: CaseScenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_match, "CaseScenes", lambda device, quick: scenes)
    threads = torch.get_num_threads()
    rows = measure_match(
        CPU, quick=True, pairs=1, methods=["sift"], say=lambda _: None, rows=["time"]
    )
    assert torch.get_num_threads() == threads
    for case in ("true Sun, map 1-4 x coarser", "Sun azimuth wrong by 90 deg"):
        what = f"CPU time of a pair, one thread, {case}: "
        value = {row.name.removeprefix(what): row for row in rows if row.name.startswith(what)}
        assert set(value) == {"tnav", "tnav without weights", "sift", "tnav over sift"}
        ratio = value["tnav over sift"]
        assert float(str(ratio.value)) > 0
        assert ratio.n == value["sift"].n == 5
        if default_model(CPU) is None:
            assert ratio.passed is None  # what was timed is not what is shipped
        else:
            assert ratio.passed == (float(str(ratio.value)) <= 1)
