"""Replays: three flights of the same draws, what they say at the alert, and the judgement."""

import math
from dataclasses import replace

import pytest
import simulated_device
import torch
from flights import flight, over, plain

from tnav.evaluate.descent_plan import scenario_of
from tnav.evaluate.events import Event, load_event
from tnav.evaluate.events_fly import (
    Alerts,
    Ending,
    EventResult,
    Flown,
    Heard,
    How,
    Shared,
    _how,
    run_event,
)
from tnav.evaluate.events_score import cells, is_right, judge
from tnav.evaluate.flight import Monitoring
from tnav.evaluate.flight_runs import Site
from tnav.monitor.watch import KINDS
from tnav.records import FaultKind
from tnav.simulate.faults import Onset, SpuriousEventFault

CPU = torch.device("cpu")
SAID = {
    "name": "one",
    "title": "One",
    "date": "2000-01-01",
    "what": "It happened.",
    "expected": ["dropout"],
    "changes": {"duration_max_s": 1.0},
    "as_flown": {"with_vision": False},
    "faults": [{"kind": "thrust_bias", "begins": {"at_s": 0.5}, "bias": 0.03}],
}
SOFT = Ending(How.SOFT, 1.5, 1.5, 4.0, 30.0)
CRASHED = Ending(How.CRASHED, 40.0, 40.0, 400.0, 20.0)
SILENT = Heard((), FaultKind.HEALTHY, *([None] * 8))
NAMED = Heard(
    (FaultKind.DROPOUT,), FaultKind.DROPOUT, 500.0, 500.5, 502.0, 502.5, 900.0, 44.0, 376.8, 8.6
)


def event(**changes) -> Event:
    return Event.model_validate({**SAID, **changes})


def result(of: Event, heard=NAMED, ending=SOFT, twin=SILENT) -> EventResult:
    flown = Flown((ending,) * 2, (heard,) * 2)
    return EventResult(of, 0, "cpu", None, flown, Flown((SOFT,) * 2, (twin,) * 2))


def grounded() -> Shared:
    """A ground that needs no DEM."""
    scenario = scenario_of(event().flown_with_tnav())
    return Shared(sites={"resilience": Site(scenario, plain())})


def test_the_three_flights_and_what_they_share() -> None:
    shared, told = grounded(), []
    one = run_event(event(), CPU, 2, 5, lambda text, share: told.append((text, share)), shared)
    assert one.as_flown is not None
    assert one.as_flown.heard == ()  # nobody watched
    assert len(one.with_tnav.endings) == len(one.with_tnav.heard) == len(one.twin.heard) == 2
    assert all(heard.begun_s == pytest.approx(0.5) for heard in one.with_tnav.heard)
    assert all(heard.begun_s is None for heard in one.twin.heard)
    assert all(ending.how is How.AIR for ending in one.twin.endings)
    assert one.seed == 5
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] <= 1
    # The same descent without a fault is flown once ...
    other = run_event(event(name="other"), CPU, 2, 5, shared=shared)
    assert other.twin is one.twin
    # ... but not from other seeds, and not with other changes.
    for changed in (
        event(as_flown=None, seed=1),
        event(as_flown=None, changes={"duration_max_s": 1.1}),
    ):
        assert run_event(changed, CPU, 2, 5, shared=shared).twin is not one.twin


def test_a_nominal_event_is_one_flight() -> None:
    nominal = event(faults=[], as_flown=None, expected=["healthy"])
    one = run_event(nominal, CPU, 1, shared=grounded())
    assert one.as_flown is None
    assert one.twin is one.with_tnav
    assert cells(one)["twin"] == "same"


def test_the_same_seed_is_the_same_replay() -> None:
    """What is left of the propellant tells engines, and with them draws, apart."""
    nominal = event(faults=[], as_flown=None, changes={"duration_max_s": 10.6})
    first, again, other = (
        run_event(nominal, CPU, 1, seed, shared=grounded()).with_tnav for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def _alerted(device: str = "cpu") -> Alerts:
    """Falling at 20 m/s at 500 m, as the touchdown switch says that it stands on the ground."""
    fault = SpuriousEventFault(kind="spurious_event", begins=Onset(at_s=0.4), lasts_s=0.5)
    one = flight(2, keep=None, device=device, faults=(fault,), monitor=Monitoring.ACTS)
    one = over(one, 500.0, 20.0)
    if device == simulated_device.DEVICE:
        # `over` places on the host.
        one.lander = replace(
            one.lander,
            **{
                name: getattr(one.lander, name).to(device)
                for name in ("position_L", "velocity_L", "R_L_B")
            },
        )
    alerts = Alerts(one)
    one.after_step = alerts.look
    return alerts


def test_at_the_alert_height_speed_and_what_is_left_are_the_true_ones() -> None:
    alerts = _alerted()
    one = alerts.flight
    seen = []
    for k in range(1, 12):
        one._step(k)
        seen.append((one.lander.t_s, one.ground.agl_m(one.lander.position_L), one.lander))
    for lane, heard in enumerate(alerts.heard()):
        assert heard.kind is FaultKind.SPURIOUS_EVENT
        assert heard.begun_s == pytest.approx(0.4)
        assert heard.delay_s == pytest.approx(0.0, abs=0.11)
        then = next(each for each in seen if each[0] >= heard.alert_s - 1e-9)
        assert heard.agl_m == pytest.approx(float(then[1][lane]), abs=0.5)
        assert heard.agl_m < 500.0
        rate_m_s = -float(then[2].velocity_L[lane, 2])
        assert heard.descent_rate_m_s == pytest.approx(rate_m_s, abs=0.01)
        left_m = heard.agl_m - rate_m_s**2 / (2 * 1.85)
        assert heard.margin_m == pytest.approx(left_m, abs=0.5)
        assert heard.margin_s == pytest.approx(left_m / rate_m_s, abs=0.1)


def test_without_an_alert_there_is_nothing_to_tell_and_the_flight_is_the_same() -> None:
    looked_on, alone = (over(flight(2, None, monitor=Monitoring.ACTS), 500.0) for _ in range(2))
    alerts = Alerts(looked_on)
    looked_on.after_step = alerts.look
    for k in range(1, 6):
        looked_on._step(k)
        alone._step(k)
    assert torch.equal(looked_on.state.position_L, alone.state.position_L)
    assert alerts.heard() == (SILENT,) * 2


def test_what_is_said_of_a_lander_on_the_ground_counts_for_nothing() -> None:
    one = over(flight(3, None, monitor=Monitoring.ACTS), 500.0)
    alerts = Alerts(one)
    stuck = KINDS.index(FaultKind.STUCK)
    said = torch.full((3,), 5.0, dtype=torch.float64)
    kinds = torch.full((3,), stuck)
    for down, alert_s, named_s in (
        ([False, False, True], [5.0, math.nan, 5.0], [math.nan] * 3),
        ([False, True, True], [5.0, 6.0, 5.0], [6.0] * 3),
    ):
        one.lander = replace(one.lander, landed=torch.tensor(down))
        one.monitor.watch = replace(
            one.monitor.watch,
            alert_s=said.new_tensor(alert_s),
            named_s=said.new_tensor(named_s),
            kind=kinds,
        )
        alerts.look()
    heard = alerts.heard()
    assert (heard[0].kind, heard[0].alert_s, heard[0].named_s) == (FaultKind.STUCK, 5.0, 6.0)
    assert heard[1].kind is FaultKind.HEALTHY
    assert heard[1].alert_s is heard[1].named_s is heard[1].margin_m is None
    assert heard[2] == SILENT


def test_looking_on_waits_for_no_device() -> None:
    simulated_device.install()
    here, there = _alerted(), _alerted(simulated_device.DEVICE)
    for alerts in (here, there):
        watch = alerts.flight.monitor.watch
        alerted_s = torch.tensor([math.nan, 3.0], dtype=torch.float64).to(watch.alert_s.device)
        alerts.flight.monitor.watch = replace(watch, alert_s=alerted_s)
    here.look()
    with simulated_device.count_syncs() as waits:
        there.look()
    assert not waits
    for name in ("raised", "agl_m", "rate_m_s", "looks_from_L"):
        torch.testing.assert_close(
            getattr(here, name), getattr(there, name).cpu(), equal_nan=True, rtol=0, atol=1e-9
        )


@pytest.mark.parametrize(
    ("speed_m_s", "soft", "landed", "propellant_kg", "how"),
    [
        (1.5, True, True, 30.0, How.SOFT),
        (2.999, False, True, 30.0, How.HARD),
        (3.0, False, True, 30.0, How.CRASHED),
        (3.0, False, True, 0.0, How.DRY),
        (2.0, False, True, 0.0, How.HARD),
        (None, False, False, 0.0, How.AIR),
    ],
)
def test_endings(speed_m_s, soft, landed, propellant_kg, how) -> None:
    assert _how(speed_m_s, soft, landed, propellant_kg) is how
    assert Ending(how, speed_m_s, None, None, propellant_kg).saved is (how in (How.SOFT, How.HARD))


@pytest.mark.parametrize(
    ("heard", "right"),
    [
        (NAMED, True),
        (replace(NAMED, last=FaultKind.HEALTHY), True),  # it may clear
        (replace(NAMED, kinds=(FaultKind.STUCK,)), False),
        (replace(NAMED, kinds=()), False),
        (SILENT, False),
        (replace(NAMED, alert_s=500.0), True),  # with the fault
        (replace(NAMED, alert_s=499.9), False),  # before it
        (replace(NAMED, begun_s=None), True),
    ],
)
def test_right_is_the_expected_verdict_and_no_sooner_than_the_fault(heard, right) -> None:
    assert is_right(event(), heard) is right


def test_what_else_fails_may_be_said_first_but_does_not_stand_for_what_is_expected() -> None:
    both = event(expected=["dropout", "undecided"], besides=["vision_absent"])
    blind, lost = FaultKind.VISION_ABSENT, FaultKind.DROPOUT
    assert is_right(both, replace(NAMED, kinds=(blind, lost)))
    assert not is_right(event(), replace(NAMED, kinds=(blind, lost)))
    assert is_right(both, replace(NAMED, kinds=(blind,)))  # of the altimeter: undecided
    assert not is_right(event(besides=["vision_absent"]), replace(NAMED, kinds=(blind,)))
    assert not is_right(both, replace(NAMED, kinds=(blind, FaultKind.STUCK, lost)))
    assert not is_right(both, SILENT)
    row = cells(result(both, replace(NAMED, kinds=(blind, lost))))
    assert row["verdicts"] == "2 vision_absent, then dropout"
    with pytest.raises(ValueError, match="among expected and besides"):
        event(besides=["dropout"])


def test_verdicts_are_told_in_their_order() -> None:
    one = over(flight(1, None, monitor=Monitoring.ACTS), 500.0)
    alerts = Alerts(one)
    said = (FaultKind.UNDECIDED, FaultKind.VISION_ABSENT, FaultKind.DROPOUT, FaultKind.DROPOUT)
    for k, kind in enumerate(said):
        one.state = replace(one.state, t_s=float(k))
        one.monitor.watch = replace(
            one.monitor.watch,
            alert_s=torch.zeros(1, dtype=torch.float64),
            kind=torch.tensor([KINDS.index(kind)]),
        )
        alerts.look()
    assert alerts.heard()[0].kinds == (FaultKind.VISION_ABSENT, FaultKind.DROPOUT)
    assert alerts.heard()[0].kind is FaultKind.VISION_ABSENT


def test_right_is_to_clear_where_it_must_and_to_be_silent_where_nothing_is_wrong() -> None:
    clears = event(clears=True)
    assert not is_right(clears, NAMED)
    assert is_right(clears, replace(NAMED, last=FaultKind.HEALTHY))
    nominal = event(expected=["healthy"])
    assert is_right(nominal, SILENT)
    assert not is_right(nominal, replace(NAMED, kinds=()))


@pytest.mark.parametrize(
    ("changes", "flown", "passed"),
    [
        ({}, {}, True),
        ({}, {"heard": SILENT}, False),
        ({}, {"twin": NAMED}, False),
        ({}, {"ending": CRASHED}, False),
        ({"saved": False}, {"ending": CRASHED}, True),
        ({}, {"ending": replace(SOFT, how=How.AIR, speed_m_s=None)}, False),
    ],
)
def test_an_event_passes_by_verdict_silent_twin_and_touchdown(changes, flown, passed) -> None:
    one = result(event(**changes), **flown)
    assert judge(one).passed is passed
    assert cells(one)["passed"] == ("yes" if passed else "NO")


def test_one_wrong_descent_of_many_is_too_many() -> None:
    one = result(event())
    mixed = replace(one.with_tnav, heard=(NAMED, SILENT))
    assert judge(replace(one, with_tnav=mixed)).right == 1
    assert not judge(replace(one, with_tnav=mixed)).passed


def test_the_row_of_the_table() -> None:
    row = cells(result(event()))
    assert row["verdicts"] == "2 dropout"
    assert row["alert after"] == "2.0 s"
    assert row["least margin"] == "377 m, 8.6 s"
    assert row["with tnav"] == "2 landed; to 1.5 m/s"
    assert row["twin"] == "2 landed; to 1.5 m/s; no alarm"


@pytest.mark.slow
def test_a_whole_event() -> None:
    """RESILIENCE over its own site: late acquisition before the point of no return, and landed."""
    one = run_event(load_event("hakuto_r_m2"), CPU, 2, 0)
    assert judge(one).passed
    assert all(heard.margin_m > 0 for heard in one.with_tnav.heard)
