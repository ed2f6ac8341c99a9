"""Verdicts: right kind, in time, none for healthy descents, none just under a threshold."""

import math
from dataclasses import replace

import pytest
import torch
from descent_model import HEALTHY, SPEC, Fault, Flight, fly, lane, truth

from tnav.errors import ConfigError
from tnav.monitor.evidence import Excursion, Witness
from tnav.monitor.isolate import Monitor, MonitorConfig
from tnav.monitor.statistics import (
    absence_increments,
    cusum_threshold,
    likelihood_threshold,
    two_sided_cusum,
)
from tnav.records import (
    AltimeterReading,
    FaultKind,
    FaultVerdict,
    Innovation,
    RangePrediction,
    Sensor,
)

F64 = torch.float64
CONFIG = MonitorConfig()
SHARE = CONFIG.false_alarm_probability / 3


def watch(flight: Flight, lanes: int) -> list[Monitor]:
    """One monitor for each of the first descents."""
    monitors = [Monitor(SPEC, CONFIG) for _ in range(lanes)]
    for epoch in flight.epochs:
        for i, monitor in enumerate(monitors):
            e = lane(epoch, i)
            monitor.step(e.t_s, e.prediction, e.reading, e.altimeter, e.vision)
    return monitors


def only(monitor: Monitor) -> FaultVerdict:
    assert len(monitor.verdicts) == 1, monitor.verdicts
    return monitor.verdicts[0]


def f64(x: float) -> torch.Tensor:
    return torch.full((1,), x, dtype=F64)


def expect(t_s: float, range_m: float, sigma_m: float = 0.0, incidence_deg: float = 5.0):
    return RangePrediction(
        t_s, f64(range_m), f64(sigma_m), f64(math.radians(incidence_deg)), f64(1.0).bool()
    )


def read(t_s: float, valid: bool) -> AltimeterReading:
    return AltimeterReading(t_s, f64(1000.0 if valid else math.nan), torch.tensor([valid]))


def innovate(t_s: float, z: list[float], sensor: Sensor = Sensor.ALTIMETER) -> Innovation:
    value = torch.tensor([z], dtype=F64)
    nis = value.square().sum(-1)
    yes = torch.ones(1, dtype=torch.bool)
    eye = torch.eye(len(z), dtype=F64)[None]
    return Innovation(t_s, sensor, value, eye, nis, yes, yes & (nis < 15))


# Whole descents -----------------------------------------------------------------------------------


def test_healthy_descents_raise_nothing() -> None:
    """Smooth map error of 3 m over 300 m, as the filter does not model it, and all noises."""
    for monitor in watch(fly(12, seed=21), 12):
        assert monitor.verdicts == ()
        assert {s.name for s in monitor.history} == {
            "expected but absent",
            "altimeter CUSUM",
            "altimeter NIS window",
            "vision CUSUM",
            "vision NIS window",
        }
        assert max(s.value / s.threshold for s in monitor.history) < 1


def test_late_acquisition_before_the_point_of_no_return() -> None:
    """RESILIENCE: 3000 m promised, first range at 893 m."""
    late = Fault(altimeter_detects=lambda t_s, range_m: range_m < 893.0)
    onset_s = next(
        t / 10 for t in range(975) if _slant_m(t / 10) < SPEC.range_max_m
    )  # truth's own crossing
    no_return_s = next(t / 10 for t in range(975) if _stopping_m(t / 10) > _height_m(t / 10))
    found_s = next(t / 10 for t in range(975) if _slant_m(t / 10) < 893.0)
    for monitor in watch(fly(4, seed=25, fault=late, start_s=48.0), 4):
        verdict = only(monitor)
        assert verdict.kind is FaultKind.LATE_ACQUISITION
        assert onset_s <= verdict.onset_s < onset_s + 0.5  # a margin of 3 sigma, 11 m at 91 m/s
        assert verdict.alert_s <= verdict.onset_s + 0.5
        assert verdict.alert_s < no_return_s - 15
        assert verdict.cleared_s is not None
        assert found_s < verdict.cleared_s < found_s + 1.5
        assert verdict.statistic >= verdict.threshold
        assert "ranges missed in 0.4 s although the map predicts 29" in verdict.reason
        assert "within the 3000 m the altimeter is specified for" in verdict.reason


def _slant_m(t_s: float) -> float:
    now = truth(t_s)
    return float(now.position_L[2] / now.R_L_B[2, 2])


def _height_m(t_s: float) -> float:
    return float(truth(t_s).position_L[2])


def _stopping_m(t_s: float) -> float:
    return float(truth(t_s).velocity_L[2]) ** 2 / (2 * 1.85)


CASES = {
    "dropout": (
        Fault(altimeter_detects=lambda t_s, range_m: range_m < 3000.0 and not 70 < t_s < 74),
        FaultKind.DROPOUT,
        0.5,
    ),
    "altimeter bias": (
        Fault(altimeter_bias_m=lambda t_s: 60.0 if t_s > 70.01 else 0.0),
        FaultKind.ALTIMETER_INCONSISTENT,
        4.1,  # it waits for the next fix
    ),
    "altimeter noise": (
        Fault(altimeter_noise=lambda t_s: 10.0 if t_s > 70.01 else 1.0),
        FaultKind.ALTIMETER_INCONSISTENT,
        4.1,
    ),
    "vision bias": (
        Fault(vision_bias_L=lambda t_s: (0.0, 0.0, 80.0 if t_s > 70.01 else 0.0)),
        FaultKind.VISION_INCONSISTENT,
        6.1,  # the second fix
    ),
    "state moved": (
        Fault(kick_L=lambda t_s: (0.0, 0.0, 60.0 if abs(t_s - 70.05) < 1e-6 else 0.0)),
        FaultKind.UNDECIDED,
        4.1,
    ),
    "no third witness": (
        Fault(
            altimeter_bias_m=lambda t_s: 60.0 if t_s > 70.01 else 0.0,
            vision_sees=lambda t_s: t_s < 66,
        ),
        FaultKind.UNDECIDED,
        6.8,  # it waits one and a half intervals of fixes
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_faults_are_named(name: str) -> None:
    fault, kind, delay_s = CASES[name]
    for monitor in watch(fly(3, seed=23, fault=fault, start_s=52.0, end_s=78.5), 3):
        verdict = monitor.verdicts[0]
        assert verdict.kind is kind, verdict
        assert 70.0 < verdict.alert_s <= 70.05 + delay_s
        assert verdict.onset_s <= verdict.alert_s
        assert verdict.statistic >= verdict.threshold
        if kind is FaultKind.DROPOUT:
            assert verdict.onset_s == pytest.approx(70.1)
            assert "seen before" in verdict.reason
            assert verdict.cleared_s is not None
            assert 74 < verdict.cleared_s < 75.5
        if kind is not FaultKind.VISION_INCONSISTENT:  # its error is taken in after patience
            assert len(monitor.verdicts) == 1


# Just under, just over ----------------------------------------------------------------------------


def misses(config: MonitorConfig, expected: list[bool], valid: list[bool]) -> Monitor:
    monitor = Monitor(SPEC, config)
    for i, (inside, seen) in enumerate(zip(expected, valid, strict=True)):
        prediction = expect(i / 10, 1000.0 if inside else 5000.0)
        monitor.step(i / 10, prediction, read(i / 10, seen), None, None)
    return monitor


def test_absence_just_under_and_just_over() -> None:
    seen, missed = absence_increments(0.99, 0.1)
    h = likelihood_threshold(CONFIG.descent_s * SPEC.rate_hz, SHARE)
    needed = math.ceil(h / missed)
    assert needed == 4
    assert not needed * missed - h > missed
    n = 20
    assert misses(CONFIG, [True] * n, [True] * 10 + [False] * 3 + [True] * 7).verdicts == ()
    verdict = only(misses(CONFIG, [True] * n, [True] * 10 + [False] * 4 + [True] * 6))
    assert (verdict.onset_s, verdict.alert_s) == pytest.approx((1.0, 1.3))
    assert verdict.kind is FaultKind.DROPOUT
    # Capped at h, it takes ceil(h / -seen) ranges to clear.
    recovered = misses(CONFIG, [True] * n, [True] * 10 + [False] * 4 + [True] * 6)
    assert only(recovered).cleared_s is None
    assert math.ceil(h / -seen) == 7
    longer = misses(CONFIG, [True] * 30, [True] * 10 + [False] * 9 + [True] * 11)
    assert only(longer).cleared_s == pytest.approx(1.9 + 0.6)
    # Epochs without an expectation neither accuse nor excuse.
    gap = [True] * 10 + [True, True, False, False, False, True, True, True, True, True]
    verdict = only(misses(CONFIG, gap, [False] * n))
    assert verdict.kind is FaultKind.LATE_ACQUISITION
    assert verdict.alert_s == pytest.approx(0.3)
    assert misses(CONFIG, [False] * n, [False] * n).verdicts == ()


@pytest.mark.parametrize(
    ("range_m", "sigma_m", "incidence_deg", "alarm"),
    [
        (2969.9, 10.0, 5.0, True),
        (2970.1, 10.0, 5.0, False),
        (1000.0, 10.0, 24.9, True),
        (1000.0, 10.0, 25.1, False),
    ],
)
def test_expectation_just_under_and_just_over(
    range_m: float, sigma_m: float, incidence_deg: float, alarm: bool
) -> None:
    monitor = Monitor(SPEC, CONFIG)
    raised = []
    for i in range(10):
        prediction = expect(i / 10, range_m, sigma_m, incidence_deg)
        raised += monitor.step(i / 10, prediction, read(i / 10, False), None, None)
    assert bool(monitor.verdicts) is alarm
    assert len(raised) == int(alarm)
    undefined = replace(expect(0.0, math.nan), defined=torch.zeros(1, dtype=torch.bool))
    blind = Monitor(SPEC, CONFIG)
    for i in range(10):
        blind.step(i / 10, undefined, read(i / 10, False), None, None)
    assert blind.verdicts == ()


def shifted(z: float, count: int, vision: list[float] | None = None) -> Monitor:
    """An altimeter whose innovations stand at z sigma for ``count`` samples; then one fix."""
    monitor = Monitor(SPEC, CONFIG)
    for i in range(count):
        t_s = i / 10
        monitor.step(t_s, expect(t_s, 1000.0), read(t_s, True), innovate(t_s, [z]), None)
    fix = innovate(count / 10, vision or [0.0] * 6, Sensor.VISION)
    monitor.step(count / 10, expect(0.0, 1000.0), read(0.0, True), None, fix)
    return monitor


def test_shift_just_under_and_just_over() -> None:
    h = cusum_threshold(CONFIG.reference, CONFIG.descent_s * SPEC.rate_hz, SHARE / 2)
    z = CONFIG.reference + h / 10  # crosses with the tenth sample
    assert shifted(z * 0.999, 10).verdicts == ()
    verdict = only(shifted(z * 1.001, 10))
    assert verdict.kind is FaultKind.ALTIMETER_INCONSISTENT
    assert verdict.onset_s == 0.0
    assert verdict.alert_s == 1.0
    assert verdict.threshold == pytest.approx(h)
    assert "vision agrees" in verdict.reason
    assert only(shifted(-z * 1.001, 10)).kind is FaultKind.ALTIMETER_INCONSISTENT
    both = only(shifted(z * 1.001, 10, vision=[0.0, 0.0, 6.0, 0.0, 0.0, 0.0]))
    assert both.kind is FaultKind.UNDECIDED
    assert "disagrees too" in both.reason


def test_wild_samples_are_limited() -> None:
    """Two wild ranges, or one wild fix, are the gate's business; three, or two, are evidence."""
    assert shifted(1e6, 2).verdicts == ()
    assert only(shifted(1e6, 3)).kind is FaultKind.ALTIMETER_INCONSISTENT
    for count, verdicts in ((1, 0), (2, 1)):
        monitor = Monitor(SPEC, CONFIG)
        for i in range(12):
            t_s = i * 4.0
            wild = 1e4 if 5 <= i < 5 + count else 0.0
            fix = innovate(t_s, [0.0, 0.0, wild, 0.0, 0.0, 0.0], Sensor.VISION)
            range_z = innovate(t_s, [0.5])
            monitor.step(t_s, expect(t_s, 1000.0), read(t_s, True), range_z, fix)
        assert len(monitor.verdicts) == verdicts
    assert only(monitor).kind is FaultKind.VISION_INCONSISTENT
    assert "+1e+04 m up" in only(monitor).reason
    assert only(monitor).cleared_s is not None


def test_a_doubted_witness_does_not_testify() -> None:
    monitor = Monitor(SPEC, CONFIG)
    t_s = 0.0

    def run(samples: int, altimeter: float, vision: float) -> None:
        nonlocal t_s
        for i in range(samples):
            fix = innovate(t_s, [0.0, 0.0, vision, 0.0, 0.0, 0.0], Sensor.VISION)
            range_z = innovate(t_s, [altimeter])
            monitor.step(t_s, expect(t_s, 900.0), read(t_s, True), range_z, fix if i % 2 else None)
            t_s = round(t_s + 0.1, 1)

    run(6, altimeter=0.0, vision=30.0)
    assert only(monitor).kind is FaultKind.VISION_INCONSISTENT
    run(120, altimeter=0.0, vision=0.0)
    assert only(monitor).cleared_s is not None
    run(6, altimeter=30.0, vision=0.0)
    assert [v.kind for v in monitor.verdicts[1:]] == [FaultKind.UNDECIDED]
    assert "in doubt before" in monitor.verdicts[1].reason


# Parts --------------------------------------------------------------------------------------------


def test_online_cusum_is_the_batched_one_until_it_is_capped() -> None:
    z = torch.randn(1, 400, generator=torch.Generator().manual_seed(6), dtype=F64)
    witness = Witness("altimeter", ("m",), 1e9, 3, 20, 0.5, 1e-6)
    assert witness.z_limit > float(z.abs().max())
    level, onset = two_sided_cusum(z, torch.ones(1, 400, dtype=torch.bool), 0.5)
    for i, x in enumerate(z[0].tolist()):
        witness.observe(float(i), [x], [x], x * x)
        assert witness.worst.peak == pytest.approx(float(level[0, i]), abs=1e-12)
        if witness.worst.onset_s is not None:
            assert witness.worst.onset_s == int(onset[0, i])


def test_excursion_is_capped_so_that_it_can_fall() -> None:
    excursion = Excursion(threshold=10.0)
    for t in range(100):
        excursion.add(float(t), 3.0)
    assert excursion.level == 10.0
    assert excursion.crossed
    assert excursion.onset_s == 0.0
    for t in range(100, 104):
        excursion.add(float(t), -3.0)
    assert excursion.level == 0.0
    assert excursion.onset_s is None


def test_false_alarm_rate_scales_every_threshold() -> None:
    def thresholds(p: float) -> dict[str, float]:
        monitor = Monitor(SPEC, replace(CONFIG, false_alarm_probability=p))
        fix = innovate(0.0, [0.1] * 6, Sensor.VISION)
        monitor.step(0.0, expect(0.0, 1000.0), read(0.0, True), innovate(0.0, [0.1]), fix)
        return {s.name: s.threshold for s in monitor.history}

    often, seldom = thresholds(1e-2), thresholds(1e-5)
    assert len(often) == 5
    assert all(seldom[name] > often[name] for name in often)


def test_bad_configuration_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"monitor\.descent_s: 0\.0, expected > 0"):
        MonitorConfig(descent_s=0.0)
    with pytest.raises(ConfigError, match="detection probability"):
        Monitor(replace(SPEC, detection_probability=0.05), CONFIG)


def test_healthy_twin_flies_the_same_noise() -> None:
    """Faulty and healthy descents of one seed agree until the fault: the twin is a twin."""
    fault = Fault(altimeter_bias_m=lambda t_s: 60.0 if t_s > 61.0 else 0.0)
    ill, well = (fly(2, 24, f, start_s=60.0, end_s=62.0) for f in (fault, HEALTHY))
    for a, b in zip(ill.epochs, well.epochs, strict=True):
        same = torch.equal(a.altimeter.value, b.altimeter.value)
        assert same or a.t_s > 61.0 or not bool(a.altimeter.present.all())
