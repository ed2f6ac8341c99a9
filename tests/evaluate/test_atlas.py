"""The scenario over the rim of Atlas: what its comment says of the ground is measured."""

import math
from datetime import UTC, datetime

import pytest
import torch

from tnav.evaluate.scenario import load_scenario
from tnav.evaluate.world import agl_over
from tnav.geometry.moon import RADIUS_M, altitude_m
from tnav.geometry.sun import sun_at
from tnav.records import FaultKind
from tnav.simulate.descent import fly
from tnav.terrain.raycast import cast
from tnav.terrain.site import build_truth

STEP_M = 100.0  # between samples of the track


@pytest.fixture(scope="module")
def scenario():
    return load_scenario("atlas")


@pytest.fixture(scope="module")
def ground(scenario):
    """The same ground on coarse posts: 200 and 400 m, under the DEM's 1.9 km."""
    coarse = {"finest_post_m": 200.0, "levels": 2, "cells": 512}
    return build_truth(scenario.site.model_copy(update=coarse), scenario.seeds.terrain)


@pytest.fixture(scope="module")
def flight(scenario, ground):
    below, _ = ground.height_L(torch.zeros(1, 2, dtype=torch.float64))
    return fly(scenario.descent, scenario.site.frame, float(below[0]))


@pytest.fixture(scope="module")
def profile(scenario, ground):
    """Height over the sphere every 100 m along the track, by distance before the end."""
    back_m = STEP_M * torch.arange(401, dtype=torch.float64)
    azimuth = math.radians(scenario.descent.approach_azimuth_deg)
    behind_L = -torch.tensor([math.sin(azimuth), math.cos(azimuth)], dtype=torch.float64)
    xy_L = back_m[:, None] * behind_L
    z_L, inside = ground.height_L(xy_L)
    assert bool(inside.all())
    return altitude_m(torch.cat([xy_L, z_L.double()[:, None]], -1))


def _step_m(profile, within_m):
    window = profile.unfold(0, round(within_m / STEP_M) + 1, 1)
    return float((window.amax(-1) - window.amin(-1)).max())


def test_the_scenario_is_of_the_impact_with_a_healthy_altimeter(scenario):
    assert scenario.epoch_utc == datetime(2023, 4, 25, 16, 40, tzinfo=UTC)
    assert (scenario.site.latitude_deg, scenario.site.longitude_deg) == (47.581, 44.094)
    assert scenario.expected_verdict is FaultKind.HEALTHY
    assert sun_at(scenario.site.frame, scenario.epoch_utc).elevation_deg > 6.0


def test_the_ground_steps_by_a_kilometre_and_more_along_the_track(profile):
    assert _step_m(profile, 10e3) >= 1000.0


def test_the_steps_are_those_that_the_comment_states(profile):
    for within_km, stated_m in ((10, 2500.0), (5, 2000.0), (2, 1100.0)):
        assert _step_m(profile, 1e3 * within_km) == pytest.approx(stated_m, abs=50.0)
    crest = int(profile.argmax())
    assert crest * STEP_M == pytest.approx(16.6e3, abs=500.0)
    assert float(profile[crest] - profile[0]) == pytest.approx(2600.0, abs=100.0)


def test_the_scenario_s_ground_is_inside_the_dem(scenario):
    half_m = scenario.site.cells / 2 * scenario.site.finest_post_m * 2 ** (scenario.site.levels - 1)
    to_south_m = math.radians(scenario.site.latitude_deg - 44.0) * RADIUS_M
    assert half_m < 0.75 * to_south_m
    assert half_m > 1.5 * 33e3  # and the flight well inside of it


def test_the_flight_goes_over_the_rim_in_range_of_its_altimeter(scenario, ground, flight):
    start_m = float(flight.position_L[0, :2].norm())
    assert 30e3 < start_m < 40e3
    over_rim = flight.position_L[:, :2].norm(dim=-1) < 18e3
    boresight_B = torch.tensor(scenario.altimeter.boresight_B, dtype=torch.float64)
    hits = cast(ground, flight.position_L[over_rim], flight.R_L_B[over_rim] @ boresight_B)
    assert bool(hits.hit.all())
    # half of the light is lost on ground at 60 deg: the promise is good for 0.7 of its range there
    assert float(hits.range_m.max()) < 0.7 * scenario.altimeter.range_max_m


def test_the_height_over_the_ground_grows_behind_the_rim_though_the_lander_descends(ground, flight):
    away_m = flight.position_L[:, :2].norm(dim=-1)
    agl_m = {}
    for km in (15.5, 12.0):
        at = int((away_m - 1e3 * km).abs().argmin())
        agl_m[km] = agl_over(ground, flight.position_L[at : at + 1])
        assert float(flight.velocity_L[at, 2]) < -50.0
    assert 7e3 < agl_m[15.5] < agl_m[12.0] - 200.0 < 9e3
