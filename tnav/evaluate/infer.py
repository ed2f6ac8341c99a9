"""One image of a person's to one fix: the sidecar beside it says what navigation knew."""

from dataclasses import replace
from pathlib import Path

import torch
from pydantic import Field

from tnav.config import Recipe, load_recipe
from tnav.errors import ConfigError, ImageError
from tnav.evaluate.localise import Localisation, Prediction, localise
from tnav.evaluate.scenario import Scenario
from tnav.evaluate.world import navigation_of
from tnav.geometry.pose import Pose
from tnav.images import display_grey, draw_matches, read_image, write_png8
from tnav.terrain.cache import default_cache
from tnav.terrain.site import build_truth, degrade

_Vector = tuple[float, float, float]
_Matrix = tuple[_Vector, _Vector, _Vector]
_ORTHONORMAL_TOLERANCE = 1e-6


class Sidecar(Recipe):
    """Prediction and scenario of one image; the demo writes one beside every frame."""

    t_s: float
    position_L: _Vector  # predicted camera centre, m
    R_L_C: _Matrix  # attitude by the star tracker
    position_covariance: _Matrix  # m^2
    attitude_sigma_rad: float = Field(ge=1e-9, le=1)
    scenario: Scenario  # site, map, camera and date


def read_sidecar(path: Path) -> Sidecar:
    """Read and check the JSON beside an image (JSON is YAML: errors name line and field)."""
    sidecar = load_recipe(path, Sidecar)
    R = torch.tensor(sidecar.R_L_C, dtype=torch.float64)
    off = float((R @ R.T - torch.eye(3, dtype=torch.float64)).abs().max())
    if off > _ORTHONORMAL_TOLERANCE or float(torch.linalg.det(R)) < 0:
        raise ConfigError(
            f"{path}: R_L_C: not a rotation (off by {off:.1e}); expected axes of C in L"
        )
    P = torch.tensor(sidecar.position_covariance, dtype=torch.float64)
    if not torch.allclose(P, P.T) or float(torch.linalg.eigvalsh(P)[0]) < 0:
        raise ConfigError(f"{path}: position_covariance: not a covariance (symmetric, >= 0)")
    return sidecar


def infer(image_path: Path, sidecar_path: Path, device: torch.device) -> Localisation:
    """Solve one image.

    Args:
        image_path: PNG or TIFF of the camera's size.
        sidecar_path: its prediction.
        device: where to work.

    Raises:
        ImageError: unreadable, constant, or of another size than the camera's.
        ConfigError: the sidecar does not fit.
    """
    image = read_image(image_path)
    sidecar = read_sidecar(sidecar_path)
    scenario = sidecar.scenario
    camera = scenario.camera.camera()
    if image.shape[-2:] != (camera.height_px, camera.width_px):
        raise ImageError(
            f"{image_path}: {image.shape[-1]} x {image.shape[-2]} px, but {sidecar_path.name} says "
            f"{camera.width_px} x {camera.height_px}; give the image and the sidecar that belong "
            "together"
        )
    ground = build_truth(scenario.site, scenario.seeds.terrain, cache=default_cache())
    terrain_map = degrade(ground, scenario.map, scenario.seeds.map).to(device)
    prediction = Prediction(
        t_s=sidecar.t_s,
        pose=Pose(
            torch.tensor([sidecar.R_L_C], dtype=torch.float64).to(device),
            torch.tensor([sidecar.position_L], dtype=torch.float64).to(device),
        ),
        position_covariance=torch.tensor(sidecar.position_covariance, dtype=torch.float64),
        attitude_sigma_rad=sidecar.attitude_sigma_rad,
    )
    found = localise(image.to(device), prediction, navigation_of(scenario, terrain_map))
    if found.fix.covariance is None:
        return found
    absolute = scenario.map.error_model().absolute(found.fix.covariance)
    return replace(found, fix=replace(found.fix, covariance=absolute))


def describe(found: Localisation) -> dict[str, object]:
    """The fix as strict JSON values; a failed one has a status and nulls."""
    fix, altitude = found.fix, found.altitude
    result: dict[str, object] = {
        "t_s": fix.t_s,
        "status": fix.status.value,
        "n_matches": fix.n_matches,
        "n_inliers": fix.n_inliers,
        "rms_px": fix.rms_px,
        "views_rendered": found.renders,
        "learned_features": bool(found.matches.learned[0]),
        "out_of_contract": list(found.out_of_contract),
        "position_L": None if fix.position_L is None else fix.position_L.tolist(),
        "R_L_C": None if fix.R_L_C is None else fix.R_L_C.tolist(),
        "covariance": None if fix.covariance is None else fix.covariance.tolist(),
    }
    for name in ("altitude", "agl", "range"):
        known = altitude is not None and (name != "range" or bool(altitude.range_valid[0]))
        for field in (f"{name}_m", f"{name}_sigma_m"):
            result[field] = float(getattr(altitude, field)[0]) if known else None
    return result


def draw(found: Localisation, image_path: Path, path: Path) -> None:
    """Write the map view and the image side by side, with their matches."""
    matches, valid = found.matches, found.matches.valid[0].cpu()
    picture = draw_matches(
        display_grey(found.map_view.image[0, 0]),
        display_grey(read_image(image_path)[0, 0]),
        matches.uv_map_px[0].cpu()[valid].numpy(),
        matches.uv_px[0].cpu()[valid].numpy(),
        found.solution.inlier[0].cpu()[valid].numpy(),
    )
    write_png8(path, picture)
