"""Faults of a batch: what is drawn for whom, when a fault begins and ends, and who follows whom."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor

from tnav.simulate.fault_bank import (
    FaultBank,
    active,
    advance,
    before_faults,
    draw_faults,
    normal,
)
from tnav.simulate.faults import Fault, Place

F64 = torch.float64
FAULTS = TypeAdapter(tuple[Fault, ...])
HIGH_M = 1e5


def bank_of(*recipes: dict, batch: int = 3, seed: int = 0) -> FaultBank:
    faults = FAULTS.validate_python(recipes)
    return draw_faults(faults, batch, torch.Generator().manual_seed(seed), "cpu")


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def activity(bank: FaultBank, times: list[float], agl_m: Tensor) -> Tensor:
    """(time, b, n) for heights of shape (time, b)."""
    state, there = before_faults(bank), []
    for t_s, height_m in zip(times, agl_m, strict=True):
        state = advance(bank, state, t_s, height_m)
        there.append(active(bank, state, t_s))
    return torch.stack(there)


# Onset --------------------------------------------------------------------------------------------


def test_a_fault_begins_at_its_time_and_ends_after_its_duration() -> None:
    bank = bank_of({"kind": "bias", "begins": {"at_s": 2.0}, "lasts_s": 1.5}, batch=1)
    times = [0.1 * k for k in range(50)]  # whose sums are not exact
    there = activity(bank, times, torch.full((50, 1), HIGH_M, dtype=F64))[:, 0, 0]
    expected = [20 <= k < 35 for k in range(50)]
    assert there.tolist() == expected


def test_a_fault_begins_where_the_ground_is_first_so_near_and_stays() -> None:
    """Strictly under its height, once; going up again ends nothing, and NaN begins nothing."""
    bank = bank_of({"kind": "bias", "begins": {"below_agl_m": 1000.0}}, batch=2)
    agl_m = torch.tensor([[1500, 900], [1000, 2000], [999, math.nan], [5000, 3000]], dtype=F64)
    there = activity(bank, [0.0, 1.0, 2.0, 3.0], agl_m)[:, :, 0]
    assert there.tolist() == [[False, True], [False, True], [True, True], [True, True]]
    state = before_faults(bank)
    assert advance(bank, state, 0.0, row(math.nan, math.nan)).begun_s.isinf().all()


def test_each_descent_has_its_own_onset() -> None:
    bank = bank_of({"kind": "bias", "begins": {"at_s": {"low": 10.0, "high": 20.0}}}, batch=200)
    state, step_s = before_faults(bank), 0.5
    for k in range(50):
        state = advance(bank, state, k * step_s, torch.full((200,), HIGH_M, dtype=F64))
    late_s = state.begun_s - bank.at_s
    assert float(late_s.min()) > -1e-5
    assert float(late_s.max()) <= step_s
    assert state.begun_s.unique().numel() > 15


def test_the_rest_of_a_compound_follows_its_first_within_30_s() -> None:
    compound = {
        "kind": "compound",
        "faults": [
            {"kind": "bias", "begins": {"below_agl_m": 500.0}},
            {"kind": "spike"},
            {"kind": "dropout", "lasts_s": 1.0},
        ],
    }
    bank = bank_of({"kind": "drift", "begins": {"at_s": 3.0}}, compound, batch=50)
    assert bank.kinds == ("drift", "bias", "spike", "dropout")
    assert bank.leader.tolist() == [0, 1, 1, 1]
    state = before_faults(bank)
    for t_s in range(100):
        height_m = 1000.0 if t_s < 40 else 100.0
        state = advance(bank, state, float(t_s), torch.full((50,), height_m, dtype=F64))
    assert state.begun_s[:, 0].tolist() == [3.0] * 50
    assert state.begun_s[:, 1].tolist() == [40.0] * 50
    gap_s = state.begun_s[:, 2:] - 40.0
    assert float(gap_s.min()) >= 0
    assert float(gap_s.max()) <= 30
    assert float((gap_s - bank.lag_s[:, 2:]).min()) > -1e-5
    assert float((gap_s - bank.lag_s[:, 2:]).max()) <= 1.0
    assert not torch.equal(gap_s[:, 0], gap_s[:, 1])


def test_a_gap_of_zero_begins_in_the_same_step() -> None:
    pair = [{"kind": "bias", "begins": {"at_s": 5.0}}, {"kind": "spike"}]
    bank = bank_of({"kind": "compound", "faults": pair, "gap_s": 0.0}, batch=1)
    state = advance(bank, before_faults(bank), 5.0, row(HIGH_M))
    assert state.begun_s.tolist() == [[5.0, 5.0]]


# Draws --------------------------------------------------------------------------------------------


def test_every_descent_draws_its_own_numbers_within_the_ranges() -> None:
    bank = bank_of({"kind": "late_acquisition"}, {"kind": "scale"}, batch=500)
    late, scale = bank.faults
    for field, low, high in (
        ("range_max_m", 400, 2500),
        ("edge_m", 50, 200),
        ("speed_scale_m_s", 50, 150),
        ("incidence_power", 1, 2),
    ):
        value = late.values[field]
        assert value.unique().numel() == 500
        assert low <= float(value.min()) < float(value.max()) <= high
    assert "link_loss_db" not in late.values
    size = scale.values["scale"].abs()
    assert 0.002 <= float(size.min()) < float(size.max()) <= 0.1
    # numbers of one fault are drawn apart: uncorrelated within 4 sigma
    pair = torch.stack([late.values["range_max_m"], late.values["edge_m"]])
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 4 / math.sqrt(500)


def test_begin_and_duration_are_drawn_apart_and_known_to_the_fault() -> None:
    """A saturated gyro's rate follows from its duration: both places must hold the same one."""
    bank = bank_of({"kind": "imu_saturation"}, batch=500)
    assert torch.equal(bank.lasts_s[:, 0], bank.faults[0].values["lasts_s"])
    pair = torch.stack([bank.below_agl_m[:, 0].log(), bank.lasts_s[:, 0]])
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 4 / math.sqrt(500)


def test_seeds_reproduce_and_differ() -> None:
    one, same, other = (bank_of({"kind": "bias"}, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.faults[0].values["bias_m"], same.faults[0].values["bias_m"])
    assert torch.equal(one.below_agl_m, same.below_agl_m)
    assert not torch.equal(one.faults[0].values["bias_m"], other.faults[0].values["bias_m"])
    noise = [normal(before_faults(b), 0, row(0.0, 0.0)) for b in (one, same, other)]
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], noise[2])


def test_no_fault_and_no_number_shifts_the_draws_of_another() -> None:
    alone = bank_of({"kind": "spike"})
    beside = bank_of(
        {"kind": "bias"},
        {"kind": "compound", "faults": [{"kind": "drift"}, {"kind": "stuck"}]},
        {"kind": "spike"},
    )
    assert torch.equal(alone.faults[0].values["share"], beside.faults[3].values["share"])
    assert torch.equal(alone.below_agl_m[:, 0], beside.below_agl_m[:, 3])
    assert alone.faults[0].seed == beside.faults[3].seed
    fixed = bank_of({"kind": "late_acquisition", "edge_m": 50.0}).faults[0]
    free = bank_of({"kind": "late_acquisition"}).faults[0]
    assert torch.equal(fixed.values["range_max_m"], free.values["range_max_m"])


def test_two_faults_of_a_kind_differ() -> None:
    first, second = bank_of({"kind": "bias"}, {"kind": "bias"}).faults
    assert not torch.equal(first.values["bias_m"], second.values["bias_m"])
    assert first.seed != second.seed


def test_terrain_and_sensor_draw_the_same_step() -> None:
    """Twins: what differs is who is wrong."""
    terrain, sensor = bank_of({"kind": "step_terrain"}), bank_of({"kind": "step_sensor"})
    assert torch.equal(terrain.below_agl_m, sensor.below_agl_m)
    for field in ("size_m", "crossed_in_s"):
        assert torch.equal(terrain.faults[0].values[field], sensor.faults[0].values[field])


def test_faults_act_in_the_order_of_a_reading_whatever_their_order_in_the_recipe() -> None:
    chain = ["late_acquisition", "false_lock", "scale", "bias", "spike", "stuck", "latency"]
    bank = bank_of(*({"kind": kind} for kind in reversed([*chain, "dropout"])))
    assert [bank.kinds[i] for i in bank.at(Place.ALTIMETER)] == [*chain, "dropout"]
    assert bank.at(Place.CAMERA) == []


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**31), st.floats(0, 1e4), st.floats(-10, 1e5))
def test_no_faults_draw_nothing_and_remember_nothing(batch, seed, t_s, height_m) -> None:
    generator = torch.Generator().manual_seed(seed)
    before = generator.get_state()
    bank = draw_faults((), batch, generator, "cpu")
    assert torch.equal(generator.get_state(), before)
    state = before_faults(bank)
    assert advance(bank, state, t_s, torch.full((batch,), height_m, dtype=F64)) is state
    assert state.begun_s.shape == active(bank, state, t_s).shape == (batch, 0)
    assert state.noise == ()


@pytest.mark.parametrize("n", [1, 22])
def test_a_bank_moves_the_generator_by_one_draw(n: int) -> None:
    ends = []
    for count in (1, n):
        generator = torch.Generator().manual_seed(5)
        draw_faults(FAULTS.validate_python([{"kind": "bias"}] * count), 4, generator, "cpu")
        ends.append(generator.get_state())
    assert torch.equal(*ends)
