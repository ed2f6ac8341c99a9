"""Synthetic cratered ground for the matcher's tests: relief, low Sun, known warps, detector noise.

Heights are in pixels of ground, the Sun stands towards +u.
"""

import math

import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

from tnav.records import Frame

SUN_ELEVATION_RAD = math.radians(12.0)


def relief(height_px: int, width_px: int, seed: int) -> Tensor:
    """Fractal ground with craters, periodic in both axes, heights in px."""
    g = torch.Generator().manual_seed(seed)
    fv = torch.fft.fftfreq(height_px, dtype=torch.float64)[:, None]
    fu = torch.fft.rfftfreq(width_px, dtype=torch.float64)
    f = (fv**2 + fu**2).sqrt().clamp_min(1.0 / max(height_px, width_px))
    white = torch.fft.rfft2(torch.randn(height_px, width_px, generator=g, dtype=torch.float64))
    ground = torch.fft.irfft2(white * f**-1.9, s=(height_px, width_px))
    slope = ground.diff(dim=1).std()
    ground = ground * (0.06 / slope)
    count = height_px * width_px // 2500
    radius = 4.0 * (1 - torch.rand(count, generator=g, dtype=torch.float64)).pow(-1 / 1.8)
    centre = torch.rand(count, 2, generator=g, dtype=torch.float64)
    for r, (cv, cu) in zip(radius.clamp_max(60).tolist(), centre.tolist(), strict=True):
        _dig(ground, cv * height_px, cu * width_px, r)
    return ground


def _dig(ground: Tensor, cv: float, cu: float, radius: float) -> None:
    """Parabolic bowl with a rim, wrapped around the edges; an eighth of its width deep."""
    reach = math.ceil(2.2 * radius)
    rows = torch.arange(math.floor(cv) - reach, math.floor(cv) + reach + 1)
    columns = torch.arange(math.floor(cu) - reach, math.floor(cu) + reach + 1)
    x = ((rows[:, None] - cv) ** 2 + (columns - cu) ** 2).sqrt() / radius
    bowl = 0.24 * radius * torch.where(x < 1, x**2 - 1 + 0.2, 0.2 * x.clamp_min(1.0) ** -4)
    taper = ((2.2 - x) / 0.6).clamp(0, 1)
    index = (rows % ground.shape[0])[:, None], (columns % ground.shape[1])[None]
    ground[index] += (bowl * taper).to(ground.dtype)


def shade(ground: Tensor) -> tuple[Tensor, Tensor]:
    """Lambert brightness and what is lit (faces the Sun, and is not in a cast shadow)."""
    slope_u = (ground.roll(-1, 1) - ground.roll(1, 1)) / 2
    slope_v = (ground.roll(-1, 0) - ground.roll(1, 0)) / 2
    tangent = math.tan(SUN_ELEVATION_RAD)
    cosine = (
        (tangent - slope_u) / (1 + slope_u**2 + slope_v**2).sqrt() * math.cos(SUN_ELEVATION_RAD)
    )
    climb = ground - torch.arange(ground.shape[1]) * tangent
    horizon = climb.flip(1).cummax(1).values.flip(1)
    lit = (cosine > 0) & (horizon <= climb + 1e-9)
    return torch.where(lit, cosine, 0.0).float(), lit


def lowpass(x: Tensor, sigma_px: float) -> Tensor:
    """Gaussian low-pass by FFT (periodic)."""
    h, w = x.shape[-2:]
    f2 = torch.fft.fftfreq(h, dtype=torch.float64)[:, None] ** 2
    f2 = f2 + torch.fft.rfftfreq(w, dtype=torch.float64) ** 2
    gain = (-2 * (math.pi * sigma_px) ** 2 * f2).exp()
    return torch.fft.irfft2(torch.fft.rfft2(x.double()) * gain, s=(h, w)).to(x.dtype)


def fourier_shift(x: Tensor, du: float, dv: float) -> Tensor:
    """Exact shift of a periodic band-limited image: content moves by (du, dv) px."""
    h, w = x.shape[-2:]
    fv = torch.fft.fftfreq(h, dtype=torch.float64)[:, None]
    fu = torch.fft.rfftfreq(w, dtype=torch.float64)
    phase = torch.exp(-2j * math.pi * (fv * dv + fu * du))
    return torch.fft.irfft2(torch.fft.rfft2(x.double()) * phase, s=(h, w)).to(x.dtype)


def similarity(
    scale: float, turn_deg: float, shift: tuple[float, float], centre: tuple[float, float]
) -> Tensor:
    """3 x 3 matrix from map-view (u, v) to image (u, v): about a centre, then shifted."""
    a = math.radians(turn_deg)
    c, s = scale * math.cos(a), scale * math.sin(a)
    cu, cv = centre
    return torch.tensor(
        [
            [c, -s, cu - c * cu + s * cv + shift[0]],
            [s, c, cv - s * cu - c * cv + shift[1]],
            [0, 0, 1],
        ],
        dtype=torch.float64,
    )


def warp(x: Tensor, H: Tensor) -> Tensor:
    """Image (h, w) whose content moved by a homography of pixel coordinates; periodic outside.

    Quintic splines on a Fourier-interpolated grid twice as fine: errors of 1e-3 px at most.
    """
    h, w = x.shape
    fine = 2
    spectrum = torch.fft.fftshift(torch.fft.fft2(x.double()))
    spectrum = torch.nn.functional.pad(spectrum, (w // 2, w // 2, h // 2, h // 2))
    upsampled = torch.fft.ifft2(torch.fft.ifftshift(spectrum)).real * fine**2
    v, u = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    source = torch.stack([u, v, torch.ones_like(u)], -1).double() @ torch.linalg.inv(H).T
    source = source[..., :2] / source[..., 2:]
    # Sample j of the fine grid sits at pixel coordinate j / fine + 0.5.
    index = ((source - 0.5) * fine).flip(-1).movedim(-1, 0)
    moved = map_coordinates(upsampled.numpy(), index.numpy(), order=5, mode="grid-wrap")
    return torch.from_numpy(moved).float()


def detect(image: Tensor, seed: int, full_well: float = 20000.0, exposure: float = 2.0) -> Tensor:
    """12-bit detector: gain, shot noise and read noise, clipped to [0, 1]."""
    g = torch.Generator().manual_seed(seed)
    signal = (image * exposure).clamp(0, 1)
    noise = (
        torch.randn(image.shape, generator=g) * (signal / full_well + (12 / full_well) ** 2).sqrt()
    )
    return ((signal + noise).clamp(0, 1) * 4095).round() / 4095


def frame(image: Tensor, lit: Tensor | None = None, hit: Tensor | None = None) -> Frame:
    """Frame of (h, w) or (b, h, w) views; the pixel centred at (u, v) sees point (u, v, u v)."""
    image = image if image.dim() == 3 else image[None]
    b, h, w = image.shape
    everywhere = torch.ones(b, h, w, dtype=torch.bool)
    v, u = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    xyz = torch.stack([u, v, u * v], -1).double().expand(b, h, w, 3).contiguous()
    return Frame(
        image=image[:, None],
        range_m=torch.full((b, h, w), 1000.0, dtype=torch.float64),
        xyz_L=xyz,
        hit=everywhere if hit is None else hit.expand(b, h, w),
        lit=everywhere if lit is None else lit.expand(b, h, w),
    )


def pair(
    H: Tensor,
    height_px: int,
    width_px: int,
    seed: int,
    *,
    coarser: float = 1.0,
    map_noise_px: float = 0.0,
) -> tuple[Frame, Tensor]:
    """Frame of the map and the camera image (1, 1, h, w) that a homography relates.

    Args:
        coarser: posting of the map over the image's pixel; the map holds nothing finer.
        map_noise_px: rms of vertical map noise, correlated over 40 px.
    """
    g = torch.Generator().manual_seed(seed + 1)
    ground = relief(height_px, width_px, seed)
    truth, _ = shade(ground)
    albedo = lowpass(torch.randn(height_px, width_px, generator=g), 12.0)
    truth = lowpass(truth * (1 + 0.05 * albedo / albedo.std()), 0.6)
    known = lowpass(ground, 0.5 * coarser) if coarser > 1 else ground
    if map_noise_px > 0:
        noise = lowpass(torch.randn(height_px, width_px, generator=g, dtype=torch.float64), 28.0)
        known = known + noise * (map_noise_px / noise.std())
    view, lit = shade(known)
    image = detect(warp(truth, H), seed + 2)
    return frame(lowpass(view, 0.6), lit), image[None, None]
