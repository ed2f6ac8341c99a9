"""A camera that moves while it exposes: motion blur and rolling shutter.

About the pose p, R at mid-exposure of the middle of the frame, with constant velocity and rate::

    p(t) = p + v t,    R(t) = R Exp(w_C t)

A row (or column) is exposed about its own time; its blur is the mean over the exposure.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from jaxtyping import Float64
from torch import Tensor

from tnav.errors import ConfigError
from tnav.geometry.pose import Pose, so3_exp


class Readout(StrEnum):
    """Order in which a rolling shutter reads the frame."""

    TOP_TO_BOTTOM = "top_to_bottom"
    LEFT_TO_RIGHT = "left_to_right"


@dataclass(frozen=True, slots=True)
class Motion:
    """Motion during one exposure, for all poses or each its own."""

    velocity_L: Float64[Tensor, "3"] | Float64[Tensor, "b 3"]  # m/s
    rate_C: Float64[Tensor, "3"] | Float64[Tensor, "b 3"]  # rad/s, about the camera's axes
    exposure_s: float = 0.0  # 0: no blur
    readout_s: float = 0.0  # of the frame: rows (or columns) times a line's time; 0: global shutter
    readout: Readout = Readout.TOP_TO_BOTTOM
    samples: int = 4  # least number of times within the exposure

    def __post_init__(self) -> None:
        for name in ("exposure_s", "readout_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"motion.{name}: {getattr(self, name)}, expected 0 or more")
        if self.samples < 1:
            raise ConfigError(f"motion.samples: {self.samples}, expected 1 or more")

    def to(self, device: torch.device) -> "Motion":
        """The same on another device."""
        return replace(self, velocity_L=self.velocity_L.to(device), rate_C=self.rate_C.to(device))

    def line_times_s(self, count: int, device: torch.device) -> Float64[Tensor, " lines"]:
        """Mid-exposure of every row (or column), from that of the middle of the frame.

        Of n lines the last is ``readout_s (n - 1) / n`` after the first: each takes its n-th.
        """
        lines = torch.arange(count, dtype=torch.float64, device=device)
        return ((lines + 0.5) / count - 0.5) * self.readout_s


def pose_at(
    pose: Pose,
    velocity_L: Float64[Tensor, "a 3"],
    rate_C: Float64[Tensor, "c 3"],
    t_s: Float64[Tensor, " n"],
) -> tuple[Float64[Tensor, "b n 3 3"], Float64[Tensor, "b n 3"]]:
    """Attitude and position of every pose at times from its own.

    Args:
        pose: at time 0.
        velocity_L: one or one a pose, m/s.
        rate_C: one or one a pose, rad/s about the camera's axes.
        t_s: the times.
    """
    turn = so3_exp(rate_C[:, None] * t_s[:, None])
    return pose.R_L_C[:, None] @ turn, pose.position_L[:, None] + velocity_L[:, None] * t_s[:, None]
