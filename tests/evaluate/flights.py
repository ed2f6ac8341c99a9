"""Closed-loop descents over a map that needs no DEM."""

from dataclasses import replace

import torch

from tnav.evaluate.descent_plan import Descent, scenario_of
from tnav.evaluate.fix_model import load_fix_model
from tnav.evaluate.flight import Flight, Monitoring
from tnav.evaluate.flight_ground import ModelGround
from tnav.terrain.heightfield import Level, Terrain

LANES = 12
DESCENT = Descent(name="test", scenario="resilience")


def plain(device: str = "cpu") -> Terrain:
    """A gently rolling map, 60 km wide, that needs no DEM: posts of 1 m on top of coarse ones."""
    levels = []
    for post_m in (1.0, 8.0, 64.0):
        axis = (torch.arange(1025) - 512) * post_m
        z = 30 * torch.sin(axis[None, :] / 4000) + 20 * torch.cos(axis[:, None] / 3000) - 20.0
        levels.append(Level(float(axis[0]), float(axis[0]), post_m, z.float()))
    return Terrain(levels).to(device)


def flight(
    batch: int = LANES,
    keep: int | None = 0,
    device: str = "cpu",
    faults=(),
    monitor: Monitoring = Monitoring.OFF,
    **changes,
) -> Flight:
    descent = DESCENT.model_copy(update=changes)
    scenario = scenario_of(descent)
    terrain_map = plain(device)
    ground = ModelGround(scenario, terrain_map, load_fix_model(), batch, 0.83, 0.2, 11.9)
    return Flight(descent, scenario, ground, terrain_map, batch, keep, faults, monitor)


def over(one: Flight, height_m: float, down_m_s: float = 0.0) -> Flight:
    """The same descents upright over the site at a height, navigation without an error."""
    batch = len(one.lander.propellant_kg)
    place = torch.zeros(batch, 3, dtype=torch.float64)
    place[:, 2] = one.site_z_m + height_m
    velocity = torch.zeros_like(place)
    velocity[:, 2] = -down_m_s
    upright = torch.eye(3, dtype=torch.float64).repeat(batch, 1, 1)
    one.lander = replace(one.lander, position_L=place, velocity_L=velocity, R_L_B=upright)
    one.state = replace(
        one.state, position_L=place.clone(), velocity_L=velocity.clone(), R_L_B=upright.clone()
    )
    if one.monitor is not None:
        one.monitor.alone = one.state
    one.near = one.low = True
    return one
