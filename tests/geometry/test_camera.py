import math

import pytest
import torch

from tnav.errors import ConfigError
from tnav.geometry.camera import Camera


def test_projection_by_hand():
    camera = Camera(200, 100, 50.0, 100.0, 50.0)
    point_C = torch.tensor([[2.0, -1.0, 4.0]], dtype=torch.float64)
    assert camera.project(point_C).tolist() == [[125.0, 37.5]]


def test_unproject_inverts_project_at_pixel_centres():
    camera = Camera.from_field_of_view(64, 48, 45.0)
    uv = camera.pixel_centres("cpu")
    assert uv.shape == (48, 64, 2)
    assert uv[3, 5].tolist() == [5.5, 3.5]  # row, column against u, v
    rays = camera.unproject(uv)
    assert torch.allclose(camera.project(rays * 7.0), uv)


def test_field_of_view_and_ground_sample_distance():
    camera = Camera.from_field_of_view(1024, 1024, 45.0)
    assert camera.focal_px == pytest.approx(512 / math.tan(math.radians(22.5)))
    assert camera.ground_sample_distance_m(10e3) == pytest.approx(
        2 * 10e3 * math.tan(math.radians(22.5)) / 1024
    )


@pytest.mark.parametrize(("field", "value"), [("focal_px", -1.0), ("width_px", 0)])
def test_nonsense_is_refused_by_name(field, value):
    good = {"width_px": 8, "height_px": 8, "focal_px": 9.0, "cx_px": 4.0, "cy_px": 4.0}
    with pytest.raises(ConfigError, match=rf"camera\.{field}: .*expected > 0"):
        Camera(**{**good, field: value})
