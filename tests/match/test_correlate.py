"""The correlator against brute force, closed-form peaks and exact shifts."""

import math

import kornia
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matching_scenes import fourier_shift, lowpass, relief, shade
from torch import Tensor

from tnav.match import correlate as correlate_module
from tnav.match.channels import HAND_MADE, Channel, _gradient, box_sum, features
from tnav.match.correlate import CORRELATED_SAMPLES, FIT_SIGMA_PX, OUTSIDE, correlate, find_peaks


def brute_force(
    template: Tensor, image: Tensor, cell: Tensor, window: Tensor, patch: int, radius: int
) -> Tensor:
    """Zero-normalised cross-correlation in float64, placement by placement, as it is defined."""
    h, w = image.shape[-2:]
    half, k = patch // 2, 2 * radius + 1
    out = torch.full((cell.shape[0], cell.shape[1], k, k), OUTSIDE, dtype=torch.float64)
    for b, n, i, j in torch.cartesian_prod(*map(torch.arange, out.shape)).tolist():
        r, c = cell[b, n].tolist()
        y, x = (window[b, n] + torch.tensor([i, j]) - radius).tolist()
        if y < half or x < half or y + half >= h or x + half >= w:
            continue
        t = template[b, :, r - half : r + half + 1, c - half : c + half + 1].double()
        s = image[b, :, y - half : y + half + 1, x - half : x + half + 1].double()
        t, s = (z - z.mean((1, 2), keepdim=True) for z in (t, s))
        out[b, n, i, j] = (t * s).sum() / (t.square().sum() * s.square().sum()).sqrt()
    return out


@pytest.mark.parametrize("channels", [1, 3])
def test_correlation_is_zero_normalised_and_masks_what_leaves_the_image(channels: int) -> None:
    g = torch.Generator().manual_seed(1)
    template = torch.randn(2, channels, 30, 34, generator=g) + 3.0
    image = torch.randn(2, channels, 30, 34, generator=g) * 2 - 5.0
    cell = torch.tensor([[[7, 9], [20, 25], [15, 15]], [[12, 8], [7, 26], [22, 7]]])
    window = cell + torch.tensor([[[0, 0], [2, -1], [40, 0]], [[-5, 3], [1, 1], [4, -4]]])
    got = correlate(template, image, cell, window, patch_px=9, radius_px=4)
    expected = brute_force(template, image, cell, window, 9, 4)
    assert (expected[0, 2] == OUTSIDE).all()
    assert torch.equal(got == OUTSIDE, expected == OUTSIDE)
    torch.testing.assert_close(got.double(), expected, atol=2e-6, rtol=0)


def test_gain_and_offset_of_either_image_do_not_matter() -> None:
    g = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, 1, 2, 40, 40, generator=g)
    cell = torch.tensor([[[20, 20]]])
    plain = correlate(a, b, cell, cell, patch_px=15, radius_px=3)
    scaled = correlate(0.1 * a + 2, 7 * b - 4, cell, cell, patch_px=15, radius_px=3)
    torch.testing.assert_close(plain, scaled, atol=2e-5, rtol=0)


def test_flat_patches_score_nothing() -> None:
    textured = torch.randn(1, 1, 40, 40, generator=torch.Generator().manual_seed(3))
    flat = torch.full((1, 1, 40, 40), 0.7)
    cell = torch.tensor([[[20, 20]]])
    for pair in ((textured, flat), (flat, textured), (flat, flat)):
        surface = correlate(*pair, cell, cell, patch_px=15, radius_px=3)
        assert surface.abs().max() < 1e-2
        peaks = find_peaks(surface, patch_px=15)
        assert peaks.covariance_px2.isfinite().all()
        assert peaks.offset_px.isfinite().all()


@given(st.integers(1, 9), st.sampled_from([(12, 10), (10, 140)]), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_box_sum_is_a_convolution_with_ones(size: int, sides: tuple[int, int], seed: int) -> None:
    x = torch.randn(1, 2, *sides, generator=torch.Generator().manual_seed(seed))
    kernel = torch.ones(2, 1, size, size, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(x.double(), kernel, groups=2)
    torch.testing.assert_close(box_sum(x, size).double(), expected, atol=1e-5, rtol=0)


def test_sums_within_windows_and_over_the_image_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    g = torch.Generator().manual_seed(5)
    template, image = (torch.randn(2, 3, 60, 66, generator=g) for _ in range(2))
    cell = torch.randint(0, 60, (2, 12, 2), generator=g)  # windows that leave the image, too
    found = []
    for overlap in (0, 1000):
        monkeypatch.setattr(correlate_module, "_OVERLAP", overlap)
        found.append(correlate(template, image, cell, cell, patch_px=15, radius_px=4))
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)
    assert (found[0] == OUTSIDE).any()


def gaussian_surface(
    top: tuple[float, float], precision: tuple[float, float, float], height: float, k: int = 17
) -> Tensor:
    """Scores of a Gaussian peak whose top is at (u, v) from the centre."""
    span = torch.arange(k) - k // 2
    du, dv = span[None] - top[0], span[:, None] - top[1]
    uu, uv, vv = precision
    exponent = -(uu * du**2 + 2 * uv * du * dv + vv * dv**2) / 2
    return (height * exponent.double().exp()).float()[None, None]


@given(
    st.floats(-5.4, 5.4), st.floats(-5.4, 5.4), st.floats(0.1, 0.5), st.floats(0.1, 0.5),
    st.floats(-0.6, 0.6), st.floats(0.5, 0.95),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_gaussian_peak_is_recovered_exactly(
    u: float, v: float, uu: float, vv: float, lean: float, height: float
) -> None:
    uv = lean * math.sqrt(uu * vv)
    peaks = find_peaks(gaussian_surface((u, v), (uu, uv, vv), height), patch_px=47)
    assert peaks.resolved.item()
    assert peaks.offset_px.flatten().tolist() == pytest.approx([u, v], abs=1e-3)
    # The Cramer-Rao form of the docstring, by hand.
    inverse = torch.linalg.inv(torch.tensor([[uu, uv], [uv, vv]], dtype=torch.float64))
    covariance = peaks.covariance_px2[0, 0].double() - FIT_SIGMA_PX**2 * torch.eye(2)
    ratio = covariance / inverse * (47**2 * height**2 / (1 - height**2))
    assert ratio.min().item() == pytest.approx(CORRELATED_SAMPLES, rel=0.02) or abs(uv) < 1e-3
    assert ratio[0, 0].item() == pytest.approx(CORRELATED_SAMPLES, rel=0.02)


def test_peak_on_the_border_or_beside_an_absent_placement_is_not_resolved() -> None:
    inside = gaussian_surface((7.0, 0.0), (0.3, 0.0, 0.3), 0.9)
    border = gaussian_surface((8.0, 0.0), (0.3, 0.0, 0.3), 0.9)
    beside = gaussian_surface((0.0, 0.0), (0.3, 0.0, 0.3), 0.9)
    beside[..., 7] = OUTSIDE
    ridge = gaussian_surface((0.0, 0.0), (0.3, 0.0, 0.0), 0.9)
    surfaces = torch.cat([inside, border, beside, ridge], 1)
    assert find_peaks(surfaces, patch_px=47).resolved.tolist() == [[True, False, False, False]]


def test_second_peak_is_the_highest_beyond_the_exclusion() -> None:
    surface = gaussian_surface((-4.0, 0.0), (1.0, 0.0, 1.0), 0.8)
    rival = torch.maximum(surface, gaussian_surface((4.0, 2.0), (1.0, 0.0, 1.0), 0.6))
    peaks = find_peaks(torch.cat([surface, rival], 1), patch_px=47)
    assert peaks.second_ratio[0, 0] < 0.01
    assert peaks.second_ratio[0, 1].item() == pytest.approx(0.75, abs=1e-5)


@pytest.mark.parametrize("channel", HAND_MADE)
@pytest.mark.parametrize("shift", [(0.1, -0.25), (0.4, 0.5), (2.3, -1.6)])
def test_exact_shift_is_found_to_hundredths(channel: Channel, shift: tuple[float, float]) -> None:
    """A periodic band-limited image and its Fourier shift: no noise, so all error is the fit's."""
    ground = lowpass(shade(relief(320, 320, 5))[0], 0.8).clamp_min(0)[None, None]
    moved = fourier_shift(ground, *shift).clamp_min(0)
    row = torch.arange(40, 281, 40)
    cell = torch.stack(torch.meshgrid(row, row, indexing="ij"), -1).reshape(1, -1, 2)
    view, image = features(ground, channel), features(moved, channel)
    peaks = find_peaks(correlate(view, image, cell, cell, patch_px=47, radius_px=8), patch_px=47)
    error = peaks.offset_px - torch.tensor(shift)
    assert peaks.resolved.all()
    assert error.median(1).values.abs().max() < 0.02
    assert error.square().mean().sqrt() < 0.03
    if channel is Channel.SIGNED_GRADIENT:
        assert error.square().mean().sqrt() < 1.5 * FIT_SIGMA_PX


@pytest.mark.parametrize("channel", HAND_MADE)
def test_features_ignore_exposure_and_vanish_on_constant_images(channel: Channel) -> None:
    image = shade(relief(96, 128, 6))[0][None, None]
    torch.testing.assert_close(
        features(image, channel), features(0.03 * image, channel), atol=2e-3, rtol=0
    )
    for level in (0.0, 1e-20, 0.4, 1.0):
        flat = features(torch.full((2, 1, 64, 96), level), channel)
        assert flat.shape[2:] == (64, 96)
        assert flat.abs().max() < 1e-3


def test_only_cfog_is_blind_to_reversed_contrast() -> None:
    image = lowpass(shade(relief(192, 192, 7))[0], 1.0).clamp(0.05, 0.5)[None, None]
    reversed_ = 0.02 / image  # exact reversal of the logarithm
    cell = torch.tensor([[[96, 96]]])
    score = {}
    for channel in HAND_MADE:
        a, b = features(image, channel), features(reversed_, channel)
        score[channel] = correlate(a, b, cell, cell, patch_px=47, radius_px=0).item()
    assert score[Channel.CFOG] > 0.7
    assert score[Channel.SIGNED_GRADIENT] < -0.7
    assert score[Channel.LOCAL_CONTRAST] < -0.7


def test_derivatives_are_those_of_sobel() -> None:
    x = torch.rand(2, 1, 21, 17, generator=torch.Generator().manual_seed(2))
    expected = kornia.filters.spatial_gradient(x).squeeze(1)
    torch.testing.assert_close(_gradient(x), expected, atol=1e-6, rtol=0)
