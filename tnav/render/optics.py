"""From the scene to electrons a second: light fall-off, point spread function, radiometry.

Radiance comes as the mean over each pixel's square, which the renderer takes with 4 samples or more
a pixel: the aperture of the pixels is in it. The point spread here is that of the optics and of
charge that diffuses, and widens the mean of squares by its own second moment and no more: an edge
seen through 1 sigma of s pixels spreads over sqrt(s^2 + 1/12).
"""

import functools
import math
from collections.abc import Callable

import torch
from jaxtyping import Float32
from kornia.filters import filter2d
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import pad

from tnav.config import Recipe
from tnav.errors import ConfigError
from tnav.geometry.camera import Camera

_KERNEL_SIGMAS = 4.0  # half width of the kernel, and a pixel
_DISC_SUBPIXELS = 16  # along a pixel's side, to find how much of it the blur disc covers
_SUN_TEMPERATURE_K, _SUN_RADIUS_M = 5772.0, 695_700e3  # nominal (IAU 2015 Resolution B3)
_ASTRONOMICAL_UNIT_M = 149_597_870_700.0  # IAU 2012 Resolution B2
_PLANCK_J_S, _LIGHT_M_S, _BOLTZMANN_J_K = 6.62607015e-34, 299_792_458.0, 1.380649e-23  # SI 2019
_BAND_STEPS = 200


class Vignetting(Recipe):
    """Fall-off of the light away from the principal point; both factors multiply.

    Where no ``Camera`` says where that lies, it is the image's middle.
    """

    # cos^4 of the field angle, (1 + r^2/f^2)^-2; None leaves it out. Where there is a ``Camera``,
    # the angles are those of its own rays, distortion and all, and this only turns the law on.
    focal_px: float | None = Field(default=None, gt=0)
    # a1, a2, ... of 1 + a1 q^2 + a2 q^4 + ..., with q = 1 in the farthest corner: pupil and mount
    polynomial: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _stays_positive(self) -> "Vignetting":
        for q2 in (k / 64 for k in range(65)):
            if not 0 <= 1 + sum(a * q2 ** (k + 1) for k, a in enumerate(self.polynomial)) <= 2:
                raise ValueError("polynomial leaves [0, 2] between the middle and the corner")
        return self


class Radiometry(Recipe):
    """What turns a radiance factor (I/F) into photo-electrons; typical figures of no one camera."""

    f_number: float = Field(default=4.0, gt=0)
    pixel_pitch_um: float = Field(default=5.5, gt=0)
    quantum_efficiency: float = Field(default=0.5, gt=0, le=1)  # mean over the band
    transmission: float = Field(default=0.8, gt=0, le=1)  # of the lens
    band_nm: tuple[float, float] = (450.0, 750.0)
    sun_distance_au: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _band(self) -> "Radiometry":
        if not 100 <= self.band_nm[0] < self.band_nm[1] <= 5000:
            raise ValueError(f"band_nm {self.band_nm}, expected 100 <= low < high <= 5000")
        return self

    @property
    def electrons_per_s(self) -> float:
        """Photo-electrons a second of a pixel on the axis that sees I/F = 1.

        A radiance factor of 1 is the radiance F/pi of a white Lambert plate under the Sun's photon
        irradiance F (Hapke 2012, section 10.3). A lens focused at infinity lays the irradiance
        tau pi L / (4 N^2) on its image (Janesick 2007, chapter 2), of which a share QE counts.
        """
        pixel_m2 = (self.pixel_pitch_um * 1e-6) ** 2
        photons = sun_photons(self.band_nm) / self.sun_distance_au**2
        share = self.transmission * self.quantum_efficiency / (4 * self.f_number**2)
        return photons * share * pixel_m2


@functools.cache
def sun_photons(band_nm: tuple[float, float]) -> float:
    """Solar photons a second and square metre at 1 au within a band.

    The Sun as a black body of its nominal temperature and radius, whose irradiance over all
    wavelengths is the nominal 1361 W/m^2; lines and limb make single nanometres differ by more.
    """
    low_m, high_m = (b * 1e-9 for b in band_nm)
    step_m = (high_m - low_m) / _BAND_STEPS
    total = 0.0
    for k in range(_BAND_STEPS):
        wave_m = low_m + (k + 0.5) * step_m
        exponent = _PLANCK_J_S * _LIGHT_M_S / (wave_m * _BOLTZMANN_J_K * _SUN_TEMPERATURE_K)
        # Planck's law over the photon's energy, times pi: photons a second from a square metre
        total += 2 * math.pi * _LIGHT_M_S / wave_m**4 / math.expm1(exponent) * step_m
    return total * (_SUN_RADIUS_M / _ASTRONOMICAL_UNIT_M) ** 2


def falloff(
    vignetting: Vignetting,
    height: int,
    width: int,
    device: torch.device,
    camera: Camera | None = None,
) -> Float32[Tensor, "{height} {width}"]:
    """Light that each pixel gets over what the principal point gets.

    Args:
        vignetting: the laws.
        height: of the image, px.
        width: of the image, px.
        device: to compute on.
        camera: whose rays and principal point count; a pinhole about the middle when absent.

    Raises:
        ConfigError: a camera of another size.
    """
    if camera is not None and (camera.height_px, camera.width_px) != (height, width):
        raise ConfigError(
            f"camera of {camera.width_px} x {camera.height_px} pixels, expected the image's "
            f"{width} x {height}"
        )
    cx_px, cy_px = (width / 2, height / 2) if camera is None else (camera.cx_px, camera.cy_px)
    v = torch.arange(height, dtype=torch.float64, device=device) + 0.5 - cy_px
    u = torch.arange(width, dtype=torch.float64, device=device) + 0.5 - cx_px
    r2 = v[:, None].square() + u.square()
    factor = torch.ones_like(r2)
    if vignetting.focal_px is not None and camera is None:
        factor = (1 + r2 / vignetting.focal_px**2) ** -2
    elif vignetting.focal_px is not None and camera is not None:
        x, y, z = camera.unproject(camera.pixel_centres(device)).unbind(-1)
        factor = (z.clamp_min(0.0).square() / (x * x + y * y + z * z)).square()
    corner2 = max(cx_px, width - cx_px) ** 2 + max(cy_px, height - cy_px) ** 2
    q2 = r2 / corner2
    polynomial = torch.zeros_like(r2)
    for a in reversed(vignetting.polynomial):
        polynomial = (polynomial + a) * q2
    return (factor * (1 + polynomial)).float()


def blur(radiance: Float32[Tensor, "b 1 h w"], sigma_px: float) -> Float32[Tensor, "b 1 h w"]:
    """Radiance through a Gaussian point spread function; 0 leaves it as it is.

    By the discrete analogue of the Gaussian (Lindeberg 1990, IEEE Trans. PAMI 12, 234): its second
    moment is sigma^2 and two in a row are one of the summed variance, down to no blur at all, where
    samples of a narrow Gaussian miss its width and its integral over pixels adds theirs again.
    """
    if sigma_px == 0:
        return radiance
    weights = _discrete_gaussian(float(sigma_px))
    return _along(_along(radiance, weights, 2), weights, 3)


def _along(
    radiance: Float32[Tensor, "b 1 h w"], weights: tuple[float, ...], axis: int
) -> Float32[Tensor, "b 1 h w"]:
    """Convolve an axis with a symmetric kernel, given from its middle outwards; edges go on.

    As sums of shifted frames: the weights need no tensor on the frames' device, and no bit depends
    on the batch.
    """
    reach, count = len(weights) - 1, radiance.shape[axis]
    edges = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
    padded = pad(radiance, edges, mode="replicate")
    total = radiance * weights[0]
    for k in range(1, reach + 1):
        pair = padded.narrow(axis, reach - k, count) + padded.narrow(axis, reach + k, count)
        total += pair.mul_(weights[k])
    return total


def defocus(radiance: Float32[Tensor, "b 1 h w"], disc_px: float) -> Float32[Tensor, "b 1 h w"]:
    """Radiance out of focus: spread evenly over a disc of a diameter; 0 leaves it as it is.

    Each pixel gets the share of the disc that covers it: a disc of a pixel or less changes nothing,
    and from 2 px on the second moment is d^2/16 and the 1/12 of a pixel's side.
    """
    if disc_px == 0:
        return radiance
    kernel = _disc(float(disc_px), radiance.device)
    return _one_by_one(lambda f: filter2d(f, kernel[None], border_type="replicate"), radiance)


def diffraction_sigma_px(airy_px: float) -> float:
    """1 sigma of the Gaussian with the Airy pattern's energy and peak.

    Args:
        airy_px: wavelength times f-number over the pixel pitch. The Airy peak is pi/4 over its
            square (Born and Wolf 1999, section 8.5.2), the Gaussian's 1 over 2 pi sigma^2.
    """
    return math.sqrt(2) / math.pi * airy_px


def _one_by_one(spread: Callable[[Tensor], Tensor], radiance: Tensor) -> Tensor:
    # A convolution picks its order of summation by the size of the batch, and a last bit that
    # differs makes a photon more or less: frames go through alone, so that a batch is its frames.
    return torch.cat([spread(frame) for frame in radiance.split(1)])


@functools.cache
def _discrete_gaussian(sigma_px: float) -> tuple[float, ...]:
    """T(n) = exp(-t) I_n(t) with t = sigma^2, n from 0, by the Fourier transform of its sequence.

    That is exp(t (cos w - 1)); the sum over N angles is its integral but for T(N - n) and beyond.
    """
    reach = math.ceil(_KERNEL_SIGMAS * sigma_px) + 1
    w = torch.arange(8 * reach, dtype=torch.float64) * (2 * math.pi / (8 * reach))
    n = torch.arange(reach + 1, dtype=torch.float64)
    values = (torch.exp(sigma_px**2 * (w.cos() - 1)) * (n[:, None] * w).cos()).sum(1)
    return tuple((values / (2 * values.sum() - values[0])).tolist())


@functools.cache
def _disc(diameter_px: float, device: torch.device) -> Float32[Tensor, "k k"]:
    """Share of a disc's light in each pixel around its centre."""
    reach = math.ceil(diameter_px / 2 + 0.5) - 1
    side = 2 * reach + 1
    steps = torch.arange(side * _DISC_SUBPIXELS, dtype=torch.float64, device=device)
    place = (steps + 0.5) / _DISC_SUBPIXELS - side / 2
    inside = (place[:, None].square() + place.square() <= (diameter_px / 2) ** 2).double()
    cells = inside.view(side, _DISC_SUBPIXELS, side, _DISC_SUBPIXELS).sum((1, 3))
    return (cells / cells.sum()).float()
