"""Rigid poses and rotations, batched, float64.

A rotation ``R_L_C`` maps camera coordinates to local ones: ``p_L = R_L_C @ p_C + origin_L``.
Quaternions are wxyz. Perturbations are in the local frame: ``R = Exp(dtheta_L) @ R_hat`` and
``p = p_hat + dp_L`` (Sola, Deray, Atchuthan 2018, "A micro Lie theory", eq. 27, on SO(3) x R^3).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

# Under this angle (rad) the series of sin(a)/a is exact to double precision.
_SMALL_ANGLE_RAD = 1e-4


@dataclass(frozen=True, slots=True)
class Pose:
    """Pose of a camera (or a body) in the local frame L, for a batch of ``b``."""

    R_L_C: Float64[Tensor, "b 3 3"]  # camera axes in L, as columns
    position_L: Float64[Tensor, "b 3"]  # camera centre, m

    def to(self, device: torch.device | str) -> "Pose":
        """The same pose on another device."""
        return Pose(self.R_L_C.to(device), self.position_L.to(device))

    def __len__(self) -> int:
        return self.position_L.shape[0]

    def __getitem__(self, key: slice) -> "Pose":
        return Pose(self.R_L_C[key], self.position_L[key])


def concatenate(poses: list[Pose]) -> Pose:
    """One batch out of several."""
    return Pose(torch.cat([p.R_L_C for p in poses]), torch.cat([p.position_L for p in poses]))


def skew(v: Float64[Tensor, "*b 3"]) -> Float64[Tensor, "*b 3 3"]:
    """Matrix of the cross product: ``skew(v) @ w == cross(v, w)``."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3))


def so3_exp(rotation_vector: Float64[Tensor, "*b 3"]) -> Float64[Tensor, "*b 3 3"]:
    """Rotation matrix of a rotation vector in rad (Rodrigues), exact near zero."""
    angle2 = rotation_vector.square().sum(-1)[..., None, None]
    small = angle2 < _SMALL_ANGLE_RAD**2
    angle = torch.where(small, torch.ones_like(angle2), angle2).sqrt()
    a = torch.where(small, 1 - angle2 / 6, torch.sin(angle) / angle)
    b = torch.where(small, 0.5 - angle2 / 24, (1 - torch.cos(angle)) / angle**2)
    k = skew(rotation_vector)
    eye = torch.eye(3, dtype=k.dtype, device=k.device)
    return eye + a * k + b * (k @ k)


def so3_log(R: Float64[Tensor, "*b 3 3"]) -> Float64[Tensor, "*b 3"]:
    """Rotation vector in rad of a rotation matrix, for angles below pi."""
    q = quaternion_from_matrix(R)
    w, v = q[..., :1], q[..., 1:]
    sine = v.norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sine, w)
    tiny = sine < _SMALL_ANGLE_RAD**2
    scale = torch.where(tiny, 2 / w, angle / torch.where(tiny, torch.ones_like(sine), sine))
    return v * scale


def quaternion_from_matrix(R: Float64[Tensor, "*b 3 3"]) -> Float64[Tensor, "*b 4"]:
    """Unit quaternion (wxyz, w >= 0), by the largest of the four squared components (Shepperd)."""
    m00, m11, m22 = R[..., 0, 0], R[..., 1, 1], R[..., 2, 2]
    squares = torch.stack(
        [1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22], -1
    ).clamp_min(0.0)
    d10, d02, d21 = (
        R[..., 1, 0] - R[..., 0, 1],
        R[..., 0, 2] - R[..., 2, 0],
        R[..., 2, 1] - R[..., 1, 2],
    )
    s10, s02, s21 = (
        R[..., 1, 0] + R[..., 0, 1],
        R[..., 0, 2] + R[..., 2, 0],
        R[..., 2, 1] + R[..., 1, 2],
    )
    # Row k is 4 q_k * q, so any row with q_k != 0 gives q after normalising.
    rows = torch.stack(
        [
            torch.stack([squares[..., 0], d21, d02, d10], -1),
            torch.stack([d21, squares[..., 1], s10, s02], -1),
            torch.stack([d02, s10, squares[..., 2], s21], -1),
            torch.stack([d10, s02, s21, squares[..., 3]], -1),
        ],
        -2,
    )
    best = squares.argmax(-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    q = rows.gather(-2, best).squeeze(-2)
    q = q / q.norm(dim=-1, keepdim=True)
    return torch.where(q[..., :1] < 0, -q, q)


def matrix_from_quaternion(q_wxyz: Float64[Tensor, "*b 4"]) -> Float64[Tensor, "*b 3 3"]:
    """Rotation matrix of a quaternion; the quaternion is normalised first."""
    w, x, y, z = (q_wxyz / q_wxyz.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def body_from_thrust(
    thrust_L: Float64[Tensor, "b 3"], heading_L: Float64[Tensor, "b 3"]
) -> Float64[Tensor, "b 3 3"]:
    """``R_L_B`` of a lander whose body z is the thrust axis and whose body y leans to a heading.

    Args:
        thrust_L: direction of specific force, any length but zero.
        heading_L: direction that body y follows as far as it can; not parallel to the thrust.
    """
    z = thrust_L / thrust_L.norm(dim=-1, keepdim=True)
    x = torch.linalg.cross(heading_L, z)
    x = x / x.norm(dim=-1, keepdim=True)
    return torch.stack([x, torch.linalg.cross(z, x), z], -1)
