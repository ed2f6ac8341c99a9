"""Who is accused: every row of the table, both sides of its thresholds."""

import math
from dataclasses import replace

import pytest
from watches import (
    NOW_S,
    ON_FIXES,
    ON_RANGES,
    joined,
    kind_of,
    row,
    said,
    verdict,
)

from tnav.monitor.absence_checks import Outage
from tnav.monitor.verdicts import decide, evidence_of
from tnav.monitor.watch import KINDS
from tnav.records import FaultKind

# The table ----------------------------------------------------------------------------------------


def test_nothing_is_said_of_a_descent_without_evidence() -> None:
    watch = decide(said(), NOW_S)
    assert kind_of(watch) is FaultKind.HEALTHY
    for time_s in (watch.alert_s, watch.onset_s, watch.named_s):
        assert bool(time_s.isnan())


@pytest.mark.parametrize("name", ON_RANGES)
def test_altimeter_is_accused_once_vision_has_spoken_since(name: str) -> None:
    noise = name == "range_scatter"
    accused = FaultKind.ALTIMETER_NOISE if noise else FaultKind.ALTIMETER_INCONSISTENT
    assert verdict(**{name: 11.0}) is accused  # an exposure at the onset is one since
    assert verdict(**{name: 11.01}) is FaultKind.UNDECIDED
    assert verdict(**{name: 10.0}, fix_agrees=False) is FaultKind.UNDECIDED


def test_a_fix_counts_as_one_since_when_it_follows_the_doubt() -> None:
    """Not the onset, which an excursion by chance may put before an image of ground as it was."""
    first = decide(said(range_shift=9.0, ranges_s=math.nan), 11.5)
    assert kind_of(first) is FaultKind.UNDECIDED
    assert float(first.ranges_s) == 11.5
    again = decide(replace(first, change=said(jump=12.0).change), 12.5)
    assert float(again.ranges_s) == 11.5  # doubted all the while
    assert kind_of(again) is FaultKind.UNDECIDED
    for fix_s, kind in (
        (11.64, FaultKind.UNDECIDED),  # 0.15 s later ground would have fallen far enough
        (11.66, FaultKind.ALTIMETER_INCONSISTENT),
    ):
        assert kind_of(decide(replace(again, fix_s=row(fix_s)), 13.0)) is kind
    found = evidence_of(joined([said(jump=11.1, ramp=5.0, fix_count=12.0), said(apart=5.0)]))
    assert found.onset_s.tolist() == [5.0, 5.0]
    assert bool(evidence_of(said()).onset_s.isnan())


def test_scatter_is_noise_only_without_an_offset() -> None:
    assert verdict(range_scatter=10.0, range_count=10.0) is FaultKind.ALTIMETER_NOISE
    for offset in ("jump", "ramp", "range_shift"):
        assert verdict(range_scatter=10.0, **{offset: 10.0}) is FaultKind.ALTIMETER_INCONSISTENT


@pytest.mark.parametrize("name", ON_FIXES)
def test_vision_is_accused_where_ranges_of_now_are_as_expected(name: str) -> None:
    off = {name: 15.0, "fix_agrees": False, "fix_up_m": -50.0}
    assert verdict(**off, range_s=19.0) is FaultKind.VISION_INCONSISTENT
    assert verdict(**off, range_s=18.99) is FaultKind.UNDECIDED
    assert verdict(**off, range_s=-math.inf) is FaultKind.UNDECIDED
    assert verdict(**off, range_up_m=15.99) is FaultKind.VISION_INCONSISTENT  # 4 sigma of 4 m
    assert verdict(**off, range_up_m=16.01) is FaultKind.UNDECIDED
    assert verdict(**off, apart=15.0) is FaultKind.UNDECIDED
    assert verdict(**{name: 15.0}) is FaultKind.UNDECIDED  # the last fix was well again
    # Navigation that followed a wrong fix disagrees with its ranges: they are well all the same.
    assert verdict(**off, range_count=15.0) is FaultKind.VISION_INCONSISTENT


BOTH = {"jump": 10.0, "fix_agrees": False}


@pytest.mark.parametrize(("range_up_m", "alike"), [(124.9, 1), (125.1, 0), (75.1, 1), (74.9, 0)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_ground_differs_where_both_are_displaced_alike(
    range_up_m: float, alike: int, sign: float
) -> None:
    """Within ``4 hypot(3, 4) + 0.05 x 100`` of each other, up or down."""
    found = verdict(**BOTH, fix_up_m=sign * 100.0, range_up_m=sign * range_up_m)
    assert found is (FaultKind.TERRAIN if alike else FaultKind.UNDECIDED)
    opposite = verdict(**BOTH, fix_up_m=sign * 100.0, range_up_m=-sign * range_up_m)
    assert opposite is FaultKind.UNDECIDED


@pytest.mark.parametrize(("fix_up_m", "seen"), [(8.99, False), (9.01, True), (-9.01, False)])
def test_ground_differs_only_where_the_fix_saw_it(fix_up_m: float, seen: bool) -> None:
    """Three sigma of 3 m, and to the side that the ranges are off to."""
    found = verdict(**BOTH, fix_up_m=fix_up_m, range_up_m=17.0)
    assert found is (FaultKind.TERRAIN if seen else FaultKind.UNDECIDED)


def test_ground_differs_only_where_ranges_of_now_are_off() -> None:
    fix = {"fix_up_m": 17.0}
    assert verdict(**BOTH, **fix, range_up_m=16.01) is FaultKind.TERRAIN  # 4 sigma of 4 m
    assert verdict(**BOTH, **fix, range_up_m=15.99) is FaultKind.UNDECIDED
    assert verdict(**BOTH, **fix, range_up_m=16.01, range_s=19.0) is FaultKind.TERRAIN
    assert verdict(**BOTH, **fix, range_up_m=16.01, range_s=18.99) is FaultKind.UNDECIDED
    agrees = verdict(jump=10.0, fix_up_m=17.0, range_up_m=17.0)
    assert agrees is FaultKind.ALTIMETER_INCONSISTENT


def test_sideways_it_is_the_inertial_unit() -> None:
    alike = {**BOTH, "fix_up_m": 100.0, "range_up_m": 100.0}
    assert verdict(**alike, fix_across_sigma=4.99) is FaultKind.TERRAIN
    assert verdict(**alike, fix_across_sigma=5.01) is FaultKind.INERTIAL
    unlike = verdict(**BOTH, fix_up_m=100.0, range_up_m=-100.0, fix_across_sigma=5.01)
    assert unlike is FaultKind.UNDECIDED
    assert verdict(jump=10.0, fix_across_sigma=5.01) is FaultKind.ALTIMETER_INCONSISTENT


def test_silence_is_undecided_for_as_long_as_it_lasts() -> None:
    """A rim that is crossed with vision lost must not accuse the altimeter."""
    for last in ({}, {"fix_s": -math.inf}, {"fix_agrees": False}):
        watch = said(jump=15.0, **last)
        for t_s in (15.5, 23.5, 40.0):
            watch = decide(replace(watch, range_s=row(t_s)), t_s)
            assert kind_of(watch) is FaultKind.UNDECIDED
    assert verdict(jump=15.0, fix_s=14.99) is FaultKind.UNDECIDED
    assert verdict(jump=15.0, fix_s=15.0) is FaultKind.ALTIMETER_INCONSISTENT


def test_low_down_the_last_fix_is_the_witness_at_once() -> None:
    assert verdict(jump=15.0, blind=True) is FaultKind.ALTIMETER_INCONSISTENT
    assert verdict(jump=15.0, blind=True, fix_s=-math.inf) is FaultKind.UNDECIDED
    assert verdict(jump=15.0, blind=True, fix_agrees=False) is FaultKind.UNDECIDED


def test_vision_once_in_doubt_accuses_the_altimeter_no_more() -> None:
    """The filter without altimeter may have followed it: ranges say whether it should have."""
    for name in ON_RANGES:
        after = {name: 10.0, "doubted": True, "followed": True, "blind": True}
        assert verdict(**after, range_up_m=15.99) is FaultKind.TERRAIN
        assert verdict(**after, range_up_m=16.01) is FaultKind.VISION_INCONSISTENT
        assert verdict(**after, range_s=18.99) is FaultKind.UNDECIDED
    assert verdict(apart=10.0, doubted=True, followed=True, blind=True) is FaultKind.UNDECIDED
    assert verdict(jump=10.0, doubted=True, blind=True) is FaultKind.UNDECIDED
    assert verdict(doubted=True) is FaultKind.HEALTHY  # a doubt that passed, and nobody followed
    assert verdict(**BOTH, doubted=True, fix_up_m=99.0, range_up_m=99.0) is FaultKind.TERRAIN
    once = decide(said(fix_count=15.0), 15.5)
    assert bool(once.doubted)
    later = said(jump=10.0, doubted=True, followed=True, range_up_m=30.0)
    assert bool(decide(later, NOW_S).doubted)
    assert kind_of(decide(later, NOW_S)) is FaultKind.VISION_INCONSISTENT


def test_stars_accuse_no_unit_where_the_filter_may_have_followed_a_wrong_fix() -> None:
    assert verdict(star_shift=15.0, range_s=-math.inf) is FaultKind.INERTIAL
    assert verdict(star_shift=15.0, doubted=True, range_s=-math.inf) is not FaultKind.INERTIAL
    assert verdict(inertial=15.0, doubted=True, range_s=-math.inf) is FaultKind.INERTIAL
    # By no fix could it be turned so far.
    far = {"star_shift": 15.0, "doubted": True, "turned": True}
    assert verdict(**far, range_s=-math.inf) is FaultKind.INERTIAL


def test_slow_separation_accuses_the_altimeter_by_a_fix_that_agrees() -> None:
    assert verdict(apart=10.0, blind=True) is FaultKind.ALTIMETER_INCONSISTENT
    assert verdict(apart=11.01) is FaultKind.UNDECIDED
    assert verdict(apart=10.0, blind=True, fix_agrees=False) is FaultKind.UNDECIDED


# What needs no second witness ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("evidence", "kind"),
    [
        ({"outage": Outage.LATE_ACQUISITION}, FaultKind.LATE_ACQUISITION),
        ({"outage": Outage.DROPOUT}, FaultKind.DROPOUT),
        ({"outage": Outage.PERMANENT}, FaultKind.DROPOUT),
        ({"fix_count": 15.0, "fix_agrees": False}, FaultKind.VISION_INCONSISTENT),
        ({"jump": 10.0}, FaultKind.ALTIMETER_INCONSISTENT),
        ({"unfused": 15.0}, FaultKind.NOT_FUSED),
        ({"stuck": 15.0}, FaultKind.STUCK),
        ({"inertial": 15.0}, FaultKind.INERTIAL),
        ({"star_shift": 15.0}, FaultKind.INERTIAL),
        ({"spurious": True}, FaultKind.SPURIOUS_EVENT),
    ],
)
def test_one_kind_of_evidence_names_its_kind(evidence: dict, kind: FaultKind) -> None:
    named = decide(said(**evidence), NOW_S)
    assert kind_of(named) is kind
    assert KINDS[int(named.first_kind)] is kind
    assert float(named.alert_s) == float(named.named_s) == NOW_S
    # No word of vision is needed, nor range, but by those two that wait for one.
    if kind not in (FaultKind.VISION_INCONSISTENT, FaultKind.ALTIMETER_INCONSISTENT):
        assert verdict(**evidence, fix_s=-math.inf, range_s=-math.inf) is kind


def test_ranges_of_a_beam_that_sweeps_where_nobody_knows_accuse_no_altimeter() -> None:
    assert verdict(unsteady=15.0) is FaultKind.ALTIMETER_NOISE
    assert verdict(unsteady=15.0, turned=True) is FaultKind.UNDECIDED


def test_the_strongest_claim_is_named() -> None:
    claims = [
        ({"outage": Outage.DROPOUT}, FaultKind.DROPOUT),
        ({"jump": 10.0}, FaultKind.ALTIMETER_INCONSISTENT),
        ({"unfused": 15.0}, FaultKind.NOT_FUSED),
        ({"unsteady": 15.0}, FaultKind.ALTIMETER_NOISE),
        ({"stuck": 15.0}, FaultKind.STUCK),
        ({"inertial": 15.0}, FaultKind.INERTIAL),
        ({"spurious": True}, FaultKind.SPURIOUS_EVENT),
    ]
    for i, (weak, _) in enumerate(claims):
        for strong, kind in claims[i:]:
            assert verdict(**(weak | strong)) is kind
