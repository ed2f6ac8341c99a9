import math

import pytest
import torch

from tnav.errors import ConfigError
from tnav.render.detector import Detector, blur, expose, exposure_gain


def _flat(level, size=256):
    return torch.full((1, 1, size, size), level)


def test_values_are_twelve_bit_steps():
    image = expose(_flat(0.1), Detector(), seed=0)
    steps = image * 4095
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert float(image.max()) <= 1.0
    assert float(image.min()) >= 0.0


@pytest.mark.parametrize("level", [0.1, 0.3, 0.9])
def test_photon_transfer_curve(level):
    """Variance in electrons is the signal plus read noise squared plus a step's twelfth."""
    detector = Detector(exposure_level=level)
    image = expose(_flat(1.0), detector, seed=1).double()
    signal_e = level * detector.full_well_e
    step_e = detector.full_well_e / 4095
    expected = signal_e + detector.read_noise_e**2 + step_e**2 / 12
    measured = float((image * detector.full_well_e).var())
    # the variance of a variance estimate: 2 / n, 4 sigma
    assert measured == pytest.approx(expected, rel=4 * math.sqrt(2 / image.numel()))
    sem = math.sqrt(expected / image.numel())
    assert float(image.mean()) * detector.full_well_e == pytest.approx(signal_e, abs=4 * sem)


def test_exposure_puts_the_bright_percent_at_its_level():
    scene = torch.linspace(0, 7, 10001)[None, None, None]
    gain = exposure_gain(scene, Detector(exposure_level=0.45))
    assert float(gain * 7 * 0.99) == pytest.approx(0.45, rel=1e-3)


def test_a_black_scene_stays_black_but_for_noise():
    image = expose(_flat(0.0), Detector(), seed=2)
    assert float(image.mean()) < 2 * Detector().read_noise_e / Detector().full_well_e


def test_point_spread_function_is_the_gaussian():
    point = torch.zeros(1, 1, 33, 33)
    point[..., 16, 16] = 1.0
    spread = blur(point, 0.6)[0, 0].double()
    x = torch.arange(33, dtype=torch.float64) - 16
    assert float(spread.sum()) == pytest.approx(1.0, abs=1e-6)
    second = float((spread.sum(0) * x**2).sum())
    weights = torch.exp(-(x**2) / (2 * 0.36))
    assert second == pytest.approx(float((weights * x**2).sum() / weights.sum()), rel=5e-3)


def test_saturation_clips():
    detector = Detector(exposure_level=2.0)
    assert float(expose(_flat(1.0), detector, seed=3).median()) == 1.0


def test_seed_decides():
    a, b, c = (expose(_flat(0.2), Detector(), seed=s) for s in (5, 5, 6))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_nonsense_is_refused():
    with pytest.raises(ConfigError, match=r"detector\.full_well_e: -1\.0"):
        Detector(full_well_e=-1.0)
