"""Evidence that is put into a fresh watch by hand, for the tests of verdicts."""

from dataclasses import fields, is_dataclass, replace

import torch
from torch import Tensor

from tnav.monitor.integrity import RiskBudget
from tnav.monitor.thresholds import DescentSamples, Rates, Tuning, thresholds
from tnav.monitor.verdicts import decide
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
    relief_sigma_m=0.25,
)
NOW_S = 20.0
# Detectors by the name of their evidence: field of the watch, its flag (None: its alarm).
ON_RANGES = ("range_count", "range_shift", "jump", "ramp", "range_scatter")
ON_FIXES, ON_UNIT = ("fix_count", "fix_shift"), ("inertial", "star_shift")
ALONE = ("absence", "blindness", "stuck", "unsteady", "unfused", "apart")


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
        # So long ago that a fix of then has seen what ranges saw.
        watch = replace(watch, ranges_s=row(max(doubted_s) - 0.15))
    if float(watch.fix_up_m) > 4 * 3.0 and not bool(watch.fix_agrees) and "farther_s" not in what:
        watch = replace(watch, farther_s=watch.fix_s)
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
