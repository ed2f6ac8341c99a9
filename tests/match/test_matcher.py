"""The whole matcher on synthetic ground with known warps."""

import dataclasses

import pytest
import simulated_device
import torch
from matching_scenes import detect, frame, pair, similarity
from torch import Tensor

from tnav.errors import ConfigError, ImageError
from tnav.match.channels import HAND_MADE, Channel
from tnav.match.matcher import MatcherConfig, match
from tnav.records import Frame, Matches

SIDE = 512
MIDDLE = (SIDE / 2, SIDE / 2)
SMALL_SHIFT = similarity(1.0, 0.0, (2.3, -1.4), MIDDLE)


def error_px(matches: Matches, H: Tensor) -> Tensor:
    """Found minus true position in the image, (b, n, 2)."""
    at = torch.cat([matches.uv_map_px, torch.ones_like(matches.uv_map_px[..., :1])], -1) @ H.T
    return matches.uv_px - at[..., :2] / at[..., 2:]


def normalised_square(matches: Matches, H: Tensor) -> Tensor:
    """Squared error over its covariance, of valid matches; expectation 2."""
    e, c = error_px(matches, H)[matches.valid], matches.covariance_px2[matches.valid]
    return (e[:, None] @ torch.linalg.solve(c, e[..., None])).flatten()


@pytest.fixture(scope="module")
def small() -> tuple[Frame, Tensor]:
    """A pair shifted by a few pixels, the map twice as coarse as the image."""
    return pair(SMALL_SHIFT, SIDE, SIDE, 71, coarser=2.0)


@pytest.mark.parametrize(
    ("coarser", "noise_px", "median_px"), [(1.0, 0.0, 0.02), (2.0, 0.5, 0.05), (4.0, 0.5, 0.17)]
)
@pytest.mark.parametrize("channel", [Channel.SIGNED_GRADIENT, Channel.LOCAL_CONTRAST])
def test_small_shift(channel: Channel, coarser: float, noise_px: float, median_px: float) -> None:
    view, image = pair(SMALL_SHIFT, SIDE, SIDE, 72, coarser=coarser, map_noise_px=noise_px)
    matches = match(view, image, search_radius_px=6.0, fine_channel=channel)
    error = error_px(matches, SMALL_SHIFT)[matches.valid].norm(dim=-1)
    assert matches.valid.float().mean() > 0.9
    assert (error < 3).float().mean() >= 0.99
    assert error.median() < median_px


@pytest.mark.parametrize(
    ("size", "scale", "turn_deg", "shift", "radius"),
    [
        ((1024, 1024), 1.03, 1.0, (270.0, -260.0), 300.0),
        ((1024, 1024), 0.97, -1.0, (-40.0, 35.0), 60.0),
        ((512, 512), 0.97, 1.0, (60.0, -100.0), 120.0),
        ((384, 640), 1.03, -1.0, (12.0, 9.0), 30.0),
        ((512, 512), 1.0, 0.0, (7.0, -9.0), 10.0),
    ],
)
def test_large_displacements(
    size: tuple[int, int], scale: float, turn_deg: float, shift: tuple[float, float], radius: float
) -> None:
    h, w = size
    H = similarity(scale, turn_deg, shift, (w / 2, h / 2))
    view, image = pair(H, h, w, 73, coarser=2.0, map_noise_px=0.5)
    matches = match(view, image, search_radius_px=radius)
    # What the displaced image still shows, with room for a patch, times a fair yield.
    shared = (1 - (abs(shift[0]) + 60) / w) * (1 - (abs(shift[1]) + 60) / h)
    error = error_px(matches, H)[matches.valid].norm(dim=-1)
    assert matches.valid.float().mean() > 0.7 * shared
    assert (error < 3).float().mean() >= 0.99
    assert error.median() < 0.15


def test_homography_of_an_oblique_prediction_error() -> None:
    H = similarity(1.01, 0.4, (35.0, 20.0), MIDDLE)
    H[2, 0], H[2, 1] = 2e-5, -1e-5
    view, image = pair(H, SIDE, SIDE, 74, coarser=2.0)
    matches = match(view, image, search_radius_px=60.0)
    error = error_px(matches, H)[matches.valid].norm(dim=-1)
    assert matches.valid.sum() > 80
    assert (error < 3).all()
    assert error.median() < 0.12


def test_covariance_is_calibrated_where_the_map_lacks_detail() -> None:
    """Scenes scatter by 0.27 (1 sigma, relative): the mean of 20 by 0.06, held here to 3 sigma."""
    squares = []
    for seed in range(200, 220):
        H = similarity(1.0, 0.0, (0.37 * (seed - 208), 2.9 - 0.31 * (seed - 200)), MIDDLE)
        view, image = pair(H, SIDE, SIDE, seed, coarser=2.0 + 2.0 * (seed % 2), map_noise_px=0.5)
        # The scenes are flat: no relief, and no map that is interpolated.
        matches = match(view, image, search_radius_px=6.0, config=MatcherConfig(map_sigma_px=0.0))
        squares.append(normalised_square(matches, H))
    assert 0.82 < torch.cat(squares).mean().item() / 2 < 1.18


def test_covariance_is_not_too_small_with_detector_noise_alone() -> None:
    H = similarity(1.0, 0.0, (1.3, 0.6), MIDDLE)
    view, _ = pair(H, SIDE, SIDE, 97)
    quiet, _ = pair(similarity(1.0, 0.0, (0.0, 0.0), MIDDLE), SIDE, SIDE, 97)
    image = detect(quiet.image[0, 0], 5, full_well=800.0)[None, None]
    matches = match(view, image, search_radius_px=6.0, config=MatcherConfig(map_sigma_px=0.0))
    mean = normalised_square(matches, torch.eye(3, dtype=torch.float64)).mean().item() / 2
    assert 0.25 < mean < 1.0


def test_points_are_those_of_the_pixel_and_the_grid_is_fixed(small: tuple[Frame, Tensor]) -> None:
    view, image = small
    matches = match(view, image, search_radius_px=6.0)
    u, v = matches.uv_map_px.unbind(-1)
    assert torch.equal(matches.point_L, torch.stack([u, v, u * v], -1))
    assert torch.equal(u % 1, torch.full_like(u, 0.5))
    elsewhere = match(view, image.flip(-1), search_radius_px=100.0)
    assert torch.equal(elsewhere.uv_map_px, matches.uv_map_px)
    assert matches.uv_map_px.shape == (1, 169, 2)


def test_batch_equals_singles() -> None:
    scenes = [pair(SMALL_SHIFT, 256, 320, seed, coarser=2.0) for seed in (1, 2, 3)]
    fields = [f.name for f in dataclasses.fields(Frame) if f.name != "surface"]  # not asked for
    view = Frame(**{f: torch.cat([getattr(s[0], f) for s in scenes]) for f in fields})
    image = torch.cat([s[1] for s in scenes])
    for radius in (6.0, 40.0):
        together = match(view, image, search_radius_px=radius)
        assert together.valid.any(1).all()
        for i, scene in enumerate(scenes):
            alone = match(*scene, search_radius_px=radius)
            assert torch.equal(alone.valid[0], together.valid[i])
            for name in ("uv_px", "covariance_px2", "score"):
                a, b = getattr(alone, name)[0], getattr(together, name)[i]
                torch.testing.assert_close(
                    a[alone.valid[0]], b[alone.valid[0]], atol=1e-3, rtol=1e-2
                )


@pytest.mark.parametrize("radius", [6.0, 40.0])
def test_accelerator_gives_the_same_and_is_never_waited_for(radius: float) -> None:
    simulated_device.install()
    view, image = pair(SMALL_SHIFT, 256, 256, 4, coarser=2.0)
    names = [f.name for f in dataclasses.fields(Frame) if f.name != "surface"]
    moved = Frame(**{n: getattr(view, n).to(simulated_device.DEVICE) for n in names})
    image_there = image.to(simulated_device.DEVICE)
    for channel in HAND_MADE:
        here = match(view, image, search_radius_px=radius, fine_channel=channel)
        with simulated_device.count_syncs() as syncs:
            there = match(moved, image_there, search_radius_px=radius, fine_channel=channel)
        assert not syncs
        for field in dataclasses.fields(Matches):
            assert torch.equal(getattr(there, field.name).cpu(), getattr(here, field.name))


@pytest.mark.parametrize("radius", [6.0, 100.0])
@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_constant_images_give_nothing(
    level: float, radius: float, small: tuple[Frame, Tensor]
) -> None:
    view, image = small
    flat = torch.full_like(image, level)
    for pair_ in ((view, flat), (frame(flat[0]), image), (frame(flat[0]), flat)):
        for channel in HAND_MADE:
            matches = match(*pair_, search_radius_px=radius, fine_channel=channel)
            assert not matches.valid.any()
            for field in ("uv_px", "covariance_px2", "score", "point_L"):
                assert getattr(matches, field).isfinite().all()


@pytest.mark.parametrize("radius", [6.0, 100.0])
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_blocked_or_saturated_half_adds_no_false_match(
    level: float, radius: float, small: tuple[Frame, Tensor]
) -> None:
    view, image = small
    damaged = image.clone()
    damaged[..., : SIDE // 2] = level
    noisy = detect(damaged[0, 0] * 0.45, 9)[None, None]
    for seen in (damaged, noisy):
        matches = match(view, seen, search_radius_px=radius)
        error = error_px(matches, SMALL_SHIFT)[matches.valid].norm(dim=-1)
        assert (error < 1).all()
        assert matches.valid.sum() > 60
        assert not (matches.valid & (matches.uv_map_px[..., 0] < SIDE / 2 - 24)).any()


def test_another_place_is_hardly_matched(small: tuple[Frame, Tensor]) -> None:
    valid = [
        match(small[0], pair(SMALL_SHIFT, SIDE, SIDE, seed)[1], search_radius_px=r).valid
        for seed in (81, 82, 83)
        for r in (6.0, 100.0)
    ]
    assert torch.cat(valid).float().mean() < 0.01


def test_way_back_rejects_half_of_what_is_inconsistent(small: tuple[Frame, Tensor]) -> None:
    """With every other threshold open, in an area that shows other ground.

    A wrong forward peak is the best of 289 placements; backward it competes with 288 others of the
    same law, so it returns about every other time. True matches all return.
    """
    view, image = small
    image = image.clone()
    other = pair(SMALL_SHIFT, SIDE, SIDE, 84)[1]
    image[..., : SIDE // 2] = other[..., : SIDE // 2]
    opened = MatcherConfig(min_score=0.0, max_second_ratio=10.0, max_sigma_px=100.0)
    checked = match(view, image, search_radius_px=6.0, config=opened)
    ignored = dataclasses.replace(opened, max_return_px=1e3)
    unchecked = match(view, image, search_radius_px=6.0, config=ignored)
    u = checked.uv_map_px[..., 0]
    wrong = unchecked.valid & (u < SIDE / 2 - 24)
    right = unchecked.valid & (u > SIDE / 2 + 28)
    assert wrong.sum() >= 30
    assert right.sum() >= 60
    # Binomial with n of at least 30 about one half: 0.22 is three standard deviations below.
    assert (wrong & ~checked.valid).sum() > 0.22 * wrong.sum()
    assert checked.valid[right].float().mean() > 0.97


def one_hole(view: Frame, image: Tensor, lit: Tensor, hit: Tensor) -> Tensor:
    shown = frame(view.image[0], lit=lit, hit=hit)
    return match(shown, image, search_radius_px=6.0).valid


def test_a_patch_must_be_wholly_on_the_ground_and_lit_enough(small: tuple[Frame, Tensor]) -> None:
    view, image = small
    config = MatcherConfig()
    everywhere = torch.ones(SIDE, SIDE, dtype=torch.bool)
    matches = match(frame(view.image[0]), image, search_radius_px=6.0)
    chosen = matches.valid[0].float().cumsum(0).argmax().item()  # the last valid one
    u, v = (matches.uv_map_px[0, chosen] - 0.5).long().tolist()
    half = config.patch_px // 2
    hit = everywhere.clone()
    hit[v + half, u + half] = False  # the patch's last pixel
    assert not one_hole(view, image, everywhere, hit)[0, chosen]
    hit = everywhere.clone()
    hit[v, u + half + 1] = False  # just beside it: a hole in the picture, but not in the patch
    assert one_hole(view, image, everywhere, hit)[0, chosen]
    needed = config.min_lit_fraction * config.patch_px**2
    for count, expected in ((int(needed) + 1, True), (int(needed) - 1, False)):
        patch = torch.arange(config.patch_px**2).reshape(config.patch_px, -1) < count
        lit = everywhere.clone()
        lit[v - half : v + half + 1, u - half : u + half + 1] = patch
        assert one_hole(view, image, lit, everywhere)[0, chosen] == expected


@pytest.mark.parametrize(
    ("name", "larger_is_stricter"),
    [("min_score", True), ("max_second_ratio", False), ("max_return_px", False)],
)
def test_thresholds_bite_on_either_side(
    name: str, larger_is_stricter: bool, small: tuple[Frame, Tensor]
) -> None:
    """Validity is monotonic in each threshold, and an impossible one leaves nothing."""
    view, image = small
    loose, strict = (0.0, 1.01) if larger_is_stricter else (10.0, -0.01)
    count = [
        match(view, image, search_radius_px=6.0, config=MatcherConfig(**{name: value}))
        .valid.sum()
        .item()
        for value in (loose, getattr(MatcherConfig(), name), strict)
    ]
    assert count[0] >= count[1] > 0
    assert count[2] == 0


def test_score_threshold_is_inclusive(small: tuple[Frame, Tensor]) -> None:
    matches = match(*small, search_radius_px=6.0)
    score = matches.score[matches.valid].min()
    for value, kept in ((score - 1e-4, True), (score + 1e-4, False)):
        config = MatcherConfig(min_score=value.item())
        valid = match(*small, search_radius_px=6.0, config=config).valid
        assert torch.equal(valid, matches.valid) == kept


def test_bad_input_is_named(small: tuple[Frame, Tensor]) -> None:
    view, image = small
    with pytest.raises(ImageError, match="render at its size"):
        match(view, image[..., :-1], search_radius_px=6.0)
    for radius in (0.0, -3.0, float("nan"), float("inf"), float(SIDE)):
        with pytest.raises(ConfigError, match="search_radius_px"):
            match(view, image, search_radius_px=radius)
    with pytest.raises(ImageError, match="needs 79"):
        match(frame(torch.rand(78, 200)), torch.rand(1, 1, 78, 200), search_radius_px=3.0)
    with pytest.raises(ConfigError, match="patch_px: 48"):
        MatcherConfig(patch_px=48)
    with pytest.raises(ConfigError, match="grid_per_side: 1"):
        MatcherConfig(grid_per_side=1)
