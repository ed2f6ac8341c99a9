"""Automatic exposure and its control from frame to frame."""

from itertools import pairwise

import pytest
import simulated_device
import torch
from pydantic import ValidationError

from tnav.render.detector import Detector, expose, expose_with_record
from tnav.render.exposure import ExposureControl, auto_exposure_s, brightness_at

SENSOR = Detector(psf_sigma_px=0.0)


def _ramp(top, n=100):
    return (torch.linspace(0, 1, n * n) * top).view(1, 1, n, n)


def test_exposure_puts_the_bright_percent_at_its_level():
    """The 99th percentile of a ramp to I/F 0.2 is 0.198, exposed to 45 % of full well."""
    _, record = expose_with_record(_ramp(0.2), SENSOR, 0)
    assert float(record.gain) * 0.99 * 0.2 == pytest.approx(0.45, rel=1e-3)
    image = expose(_ramp(0.2), SENSOR, 0)
    # a percentile of 10^4 pixels in a ramp, shot noise of 95 e in 9000 e
    assert float(brightness_at(image, 0.99)) == pytest.approx(0.45, rel=0.01)


@pytest.mark.parametrize(("share", "level"), [(0.5, 0.3), (0.9, 0.8), (1.0, 0.45)])
def test_percentile_and_level_are_the_recipes(share, level):
    detector = Detector(psf_sigma_px=0.0, exposure_percentile=share, exposure_level=level)
    _, record = expose_with_record(_ramp(0.1), detector, 0)
    assert float(record.gain) * share * 0.1 == pytest.approx(level, rel=1e-3)


def test_each_frame_has_its_own_exposure():
    scenes = torch.cat([_ramp(0.05), _ramp(0.1)])
    _, record = expose_with_record(scenes, SENSOR, 0)
    assert float(record.exposure_s[0] / record.exposure_s[1]) == pytest.approx(2.0, rel=1e-5)


def test_limits_hold_in_the_dark_and_in_the_glare():
    dark = expose_with_record(torch.zeros(1, 1, 32, 32), SENSOR, 0)[1]
    assert float(dark.exposure_s) == pytest.approx(SENSOR.exposure_max_s)
    glare = expose_with_record(torch.full((1, 1, 32, 32), 1e6), SENSOR, 0)[1]
    assert float(glare.exposure_s) == pytest.approx(SENSOR.exposure_min_s)


def test_fixed_exposure_follows_the_light():
    fixed = Detector(exposure_s=2e-4)
    dim, bright = (float(expose(_ramp(top), fixed, 0).mean()) for top in (0.05, 0.1))
    assert bright / dim == pytest.approx(2.0, rel=0.02)


def test_auto_exposure_by_hand():
    focal = torch.full((2, 1, 10, 10), 0.25)
    found = auto_exposure_s(
        focal, share=0.5, target_e=1000.0, electrons_per_s=1e6, limits_s=(1e-6, 1.0)
    )
    assert found.tolist() == pytest.approx([4e-3, 4e-3])


def _run(control, tops, start=None):
    """Brightness of the percentile, frame by frame, over scenes of given brightness."""
    state = control.start(1, "cpu") if start is None else start
    seen, times = [], []
    for k, top in enumerate(tops):
        image, record = expose_with_record(_ramp(top), SENSOR, k, state.exposure_s)
        assert torch.equal(record.exposure_s, state.exposure_s)
        seen.append(float(brightness_at(image, control.percentile)))
        times.append(float(state.exposure_s))
        state = control.next(state, image)
    return seen, times


def test_control_is_dead_beat_without_lag():
    """One frame off, the next at its level: shot and read noise of 95 e in 9000 e are left."""
    seen, _ = _run(ExposureControl(initial_s=2e-4), [0.1] * 4)
    assert seen[0] == pytest.approx(
        2e-4 * 0.099 * SENSOR.radiometry.electrons_per_s / 20e3, rel=0.02
    )
    assert seen[1:] == pytest.approx([0.45] * 3, rel=0.02)


def test_control_with_lag_waits_and_settles():
    seen, times = _run(ExposureControl(initial_s=2e-4, lag_frames=2), [0.1] * 8)
    assert times[:3] == pytest.approx([2e-4] * 3)
    assert seen[3:] == pytest.approx([0.45] * 5, rel=0.02)


def test_a_small_loop_gain_approaches_geometrically():
    _, times = _run(ExposureControl(initial_s=1e-4, loop_gain=0.5), [0.1] * 6)
    end_s = 0.45 * 20e3 / (0.099 * SENSOR.radiometry.electrons_per_s)
    for before, after in pairwise(times):
        assert after == pytest.approx((before * end_s) ** 0.5, rel=0.02)


def test_steps_and_limits_bound_the_control():
    control = ExposureControl(initial_s=1e-3, step_max=2.0, min_s=2e-4, max_s=3e-3)
    _, up = _run(control, [0.0] * 4)
    assert up == pytest.approx([1e-3, 2e-3, 3e-3, 3e-3])
    _, down = _run(control, [50.0] * 5)  # saturated: down as fast as may be
    assert down[1] == pytest.approx(1e-3 / 2, rel=0.2)
    assert down[-1] == pytest.approx(2e-4)


def test_black_level_is_taken_off():
    detector = Detector(psf_sigma_px=0.0, black_level_dn=400.0)
    control = ExposureControl(initial_s=2e-4, black_level=400 / 4095)
    state = control.start(1, "cpu")
    for k in range(3):
        image, record = expose_with_record(_ramp(0.1), detector, k, state.exposure_s)
        state = control.next(state, image)
    # 0.45 of full scale, of which full well fills what black leaves
    assert float(record.gain) * 0.099 == pytest.approx(0.45 * 4095 / 3695, rel=0.02)


@pytest.mark.parametrize(
    "wrong",
    [{"initial_s": 1.0}, {"level": 0.6, "black_level": 0.5}, {"step_max": 1.0}, {"loop_gain": 0.0}],
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValidationError):
        ExposureControl(**wrong)


def test_shortest_may_not_exceed_longest():
    with pytest.raises(ValidationError, match="exposure_min_s"):
        Detector(exposure_min_s=1e-2, exposure_max_s=1e-3)


def test_control_on_the_simulated_accelerator(simgpu):
    control = ExposureControl(lag_frames=1)
    images = torch.cat([_ramp(0.3), _ramp(0.9)])
    expected = control.next(control.start(2, "cpu"), images)
    there = images.to(simgpu)
    with simulated_device.count_syncs() as syncs:
        found = control.next(control.start(2, simgpu), there)
    assert not syncs, syncs
    assert torch.equal(found.queue_s.cpu(), expected.queue_s)
