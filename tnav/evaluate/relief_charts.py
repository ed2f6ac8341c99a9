"""The synthetic relief as curves and points, beside what is published of mare."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnav.terrain.synthetic import Relief, population

Floats = NDArray[np.float64]
Chart = dict[str, Any]

# Rosenburg et al. (2011), table 2, maria: median bidirectional slope over 17 m, median Hurst
# exponent of windows, and the median baseline up to which it holds.
BASELINE_M, SLOPE_DEG = 17.0, 2.0
HURST, HURST_TO_M = 0.76, 530.0
_MARIA = "maria (Rosenburg et al. 2011)"


def count_point(diameter_m: float, count: float, low: float, high: float, area_m2: float) -> Chart:
    """A cumulative count with its interval, per km^2."""
    per_km2 = 1e6 / area_m2
    return {"x": diameter_m, "y": count * per_km2, "low": low * per_km2, "high": high * per_km2}


def count_chart(recipe: Relief, counted: list[Chart], seen: list[Chart]) -> Chart:
    """Cumulative crater counts against production, equilibrium and the model between them."""
    diameter_m = np.geomspace(1.0, 4096.0, 49)
    made = population.production_per_m2(diameter_m) * population.flux_age(recipe.age_gyr)
    curves = (
        (f"production at {recipe.age_gyr:g} Gyr (Neukum et al. 2001)", made, True),
        (
            "equilibrium (Trask 1966)",
            population.equilibrium_per_m2(diameter_m, recipe),
            True,
        ),
        ("model", population.visible_per_m2(diameter_m, recipe), False),
    )
    return {
        "title": "Craters over a diameter",
        "x_label": "diameter (m)",
        "y_label": "craters per km²",
        "curves": [
            {
                "label": label,
                "x": diameter_m.tolist(),
                "y": (1e6 * y).tolist(),
                "published": published,
            }
            for label, y, published in curves
        ],
        "points": [
            {"label": "drawn", "values": counted, "published": False},
            {"label": "seen on the heights", "values": seen, "published": False},
        ],
    }


def slope_chart(baseline_m: Floats, slope_deg: Floats) -> Chart:
    """Median bidirectional slope against baseline; the published median is marked."""
    line_m = np.geomspace(BASELINE_M, HURST_TO_M, 9)
    line_deg = SLOPE_DEG * (line_m / BASELINE_M) ** (HURST - 1)
    return {
        "title": "Median bidirectional slope",
        "x_label": "baseline (m)",
        "y_label": "slope (deg)",
        "curves": [
            {
                "label": f"{_MARIA}, continued with H = {HURST:g}",
                "x": line_m.tolist(),
                "y": line_deg.tolist(),
                "published": True,
            }
        ],
        "points": [
            {
                "label": "synthetic relief",
                "values": plain(baseline_m, slope_deg),
                "published": False,
            },
            {
                "label": f"{_MARIA}, {SLOPE_DEG:.1f} deg over {BASELINE_M:g} m",
                "values": [{"x": BASELINE_M, "y": SLOPE_DEG}],
                "published": True,
            },
        ],
    }


def deviation_chart(baseline_m: Floats, deviation_m: Floats) -> Chart:
    """RMS deviation of height against baseline, and what the published slope and H make of it."""
    line_m = np.geomspace(BASELINE_M, HURST_TO_M, 9)
    # Isotropic Gaussian slopes have the median sqrt(2 ln 2) sigma.
    sigma = math.tan(math.radians(SLOPE_DEG)) / math.sqrt(2 * math.log(2))
    line = sigma * BASELINE_M * (line_m / BASELINE_M) ** HURST
    return {
        "title": "RMS deviation",
        "x_label": "baseline (m)",
        "y_label": "deviation (m)",
        "curves": [
            {
                "label": f"{_MARIA}, if slopes were Gaussian",
                "x": line_m.tolist(),
                "y": line.tolist(),
                "published": True,
            }
        ],
        "points": [
            {
                "label": "synthetic relief",
                "values": plain(baseline_m, deviation_m),
                "published": False,
            }
        ],
    }


def plain(x: Floats, y: Floats) -> list[Chart]:
    """Points without intervals, by x."""
    return [{"x": float(a), "y": float(b)} for a, b in sorted(zip(x, y, strict=True))]
