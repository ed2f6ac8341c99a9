"""One exposure of a closed-loop descent over rendered ground, taken in loosely and tightly."""

import math
from dataclasses import replace

import pytest
import torch

from tnav.evaluate.descent_plan import Descent
from tnav.evaluate.flight import Flight
from tnav.evaluate.flight_ground import ImageGround, map_agl_m
from tnav.evaluate.scenario import CameraRecipe, Imaging, load_scenario
from tnav.evaluate.world import World, build_world
from tnav.navigate.mechanisation import POSITION
from tnav.terrain.site import Site

HEIGHT_M = 5500.0


@pytest.fixture(scope="module")
def world() -> World:
    scenario = load_scenario("resilience").model_copy(
        update={
            "camera": CameraRecipe(width_px=320, height_px=320),
            "imaging": Imaging(samples=1),
            "site": Site(latitude_deg=60.5, longitude_deg=-4.6, cells=512),
        }
    )
    return build_world(scenario, torch.device("cpu"))


def seen(world: World, tight: bool, off_m: float) -> Flight:
    """A lander at rest, upright, whose navigation is off sideways; after one fix."""
    descent = Descent(name="test", scenario="resilience", tight_vision=tight)
    sigma_rad = math.radians(descent.star_tracker.sigma_deg)
    one = Flight(
        descent, world.scenario, ImageGround(world, sigma_rad), world.terrain_map.to("cpu"), 1
    )
    place = torch.tensor([[100.0, -200.0, one.site_z_m + HEIGHT_M]], dtype=torch.float64)
    off = torch.tensor([[off_m, -off_m, 0.5 * off_m]], dtype=torch.float64)
    upright, still = torch.eye(3, dtype=torch.float64)[None], torch.zeros_like(place)
    one.lander = replace(one.lander, position_L=place, velocity_L=still, R_L_B=upright)
    one.state = replace(one.state, position_L=place + off, velocity_L=still, R_L_B=upright.clone())
    one.near = True
    period = descent.steps(descent.timing.interval_s)
    one._vision(period)
    assert one.pending is not None
    one._vision(one.pending.due)
    return one


@pytest.mark.parametrize("tight", [False, True])
def test_an_exposure_finds_the_lander(world: World, tight: bool) -> None:
    one = seen(world, tight, 150.0)
    error = (one.state.position_L - one.lander.position_L)[0]
    sigma = one.state.covariance[0, POSITION, POSITION].diagonal().sqrt()
    assert bool((sigma < 30.0).all())
    assert bool((error.abs() < 4 * sigma).all())
    assert float(error.norm()) < 30.0
    agl_m, _ = map_agl_m(one.map, one.state.position_L)
    assert float(agl_m[0]) == pytest.approx(HEIGHT_M, rel=0.02)


def test_both_ways_say_the_same_of_one_image(world: World) -> None:
    """The same matches: what differs is only where the pose is solved."""
    loose, tight = (seen(world, way, 150.0) for way in (False, True))
    apart = (loose.state.position_L - tight.state.position_L)[0]
    sigma = loose.state.covariance[0, POSITION, POSITION].diagonal().sqrt()
    assert bool((apart.abs() < 2 * sigma).all())
