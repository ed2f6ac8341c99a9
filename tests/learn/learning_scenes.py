"""What the tests of learning share: small grounds that are made in a fraction of a second."""

import math

import torch
from torch import Tensor

from tnav.geometry.camera import Camera
from tnav.geometry.pose import Pose, so3_exp
from tnav.geometry.sun import direction_L
from tnav.learn.regions import Modelled
from tnav.learn.scenes import Scene, SceneMaker, SceneRecipe
from tnav.records import MapErrorModel
from tnav.render.renderer import render
from tnav.terrain.heightfield import Level, Terrain

SMALL = Modelled(finest_post_m=8.0, levels=3, cells=256)  # 8 km wide
DOWN = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))


def small(**changes: object) -> SceneRecipe:
    """Scenes of 64 px over a small ground of one region."""
    given: dict[str, object] = {
        "width_px": 64,
        "height_px": 48,
        "fov_deg": 12.0,
        "ground": SMALL,
        "regions": ("imbrium-north",),
        "agl_m": (2000.0, 5000.0),
        "tilt_deg": (0.0, 20.0),
        "coarser": (1.0, 2.0, 4.0),
        "samples": (1,),
        "maps": 2,
    }
    return SceneRecipe.model_validate({**given, **changes})


def made_of(
    truth: Terrain,
    shown: Terrain,
    true_pose: Pose,
    predicted_pose: Pose,
    camera: Camera,
    *,
    shift_m: tuple[float, float] = (0.0, 0.0),
    blocked: Tensor | None = None,
) -> Scene:
    """A scene over terrains of one's own."""
    sun_L = direction_L(90.0, 30.0)
    seen = render(truth, camera, true_pose, sun_L)
    nothing = torch.zeros(camera.height_px, camera.width_px, dtype=torch.bool)
    return Scene(
        map_view=render(shown, camera, predicted_pose, sun_L),
        image=seen.image,
        camera=camera,
        true_pose=true_pose,
        predicted_pose=predicted_pose,
        sun_L=sun_L,
        view_sun_L=sun_L,
        map_error=MapErrorModel(1.0, 300.0),
        terrain_map=shown,
        level=0,
        map_posts_per_pixel_coarser=1.0,
        map_shift_m=shift_m,
        truth=truth,
        truth_level=0,
        true_range_m=torch.where(seen.hit[0], seen.range_m[0], math.inf),
        blocked=nothing if blocked is None else blocked,
        case=SceneMaker(small(), "train", 0).case(0),
    )


def grid(z_L: Tensor, post_m: float) -> Terrain:
    """One level about the origin."""
    half_m = post_m * (z_L.shape[0] - 1) / 2
    return Terrain([Level(-half_m, -half_m, post_m, z_L.float())])


def pose(position_L: tuple[float, float, float], turn: tuple[float, float, float]) -> Pose:
    """A camera that looks down, turned by a rotation vector in L."""
    turn_L = so3_exp(torch.tensor([turn], dtype=torch.float64))
    return Pose(turn_L @ DOWN, torch.tensor([position_L], dtype=torch.float64))
