"""How many craters of which size and which age a mare surface shows.

Craters are made at a known rate and worn down until they can no longer be seen. With n1(D) the
number made per diameter, area and Gyr at today's flux and u the age in Gyr of that flux, a surface
of age U shows n(D) = n1(D) min(U, u_vis(D)). A crater's visible life u_vis(D) = n_eq(D) / n1(D)
is what makes the small ones, which come and go, stand at the observed equilibrium n_eq; the
cumulative count then leaves the production curve and turns onto the equilibrium line by itself.

Wear is topographic diffusion (Soderblom 1970): a crater of radius R has the state x = kappa t /
R^2, and is no longer counted at x_v (Minton et al. 2019, eq. 7). It wears with the diffusivity that
Fassett and Thomson (2014) measured on craters of 0.8 to 5 km, but no faster than to reach x_v at
the end of its visible life or of the surface's age: small craters wear by less than that.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tnav.terrain.synthetic.recipe import Relief

Floats = NDArray[np.float64]

# Neukum, Ivanov and Hartmann 2001, table 1 (lunar, D in km, N per km^2 and 1 Gyr). The published
# a0 = -3.0876 is a misprint: only -3.0768 agrees with their chronology, 8.38e-4 per km^2 and Gyr.
_PRODUCTION = (
    -3.0768, -3.557528, 0.781027, 1.021521, -0.156012, -0.444058,
    0.019977, 0.086850, -0.005874, -0.006809, 8.25e-4, 5.54e-5,
)  # fmt: skip
_PRODUCTION_MIN_KM, _PRODUCTION_MAX_KM = 0.01, 100.0  # where the polynomial holds
_CHRONOLOGY = (5.44e-14, 6.93, 8.38e-4)  # same, eq. 5: N(1 km) = a (exp(b T) - 1) + c T
_KNOTS_PER_OCTAVE = 64
_OCTAVE_MIN, _OCTAVE_MAX = -4, 17


def production_per_m2(diameter_m: Floats) -> Floats:
    """Craters over a diameter made per m^2 in one Gyr of today's flux.

    Beyond the polynomial's range of 10 m to 100 km it goes on as a power law of its end's slope.
    """
    x = np.log10(np.asarray(diameter_m, dtype=np.float64) / 1e3)
    held = np.clip(x, math.log10(_PRODUCTION_MIN_KM), math.log10(_PRODUCTION_MAX_KM))
    log_count = np.polynomial.polynomial.polyval(held, np.array(_PRODUCTION))
    return np.asarray(10.0 ** (log_count + _slope(held) * (x - held) - 6), dtype=np.float64)


def production_density(diameter_m: Floats) -> Floats:
    """The same per metre of diameter: -dN/dD, m^-3."""
    diameter_m = np.asarray(diameter_m, dtype=np.float64)
    x = np.log10(diameter_m / 1e3)
    held = np.clip(x, math.log10(_PRODUCTION_MIN_KM), math.log10(_PRODUCTION_MAX_KM))
    return -_slope(held) * production_per_m2(diameter_m) / diameter_m


def flux_age(age_gyr: float) -> float:
    """An age in Gyr of today's flux: longer than the age where the flux was once higher."""
    a, b, c = _CHRONOLOGY
    return (a * math.expm1(b * age_gyr) + c * age_gyr) / (a * b + c)


def equilibrium_per_m2(diameter_m: Floats, recipe: Relief) -> Floats:
    """Cumulative count in equilibrium, c D^-2 (Trask 1966; Gault 1970)."""
    return recipe.equilibrium / np.asarray(diameter_m, dtype=np.float64) ** 2


def visible_life(diameter_m: Floats, recipe: Relief) -> Floats:
    """How long a crater can be seen, in Gyr of today's flux."""
    equilibrium = 2 * equilibrium_per_m2(diameter_m, recipe) / np.asarray(diameter_m)
    return equilibrium / production_density(diameter_m)


def wear_per_gyr(diameter_m: Floats, recipe: Relief) -> Floats:
    """How fast the state x = kappa t / R^2 grows, per Gyr of today's flux."""
    measured = 1e3 * recipe.diffusivity_m2_myr / (np.asarray(diameter_m) / 2) ** 2
    seen_gyr = np.minimum(visible_life(diameter_m, recipe), flux_age(recipe.age_gyr))
    return np.asarray(np.minimum(measured, recipe.visible_state / seen_gyr), dtype=np.float64)


def visible_per_m2(diameter_m: Floats, recipe: Relief) -> Floats:
    """Craters over a diameter that a surface of the recipe's age shows, per m^2."""
    table = _visible_table(recipe)
    log_count = np.interp(np.log(diameter_m), table.log_diameter, table.log_count)
    return np.asarray(np.exp(log_count), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class _Table:
    log_diameter: Floats
    log_count: Floats


@lru_cache(maxsize=8)
def _visible_table(recipe: Relief) -> _Table:
    """Cumulative visible count by integration of its density from the largest diameter down."""
    knots = (_OCTAVE_MAX - _OCTAVE_MIN) * _KNOTS_PER_OCTAVE + 1
    diameter_m = 2.0 ** np.linspace(_OCTAVE_MIN, _OCTAVE_MAX, knots)
    age = np.minimum(flux_age(recipe.age_gyr), visible_life(diameter_m, recipe))
    per_log = production_density(diameter_m) * age * diameter_m
    step = math.log(2) / _KNOTS_PER_OCTAVE
    pieces = 0.5 * (per_log[1:] + per_log[:-1]) * step
    # Beyond the last knot the surface shows what was made.
    tail = float(production_per_m2(diameter_m[-1:])[0] * age[-1])
    count: Floats = tail + np.append(np.cumsum(pieces[::-1])[::-1], 0.0)
    return _Table(np.log(diameter_m), np.log(count))


def _slope(log_km: Floats) -> Floats:
    derivative = np.polynomial.polynomial.polyder(np.array(_PRODUCTION))
    return np.asarray(np.polynomial.polynomial.polyval(log_km, derivative), dtype=np.float64)
