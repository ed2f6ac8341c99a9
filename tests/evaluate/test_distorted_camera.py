"""A camera with distortion from the recipe to the fix, and through the sidecar of an image."""

import json
from dataclasses import replace

import pytest
import torch

from tnav.evaluate.infer import infer, read_sidecar
from tnav.evaluate.localise import Prediction, localise
from tnav.evaluate.scenario import CameraRecipe, Imaging, load_scenario
from tnav.evaluate.world import R_B_C, World, build_world, navigation_of, observe
from tnav.geometry.distortion import BrownConrady, Fisheye
from tnav.geometry.pose import Pose
from tnav.images import write_png16
from tnav.records import FixStatus
from tnav.terrain.site import Site

LENSES = {
    "brown_conrady": BrownConrady(k1=-0.3, k2=0.1, p1=1e-3, p2=-5e-4),
    "fisheye": Fisheye(k1=-0.01),
}
COVARIANCE = 40.0**2 * torch.eye(3, dtype=torch.float64)


@pytest.fixture(scope="module")
def world() -> World:
    scenario = load_scenario("resilience").model_copy(
        update={
            "camera": CameraRecipe(width_px=320, height_px=320, fov_deg=50.0),
            "imaging": Imaging(samples=1),
            "site": Site(latitude_deg=60.5, longitude_deg=-4.6, cells=512),
        }
    )
    return build_world(scenario, torch.device("cpu"))


def through(world: World, lens: BrownConrady | Fisheye) -> World:
    """The same world seen through a lens."""
    recipe = CameraRecipe(width_px=320, height_px=320, fov_deg=50.0, distortion=lens)
    scenario = world.scenario.model_copy(update={"camera": recipe})
    return replace(world, scenario=scenario, camera=recipe.camera())


def pose_of(world: World) -> Pose:
    k = 900
    return Pose((world.trajectory.R_L_B[k] @ R_B_C)[None], world.trajectory.position_L[k : k + 1])


def predicted(pose: Pose) -> Prediction:
    offset_L = torch.tensor([[40.0, -30.0, 25.0]], dtype=torch.float64)
    return Prediction(0.0, Pose(pose.R_L_C, pose.position_L + offset_L), COVARIANCE, 1e-4)


@pytest.mark.parametrize("kind", LENSES)
def test_an_image_through_a_lens_is_localised(world, kind):
    seen, pose = through(world, LENSES[kind]), pose_of(world)
    image = observe(seen, pose, 1)
    found = localise(image, predicted(pose), navigation_of(seen.scenario, seen.terrain_map))
    assert found.fix.status is FixStatus.OK
    error_m = float((found.fix.position_L - pose.position_L[0]).norm())
    assert error_m < 15
    # Navigation that knows nothing of the lens is led astray, or finds nothing.
    ideal = localise(image, predicted(pose), navigation_of(world.scenario, world.terrain_map))
    if ideal.fix.status is FixStatus.OK:
        assert float((ideal.fix.position_L - pose.position_L[0]).norm()) > 3 * error_m


def test_the_sidecar_of_an_image_carries_the_lens(world, tmp_path):
    seen, pose = through(world, LENSES["brown_conrady"]), pose_of(world)
    image, prediction = observe(seen, pose, 1), predicted(pose)
    write_png16(tmp_path / "a.png", image[0, 0])
    sidecar = {
        "t_s": 0.0,
        "position_L": prediction.pose.position_L[0].tolist(),
        "R_L_C": pose.R_L_C[0].tolist(),
        "position_covariance": COVARIANCE.tolist(),
        "attitude_sigma_rad": 1e-4,
        "scenario": seen.scenario.model_dump(mode="json"),
    }
    (tmp_path / "a.json").write_text(json.dumps(sidecar))
    assert read_sidecar(tmp_path / "a.json").scenario.camera.camera() == seen.camera
    found = infer(tmp_path / "a.png", tmp_path / "a.json", torch.device("cpu"))
    expected = localise(image, prediction, navigation_of(seen.scenario, seen.terrain_map))
    assert found.fix.status is FixStatus.OK
    difference_m = float((found.fix.position_L - expected.fix.position_L).norm())
    assert difference_m < 0.5  # what the 16 bits of the PNG round away
