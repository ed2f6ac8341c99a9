"""Verdicts as time goes on, and all of them against a plain oracle, lane by lane."""

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from watches import (
    ALONE,
    NOW_S,
    ON_FIXES,
    ON_RANGES,
    ON_UNIT,
    gathered,
    joined,
    kind_of,
    row,
    said,
    same,
    verdict,
)

from tnav.monitor.absence_checks import Outage
from tnav.monitor.verdicts import decide, evidence_of
from tnav.monitor.watch import KINDS, Watch
from tnav.records import FaultKind

# Time ---------------------------------------------------------------------------------------------


def test_absence_ends_when_ranges_come_and_another_verdict_may_follow() -> None:
    watch = decide(said(outage=Outage.LATE_ACQUISITION), 10.5)
    assert kind_of(watch) is FaultKind.LATE_ACQUISITION
    watch = decide(watch, 12.0)
    assert kind_of(watch) is FaultKind.LATE_ACQUISITION
    watch = decide(replace(watch, absence=said().absence), 13.0)
    assert kind_of(watch) is FaultKind.HEALTHY
    doubted = {"ranges_s": row(17.0), "ranges_until_s": row(18.0)}
    seen = replace(watch, change=said(jump=17.0).change, fix_s=row(18.0), **doubted)
    watch = decide(seen, 18.0)
    assert kind_of(watch) is FaultKind.ALTIMETER_INCONSISTENT
    # What was first stays.
    assert KINDS[int(watch.first_kind)] is FaultKind.LATE_ACQUISITION
    assert float(watch.onset_s) == 10.0
    assert float(watch.alert_s) == float(watch.named_s) == 10.5


@pytest.mark.parametrize(
    ("fix_s", "agrees", "t_s", "kind"),
    [
        (10.0, True, 10.5, FaultKind.DROPOUT),  # seen since the first miss, at 10 s
        (10.0, False, 30.0, FaultKind.UNDECIDED),  # the ground may have fallen out of reach
        (9.9, True, 17.9, FaultKind.UNDECIDED),  # not yet heard: vision is waited for ...
        (9.9, True, 18.1, FaultKind.DROPOUT),  # ... for 8 s
        (-math.inf, False, 10.5, FaultKind.DROPOUT),  # it never spoke
    ],
)
def test_vision_is_asked_before_ranges_are_called_lost(
    fix_s: float, agrees: bool, t_s: float, kind: FaultKind
) -> None:
    what = {"outage": Outage.DROPOUT, "fix_s": fix_s, "fix_agrees": agrees}
    watch = decide(said(**what, range_s=9.9), t_s)
    assert kind_of(watch) is kind
    assert float(watch.alert_s) == t_s  # somebody is in doubt at once
    # A range that comes back as told says that the ground is where it was; an old one does not.
    assert kind_of(decide(said(**what, range_s=t_s), t_s)) is FaultKind.DROPOUT
    blind = decide(said(**what, range_s=9.9, blind=True), t_s)
    assert kind_of(blind) is (kind if fix_s == 10.0 else FaultKind.DROPOUT)


def test_ranges_that_the_ground_has_left_are_no_fault_of_the_altimeter() -> None:
    """A fix since the first miss, at 10 s, puts the ground farther than the altimeter goes."""
    gone = {"outage": Outage.DROPOUT, "fix_agrees": False, "range_s": 9.9, "range_up_m": 5.0}
    for fix_s, up_m, kind in (
        (10.0, 400.1, FaultKind.TERRAIN),
        (10.0, 399.9, FaultKind.UNDECIDED),
        (10.0, -400.1, FaultKind.UNDECIDED),
        (9.9, 400.1, FaultKind.UNDECIDED),
    ):
        watch = decide(said(**gone, reach_m=400.0, fix_s=fix_s, fix_up_m=up_m), 17.0)
        assert kind_of(watch) is kind
        if kind is FaultKind.TERRAIN:
            assert float(watch.size_m) == up_m
    # One fix of then that was so is enough: that the filter has followed them since is no word.
    followed = said(outage=Outage.DROPOUT, range_s=9.9, fix_s=15.0, farther_s=10.0)
    assert kind_of(decide(followed, 30.0)) is FaultKind.UNDECIDED
    assert kind_of(decide(replace(followed, farther_s=row(9.9)), 30.0)) is FaultKind.DROPOUT
    # Ranges that come back as told say that the ground is near, unless the filter has leapt.
    back = replace(followed, range_s=row(30.0))
    assert kind_of(decide(back, 30.0)) is FaultKind.DROPOUT
    leapt = decide(replace(back, followed=row(True), moved_s=row(31.0)), 30.0)
    assert kind_of(leapt) is FaultKind.UNDECIDED


def test_the_altimeter_is_not_accused_by_a_filter_that_followed_the_ground() -> None:
    """A fix between the witness's limit and the gate was taken at 12 s, in doubt since 10 s."""
    accused = {"jump": 11.0, "fix_s": 16.0}
    assert verdict(16.5, **accused) is FaultKind.ALTIMETER_INCONSISTENT
    assert verdict(16.5, **accused, moved_s=12.0) is FaultKind.UNDECIDED
    assert verdict(16.5, **accused, moved_s=9.9) is FaultKind.ALTIMETER_INCONSISTENT


def test_a_doubt_that_comes_and_goes_is_one() -> None:
    """Spikes: the alarm stands at 10 and 16 s, and is forgotten 8 s after the last."""
    first = decide(said(jump=9.5, ranges_s=math.nan, fix_s=8.0), 10.0)
    quiet = decide(replace(first, change=said().change), 15.0)
    assert kind_of(quiet) is FaultKind.HEALTHY
    assert float(quiet.ranges_s) == 10.0
    seen = replace(quiet, change=said(jump=15.5).change, fix_s=row(14.0))
    assert kind_of(decide(seen, 16.0)) is FaultKind.ALTIMETER_INCONSISTENT
    over = decide(quiet, 18.1)
    assert bool(over.ranges_s.isnan())


def test_a_fix_that_was_taken_is_judged_by_ranges_since() -> None:
    """The filter without altimeter moved at 12 s, to a fix of 11.5 s that was off."""
    moved = {"fix_count": 11.6, "fix_agrees": False, "fix_s": 11.5, "followed": True,
             "doubted": True, "moved_s": 12.0}  # fmt: skip
    for range_s, up_m, kind in (
        (12.0, 0.0, FaultKind.TERRAIN),
        (12.0, 99.0, FaultKind.VISION_INCONSISTENT),
        (11.9, 0.0, FaultKind.UNDECIDED),  # it speaks of the state before
        (11.4, 0.0, FaultKind.UNDECIDED),
    ):
        assert verdict(12.3, **moved, range_s=range_s, range_up_m=up_m) is kind


def test_lost_fixes_are_named_until_they_come() -> None:
    watch = decide(said(blindness=10.0), 10.5)
    assert kind_of(watch) is FaultKind.VISION_ABSENT
    assert float(watch.onset_s) == 10.0
    assert kind_of(decide(replace(watch, blindness=said().blindness), 13.0)) is FaultKind.HEALTHY


def test_a_range_from_before_the_image_does_not_speak_for_the_ground() -> None:
    off = {"fix_count": 15.0, "fix_agrees": False, "fix_up_m": 900.0}
    assert verdict(**off, fix_s=19.5, range_s=19.5) is FaultKind.VISION_INCONSISTENT
    assert verdict(**off, fix_s=19.5, range_s=19.4) is FaultKind.UNDECIDED


def test_absence_gives_way_to_what_weighs_more_and_to_doubt() -> None:
    absent = decide(said(outage=Outage.DROPOUT), 10.5)
    unit = decide(replace(absent, inertial=said(inertial=11.0).inertial), 11.0)
    assert kind_of(unit) is FaultKind.INERTIAL
    back = replace(absent, absence=said().absence, change=said(jump=12.0).change)
    assert kind_of(decide(back, 13.0)) is FaultKind.UNDECIDED


def test_a_name_stands_and_doubt_goes_with_its_evidence() -> None:
    named = decide(said(jump=10.0), NOW_S)
    doubt = decide(said(jump=15.0), NOW_S)
    for later in (said(), said(inertial=21.0), said(spurious=True), said(outage=Outage.DROPOUT)):
        kept = {f.name: getattr(named, f.name) for f in fields(Watch) if f.name in _VERDICT}
        watch = decide(replace(later, **kept), 25.0)
        assert kind_of(watch) is FaultKind.ALTIMETER_INCONSISTENT
        assert float(watch.named_s) == NOW_S
    gone = decide(replace(doubt, change=said().change), 25.0)
    assert kind_of(doubt) is FaultKind.UNDECIDED
    assert kind_of(gone) is FaultKind.HEALTHY
    assert float(gone.alert_s) == NOW_S  # it was raised all the same
    assert bool(gone.named_s.isnan())
    assert KINDS[int(gone.first_kind)] is FaultKind.HEALTHY


_VERDICT = ("kind", "first_kind", "onset_s", "alert_s", "named_s", "size_m", "doubted")


def test_alert_comes_first_and_the_name_with_its_witness() -> None:
    watch = decide(said(range_shift=15.0, range_count=14.5), 15.5)
    assert kind_of(watch) is FaultKind.UNDECIDED
    assert float(watch.onset_s) == 14.5
    watch = replace(watch, fix_s=row(16.0), range_up_m=row(70.0))
    watch = decide(watch, 16.5)
    assert kind_of(watch) is FaultKind.ALTIMETER_INCONSISTENT
    assert float(watch.alert_s) == 15.5
    assert float(watch.named_s) == 16.5
    assert float(watch.size_m) == 70.0
    later = decide(replace(watch, range_up_m=row(90.0)), 17.0)
    assert float(later.size_m) == 70.0
    assert float(later.onset_s) == 14.5


@pytest.mark.parametrize("name", [*ON_RANGES, *ON_FIXES, *ON_UNIT, *ALONE])
def test_onset_is_the_earliest_of_the_alarms_that_stand(name: str) -> None:
    assert float(evidence_of(said(**{name: 13.0})).onset_s) == 13.0
    others = {other: 14.0 for other in (*ON_RANGES, *ON_FIXES, *ON_UNIT, *ALONE) if other != name}
    assert float(evidence_of(said(**others, **{name: 13.0})).onset_s) == 13.0
    # An onset without its alarm says nothing.
    late = said(**others, **{name: 13.0})
    quiet = replace(late, **{f: getattr(said(**others), f) for f in _FIELDS[name]})
    assert float(evidence_of(quiet).onset_s) == 14.0
    found = evidence_of(said(**{name: 13.0}))
    flags = (bool(found.ranges), bool(found.fixes), bool(found.inertial))
    assert flags == (name in ON_RANGES, name in ON_FIXES, name in ON_UNIT)


_FIELDS = {name: (name,) for name in (*ON_RANGES, *ON_FIXES, *ON_UNIT, *ALONE)} | {
    "jump": ("change",), "ramp": ("change",), "apart": ("apart",),
}  # fmt: skip


# Against a plain oracle, and lane by lane ---------------------------------------------------------

_onset = st.sampled_from([None, None, None, 8.0, 11.0, 12.0])


@st.composite
def evidence(draw: st.DrawFn) -> dict:
    """Evidence of one descent, on grids that hold both sides of what is decided."""
    names = ("jump", "range_scatter", "range_shift", "fix_count", "apart", "unfused", "stuck",
             "unsteady", "inertial")  # fmt: skip
    found = {name: draw(_onset) for name in names}
    what: dict = {name: at_s for name, at_s in found.items() if at_s is not None}
    if draw(st.integers(0, 5)) == 0:
        what["outage"] = draw(st.sampled_from([Outage.LATE_ACQUISITION, Outage.PERMANENT]))
    return what | {
        "fix_s": draw(st.sampled_from([-math.inf, 9.0, 11.0, 13.0])),
        "fix_agrees": draw(st.booleans()),
        "fix_up_m": draw(st.sampled_from([0.0, 11.0, 13.0, 200.0, -200.0])),
        "range_up_m": draw(st.sampled_from([0.0, 12.0, 175.0, 225.0, 240.0, -200.0])),
        "fix_across_sigma": draw(st.sampled_from([0.0, 4.9, 5.1])),
        "range_s": draw(st.sampled_from([-math.inf, 18.9, 19.1, 20.0])),
        "reach_m": draw(st.sampled_from([math.inf, 100.0])),
        "moved_s": draw(st.sampled_from([-math.inf, -math.inf, 9.0, 12.0, 19.5])),
        "blind": draw(st.sampled_from([False, False, True])),
        "doubted": draw(st.sampled_from([False, False, True])),
        "followed": draw(st.sampled_from([False, False, True])),
        "turned": draw(st.sampled_from([False, False, True])),
        "spurious": draw(st.sampled_from([False] * 6 + [True])),
    }


def by_the_table(x: dict) -> FaultKind:
    """The verdict in plain words, strongest first."""
    on_ranges = [x[n] for n in ("jump", "range_scatter", "range_shift") if n in x]
    since_s = max([*on_ranges, x.get("apart", -math.inf)])
    leapt_since = x["moved_s"] >= since_s - 0.15
    ranges_since = x["range_s"] >= x["moved_s"]
    farther = not x["fix_agrees"] and x["fix_up_m"] > 12.0
    spoke = x["fix_s"] >= since_s or (x["blind"] and x["fix_s"] > -math.inf)
    agrees = x["fix_agrees"]
    fresh = x["range_s"] >= 19.0
    off = fresh and abs(x["range_up_m"]) > 16.0
    as_expected = fresh and not off and "apart" not in x
    alike = abs(x["range_up_m"] - x["fix_up_m"]) < 20.0 + 0.05 * abs(x["fix_up_m"])
    sideways = x["fix_across_sigma"] > 5.0
    if x["spurious"]:
        return FaultKind.SPURIOUS_EVENT
    if "inertial" in x:
        return FaultKind.INERTIAL
    if "stuck" in x:
        return FaultKind.STUCK
    if "unsteady" in x and not x["turned"]:
        return FaultKind.ALTIMETER_NOISE
    if "unfused" in x:
        return FaultKind.NOT_FUSED
    doubt = on_ranges or "apart" in x or "fix_count" in x
    seen_since = x["fix_s"] >= 10.0  # the first miss
    displaced = off and not agrees and alike and doubt
    seen = math.copysign(1.0, x["range_up_m"]) * x["fix_up_m"] > 9.0
    if displaced and (sideways or seen):
        return FaultKind.INERTIAL if sideways else FaultKind.TERRAIN
    if "outage" in x and seen_since and not agrees and x["fix_up_m"] > x["reach_m"]:
        return FaultKind.TERRAIN
    if (on_ranges or "apart" in x) and spoke and agrees and not (x["doubted"] or leapt_since):
        only_noise = "range_scatter" in x and not {"jump", "range_shift"} & set(x)
        return FaultKind.ALTIMETER_NOISE if only_noise else FaultKind.ALTIMETER_INCONSISTENT
    if "fix_count" in x and not agrees and as_expected and not x["followed"]:
        return FaultKind.VISION_INCONSISTENT
    taken = agrees or x["moved_s"] >= x["fix_s"]
    if x["followed"] and taken and ranges_since and (off or as_expected):
        return FaultKind.VISION_INCONSISTENT if off else FaultKind.TERRAIN
    back = as_expected and x["range_s"] == 20.0 and not x["followed"]
    hidden = farther and seen_since
    told = agrees if seen_since else True
    if "outage" in x and (back or (told and not hidden)):
        late = x["outage"] is Outage.LATE_ACQUISITION
        return FaultKind.LATE_ACQUISITION if late else FaultKind.DROPOUT
    said = doubt or "outage" in x or "unsteady" in x
    return FaultKind.UNDECIDED if said else FaultKind.HEALTHY


@settings(max_examples=30, deadline=None)
@given(st.lists(evidence(), min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_batches_are_their_descents_and_say_what_the_table_says(cases: list, chance) -> None:
    batch = joined([said(**case) for case in cases])
    decided = decide(batch, NOW_S)
    order = list(range(len(cases)))
    chance.shuffle(order)
    shuffled = decide(gathered(batch, torch.tensor(order)), NOW_S)
    assert same(shuffled, gathered(decided, torch.tensor(order)))
    for i, case in enumerate(cases):
        alone = decide(said(**case), NOW_S)
        assert same(alone, gathered(decided, torch.tensor([i])))
        assert kind_of(alone) is by_the_table(case), case
