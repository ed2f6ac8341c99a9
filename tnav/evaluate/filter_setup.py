"""What the filter is told of its sensors and its map: their data sheets."""

import math

from tnav.evaluate.scenario import Scenario
from tnav.navigate.state import FilterConfig, GatePolicy
from tnav.simulate.altimeter import Altimeter
from tnav.simulate.inertial import InertialUnit

_LEAST_SIGMA = 1e-12  # a recipe may call an instrument perfect; a covariance may not
_LEAST_WALK = 1e-15
_LEAST_BIAS_M = 1e-3
_LEAST_MAP_SIGMA_M = 0.1  # no map is exact
_CONSTANT_S = 1e7  # biases that do not return to zero
# What all matches of an image have in common under 300 m: fixes have 0.024 m beyond their stated
# covariance over a map of 1 m posts (a row of the fix benchmark).
_FIX_FLOOR_POSTS = 0.024
_RELIEF_UNDER_POSTS = 0.2  # rms relief between posts of a map, over their distance


def filter_config(
    unit: InertialUnit,
    altimeter: Altimeter,
    scenario: Scenario,
    fix_interval_s: float,
    gate: GatePolicy = GatePolicy.TERRAIN_AWARE,
) -> FilterConfig:
    """The filter's configuration from the recipes of what it navigates by.

    Args:
        unit: inertial unit.
        altimeter: its noise is the specification's, and told with every reading.
        scenario: of the map.
        fix_interval_s: between images.
        gate: what becomes of implausible ranges.
    """
    error = scenario.map.error_model()
    return FilterConfig(
        accelerometer_random_walk_m_s_sqrts=max(unit.velocity_random_walk_m_s_sqrt_s, _LEAST_SIGMA),
        accelerometer_bias_sigma_m_s2=max(unit.accelerometer_bias_m_s2, _LEAST_SIGMA),
        gyro_random_walk_rad_sqrts=max(unit.angle_random_walk_rad_sqrt_s, _LEAST_SIGMA),
        gyro_bias_sigma_rad_s=max(unit.gyro_bias_rad_s, _LEAST_SIGMA),
        accelerometer_bias_time_s=_CONSTANT_S,
        gyro_bias_time_s=_CONSTANT_S,
        accelerometer_bias_walk_m_s2_sqrts=max(
            unit.accelerometer_bias_walk_m_s2_sqrt_s, _LEAST_WALK
        ),
        gyro_bias_walk_rad_s_sqrts=max(unit.gyro_bias_walk_rad_s_sqrt_s, _LEAST_WALK),
        thrust_scale_sigma=max(
            unit.accelerometer_scale,
            math.radians(unit.accelerometer_misalignment_deg),
            _LEAST_SIGMA,
        ),
        gyro_scale_sigma=max(unit.gyro_scale, _LEAST_SIGMA),
        gyro_misalignment_rad=max(math.radians(unit.gyro_misalignment_deg), _LEAST_SIGMA),
        map_sigma_m=max(error.sigma_m, _LEAST_MAP_SIGMA_M),
        map_correlation_m=error.correlation_m,
        map_shift_sigma_m=max(error.horizontal_sigma_m, _LEAST_SIGMA),
        fix_floor_sigma_m=fix_floor_m(scenario),
        range_bias_sigma_m=max(altimeter.bias_sigma_m, _LEAST_BIAS_M),
        relief_sigma_m=_RELIEF_UNDER_POSTS * 2 * scenario.site.finest_post_m,
        altimeter_gate=gate,
        altimeter_gate_patience=FilterConfig.heard_first(fix_interval_s, altimeter.rate_hz),
    )


def fix_floor_m(scenario: Scenario) -> float:
    """What no fix is better than sideways, however many matches it has."""
    return _FIX_FLOOR_POSTS * scenario.map.coarser * scenario.site.finest_post_m
