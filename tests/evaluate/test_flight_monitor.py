"""The monitor in the closed loop: what it says, what is done about it, and what is left alone.

Faults begin in copies of one healthy descent, shortly before its second fix.
"""

import copy
import math
from dataclasses import fields, replace

import pytest
import torch
from flights import DESCENT, flight, over
from torch import Tensor

from tnav.evaluate.flight import Flight, Monitoring
from tnav.evaluate.flight_faults import Injection
from tnav.evaluate.flight_log import FlightLog
from tnav.evaluate.flight_monitor import FlightMonitor, watch_setup
from tnav.monitor.thresholds import Rates
from tnav.monitor.watch import KINDS
from tnav.navigate.mechanisation import ATTITUDE, POSITION, VELOCITY
from tnav.navigate.state import FilterState
from tnav.records import FaultKind, Innovation, RangePrediction, Sensor
from tnav.simulate.faults import (
    BiasFault,
    CameraFault,
    DropoutFault,
    NoiseInflationFault,
    NotFusedFault,
    Onset,
    SpuriousEventFault,
    StepTerrainFault,
    StuckFault,
)
from tnav.simulate.instruments import CameraTiming
from tnav.simulate.lander import LanderState

F64 = torch.float64
BATCH = 2
OFTEN = CameraTiming(interval_s=2.0)
# Steps: a fix was heard at 2.5 s; the next two are exposed at 4 and 6 s, and heard at these.
SETTLED, FIX, SECOND = 32, 45, 65
SOON = Onset(at_s=3.45)


@pytest.fixture(scope="module")
def healthy() -> Flight:
    """From 2.9 km down, until navigation knows its height."""
    one = flight(batch=BATCH, keep=None, monitor=Monitoring.ACTS, timing=OFTEN)
    return on(over(one, 2900.0, 20.0), SETTLED, 1)


def with_fault(one: Flight, *faults, acts: bool = True) -> Flight:
    """A copy in which something is about to fail; map and ground's map are shared."""
    found = copy.deepcopy(one, {id(one.map): one.map})
    found.faults = Injection(faults, BATCH, 7, found.device)
    assert found.monitor is not None
    found.monitor.acts = acts
    return found


def monitor_of(one: Flight) -> FlightMonitor:
    assert one.monitor is not None
    return one.monitor


def kinds(one: Flight) -> list[FaultKind]:
    return [KINDS[code] for code in monitor_of(one).watch.kind.tolist()]


def both(kind: FaultKind) -> list[FaultKind]:
    return [kind] * BATCH


def on(one: Flight, last: int, first: int = SETTLED + 1) -> Flight:
    for k in range(first, last + 1):
        one._step(k)
    return one


def tensors(state: FilterState) -> dict[str, Tensor]:
    named = {f.name: getattr(state, f.name) for f in fields(FilterState)}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


class Listening:
    """A flight's log that keeps all innovations of navigation."""

    def __init__(self, log: FlightLog) -> None:
        self.log, self.heard = log, []

    def __getattr__(self, name: str):
        return getattr(self.log, name)

    def innovation(self, innovation: Innovation, lander: LanderState) -> None:
        self.heard.append(innovation)
        self.log.innovation(innovation, lander)


def given(log: Listening, step: int, sensor: Sensor = Sensor.ALTIMETER) -> list[bool]:
    """Whether navigation was given a reading of a sensor in a step."""
    found = [i for i in log.heard if i.sensor is sensor and round(i.t_s / 0.1) == step]
    assert len(found) == 1
    return found[0].present.tolist()


def same(a: FilterState, b: FilterState) -> bool:
    """But for rounding."""
    others = tensors(b)
    return all(
        torch.allclose(value, others[name], rtol=1e-9, atol=1e-9)
        for name, value in tensors(a).items()
    )


def height_error_m(one: Flight) -> Tensor:
    """Of the height over the ground."""
    truly_at_L = one.faults.looks_from_L(one.state.t_s, one.lander.position_L)
    return one.expected_agl_m()[0] - one.ground.agl_m(truly_at_L)


# What the monitor is told -------------------------------------------------------------------------


def test_the_monitor_knows_the_sensors_of_the_descent() -> None:
    setup = watch_setup(DESCENT)
    assert setup.blind_below_m == DESCENT.seeing.agl_min_m
    assert setup.tuning.range_noise_m == DESCENT.altimeter.noise_floor_m
    assert setup.witness_nis == pytest.approx(22.458, abs=1e-3)  # chi-square of 6, 1e-3
    strict = watch_setup(DESCENT, Rates(false_alarm_probability=1e-6)).thresholds
    for name in ("altimeter", "vision"):
        wide = getattr(setup.thresholds, name).shift.level
        assert getattr(strict, name).shift.level > wide


# Nothing fails ------------------------------------------------------------------------------------


def test_no_fault_raises_nothing(healthy: Flight) -> None:
    """Nine seconds; the false-alarm rate has campaigns of its own."""
    one = on(with_fault(healthy), 92)
    watch = monitor_of(one).watch
    assert kinds(one) == both(FaultKind.HEALTHY)
    assert bool(watch.alert_s.isnan().all())
    assert bool(watch.named_s.isnan().all())
    assert not bool(watch.doubted.any())
    assert not same(one.state, monitor_of(one).alone)  # ranges were heard
    # Bounded, and by no more than heights are flown with.
    alone_error_m = (monitor_of(one).alone.position_L - one.lander.position_L)[:, 2].abs()
    assert bool((alone_error_m < watch.protection_m).all())
    assert float(watch.protection_m.max()) < 50.0


def test_a_monitor_that_only_watches_changes_nothing() -> None:
    """It names the altimeter at 2.5 s, and the flight is that without a monitor, to the bit."""
    off = BiasFault(kind="bias", begins=Onset(at_s=1.45), bias_m=150.0)
    ends = []
    for monitor in (Monitoring.OFF, Monitoring.WATCHES):
        one = flight(batch=BATCH, keep=None, faults=(off,), monitor=monitor, timing=OFTEN)
        ends.append(on(over(one, 2000.0, 20.0), 28, 1))
    assert ends[0].monitor is None
    assert kinds(ends[1]) == both(FaultKind.ALTIMETER_INCONSISTENT)
    others = tensors(ends[1].state)
    assert all(torch.equal(value, others[name]) for name, value in tensors(ends[0].state).items())
    for name in ("position_L", "velocity_L", "R_L_B", "propellant_kg"):
        assert torch.equal(getattr(ends[0].lander, name), getattr(ends[1].lander, name))


# The altimeter fails ------------------------------------------------------------------------------


def test_a_bias_accuses_the_altimeter_with_the_next_fix(healthy: Flight) -> None:
    bias = BiasFault(kind="bias", begins=SOON, bias_m=80.0)
    one = on(with_fault(healthy, bias), FIX - 1)
    assert kinds(one) == both(FaultKind.UNDECIDED)
    assert not same(one.state, monitor_of(one).alone)
    watching = with_fault(one, bias, acts=False)
    watching.faults = copy.deepcopy(one.faults)
    one, watching = on(one, FIX, FIX), on(watching, FIX, FIX)
    for each in (one, watching):
        assert kinds(each) == both(FaultKind.ALTIMETER_INCONSISTENT)
    watch = monitor_of(one).watch
    assert float((watch.onset_s - 3.5).abs().max()) < 0.25  # the first range after 3.45 s
    assert bool((watch.alert_s < 4.0).all())
    assert watch.named_s.tolist() == pytest.approx([4.5] * BATCH)
    # Navigation goes on with the filter that never heard a range; a watcher does not.
    assert same(one.state, monitor_of(one).alone)
    assert not same(watching.state, monitor_of(watching).alone)
    on(one, FIX + 8, FIX + 1)
    assert same(one.state, monitor_of(one).alone)
    sigma_m = one.state.covariance[:, 2, 2].sqrt()
    error_m = (one.state.position_L - one.lander.position_L)[:, 2].abs()
    assert bool((error_m < 5 * sigma_m).all())
    assert float(sigma_m.max()) < 10.0


def test_a_stuck_altimeter_is_told_by_its_repetitions(healthy: Flight) -> None:
    """From 3.3 s on all readings are the last good one: nine repetitions are there by 4.2 s."""
    one = on(with_fault(healthy, StuckFault(kind="stuck", begins=Onset(at_s=3.25))), FIX - 1)
    assert kinds(one) == both(FaultKind.STUCK)  # no fix is needed
    assert float((monitor_of(one).watch.named_s - 4.2).abs().max()) < 0.11
    assert same(one.state, monitor_of(one).alone)


def test_a_noisy_altimeter_is_told_by_its_contradictions_and_left_where_vision_knows_better(
    healthy: Flight,
) -> None:
    """A hundred times the noise, from 3.5 s on: the fourth triple that bends is there by 5 s."""
    noise = NoiseInflationFault(kind="noise_inflation", begins=SOON, factor=100.0)
    one = with_fault(healthy, noise)
    one.descent = one.descent.model_copy(update={"with_vision": False})
    on(one, FIX + 7)
    monitor = monitor_of(one)
    assert kinds(one) == both(FaultKind.ALTIMETER_NOISE)
    assert bool((monitor.watch.named_s < 5.15).all())
    assert bool((monitor.blame.noise_scale > 5.0).all())
    assert bool(monitor.blame.altimeter.all())
    assert same(one.state, monitor.alone)


def test_a_noisy_altimeter_is_heard_as_such_where_nobody_knows_better() -> None:
    """Height known to 500 m, noise of a hundred times 2 m: ranges say more, and say how much."""
    one = over(flight(batch=BATCH, keep=None, monitor=Monitoring.ACTS), 2000.0, 20.0)
    noise = NoiseInflationFault(kind="noise_inflation", begins=Onset(at_s=0.0), factor=100.0)
    one.descent = one.descent.model_copy(update={"with_vision": False})
    one = with_fault(one, noise)
    covariance = one.state.covariance.clone()
    covariance[:, 2, 2] = 500.0**2
    one.state = monitor_of(one).alone = replace(one.state, covariance=covariance)
    on(one, 60, 1)
    assert kinds(one) == both(FaultKind.ALTIMETER_NOISE)
    assert not bool(monitor_of(one).blame.altimeter.any())
    sigma_m = one.state.covariance[:, 2, 2].sqrt()
    assert bool((sigma_m < 100.0).all())
    assert bool((monitor_of(one).alone.covariance[:, 2, 2].sqrt() > 490.0).all())
    assert bool((height_error_m(one).abs() < 4 * sigma_m).all())
    # Once it is known better than so noisy a sensor reads it, it is left.
    known = covariance.clone()
    known[:, 2, 2] = 1.0
    monitor_of(one).alone = replace(monitor_of(one).alone, covariance=known)
    on(one, 62, 61)
    assert bool(monitor_of(one).blame.altimeter.all())
    assert same(one.state, monitor_of(one).alone)


def test_a_dropout_is_one_from_the_fourth_miss_to_the_eighth_range(healthy: Flight) -> None:
    """Log-likelihood ratios: 17.0 within four misses of 4.50; back at zero by eight of 2.29.

    The alert is of the fourth miss; the name waits for the fix, or for a range that comes back.
    """
    lost = DropoutFault(kind="dropout", begins=SOON, lasts_s=1.0)
    one, told = with_fault(healthy, lost), {}
    one.log = log = Listening(one.log)
    for k in range(SETTLED + 1, 58):
        one._step(k)
        assert kinds(one)[0] is kinds(one)[1]
        told[k] = kinds(one)[0]
    there = {k: all(given(log, k)) for k in told}
    missed = next(k for k, present in there.items() if not present)
    back = next(k for k in range(missed, 58) if there[k])
    assert (missed, back) in {(35, 45), (36, 46), (35, 46), (36, 45)}  # to a step of its clock
    dropped = [k for k, kind in told.items() if kind is FaultKind.DROPOUT]
    named = min(FIX, back)
    assert dropped == list(range(named, back + 7))
    doubted = [k for k, kind in told.items() if kind is FaultKind.UNDECIDED]
    assert doubted == list(range(missed + 3, named))
    assert set(told.values()) == {FaultKind.HEALTHY, FaultKind.UNDECIDED, FaultKind.DROPOUT}
    watch = monitor_of(one).watch
    assert [KINDS[i] for i in watch.first_kind.tolist()] == both(FaultKind.DROPOUT)
    assert watch.onset_s.tolist() == pytest.approx([0.1 * missed] * BATCH)
    assert watch.alert_s.tolist() == pytest.approx([0.1 * doubted[0]] * BATCH)
    assert not same(one.state, monitor_of(one).alone)  # ranges are heard again


def test_ranges_that_nobody_takes_are_given_again(healthy: Flight) -> None:
    kept_back = NotFusedFault(kind="not_fused", begins=SOON)
    for acts in (True, False):
        one = with_fault(healthy, kept_back, acts=acts)
        one.log = log = Listening(one.log)
        on(one, FIX + 2)
        assert kinds(one) == both(FaultKind.NOT_FUSED)
        named = round(float(monitor_of(one).watch.named_s[0]) / 0.1)
        assert named in (FIX - 1, FIX)  # ten in a row, from 3.5 or 3.6 s on
        assert not any(given(log, named))
        assert given(log, named + 1) == [acts] * BATCH


# The ground is not that of the map ----------------------------------------------------------------


def test_a_rim_that_the_map_lacks_never_accuses_the_altimeter(healthy: Flight) -> None:
    """Hakuto-R M1: 500 m from under 3 km."""
    rim = StepTerrainFault(kind="step_terrain", begins=SOON, size_m=500.0, crossed_in_s=0.1)
    flown = {}
    for acts in (True, False):
        one, told = with_fault(healthy, rim, acts=acts), []
        for k in range(SETTLED + 1, FIX + 9):
            one._step(k)
            told += kinds(one)
            assert not bool(monitor_of(one).blame.altimeter.any())
        assert set(told) == {FaultKind.HEALTHY, FaultKind.UNDECIDED, FaultKind.TERRAIN}
        assert kinds(one) == both(FaultKind.TERRAIN)
        assert monitor_of(one).watch.named_s.tolist() == pytest.approx([4.5] * BATCH)
        assert monitor_of(one).watch.size_m.tolist() == pytest.approx([500.0] * BATCH, abs=50.0)
        flown[acts] = one
    # Who acts has opened the height, and the next ranges set it; who watches believes the old one.
    assert float(height_error_m(flown[True]).abs().max()) < 15.0
    assert float(height_error_m(flown[False]).abs().min()) > 300.0


# Others -------------------------------------------------------------------------------------------


def test_who_is_in_doubt_is_heard_no_more(healthy: Flight) -> None:
    """The first descent's camera is named: its next fix is kept from navigation alone."""
    one = with_fault(healthy)
    monitor = monitor_of(one)
    named = torch.tensor([KINDS.index(FaultKind.VISION_INCONSISTENT), 0])
    monitor.watch = replace(monitor.watch, kind=named)
    one.log = log = Listening(one.log)
    on(one, FIX)
    assert given(log, FIX, Sensor.VISION) == [False, True]
    assert bool((monitor.watch.fix_s == 4.0).all())  # the monitor hears it all the same
    assert given(log, FIX) == [True, True]


@pytest.mark.parametrize("acts", [True, False])
def test_a_contact_in_the_air_is_refused_by_who_acts(acts: bool) -> None:
    """At 36 m the switch is armed, and the engines would be off for good."""
    pulse = SpuriousEventFault(kind="spurious_event", begins=Onset(at_s=1.0), lasts_s=0.5)
    monitor = Monitoring.ACTS if acts else Monitoring.WATCHES
    one = over(flight(batch=1, keep=None, faults=(pulse,), monitor=monitor), 36.0)
    on(one, 14, 1)
    assert kinds(one) == [FaultKind.SPURIOUS_EVENT]
    assert monitor_of(one).watch.alert_s.tolist() == pytest.approx([1.0], abs=0.11)
    assert bool(one.cut_off_agl_m.isnan()[0]) is acts


def test_the_horizontal_protection_level_in_closed_form(healthy: Flight) -> None:
    """Both filters know the place to 1 and 2 m each way; altimetry is the fault that is bounded."""
    monitor = copy.copy(monitor_of(healthy))
    full, alone = (
        healthy.state.covariance.clone(), healthy.state.covariance.clone()
    )  # fmt: skip
    for axis in (0, 1):
        full[:, axis, axis], alone[:, axis, axis] = 1.0, 4.0
    monitor.alone = replace(healthy.state, covariance=alone)
    found_m = monitor.protection_across_m(replace(healthy.state, covariance=full))
    k = monitor.setup.multipliers
    level_m = max(k.fault_free[0], k.false_alarm[0] * 3**0.5 + max(k.missed[0][0], 0.0) * 2.0)
    assert found_m.tolist() == pytest.approx([2**0.5 * level_m] * BATCH)
    # Apart by just under, and by just over, what chance has it to: nothing is bounded then.
    for share, bounded in ((0.999, True), (1.001, False)):
        aside_L = torch.zeros(BATCH, 3, dtype=F64)
        aside_L[:, 0] = share * k.false_alarm[0] * 3**0.5
        monitor.alone = replace(
            healthy.state, position_L=healthy.state.position_L + aside_L, covariance=alone
        )
        level = monitor.protection_across_m(replace(healthy.state, covariance=full))
        assert bool(level.isfinite().all()) is bounded


def test_a_noisy_altimeter_is_left_where_its_noise_is_not_known_or_it_repeats_itself() -> None:
    """The height is known to 500 m: what reads to 60 m is of use, but for those two reasons."""
    one = flight(batch=3, keep=None, monitor=Monitoring.ACTS)
    monitor, row = monitor_of(one), torch.full((3,), 500.0, dtype=F64)
    monitor._expected = RangePrediction(0.0, 4 * row, row, 0 * row, row > 0)
    watch = monitor.watch
    watch = replace(
        watch,
        kind=torch.full((3,), KINDS.index(FaultKind.ALTIMETER_NOISE)),
        unsteady=replace(watch.unsteady, noise_scale=torch.tensor([30.0, 1.0, 30.0], dtype=F64)),
        stuck=replace(watch.stuck, alarm=torch.tensor([False, False, True])),
    )
    monitor.watch = watch
    assert monitor._blame().altimeter.tolist() == [False, True, True]


def test_contact_counts_where_the_ground_may_be_near(healthy: Flight) -> None:
    """Three metres and six sigma: 4.2 m at 0.2 m."""
    one = with_fault(healthy)
    for agl_m, near in ((4.19, True), (4.21, False)):
        monitor = copy.copy(monitor_of(one))
        contact = torch.tensor([True, False])
        heights_m, sigma_m = torch.full((2,), agl_m, dtype=F64), torch.full((2,), 0.2, dtype=F64)
        assert monitor.contact(contact, heights_m, sigma_m).tolist() == [near, False]
        assert monitor.watch.spurious.tolist() == [not near, False]
        # What was spurious once stays so.
        assert monitor.contact(~contact, 0 * heights_m, sigma_m).tolist() == [False, True]
        assert monitor.watch.spurious.tolist() == [not near, False]


def test_what_is_done_is_done_once_and_to_whom_it_concerns() -> None:
    """Altimeter: the other filter. Ground and vision: height opened. The rest: nothing."""
    named = (FaultKind.TERRAIN, FaultKind.STUCK, FaultKind.VISION_INCONSISTENT, FaultKind.INERTIAL)
    one = flight(batch=4, keep=None, monitor=Monitoring.ACTS)
    monitor = monitor_of(one)
    own = replace(one.state, position_L=one.state.position_L + 5.0)
    kind = torch.tensor([KINDS.index(each) for each in named])
    size_m = torch.tensor([-500.0, 100.0, 40.0, 7.0], dtype=F64)
    monitor.watch = replace(
        monitor.watch, kind=kind, named_s=0.0 * size_m, size_m=size_m, range_up_m=size_m
    )
    monitor.acts = False
    assert monitor.act(own) is own
    monitor.acts = True
    before, after = monitor.alone, monitor.act(own)
    moved = (after.position_L - before.position_L)[:, 0].tolist()
    assert moved == pytest.approx([5.0, 0.0, 5.0, 5.0])
    up = POSITION.start + 2
    up = POSITION.start + 2
    opened = torch.tensor([True, False, True, False])
    for state, old in ((after, own), (monitor.alone, before)):
        added = state.covariance - old.covariance
        assert bool((added[opened, up, up] >= size_m[opened].square()).all())
        assert bool((added[~opened] == 0).all())
        assert torch.equal(added, added.mT)
        assert float(torch.linalg.eigvalsh(added).min()) > -1e-6
    assert same(monitor.act(after), after)


def test_a_camera_beside_the_truth_is_vision_not_the_altimeter(healthy: Flight) -> None:
    beside = CameraFault(
        kind="camera_fault", begins=SOON, lost_share=0.0, bias_m=150.0, toward="vertical"
    )
    one = with_fault(healthy, beside)
    for k in range(SETTLED + 1, SECOND + 1):
        one._step(k)
        assert not bool(monitor_of(one).blame.altimeter.any())
    assert kinds(one) == both(FaultKind.VISION_INCONSISTENT)
    assert float(height_error_m(one).abs().max()) < 15.0


def test_on_the_accelerator_as_on_the_host(simgpu: str) -> None:
    """Ranges with a fault: same verdicts, same state."""
    off = BiasFault(kind="bias", begins=Onset(at_s=0.15), bias_m=2000.0)
    ends = []
    for device in ("cpu", simgpu):
        one = flight(batch=2, keep=None, device=device, faults=(off,), monitor=Monitoring.ACTS)
        one.near = True
        ends.append(on(one, 5, 1))
    host, there = ends
    assert torch.equal(host.monitor.watch.kind, there.monitor.watch.kind.cpu())
    for name, value in tensors(host.state).items():
        torch.testing.assert_close(
            value, tensors(there.state)[name].cpu(), rtol=0, atol=1e-9, equal_nan=True
        )
    assert bool(host.state.covariance.isfinite().all())


def test_silence_of_the_inertial_unit_opens_speed_and_attitude_by_its_length() -> None:
    """One error that grows with the steps, not one more for every step: (4 m/s^2 n dt)^2."""
    one = over(flight(batch=2, keep=None, monitor=Monitoring.ACTS), 3000.0)
    assert one.monitor is not None
    state, seen = one.state, []
    for steps in (30.0, 30.0, 40.0):
        silent = replace(
            one.monitor.watch.inertial,
            alarm=torch.tensor([True, False]),
            statistic=torch.tensor([steps, steps], dtype=torch.float64),
        )
        one.monitor.watch = replace(one.monitor.watch, inertial=silent)
        state = one.monitor.act(state)
        added = (state.covariance - one.state.covariance).diagonal(dim1=1, dim2=2)
        seen.append((float(added[0, VELOCITY].mean()), float(added[0, ATTITUDE].mean())))
        assert not bool(added[1].any())
    speeds = [(4.0 * n * 0.1) ** 2 for n in (30, 30, 40)]
    angles = [(0.5 * n * 0.1) ** 2 for n in (30, 30, 40)]
    assert [s for s, _ in seen] == pytest.approx(speeds)
    assert [a for _, a in seen] == pytest.approx(angles)


def test_a_turn_that_was_not_read_opens_attitude_speed_and_place_once() -> None:
    one = over(flight(batch=2, keep=None, monitor=Monitoring.ACTS), 3000.0)
    assert one.monitor is not None
    doubt = replace(
        one.monitor.watch.star_shift,
        alarm=torch.tensor([True, False]),
        onset_s=torch.tensor([1.0, math.nan], dtype=torch.float64),
    )
    one.monitor.watch = replace(one.monitor.watch, star_shift=doubt)
    once = one.monitor.act(one.state)
    added = (once.covariance - one.state.covariance).diagonal(dim1=1, dim2=2)
    for part, variance in ((ATTITUDE, 1.0), (VELOCITY, 100.0), (POSITION, 900.0)):
        assert added[0, part].tolist() == pytest.approx([variance] * 3)
    assert not bool(added[1].any())
    again = one.monitor.act(once)
    assert torch.equal(again.covariance, once.covariance)


def test_nothing_is_said_on_the_ground() -> None:
    """Frozen in its dust, a lander's sensors contradict a filter that still flies."""
    down = over(flight(batch=2, keep=None, monitor=Monitoring.WATCHES), 1.0, 1.5)
    for k in range(1, 301):
        down._step(k)
    assert bool(down.lander.landed.all())
    assert down.monitor is not None
    assert not bool(down.monitor.watch.alert_s.isfinite().any())
