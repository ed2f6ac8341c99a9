import pytest
import torch

from tnav.records import AltimeterSpec, MapErrorModel


def test_a_shift_of_the_map_widens_the_horizontal_position_only():
    P = torch.eye(6, dtype=torch.float64).expand(2, 6, 6)
    wide = MapErrorModel(3.0, 300.0, horizontal_sigma_m=2.0).absolute(P)
    assert wide.diagonal(dim1=1, dim2=2).tolist() == [[5.0, 5.0, 1.0, 1.0, 1.0, 1.0]] * 2
    assert torch.equal(MapErrorModel(3.0, 300.0).absolute(P), P)


def test_altimeter_noise_is_a_root_sum_of_squares():
    spec = AltimeterSpec((0.0, 0.0, -1.0), 3000.0, 0.99, 30.0, 0.3, 0.001, 10.0)
    sigma = spec.noise_sigma_m(torch.tensor([0.0, 400.0], dtype=torch.float64))
    assert sigma.tolist() == pytest.approx([0.3, 0.5])
