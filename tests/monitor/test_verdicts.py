"""Who is accused: every row of the table, both sides of its thresholds, and against a plain oracle.

Evidence is put into a fresh watch by hand: detectors have tests of their own.
"""

import math
from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tnav.monitor.absence_checks import Outage
from tnav.monitor.integrity import RiskBudget
from tnav.monitor.thresholds import DescentSamples, Rates, Tuning, thresholds
from tnav.monitor.verdicts import decide, evidence_of
from tnav.monitor.watch import KINDS, Watch, WatchSetup
from tnav.records import AltimeterSpec, FaultKind

F64 = torch.float64
TUNING = Tuning()
SETUP = WatchSetup(
    spec=AltimeterSpec((0.0, 0.0, -1.0), 3000.0, 0.99, 30.0, 0.3, 1e-3, 10.0),
    thresholds=thresholds(
        Rates(), DescentSamples(altimeter=1200, vision=30, star_tracker=450, inertial=9000), TUNING
    ),
    tuning=TUNING,
    multipliers=RiskBudget(fault_probabilities=(1e-2,)).multipliers(),
    witness_nis=22.0,
    gate_nis=27.9,
    blind_below_m=60.0,
)
NOW_S = 20.0
# Detectors by the name of their evidence: field of the watch, its flag (None: its alarm).
ON_RANGES = ("range_count", "range_shift", "jump", "ramp", "range_scatter")
ON_FIXES, ON_UNIT = ("fix_count", "fix_shift"), ("inertial", "star_shift")
ALONE = ("absence", "blindness", "stuck", "unfused", "apart")


def row(value: float | bool | int) -> Tensor:
    return torch.tensor([value], dtype=F64 if isinstance(value, float) else None)


def alarmed(detector: object, since_s: float) -> object:
    """The detector with its alarm on since then."""
    flag = "inflated" if "inflated" in {f.name for f in fields(detector)} else "alarm"
    return replace(detector, **{flag: row(True), "onset_s": row(since_s)})


def said(**what: object) -> Watch:
    """One descent: alarms by name with their onset, other fields of the watch with their value.

    Unless said otherwise the last fix agreed, at 11 s, and the last range is of now.
    """
    watch = replace(
        Watch.fresh(1, TUNING, "cpu"),
        fix_s=row(11.0),
        fix_agrees=row(True),
        fix_sigma_m=row(3.0),
        range_s=row(NOW_S),
        range_sigma_m=row(4.0),
    )
    for name, value in what.items():
        if name in ("jump", "ramp"):
            change = alarmed(getattr(watch.change, name), value)
            watch = replace(watch, change=replace(watch.change, **{name: change}))
        elif name == "apart":
            watch = replace(watch, apart=row(True), apart_s=row(value))
        elif name in (*ON_RANGES, *ON_FIXES, *ON_UNIT, *ALONE):
            watch = replace(watch, **{name: alarmed(getattr(watch, name), value)})
        elif name == "outage":
            kind = row(int(value))
            watch = replace(watch, absence=replace(alarmed(watch.absence, 10.0), kind=kind))
        else:
            watch = replace(watch, **{name: row(value)})
    doubted_s = [float(what[name]) for name in (*ON_RANGES, "apart") if name in what]
    if doubted_s and "ranges_s" not in what:
        watch = replace(watch, ranges_s=row(max(doubted_s)))
    if not bool(watch.fix_agrees) and "fix_off_s" not in what:
        watch = replace(watch, fix_off_s=watch.fix_s)
    return watch


def kind_of(watch: Watch) -> FaultKind:
    return KINDS[int(watch.kind)]


def verdict(t_s: float = NOW_S, **what: object) -> FaultKind:
    return kind_of(decide(said(**what), t_s))


def gathered(record: object, index: Tensor) -> object:
    """Rows of all that is in a record."""
    if isinstance(record, Tensor):
        return record[index]
    assert is_dataclass(record)
    return replace(record, **{f.name: gathered(getattr(record, f.name), index) for f in
                              fields(record)})  # fmt: skip


def joined(records: list) -> object:
    """One batch of several."""
    if isinstance(records[0], Tensor):
        return torch.cat(records)
    parts = {f.name: joined([getattr(r, f.name) for r in records]) for f in fields(records[0])}
    return replace(records[0], **parts)


def leaves(record: object) -> list[Tensor]:
    if isinstance(record, Tensor):
        return [record]
    assert is_dataclass(record)
    return [t for f in fields(record) for t in leaves(getattr(record, f.name))]


def same(a: object, b: object) -> bool:
    return all(
        x.dtype == y.dtype and torch.equal(x.nan_to_num(-7.0), y.nan_to_num(-7.0))
        for x, y in zip(leaves(a), leaves(b), strict=True)
    )


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
        (11.49, FaultKind.UNDECIDED),
        (11.51, FaultKind.ALTIMETER_INCONSISTENT),
    ):
        assert kind_of(decide(replace(again, fix_s=row(fix_s)), 13.0)) is kind
    over = decide(replace(first, range_shift=said().range_shift), 13.0)
    assert bool(over.ranges_s.isnan())
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


def test_the_strongest_claim_is_named() -> None:
    claims = [
        ({"outage": Outage.DROPOUT}, FaultKind.DROPOUT),
        ({"jump": 10.0}, FaultKind.ALTIMETER_INCONSISTENT),
        ({"unfused": 15.0}, FaultKind.NOT_FUSED),
        ({"stuck": 15.0}, FaultKind.STUCK),
        ({"inertial": 15.0}, FaultKind.INERTIAL),
        ({"spurious": True}, FaultKind.SPURIOUS_EVENT),
    ]
    for i, (weak, _) in enumerate(claims):
        for strong, kind in claims[i:]:
            assert verdict(**(weak | strong)) is kind


# Time ---------------------------------------------------------------------------------------------


def test_absence_ends_when_ranges_come_and_another_verdict_may_follow() -> None:
    watch = decide(said(outage=Outage.LATE_ACQUISITION), 10.5)
    assert kind_of(watch) is FaultKind.LATE_ACQUISITION
    watch = decide(watch, 12.0)
    assert kind_of(watch) is FaultKind.LATE_ACQUISITION
    watch = decide(replace(watch, absence=said().absence), 13.0)
    assert kind_of(watch) is FaultKind.HEALTHY
    seen = replace(watch, change=said(jump=17.0).change, fix_s=row(18.0))
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
    back = kind_of(decide(said(**what, range_s=t_s), t_s))
    assert back is (FaultKind.UNDECIDED if kind is not FaultKind.DROPOUT and not agrees else
                    FaultKind.DROPOUT)  # fmt: skip
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
    # One fix of then that was off is enough: that the filter has followed them since is no word.
    followed = said(outage=Outage.DROPOUT, range_s=9.9, fix_s=15.0, fix_off_s=10.0)
    assert kind_of(decide(followed, 30.0)) is FaultKind.UNDECIDED
    assert kind_of(decide(replace(followed, fix_off_s=row(9.9)), 30.0)) is FaultKind.DROPOUT


def test_a_fix_that_was_taken_is_judged_by_ranges_since() -> None:
    """The filter without altimeter moved at 12 s, to a fix of 11.5 s that was off."""
    moved = {"fix_count": 11.6, "fix_agrees": False, "fix_s": 11.5, "followed": True,
             "doubted": True, "moved_s": 12.0}  # fmt: skip
    for range_s, up_m, kind in (
        (12.0, 0.0, FaultKind.TERRAIN),
        (12.0, 99.0, FaultKind.VISION_INCONSISTENT),
        (11.9, 0.0, FaultKind.VISION_INCONSISTENT),  # it speaks of the state before
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
             "inertial")  # fmt: skip
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
        "blind": draw(st.sampled_from([False, False, True])),
        "doubted": draw(st.sampled_from([False, False, True])),
        "followed": draw(st.sampled_from([False, False, True])),
        "spurious": draw(st.sampled_from([False] * 6 + [True])),
    }


def by_the_table(x: dict) -> FaultKind:
    """The verdict in plain words, strongest first."""
    on_ranges = [x[n] for n in ("jump", "range_scatter", "range_shift") if n in x]
    since_s = max([*on_ranges, x.get("apart", -math.inf)])
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
    if "unfused" in x:
        return FaultKind.NOT_FUSED
    doubt = on_ranges or "apart" in x or "fix_count" in x
    seen_since = x["fix_s"] >= 10.0  # the first miss
    if off and not agrees and alike and doubt:
        return FaultKind.INERTIAL if sideways else FaultKind.TERRAIN
    if "outage" in x and seen_since and not agrees and x["fix_up_m"] > x["reach_m"]:
        return FaultKind.TERRAIN
    if (on_ranges or "apart" in x) and spoke and agrees and not x["doubted"]:
        only_noise = "range_scatter" in x and not {"jump", "range_shift"} & set(x)
        return FaultKind.ALTIMETER_NOISE if only_noise else FaultKind.ALTIMETER_INCONSISTENT
    if "fix_count" in x and not agrees and as_expected:
        return FaultKind.VISION_INCONSISTENT
    if x["followed"] and agrees and (off or as_expected):
        return FaultKind.VISION_INCONSISTENT if off else FaultKind.TERRAIN
    if "outage" in x and (agrees or not seen_since):
        late = x["outage"] is Outage.LATE_ACQUISITION
        return FaultKind.LATE_ACQUISITION if late else FaultKind.DROPOUT
    return FaultKind.UNDECIDED if doubt or "outage" in x else FaultKind.HEALTHY


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
