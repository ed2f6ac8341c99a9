"""Closed-loop descents: they land, they are what the filter says, and bad recipes are refused."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simulated_device
import torch
from fix_models import knot, model_of
from flights import DESCENT, LANES, flight, plain

from tnav.errors import ConfigError, RunFileError
from tnav.evaluate.descent_archive import read_descent, write_descent
from tnav.evaluate.descent_plan import load_descent, scenario_of
from tnav.evaluate.fix_model import load_fix_model
from tnav.evaluate.flight import Flight
from tnav.evaluate.flight_ground import ModelGround, map_agl_m
from tnav.evaluate.flight_log import EDGES_M
from tnav.evaluate.flight_runs import Site, fly_model, keep_arrays, kept_arrays, record_of
from tnav.evaluate.flight_score import arrays_of, means_of
from tnav.navigate.mechanisation import ACCELEROMETER_BIAS, GYRO_BIAS, MAP_LOCAL, MAP_MEAN
from tnav.navigate.state import GatePolicy
from tnav.simulate.guidance import Phase
from tnav.simulate.inertial import InertialUnit
from tnav.simulate.instruments import TouchdownSwitch


@pytest.fixture(scope="module")
def flown() -> Flight:
    """A batch from orbit to the ground."""
    whole = flight()
    whole.fly(lambda text, share: None)
    return whole


def test_all_touch_down_softly_near_the_target(flown: Flight) -> None:
    contact = flown.log.contact
    assert bool(flown.log.landed.all())
    assert float(contact.down_m_s.max()) < 2.0
    assert float(contact.down_m_s.min()) > 1.0
    assert float(contact.horizontal_m_s.max()) < 1.0
    assert float(contact.miss_m.max()) < 20.0
    assert float(flown.log.propellant_kg.min()) > 0.05 * DESCENT.lander.propellant_kg


def test_navigation_is_as_good_at_contact_as_it_says(flown: Flight) -> None:
    contact = flown.log.contact
    # Altimeter of 0.3 m and 0.1 m of bias, averaged: five sigma of what is left.
    assert float(contact.agl_error_m.abs().max()) < 0.6
    ratio = contact.agl_error_m / contact.agl_sigma_m
    assert 0.2 < float(ratio.square().mean()) < 3.2  # chi-square of 12, 1e-3 each side
    assert float(contact.position_error_L[:, :2].norm(dim=-1).max()) < 5.0
    assert float(contact.velocity_error_L.norm(dim=-1).max()) < 0.1


def test_errors_are_as_large_as_stated_in_every_band(flown: Flight) -> None:
    means = means_of(arrays_of(flown.log))
    names = {mean.name.split(",")[0] for mean in means}
    assert {"NEES position", "NEES velocity", "NEES attitude", "NIS vision"} <= names
    # One table in ten thousand honest ones fails.
    assert [m for m in means if not m.inside(1 - 1e-4 / len(means))] == []


def test_every_band_and_phase_is_seen(flown: Flight) -> None:
    assert not bool(flown.log.error.isnan().any())
    assert flown.log.error.shape == (LANES, len(EDGES_M), 9)
    phases = torch.cat([sample.phase for sample in flown.log.samples]).tolist()
    assert phases == sorted(phases)
    assert set(phases) == {int(phase) for phase in Phase}


def test_the_record_of_a_descent_is_written_and_read(flown: Flight, tmp_path: Path) -> None:
    record = record_of(flown, "model", "test", 0)
    read = read_descent(write_descent(record, tmp_path))
    assert read.touchdown is not None
    assert read.touchdown.outcome == "landed"
    torch.testing.assert_close(read.series.position_nav_L, record.series.position_nav_L)
    assert {i.sensor for i in read.innovations} == {i.sensor for i in record.innovations}


def test_same_seeds_same_flight_and_other_seeds_another() -> None:
    def after(seed: int) -> torch.Tensor:
        descent = DESCENT
        scenario = scenario_of(descent).with_seed(seed)
        ground = ModelGround(scenario, plain(), load_fix_model(), 3, 0.83, 0.2, 11.9)
        short = Flight(descent, scenario, ground, plain(), 3)
        for k in range(1, 40):
            short._step(k)
        return torch.cat([short.state.position_L, short.lander.position_L])

    assert torch.equal(after(0), after(0))
    assert not torch.equal(after(0), after(1))


def test_on_the_accelerator_as_on_the_host() -> None:
    """The last minutes of a descent, by steps: same numbers, and no more waits than are told."""
    simulated_device.install()
    ends = []
    for device in ("cpu", simulated_device.DEVICE):
        one = flight(batch=3, keep=None, device=device)
        one.near = True
        for k in range(1, 12):  # a star, ranges, no exposure: those are drawn on the host
            one._step(k)
        ends.append(torch.cat([one.state.position_L, one.state.velocity_L], -1).cpu())
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-9)


def test_truth_of_the_map_is_the_process_that_is_stated() -> None:
    """Drawn map errors keep their variance over travel and footprints, and share the mean."""
    batch = 4000
    scenario = scenario_of(DESCENT)
    ground = ModelGround(scenario, plain(), load_fix_model(), batch, 0.83, 0.0, 11.9)
    place = torch.zeros(batch, 3, dtype=torch.float64)
    for height_m, east_m in ((5000.0, 0.0), (2000.0, 150.0), (600.0, 200.0)):
        place = torch.stack(
            [
                torch.full((batch,), east_m).double(),
                torch.zeros(batch).double(),
                torch.full((batch,), height_m).double(),
            ],
            -1,
        )
        eye = torch.eye(3, dtype=torch.float64).expand(batch, 3, 3)
        ground.expose(0.0, place, eye, eye, place, eye)
        share_m2 = float(ground._mean_m2[0])
        spread = 6 * math.sqrt(2 / batch)  # six sigma of a variance
        assert float(ground.local_m.var()) == pytest.approx(9.0, rel=spread)
        assert float(ground.mean_m.var()) == pytest.approx(share_m2, rel=spread)
        assert float(ground.side_m.var()) == pytest.approx(float(ground._side_m2[0]), rel=spread)
        joint = float((ground.local_m * ground.mean_m).mean())
        assert joint == pytest.approx(share_m2, abs=6 * 3 * math.sqrt(share_m2 * 2 / batch))
    assert share_m2 > 1.0  # near the ground the mean is most of the error


def test_ground_under_a_tilted_beam_is_of_the_same_field() -> None:
    """A beam 15 deg off meets the ground 268 m beside the nadir; then the lander comes over it."""
    batch, beside_m = 6000, 1000.0 * math.tan(math.radians(15.0))
    ground = ModelGround(scenario_of(DESCENT), plain(), load_fix_model(), batch, 0.83, 0.0, 11.9)
    place = torch.tensor([[0.0, 0.0, 1000.0]], dtype=torch.float64).repeat(batch, 1)
    lean = math.radians(15.0)
    beam = torch.tensor([[math.sin(lean), 0.0, -math.cos(lean)]], dtype=torch.float64)
    beam = beam.repeat(batch, 1)
    seen = ground.ranges(place, beam)
    # The range is to a ground that lies lower by the error under the beam.
    expected_m = (1000.0 + ground.beam_m) / math.cos(lean)
    assert float((seen.range_m - expected_m).std()) < 0.05  # the map rolls gently
    spread = 6 * math.sqrt(2 / batch)  # six sigma of a variance
    ahead_m = ground.beam_m
    assert float(ahead_m.var()) == pytest.approx(9.0, rel=spread)
    alike = math.exp(-0.5 * (beside_m / 300.0) ** 2)
    joint = float((ahead_m * ground.local_m).mean())
    assert joint == pytest.approx(9.0 * alike, abs=9.0 * spread)
    ground.ranges(place + torch.tensor([beside_m, 0.0, 0.0], dtype=torch.float64), beam)
    # Without an image since, memory fades at the rate of one over the field's length.
    kept = float((ahead_m * ground.local_m).mean())
    assert kept == pytest.approx(9.0 * math.exp(-beside_m / 300.0), abs=9.0 * spread)


def test_what_an_image_says_of_the_ground_is_a_posterior() -> None:
    """The error that it leaves has the stated variance and is independent of what it says."""
    batch = 8000
    ground = ModelGround(scenario_of(DESCENT), plain(), model_of(), batch, 0.83, 0.0, 11.9)
    place = torch.tensor([[0.0, 0.0, 1500.0]], dtype=torch.float64).repeat(batch, 1)
    eye = torch.eye(3, dtype=torch.float64).expand(batch, 3, 3)
    seen = ground.expose(0.0, place, eye, eye, place, eye)
    beside_m = ground.local_m - ground.mean_m
    prior_m2, left_m2 = float(beside_m.var()), float(seen.ground_variance_m2.mean())
    assert 0.02 * prior_m2 < left_m2 < 0.5 * prior_m2
    left_m = beside_m - seen.ground_error_m
    spread = 6 * math.sqrt(2 / batch)  # six sigma of a variance
    assert float(left_m.var()) == pytest.approx(left_m2, rel=1.5 * spread)
    product = float((left_m * seen.ground_error_m).mean())
    assert product == pytest.approx(0.0, abs=6 * math.sqrt(left_m2 * prior_m2 / batch))


def test_an_image_from_high_up_says_nothing_of_the_ground_under_the_lander() -> None:
    model = model_of([knot(9000.0, ground_sigma_m=1e4), knot(100.0, ground_sigma_m=1e4)])
    ground = ModelGround(scenario_of(DESCENT), plain(), model, 3, 0.83, 0.0, 11.9)
    place = torch.tensor([[0.0, 0.0, 1500.0]], dtype=torch.float64).repeat(3, 1)
    eye = torch.eye(3, dtype=torch.float64).expand(3, 3, 3)
    seen = ground.expose(0.0, place, eye, eye, place, eye)
    assert seen.ground_error_m.tolist() == [0.0] * 3  # a sigma over the map's own


def test_engines_stay_off_after_a_spurious_touchdown_that_counts() -> None:
    """Mars Polar Lander: one false contact, armed at 40 m, and the rest is a fall."""
    switch = TouchdownSwitch(probe_m=0.0, delay_s=0.0, spurious_probability=1.0)
    fallen = flight(batch=2, keep=None, with_vision=False, with_altimeter=False, touchdown=switch)
    low = torch.tensor([[0.0, 0.0, 30.0], [0.0, 0.0, 30.0]], dtype=torch.float64)
    believed = low + torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 300.0]], dtype=torch.float64)
    upright = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    down = torch.tensor([[0.0, 0.0, -1.0]], dtype=torch.float64).repeat(2, 1)
    fallen.lander = replace(fallen.lander, position_L=low, velocity_L=down, R_L_B=upright)
    fallen.state = replace(fallen.state, position_L=believed, velocity_L=down, R_L_B=upright)
    for k in range(1, 200):
        if k % 10 == 1:
            fallen._look_ahead()
        fallen._step(k)
    off_m = fallen.cut_off_agl_m
    assert float(off_m[0]) == pytest.approx(30.0, abs=1.0)
    assert math.isnan(float(off_m[1]))  # navigation has it 300 m up, where contacts do not count
    free_fall = math.sqrt(1.0 + 2 * 1.62 * 30.0)
    assert float(fallen.log.contact.down_m_s[0]) == pytest.approx(free_fall, rel=0.05)


def test_a_switch_that_tells_the_truth_cuts_nothing_in_the_air(flown: Flight) -> None:
    assert not bool(flown.cut_off_agl_m.isfinite().any())


def test_biases_walk_where_the_recipe_says_so_and_the_filter_is_told() -> None:
    walking = InertialUnit(
        accelerometer_bias_walk_m_s2_sqrt_s=1e-5, gyro_bias_walk_rad_s_sqrt_s=1e-8
    )
    spreads = []
    for unit in (InertialUnit(), walking):
        one = flight(batch=2, keep=None, inertial=unit)
        before, began = one.inertial_errors.accelerometer_bias_B, one.state.covariance
        for k in range(1, 41):
            one._step(k)
        moved = one.inertial_errors.accelerometer_bias_B - before
        assert bool((moved != 0).all()) is (unit is walking)
        grown = (one.state.covariance - began).diagonal(dim1=1, dim2=2)
        spreads.append((grown[0, GYRO_BIAS.start], grown[0, ACCELEROMETER_BIAS.start]))
    four_s = 4.0
    walked = [float(w - c) for w, c in zip(spreads[1], spreads[0], strict=True)]
    # Nothing is measured of them in free fall but by star trackers, which are coarse.
    assert walked[0] == pytest.approx(1e-16 * four_s, rel=0.1)
    assert walked[1] == pytest.approx(1e-10 * four_s, rel=0.1)


def test_tight_vision_needs_rendered_images() -> None:
    descent = DESCENT.model_copy(update={"tight_vision": True})
    site = Site(scenario_of(descent), plain())
    with pytest.raises(ConfigError, match=r"tight_vision: true.*expected false in model fidelity"):
        fly_model(descent, site, 1, 0, lambda text, share: None)


def test_height_is_negative_under_the_ground() -> None:
    at = torch.tensor(
        [[0.0, 0.0, 500.0], [0.0, 0.0, -50.0], [9e5, 0.0, 100.0]], dtype=torch.float64
    )
    height_m, there = map_agl_m(plain(), at)
    assert there.tolist() == [True, True, False]
    assert float(height_m[0]) == pytest.approx(500.0, abs=0.1)
    assert float(height_m[1]) == pytest.approx(-50.0, abs=0.1)


def test_contact_is_the_grounds_to_say_not_navigations() -> None:
    """Navigation that believes itself 100 km up hits the ground all the same."""
    lost = flight(batch=2, keep=None, with_vision=False, with_altimeter=False)
    up = torch.tensor([0.0, 0.0, 100e3], dtype=torch.float64)
    low = torch.tensor([[0.0, 0.0, 60.0], [200.0, 0.0, 60.0]], dtype=torch.float64)
    lost.lander = replace(lost.lander, position_L=low, velocity_L=0 * low - 0.1 * up / 1e3)
    lost.state = replace(lost.state, position_L=low + up, velocity_L=lost.lander.velocity_L)
    for k in range(1, 120):
        if k % 10 == 1:
            lost._look_ahead()
        lost._step(k)
    assert not lost.near
    assert lost.lander.landed.tolist() == [True, True]
    assert bool((lost.log.contact.down_m_s > 10).all())


def test_an_exposure_at_contact_leaves_the_ground_where_it_is() -> None:
    """Who touches the ground, or is beside the map, while others expose must still touch it."""
    ground = ModelGround(scenario_of(DESCENT), plain(), load_fix_model(), 4, 0.83, 0.0, 11.9)
    heights = torch.tensor([3000.0, 0.0, -0.2, 100.0], dtype=torch.float64) - ground.local_m
    place = torch.stack([0 * heights, 0 * heights, heights], -1)
    place[3, 0] = 9e5
    eye = torch.eye(3, dtype=torch.float64).expand(4, 3, 3)
    seen = ground.expose(0.0, place, eye, eye, place, eye)
    assert bool(ground.local_m.isfinite().all())
    assert bool(seen.fix.covariance.isfinite().all())
    assert bool(ground.agl_m(place)[:3].isfinite().all())


def test_map_states_have_their_place() -> None:
    one = flight(batch=2, keep=None)
    P = one.state.covariance
    assert float(P[0, MAP_MEAN, MAP_MEAN]) == 0.0  # before the first image: over everything
    assert float(P[0, MAP_LOCAL, MAP_LOCAL]) == pytest.approx(9.0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("timing: {latency_s: 0.25}", "timing.latency_s: 0.25 s is not a number of steps"),
        ("timing: {latency_s: 5.0}", "timing.latency_s: 5 s, expected under the interval of 5 s"),
        ("altimeter: {rate_hz: 3.0}", "altimeter.rate_hz: 0.333333 s is not a number of steps"),
        ("gate: soft", "gate"),
        ("altimeter: {scale_sigma: 0.001}", "altimeter.scale_sigma: 0.001, which the filter"),
        ("seeing: {agl_min_m: 12000.0}", "agl_min_m: 12000, expected under agl_max_m 12000"),
        ("duration_max_s: 0.5", "duration_max_s"),
        ("altimeter: {rate_hz: 1.0e9}", "altimeter.rate_hz: 1e-09 s is not a number of steps"),
        ("landr: {}", "did you mean 'lander'"),
    ],
)
def test_a_bad_recipe_is_told_in_one_line(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\nscenario: resilience\n{text}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_descent(str(path))
    assert told in str(error.value)
    assert f"{path}:" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_shipped_descents_load() -> None:
    assert load_descent("resilience").gate is GatePolicy.TERRAIN_AWARE


def test_kept_arrays_are_those_of_the_set_up(tmp_path: Path) -> None:
    path = tmp_path / "image-0.npz"
    keep_arrays(path, "a", {"x": np.arange(3.0)})
    kept = kept_arrays(path, "a")
    assert kept is not None
    assert kept["x"].tolist() == [0.0, 1.0, 2.0]
    assert kept_arrays(path, "b") is None
    assert kept_arrays(tmp_path / "none.npz", "a") is None
    path.write_bytes(b"nothing")
    with pytest.raises(RunFileError, match=r"image-0\.npz"):
        kept_arrays(path, "a")
