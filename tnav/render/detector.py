"""From radiance to digital numbers: optics, exposure, shot and read noise, quantisation.

Photon transfer (Janesick 2007, chapter 2): electrons are Poisson in the light, read noise is added,
the converter rounds and clips. What comes out is linear, float32 in [0, 1], a multiple of 1/4095.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float32
from kornia.filters import gaussian_blur2d
from torch import Tensor

from tnav.errors import ConfigError

_KERNEL_SIGMAS = 4.0  # half width of the sampled point spread function


@dataclass(frozen=True, slots=True)
class Detector:
    """A space-grade CMOS sensor behind a diffraction-limited lens; typical values, not one part."""

    psf_sigma_px: float = 0.6  # optics and pixel aperture together
    full_well_e: float = 20_000.0
    read_noise_e: float = 12.0
    bits: int = 12
    exposure_level: float = 0.45  # share of full well that the brightest percent is exposed to

    def __post_init__(self) -> None:
        for name in ("psf_sigma_px", "full_well_e", "read_noise_e", "bits"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"detector.{name}: {getattr(self, name)}, expected > 0")


def blur(radiance: Float32[Tensor, "b 1 h w"], sigma_px: float) -> Float32[Tensor, "b 1 h w"]:
    """Radiance through a Gaussian point spread function."""
    size = 2 * int(_KERNEL_SIGMAS * sigma_px + 0.5) + 1
    return gaussian_blur2d(radiance, (size, size), (sigma_px, sigma_px), border_type="replicate")


def exposure_gain(
    radiance: Float32[Tensor, "b 1 h w"], detector: Detector
) -> Float32[Tensor, "b 1 1 1"]:
    """Full-well shares per unit radiance that put the 99th percentile at the exposure level."""
    flat = radiance.flatten(1)
    bright = flat.kthvalue(max(1, int(0.99 * flat.shape[1])), dim=1).values[:, None, None, None]
    return detector.exposure_level / bright.clamp_min(1e-6)


def expose(
    radiance: Float32[Tensor, "b 1 h w"], detector: Detector, seed: int
) -> Float32[Tensor, "b 1 h w"]:
    """What the converter reads of a scene.

    Args:
        radiance: radiance factor at the aperture.
        detector: the sensor.
        seed: of shot and read noise.
    """
    signal_e = blur(radiance, detector.psf_sigma_px) * exposure_gain(radiance, detector)
    signal_e = (signal_e * detector.full_well_e).clamp_min(0.0)
    noise = torch.randn(2, *radiance.shape, generator=torch.Generator().manual_seed(seed))
    shot, read = noise.to(radiance.device)
    # Shot noise as a normal of the same variance: at the 12 e of read noise the two are one.
    electrons = signal_e + signal_e.sqrt() * shot + detector.read_noise_e * read
    steps = float(2**detector.bits - 1)
    return (electrons / detector.full_well_e * steps).round().clamp(0.0, steps) / steps
