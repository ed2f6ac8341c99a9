"""What the monitor takes of each sensor: absent samples, closed forms, thresholds, batches."""

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace

import pytest
import simulated_device
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm
from torch import Tensor

from tnav.monitor.integrity import Multipliers, RiskBudget
from tnav.monitor.thresholds import DescentSamples, Rates, Tuning, thresholds
from tnav.monitor.verdicts import decide
from tnav.monitor.watch import (
    KINDS,
    RangeLook,
    Watch,
    WatchSetup,
    watch_fix,
    watch_increments,
    watch_range,
    watch_stars,
)
from tnav.records import AltimeterSpec, FaultKind, Innovation, RangePrediction, Sensor

F64 = torch.float64
SPEC = AltimeterSpec((0.0, 0.0, -1.0), 3000.0, 0.99, 30.0, 0.3, 1e-3, 10.0)
SAMPLES = DescentSamples(altimeter=1200, vision=30, star_tracker=450, inertial=9000)
TUNING = Tuning(kinematic_window=10, change_window=16)
WINDOW = TUNING.kinematic_window
IMAGED = torch.tensor([True])
SETUP = WatchSetup(
    spec=SPEC,
    thresholds=thresholds(Rates(), SAMPLES, TUNING),
    tuning=TUNING,
    multipliers=RiskBudget(fault_probabilities=(1e-2,), looks=30.0).multipliers(),
    witness_nis=22.0,
    gate_nis=27.9,
    blind_below_m=60.0,
    relief_sigma_m=0.25,
)


# What is heard ------------------------------------------------------------------------------------


def flat(value: float | Tensor, batch: int) -> Tensor:
    return torch.as_tensor(value, dtype=F64).expand(batch).clone()


def innovation(
    t_s: float, sensor: Sensor, z: Tensor, sigma: float = 1.0, present: Tensor | None = None
) -> Innovation:
    """Of independent components, each z sigma off."""
    there = torch.ones(len(z), dtype=torch.bool) if present is None else present
    covariance = sigma**2 * torch.eye(z.shape[1], dtype=F64).repeat(len(z), 1, 1)
    return Innovation(t_s, sensor, sigma * z, covariance, z.square().sum(1), there, there)


def look(
    t_s: float,
    *,
    off_m: float | Tensor = 0.0,
    expected_m: float | Tensor = 1000.0,
    sigma_m: float | Tensor = 4.0,
    own_z: float | Tensor = 0.0,
    incidence_deg: float = 5.0,
    valid: bool | Tensor = True,
    defined: bool | Tensor = True,
    aloft: bool = True,
    fused: bool | Tensor = True,
    batch: int = 1,
) -> RangeLook:
    """One epoch of the altimeter."""

    def flag(value: bool | Tensor) -> Tensor:
        return torch.as_tensor(value).expand(batch).clone()

    range_m = flat(expected_m, batch) + flat(off_m, batch)
    own = innovation(t_s, Sensor.ALTIMETER, flat(own_z, batch)[:, None], 2.0, flag(valid))
    alone = RangePrediction(
        t_s,
        flat(expected_m, batch),
        flat(sigma_m, batch),
        flat(math.radians(incidence_deg), batch),
        flag(defined),
    )
    return RangeLook(t_s, range_m, flag(valid), flag(fused), flag(aloft), alone, own)


def fresh(batch: int = 1) -> Watch:
    return Watch.fresh(batch, TUNING, "cpu")


def heard(looks: int, watch: Watch | None = None, setup: WatchSetup = SETUP, **what) -> Watch:
    """After some epochs of the same."""
    watch = fresh(what.get("batch", 1)) if watch is None else watch
    for i in range(looks):
        watch = watch_range(watch, look(0.1 * i, **what), setup)
    return watch


def leaves(record: object, name: str = "") -> list[tuple[str, Tensor]]:
    if isinstance(record, Tensor):
        return [(name, record)]
    assert is_dataclass(record)
    return [t for f in fields(record) for t in leaves(getattr(record, f.name), f"{name}.{f.name}")]


def changed(before: object, after: object) -> set[str]:
    """Names of what differs."""
    return {
        name
        for (name, a), (_, b) in zip(leaves(before), leaves(after), strict=True)
        if not torch.equal(a.nan_to_num(-7.0), b.nan_to_num(-7.0))
    }


def mapped(record: object, by: Callable[[Tensor], Tensor]) -> object:
    if isinstance(record, Tensor):
        return by(record)
    if not is_dataclass(record):
        return record
    return replace(record, **{f.name: mapped(getattr(record, f.name), by) for f in fields(record)})


# Absent -------------------------------------------------------------------------------------------


def test_before_a_descent_nobody_is_accused() -> None:
    watch = decide(fresh(3), 0.0)
    assert [KINDS[i] for i in watch.kind.tolist()] == [FaultKind.HEALTHY] * 3
    assert bool(watch.alert_s.isnan().all())
    assert bool((watch.protection_m == math.inf).all())  # nothing is promised yet


def test_a_range_that_is_absent_changes_nothing_but_the_count_of_absences() -> None:
    watch = heard(12, own_z=2.0, off_m=20.0)
    absent = replace(look(5.0, valid=False), range_m=torch.tensor([math.nan], dtype=F64))
    after = watch_range(watch, absent, SETUP)
    assert all(name.startswith(".absence") for name in changed(watch, after))
    # Where none is promised, that stands still as well.
    for far in ({"expected_m": 5000.0}, {"incidence_deg": 29.0}, {"aloft": False}):
        watch = heard(12, own_z=2.0, off_m=20.0, **far)
        nothing = replace(look(5.0, valid=False, **far), range_m=absent.range_m)
        assert changed(watch, watch_range(watch, nothing, SETUP)) <= {".protection_m"}


def test_a_range_beside_the_map_changes_no_separation() -> None:
    watch = heard(12, own_z=2.0, off_m=20.0)
    beside = look(5.0, expected_m=math.nan, sigma_m=math.nan, defined=False)
    none = innovation(5.0, Sensor.ALTIMETER, torch.full((1, 1), math.nan, dtype=F64),
                      present=torch.tensor([False]))  # fmt: skip
    after = watch_range(watch, replace(beside, own=none), SETUP)
    # It came all the same: that is all that is known of it.
    assert changed(watch, after) == {".absence.seen_s"}
    assert float(after.protection_m) == float(watch.protection_m)


def test_a_fix_that_is_absent_changes_nothing() -> None:
    there = innovation(5.0, Sensor.VISION, torch.full((1, 6), 3.0, dtype=F64))
    watch = watch_fix(fresh(), 4.5, there, IMAGED, SETUP)
    assert changed(fresh(), watch) >= {".fix_s", ".fix_up_m", ".fix_across_sigma", ".fix_sigma_m"}
    no = torch.tensor([False])
    for z in (7.0, math.nan):
        absent = innovation(10.0, Sensor.VISION, torch.full((1, 6), z, dtype=F64), 9.0, no)
        assert changed(watch, watch_fix(watch, 9.5, absent, ~IMAGED, SETUP)) == set()


def test_stars_and_increments_that_are_absent_change_nothing() -> None:
    off = torch.full((1, 3), 3.0, dtype=F64)
    watch = watch_stars(fresh(), innovation(1.0, Sensor.STAR_TRACKER, off), SETUP)
    assert changed(fresh(), watch)
    absent = innovation(2.0, Sensor.STAR_TRACKER, off, present=torch.tensor([False]))
    nothing = innovation(2.0, Sensor.STAR_TRACKER, math.nan * off)
    for each in (absent, nothing):
        assert changed(watch, watch_stars(watch, each, SETUP)) == set()
    yes = torch.tensor([True])
    watch = watch_increments(watch, 1.0, 0.1, 0 * off, 0 * off, yes, SETUP)
    after = watch_increments(watch, 1.1, 0.1, math.nan * off, 0 * off, yes, SETUP)
    assert int(watch.inertial.zeros.length) == 1
    assert changed(watch, after) == set()


def test_images_without_a_fix_are_missed_where_there_were_images() -> None:
    """At 0.97 against 0.3 a miss counts ln(0.7 / 0.03); 30 images, 5e-5: five in a row."""
    none = torch.full((1, 6), math.nan, dtype=F64)
    no = torch.tensor([False])
    for imaged, alarms in ((IMAGED, [False] * 4 + [True]), (~IMAGED, [False] * 5)):
        watch, heard = fresh(), []
        for i in range(5):
            t_s = 5.0 * i
            lost = innovation(t_s, Sensor.VISION, none, present=no)
            watch = watch_fix(watch, t_s - 0.5, lost, imaged, SETUP)
            heard.append(bool(watch.blindness.alarm))
        assert heard == alarms


# The witness --------------------------------------------------------------------------------------


def test_what_is_kept_of_a_fix() -> None:
    z = torch.tensor([[1.0, -4.0, 2.5, 0.5, 0.0, 0.0]], dtype=F64)
    watch = watch_fix(fresh(), 4.5, innovation(5.0, Sensor.VISION, z, 3.0), IMAGED, SETUP)
    assert float(watch.fix_s) == 4.5  # of its exposure, not of its delivery
    assert float(watch.fix_up_m) == pytest.approx(7.5)
    assert float(watch.fix_sigma_m) == pytest.approx(3.0)
    assert float(watch.fix_across_sigma) == pytest.approx(4.0)


@pytest.mark.parametrize(("nis", "agrees"), [(21.99, True), (22.01, False)])
def test_a_fix_agrees_under_its_limit(nis: float, agrees: bool) -> None:
    z = torch.zeros(1, 6, dtype=F64)
    z[0, 4] = nis**0.5
    watch = watch_fix(fresh(), 4.5, innovation(5.0, Sensor.VISION, z), IMAGED, SETUP)
    assert bool(watch.fix_agrees) is agrees
    assert not bool(fresh().fix_agrees)  # silence is no consent


@pytest.mark.parametrize(("nis", "fused", "followed"), [
    (27.89, True, False), (27.91, True, True), (27.91, False, False), (22.5, True, False),
])  # fmt: skip
def test_only_a_fix_over_the_gate_that_was_taken_is_followed(
    nis: float, fused: bool, followed: bool
) -> None:
    """One that passes by chance, over the witness's limit, is no jump."""
    z = torch.zeros(1, 6, dtype=F64)
    z[0, 2] = nis**0.5
    own = innovation(5.0, Sensor.VISION, z)
    own = replace(own, fused=torch.tensor([fused]))
    assert watch_fix(fresh(), 4.5, own, IMAGED, SETUP).followed.tolist() == [followed]


def test_what_is_kept_of_a_range() -> None:
    watch = watch_range(fresh(), look(7.0, off_m=-30.0, expected_m=400.0, sigma_m=4.0), SETUP)
    assert float(watch.range_s) == 7.0
    assert float(watch.range_up_m) == -30.0
    noise_m = math.hypot(0.3, 0.4)  # floor, and a thousandth of 400 m
    assert float(watch.range_sigma_m) == pytest.approx(math.hypot(4.0, noise_m))


def row(value: list) -> Tensor:
    held = torch.tensor(value)
    return held.to(F64) if held.is_floating_point() else held


def kept_back(looks: int, off_m: Callable[[int], float], **own) -> bool:
    """Whether ranges that are not fused count as unused ones after so many."""
    watch = fresh()
    for i in range(looks):
        one = look(0.1 * i, off_m=off_m(i), fused=False)
        one = replace(one, own=replace(one.own, **{n: row(v) for n, v in own.items()}))
        watch = watch_range(watch, one, SETUP)
    return bool(watch.unfused.alarm)


def test_ranges_count_as_unused_that_agree_with_what_is_expected_and_with_each_other() -> None:
    run = SETUP.thresholds.unfused.run
    assert kept_back(run, lambda i: 5.0)
    assert not kept_back(run - 1, lambda i: 5.0)
    # 3 sigma of the difference of two, each of hypot(0.3 m, 1 m of 1 km, 0.25 m) or so: 4.6 m.
    noise_m = math.sqrt(0.3**2 + 1.0**2 + 0.25**2)
    for share, unused in ((0.99, True), (1.01, False)):
        swing_m = share * 3 * math.sqrt(2) * noise_m
        assert kept_back(run, lambda i, s=swing_m: s * (i % 2)) is unused


def test_what_navigation_refuses_is_unused_only_where_it_is_navigation_that_is_off() -> None:
    """Expected without altimeter to 4 m: navigation is off where it is 12 m from that."""
    run = SETUP.thresholds.unfused.run
    refused = {"present": [True], "fused": [False]}
    for own_m, unused in ((17.1, True), (16.9, False), (-7.1, True), (-6.9, False)):
        assert kept_back(run, lambda i: 5.0, value=[[own_m]], **refused) is unused
    # What it was never given, it did not refuse.
    assert kept_back(run, lambda i: 5.0, present=[False], fused=[False])


def test_noise_is_that_of_the_range_that_is_read_where_it_is_the_longer() -> None:
    """Expected at 100 m, read at 3 km: 3 m of noise bend by no more than is allowed."""
    wild = [0.0, 8.0, 0.0]
    for off_m, bends in ((2900.0, False), (0.0, True)):
        watch = fresh()
        for i in range(12):
            watch = watch_range(
                watch, look(0.1 * i, off_m=off_m + wild[i % 3], expected_m=100.0), SETUP
            )
        assert bool(watch.unsteady.alarm) is bends


def test_expectations_that_leap_with_a_fix_begin_a_triple_anew() -> None:
    watch = heard(2, off_m=300.0)
    assert int(watch.unsteady.held) == 2
    z = torch.zeros(1, 6, dtype=F64)
    absent = innovation(0.15, Sensor.VISION, z, 9.0, torch.tensor([False]))
    assert int(watch_fix(watch, 0.1, absent, IMAGED, SETUP).unsteady.held) == 2
    watch = watch_fix(watch, 0.1, innovation(0.15, Sensor.VISION, z, 9.0), IMAGED, SETUP)
    assert int(watch.unsteady.held) == 0


def test_stars_that_no_fix_could_have_turned_so_far_are_remembered() -> None:
    """By a degree, of all three axes."""
    for off_deg, turned in ((0.99, False), (1.01, True)):
        off = torch.full((1, 3), math.radians(off_deg) / math.sqrt(3), dtype=F64)
        watch = watch_stars(fresh(), innovation(1.0, Sensor.STAR_TRACKER, off), SETUP)
        assert bool(watch.turned) is turned
        watch = watch_stars(watch, innovation(2.0, Sensor.STAR_TRACKER, 0 * off), SETUP)
        assert bool(watch.turned) is turned


@pytest.mark.parametrize(("expected_m", "blind"), [(59.9, True), (60.1, False)])
def test_vision_is_blind_low_down(expected_m: float, blind: bool) -> None:
    watch = watch_range(fresh(), look(7.0, expected_m=expected_m, valid=False), SETUP)
    assert bool(watch.blind) is blind


@pytest.mark.parametrize(
    ("within", "beyond"),
    [
        ({"expected_m": 2987.9}, {"expected_m": 2988.1}),  # and 3 sigma of 4 m
        ({"incidence_deg": 24.9}, {"incidence_deg": 25.1}),  # and a margin of 5 deg
        ({"aloft": True}, {"aloft": False}),
        ({"defined": True}, {"defined": False}),
    ],
)
def test_ranges_are_missed_where_they_are_promised(within: dict, beyond: dict) -> None:
    assert bool(heard(4, valid=False, **within).absence.alarm)
    missed = heard(40, valid=False, **beyond).absence
    assert not bool(missed.alarm)
    assert float(missed.level) == 0.0


# Separation and protection level ------------------------------------------------------------------

K_FA = norm.isf(5e-4 / (2 * 30))
K_FF = norm.isf(1e-4 / (2 * 2 * 30))
K_MD = norm.isf(1e-4 / (2 * 30 * 1e-2))


@pytest.mark.parametrize(("expected_m", "sigma_m"), [(400.0, 5.0), (2000.0, 0.01), (30.0, 80.0)])
def test_protection_level_in_closed_form(expected_m: float, sigma_m: float) -> None:
    """``max(K_ff s, K_fa sqrt(s^2 + n^2 / w) + K_md s)``, from the first look on."""
    noise_m2 = 0.3**2 + (1e-3 * expected_m) ** 2
    bounded = K_FA * math.sqrt(sigma_m**2 + noise_m2 / WINDOW) + K_MD * sigma_m
    watch = watch_range(fresh(), look(1.0, expected_m=expected_m, sigma_m=sigma_m), SETUP)
    assert float(watch.protection_m) == pytest.approx(max(K_FF * sigma_m, bounded), rel=1e-6)
    # It is of the expectation: a range that is off, or absent, does not widen it.
    for other in ({"off_m": 500.0}, {"valid": False}):
        again = look(1.1, expected_m=expected_m, sigma_m=sigma_m, **other)
        assert float(watch_range(watch, again, SETUP).protection_m) == float(watch.protection_m)


def test_protection_level_without_a_fault_where_none_need_be_watched() -> None:
    """A fault as rare as the risk is not watched for; then the larger of two terms bounds."""
    rare = RiskBudget(fault_probabilities=(1e-9,), looks=30.0).multipliers()
    assert rare.missed[0][2] == -math.inf
    setup = replace(SETUP, multipliers=rare)
    wide = watch_range(fresh(), look(1.0, sigma_m=50.0), setup)
    assert float(wide.protection_m) == pytest.approx(K_FF * 50.0, rel=1e-6)
    narrow = watch_range(fresh(), look(1.0, sigma_m=0.1), setup)
    of_noise = K_FA * math.sqrt(0.01 + (0.3**2 + 1.0) / WINDOW)
    assert float(narrow.protection_m) == pytest.approx(of_noise, rel=1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_mean_of_a_full_window_is_what_counts(sign: float) -> None:
    sigma_m = math.sqrt(4.0**2 + (0.3**2 + 1.0) / WINDOW)
    over, under = (sign * share * K_FA * sigma_m for share in (1.001, 0.999))
    assert bool(heard(WINDOW, off_m=over).apart)
    assert not bool(heard(WINDOW, off_m=under).apart)
    assert not bool(heard(WINDOW - 1, off_m=100 * over).apart)  # not yet a window
    watch = heard(WINDOW - 1, off_m=over)
    watch = watch_range(watch, look(0.1 * (WINDOW - 1), off_m=over), SETUP)
    assert float(watch.apart_s) == pytest.approx(0.1 * (WINDOW - 1))
    later = watch_range(watch, look(5.0, off_m=over), SETUP)
    assert float(later.apart_s) == float(watch.apart_s)
    gone = watch_range(watch, look(5.0, off_m=0.0), SETUP)
    assert not bool(gone.apart)


def test_healthy_windows_are_apart_as_often_as_is_allowed() -> None:
    """One error of the expectation for all of a window, white noise on every range of it."""
    batch, k = 20_000, 2.0
    setup = replace(SETUP, multipliers=Multipliers((k,) * 3, (k,) * 3, ((k,) * 3,)))
    generator = torch.Generator().manual_seed(5)

    def normal() -> Tensor:
        return torch.randn(batch, generator=generator, dtype=F64)

    error_m, noise_m = 4.0 * normal(), math.hypot(0.3, 1.0)
    watch = fresh(batch)
    for i in range(WINDOW):
        now = look(0.1 * i, off_m=error_m + noise_m * normal(), batch=batch)
        watch = watch_range(watch, now, setup)
    low, high = binom.interval(0.999, batch, 2 * norm.sf(k))
    assert low <= int(watch.apart.sum()) <= high


# Batches and devices ------------------------------------------------------------------------------

LANES = 6
STEP = 12.0  # sigma


def flown(
    order: list[int], device: str = "cpu", steps: int = 50, spoilt: frozenset[int] = frozenset()
) -> list[Watch]:
    """Tenths of a second of every sensor, each descent with a fault of its own from 2 s on.

    Args:
        order: which descent each row is.
        spoilt: descents of which nothing is a number.
    """
    generator = torch.Generator().manual_seed(1)
    rows = torch.tensor(order)
    who = torch.arange(LANES)
    bad = torch.tensor([lane in spoilt for lane in range(LANES)])

    def sent(record):
        def one(t: Tensor) -> Tensor:
            lanes = bad.view(-1, *([1] * (t.dim() - 1)))
            t = torch.where(lanes, math.nan, t) if t.dtype == F64 else t
            return t[rows].to(device)

        return mapped(record, one)

    def normal(*shape: int) -> Tensor:
        return torch.randn(LANES, *shape, generator=generator, dtype=F64)

    watch, watches = Watch.fresh(len(order), TUNING, device), []
    for i in range(1, steps + 1):
        t_s, failing = 0.1 * i, i > 20
        delta_v, turned = normal(3), 1e-3 * normal(3)
        zeros = ((who == 5) & failing)[:, None]
        watch = watch_increments(
            watch, t_s, 0.1,
            sent(torch.where(zeros, 0.0, delta_v)), sent(torch.where(zeros, 0.0, turned)),
            sent(torch.ones(LANES, dtype=torch.bool)), SETUP,
        )  # fmt: skip
        if i % 5 == 0:
            stars = innovation(t_s, Sensor.STAR_TRACKER, normal(3))
            watch = watch_stars(watch, sent(stars), SETUP)
        if i % 10 == 0:
            z = normal(6)
            z[:, 2] += torch.where(((who == 1) | (who == 2)) & failing, STEP, 0.0)
            fix, imaged = innovation(t_s, Sensor.VISION, z), torch.ones(LANES, dtype=torch.bool)
            fix = replace(fix, fused=fix.nis < SETUP.gate_nis)
            watch = watch_fix(watch, t_s - 0.3, sent(fix), sent(imaged), SETUP)
        off = torch.where(((who == 0) | (who == 2)) & failing, STEP, 0.0)
        valid = ~((who == 3) & failing)
        now = look(
            t_s, off_m=off + normal(), own_z=off + normal(), valid=valid, sigma_m=1.0,
            expected_m=900.0 - i, fused=~((who == 4) & failing), batch=LANES,
        )  # fmt: skip
        watch = decide(watch_range(watch, sent(now), SETUP), t_s)
        watches.append(watch)
    return watches


IN_ORDER = list(range(LANES))


def test_each_descent_is_told_its_own_fault() -> None:
    last = flown(IN_ORDER)[-1]
    assert [KINDS[i] for i in last.kind.tolist()] == [
        FaultKind.ALTIMETER_INCONSISTENT,
        FaultKind.VISION_INCONSISTENT,
        FaultKind.TERRAIN,
        FaultKind.DROPOUT,
        FaultKind.NOT_FUSED,
        FaultKind.INERTIAL,
    ]
    assert bool((last.alert_s > 2.0).all())
    assert bool((last.alert_s <= last.named_s).all())
    # Of the first epoch with the fault; fixes come at full seconds.
    began_s = torch.tensor([2.1, 3.0, 2.1, 2.1, 2.1, 2.1], dtype=F64)
    assert float((last.onset_s - began_s).abs().max()) < 0.35
    assert bool((last.onset_s <= last.alert_s).all())


@settings(max_examples=5, deadline=None)
@given(
    st.lists(st.integers(0, LANES - 1), min_size=1, max_size=8),
    st.frozensets(st.integers(0, LANES - 1), max_size=2),
)
def test_evidence_of_one_descent_never_touches_another(
    order: list[int], spoilt: frozenset[int]
) -> None:
    """Rows in any order, some left out, some twice, some beside a descent of no numbers at all."""
    last, whole = flown(order, steps=40, spoilt=spoilt)[-1], flown(IN_ORDER, steps=40)[-1]
    for (name, a), (_, b) in zip(leaves(last), leaves(whole), strict=True):
        for row, lane in enumerate(order):
            if lane not in spoilt:
                assert torch.equal(a[row].nan_to_num(-7.0), b[lane].nan_to_num(-7.0)), name


def test_same_numbers_and_no_waiting_on_an_accelerator(simgpu: str) -> None:
    expected = flown(IN_ORDER, steps=30)
    assert len(set(expected[-1].kind.tolist())) > 3
    with simulated_device.count_syncs() as syncs:
        actual = flown(IN_ORDER, simgpu, steps=30)
    assert not syncs, syncs
    for want, got in zip(expected, actual, strict=True):
        for (name, a), (_, b) in zip(leaves(want), leaves(got), strict=True):
            assert b.device.type == simgpu, name
            assert a.dtype == b.dtype
            assert torch.equal(a.nan_to_num(-7.0), b.cpu().nan_to_num(-7.0)), name
