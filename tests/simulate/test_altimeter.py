"""The altimeter: link budget and noise in closed form, promises by statistics, grid, devices."""

import math

import pytest
import simulated_device
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tnav.config import load_recipe
from tnav.errors import ConfigError
from tnav.geometry.moon import LocalFrame
from tnav.geometry.pose import so3_exp
from tnav.simulate.altimeter import (
    Altimeter,
    AltimeterErrors,
    beam_L,
    detection_chance,
    draw_altimeter,
    incidence_of,
    link_margin_db,
    noise_sigma_m,
    read_altimeter,
    read_ranges,
)
from tnav.simulate.descent import DescentProfile, fly
from tnav.simulate.instruments import epochs_s
from tnav.terrain.heightfield import Level, Terrain

F64 = torch.float64
CORNER_RAD = math.radians(30.0)  # incidence_max_deg


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def read(altimeter: Altimeter, n: int, range_m: float, incidence_rad: float, seed: int = 0):
    """Many readings of one geometry by one unit."""
    errors = draw_altimeter(altimeter, 1, seeded(seed))
    geometry = (torch.full((n,), v, dtype=F64) for v in (range_m, incidence_rad))
    hit = torch.ones(n, dtype=torch.bool)
    return read_ranges(altimeter, errors, *geometry, hit, seeded(seed + 1))


# Link budget --------------------------------------------------------------------------------------


def test_doubling_the_range_costs_6_db_and_albedo_and_incidence_their_logarithm() -> None:
    altimeter, near = Altimeter(), row(1000.0)
    level, slope = row(0.0), row(math.radians(60))
    margin = link_margin_db(altimeter, near, level)
    doubled = link_margin_db(altimeter, 2 * near, level)
    assert float(margin - doubled) == pytest.approx(6.0206, abs=1e-4)
    assert float(margin - link_margin_db(altimeter, near, slope)) == pytest.approx(3.0103, abs=1e-4)
    dark = link_margin_db(altimeter, near, level, row(0.012))
    assert float(margin - dark) == pytest.approx(10.0, abs=1e-9)
    torch.testing.assert_close(link_margin_db(altimeter, near, level, row(0.12)), margin)


def test_the_range_at_which_resilience_first_ranged_is_10_db_below_the_promise() -> None:
    """893 m of 3000 m: more than any mare's albedo costs."""
    at = link_margin_db(Altimeter(), row(893.0, 3000.0), row(0.0, 0.0))
    assert float(at[0] - at[1]) == pytest.approx(10.53, abs=0.01)


def test_the_promise_is_met_exactly_in_its_corner() -> None:
    altimeter = Altimeter(range_max_m=2000.0, detection_probability=0.9, incidence_max_deg=40.0)
    corner = (row(2000.0), row(math.radians(40.0)))
    assert float(link_margin_db(altimeter, *corner)) == pytest.approx(0.0, abs=1e-12)
    assert float(detection_chance(altimeter, *corner)) == pytest.approx(0.9, abs=1e-12)
    inside = detection_chance(altimeter, row(1999.0, 2000.0), row(corner[1].item(), 0.69))
    assert bool((inside > 0.9).all())
    outside = detection_chance(altimeter, row(2001.0, 2000.0), row(corner[1].item(), 0.71))
    assert bool((outside < 0.9).all())
    assert float(detection_chance(altimeter, *corner, row(0.11))) < 0.9


@settings(max_examples=200, deadline=None)
@given(st.floats(1.0, 3000.0), st.floats(0.0, CORNER_RAD), st.floats(0.12, 1.0))
def test_the_promise_is_kept_everywhere_within(range_m, incidence_rad, albedo) -> None:
    chance = detection_chance(Altimeter(), row(range_m), row(incidence_rad), row(albedo))
    assert float(chance) >= 0.99 - 1e-9


def test_detection_fades_over_the_edge_as_a_logistic_in_decibels() -> None:
    """Ranges of 10, 50 and 90 % in closed form, and the slope at range_max_m."""
    altimeter = Altimeter(range_edge_m=100.0)
    db = 20 / math.log(10) * 100.0 / 3000.0 / (2 * math.log(9))  # one unit of log odds
    odds = math.log(99.0)
    for chance in (0.9, 0.5, 0.1):
        margin_db = (math.log(chance / (1 - chance)) - odds) * db
        range_m = row(3000.0 * 10 ** (-margin_db / 20))
        got = float(detection_chance(altimeter, range_m, row(CORNER_RAD)))
        assert got == pytest.approx(chance, abs=1e-9)
    ends = detection_chance(altimeter, row(2999.5, 3000.5), row(CORNER_RAD, CORNER_RAD))
    slope = float((ends / (1 - ends)).log().diff())
    assert slope == pytest.approx(-2 * math.log(9) / 100.0, rel=1e-3)


def test_nothing_comes_back_from_beyond_grazing_or_from_nowhere() -> None:
    altimeter = Altimeter()
    nan = math.nan
    chance = detection_chance(altimeter, row(10.0, 10.0), row(math.pi / 2 + 1e-6, 3.0))
    assert chance.tolist() == [0.0, 0.0]
    errors = draw_altimeter(altimeter, 3, seeded())
    hit = torch.tensor([False, False, True])
    geometry = (row(nan, 100.0, 100.0), row(nan, 0.0, 0.0))
    _, valid = read_ranges(altimeter, errors, *geometry, hit, seeded())
    assert valid.tolist() == [False, False, True]


def test_ranges_are_detected_at_the_rate_of_the_chance() -> None:
    n = 20_000
    for range_m in (2900.0, 3000.0, 3100.0, 3250.0):
        valid = read(Altimeter(), n, range_m, CORNER_RAD)[1].double()
        chance = float(detection_chance(Altimeter(), row(range_m), row(CORNER_RAD)))
        bound = 4 * math.sqrt(chance * (1 - chance) / n)
        assert float(valid.mean()) == pytest.approx(chance, abs=bound + 1e-12)


# Errors -------------------------------------------------------------------------------------------


def test_scale_and_bias_in_closed_form() -> None:
    quiet = Altimeter(noise_floor_m=1e-9, noise_fraction=0.0, divergence_rad=0.0, resolution_m=0.0)
    down = row(0.0, 0.0, -1.0).expand(3, 3)
    errors = AltimeterErrors(down, row(0.0, 0.01, -0.02), row(0.5, 0.0, -3.0))
    geometry = (row(2000.0, 1000.0, 100.0), torch.zeros(3, dtype=F64))
    hit = torch.ones(3, dtype=torch.bool)
    range_m, valid = read_ranges(quiet, errors, *geometry, hit, seeded())
    assert range_m.tolist() == pytest.approx([2000.5, 1010.0, 95.0], abs=1e-7)
    assert valid.tolist() == [True, True, True]


@pytest.mark.parametrize("incidence_deg", [0.0, 25.0, 60.0])
def test_noise_is_floor_fraction_and_the_slope_of_the_footprint(incidence_deg: float) -> None:
    n, range_m, tilt = 20_000, 800.0, math.radians(incidence_deg)
    altimeter = Altimeter(divergence_rad=2e-3, resolution_m=0.0)
    expected = math.hypot(0.3, 0.8, 1.6 * math.tan(tilt))
    assert float(noise_sigma_m(altimeter, row(range_m), row(tilt))) == pytest.approx(expected)
    error_m = read(altimeter, n, range_m, tilt)[0] - range_m
    assert float(error_m.std()) == pytest.approx(expected, rel=4 / math.sqrt(2 * n))
    assert abs(float(error_m.mean())) < 4 * expected / math.sqrt(n)


def test_a_grazing_footprint_has_a_finite_spread() -> None:
    sigma_m = noise_sigma_m(Altimeter(), row(100.0, 100.0), row(math.pi / 2, math.pi))
    assert bool((sigma_m < 100.0 * 5e-4 * 58).all())


@pytest.mark.parametrize("resolution_m", [0.1, 0.5])
def test_ranges_lie_on_the_grid_of_the_resolution(resolution_m: float) -> None:
    fine, coarse = Altimeter(resolution_m=0.0), Altimeter(resolution_m=resolution_m)
    exact, _ = read(fine, 5000, 700.0, 0.2)
    rounded, _ = read(coarse, 5000, 700.0, 0.2)
    steps = rounded / resolution_m
    assert float((steps - steps.round()).abs().max()) < 1e-9
    assert float((rounded - exact).abs().max()) <= resolution_m / 2 + 1e-9
    assert len(rounded.unique()) > 5


def test_errors_of_many_units_have_their_sizes() -> None:
    n = 20_000
    altimeter = Altimeter(misalignment_deg=0.2, scale_sigma=1e-3, bias_sigma_m=0.4)
    errors, bound = draw_altimeter(altimeter, n, seeded(3)), 4 / math.sqrt(2 * n)
    assert float(errors.scale.std()) == pytest.approx(1e-3, rel=bound)
    assert float(errors.bias_m.std()) == pytest.approx(0.4, rel=bound)
    sigma_rad = math.radians(0.2)
    across = errors.beam_B[:, :2]  # the boresight is -z
    assert (across.std(0) / sigma_rad).tolist() == pytest.approx([1.0, 1.0], rel=bound)
    assert across.mean(0).abs().max() < 4 * sigma_rad / math.sqrt(n)
    torch.testing.assert_close(errors.beam_B.norm(dim=1), torch.ones(n, dtype=F64))
    plain = draw_altimeter(Altimeter(), 5, seeded(3))
    assert not bool(plain.scale.any() | plain.bias_m.any())


def test_the_beam_turns_with_the_body_and_meets_the_ground_at_its_angle() -> None:
    """A body that pitches by an angle looks down at that angle's incidence on level ground."""
    angles = row(0.0, 0.1, -0.3, 0.6)
    turns = torch.stack([angles, 0 * angles, 0 * angles], -1)
    errors = draw_altimeter(Altimeter(misalignment_deg=0.0), 4, seeded())
    direction_L = beam_L(errors, so3_exp(turns))
    expected = torch.stack([0 * angles, angles.sin(), -angles.cos()], -1)
    torch.testing.assert_close(direction_L, expected)
    up = row(0.0, 0.0, 1.0).expand(4, 3)
    torch.testing.assert_close(incidence_of(direction_L, up), angles.abs(), rtol=0, atol=1e-7)


def test_boresight_is_made_a_unit_vector() -> None:
    assert Altimeter(boresight_B=(0.0, 0.0, -2.0)).spec().boresight_B == (0.0, 0.0, -1.0)


# Whole flights ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flight():
    return fly(DescentProfile(), LocalFrame(60.5, -4.6), 0.0)


@pytest.fixture(scope="module")
def plain():
    level = Level(west_m=-8e3, south_m=-8e3, post_m=250.0, z_L=torch.zeros(65, 65))
    return Terrain((level,))


def test_altimeter_measures_the_slant_to_a_plain(flight, plain) -> None:
    altimeter = Altimeter(misalignment_deg=0.0)
    log = read_altimeter(altimeter, flight, plain, seed=0)
    k = flight.index_at(float(log.t_s[100]))
    slant = flight.position_L[k, 2] / flight.R_L_B[k, 2, 2]
    assert float(log.true_range_m[100]) == pytest.approx(float(slant), rel=1e-6)


def test_altimeter_noise_grows_as_specified(flight, plain) -> None:
    logs = [read_altimeter(Altimeter(), flight, plain, seed=s) for s in range(30)]
    errors = torch.stack([log.range_m - log.true_range_m for log in logs])
    for epoch, n in ((50, 30), (900, 30)):
        window = errors[:, epoch - 20 : epoch + 20]
        range_m = float(logs[0].true_range_m[epoch])
        expected = math.hypot(0.3, 0.001 * range_m)
        assert float(window.std()) == pytest.approx(expected, rel=4 / math.sqrt(2 * 40 * n) + 0.03)


def test_altimeter_keeps_its_promise_and_fades_beyond(flight, plain) -> None:
    altimeter = Altimeter(misalignment_deg=0.0)
    logs = [read_altimeter(altimeter, flight, plain, seed=s) for s in range(20)]
    range_m = torch.stack([log.true_range_m for log in logs])
    valid = torch.stack([log.valid for log in logs])
    near = valid[(range_m < 3000) & (range_m > 2500)].double()
    far = valid[range_m > 3600]
    assert float(near.mean()) >= 0.99
    assert float(far.double().mean()) < 0.01


@pytest.mark.parametrize("rate_hz", [3.0, 9.7])
def test_readings_of_a_flight_have_its_epochs_and_come_late(flight, plain, rate_hz: float) -> None:
    altimeter = Altimeter(rate_hz=rate_hz, latency_s=0.08)
    log = read_altimeter(altimeter, flight, plain, 0)
    assert torch.equal(log.t_s, epochs_s(flight, rate_hz))
    torch.testing.assert_close(log.delivered_s - log.t_s, torch.full_like(log.t_s, 0.08))


def test_a_seed_is_a_flight(flight, plain) -> None:
    """Misalignment, then noise, then detection, as a flight has always drawn."""
    altimeter = Altimeter(resolution_m=0.0, divergence_rad=0.0)
    log = read_altimeter(altimeter, flight, plain, seed=7)
    generator, n = seeded(7), len(log.t_s)
    torch.randn(3, generator=generator)
    noise = torch.randn(n, generator=generator, dtype=F64)
    expected = log.true_range_m + altimeter.spec().noise_sigma_m(log.true_range_m) * noise
    hit = log.true_range_m.isfinite()
    torch.testing.assert_close(log.range_m[hit], expected[hit], rtol=1e-14, atol=0)
    again = read_altimeter(altimeter, flight, plain, seed=7)
    assert torch.equal(again.range_m[hit], log.range_m[hit])
    assert torch.equal(again.valid, log.valid)
    other = read_altimeter(altimeter, flight, plain, seed=8)
    assert not torch.equal(other.range_m[hit], log.range_m[hit])


def test_a_flight_over_ground_on_an_accelerator_reads_the_same(flight, plain, simgpu) -> None:
    altimeter = Altimeter(rate_hz=1.0)
    here, there = (read_altimeter(altimeter, flight, t, 3) for t in (plain, plain.to(simgpu)))
    assert there.range_m.device.type == "cpu"
    assert torch.equal(there.range_m.nan_to_num(-1.0), here.range_m.nan_to_num(-1.0))
    assert torch.equal(there.valid, here.valid)


# Devices and recipes ------------------------------------------------------------------------------


def test_same_readings_without_waiting_on_an_accelerator(simgpu) -> None:
    altimeter = Altimeter(scale_sigma=1e-3, bias_sigma_m=0.5)

    def read_on(device: str):
        errors = draw_altimeter(altimeter, 6, seeded()).to(device)
        generator = seeded(1)
        turns = 0.3 * torch.randn(6, 3, generator=seeded(2), dtype=F64)
        direction_L = beam_L(errors, so3_exp(turns.to(device)))
        up = row(0.0, 0.0, 1.0).expand(6, 3).to(device)
        incidence = incidence_of(direction_L, up)
        range_m = torch.linspace(2500, 3600, 6, dtype=F64).to(device)
        albedo = torch.linspace(0.1, 0.2, 6, dtype=F64).to(device)
        hit = (torch.arange(6) != 2).to(device)
        readings = read_ranges(altimeter, errors, range_m, incidence, hit, generator, albedo)
        return (direction_L, incidence, *readings)

    expected = read_on("cpu")
    with simulated_device.count_syncs() as syncs:
        actual = read_on(simgpu)
    assert not syncs, syncs
    for want, got in zip(expected, actual, strict=True):
        assert got.device.type == simgpu
        assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("boresight_B: [0, 0, 0]", "expected a direction, not a zero vector"),
        ("reference_albedo: 0", "reference_albedo: input should be greater than 0, found 0"),
        ("latency_s: -0.01", "latency_s: input should be greater than or equal to 0"),
        ("divergence_rad: 0.5", "divergence_rad: input should be less than 0.1, found 0.5"),
        ("resolution: 0.5", "unknown key (did you mean 'resolution_m'?)"),
    ],
)
def test_impossible_recipes_are_refused_by_name(line: str, words: str, tmp_path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(line)
    with pytest.raises(ConfigError, match=r"recipe\.yaml:1: ") as caught:
        load_recipe(path, Altimeter)
    assert words in str(caught.value)
