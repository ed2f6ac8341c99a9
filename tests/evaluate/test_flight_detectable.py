"""What counts as larger than the least that can be detected: just under and just over."""

import math

import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from tnav.evaluate.flight_detectable import Detectable, Readings, least_error, misses_needed
from tnav.evaluate.flight_ground import Ranges
from tnav.monitor.integrity import RiskBudget
from tnav.monitor.thresholds import DescentSamples, Rates, Tuning, thresholds
from tnav.monitor.watch import WatchSetup
from tnav.records import AltimeterSpec, RangePrediction

F64 = torch.float64
WINDOW = 4
TUNING = Tuning(kinematic_window=WINDOW)
SETUP = WatchSetup(
    spec=AltimeterSpec((0.0, 0.0, -1.0), 3000.0, 0.99, 30.0, 0.8, 0.0, 10.0),
    thresholds=thresholds(
        Rates(), DescentSamples(altimeter=1200, vision=30, star_tracker=450, inertial=9000), TUNING
    ),
    tuning=TUNING,
    multipliers=RiskBudget(fault_probabilities=(1e-2,), looks=30.0).multipliers(),
    witness_nis=22.0,
    gate_nis=27.9,
    blind_below_m=60.0,
    relief_sigma_m=0.25,
)
SIGMA_M = 0.5  # hypot(0.3, 0.8 / sqrt(4))
YES, NO = torch.tensor([True]), torch.tensor([False])


def row(value: float) -> Tensor:
    return torch.tensor([value], dtype=F64)


def ranged(
    one: Detectable, *, error_m: float = 0.0, lost: bool = False, range_m: float = 500.0,
    incidence_deg: float = 5.0, in_time: Tensor = YES,
) -> bool:  # fmt: skip
    """Whether a fault has been larger, after one more epoch."""
    true = Ranges(row(range_m), row(math.radians(incidence_deg)), YES)
    alone = RangePrediction(0.0, row(range_m), row(0.3), row(0.1), YES)
    read = Readings(row(range_m + error_m), NO if lost else YES)
    one.ranges(Readings(row(range_m), YES), read, true, alone, in_time)
    return bool(one.exceeded)


def fresh() -> Detectable:
    return Detectable(SETUP, 1, torch.device("cpu"))


def test_the_least_error_is_threshold_and_power() -> None:
    """Baarda (1968): found with 99 % at the threshold k."""
    assert least_error(3.0) == pytest.approx(3.0 + norm.isf(0.01))
    assert [misses_needed(9.0, 4.5), misses_needed(9.1, 4.5)] == [2, 3]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_every_range_of_a_window_is_off_to_one_side_by_the_least(sign: float) -> None:
    least_m = least_error(SETUP.multipliers.false_alarm[2]) * SIGMA_M
    over, under = sign * 1.001 * least_m, sign * 0.999 * least_m
    assert [ranged(one := fresh(), error_m=over)] + [
        ranged(one, error_m=over) for _ in range(3)
    ] == [False, False, False, True]
    one = fresh()
    assert not any(ranged(one, error_m=under) for _ in range(9))
    one = fresh()
    assert not any(ranged(one, error_m=over if i % 4 else 1e3) for i in range(3))
    assert not any(ranged(one, error_m=-over * (-1) ** i) for i in range(9))
    one = fresh()
    assert not any(ranged(one, error_m=over, in_time=NO) for _ in range(9))


def test_ranges_are_missed_in_a_row_where_they_are_promised() -> None:
    limits = SETUP.thresholds.absence
    needed = misses_needed(limits.level, limits.missed)
    assert needed == 4
    one = fresh()
    assert [ranged(one, lost=True) for _ in range(4)] == [False, False, False, True]
    one = fresh()
    for lost in (True, True, True, False, True, True, True):
        assert not ranged(one, lost=lost)
    for beyond in ({"range_m": 3001.0}, {"incidence_deg": 25.1}):  # 5 deg of margin under 30
        one = fresh()
        assert not any(ranged(one, lost=True, **beyond) for _ in range(9))
    # Where nothing is promised, nothing is counted, and nothing forgotten.
    one = fresh()
    for beyond in ({}, {}, {"range_m": 3001.0}, {}):
        assert not ranged(one, lost=True, **beyond)
    assert ranged(one, lost=True)


def imaged(
    one: Detectable, *, error_m: float = 0.0, step_m: float = 0.0, lost: bool = False,
    image: Tensor = YES,
) -> bool:  # fmt: skip
    """Whether a fault has been larger, after one more image; sigma is 2 m."""
    error_L, step_L = torch.zeros(1, 3, dtype=F64), torch.zeros(1, 3, dtype=F64)
    error_L[0, 1], step_L[0, 2] = error_m, step_m
    sigma_m = torch.full((1, 3), 2.0, dtype=F64)
    one.fixes(error_L, step_L, sigma_m, YES if lost else NO, image, YES)
    return bool(one.exceeded)


def test_images_count_by_their_number() -> None:
    gate, count = SETUP.thresholds.vision.count.gate, SETUP.thresholds.vision.count.count
    least_m = 2.0 * least_error(math.sqrt(gate))
    one = fresh()
    assert [imaged(one, error_m=-1.001 * least_m) for _ in range(count)] == [
        *[False] * (count - 1), True,
    ]  # fmt: skip
    one = fresh()
    assert not any(imaged(one, error_m=0.999 * least_m) for _ in range(9))
    one = fresh()
    assert [imaged(one, lost=True) for _ in range(5)] == [False] * 4 + [True]
    one = fresh()
    assert not any(imaged(one, lost=True, image=NO) for _ in range(9))


def test_a_map_counts_by_what_is_new_of_it() -> None:
    least_m = 2.0 * least_error(math.sqrt(SETUP.thresholds.vision.count.gate))
    assert imaged(fresh(), step_m=-1.001 * least_m)
    assert not imaged(fresh(), step_m=0.999 * least_m)
    assert not imaged(fresh(), step_m=1.001 * least_m, image=NO)
