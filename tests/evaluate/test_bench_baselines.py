"""The comparison with baselines: who counts as found, at which threshold, and by whom."""

import math

import pytest
import torch
from flights import flight, over

from tnav.errors import ConfigError
from tnav.evaluate.bench_baselines import (
    Alarms,
    _chart,
    _level,
    _own,
    _rows,
    alarms_of,
    look_on,
)
from tnav.evaluate.flight import Flight, Monitoring
from tnav.monitor.baselines import NAMES, Baselines
from tnav.simulate.faults import BiasFault, Onset

F64 = torch.float64
INF = math.inf


def alarms(first_s: list[list[float]], begun_s: float = 10.0, sized: bool = True) -> Alarms:
    b = len(first_s)
    return Alarms(
        torch.tensor(first_s, dtype=F64),
        torch.full((b,), begun_s, dtype=F64),
        torch.full((b,), 20.0, dtype=F64),
        torch.full((b,), sized),
    )


def test_found_is_after_the_fault_and_before_the_end() -> None:
    each = alarms([[9.9, 10.0, 19.9, 20.0, INF]])
    assert each.found()[0].tolist() == [False, True, True, False, False]
    assert each.false().tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert [each.delay_s(i) for i in range(5)] == [
        None, 0.0, pytest.approx(9.9), None, None,
    ]  # fmt: skip
    assert not bool(alarms([[15.0]], sized=False).found().any())


def test_a_baseline_gets_the_lowest_threshold_that_alarms_no_oftener() -> None:
    healthy = alarms([[5.0, 5.0, INF, INF], [5.0, INF, INF, INF]], begun_s=INF)
    assert healthy.false().tolist() == [2.0, 1.0, 0.0, 0.0]
    assert [_level(healthy, allowed) for allowed in (2, 1, 0)] == [0, 1, 2]
    with pytest.raises(ConfigError, match="over 0 false alarms at every threshold"):
        _level(alarms([[5.0, 5.0]], begun_s=INF), 0)


def test_where_a_baseline_wins_the_table_says_so() -> None:
    own = [INF] * 4
    own[_own()] = 12.0
    healthy = {"tnav": alarms([[INF] * 4] * 2, begun_s=INF)}
    healthy |= {name: alarms([[5.0, INF]] * 2, begun_s=INF) for name in NAMES}
    faulty = {"tnav": alarms([own, own])}
    faulty |= {name: alarms([[11.0, 13.0], [11.0, INF]]) for name in NAMES}
    faulty["two sources"] = alarms([[11.0, 11.0], [11.0, 11.0]])
    rows = {(r.name, r.unit): r for r in _rows("bias", healthy, faulty, "cpu")}
    gate = rows["bias: ... by 'hard gate'", "descents"]
    assert (gate.value, gate.n, gate.passed) == (1, 2, True)
    assert rows["bias: found by tnav, 0 false alarms in 2", "descents"].value == 2
    late = [r for r in _rows("bias", healthy, faulty, "cpu") if r.unit == "s"]
    # Of the two that 'hard gate' might find, one: 13 s against tnav's 12 on that very descent.
    assert [r.value for r in late] == [2.0, 3.0, 3.0, 1.0, 3.0]
    assert [r.n for r in late] == [2, 1, 1, 2, 1]
    assert [r.passed for r in late] == [None, True, True, False, True]  # two sources were sooner
    chart = _chart("bias", healthy, faulty)
    assert [curve["label"] for curve in chart["curves"]] == ["tnav", *NAMES]
    assert chart["curves"][1]["false"] == [1.0, 0.0]
    assert chart["curves"][1]["found"] == [1.0, 0.5]
    assert chart["sized"] == chart["n"] == 2
    # Thresholds over the lowest without a false alarm only find less.
    quiet = {name: alarms([[5.0, INF, INF]] * 2, begun_s=INF) for name in NAMES}
    more = {name: alarms([[11.0, 13.0, INF], [11.0, 12.0, INF]]) for name in NAMES}
    longer = _chart("bias", healthy | quiet, faulty | more)
    assert longer["curves"][1]["false"] == [1.0, 0.0]
    assert len(longer["curves"][0]["false"]) == 4  # tnav's are all told


def test_who_looks_on_changes_nothing_and_hears_every_range() -> None:
    """A bias of 500 m begins at 0.5 s, 900 m up; the flight of 2 s has 20 ranges."""
    fault = BiasFault(kind="bias", begins=Onset(at_s=0.5), bias_m=500.0)

    def flown(watched: bool) -> tuple[Flight, Baselines | None]:
        one = flight(batch=2, keep=None, monitor=Monitoring.WATCHES, faults=(fault,))
        baselines = look_on(one) if watched else None
        over(one, 900.0, 20.0)
        for k in range(1, 21):
            one._step(k)
        return one, baselines

    (one, baselines), (alone, _) = flown(True), flown(False)
    assert baselines is not None
    assert torch.equal(one.state.position_L, alone.state.position_L)
    assert torch.equal(one.state.covariance, alone.state.covariance)
    assert one.monitor is not None
    found = alarms_of(one, baselines, torch.ones(2, dtype=torch.bool))
    assert set(found) == {"tnav", *NAMES}
    assert found["tnav"].first_s.shape == (2, 4)
    # The place is known to 200 m without ranges, so that to the second source it is 2.5 sigma.
    one_sigma, ten_sigma = (int((baselines.levels < k).sum()) for k in (1, 10))
    for name, level in (("tnav", _own()), ("hard gate", ten_sigma), ("two sources", one_sigma)):
        first_s = found[name].first_s[:, level]
        assert bool(((first_s >= 0.5) & (first_s < 0.9)).all()), name
    levels = [setup.thresholds.absence.level for _, setup in one.monitor.others]
    assert levels == sorted(levels)  # rates from the highest to the lowest
    far = [setup.multipliers.false_alarm[2] for _, setup in one.monitor.others]
    assert far == sorted(far)
    assert len(set(far)) == 3
