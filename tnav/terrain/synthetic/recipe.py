"""What the synthetic ground is made of: every figure with where it comes from."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tnav.config import Recipe


class Relief(Recipe):
    """Relief of lunar mare below a DEM's resolution. SYNTHETIC: statistics, not places.

    Defaults stand for Mare Frigoris: model ages of 37 units run from 2.61 to 3.77 Gyr, most of
    them 3.4 to 3.8 (Hiesinger et al. 2010); equilibrium log10 N = -1.1 - 2 log10 D (Trask 1966);
    diffusivity 5.5 m^2/Myr over the past 3 Gyr (Fassett and Thomson 2014).
    """

    age_gyr: float = Field(default=3.5, gt=0, le=4.5)  # crater model age of the surface
    equilibrium: float = Field(default=10**-1.1, gt=0, le=1)  # c of N(>D) = c D^-2
    diffusivity_m2_myr: float = Field(default=5.5, gt=0)  # of craters of a kilometre and more
    # State kappa t / R^2 at which a crater is no longer counted: K_v1 of Minton et al. (2019, eq.
    # 7), in its authors' later calibration (Cratermaker).
    visible_state: float = Field(default=0.3, gt=0, le=2)
    # No single figure is published for the share of secondaries; they are said to be many below
    # 1 km (McEwen and Bierhaus 2006).
    secondary_share: float = Field(default=0.3, ge=0, le=0.9)
    secondary_diameter_max_m: float = Field(default=512.0, gt=0)
    boulders: bool = True
    # Four posts of the finest default level: heightfields show smaller ones as pins.
    boulder_diameter_min_m: float = Field(default=2.0, gt=0)
    # Roughness beside craters, chosen so that both together have the median slope of maria, 2.0 deg
    # over 17 m, and come near their Hurst exponent of 0.76 (Rosenburg et al. 2011, table 2).
    hurst: float = Field(default=0.95, gt=0, lt=1)
    rms_deviation_17m_m: float = Field(default=0.34, ge=0)


@dataclass(frozen=True, slots=True)
class Resolution:
    """Shortest features that a DEM holds, where that differs from place to place."""

    steps_m: tuple[float, ...]  # of the tiles, ascending
    at: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]  # east, north: m
