"""Lens distortion in OpenCV's conventions, between directions and image coordinates.

Image coordinates here are those of a camera with focal length 1 and its principal point at 0. Both
models follow a radial law ``r' = G(rho)``, with ``rho`` the tangent of the angle from the axis
(Brown-Conrady) or the angle itself (fisheye). ``fit_lens`` finds how much of it an image needs,
refuses a lens that folds inside the image and prepares the start of the inversion.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64
from numpy.polynomial import Polynomial
from torch import Tensor

from tnav.config import Recipe
from tnav.errors import ConfigError

_MOST_STEPS = 8  # of Newton's method; a mild lens is given 2, one next to folding 5
_START_DEGREE = 7  # of the polynomial that starts them
# dr'/drho, 1 on the axis, below which a lens counts as folded: a pixel there would cover ten.
_LEAST_STRETCH = 0.1
_SAMPLES = 8192  # of rho, on which the law is examined
_BROWN_EDGE_RAD = math.radians(89.0)  # tan grows without bound; no lens of this model goes here
_ROUNDING = 1e-13  # of the image radius: 1e-10 px at a focal length of 1000 px
_ON_AXIS = 1e-60  # squared radius that replaces 0 in quotients whose limit is 1


class BrownConrady(Recipe):
    """Radial and tangential distortion (Brown 1966), rational as in OpenCV's ``calib3d``.

    ::

        x' = x (1 + k1 r2 + k2 r4 + k3 r6) / (1 + k4 r2 + k5 r4 + k6 r6)
             + 2 p1 x y + p2 (r2 + 2 x^2),        r2 = x^2 + y^2, x = X / Z

    and ``y'`` alike with x and y as well as p1 and p2 exchanged.
    """

    kind: Literal["brown_conrady"] = "brown_conrady"
    k1: float = 0.0
    k2: float = 0.0
    p1: float = 0.0
    p2: float = 0.0
    k3: float = 0.0
    k4: float = 0.0
    k5: float = 0.0
    k6: float = 0.0


class Fisheye(Recipe):
    """Equidistant lens (Kannala and Brandt 2006; OpenCV's ``cv2.fisheye``).

    ::

        r' = theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8)

    with theta the angle from the axis in rad, which may exceed a right angle.
    """

    kind: Literal["fisheye"] = "fisheye"
    k1: float = 0.0
    k2: float = 0.0
    k3: float = 0.0
    k4: float = 0.0


@dataclass(frozen=True, slots=True)
class Lens:
    """A distortion that was found one-to-one over an image."""

    model: BrownConrady | Fisheye
    rho_limit: float  # the law is one-to-one up to here
    start: tuple[float, ...]  # of the inversion: rho / r' as a polynomial of r'^2, lowest first
    steps: int  # of Newton's method from there


def radial(model: BrownConrady | Fisheye, rho: float) -> float:
    """``G(rho)``."""
    numerator, denominator = _polynomials(model)
    return float(rho * numerator(rho * rho) / denominator(rho * rho))


def fold(model: BrownConrady | Fisheye) -> float:
    """``rho`` at which the lens folds (its end of definition where it does not); on the host."""
    rho, _, good = _law(model)
    return float(rho[good][-1])


def angle_rad(model: BrownConrady | Fisheye, rho: float) -> float:
    """Angle from the axis at ``rho``."""
    return rho if isinstance(model, Fisheye) else math.atan(rho)


def rho_at(model: BrownConrady | Fisheye, angle: float) -> float:
    """``rho`` at an angle from the axis in rad."""
    return angle if isinstance(model, Fisheye) else math.tan(angle)


def fit_lens(model: BrownConrady | Fisheye, radius: float) -> Lens:
    """Examine a distortion over the image's disc; on the host.

    Args:
        model: the distortion.
        radius: of the disc about the principal point that holds the image, at focal length 1.

    Raises:
        ConfigError: not one-to-one over the disc.
    """
    rho, image, good = _law(model)
    covered = good & (image >= radius)
    if not covered.any():
        last = int(good.sum()) - 1
        raise ConfigError(
            f"camera.distortion: {model.kind} folds {math.degrees(angle_rad(model, rho[last])):.1f}"
            f" deg from the axis, at {image[last] / radius:.2f} of the distance of the image's"
            " farthest corner; expected one-to-one over the image"
        )
    edge = int(covered.argmax())
    start = _inverse_start(model, rho[edge])
    for steps in range(1, _MOST_STEPS + 1):
        lens = Lens(model, float(rho[good][-1]), start, steps)
        off = _inversion_error(lens, radius)
        if off < _ROUNDING * max(radius, 1.0):
            return replace(lens, steps=steps + 1)  # one more than the samples needed
    raise ConfigError(
        f"camera.distortion: {model.kind} cannot be inverted over the image (off by {off:.0e} of "
        "the focal length); expected a smoother lens or a smaller image"
    )


def image_of(lens: Lens, point_C: Float64[Tensor, "*b 3"]) -> Float64[Tensor, "*b 2"]:
    """Image coordinates of points in C."""
    x, y, z = point_C.unbind(-1)
    if isinstance(lens.model, BrownConrady):
        return torch.stack(_distort(lens.model, x / z, y / z)[:2], -1)
    radius = (x * x + y * y).clamp_min(_ON_AXIS).sqrt()
    image_radius, _ = _fisheye_law(lens.model, torch.atan2(radius, z))
    return point_C[..., :2] * (image_radius / radius)[..., None]


def jacobian_of(lens: Lens, point_C: Float64[Tensor, "*b 3"]) -> Float64[Tensor, "*b 2 3"]:
    """Derivative of ``image_of`` by the point."""
    x, y, z = point_C.unbind(-1)
    if isinstance(lens.model, BrownConrady):
        x, y, inverse = x / z, y / z, 1 / z
        _, _, xx, xy, yy = _distort(lens.model, x, y)
        brown = [xx, xy, -(xx * x + xy * y), xy, yy, -(xy * x + yy * y)]
        return (torch.stack(brown, -1) * inverse[..., None]).unflatten(-1, (2, 3))
    radius = (x * x + y * y).clamp_min(_ON_AXIS).sqrt()
    distance2 = radius.square() + z * z
    image_radius, slope = _fisheye_law(lens.model, torch.atan2(radius, z))
    across = image_radius / radius  # stretch around the axis
    along = slope * z / distance2  # and away from it
    nx, ny = x / radius, y / radius
    turn, sink = along - across, -slope / distance2
    cross = turn * nx * ny
    rows = [across + turn * nx * nx, cross, sink * x, cross, across + turn * ny * ny, sink * y]
    return torch.stack(rows, -1).unflatten(-1, (2, 3))


def ray_of(lens: Lens, image: Float64[Tensor, "*b 2"]) -> Float64[Tensor, "*b 3"]:
    """Ray in C through image coordinates: z = 1 (Brown-Conrady) or unit length (fisheye).

    Newton's method with a fixed number of steps, from a polynomial fitted to the radial law.
    """
    u, v = image.unbind(-1)
    squared = u * u + v * v
    ratio = torch.full_like(squared, lens.start[-1])
    for coefficient in lens.start[-2::-1]:
        ratio = ratio * squared + coefficient
    if isinstance(lens.model, BrownConrady):
        x, y = u * ratio, v * ratio
        for _ in range(lens.steps):
            got_u, got_v, xx, xy, yy = _distort(lens.model, x, y)
            off_u, off_v, determinant = got_u - u, got_v - v, xx * yy - xy * xy
            x = x - (yy * off_u - xy * off_v) / determinant
            y = y - (xx * off_v - xy * off_u) / determinant
        return torch.stack([x, y, torch.ones_like(x)], -1)
    radius = squared.clamp_min(_ON_AXIS).sqrt()
    theta = radius * ratio
    for _ in range(lens.steps):
        value, slope = _fisheye_law(lens.model, theta)
        theta = theta - (value - radius) / slope
    scale = torch.sin(theta) / radius
    return torch.stack([u * scale, v * scale, torch.cos(theta)], -1)


def within(lens: Lens, point_C: Float64[Tensor, "*b 3"]) -> Tensor:
    """Mask of the points that lie where the lens is one-to-one."""
    x, y, z = point_C.unbind(-1)
    if isinstance(lens.model, BrownConrady):
        return (z > 0) & (x * x + y * y < (lens.rho_limit * z).square())
    return torch.atan2((x * x + y * y).sqrt(), z) < lens.rho_limit


def _polynomials(model: BrownConrady | Fisheye) -> tuple[Polynomial, Polynomial]:
    """Numerator and denominator of ``G(rho) / rho`` by ``rho^2``."""
    if isinstance(model, Fisheye):
        return Polynomial([1.0, model.k1, model.k2, model.k3, model.k4]), Polynomial([1.0])
    return (
        Polynomial([1.0, model.k1, model.k2, model.k3]),
        Polynomial([1.0, model.k4, model.k5, model.k6]),
    )


def _law(model: BrownConrady | Fisheye) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples of rho, the image radius that is covered for certain, and up to where it is good.

    The tangential part of a Brown-Conrady lens moves a point by up to 3 p rho^2 and its Jacobian,
    which is symmetric, has eigenvalues above -6 p rho, p = |(p1, p2)|. With G' > 6 p rho the whole
    Jacobian is positive definite on a disc, and a map with that on a convex set is one-to-one.
    """
    numerator, denominator = _polynomials(model)
    if isinstance(model, Fisheye):
        rho, tangential = np.linspace(0.0, math.pi, _SAMPLES), 0.0
    else:
        rho = np.tan(np.linspace(0.0, _BROWN_EDGE_RAD, _SAMPLES))
        tangential = math.hypot(model.p1, model.p2)
    s = rho * rho
    n, d = numerator(s), denominator(s)
    safe = np.where(d > 0, d, 1.0)
    stretch = n / safe + 2 * s * (numerator.deriv()(s) * d - n * denominator.deriv()(s)) / safe**2
    stretch = stretch - 6 * tangential * rho
    good = np.logical_and.accumulate((d > 0) & (stretch >= _LEAST_STRETCH))
    return rho, rho * n / safe - 3 * tangential * s, good


def _inverse_start(model: BrownConrady | Fisheye, rho_edge: float) -> tuple[float, ...]:
    """Least-squares polynomial for ``rho / r'`` by ``r'^2`` over the image."""
    numerator, denominator = _polynomials(model)
    # Chebyshev's points in rho crowd at the edge, where the inverse bends most.
    rho = rho_edge * np.sin(np.linspace(0.0, math.pi / 2, 257))[1:]
    ratio = denominator(rho * rho) / numerator(rho * rho)
    fitted = Polynomial.fit((rho / ratio) ** 2, ratio, _START_DEGREE, w=rho)
    return tuple(float(c) for c in fitted.convert().coef)


def _inversion_error(lens: Lens, radius: float) -> float:
    """Largest residual of ``ray_of`` on rings that fill the image's disc."""
    r, turn = torch.meshgrid(
        torch.linspace(0.0, radius, 65, dtype=torch.float64),
        torch.linspace(0.0, 2 * math.pi, 17, dtype=torch.float64),
        indexing="ij",
    )
    image = torch.stack([r * turn.cos(), r * turn.sin()], -1)
    return float((image_of(lens, ray_of(lens, image)) - image).abs().max().nan_to_num(math.inf))


def _distort(
    model: BrownConrady, x: Float64[Tensor, "*b"], y: Float64[Tensor, "*b"]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Distorted coordinates x', y' and their Jacobian, which is symmetric: xx, xy, yy."""
    k1, k2, k3, k4, k5, k6 = model.k1, model.k2, model.k3, model.k4, model.k5, model.k6
    xx, yy, xy = x * x, y * y, x * y
    s = xx + yy
    gain = 1 + s * (k1 + s * (k2 + s * k3))
    bend = k1 + s * (2 * k2 + s * (3 * k3))
    if k4 or k5 or k6:
        denominator = 1 + s * (k4 + s * (k5 + s * k6))
        gain = gain / denominator
        bend = (bend - gain * (k4 + s * (2 * k5 + s * (3 * k6)))) / denominator
    bend = 2 * bend  # 2 d gain / d s
    p1, p2 = model.p1, model.p2
    if not (p1 or p2):
        return x * gain, y * gain, gain + bend * xx, bend * xy, gain + bend * yy
    return (
        x * gain + 2 * p1 * xy + p2 * (s + 2 * xx),
        y * gain + p1 * (s + 2 * yy) + 2 * p2 * xy,
        gain + bend * xx + 2 * p1 * y + 6 * p2 * x,
        bend * xy + 2 * p1 * x + 2 * p2 * y,
        gain + bend * yy + 6 * p1 * y + 2 * p2 * x,
    )


def _fisheye_law(
    model: Fisheye, theta: Float64[Tensor, "*b"]
) -> tuple[Float64[Tensor, "*b"], Float64[Tensor, "*b"]]:
    """``G(theta)`` and its slope."""
    k1, k2, k3, k4 = model.k1, model.k2, model.k3, model.k4
    s = theta.square()
    value = theta * (1 + s * (k1 + s * (k2 + s * (k3 + s * k4))))
    return value, 1 + s * (3 * k1 + s * (5 * k2 + s * (7 * k3 + s * 9 * k4)))
