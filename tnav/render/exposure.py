"""How long a frame is exposed: at once for itself, or by a control from the frames before it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float32
from pydantic import Field, model_validator
from torch import Tensor

from tnav.config import Recipe

_DARK = 1e-12  # a percentile below is no light at all: the longest exposure


@dataclass(frozen=True, slots=True)
class Exposure:
    """How frames were exposed."""

    exposure_s: Float32[Tensor, " b"]
    gain: Float32[Tensor, " b"]  # share of full well for I/F = 1 on the axis
    saturated: Float32[Tensor, " b"]  # share of pixels whose own light fills well or converter


@dataclass(frozen=True, slots=True)
class ControlState:
    """Exposures that a control has decided on."""

    queue_s: Float32[Tensor, "b n"]  # next frame's first

    @property
    def exposure_s(self) -> Float32[Tensor, " b"]:
        """Of the next frame."""
        return self.queue_s[:, 0]


class ExposureControl(Recipe):
    """Sets the exposure from earlier frames: an integrator of the logarithm, with a dead time.

    ``ln t' = ln t + k ln(target / measured)``, t being the exposure of the frame that was
    measured: k = 1 without lag is dead-beat for a scene that does not change.
    """

    initial_s: float = Field(default=1e-3, gt=0)
    percentile: float = Field(default=0.99, gt=0, le=1)
    level: float = Field(default=0.45, gt=0, lt=1)  # of full scale over black, for the percentile
    black_level: float = Field(default=0.0, ge=0, lt=1)  # of full scale
    loop_gain: float = Field(default=1.0, gt=0, le=1)
    step_max: float = Field(default=4.0, gt=1)  # largest factor from the measured frame's exposure
    lag_frames: int = Field(default=0, ge=0, le=16)  # exposed before a decision takes hold
    min_s: float = Field(default=1e-6, gt=0)
    max_s: float = Field(default=0.1, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> "ExposureControl":
        if not self.min_s <= self.initial_s <= self.max_s:
            raise ValueError(
                f"initial_s {self.initial_s}, expected within min_s {self.min_s} and max_s "
                f"{self.max_s}"
            )
        if self.black_level + self.level >= 1:
            raise ValueError("black_level and level together reach full scale")
        return self

    def start(self, batch: int, device: torch.device | str) -> ControlState:
        """Before the first frame."""
        shape = (batch, self.lag_frames + 1)
        return ControlState(torch.full(shape, self.initial_s, device=device))

    def next(self, state: ControlState, image: Float32[Tensor, "b 1 h w"]) -> ControlState:
        """After a frame, exposed for ``state.exposure_s``, was read."""
        measured = brightness_at(image, self.percentile) - self.black_level
        factor = (self.level / measured.clamp_min(_DARK)) ** self.loop_gain
        factor = factor.clamp(1 / self.step_max, self.step_max)
        wanted_s = (state.exposure_s * factor).clamp(self.min_s, self.max_s)
        return ControlState(torch.cat([state.queue_s[:, 1:], wanted_s[:, None]], 1))


def auto_exposure_s(
    focal: Float32[Tensor, "b 1 h w"],
    *,
    share: float,
    target_e: float,
    electrons_per_s: float,
    limits_s: tuple[float, float],
) -> Float32[Tensor, " b"]:
    """Exposure that brings each frame's own percentile to a target.

    Args:
        focal: radiance factor that the pixels see.
        share: of the pixels, that are darker than the one which is brought to the target.
        target_e: photo-electrons that it gets.
        electrons_per_s: photo-electrons a second for a radiance factor of 1.
        limits_s: shortest and longest exposure.
    """
    bright = brightness_at(focal, share).clamp_min(_DARK)
    return (target_e / (bright * electrons_per_s)).clamp(*limits_s)


def brightness_at(image: Float32[Tensor, "b 1 h w"], share: float) -> Float32[Tensor, " b"]:
    """Percentile: the value that a share of each frame's pixels does not exceed."""
    flat = image.flatten(1)
    return flat.kthvalue(max(1, int(share * flat.shape[1])), dim=1).values
