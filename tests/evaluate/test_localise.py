import dataclasses
import math
import warnings

import pytest
import torch

from tnav.estimate.pnp import solve_pose
from tnav.evaluate import localise as module
from tnav.evaluate.localise import Prediction, localise
from tnav.evaluate.scenario import CameraRecipe, Imaging, load_scenario
from tnav.evaluate.world import R_B_C, build_world, navigation_of, observe
from tnav.geometry.camera import Camera
from tnav.geometry.pose import Pose, so3_exp
from tnav.match import search
from tnav.match.weights import OutOfContractWarning
from tnav.records import FixStatus
from tnav.terrain.site import Site

CAMERA = Camera.from_field_of_view(1000, 800, 45.0)
UP = Pose(R_B_C[None], torch.tensor([[0.0, 0.0, 1000.0]], dtype=torch.float64))


def _prediction(sigma_m, attitude_rad=0.0):
    covariance = sigma_m**2 * torch.eye(3, dtype=torch.float64)
    return Prediction(0.0, UP, covariance, attitude_rad)


def test_search_radius_is_four_sigma_between_its_bounds():
    radius = module._search_radius_px
    assert radius(_prediction(0.001), CAMERA, 1000.0) == 8.0
    ten_px_m = 10 * 1000.0 / CAMERA.focal_px
    assert radius(_prediction(ten_px_m), CAMERA, 1000.0) == pytest.approx(40.0)
    assert radius(_prediction(ten_px_m, 10 / CAMERA.focal_px), CAMERA, 1000.0) == pytest.approx(
        40.0 * math.sqrt(2)
    )
    assert radius(_prediction(1e6), CAMERA, 1000.0) == 0.45 * 800


def test_steps_are_measured_in_pixels_of_the_image():
    after = Pose(
        so3_exp(torch.tensor([[0.0, 0.0, 2e-3]], dtype=torch.float64)) @ UP.R_L_C,
        UP.position_L + torch.tensor([[3.0, 0.0, -4.0]], dtype=torch.float64),
    )
    expected = CAMERA.focal_px * (5.0 / 1000.0 + 2e-3)
    assert module._moved_px(UP, after, CAMERA, 1000.0) == pytest.approx(expected)


@pytest.fixture(scope="module")
def scene():
    scenario = load_scenario("resilience").model_copy(
        update={
            "camera": CameraRecipe(width_px=320, height_px=320),
            "imaging": Imaging(samples=1),
            "site": Site(latitude_deg=60.5, longitude_deg=-4.6, cells=512),
        }
    )
    world = build_world(scenario, torch.device("cpu"))
    k = 900
    pose = Pose((world.trajectory.R_L_B[k] @ R_B_C)[None], world.trajectory.position_L[k : k + 1])
    return world, pose, observe(world, pose, 1)


def _predicted(pose, offset_m=(40.0, -30.0, 25.0)):
    offset = torch.tensor([offset_m], dtype=torch.float64)
    covariance = 40.0**2 * torch.eye(3, dtype=torch.float64)
    return Prediction(0.0, Pose(pose.R_L_C, pose.position_L + offset), covariance, 1e-4)


def test_finds_the_camera_and_reports_three_altitudes(scene):
    world, pose, image = scene
    found = localise(image, _predicted(pose), navigation_of(world.scenario, world.terrain_map))
    assert found.fix.status is FixStatus.OK
    assert found.renders >= 2
    error = (found.fix.position_L - pose.position_L[0]).norm()
    assert float(error) < 15
    assert found.altitude is not None
    # range along a tilted boresight is longer than the height; altitude counts from the sphere
    assert float(found.altitude.range_m[0]) > float(found.altitude.agl_m[0])
    assert float(found.altitude.altitude_m[0]) < float(found.altitude.agl_m[0])  # mare is low


def test_what_the_network_was_not_trained_for_is_warned_of_once_and_recorded(scene):
    world, pose, image = scene
    nav = navigation_of(world.scenario, world.terrain_map)
    assert nav.model is not None  # shipped
    bands = nav.model.contract.input
    narrow = bands.model_copy(update={"agl_m": (1.0, 2.0), "sun_elevation_deg": (80.0, 90.0)})
    contract = nav.model.contract.model_copy(update={"input": narrow, "sha256": "0" * 64})
    unusual = dataclasses.replace(nav, model=dataclasses.replace(nav.model, contract=contract))
    with pytest.warns(OutOfContractWarning) as warned:
        first = localise(image, _predicted(pose), unusual)
    assert len(warned) == 2
    assert first.fix.status is FixStatus.OK
    height = [line for line in first.out_of_contract if line.startswith("height above ground")]
    assert height
    assert "was trained for 1 to 2 m" in height[0]
    assert any(line.startswith("Sun elevation 11.8") for line in first.out_of_contract)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = localise(image, _predicted(pose), unusual)  # warns no more, still records
    assert again.out_of_contract == first.out_of_contract
    plain = dataclasses.replace(nav, model=None)
    assert localise(image, _predicted(pose), plain).out_of_contract == ()


def test_the_same_fix_on_the_simulated_accelerator(scene, simgpu, monkeypatch):
    monkeypatch.setattr(search, "_has_bfloat16", lambda kind: False)
    world, pose, image = scene
    nav = navigation_of(world.scenario, world.terrain_map)
    expected = localise(image, _predicted(pose), nav)
    there = navigation_of(world.scenario, world.terrain_map.to(simgpu))
    prediction = _predicted(pose)
    moved = Prediction(0.0, prediction.pose.to(simgpu), prediction.position_covariance, 1e-4)
    found = localise(image.to(simgpu), moved, there)
    assert found.solution.pose.position_L.device.type == simgpu
    assert torch.allclose(found.fix.position_L, expected.fix.position_L, atol=1e-6)
    assert float(found.altitude.agl_m[0]) == pytest.approx(float(expected.altitude.agl_m[0]))


def test_a_solution_that_keeps_moving_is_no_fix(scene, monkeypatch):
    """A solver that walks away by many sigmas and pixels with every view."""
    world, pose, image = scene
    steps = iter(range(1, 9))

    def wandering(*args, **kwargs):
        solution = solve_pose(*args, **kwargs)
        solution.pose.position_L.add_(50.0 * next(steps))
        return solution

    monkeypatch.setattr(module, "solve_pose", wandering)
    found = localise(image, _predicted(pose), navigation_of(world.scenario, world.terrain_map))
    assert found.fix.status is not FixStatus.OK
    assert found.fix.position_L is None
    assert found.fix.covariance is None
    assert found.altitude is None


def test_an_empty_image_is_no_fix(scene):
    world, pose, image = scene
    nav = navigation_of(world.scenario, world.terrain_map)
    found = localise(torch.zeros_like(image), _predicted(pose), nav)
    assert found.fix.status is FixStatus.TOO_FEW_MATCHES
    assert found.fix.position_L is None
