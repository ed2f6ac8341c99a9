"""Inertial units: each error alone in closed form, sizes by their statistics, limits, devices."""

import math
from dataclasses import replace

import pytest
import simulated_device
import torch
from torch import Tensor

from tnav.config import load_recipe
from tnav.errors import ConfigError
from tnav.geometry.moon import LocalFrame
from tnav.simulate.descent import DescentProfile, fly
from tnav.simulate.inertial import (
    InertialErrors,
    InertialUnit,
    draw_inertial,
    read_increments,
    read_inertial,
    walk_biases,
)

F64 = torch.float64
DT_S = 0.1
PERFECT = InertialUnit(
    accelerometer_bias_m_s2=0.0,
    velocity_random_walk_m_s_sqrt_s=0.0,
    gyro_bias_rad_s=0.0,
    angle_random_walk_rad_sqrt_s=0.0,
)
POOR = InertialUnit(
    accelerometer_scale=1e-3,
    gyro_scale=2e-3,
    accelerometer_misalignment_deg=0.2,
    gyro_misalignment_deg=0.1,
    accelerometer_bias_walk_m_s2_sqrt_s=1e-5,
    gyro_bias_walk_rad_s_sqrt_s=1e-8,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vectors(n: int, size: float, seed: int = 0) -> Tensor:
    return size * torch.randn(n, 3, generator=seeded(seed), dtype=F64)


@pytest.fixture(scope="module")
def flight():
    return fly(DescentProfile(), LocalFrame(60.5, -4.6), 0.0)


def test_a_perfect_unit_reads_the_truth() -> None:
    v, theta = vectors(5, 0.2), vectors(5, 1e-3, 1)
    errors = draw_inertial(PERFECT, 5, seeded())
    read = read_increments(PERFECT, errors, v, theta, DT_S, seeded(1))
    assert torch.equal(read[0], v)
    assert torch.equal(read[1], theta)


def test_bias_scale_and_misalignment_in_closed_form() -> None:
    """Scale on x, an axis y that leans towards x, a bias on z; of each triad its own."""
    matrix = torch.zeros(2, 1, 3, 3, dtype=F64)
    matrix[0, 0, 0, 0], matrix[0, 0, 1, 0] = 2e-3, 1e-3
    matrix[1, 0, 2, 1] = -5e-3
    errors = InertialErrors(
        accelerometer_bias_B=torch.tensor([[0.0, 0.0, 0.03]], dtype=F64),
        gyro_bias_B=torch.tensor([[1e-3, 0.0, 0.0]], dtype=F64),
        accelerometer_matrix=matrix[0],
        gyro_matrix=matrix[1],
    )
    v = torch.tensor([[0.5, -0.1, 0.2]], dtype=F64)
    theta = torch.tensor([[0.01, 0.02, -0.03]], dtype=F64)
    read_v, read_theta = read_increments(PERFECT, errors, v, theta, DT_S, seeded())
    expected = torch.tensor([[0.5 * 1.002, -0.1 + 0.5e-3, 0.2 + 0.003]], dtype=F64)
    torch.testing.assert_close(read_v, expected, rtol=0, atol=1e-15)
    expected = torch.tensor([[0.01 + 1e-4, 0.02, -0.03 - 1e-4]], dtype=F64)
    torch.testing.assert_close(read_theta, expected, rtol=0, atol=1e-15)


def test_errors_of_many_descents_have_their_sizes() -> None:
    n = 20_000
    unit, errors = POOR, draw_inertial(POOR, n, seeded(1))
    eye = torch.eye(3, dtype=torch.bool)
    for drawn, sigma in (
        (errors.accelerometer_bias_B, unit.accelerometer_bias_m_s2),
        (errors.gyro_bias_B, unit.gyro_bias_rad_s),
        (errors.accelerometer_matrix[:, eye], unit.accelerometer_scale),
        (errors.gyro_matrix[:, eye], unit.gyro_scale),
        (errors.accelerometer_matrix[:, ~eye], math.radians(unit.accelerometer_misalignment_deg)),
        (errors.gyro_matrix[:, ~eye], math.radians(unit.gyro_misalignment_deg)),
    ):
        spread = drawn.std(0) / sigma
        assert float((spread - 1).abs().max()) < 5 / math.sqrt(2 * n)
        correlation = torch.corrcoef(drawn.T) - torch.eye(drawn.shape[1], dtype=F64)
        assert float(correlation.abs().max()) < 5 / math.sqrt(n)


@pytest.mark.parametrize("dt_s", [0.01, 0.1])
def test_noise_is_a_random_walk_of_the_sum(dt_s: float) -> None:
    """Its sum over one second does not depend on the step."""
    n, zero = 4000, torch.zeros(4000, 3, dtype=F64)
    unit = InertialUnit(accelerometer_bias_m_s2=0.0, gyro_bias_rad_s=0.0)
    errors, generator = draw_inertial(unit, n, seeded()), seeded(1)
    sums = torch.zeros(2, n, 3, dtype=F64)
    for _ in range(round(1 / dt_s)):
        sums = sums + torch.stack(read_increments(unit, errors, zero, zero, dt_s, generator))
    bound = 4 / math.sqrt(2 * 3 * n)
    walk = unit.velocity_random_walk_m_s_sqrt_s
    assert float(sums[0].std()) == pytest.approx(walk, rel=bound)
    walk = unit.angle_random_walk_rad_sqrt_s
    assert float(sums[1].std()) == pytest.approx(walk, rel=bound)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_limits_just_under_and_just_over(sign: float) -> None:
    unit = PERFECT.model_copy(update={"accelerometer_max_m_s2": 20.0, "gyro_max_rad_s": 0.5})
    rates = torch.tensor([[1.0 - 1e-9, 1.0, 1.0 + 1e-9], [0.0, 3.0, -3.0]], dtype=F64)
    kept = torch.tensor([[1.0 - 1e-9, 1.0, 1.0], [0.0, 1.0, -1.0]], dtype=F64)
    errors = draw_inertial(unit, 2, seeded())
    v, theta = sign * rates * 20.0 * DT_S, sign * rates * 0.5 * DT_S
    read_v, read_theta = read_increments(unit, errors, v, theta, DT_S, seeded())
    torch.testing.assert_close(read_v, sign * kept * 20.0 * DT_S, rtol=1e-14, atol=0)
    torch.testing.assert_close(read_theta, sign * kept * 0.5 * DT_S, rtol=1e-14, atol=0)


def test_the_limit_holds_for_what_is_read_not_for_the_truth() -> None:
    """A bias drives a rate below the limit into it, or takes one from beyond it back below."""
    unit = PERFECT.model_copy(update={"accelerometer_max_m_s2": 20.0})
    errors = draw_inertial(unit, 2, seeded())
    bias = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]], dtype=F64)
    errors = replace(errors, accelerometer_bias_B=bias)
    v = torch.tensor([[19.5, 0.0, 0.0], [20.5, 0.0, 0.0]], dtype=F64) * DT_S
    read_v, _ = read_increments(unit, errors, v, 0 * v, DT_S, seeded())
    assert (read_v[:, 0] / DT_S).tolist() == pytest.approx([20.0, 19.5], rel=1e-12)


def test_biases_walk_as_the_root_of_time_and_stay_without_a_walk() -> None:
    n, steps = 5000, 50
    errors = start = draw_inertial(POOR, n, seeded())
    generator = seeded(1)
    for _ in range(steps):
        errors = walk_biases(POOR, errors, DT_S, generator)
    root_s, bound = math.sqrt(steps * DT_S), 4 / math.sqrt(2 * 3 * n)
    moved = errors.accelerometer_bias_B - start.accelerometer_bias_B
    assert float(moved.std()) == pytest.approx(1e-5 * root_s, rel=bound)
    moved = errors.gyro_bias_B - start.gyro_bias_B
    assert float(moved.std()) == pytest.approx(1e-8 * root_s, rel=bound)
    same = walk_biases(PERFECT, start, DT_S, generator)
    assert torch.equal(same.accelerometer_bias_B, start.accelerometer_bias_B)
    assert torch.equal(same.gyro_bias_B, start.gyro_bias_B)


def test_inertial_errors_of_a_flight_have_their_sizes(flight) -> None:
    unit = InertialUnit(accelerometer_bias_m_s2=0.0, gyro_bias_rad_s=0.0)
    log = read_inertial(unit, flight, seed=1)
    walk = (log.delta_v_B - flight.delta_v_B).std() / math.sqrt(flight.dt_s)
    assert float(walk) == pytest.approx(unit.velocity_random_walk_m_s_sqrt_s, rel=0.04)
    turn = (log.delta_theta_B - flight.delta_theta_B).std() / math.sqrt(flight.dt_s)
    assert float(turn) == pytest.approx(unit.angle_random_walk_rad_sqrt_s, rel=0.04)


def test_inertial_bias_of_a_flight_is_constant(flight) -> None:
    unit = InertialUnit(velocity_random_walk_m_s_sqrt_s=0.0, angle_random_walk_rad_sqrt_s=0.0)
    error = read_inertial(unit, flight, seed=2).delta_v_B - flight.delta_v_B
    assert torch.allclose(error, error[:1].expand_as(error), atol=1e-15)
    assert 0 < float(error[0].norm()) / flight.dt_s < 5 * unit.accelerometer_bias_m_s2


def test_a_flight_read_at_once_is_a_flight_read_step_by_step(flight) -> None:
    """Without noise, the same unit reads the same, however it is asked."""
    still = {"velocity_random_walk_m_s_sqrt_s": 0.0, "angle_random_walk_rad_sqrt_s": 0.0}
    unit = POOR.model_copy(update=still)
    log, errors = read_inertial(unit, flight, seed=2), draw_inertial(unit, 1, seeded(2))
    for k in (1, 100, 1500):
        v, theta = flight.delta_v_B[k : k + 1], flight.delta_theta_B[k : k + 1]
        read = read_increments(unit, errors, v, theta, flight.dt_s, seeded())
        assert torch.equal(read[0], log.delta_v_B[k : k + 1])
        assert torch.equal(read[1], log.delta_theta_B[k : k + 1])


def test_a_seed_is_a_flight_and_effects_that_are_off_draw_nothing(flight) -> None:
    """Bias and noise of the accelerometers, then of the gyros, as a flight has always drawn."""
    generator, n, root_s = seeded(7), len(flight.t_s), math.sqrt(flight.dt_s)
    log = read_inertial(InertialUnit(), flight, seed=7)
    bias = 3e-4 * torch.randn(3, generator=generator, dtype=F64)
    noise = torch.randn(n, 3, generator=generator, dtype=F64)
    expected = flight.delta_v_B + bias * flight.dt_s + 3e-4 * root_s * noise
    torch.testing.assert_close(log.delta_v_B, expected, rtol=0, atol=1e-15)
    bias = 5e-8 * torch.randn(3, generator=generator, dtype=F64)
    noise = torch.randn(n, 3, generator=generator, dtype=F64)
    expected = flight.delta_theta_B + bias * flight.dt_s + 1.5e-6 * root_s * noise
    torch.testing.assert_close(log.delta_theta_B, expected, rtol=0, atol=1e-15)
    again = read_inertial(InertialUnit(), flight, seed=7)
    assert torch.equal(again.delta_v_B, log.delta_v_B)
    other = read_inertial(InertialUnit(), flight, seed=8)
    assert not torch.equal(other.delta_v_B, log.delta_v_B)


def test_same_readings_without_waiting_on_an_accelerator(simgpu) -> None:
    def read(device: str):
        generator, errors = seeded(1), draw_inertial(POOR, 4, seeded()).to(device)
        errors = walk_biases(POOR, errors, DT_S, generator)
        v, theta = vectors(4, 0.2).to(device), vectors(4, 1e-3, 1).to(device)
        return (
            *read_increments(POOR, errors, v, theta, DT_S, generator),
            errors.accelerometer_bias_B,
            errors.gyro_bias_B,
        )

    expected = read("cpu")
    with simulated_device.count_syncs() as syncs:
        actual = read(simgpu)
    assert not syncs, syncs
    for want, got in zip(expected, actual, strict=True):
        assert got.device.type == simgpu
        assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "accelerometer_scale: -1e-4",
            "accelerometer_scale: input should be greater than or equal",
        ),
        ("gyro_max_rad_s: 0", "gyro_max_rad_s: input should be greater than 0, found 0"),
        ("gyro_misalignment_deg: 90", "gyro_misalignment_deg: input should be less than 5"),
    ],
)
def test_impossible_recipes_are_refused_by_name(line: str, words: str, tmp_path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(line)
    with pytest.raises(ConfigError, match=r"recipe\.yaml:1: ") as caught:
        load_recipe(path, InertialUnit)
    assert words in str(caught.value)
