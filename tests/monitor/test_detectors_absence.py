"""Expected but absent, valid but not fused, and the inertial unit's tests."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor

from tnav.monitor.absence_checks import (
    Absence,
    AbsenceLimits,
    Outage,
    Unfused,
    UnfusedLimits,
    update_absence,
    update_unfused,
)
from tnav.monitor.inertial_checks import Inertial, InertialLimits, update_inertial
from tnav.monitor.statistics import absence_increments, likelihood_threshold

F64 = torch.float64
SEEN, MISSED = absence_increments(0.99, 0.1)
LIMITS = AbsenceLimits(SEEN, MISSED, likelihood_threshold(1000.0, 1e-4), permanent_s=5.0)
UNIT = InertialLimits(50.0, 2.0, saturated=2, zeros=3)
NONE = torch.zeros(1, 3, dtype=F64)


def yes(value: bool = True) -> Tensor:
    return torch.tensor([value])


def observe(ranges: str, dt_s: float = 0.1, state: Absence | None = None) -> list[Absence]:
    """One epoch a letter: v valid and fused, u valid but not fused, - nothing, . not expected."""
    states = [state or Absence.fresh(1, "cpu")]
    for i, letter in enumerate(ranges):
        valid, usable = letter in "vu", letter == "v"
        args = yes(valid), yes(usable), yes(letter != ".")
        states.append(update_absence(states[-1], i * dt_s, *args, LIMITS))
    return states[1:]


def kinds(states: list[Absence]) -> list[int]:
    return [int(s.kind) for s in states]


# Absence ------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.text("vu-.", min_size=1, max_size=60))
def test_absence_by_brute_force(ranges: str) -> None:
    level, alarm, began, onset, cleared = 0.0, False, math.nan, math.nan, math.nan
    acquired = before = False
    for i, (letter, state) in enumerate(zip(ranges, observe(ranges), strict=True)):
        t = 0.1 * i
        if letter != ".":
            seen = letter == "v" if alarm else letter in "vu"
            peak = max(0.0, level + (SEEN if seen else MISSED))
            began = math.nan if peak == 0 else (t if math.isnan(began) else began)
            if not alarm and peak >= LIMITS.level:
                alarm, onset, before = True, began, acquired
            elif alarm and peak == 0:
                alarm, onset, cleared = False, math.nan, t
            level = min(peak, LIMITS.level)
        acquired |= letter == "v"
        assert float(state.level) == pytest.approx(level, abs=1e-12)
        assert bool(state.alarm) == alarm
        assert bool(state.acquired) == acquired
        assert state.onset_s.tolist() == pytest.approx([onset], nan_ok=True)
        assert state.cleared_s.tolist() == pytest.approx([cleared], nan_ok=True)
        assert (int(state.kind) == Outage.NONE) == (not alarm)
        if alarm:
            assert (int(state.kind) == Outage.LATE_ACQUISITION) == (not before)


def test_four_misses_in_a_row_and_seven_ranges() -> None:
    """ln(1e7) = 16.1: 3 x 4.50 is under it, 4 x 4.50 over it; 8 x 2.29 lead back from it."""
    states = observe("---" + "-" + "v" * 8)
    assert [bool(s.alarm) for s in states] == [False] * 3 + [True] * 8 + [False]
    assert float(states[3].statistic) == pytest.approx(4 * MISSED)
    assert float(states[3].level) == pytest.approx(LIMITS.level)
    assert math.ceil(LIMITS.level / -SEEN) == 8


def test_late_acquisition_dropout_and_outage_are_told_apart() -> None:
    late = observe("." * 5 + "-" * 80 + "v" * 12)
    assert set(kinds(late)) == {Outage.NONE, Outage.LATE_ACQUISITION}  # however late
    assert float(late[30].onset_s) == pytest.approx(0.5)
    assert float(late[-1].cleared_s) == pytest.approx(9.2)
    dropout = observe("v" * 10 + "-" * 30 + "v" * 12)
    assert set(kinds(dropout)) == {Outage.NONE, Outage.DROPOUT}
    assert float(dropout[20].onset_s) == pytest.approx(1.0)
    outage = observe("v" * 10 + "-" * 100)
    assert Outage.LATE_ACQUISITION not in kinds(outage)
    # Last range at 0.9 s: 5 s without one at 5.9 s.
    assert kinds(outage)[58:60] == [Outage.DROPOUT, Outage.PERMANENT]
    assert kinds(outage)[-1] == Outage.PERMANENT
    assert kinds(observe("v" * 12, state=outage[-1]))[-1] == Outage.NONE


def test_ranges_that_are_not_taken_do_not_end_an_alarm() -> None:
    assert bool(observe("v----" + "u" * 30)[-1].alarm)
    assert not bool(observe("v" + "u" * 30)[-1].alarm)
    assert not bool(observe("v----" + "v" * 9)[-1].alarm)


def test_absence_keeps_its_rate() -> None:
    """Ranges come with 0.9, as specified: Ville's bound holds, and is not all idle."""
    lanes, n, stated = 6000, 200, 0.05
    seen, missed = absence_increments(0.9, 0.1)
    limits = AbsenceLimits(seen, missed, likelihood_threshold(float(n), stated))
    state, alarmed = Absence.fresh(lanes, "cpu"), torch.zeros(lanes, dtype=torch.bool)
    draws = torch.rand(lanes, n, generator=torch.Generator().manual_seed(4))
    everywhere = torch.ones(lanes, dtype=torch.bool)
    for i in range(n):
        valid = draws[:, i] < 0.9
        state = update_absence(state, 0.1 * i, valid, valid, everywhere, limits)
        alarmed = alarmed | state.alarm
    assert 0 < int(alarmed.sum()) <= binom.isf(1e-4, lanes, stated)


# Not fused ----------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.5, -2.9, 3.1, math.nan]), st.booleans(), st.booleans()),
        min_size=1,
        max_size=30,
    )
)
def test_unfused_by_counting(steps: list[tuple[float, bool, bool]]) -> None:
    state, limits = Unfused.fresh(1, "cpu"), UnfusedLimits(3.0, 3)
    run, began = 0, math.nan
    for i, (z, valid, fused) in enumerate(steps):
        value = torch.tensor([z], dtype=F64)
        state = update_unfused(state, float(i), value, yes(valid), yes(fused), limits)
        if valid and not math.isnan(z):
            held = abs(z) < 3 and not fused
            began = (float(i) if run == 0 else began) if held else math.nan
            run = run + 1 if held else 0
        assert bool(state.alarm) == (run >= 3)
        onset = began if run >= 3 else math.nan
        assert state.onset_s.tolist() == pytest.approx([onset], nan_ok=True)


# Inertial -----------------------------------------------------------------------------------------


def steps_of(
    delta_v: list[Tensor], delta_theta: list[Tensor], thrusting: bool = True
) -> list[Inertial]:
    states = [Inertial.fresh(1, "cpu")]
    for i, (v, w) in enumerate(zip(delta_v, delta_theta, strict=True)):
        states.append(update_inertial(states[-1], float(i), 0.01, v, w, yes(thrusting), UNIT))
    return states[1:]


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_saturation_on_any_axis(sign: float) -> None:
    """Clamped at 50 m/s^2 and 2 rad/s over 10 ms; just under 99.9 % of it is a measurement."""
    moving = torch.tensor([[0.01, 0.02, 0.03]], dtype=F64)
    for axis in range(3):
        for value, alarm in ((0.5, True), (0.4994, False)):
            v = moving.clone()
            v[0, axis] = sign * value
            states = steps_of([moving, v, v], [moving * 0.01] * 3)
            assert [bool(s.saturated) for s in states] == [False, False, alarm]
            assert bool(states[-1].alarm) is alarm
            assert not bool(states[-1].silent)
        w = moving * 0.01
        w[0, axis] = sign * 0.02
        states = steps_of([moving] * 2, [w] * 2)
        assert bool(states[-1].saturated)
        assert float(states[-1].onset_s) == 0.0


def test_zeros_while_thrusting() -> None:
    moving = torch.full((1, 3), 0.01, dtype=F64)
    states = steps_of([moving, NONE, NONE, NONE, moving], [moving] * 5)
    assert [bool(s.silent) for s in states] == [False, False, False, True, False]
    assert float(states[3].onset_s) == 1.0
    assert float(states[3].statistic) == 3
    # In free fall accelerometers may well read zero; gyros never do.
    assert not any(bool(s.alarm) for s in steps_of([NONE] * 5, [moving] * 5, thrusting=False))
    assert bool(steps_of([moving] * 3, [NONE] * 3, thrusting=False)[-1].silent)
    # One component that is not zero is a measurement.
    one = torch.tensor([[0.0, 0.0, 1e-9]], dtype=F64)
    assert not any(bool(s.alarm) for s in steps_of([one] * 5, [moving] * 5))


def test_missing_increments_are_passed_over() -> None:
    moving, gone = torch.full((1, 3), 0.01, dtype=F64), torch.full((1, 3), math.nan, dtype=F64)
    states = steps_of([NONE, NONE, gone, NONE], [moving] * 4)
    assert [bool(s.silent) for s in states] == [False, False, False, True]
