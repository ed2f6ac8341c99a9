"""Star tracker, touchdown switch, camera clock and the altimeter's faults."""

import math

import pytest
import simulated_device
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tnav.config import load_recipe
from tnav.errors import ConfigError
from tnav.geometry.moon import LocalFrame
from tnav.geometry.pose import so3_exp, so3_log
from tnav.simulate.descent import DescentProfile, fly
from tnav.simulate.fault_prescribed import Bias, Dropout, LateAcquisition, NoFault, apply_fault
from tnav.simulate.instruments import (
    CameraTiming,
    StarTracker,
    TouchdownState,
    TouchdownSwitch,
    epochs_s,
    read_attitude,
    read_star_tracker,
    read_touchdown,
    tag_exposure,
)

F64 = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def attitudes(n: int, seed: int = 0):
    return so3_exp(torch.randn(n, 3, generator=seeded(seed), dtype=F64))


@pytest.fixture(scope="module")
def flight():
    return fly(DescentProfile(), LocalFrame(60.5, -4.6), 0.0)


# Star tracker -------------------------------------------------------------------------------------


def _errors_L(tracker: StarTracker, R_L_B, seed: int = 3):
    return so3_log(read_attitude(tracker, R_L_B, seeded(seed)) @ R_L_B.mT)


def test_star_tracker_error_is_isotropic() -> None:
    sigma, n = math.radians(0.01), 20_000
    error_L = _errors_L(StarTracker(sigma_deg=0.01), attitudes(n))
    for axis in range(3):
        assert float(error_L[:, axis].std()) == pytest.approx(sigma, rel=4 / math.sqrt(2 * n))
    assert float(error_L.mean(0).abs().max()) < 4 * sigma / math.sqrt(n)


def test_star_tracker_is_worse_about_its_boresight_only() -> None:
    sigma, n = math.radians(0.01), 20_000
    tracker = StarTracker(sigma_deg=0.01, boresight_B=(3.0, 0.0, 4.0), boresight_factor=8.0)
    R_L_B = attitudes(n)
    error_B = (R_L_B.mT @ _errors_L(tracker, R_L_B)[..., None])[..., 0]
    along = torch.tensor([0.6, 0.0, 0.8], dtype=F64)
    across = torch.tensor([[0.8, 0.0, -0.6], [0.0, 1.0, 0.0]], dtype=F64)
    bound = 4 / math.sqrt(2 * n)
    assert float((error_B @ along).std()) == pytest.approx(8 * sigma, rel=bound)
    for axis in across:
        assert float((error_B @ axis).std()) == pytest.approx(sigma, rel=bound)
        correlation = torch.corrcoef(torch.stack([error_B @ axis, error_B @ along]))[0, 1]
        assert abs(float(correlation)) < 4 / math.sqrt(n)


def test_a_flight_of_attitudes_is_one_batch_of_them(flight) -> None:
    tracker = StarTracker()
    whole = read_star_tracker(tracker, flight.R_L_B, seed=3)
    assert torch.equal(whole, read_attitude(tracker, flight.R_L_B, seeded(3)))
    assert not torch.equal(whole, read_star_tracker(tracker, flight.R_L_B, seed=4))


# Touchdown switch ---------------------------------------------------------------------------------


def _touches(switch: TouchdownSwitch, agl_m: list[list[float]], dt_s: float = 0.1):
    """Readings [epochs][descents] of heights [epochs][descents]."""
    state, generator = TouchdownState.free(len(agl_m[0]), "cpu"), seeded()
    said = []
    for k, heights in enumerate(agl_m):
        agl = torch.tensor(heights, dtype=F64)
        state, contact = read_touchdown(switch, state, agl, 100.0 + k * dt_s, generator)
        said.append(contact.tolist())
    return said


def test_contact_just_within_and_just_beyond_the_probe() -> None:
    switch = TouchdownSwitch(probe_m=1.5, delay_s=0.0)
    assert _touches(switch, [[1.5001, 1.5, 1.4999, -0.2]]) == [[False, True, True, True]]


def test_contact_is_said_after_the_delay_and_not_before() -> None:
    """Two descents that touch one epoch apart; three epochs of delay."""
    heights = [[2.0, 2.0], [1.0, 2.0], [0.5, 1.0], [0.2, 0.9], [0.0, 0.5], [0.0, 0.1]]
    said = _touches(TouchdownSwitch(probe_m=1.5, delay_s=0.3), heights)
    assert [row[0] for row in said] == [False, False, False, False, True, True]
    assert [row[1] for row in said] == [False, False, False, False, False, True]


def test_a_bounce_opens_the_switch_and_starts_the_delay_anew() -> None:
    heights = [[1.0], [1.0], [3.0], [1.0], [1.0], [1.0]]
    said = _touches(TouchdownSwitch(probe_m=1.5, delay_s=0.1), heights)
    assert [row[0] for row in said] == [False, True, False, False, True, True]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(0.0, 4.0), min_size=1, max_size=40),
    st.floats(0.01, 0.3),
    st.integers(0, 5),
)
def test_contact_means_that_the_probe_touched_all_the_delay_long(heights, dt_s, steps) -> None:
    switch = TouchdownSwitch(probe_m=1.7, delay_s=steps * dt_s)
    said = _touches(switch, [[h] for h in heights], dt_s)
    for k, row in enumerate(said):
        window = heights[max(k - steps, 0) : k + 1]
        assert row[0] == (len(window) == steps + 1 and max(window) <= 1.7)


def test_spurious_contacts_have_their_rate_and_do_not_latch() -> None:
    n, p = 20_000, 0.1
    switch = TouchdownSwitch(spurious_probability=p)
    state, generator, high = (
        TouchdownState.free(n, "cpu"),
        seeded(1),
        torch.full((n,), 50.0).double(),
    )
    state, first = read_touchdown(switch, state, high, 0.0, generator)
    state, second = read_touchdown(switch, state, high, 0.1, generator)
    bound = 4 * math.sqrt(p * (1 - p) / n)
    assert float(first.double().mean()) == pytest.approx(p, abs=bound)
    assert float((first & second).double().mean()) == pytest.approx(p * p, abs=bound)
    quiet = read_touchdown(TouchdownSwitch(), state, high, 0.2, generator)[1]
    assert not bool(quiet.any())


# Camera clock -------------------------------------------------------------------------------------


def test_time_tags_scatter_as_specified() -> None:
    n, timing = 20_000, CameraTiming(time_tag_sigma_s=2e-3)
    exposed_s = torch.linspace(0, 600, n, dtype=F64)
    error_s = tag_exposure(timing, exposed_s, seeded(2)) - exposed_s
    assert float(error_s.std()) == pytest.approx(2e-3, rel=4 / math.sqrt(2 * n))
    assert abs(float(error_s.mean())) < 4 * 2e-3 / math.sqrt(n)
    exact = tag_exposure(CameraTiming(time_tag_sigma_s=0.0), exposed_s, seeded(2))
    assert torch.equal(exact, exposed_s)


# All of them --------------------------------------------------------------------------------------


def test_same_readings_without_waiting_on_an_accelerator(simgpu) -> None:
    def read(device: str):
        generator, R_L_B = seeded(5), attitudes(6).to(device)
        agl_m = torch.linspace(-1, 4, 6, dtype=F64).to(device)
        state = TouchdownState.free(6, device)
        switch = TouchdownSwitch(spurious_probability=0.3, delay_s=0.0)
        state, contact = read_touchdown(switch, state, agl_m, 3.0, generator)
        return (
            read_attitude(StarTracker(), R_L_B, generator),
            read_attitude(StarTracker(boresight_factor=5.0), R_L_B, generator),
            state.touching_since_s,
            contact,
            tag_exposure(CameraTiming(), agl_m, generator),
        )

    expected = read("cpu")
    with simulated_device.count_syncs() as syncs:
        actual = read(simgpu)
    assert not syncs, syncs
    for want, got in zip(expected, actual, strict=True):
        assert got.device.type == simgpu
        assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize(
    ("model", "line", "words"),
    [
        (StarTracker, "boresight_factor: 0.5", "boresight_factor: input should be greater than or"),
        (StarTracker, "boresight_B: [0, 0, 0]", "expected a direction, not a zero vector"),
        (TouchdownSwitch, "probe_m: -1", "probe_m: input should be greater than or equal to 0"),
        (TouchdownSwitch, "spurious_probability: 2", "less than or equal to 1, found 2"),
        (CameraTiming, "latency_s: -0.1", "latency_s: input should be greater than or equal to 0"),
        (CameraTiming, "latencys: 0.1", "unknown key"),
    ],
)
def test_impossible_recipes_are_refused_by_name(model, line, words, tmp_path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(line)
    with pytest.raises(ConfigError, match=r"recipe\.yaml:1: ") as caught:
        load_recipe(path, model)
    assert words in str(caught.value)


# Epochs and faults --------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_hz", [1.0, 3.0, 9.5, 9.7, 10.0, 1 / 3])
def test_epochs_cover_the_flight_and_no_more(flight, rate_hz):
    t_s = epochs_s(flight, rate_hz)
    end_s = float(flight.t_s[-1])
    assert float(t_s[-1]) <= end_s + 1e-6
    assert float(t_s[-1]) + 1 / rate_hz > end_s
    assert epochs_s(flight, rate_hz, end_s + 1.0).numel() == 0


T_S = torch.arange(0, 100, 0.1, dtype=torch.float64)
RANGE_M = 3000 - 25 * T_S
VALID = torch.ones(1000, dtype=torch.bool)


def test_no_fault_changes_nothing():
    range_m, valid = apply_fault(NoFault(), T_S, RANGE_M, VALID, seed=0)
    assert torch.equal(range_m, RANGE_M)
    assert torch.equal(valid, VALID)


def test_late_acquisition_is_a_logistic_in_range():
    fault = LateAcquisition(kind="late_acquisition", range_max_m=893.0, edge_m=200.0)
    drawn = torch.stack([apply_fault(fault, T_S, RANGE_M, VALID, seed=s)[1] for s in range(400)])
    share = drawn.double().mean(0)
    for range_m, expected in ((893.0, 0.5), (793.0, 0.9), (993.0, 0.1)):
        near = (RANGE_M - range_m).abs() < 10
        assert float(share[near].mean()) == pytest.approx(expected, abs=0.04)
    assert not bool(drawn[:, RANGE_M > 1500].any())
    assert bool(drawn[:, RANGE_M < 600].float().mean() > 0.99)


def test_late_acquisition_never_makes_an_invalid_range_valid():
    fault = LateAcquisition(kind="late_acquisition")
    _, valid = apply_fault(fault, T_S, RANGE_M, torch.zeros_like(VALID), seed=0)
    assert not bool(valid.any())


def test_dropout_covers_its_window_and_nothing_else():
    _, valid = apply_fault(
        Dropout(kind="dropout", start_s=10.0, duration_s=5.0), T_S, RANGE_M, VALID, 0
    )
    gone = T_S[~valid]
    assert float(gone.min()) == pytest.approx(10.0)
    assert float(gone.max()) == pytest.approx(14.9)
    assert gone.numel() == 50


def test_bias_begins_at_its_time():
    range_m, _ = apply_fault(Bias(kind="bias", start_s=50.0, bias_m=-300.0), T_S, RANGE_M, VALID, 0)
    moved = range_m - RANGE_M
    assert float(moved[T_S < 49.95].abs().max()) == 0
    assert torch.equal(moved[T_S > 50.0], torch.full_like(moved[T_S > 50.0], -300.0))
