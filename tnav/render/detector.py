"""From radiance to digital numbers: optics, exposure, the sensor's charge, noise, quantisation.

The order is that of the light: fall-off and point spread (``optics``), exposure, photo-electrons
with the pixels' unequal response, dark electrons, shot noise over both, full well and blooming,
then what reading adds: offsets, read and column noise, gain, converter. The linear model is that of
EMVA Standard 1288, Release 4 Linear (2021) and of Janesick 2007 (Photon Transfer, chapters 2, 3 and
11). What comes out is linear, float32 in [0, 1], a multiple of ``1/(2^bits - 1)``. Every effect has
a neutral value that takes it out of the numbers; all but a quiet sensor's are off by default.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Float64
from pydantic import Field, model_validator
from torch import Tensor

from tnav.config import Recipe
from tnav.errors import ConfigError
from tnav.geometry.camera import Camera
from tnav.render import noise, optics
from tnav.render.exposure import Exposure, auto_exposure_s
from tnav.render.noise import Stream


class Detector(Recipe):
    """A space-grade CMOS sensor behind a lens; typical values, not one part."""

    # Light on its way in
    vignetting: optics.Vignetting = optics.Vignetting()
    psf_sigma_px: float = Field(default=0.6, ge=0, le=20)  # optics, diffusion; not the pixel's side
    airy_px: float = Field(default=0.0, ge=0, le=20)  # wavelength x f-number / pixel pitch
    defocus_px: float = Field(default=0.0, ge=0, le=60)  # diameter of the blur disc
    # Light into charge
    radiometry: optics.Radiometry = optics.Radiometry()
    exposure_s: float | None = Field(default=None, gt=0)  # None: automatic, by the next four
    exposure_level: float = Field(default=0.45, gt=0, le=10)  # share of full well that the ...
    exposure_percentile: float = Field(default=0.99, gt=0, le=1)  # ... brightest percent gets
    exposure_min_s: float = Field(default=1e-6, gt=0)
    exposure_max_s: float = Field(default=0.1, gt=0)  # a scene in shadow stays dark
    # The sensor: fixed patterns are those of its own seed, the same in every frame
    sensor_seed: int = Field(default=0, ge=-(2**40), le=2**40)
    prnu: float = Field(default=0.0, ge=0, lt=0.3)  # 1 sigma of the response over its mean
    dsnu_e: float = Field(default=0.0, ge=0)  # 1 sigma of the pixels' offsets
    dark_current_e_s: float = Field(default=0.0, ge=0)  # at the reference temperature
    dark_reference_c: float = Field(default=20.0, ge=-273.15)
    temperature_c: float = Field(default=20.0, ge=-273.15, le=150)
    dark_doubling_c: float = Field(default=6.5, ge=1, le=50)  # 5 to 8 for silicon (Theuwissen)
    hot_share: float = Field(default=0.0, ge=0, le=1)  # of the pixels
    hot_current_e_s: float = Field(default=0.0, ge=0)  # their mean, at the reference temperature
    full_well_e: float = Field(default=20_000.0, gt=0)
    blooming: float = Field(default=0.0, ge=0, le=1)  # share of the excess that is not drained
    # Reading
    read_noise_e: float = Field(default=12.0, ge=0)
    column_noise_e: float = Field(default=0.0, ge=0)  # one draw a column and frame
    gain_e_dn: float | None = Field(default=None, gt=0)  # None: full well, over black, at the end
    black_level_dn: float = Field(default=0.0, ge=0)
    bits: int = Field(default=12, ge=1, le=16)

    @model_validator(mode="after")
    def _consistent(self) -> "Detector":
        if self.exposure_min_s > self.exposure_max_s:
            raise ValueError(
                f"exposure_min_s {self.exposure_min_s} exceeds exposure_max_s {self.exposure_max_s}"
            )
        if self.black_level_dn >= self.steps:
            raise ValueError(f"black_level_dn {self.black_level_dn}, expected under {self.steps}")
        return self

    @property
    def steps(self) -> int:
        """Largest digital number."""
        return int(2**self.bits - 1)

    @property
    def electrons_per_dn(self) -> float:
        """Gain of the converter."""
        if self.gain_e_dn is not None:
            return self.gain_e_dn
        return self.full_well_e / (self.steps - self.black_level_dn)

    @property
    def saturation_e(self) -> float:
        """Charge from which on the number says no more: full well, or the converter's last step."""
        if self.gain_e_dn is None:
            return self.full_well_e
        return min(self.full_well_e, self.gain_e_dn * (self.steps - self.black_level_dn))

    @property
    def dark_factor(self) -> float:
        """Dark current at the sensor's temperature over that at the reference.

        2^((T - T_ref) / T_d) (EMVA 1288, section on the temperature dependence of dark current).
        """
        return float(2 ** ((self.temperature_c - self.dark_reference_c) / self.dark_doubling_c))


@dataclass(frozen=True, slots=True)
class Patterns:
    """What makes a sensor's pixels unequal, by its own seed."""

    response: Float32[Tensor, "1 1 h w"] | float  # over the mean
    offset_e: Float32[Tensor, "1 1 h w"] | float
    dark_e_s: Float32[Tensor, "1 1 h w"] | float  # at the sensor's temperature, hot pixels too


def expose(
    radiance: Float32[Tensor, "b 1 h w"],
    detector: Detector,
    seed: int,
    *,
    camera: Camera | None = None,
) -> Float32[Tensor, "b 1 h w"]:
    """What the converter reads of scenes.

    Args:
        radiance: radiance factor (I/F) at the aperture, each pixel's mean. What is not finite
            counts as no light, so that it cannot spread over the frame.
        detector: the sensor.
        seed: of shot, read and column noise: of frame k of the batch it is seed + k, so that a
            batch equals its frames one by one under consecutive seeds.
        camera: whose rays the vignetting follows; a lens about the image's middle when absent.
    """
    return expose_with_record(radiance, detector, seed, camera=camera)[0]


def expose_with_record(
    radiance: Float32[Tensor, "b 1 h w"],
    detector: Detector,
    seed: int,
    exposure_s: Float32[Tensor, " b"] | None = None,
    *,
    camera: Camera | None = None,
) -> tuple[Float32[Tensor, "b 1 h w"], Exposure]:
    """What the converter reads of scenes, and how they were exposed.

    Args:
        radiance: as in ``expose``.
        detector: the sensor.
        seed: as in ``expose``.
        exposure_s: of each frame, where a control sets it (``ExposureControl``); else the
            detector's own, fixed or automatic.
        camera: as in ``expose``.

    Raises:
        ConfigError: an image too large for the counter of the noise, or not of the camera's size.
    """
    b, _, height, width = radiance.shape
    if height * width >= 2**31:
        raise ConfigError(f"image of {width} x {height} pixels, expected less than 2^31")
    if b == 0:
        none = radiance.new_zeros(0)
        return radiance.clone(), Exposure(exposure_s=none, gain=none, saturated=none)
    device, seeds = radiance.device, range(seed, seed + b)
    focal = focal_plane(radiance, detector, camera)
    if exposure_s is None:
        exposure_s = _own_exposure_s(focal, detector)
    time_s = exposure_s[:, None, None, None]
    sensor = patterns(detector, height, width, device)
    photo_e = focal.clamp_min(0.0) * (time_s * detector.radiometry.electrons_per_s)
    mean_e = photo_e * sensor.response + time_s * sensor.dark_e_s
    charge_e = noise.poisson(mean_e, noise.uniform(seeds, Stream.SHOT, height, width, device))
    kept_e = hold(charge_e, detector.full_well_e, detector.blooming)
    read_e = kept_e + sensor.offset_e
    if detector.read_noise_e > 0:
        read_e = read_e + detector.read_noise_e * noise.normal(
            seeds, Stream.READ, height, width, device
        )
    if detector.column_noise_e > 0:
        read_e = read_e + detector.column_noise_e * noise.normal(
            seeds, Stream.COLUMN, 1, width, device
        )
    record = Exposure(
        exposure_s=exposure_s,
        gain=exposure_s * (detector.radiometry.electrons_per_s / detector.full_well_e),
        saturated=(charge_e >= detector.saturation_e).float().mean((1, 2, 3)),
    )
    return digitise(read_e, detector), record


def focal_plane(
    radiance: Float32[Tensor, "b 1 h w"], detector: Detector, camera: Camera | None = None
) -> Float32[Tensor, "b 1 h w"]:
    """Radiance factor that each pixel sees: after fall-off and point spread.

    Radiance that is not finite counts as 0.
    """
    height, width = radiance.shape[-2:]
    radiance = radiance.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    if detector.vignetting != optics.Vignetting():
        radiance = radiance * optics.falloff(
            detector.vignetting, height, width, radiance.device, camera
        )
    airy_px = optics.diffraction_sigma_px(detector.airy_px)
    sigma_px = (detector.psf_sigma_px**2 + airy_px**2) ** 0.5
    return optics.defocus(optics.blur(radiance, sigma_px), detector.defocus_px)


def patterns(detector: Detector, height: int, width: int, device: torch.device) -> Patterns:
    """Fixed patterns of a sensor (EMVA 1288, section on spatial nonuniformity: PRNU and DSNU).

    Hot pixels are any, with equal chance; their currents follow an exponential law, assumed: the
    simplest one with the long tail that sensors show.
    """
    seeds, size = [detector.sensor_seed], (height, width, device)
    response: Tensor | float = 1.0
    if detector.prnu > 0:
        spread = detector.prnu * noise.normal(seeds, Stream.PRNU, *size)
        response = (1 + spread).clamp_min(0.0)
    offset_e: Tensor | float = 0.0
    if detector.dsnu_e > 0:
        offset_e = detector.dsnu_e * noise.normal(seeds, Stream.DSNU, *size)
    dark_e_s: Tensor | float = detector.dark_current_e_s * detector.dark_factor
    if detector.hot_share > 0:
        hot = noise.uniform(seeds, Stream.HOT_PLACE, *size) < detector.hot_share
        rate = -detector.hot_current_e_s * noise.uniform(seeds, Stream.HOT_RATE, *size).log()
        dark_e_s = dark_e_s + detector.dark_factor * torch.where(hot, rate, 0.0)
    return Patterns(response, offset_e, dark_e_s)


def hold(
    charge_e: Float32[Tensor, "b 1 h w"], full_well_e: float, spill: float
) -> Float32[Tensor, "b 1 h w"]:
    """Charge that pixels hold: what exceeds full well spills along the column (Janesick 2001).

    Half of the excess flows down and half up, and fills every pixel that it passes; what reaches an
    edge is lost. Charge that flows past a pixel obeys Lindley's recursion
    ``c' = max(0, c + x/2 - room)``, which a running sum less its running minimum solves at once.

    Args:
        charge_e: collected, in electrons.
        full_well_e: most that a pixel holds.
        spill: share of the excess that spills; an anti-blooming drain takes the rest.
    """
    held = charge_e.clamp_max(full_well_e)
    if spill == 0:
        return held
    half = (spill / 2) * (charge_e - held).double()
    filled = _filled_downwards(held.double(), half, full_well_e)
    return _filled_downwards(filled.flip(2), half.flip(2), full_well_e).flip(2).float()


def _filled_downwards(
    held: Float64[Tensor, "b 1 h w"], excess: Float64[Tensor, "b 1 h w"], full_well_e: float
) -> Float64[Tensor, "b 1 h w"]:
    room = full_well_e - held
    walk = torch.cumsum(excess - room, 2)
    before = torch.cat([torch.zeros_like(walk[:, :, :1]), walk[:, :, :-1]], 2)
    arriving = before - torch.cummin(before, 2).values
    return held + torch.minimum(arriving, room)


def digitise(read_e: Float32[Tensor, "b 1 h w"], detector: Detector) -> Tensor:
    """Digital numbers over the largest: gain, black level, rounding, clipping."""
    number = read_e / detector.electrons_per_dn + detector.black_level_dn
    return number.round().clamp(0.0, float(detector.steps)) / detector.steps


def _own_exposure_s(focal: Float32[Tensor, "b 1 h w"], detector: Detector) -> Float32[Tensor, " b"]:
    if detector.exposure_s is not None:
        return torch.full((len(focal),), detector.exposure_s, device=focal.device)
    return auto_exposure_s(
        focal,
        share=detector.exposure_percentile,
        target_e=detector.exposure_level * detector.full_well_e,
        electrons_per_s=detector.radiometry.electrons_per_s,
        limits_s=(detector.exposure_min_s, detector.exposure_max_s),
    )
