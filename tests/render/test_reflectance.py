import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tnav.render.reflectance import lunar_lambert


def _value(mu0, mu, phase_deg):
    tensors = [torch.tensor(v, dtype=torch.float64) for v in (mu0, mu, math.radians(phase_deg))]
    return float(lunar_lambert(*tensors))


def test_at_zero_phase_it_is_lommel_seeliger():
    # L(0) = 1: 2 mu0 / (mu0 + mu), which is flat where incidence equals emission
    for mu in (0.2, 0.6, 1.0):
        assert _value(mu, mu, 0.0) == pytest.approx(1.0)


def test_by_hand_at_60_degrees():
    share = 1 - 0.019 * 60 + 2.42e-4 * 3600 - 1.46e-6 * 216000
    expected = 2 * share * 0.3 / (0.3 + 0.8) + (1 - share) * 0.3
    assert _value(0.3, 0.8, 60.0) == pytest.approx(expected)


@given(st.floats(0.01, 0.9), st.floats(0.01, 1), st.floats(0, 180))
def test_never_negative_and_grows_with_the_sun(mu0, mu, phase_deg):
    assert _value(mu0, mu, phase_deg) >= 0
    assert _value(mu0 + 0.1, mu, phase_deg) > _value(mu0, mu, phase_deg)


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0, 140))
def test_reciprocity(mu0, mu, phase_deg):
    """Helmholtz: I/F over mu0 does not change when light and eye trade places."""
    assert _value(mu0, mu, phase_deg) / mu0 == pytest.approx(_value(mu, mu0, phase_deg) / mu)


def test_the_dark_side_is_dark():
    assert _value(-0.5, 0.5, 100.0) == 0.0
    assert _value(0.0, 0.0, 100.0) == 0.0
