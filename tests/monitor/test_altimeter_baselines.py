"""What others watch altimeters with: closed forms of each statistic, and when it is reached."""

import math

import pytest
import torch
from torch import Tensor

from tnav.monitor.baselines import NAMES, Baselines
from tnav.monitor.watch import RangeLook
from tnav.records import AltimeterSpec, Innovation, RangePrediction, Sensor

F64 = torch.float64
SPEC = AltimeterSpec((0.0, 0.0, -1.0), 3000.0, 0.99, 30.0, 0.3, 0.0, 10.0)
LEVELS = torch.tensor([1.0, 2.9, 3.0, 3.1, 4.0, 100.0], dtype=F64)
GATE, TIMEOUT, TWO, RATE = range(4)


def row(value: float) -> Tensor:
    return torch.tensor([value], dtype=F64)


def look(t_s: float, *, own_z: float = 0.0, off_m: float = 0.0, valid: bool = True,
         aloft: bool = True, range_m: float = 500.0) -> RangeLook:  # fmt: skip
    yes, there = torch.tensor([True]), torch.tensor([valid])
    value = row(2.0 * own_z)[:, None]
    own = Innovation(t_s, Sensor.ALTIMETER, value, row(4.0)[:, None, None], row(own_z**2), there,
                     there)  # fmt: skip
    alone = RangePrediction(t_s, row(range_m), row(0.4), row(0.1), yes)
    return RangeLook(t_s, row(range_m + off_m), there, there, torch.tensor([aloft]), alone, own)


def watched(*looks: RangeLook, climb_m_s: float = 0.0, cosine: float = 1.0) -> Tensor:
    """First times, one row a method."""
    baselines = Baselines(1, torch.device("cpu"), LEVELS)
    for each in looks:
        baselines.look(each, SPEC, row(cosine), row(climb_m_s), row(0.1))
    return baselines.first_s[0]


def test_each_has_a_name_and_begins_with_nothing() -> None:
    assert len(NAMES) == 4
    assert bool(watched().isinf().all())


@pytest.mark.parametrize("z", [3.05, -3.05])
def test_the_gate_is_one_innovation_in_sigma(z: float) -> None:
    first_s = watched(look(1.0), look(1.1, own_z=z), look(1.2, own_z=z))
    assert first_s[GATE].tolist() == [1.1, 1.1, 1.1, math.inf, math.inf, math.inf]
    assert bool(first_s[TWO].isinf().all())


def test_the_timeout_counts_rejections_in_a_row() -> None:
    off, well = {"own_z": 3.01}, {"own_z": 2.99}
    run = [look(1.0, **off), look(1.1, **off), look(1.2, **well), look(1.3, **off)]
    first_s = watched(*run, look(1.4, valid=False), look(1.5, **off), look(1.6, **off))
    assert first_s[TIMEOUT].tolist() == [1.0, 1.6, 1.6, math.inf, math.inf, math.inf]


def test_two_sources_differ_by_their_common_sigma() -> None:
    """hypot(0.4, 0.3) = 0.5 m; what is beside the map, or not valid, says nothing."""
    first_s = watched(look(1.0, off_m=1.499), look(1.1, off_m=-1.501))
    assert first_s[TWO].tolist() == [1.0, 1.0, 1.1, math.inf, math.inf, math.inf]
    assert bool(watched(look(1.0, off_m=9.0, valid=False))[TWO].isinf().all())


def test_the_rate_is_of_the_height_against_the_vertical_speed() -> None:
    """A slant of 60 deg that closes at 20 m/s is a height that falls at 10 m/s."""
    closing = [look(0.1 * i, range_m=500.0 - 2.0 * i) for i in range(40)]
    assert bool(watched(*closing, climb_m_s=-10.0, cosine=0.5)[RATE].isinf().all())
    first_s = watched(*closing, climb_m_s=-60.0, cosine=0.5)
    assert 0.0 < float(first_s[RATE, 0]) < 4.0


def test_on_the_ground_nothing_alarms() -> None:
    down = look(1.0, own_z=50.0, off_m=50.0, aloft=False)
    assert bool(watched(down).isinf().all())
