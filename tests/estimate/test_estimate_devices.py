"""The same numbers on the simulated accelerator, and no wait for it."""

import pytest
import torch
from pose_scenes import CAMERA, LENSES, make_scene
from simulated_device import count_syncs

from tnav.estimate.altitude import estimate_altitude
from tnav.estimate.pnp import fixes_on_host, solve_pose
from tnav.geometry.camera import Camera
from tnav.records import AltitudeEstimate, MapErrorModel, Matches, PoseSolution
from tnav.terrain.heightfield import Level, Terrain

ROUGH_MAP = MapErrorModel(sigma_m=3.0, correlation_m=300.0)


@pytest.mark.parametrize("camera", [CAMERA, *LENSES])
def test_pose_and_altitude(simgpu: str, camera: Camera) -> None:
    scene = make_scene(61, frames=3, n=80, outliers=0.3, map_error=ROUGH_MAP, camera=camera)
    scene.matches.valid[1] = False  # a failed frame goes the same way
    m = scene.matches
    terrain = Terrain([Level(-8192.0, -8192.0, 64.0, torch.zeros(257, 257))])
    boresight_C = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)

    def run(device: str) -> tuple[PoseSolution, AltitudeEstimate, Matches]:
        fields = (m.uv_map_px, m.uv_px, m.covariance_px2, m.score, m.point_L, m.valid, m.learned)
        matches = Matches(*(t.to(device) for t in fields))
        prior, ground, axis_C = scene.prior.to(device), terrain.to(device), boresight_C.to(device)
        with count_syncs() as waits:
            solution = solve_pose(
                matches, camera, prior, attitude_sigma_rad=1e-3, map_error=ROUGH_MAP, seed=0
            )
            altitude = estimate_altitude(solution, ground, boresight_C=axis_C, map_error=ROUGH_MAP)
        assert not waits
        return solution, altitude, matches

    expected, expected_altitude, matches = run("cpu")
    got, got_altitude, matches_there = run(simgpu)
    assert got.pose.position_L.device.type == simgpu
    assert torch.equal(got.status_code.cpu(), expected.status_code)
    assert expected.status_code.tolist()[0] == 0
    assert expected.status_code.tolist()[1] != 0
    for mine, theirs in (
        (got.pose.position_L, expected.pose.position_L),
        (got.pose.R_L_C, expected.pose.R_L_C),
        (got.covariance, expected.covariance),
        (got.map_error.precision, expected.map_error.precision),
        (got_altitude.agl_m, expected_altitude.agl_m),
        (got_altitude.range_sigma_m, expected_altitude.range_sigma_m),
    ):
        assert torch.allclose(mine.cpu(), theirs, rtol=1e-12, atol=0.0, equal_nan=True)

    times = [0.0, 1.0, 2.0]
    with count_syncs() as waits:
        fixes = fixes_on_host(got, matches_there, times)
    assert sum(waits.values()) == 1
    statuses = [fix.status for fix in fixes_on_host(expected, matches, times)]
    assert [fix.status for fix in fixes] == statuses
