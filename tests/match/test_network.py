"""The feature network: size, shapes, and what its features must not depend on."""

import pytest
import simulated_device
import torch
from torch import Tensor

from tnav.match import search
from tnav.match.network import DESCRIPTOR_STRIDE, MULTIPLE_PX, STRIDE, FeatureNet, NetworkRecipe
from tnav.match.search import on_any_size

SMALL = NetworkRecipe(widths=(8, 8, 12, 16), blocks=(1, 1, 1, 1), pyramid=16, half=8, fine=4)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """No bfloat16, whatever the machine: results are compared to rounding."""
    monkeypatch.setattr(search, "_has_bfloat16", lambda kind: False)


@pytest.fixture(scope="module")
def net() -> FeatureNet:
    torch.manual_seed(0)
    return FeatureNet(SMALL).eval().requires_grad_(requires_grad=False)


def texture(h: int, w: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, h // 4, w // 4, generator=g)
    return torch.nn.functional.interpolate(coarse, size=(h, w), mode="bilinear")


def test_at_most_a_million_parameters() -> None:
    assert sum(p.numel() for p in FeatureNet().parameters()) <= 1_000_000


def test_shapes_and_strides(net: FeatureNet) -> None:
    found = net(texture(64, 96))
    assert found.fine.shape == (1, 4, 64 // STRIDE, 96 // STRIDE)
    assert found.log_sigma.shape == (1, 1, 64 // STRIDE, 96 // STRIDE)
    assert found.descriptor.shape == (1, 64, 64 // DESCRIPTOR_STRIDE, 96 // DESCRIPTOR_STRIDE)
    assert found.keypoint.shape == (1, 1, 64 // DESCRIPTOR_STRIDE, 96 // DESCRIPTOR_STRIDE)
    torch.testing.assert_close(found.descriptor.norm(dim=1), torch.ones(1, 16, 24))


def test_exposure_does_not_matter(net: FeatureNet) -> None:
    image = texture(64, 64)
    for a, b in zip(net(image), net(0.03 * image), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_features_move_with_the_image(net: FeatureNet) -> None:
    """By a multiple of the coarsest cell, away from the borders' reach, exactly."""
    image = texture(640, 640)
    moved = image.roll((MULTIPLE_PX, 2 * MULTIPLE_PX), (2, 3)) * (
        image.mean() / image.roll((MULTIPLE_PX, 2 * MULTIPLE_PX), (2, 3)).mean()
    )
    for a, b in zip(net(image), net(moved), strict=True):
        cell = 640 // a.shape[-1]
        rolled = a.roll((MULTIPLE_PX // cell, 2 * MULTIPLE_PX // cell), (2, 3))
        inner = slice(288 // cell, 352 // cell)
        torch.testing.assert_close(
            rolled[..., inner, inner], b[..., inner, inner], atol=1e-4, rtol=1e-3
        )


def test_a_frame_does_not_depend_on_those_beside_it(net: FeatureNet) -> None:
    images = torch.cat([texture(64, 64, seed) for seed in range(3)])
    for together, alone in zip(net(images), net(images[1:2]), strict=True):
        torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("level", [0.0, 1e-9, 1.0])
def test_constant_images_stay_finite(net: FeatureNet, level: float) -> None:
    assert all(f.isfinite().all() for f in net(torch.full((1, 1, 64, 64), level)))


def test_any_size_is_padded_and_cropped(net: FeatureNet) -> None:
    image = texture(100, 76)
    fine, log_sigma, descriptor, _ = on_any_size(net, image)
    assert fine.shape[-2:] == log_sigma.shape[-2:] == (50, 38)
    assert descriptor.shape[-2:] == (25, 19)
    torch.testing.assert_close(on_any_size(net, texture(96, 80))[0], net(texture(96, 80)).fine)


def test_bfloat16_is_as_good(net: FeatureNet, monkeypatch: pytest.MonkeyPatch) -> None:
    exact, _ = on_any_size(net.templates, texture(64, 96))
    monkeypatch.setattr(search, "_has_bfloat16", lambda kind: True)
    fast, _ = on_any_size(net.templates, texture(64, 96))
    assert fast.dtype == torch.float32
    assert not torch.equal(fast, exact)
    assert (fast - exact).std() < 0.02 * exact.std()


def test_templates_alone_are_the_same(net: FeatureNet) -> None:
    found, alone = net(texture(64, 96)), net.templates(texture(64, 96))
    assert torch.equal(found.fine, alone[0])
    assert torch.equal(found.log_sigma, alone[1])


def test_folding_the_normalisation_changes_nothing() -> None:
    torch.manual_seed(1)
    trained = FeatureNet(SMALL).train()
    for seed in range(5):  # so that running statistics are not those of a new network
        trained(texture(64, 64, seed))
    folded = trained.folded()
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    for a, b in zip(trained.eval()(texture(64, 64)), folded(texture(64, 64)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_black_half_leaves_the_other_half(net: FeatureNet) -> None:
    """Local normalisation: features far from the damage hardly change."""
    image = texture(640, 640)
    damaged = image.clone()
    damaged[..., :160] = 0.0
    a, b = net(image).fine[..., 256:], net(damaged).fine[..., 256:]
    assert (a - b).std() < 0.5 * a.std()


def test_accelerator_gives_the_same_and_is_never_waited_for(net: FeatureNet) -> None:
    simulated_device.install()
    image = texture(64, 64)
    there = FeatureNet(SMALL).eval().requires_grad_(requires_grad=False)
    there.load_state_dict(net.state_dict())
    there = there.to(simulated_device.DEVICE)
    moved = image.to(simulated_device.DEVICE)
    with simulated_device.count_syncs() as syncs:
        found = on_any_size(there, moved)
    assert not syncs
    for a, b in zip(found, on_any_size(net, image), strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=1e-5, rtol=1e-4)
