"""The shapes that are stamped on the ground, from fresh to worn away.

A fresh simple crater: h / d = e - 1 + r^p inside the rim, e r^-3 of ejecta outside (McGetchin et
al. 1973), with r in rim radii, d the depth from rim to floor and e = 0.036 / 0.196 the rim's share
of it (Pike 1977). The power p = 1.45 makes the ejecta hold what the bowl lost, between a cone and
a paraboloid. Worn: dh/dx = laplacian(h) in units of rim radii, with x = kappa t / R^2 (Soderblom
1970). A boulder is the upper half of an ellipsoid of revolution.

A level of posts p shows the ground averaged by a hat of half width p along both axes, variance
p^2 / 6. That is wear by p^2 / 12 more, so that sampling costs nothing and never aliases.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

REACH_RADII = 4.0  # a crater's ejecta fall to zero here
RIM_SHARE = 0.036 / 0.196
_BOULDER_REACH_RADII = 2.0
_NODES_PER_RADIUS = 96
_ROOT_STEP, _ROOTS = 0.02, 96  # rows of a table: sqrt(x) = 0, 0.02, ... 1.9


@dataclass(frozen=True, slots=True)
class ProfileTable:
    """Height over scale against distance in radii, one row a state of wear.

    The last two columns are zero: at and beyond the reach.
    """

    height: Float32[Tensor, "states nodes"]
    reach_radii: float
    nodes_per_radius: int = _NODES_PER_RADIUS

    def rows(self, state: Floats) -> tuple[NDArray[np.int64], Floats]:
        """Row below each state x, and the share of the row above it."""
        place = np.minimum(np.sqrt(state) / _ROOT_STEP, _ROOTS - 1 - 1e-9)
        row = place.astype(np.int64)
        return row, place - row


@lru_cache(maxsize=1)
def crater_table() -> ProfileTable:
    """Craters from fresh to worn away."""
    return _diffused(fresh_height(_nodes(REACH_RADII)), REACH_RADII)


@lru_cache(maxsize=1)
def boulder_table() -> ProfileTable:
    """Boulders; only sampling wears them."""
    radius = _nodes(_BOULDER_REACH_RADII)
    return _diffused(np.sqrt(np.maximum(1 - radius**2, 0.0)), _BOULDER_REACH_RADII)


def fresh_height(radius: Floats) -> Floats:
    """Height of a fresh crater over the plain, over its depth; distance in rim radii."""
    edge = REACH_RADII**-3
    spread = (np.maximum(radius, 1.0) ** -3 - edge) / (1 - edge)
    bowl = RIM_SHARE - 1 + np.minimum(radius, 1.0) ** bowl_power()
    return np.where(radius < 1, bowl, RIM_SHARE * np.maximum(spread, 0.0))


def depth_share(state: Floats) -> Floats:
    """Rim-to-floor depth of a worn crater over that of the fresh one."""
    height = crater_table().height
    depths = (height.amax(1) - height[:, 0]).numpy().astype(np.float64)
    return np.interp(np.sqrt(state) / _ROOT_STEP, np.arange(_ROOTS), depths)


def bowl_power() -> float:
    """Power p of the bowl: e / 2 - p / (2 (p + 2)) + the ejecta's integral of r dr vanishes."""
    reach, edge = REACH_RADII, REACH_RADII**-3
    ejecta = ((1 - 1 / reach) - edge * (reach**2 - 1) / 2) / (1 - edge)
    q = RIM_SHARE * (1 + 2 * ejecta)
    return 2 * q / (1 - q)


def hat_wear(post_m: float, radius_m: Floats) -> Floats:
    """The wear that looks like averaging by the hat of a level's posts."""
    return post_m**2 / (12 * radius_m**2)


def fresh_depth_ratio(diameter_m: Floats) -> Floats:
    """Depth over diameter of a fresh primary.

    0.196 (Pike 1977) from 400 m up; smaller ones are shallower, down to between 0.2 and 0.1
    (Sun, Yue and Di 2018): 0.13 from 40 m down, linear in the logarithm between.
    """
    share = np.clip(np.log(diameter_m / 40.0) / math.log(10.0), 0.0, 1.0)
    return 0.13 + (0.196 - 0.13) * share


def _nodes(reach_radii: float) -> Floats:
    return np.arange(round(reach_radii * _NODES_PER_RADIUS)) / _NODES_PER_RADIUS


def _diffused(fresh: Floats, reach_radii: float) -> ProfileTable:
    """Axisymmetric diffusion by finite volumes, zero at the reach, by its exact modes."""
    step = 1 / _NODES_PER_RADIUS
    r = _nodes(reach_radii)
    volume = r * step
    volume[0] = step**2 / 8  # a disc of half a step
    flow = (r + step / 2) / step  # conductance from each node to the next
    operator = np.diag(-flow - np.append(0.0, flow[:-1]))
    operator += np.diag(flow[:-1], 1) + np.diag(flow[:-1], -1)
    scale = 1 / np.sqrt(volume)
    rate, modes = np.linalg.eigh(scale[:, None] * operator * scale)
    amplitude = modes.T @ (fresh / scale)
    x = (_ROOT_STEP * np.arange(_ROOTS)) ** 2
    heights = (np.exp(np.outer(x, rate)) * amplitude) @ modes.T * scale
    padded = np.concatenate([heights, np.zeros((_ROOTS, 2))], 1)
    return ProfileTable(torch.from_numpy(padded).float(), reach_radii)
