"""Matching with a network: what any one must hold, and what the shipped one finds."""

import copy
import dataclasses
import math

import pytest
import simulated_device
import torch
from matching_scenes import detect, frame, lowpass, pair, relief, shade, similarity, warp
from torch import Tensor

from tnav.errors import ConfigError
from tnav.match import matcher, search
from tnav.match.channels import Channel
from tnav.match.matcher import match
from tnav.match.network import FeatureNet, NetworkRecipe
from tnav.match.weights import default_model
from tnav.records import Frame, Matches

SIDE = 384
MIDDLE = (SIDE / 2, SIDE / 2)
SHIFT = similarity(1.0, 0.0, (2.3, -1.4), MIDDLE)
SMALL = NetworkRecipe(widths=(8, 8, 12, 16), blocks=(1, 1, 1, 1), pyramid=16, half=8, fine=8)


@pytest.fixture(scope="module")
def untrained() -> FeatureNet:
    """Random convolutions are features too: fair ones, where nothing but the place differs."""
    torch.manual_seed(3)
    return FeatureNet(SMALL).folded()


@pytest.fixture(scope="module")
def shipped() -> FeatureNet:
    model = default_model("cpu")
    if model is None:
        pytest.skip("no model is there")
    return model.network


def error_px(matches: Matches, H: Tensor) -> Tensor:
    at = torch.cat([matches.uv_map_px, torch.ones_like(matches.uv_map_px[..., :1])], -1) @ H.T
    return (matches.uv_px - at[..., :2] / at[..., 2:])[matches.valid].norm(dim=-1)


def test_where_the_network_finds_nothing_gradients_stay(untrained: FeatureNet) -> None:
    view, image = pair(SHIFT, SIDE, SIDE, 71)
    net = copy.deepcopy(untrained)
    net.calibration[0] = 20.0  # so unsure that none is valid
    auto = match(view, image, search_radius_px=6.0, network=net)
    assert not auto.learned.any()
    assert auto.valid.float().mean() > 0.5


def test_the_outer_ring_of_a_large_view_is_matched(untrained: FeatureNet) -> None:
    """A view against itself: every patch of the grid fits into the image, the outermost too."""
    side = 1024
    view, _ = pair(similarity(1.0, 0.0, (0.0, 0.0), (512.0, 512.0)), side, side, 5)
    found = match(
        view, view.image, search_radius_px=6.0, network=untrained, fine_channel=Channel.LEARNED
    )
    u, v = found.uv_map_px[0].unbind(-1)
    ring = (u == u.min()) | (u == u.max()) | (v == v.min()) | (v == v.max())
    assert found.valid[0][ring].float().mean() > 0.8


def under_suns(H: Tensor, seed: int, turn: int) -> tuple[Frame, Tensor]:
    """The map under a Sun that is wrong by so many quarter turns, the image under the right one."""
    ground = relief(SIDE, SIDE, seed)
    truth, _ = shade(ground)
    image = detect(warp(lowpass(truth, 0.6), H), seed + 2)
    view, lit = (x.rot90(turn, (0, 1)) for x in shade(ground.rot90(-turn, (0, 1))))
    return frame(lowpass(view, 0.6).contiguous(), lit.contiguous()), image[None, None]


@pytest.mark.parametrize("radius", [6.0, 40.0])
def test_untrained_features_find_a_shift(untrained: FeatureNet, radius: float) -> None:
    view, image = pair(SHIFT, SIDE, SIDE, 71)
    found = match(
        view, image, search_radius_px=radius, network=untrained, fine_channel=Channel.LEARNED
    )
    assert found.learned.all()
    assert found.valid.float().mean() > 0.5
    assert error_px(found, SHIFT).median() < 0.3


def test_places_are_corners_of_pixels_with_the_mean_of_their_points(untrained: FeatureNet) -> None:
    view, image = pair(SHIFT, SIDE, SIDE, 71)
    found = match(
        view, image, search_radius_px=6.0, network=untrained, fine_channel=Channel.LEARNED
    )
    assert torch.equal(found.uv_map_px % 2, torch.ones_like(found.uv_map_px))
    u, v = found.uv_map_px.unbind(-1)
    torch.testing.assert_close(found.point_L, torch.stack([u, v, u * v], -1))


def _told(count: int, *, learned: bool) -> Matches:
    """100 matches of one frame, the first so many valid."""
    uv_px = (
        torch.rand(1, 100, 2, generator=torch.Generator().manual_seed(int(learned))).double() * 500
    )
    return Matches(
        uv_map_px=uv_px,
        uv_px=uv_px + 1,
        covariance_px2=torch.eye(2, dtype=torch.float64).expand(1, 100, 2, 2),
        score=torch.ones(1, 100),
        point_L=torch.zeros(1, 100, 3, dtype=torch.float64),
        valid=(torch.arange(100) < count)[None],
        learned=torch.tensor([learned]),
    )


@pytest.mark.parametrize("device_waits", [False, True])
@pytest.mark.parametrize(
    ("agree", "found", "gradients", "network", "kept"),
    [
        (True, 100, 50, 100, True),
        (True, 100, 49, 100, False),  # too many were lost
        (False, 100, 100, 100, False),
        (False, 100, 12, 11, True),  # too few learned ones
        (False, 100, 13, 12, False),
        (False, 100, 10, 11, False),  # of two that are few, the more
        (True, 100, 10, 11, False),
        (True, 30, 15, 11, True),
    ],
)
def test_which_matches_a_frame_keeps(
    agree: bool,
    found: int,
    gradients: int,
    network: int,
    kept: bool,
    device_waits: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same whether what is not wanted is left out, as on a CPU, or not, as on accelerators."""
    one, other = _told(gradients, learned=False), _told(network, learned=True)
    monkeypatch.setattr(matcher, "_fine", lambda *_: one)
    monkeypatch.setattr(matcher, "_learned", lambda *_: other)
    if device_waits:
        monkeypatch.setattr(matcher, "_may_any", lambda flags: True)
    middle = matcher._Middle(torch.zeros(1, 100, 2), torch.tensor([found]), torch.tensor([agree]))
    picked = matcher._chosen(object.__new__(matcher._Task), middle)
    assert bool(picked.learned[0]) is not kept
    assert torch.equal(picked.valid, (one if kept else other).valid)
    assert torch.equal(picked.uv_px, (one if kept else other).uv_px)


@pytest.mark.parametrize(("seed", "turn", "agree"), [(31, 0, True), (31, 1, False), (32, 2, False)])
def test_gradients_agree_under_the_true_sun_alone(
    shipped: FeatureNet, seed: int, turn: int, agree: bool
) -> None:
    view, image = under_suns(SHIFT, seed, turn)
    found = match(view, image, search_radius_px=6.0, network=shipped)
    assert bool(found.learned[0]) is not agree
    assert found.valid.float().mean() > 0.3


@pytest.mark.parametrize(
    ("apart_sigmas", "shared", "found", "agree"),
    [
        (0.749, 100, 100, True),
        (0.751, 100, 100, False),
        (math.nan, 100, 100, False),
        (0.1, 12, 20, True),
        (0.1, 11, 20, False),
        (0.1, 50, 100, True),
        (0.1, 49, 100, False),
        (math.nan, 0, 0, False),
    ],
)
def test_when_gradients_agree(apart_sigmas: float, shared: int, found: int, agree: bool) -> None:
    told = matcher._agree(
        torch.tensor([apart_sigmas]), torch.tensor([shared]), torch.tensor([found])
    )
    assert told.tolist() == [agree]


def test_images_one_by_one_have_the_features_of_a_batch(
    untrained: FeatureNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_has_bfloat16", lambda kind: False)
    images = torch.rand(3, 1, 70, 90, generator=torch.Generator().manual_seed(1))
    found = []
    for alone in (True, False):
        monkeypatch.setattr(search, "_one_by_one", lambda kind, alone=alone: alone)
        found.append(search.on_any_size(untrained.templates, images))
    for one, other in zip(*found, strict=True):
        assert len(one) == 3
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_frames_of_a_batch_choose_for_themselves(shipped: FeatureNet) -> None:
    pairs = [under_suns(SHIFT, 31, turn) for turn in (0, 2)]
    names = [f.name for f in dataclasses.fields(Frame) if f.name != "surface"]
    views = Frame(**{n: torch.cat([getattr(view, n) for view, _ in pairs]) for n in names})
    both = match(
        views, torch.cat([image for _, image in pairs]), search_radius_px=6.0, network=shipped
    )
    assert both.learned.tolist() == [False, True]
    for k, (view, image) in enumerate(pairs):
        alone = match(view, image, search_radius_px=6.0, network=shipped)
        assert torch.equal(alone.valid[0], both.valid[k])
        torch.testing.assert_close(alone.uv_px[0], both.uv_px[k], atol=1e-3, rtol=0)


def test_nothing_of_another_picture_is_kept(untrained: FeatureNet) -> None:
    view, image = pair(SHIFT, SIDE, SIDE, 71)
    other = match(view, image.flip(-1), search_radius_px=6.0, network=untrained)
    assert other.valid.float().mean() < 0.1


def test_learned_features_need_a_network() -> None:
    view, image = pair(SHIFT, SIDE, SIDE, 71)
    for which in ("fine_channel", "coarse_channel"):
        with pytest.raises(ConfigError, match="needs the weights of a network"):
            match(view, image, search_radius_px=40.0, **{which: Channel.LEARNED})


@pytest.mark.parametrize("radius", [6.0, 40.0])
def test_accelerator_gives_the_same_and_is_never_waited_for(
    untrained: FeatureNet, radius: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_has_bfloat16", lambda kind: False)
    simulated_device.install()
    view, image = pair(SHIFT, SIDE, SIDE, 4, coarser=2.0)
    names = [f.name for f in dataclasses.fields(Frame) if f.name != "surface"]
    moved = Frame(**{n: getattr(view, n).to(simulated_device.DEVICE) for n in names})
    net = FeatureNet(SMALL).folded()
    net.load_state_dict(untrained.state_dict())
    net = net.to(simulated_device.DEVICE)
    here = match(view, image, search_radius_px=radius, network=untrained)
    with simulated_device.count_syncs() as syncs:
        there = match(
            moved, image.to(simulated_device.DEVICE), search_radius_px=radius, network=net
        )
    assert not syncs
    assert torch.equal(there.valid.cpu(), here.valid)
    torch.testing.assert_close(there.uv_px.cpu(), here.uv_px, atol=1e-3, rtol=0)


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_shipped_model_finds_a_view_under_a_wrong_sun(shipped: FeatureNet, turn: int) -> None:
    """Ground, craters and law are not those of training; 90, 180 and 270 deg of azimuth."""
    H = similarity(1.02, 1.0, (21.0, -13.0), MIDDLE)
    view, image = under_suns(H, 31, turn)
    found = match(view, image, search_radius_px=40.0, network=shipped)
    error = error_px(found, H)
    assert found.learned.all()
    assert len(error) > 15
    assert (error < 3).float().mean() > 0.9
    assert error.median() < 1.0
    by_gradients = match(view, image, search_radius_px=40.0)
    assert by_gradients.valid.sum() < len(error) / 2


@pytest.mark.parametrize(("scale", "turn_deg"), [(1.1, 5.0), (0.9, -5.0)])
def test_shipped_model_finds_a_turned_and_scaled_view(
    shipped: FeatureNet, scale: float, turn_deg: float
) -> None:
    H = similarity(scale, turn_deg, (25.0, 12.0), MIDDLE)
    view, image = pair(H, SIDE, SIDE, 73, coarser=2.0)
    found = match(view, image, search_radius_px=90.0, network=shipped)
    error = error_px(found, H)
    assert len(error) > 40
    assert (error < 3).float().mean() > 0.98
    assert error.median() < 0.3


@pytest.mark.parametrize("level", [0.0, 0.4, 1.0])
def test_shipped_model_finds_nothing_where_there_is_nothing(
    shipped: FeatureNet, level: float
) -> None:
    view, image = pair(SHIFT, SIDE, SIDE, 71)
    flat = torch.full_like(image, level)
    noisy = flat + 0.01 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    for nothing in (flat, noisy.clamp(0, 1)):
        found = match(view, nothing, search_radius_px=40.0, network=shipped)
        assert found.valid.sum() <= 2
        assert all(math.isfinite(float(x)) for x in found.uv_px.flatten()[:10])
