"""Solution separation on a real least-squares problem, closed forms and both sides of limits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import binom, norm
from torch import Tensor

from tnav.errors import ConfigError
from tnav.monitor.integrity import (
    FULL,
    UNDECIDED,
    Multipliers,
    RiskBudget,
    Separation,
    Stanford,
    alert_limit,
    exclude,
    separate,
    stanford,
)

F64 = torch.float64
MODES = (1e-2, 1e-3, 1e-2)


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


class Instruments:
    """A position measured by three independent instruments, each on all axes with its own noise.

    The full solution weighs all, solution j all but the j-th: the exact case of the covariances.
    """

    sigma_m = torch.tensor([[4.0, 3.0, 1.0], [5.0, 5.0, 2.0], [6.0, 2.0, 3.0]], dtype=F64)

    def __init__(self, lanes: int, seed: int, bias_m: Tensor | None = None) -> None:
        noise = torch.randn(lanes, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)
        self.z = self.sigma_m * noise + (0.0 if bias_m is None else bias_m)
        self.kept = [torch.arange(3) != j for j in range(3)]

    def solve(self, used: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.sigma_m[used] ** -2
        variance = 1 / weight.sum(0)
        x = (self.z[:, used] * weight).sum(1) * variance
        return x, torch.diag(variance).expand(len(x), 3, 3)

    def separation(self, multipliers: Multipliers) -> Separation:
        x, P = self.solve(torch.ones(3, dtype=torch.bool))
        subs = [self.solve(used) for used in self.kept]
        return separate(
            x,
            P,
            torch.stack([s for s, _ in subs], 1),
            torch.stack([c for _, c in subs], 1),
            torch.ones(len(x), 3, dtype=torch.bool),
            multipliers,
        )


def budget(**changes: object) -> Multipliers:
    return RiskBudget.model_validate({"fault_probabilities": MODES, **changes}).multipliers()


# Multipliers --------------------------------------------------------------------------------------


def test_multipliers_add_up_to_the_budget() -> None:
    risk = RiskBudget(
        integrity_vertical=1e-4,
        integrity_horizontal=2e-4,
        false_alarm_vertical=1e-3,
        false_alarm_horizontal=4e-3,
        fault_probabilities=MODES,
        looks=10.0,
    )
    k = risk.multipliers()
    across, _, up = k.false_alarm
    assert 10 * 3 * 2 * norm.sf(up) == pytest.approx(1e-3)
    assert 10 * 3 * 2 * 2 * norm.sf(across) == pytest.approx(4e-3)
    vertical, horizontal = 2 * norm.sf(k.fault_free[2]), 2 * 2 * norm.sf(k.fault_free[0])
    for p, missed in zip(MODES, k.missed, strict=True):
        vertical += p * norm.sf(missed[2])
        horizontal += 2 * p * norm.sf(missed[0])
    assert 10 * vertical == pytest.approx(1e-4)
    assert 10 * horizontal == pytest.approx(2e-4)


def test_a_mode_rarer_than_the_risk_need_not_be_watched() -> None:
    k = RiskBudget(integrity_vertical=3e-3, fault_probabilities=(1e-3 + 1e-9, 1e-3 - 1e-9))
    first, second = k.multipliers().missed
    # A third of the risk each: just over it K is that of nearly 1, so 0; just under it none.
    assert first[2] == 0.0
    assert second[2] == -math.inf
    assert second[0] > 0


def test_impossible_budgets() -> None:
    with pytest.raises(ValidationError, match=r"expected each in \(0, 1\)"):
        RiskBudget(fault_probabilities=(0.1, 1.0))
    with pytest.raises(ValidationError, match="at least 1 item"):
        RiskBudget(fault_probabilities=())
    with pytest.raises(ConfigError, match="3 solutions for 1 fault modes"):
        Instruments(1, 0).separation(RiskBudget(fault_probabilities=(0.1,)).multipliers())


# Separation ---------------------------------------------------------------------------------------


def test_covariance_of_the_separation_is_the_difference() -> None:
    """Brown and McBurney's identity, by simulation, to four sigma of a sample variance."""
    s = Instruments(20_000, 1).separation(budget())
    ratio = s.difference_L.var(0) / s.sigma_m[0].square()
    assert float((ratio - 1).abs().max()) < 4 * math.sqrt(2 / 20_000)


def test_false_alarms_keep_their_rate() -> None:
    """All axes, all modes: not above the sum of both rates, not below a third of it."""
    lanes = 20_000
    k = budget(false_alarm_vertical=0.03, false_alarm_horizontal=0.03)
    count = int(Instruments(lanes, 2).separation(k).alert.sum())
    assert count <= binom.isf(1e-4, lanes, 0.06)
    assert count >= binom.ppf(1e-4, lanes, 0.02)


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("size", [1.0, 2.0, 3.0])
def test_protection_levels_protect(mode: int, size: float) -> None:
    """A bias of one instrument near what is just missed: unnoticed errors over PL keep the risk.

    With a fault that is certain, ``P(|error| > PL, no alert) <= PHMI / ((N + 1) P_j)``.
    """
    lanes, risk = 20_000, 0.02
    p = 0.25
    k = RiskBudget(
        integrity_vertical=risk, integrity_horizontal=risk, fault_probabilities=(p, p, p)
    ).multipliers()
    bias = torch.zeros(3, 3, dtype=F64)
    bias[mode, 2] = size * Instruments.sigma_m[mode, 2] * 4
    flight = Instruments(lanes, 10 + mode, bias)
    s = flight.separation(k)
    x, _ = flight.solve(torch.ones(3, dtype=torch.bool))
    missed = (x[:, 2].abs() > s.vertical_m) & ~s.alert
    assert int(missed.sum()) <= binom.isf(1e-4, lanes, risk / (4 * p))
    # A level of five metres, not of a hundred: it is of use.
    assert float(s.vertical_m.max()) < 20.0


def test_protection_levels_in_closed_form() -> None:
    k = budget()
    s = Instruments(1, 0).separation(k)
    weight = Instruments.sigma_m.numpy() ** -2
    level = np.array(k.fault_free) / np.sqrt(weight.sum(0))
    for j in range(3):
        without = 1 / (weight.sum(0) - weight[j])
        ss = np.sqrt(without - 1 / weight.sum(0))
        assert s.threshold_m[0, j].numpy() == pytest.approx(np.array(k.false_alarm) * ss)
        level = np.maximum(
            level, np.array(k.false_alarm) * ss + np.array(k.missed[j]) * np.sqrt(without)
        )
    assert float(s.vertical_m) == pytest.approx(level[2])
    assert float(s.horizontal_m) == pytest.approx(math.hypot(level[0], level[1]))


def one(difference_m: list[float], available: list[bool], k: Multipliers) -> Separation:
    """Solutions that differ in height only: sigma 1 m in full, 2 m without any set."""
    n = len(difference_m)
    subs = torch.zeros(1, n, 3, dtype=F64)
    subs[0, :, 2] = f64(*difference_m)
    eye = torch.eye(3, dtype=F64)
    full = torch.zeros(1, 3, dtype=F64), eye[None]
    return separate(*full, subs, (4 * eye).expand(1, n, 3, 3), torch.tensor([available]), k)


def test_separation_just_under_and_over() -> None:
    k = RiskBudget(fault_probabilities=(1e-3,)).multipliers()
    limit_m = k.false_alarm[2] * math.sqrt(3)
    for factor, alert in ((1 - 1e-9, False), (1 + 1e-9, True)):
        for sign in (-1, 1):
            s = one([sign * factor * limit_m], [True], k)
            assert bool(s.alert) is alert
            assert float(s.statistic) == pytest.approx(factor * k.false_alarm[2])


def test_a_solution_that_is_missing_watches_nothing() -> None:
    """Its mode is unwatched, so no level protects; unless the mode is too rare to matter."""
    k = RiskBudget(fault_probabilities=(1e-2, 1e-2)).multipliers()
    s = one([0.0, math.nan], [True, False], k)
    assert not bool(s.alert)
    assert math.isinf(float(s.vertical_m))
    assert float(s.statistic[0, 1]) == 0.0
    rare = RiskBudget(fault_probabilities=(1e-2, 1e-9)).multipliers()
    assert math.isfinite(float(one([0.0, math.nan], [True, False], rare).vertical_m))
    # A flag that is set on values that are not numbers counts as missing, too.
    assert math.isinf(float(one([0.0, math.nan], [True, True], k).vertical_m))


def test_solutions_that_use_all_data_do_not_separate() -> None:
    """Equal covariances, as where nothing was left out: rounding alone raises no alert."""
    k = RiskBudget(fault_probabilities=(1e-3,)).multipliers()
    eye = torch.eye(3, dtype=F64)[None]
    x = f64(1e5, 1e5, 1e5)[None]
    sub = x[:, None] * (1 + 1e-12)
    yes = torch.ones(1, 1, dtype=torch.bool)
    s = separate(x, eye, sub, eye[:, None] * (1 - 1e-12), yes, k)
    assert not bool(s.alert)
    assert s.sigma_m.flatten().tolist() == pytest.approx([1e-3] * 3)


# Exclusion ----------------------------------------------------------------------------------------


def chosen(difference_m: list[float], consistent: list[bool]) -> int:
    k = RiskBudget(fault_probabilities=tuple([1e-3] * len(difference_m))).multipliers()
    s = one(difference_m, [True] * len(difference_m), k)
    return int(exclude(s, torch.tensor([consistent]), odds=1e3))


def test_whom_to_trust() -> None:
    assert chosen([1.0, -2.0, 0.0], [True] * 3) == FULL
    assert chosen([1.0, -2.0, 0.0], [False] * 3) == FULL
    assert chosen([1.0, 90.0, 0.0], [True] * 3) == 1
    assert chosen([1.0, 90.0, 0.0], [True, False, True]) == UNDECIDED
    assert chosen([60.0, 90.0, 0.0], [True] * 3) == 1
    assert chosen([60.0, 90.0, 0.0], [True, False, True]) == 0
    assert chosen([90.0, -90.0, 0.0], [True] * 3) == UNDECIDED


def test_odds_from_both_sides() -> None:
    """Squares of 10 and x sigma differ by 2 ln 1000."""
    other = math.sqrt(3) * math.sqrt(100 - 2 * math.log(1e3))
    assert chosen([math.sqrt(3) * 10, other * (1 - 1e-9)], [True] * 2) == 0
    assert chosen([math.sqrt(3) * 10, other * (1 + 1e-9)], [True] * 2) == UNDECIDED


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_the_faulty_instrument_is_the_one_left_out(mode: int) -> None:
    """Where its bias is 15 of its sigmas, on any axis; wrong choices are as rare as the odds."""
    bias = torch.zeros(3, 3, dtype=F64)
    bias[mode] = 15 * Instruments.sigma_m[mode]
    s = Instruments(4000, 20 + mode, bias).separation(budget())
    index = exclude(s, torch.ones(4000, 3, dtype=torch.bool))
    assert float((index == mode).to(F64).mean()) > 0.8
    assert int(((index != mode) & (index != UNDECIDED)).sum()) <= binom.isf(1e-4, 4000, 1e-3)


# Alert limit and classes --------------------------------------------------------------------------


@pytest.mark.parametrize(("speed", "stopping"), [(20.0, 108.0), (44.0, 523.0), (66.0, 1177.0)])
def test_stopping_distances(speed: float, stopping: float) -> None:
    """At 1.85 m/s^2, and both sides of the point of no return."""
    exact = speed**2 / (2 * 1.85)
    assert exact == pytest.approx(stopping, abs=0.6)
    agl = f64(1000.0 + exact, exact + 1e-6, exact - 1e-6)
    result = alert_limit(agl, f64(*[speed] * 3), f64(*[1.85] * 3))
    assert result.limit_m.tolist() == pytest.approx([1000.0, 1e-6, -1e-6], abs=1e-9)
    assert result.stoppable.tolist() == [True, True, False]
    assert result.time_to_alert_s.tolist() == pytest.approx([1000 / speed, 0.0, 0.0], abs=1e-6)


def test_alert_limit_at_the_ends_of_its_range() -> None:
    """Rising, at rest, and with engines too weak to brake."""
    result = alert_limit(f64(50.0, 50.0, 50.0), f64(-3.0, 0.0, 3.0), f64(2.0, 0.0, -0.1))
    assert result.limit_m.tolist() == [50.0, 50.0, -math.inf]
    assert result.time_to_alert_s.tolist() == [math.inf, math.inf, 0.0]
    assert result.stoppable.tolist() == [True, True, False]


@settings(max_examples=100, deadline=None)
@given(st.floats(-50, 50), st.floats(0, 50), st.floats(-5, 50), st.booleans())
def test_stanford_by_its_definition(error: float, level: float, limit: float, alert: bool) -> None:
    found = int(stanford(f64(error), f64(level), f64(limit), torch.tensor([alert])))
    if alert or level > limit:
        assert found == Stanford.UNAVAILABLE
    elif abs(error) <= level:
        assert found == Stanford.NOMINAL
    else:
        hazardous = abs(error) > limit
        assert found == (Stanford.HAZARDOUS if hazardous else Stanford.MISLEADING)


def test_stanford_of_what_is_not_a_number() -> None:
    nan, no = f64(math.nan), torch.tensor([False])
    assert int(stanford(nan, f64(1.0), f64(2.0), no)) == Stanford.HAZARDOUS
    assert int(stanford(f64(0.0), nan, f64(2.0), no)) == Stanford.UNAVAILABLE
    assert int(stanford(f64(0.0), f64(1.0), nan, no)) == Stanford.UNAVAILABLE
