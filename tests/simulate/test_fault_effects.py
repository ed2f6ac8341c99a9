"""Faults of all but the altimeter: closed forms, direction and chance, and what stays untouched."""

import math
from typing import get_args

import pytest
import simulated_device
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor

from tnav.simulate.fault_bank import FaultBank, advance, before_faults, draw_faults
from tnav.simulate.fault_effects import (
    faulty_contact,
    faulty_fix,
    faulty_increments,
    ground_fall_m,
    map_offset_m,
    not_fused,
    thrust_factor,
)
from tnav.simulate.faults import Fault, SingleFault

F64 = torch.float64
FAULTS = TypeAdapter(tuple[Fault, ...])
DT_S = 0.1
AT_ONCE = {"begins": {"at_s": 0.0}, "lasts_s": None}
FROM_1_TO_3 = {"begins": {"at_s": 1.0}, "lasts_s": 2.0}
KINDS = [get_args(m.model_fields["kind"].annotation)[0] for m in get_args(get_args(SingleFault)[0])]


def bank_of(*recipes: dict, batch: int = 2, seed: int = 0, device: str = "cpu") -> FaultBank:
    faults = FAULTS.validate_python(recipes)
    return draw_faults(faults, batch, torch.Generator().manual_seed(seed), device)


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def over_time(bank: FaultBank, times: list[float], what) -> Tensor:
    """Values of a function of bank, state and time at those times, (time, b)."""
    state, found = before_faults(bank), []
    for t_s in times:
        state = advance(bank, state, t_s, bank.filled(1e4))
        found.append(what(bank, state, t_s))
    return torch.stack(found)


# Inertial unit ------------------------------------------------------------------------------------


def increments(bank: FaultBank, steps: int = 40, dt_s: float = DT_S, at_end: bool = False):
    """Sums, last increments and presence; the truth is of 2 m/s^2 and of 0.01 rad/s an axis."""
    state, batch = before_faults(bank), bank.at_s.shape[0]
    true_v, true_theta = (torch.full((batch, 3), r * dt_s, dtype=F64) for r in (2.0, 0.01))
    read = []
    for k in range(1, steps + 1):
        known_s = (k if at_end else k - 1) * dt_s
        state = advance(bank, state, known_s, bank.filled(1e4))
        read.append(faulty_increments(bank, state, k * dt_s, dt_s, true_v, true_theta))
    return tuple(torch.stack(parts) for parts in zip(*read, strict=True))


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("sensors", ["both", "accelerometers", "gyros"])
@pytest.mark.parametrize("reads", ["zeros", "missing"])
def test_increments_of_zero_while_it_lasts(sensors: str, reads: str, at_end: bool) -> None:
    fault = {"kind": "imu_dropout", **FROM_1_TO_3, "sensors": sensors, "reads": reads}
    v, theta, present = increments(bank_of(fault), at_end=at_end)
    gone = (torch.arange(40) >= 10) & (torch.arange(40) < 30)
    lost = {"both": (v, theta), "accelerometers": (v,), "gyros": (theta,)}[sensors]
    for read, rate in ((v, 2.0), (theta, 0.01)):
        expected = torch.full_like(read, rate * DT_S)
        if any(read is part for part in lost):
            expected[gone] = 0.0
        assert torch.equal(read, expected)
    said = ~gone if reads == "missing" else torch.ones(40, dtype=torch.bool)
    assert torch.equal(present, said[:, None].expand(-1, 2))


def test_a_fault_shorter_than_a_step_acts_over_its_part() -> None:
    fault = {"kind": "imu_dropout", "begins": {"at_s": 1.0}, "lasts_s": 0.025}
    v, _, present = increments(bank_of({**fault, "reads": "missing"}))
    torch.testing.assert_close(v[10] / v[9], torch.full((2, 3), 0.75, dtype=F64))
    assert torch.equal(v[11], v[9])
    assert present[:, 0].tolist() == [k != 10 for k in range(40)]


@pytest.mark.parametrize("dt_s", [0.1, 0.03])
def test_a_gyro_at_its_end_turns_the_attitude_by_its_angle(dt_s: float) -> None:
    """Schiaparelli: 165 deg within 1 s, whatever the step; other axes read the truth."""
    fault = {"kind": "imu_saturation", "begins": {"at_s": 0.5}, "lasts_s": 1.0, "turned_deg": 165.0}
    bank = bank_of(fault, batch=5)
    axis = bank.faults[0].direction
    torch.testing.assert_close(axis.norm(dim=-1), torch.ones(5, dtype=F64))
    v, theta, present = increments(bank, steps=100, dt_s=dt_s)
    assert bool(present.all())
    assert v.unique().numel() == 1
    true = torch.full((5, 3), 0.01, dtype=F64)
    # all that is read beyond the truth, and the truth along the axis that 1 s did not see
    turned = theta.sum(0) - true * 100 * dt_s
    expected = (math.radians(165.0) - (true * axis).sum(-1))[:, None] * axis
    torch.testing.assert_close(turned, expected, rtol=1e-9, atol=1e-9)
    before = math.ceil(0.5 / dt_s)
    assert torch.equal(theta[:before], theta[:1].expand(before, -1, -1))
    assert not torch.equal(theta[before], theta[0])
    assert torch.equal(theta[-1], theta[0])


def test_saturation_lasts_and_turns_as_long_and_far_as_schiaparellis() -> None:
    values = bank_of({"kind": "imu_saturation"}, batch=300).faults[0].values
    for field, low, high in (("lasts_s", 0.5, 2.0), ("turned_deg", 20.0, 180.0)):
        assert low <= float(values[field].min()) < low * 1.1
        assert high * 0.95 < float(values[field].max()) <= high


# Camera -------------------------------------------------------------------------------------------


def camera(**more) -> dict:
    return {"kind": "camera_fault", **AT_ONCE, "lost_share": 0.0, **more}


def fix_of(bank: FaultBank, agl_m: float = 2000.0):
    state = advance(bank, before_faults(bank), 0.0, bank.filled(1e4))
    return faulty_fix(bank, state, 0.0, bank.filled(agl_m))


def test_images_are_lost_at_their_rate() -> None:
    n = 10_000
    lost = fix_of(bank_of(camera(lost_share=0.3), batch=n)).lost.double()
    assert float(lost.mean()) == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / n))
    twice = bank_of(camera(lost_share=0.3), camera(lost_share=0.5), batch=n)
    either = fix_of(twice).lost.double()
    assert float(either.mean()) == pytest.approx(0.65, abs=4 * math.sqrt(0.65 * 0.35 / n))
    assert bool(fix_of(bank_of(camera(lost_share=1.0))).lost.all())
    assert not bool(fix_of(bank_of(camera(lost_share=0.0))).lost.any())


@pytest.mark.parametrize("toward", ["any", "horizontal", "vertical"])
def test_fixes_are_moved_by_their_bias_one_way_each(toward: str) -> None:
    n = 2000
    bank = bank_of(camera(bias_m=30.0, bias_of_agl=0.01, toward=toward, error_scale=3.0), batch=n)
    fix = fix_of(bank)
    torch.testing.assert_close(fix.offset_L.norm(dim=-1), torch.full((n,), 50.0, dtype=F64))
    torch.testing.assert_close(fix_of(bank, math.nan).offset_L, fix.offset_L * 0.6)
    assert fix.error_scale.tolist() == [3.0] * n
    share = fix.offset_L.square().mean(0) / 2500  # of each axis; 1/3 is isotropic
    expected = {"any": [1 / 3] * 3, "horizontal": [0.5, 0.5, 0.0], "vertical": [0.0, 0.0, 1.0]}
    assert share.tolist() == pytest.approx(expected[toward], abs=0.04)
    axes = {"any": (0, 1, 2), "horizontal": (0, 1), "vertical": (2,)}[toward]
    for axis in axes:
        positive = (fix.offset_L[:, axis] > 0).double().mean()
        assert float(positive) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(n))


# The rest, over time ------------------------------------------------------------------------------


TIMES = [0.0, 0.9, 1.0, 2.0, 2.9, 3.0, 3.5, 4.0, 9.0]


def test_the_ground_falls_by_a_ramp_and_comes_back_by_one() -> None:
    fault = {"kind": "step_terrain", "size_m": 3000.0, "crossed_in_s": 2.0}
    to_end = {"begins": {"at_s": 1.0}, "lasts_s": None}
    fall_m = over_time(bank_of({**fault, **to_end}), TIMES, ground_fall_m)
    assert fall_m[:, 0].tolist() == [0, 0, 0, 1500, pytest.approx(2850), 3000, 3000, 3000, 3000]
    fall_m = over_time(bank_of({**fault, **FROM_1_TO_3}), TIMES, ground_fall_m)
    expected = [0, 0, 0, 1500, pytest.approx(2850), 3000, 2250, 1500, 0]
    assert fall_m[:, 1].tolist() == expected


def test_the_map_lies_too_high_and_beside_its_place() -> None:
    fault = {"kind": "map_fault", "vertical_m": -50.0, "datum_m": 600.0, "shift_m": 100.0}
    bank = bank_of({**fault, **FROM_1_TO_3}, batch=1000)
    too_high_m = over_time(bank, TIMES, lambda *a: map_offset_m(*a)[0])
    assert too_high_m[:, 7].tolist() == [0, 0, 550, 550, 550, 0, 0, 0, 0]
    moved_m = over_time(bank, TIMES, lambda *a: map_offset_m(*a)[1])
    length_m = moved_m.norm(dim=-1)
    torch.testing.assert_close(length_m, 100.0 * (too_high_m != 0).double())
    # all ways are as likely: the mean of n unit vectors is within 4 sigma of none
    assert float((moved_m[2] / 100).mean(0).norm()) < 4 / math.sqrt(1000)
    both = bank_of({**fault, **AT_ONCE}, {**fault, **AT_ONCE, "vertical_m": 20.0})
    assert over_time(both, [0.0], lambda *a: map_offset_m(*a)[0]).tolist() == [[1170.0, 1170.0]]


def test_thrust_is_biased_while_it_lasts_and_biases_multiply() -> None:
    fault = {"kind": "thrust_bias", **FROM_1_TO_3, "bias": 0.02}
    factor = over_time(bank_of(fault, {**fault, "bias": -0.01}), TIMES, thrust_factor)
    there = pytest.approx(1.02 * 0.99)
    assert factor[:, 0].tolist() == [1, 1, there, there, there, 1, 1, 1, 1]
    drawn = over_time(bank_of({"kind": "thrust_bias"}, batch=200), [0.0], thrust_factor)
    assert 1.01 <= float(drawn.min()) < float(drawn.max()) <= 1.03


def test_valid_ranges_are_left_out_while_it_lasts() -> None:
    left_out = over_time(bank_of({"kind": "not_fused", **FROM_1_TO_3}), TIMES, not_fused)
    assert left_out[:, 0].tolist() == [t in (1.0, 2.0, 2.9) for t in TIMES]


def test_one_false_contact_beside_the_true_ones() -> None:
    """Under 40 m, once, for half a second; going up and down again makes no second one."""
    pulse = {"kind": "spurious_event", "begins": {"below_agl_m": 40.0}, "lasts_s": 0.5}
    bank = bank_of(pulse, batch=2)
    state, said = before_faults(bank), []
    heights = [41.0, 40.0, 39.0, 30.0, 60.0, 30.0, 20.0, 10.0, 0.0]
    for k, height_m in enumerate(heights):
        state = advance(bank, state, 0.2 * k, row(height_m, 1e4))
        contact = torch.tensor([height_m <= 0.0, k == 3])
        said.append(faulty_contact(bank, state, 0.2 * k, contact))
    assert torch.stack(said)[:, 0].tolist() == [k in (2, 3, 4, 8) for k in range(9)]
    assert torch.stack(said)[:, 1].tolist() == [k == 3 for k in range(9)]


# What stays untouched -----------------------------------------------------------------------------


def everything(bank: FaultBank, v: Tensor, theta: Tensor, contact: Tensor, t_s: float = 1.0):
    """All effects at one time, after one begin at it."""
    height_m = v.new_full((len(v),), 50.0)
    state = advance(bank, before_faults(bank), t_s, height_m)
    fix = faulty_fix(bank, state, t_s, height_m)
    return [
        *faulty_increments(bank, state, t_s + DT_S, DT_S, v, theta),
        fix.lost,
        fix.offset_L,
        fix.error_scale,
        faulty_contact(bank, state, t_s, contact),
        not_fused(bank, state, t_s),
        ground_fall_m(bank, state, t_s + 1.0),
        *map_offset_m(bank, state, t_s),
        thrust_factor(bank, state, t_s),
    ]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(KINDS), max_size=5),
    st.lists(st.floats(-1e3, 1e3), min_size=6, max_size=6),
    st.lists(st.booleans(), min_size=2, max_size=2),
)
def test_before_its_begin_no_fault_changes_a_bit(kinds, values, flags) -> None:
    bank = bank_of(*({"kind": kind, "begins": {"at_s": 5.0}} for kind in kinds))
    v, theta = row(*values).reshape(2, 3), -row(*values).reshape(2, 3)
    read_v, read_theta, present, *rest = everything(bank, v, theta, torch.tensor(flags))
    for read, true in ((read_v, v), (read_theta, theta)):
        assert torch.equal(read.view(torch.int64), true.view(torch.int64))
    assert bool(present.all())
    lost, offset, scale, contact, left_out, fall, too_high, moved, factor = rest
    assert contact.tolist() == flags
    assert not any(bool(x.any()) for x in (lost, offset, left_out, fall, too_high, moved))
    assert scale.tolist() == factor.tolist() == [1.0, 1.0]
    if not kinds:
        assert read_v is v
        assert read_theta is theta


def test_descents_whose_fault_waits_are_not_touched_by_those_whose_is_there() -> None:
    """Of two descents only the second is low."""
    low = {"begins": {"below_agl_m": 100.0}}
    bank = bank_of(*({"kind": kind, **low} for kind in KINDS if kind != "permanent_outage"))
    state = advance(bank, before_faults(bank), 1.0, row(200.0, 50.0))
    v = torch.ones(2, 3, dtype=F64)
    read_v, read_theta, _ = faulty_increments(bank, state, 1.0 + DT_S, DT_S, v, v)
    assert torch.equal(read_v[0], v[0])
    assert torch.equal(read_theta[0], v[0])
    assert not bool(read_v[1].any())
    one = thrust_factor(bank, state, 1.0)
    assert float(one[0]) == 1.0
    assert 1.01 <= float(one[1]) <= 1.03
    assert not_fused(bank, state, 1.0).tolist() == [False, True]
    assert faulty_contact(bank, state, 1.0, torch.zeros(2).bool()).tolist() == [False, True]


def test_same_effects_without_waiting_on_an_accelerator(simgpu) -> None:
    recipes = [{"kind": kind, "begins": {"at_s": 1.0}} for kind in KINDS]
    recipes += [camera(toward=toward, bias_m=3.0) for toward in ("horizontal", "vertical")]

    def read(device: str):
        v = torch.arange(12, dtype=F64).reshape(4, 3).to(device)
        bank = bank_of(*recipes, batch=4, device=device)
        return everything(bank, v, v * 1e-3, torch.zeros(4, dtype=torch.bool).to(device))

    expected = read("cpu")
    with simulated_device.count_syncs() as syncs:
        actual = read(simgpu)
    assert not syncs, syncs
    for want, got in zip(expected, actual, strict=True):
        assert got.device.type == simgpu
        assert torch.equal(got.cpu(), want)
