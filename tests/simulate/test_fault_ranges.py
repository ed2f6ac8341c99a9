"""Altimeter faults: closed forms either side of begin and end, statistics, composition, devices."""

import math
from typing import get_args

import pytest
import simulated_device
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor

from tnav.simulate.fault_bank import FaultBank, FaultState, advance, before_faults, draw_faults
from tnav.simulate.fault_prescribed import LateAcquisition, apply_fault, lock_chance
from tnav.simulate.fault_ranges import BeamTruth, farthest_m, faulty_ranges
from tnav.simulate.faults import Fault, Place, SingleFault

F64 = torch.float64
FAULTS = TypeAdapter(tuple[Fault, ...])
SPEED_M_S, TILT_RAD, SIGMA_M = 50.0, math.radians(30.0), 2.0
RATE_HZ = 10
FROM_10_TO_15 = {"begins": {"at_s": 10.0}, "lasts_s": 5.0}
AT_ONCE = {"begins": {"at_s": 0.0}, "lasts_s": None}


def bank_of(*recipes: dict, batch: int = 1, seed: int = 0, device: str = "cpu") -> FaultBank:
    faults = FAULTS.validate_python(recipes)
    return draw_faults(faults, batch, torch.Generator().manual_seed(seed), device)


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def truth_of(range_m: Tensor, incidence_rad: float = 0.0) -> BeamTruth:
    of = (torch.full_like(range_m, v) for v in (incidence_rad, SPEED_M_S, TILT_RAD, SIGMA_M))
    return BeamTruth(range_m, *of)


def healthy_m(t_s: float, batch: int) -> Tensor:
    """Falling at SPEED_M_S, each descent a little higher than the one before."""
    return 3000.0 - SPEED_M_S * t_s + torch.arange(batch, dtype=F64)


def epoch(
    bank: FaultBank, state: FaultState, t_s: float, range_m: Tensor, valid: Tensor | None = None
) -> tuple[FaultState, Tensor, Tensor]:
    state = advance(bank, state, t_s, range_m)
    valid = torch.ones_like(range_m, dtype=torch.bool) if valid is None else valid
    return faulty_ranges(bank, state, t_s, range_m, valid, truth_of(range_m))


def fly(bank: FaultBank, seconds: float = 20.0) -> tuple[Tensor, Tensor, Tensor]:
    """Times, errors in m (time, b) and validity of a descent that is healthy but for the bank."""
    batch, state = bank.at_s.shape[0], before_faults(bank)
    times = [k / RATE_HZ for k in range(round(seconds * RATE_HZ))]
    errors, valids = [], []
    for t_s in times:
        range_m = healthy_m(t_s, batch).to(bank.at_s.device)
        state, read_m, valid = epoch(bank, state, t_s, range_m)
        errors.append(read_m - range_m)
        valids.append(valid)
    return row(*times), torch.stack(errors), torch.stack(valids)


def readings(fault: dict, n: int, range_m: float = 1000.0, **more) -> tuple[Tensor, Tensor]:
    """One epoch of many descents that share the fault's numbers."""
    bank = bank_of({**AT_ONCE, **fault}, batch=n, **more)
    _, read_m, valid = epoch(bank, before_faults(bank), 0.0, torch.full((n,), range_m, dtype=F64))
    return read_m, valid


# Errors in closed form ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "error_m"),
    [
        ({"kind": "bias", "bias_m": -300.0}, lambda t, r: -300.0 + 0 * t),
        ({"kind": "scale", "scale": 0.05}, lambda t, r: 0.05 * r),
        ({"kind": "drift", "drift_m_s": 4.0}, lambda t, r: 4.0 * (t - 10)),
        ({"kind": "step_sensor", "size_m": 3000.0, "crossed_in_s": 2.0},
         lambda t, r: 3000.0 * ((t - 10) / 2).clamp(max=1)),
        ({"kind": "tilt_coupled", "gain": 1.0}, lambda t, r: r * 0.1547005),  # 15.5 % at 30 deg
        ({"kind": "tilt_coupled", "gain": -0.5}, lambda t, r: r * -0.0773503),
        ({"kind": "velocity_coupled", "coupling_s": 0.2}, lambda t, r: 10.0 + 0 * t),
        ({"kind": "latency", "delay_s": 0.5}, lambda t, r: 25.0 + 0 * t),
        ({"kind": "stuck"}, lambda t, r: 2505.0 - r),  # the reading of 9.9 s
        ({"kind": "stuck", "at": "zero"}, lambda t, r: -r),
        ({"kind": "false_lock", "ambiguity_m": 700.0}, lambda t, r: r % 700.0 - r),
        ({"kind": "false_lock", "on": "side_lobe", "lobe_deg": 20.0}, lambda t, r: r * 0.0641778),
    ],
)  # fmt: skip
def test_errors_in_closed_form_from_begin_to_end_and_not_before_or_after(fault, error_m) -> None:
    t_s, error, valid = fly(bank_of({**FROM_10_TO_15, **fault}))
    on = torch.arange(200) // 50 == 2
    assert not bool(error[~on].any())
    expected = error_m(t_s, healthy_m(t_s, 1))[:, None]
    torch.testing.assert_close(error[on], expected[on], rtol=1e-6, atol=1e-5)
    assert bool(valid.all())


@pytest.mark.parametrize("kind", ["dropout", "permanent_outage"])
def test_nothing_is_read_in_an_outage(kind: str) -> None:
    until = {"lasts_s": 5.0} if kind == "dropout" else {}
    _, error, valid = fly(bank_of({"kind": kind, "begins": {"at_s": 10.0}, **until}, batch=2))
    lost = torch.arange(200) >= 100
    if kind == "dropout":
        lost = lost & (torch.arange(200) < 150)
    assert torch.equal(valid, ~lost[:, None].expand(-1, 2))
    assert not bool(error.any())


def test_each_descent_has_its_own_error() -> None:
    bank = bank_of({**AT_ONCE, "kind": "bias"}, batch=50)
    error = fly(bank, 1.0)[1]
    torch.testing.assert_close(
        error, bank.faults[0].values["bias_m"].expand(10, -1), rtol=0, atol=1e-9
    )
    assert error[0].unique().numel() == 50


# Late acquisition ---------------------------------------------------------------------------------


def late(**more) -> dict:
    fixed = {"range_max_m": 893.0, "edge_m": 100.0, "speed_scale_m_s": None, "incidence_power": 1.0}
    return {"kind": "late_acquisition", **fixed, **more}


def test_echoes_fade_as_a_logistic_about_the_farthest_range() -> None:
    chance = lock_chance(row(843.0, 893.0, 943.0), row(893.0, 893.0, 893.0), row(*[100.0] * 3))
    torch.testing.assert_close(chance, row(0.9, 0.5, 0.1), rtol=0, atol=1e-4)
    n = 10_000
    for range_m, expected in ((843.0, 0.9), (893.0, 0.5), (943.0, 0.1), (2000.0, 0.0)):
        valid = readings(late(), n, range_m)[1].double()
        bound = 4 * math.sqrt(expected * (1 - expected) / n) + 1e-4
        assert float(valid.mean()) == pytest.approx(expected, abs=bound)


def test_the_farthest_range_falls_with_speed_and_incidence() -> None:
    truth = truth_of(row(500.0), math.radians(60.0))

    def farthest(**more) -> float:
        return float(farthest_m(bank_of(late(**more)).faults[0], truth))

    assert farthest() == pytest.approx(893.0 / 2)
    assert farthest(incidence_power=2.0) == pytest.approx(893.0 / 4)
    assert farthest(incidence_power=0.0) == pytest.approx(893.0)
    still = {"incidence_power": 0.0, "speed_scale_m_s": 100.0}
    assert farthest(**still) == pytest.approx(893.0 * math.exp(-0.5))
    assert farthest(**still, of_speed_m_s=50.0) == pytest.approx(893.0)
    assert farthest(**still, of_speed_m_s=66.0) == pytest.approx(893.0 * math.exp(0.16))
    # 893 of 3000 m is 10.5 dB under the inverse square
    lossy = {"kind": "late_acquisition", "speed_scale_m_s": None, "incidence_power": 0.0}
    lost = bank_of({**lossy, "link_loss_db": 10.525})
    assert float(farthest_m(lost.faults[0], truth)) == pytest.approx(893.0, abs=0.5)


def test_no_echo_is_made_up() -> None:
    bank = bank_of(late(range_max_m=1e6), batch=3)
    none = torch.zeros(3, dtype=torch.bool)
    nowhere = torch.full((3,), math.nan, dtype=F64)
    for range_m in (row(100.0, 200.0, 300.0), nowhere):
        _, _, valid = epoch(bank, before_faults(bank), 0.0, range_m, none)
        assert not bool(valid.any())


# Statistics ---------------------------------------------------------------------------------------


def test_readings_are_lost_spoilt_and_kept_at_their_rates() -> None:
    n = 10_000
    valid = readings({"kind": "dropout", "lost_share": 0.3}, n)[1].double()
    assert float(valid.mean()) == pytest.approx(0.7, abs=4 * math.sqrt(0.21 / n))
    read_m, valid = readings({"kind": "spike", "share": 0.2, "within_m": 3000.0}, n)
    spoilt = read_m[read_m != 1000.0]
    assert bool(valid.all())
    assert len(spoilt) / n == pytest.approx(0.2, abs=4 * math.sqrt(0.16 / n))
    # uniform from 0 to its end, by Kolmogorov's bound at 0.1 %
    rank = torch.arange(1, len(spoilt) + 1, dtype=F64) / len(spoilt)
    assert float((spoilt.sort().values / 3000 - rank).abs().max()) < 1.95 / math.sqrt(len(spoilt))


def test_noise_grows_to_a_multiple_of_its_sigma() -> None:
    n, bank = 20_000, bank_of({**AT_ONCE, "kind": "noise_inflation", "factor": 5.0}, batch=20_000)
    white = torch.randn(n, generator=torch.Generator().manual_seed(9), dtype=F64)
    range_m = 1000.0 + SIGMA_M * white
    _, read_m, _ = epoch(bank, before_faults(bank), 0.0, range_m)
    assert float(read_m.std()) == pytest.approx(5 * SIGMA_M, rel=4 / math.sqrt(2 * n))
    assert float(read_m.mean()) == pytest.approx(1000.0, abs=4 * 5 * SIGMA_M / math.sqrt(n))
    same, _ = readings({"kind": "noise_inflation", "factor": 1.0}, 10)
    assert same.tolist() == [1000.0] * 10


def test_noise_is_new_with_every_reading_and_the_same_for_the_same_seed() -> None:
    flights = [fly(bank_of({**AT_ONCE, "kind": "noise_inflation"}, seed=s))[1] for s in (1, 1, 2)]
    assert torch.equal(flights[0], flights[1])
    assert not torch.equal(flights[0], flights[2])
    assert flights[0].unique().numel() == 200


# Memory -------------------------------------------------------------------------------------------


def test_a_stuck_altimeter_holds_the_last_valid_reading_or_else_the_first() -> None:
    """One had a reading at 0 s only, one gets its first at 3 s, one never gets any."""
    bank = bank_of({"kind": "stuck", "begins": {"at_s": 2.0}, "lasts_s": 3.0}, batch=3)
    state, read = before_faults(bank), []
    valid = torch.tensor([[1, 0, 0], [0, 0, 0], [0, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 0]]).bool()
    for k in range(6):
        range_m = torch.full((3,), 100.0 + k, dtype=F64)
        state, read_m, said = epoch(bank, state, float(k), range_m, valid[k])
        read.append([r if v else None for r, v in zip(read_m.tolist(), said.tolist(), strict=True)])
    assert read == [
        [100.0, None, None],
        [None, None, None],
        [100.0, None, None],
        [100.0, 103.0, None],
        [100.0, 103.0, None],
        [105.0, 105.0, None],
    ]


def test_zero_is_said_to_be_valid_whatever_returns() -> None:
    bank = bank_of({**AT_ONCE, "kind": "stuck", "at": "zero"}, batch=2)
    none = torch.zeros(2, dtype=torch.bool)
    _, read_m, valid = epoch(bank, before_faults(bank), 0.0, row(5.0, math.nan), none)
    assert read_m.tolist() == [0.0, 0.0]
    assert valid.tolist() == [True, True]


def test_late_readings_are_those_of_each_descents_own_delay() -> None:
    """Against a plain look-up; and no more readings are kept than the longest delay needs."""
    delays = {"low": 0.05, "high": 2.0, "log": True}
    bank = bank_of({**AT_ONCE, "kind": "latency", "delay_s": delays}, batch=40)
    delay_s = bank.faults[0].values["delay_s"].tolist()
    state = before_faults(bank)
    flags = torch.rand(100, 40, generator=torch.Generator().manual_seed(1)) < 0.7
    for k in range(100):
        t_s = k / RATE_HZ
        state, read_m, valid = epoch(bank, state, t_s, healthy_m(t_s, 40), flags[k])
        for b, late_s in enumerate(delay_s):
            newest = math.floor((t_s - late_s + 1e-6) * RATE_HZ)
            there = newest >= 0 and bool(flags[newest, b])
            assert bool(valid[b]) == there
            if there:
                assert float(read_m[b]) == float(healthy_m(newest / RATE_HZ, 40)[b])
    assert len(state.past[0].on_host_s) <= 2 * RATE_HZ + 2


def test_a_state_is_not_changed_by_its_next_epoch() -> None:
    bank = bank_of({**AT_ONCE, "kind": "stuck"}, {**AT_ONCE, "kind": "latency"})
    first, *_ = epoch(bank, before_faults(bank), 0.0, row(3000.0))
    held = {i: m.clone() for i, m in first.held_m.items()}
    epoch(bank, first, 1.0, row(2000.0))
    assert all(torch.equal(first.held_m[i], held[i]) for i in held)
    assert first.past[1].on_host_s == (0.0,)


# Composition --------------------------------------------------------------------------------------


def test_factors_act_before_sums_and_both_before_loss() -> None:
    faults = [
        {"kind": "dropout", "begins": {"at_s": 15.0}, "lasts_s": None},
        {**AT_ONCE, "kind": "bias", "bias_m": 100.0},
        {"kind": "bias", "begins": {"at_s": 5.0}, "bias_m": 10.0},
        {**AT_ONCE, "kind": "scale", "scale": 0.1},
        {"kind": "stuck", "begins": {"at_s": 12.0}},
    ]
    for order in (faults, faults[::-1]):
        t_s, error, valid = fly(bank_of(*order))
        range_m = healthy_m(t_s, 1)
        expected = 1.1 * range_m + 100 + torch.where(t_s >= 5, 10.0, 0.0)
        expected = torch.where(t_s >= 12, expected[119], expected)  # held from 11.9 s on
        torch.testing.assert_close(error[:, 0] + range_m, expected)
        assert torch.equal(valid[:, 0], t_s < 15)


ALTIMETER = [
    "dropout", "late_acquisition", "permanent_outage", "step_sensor", "bias", "scale", "drift",
    "stuck", "spike", "noise_inflation", "latency", "tilt_coupled", "velocity_coupled",
    "false_lock",
]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(ALTIMETER), max_size=4),
    st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=3, max_size=3),
    st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_before_its_begin_no_fault_changes_a_bit(kinds, ranges, flags) -> None:
    """Nor do faults that are not the altimeter's; without faults the very tensors come back."""
    waiting = ({"kind": kind, "begins": {"at_s": 100.0}} for kind in kinds)
    others = ({"kind": k, "begins": {"at_s": 0.0}} for k in ("map_fault", "imu_dropout"))
    bank = bank_of(*waiting, *others, batch=3)
    range_m, valid = row(*ranges), torch.tensor(flags)
    state = before_faults(bank)
    for t_s in (0.0, 1.0, 99.9):
        state, read_m, said = epoch(bank, state, t_s, range_m, valid)
        assert torch.equal(read_m.view(torch.int64), range_m.view(torch.int64))
        assert torch.equal(said, valid)
        if not kinds:
            assert read_m is range_m
            assert said is valid


def test_the_default_of_every_altimeter_fault_shows_when_it_is_there() -> None:
    for kind in ALTIMETER:
        where = {"begins": {"at_s": 5.0}}
        _, error, valid = fly(bank_of({"kind": kind, **where}, batch=20))
        changed = (error != 0) | ~valid
        assert not bool(changed[:50].any()), kind
        assert bool(changed[50:].any()), kind


# Beams, devices, and the faults of a prescribed descent -------------------------------------------


def test_speed_and_tilt_of_a_beam() -> None:
    tilt = math.radians(20.0)
    beam = row(math.sin(tilt), 0.0, -math.cos(tilt))[None]
    velocity, up = row(10.0, 5.0, -60.0)[None], row(0.0, 0.0, 1.0)[None]
    truth = BeamTruth.along(beam, velocity, up, row(500.0), row(0.1), row(1.0))
    speed_m_s = 10 * math.sin(tilt) + 60 * math.cos(tilt)
    assert float(truth.closing_speed_m_s) == pytest.approx(speed_m_s)
    assert float(truth.tilt_rad) == pytest.approx(tilt)


def test_same_readings_without_waiting_on_an_accelerator(simgpu) -> None:
    recipes = [{"kind": kind, "begins": {"at_s": 1.0}} for kind in ALTIMETER]
    recipes.append({"kind": "compound", "faults": [{"kind": "bias"}, {"kind": "spike"}]})

    def read(device: str) -> list[Tensor]:
        bank = bank_of(*recipes, batch=4, device=device)
        state, out = before_faults(bank), []
        for k in range(8):
            range_m = (900.0 - 100.0 * k + torch.arange(4, dtype=F64)).to(device)
            state, read_m, valid = epoch(bank, state, 0.5 * k, range_m)
            out += [read_m, valid, state.begun_s]
        return out

    expected = read("cpu")
    with simulated_device.count_syncs() as syncs:
        actual = read(simgpu)
    assert not syncs, syncs
    for want, got in zip(expected, actual, strict=True):
        assert got.device.type == simgpu
        assert torch.equal(got.cpu().nan_to_num(), want.nan_to_num())


def test_all_of_the_altimeters_faults_are_tried_here() -> None:
    models = [m for m in get_args(get_args(SingleFault)[0]) if m.place is Place.ALTIMETER]
    kinds = [get_args(model.model_fields["kind"].annotation)[0] for model in models]
    assert sorted(kinds) == sorted(ALTIMETER)


def test_the_prescribed_late_acquisition_reads_as_it_always_did() -> None:
    """Draws in single precision and a width of 4.394: seeded runs depend on both."""
    t_s = torch.arange(0, 100, 0.1, dtype=F64)
    range_m = 3000 - 25 * t_s
    fault = LateAcquisition(kind="late_acquisition", range_max_m=893.0, edge_m=50.0)
    for seed in range(20):
        u = torch.rand(1000, generator=torch.Generator().manual_seed(seed)).double()
        expected = u < torch.sigmoid((893.0 - range_m) * 4.394 / 50.0)
        _, valid = apply_fault(fault, t_s, range_m, torch.ones(1000, dtype=torch.bool), seed)
        assert torch.equal(valid, expected)
