"""All detectors: absent samples change nothing; an accelerator gives the same without waiting."""

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass

import pytest
import simulated_device
import torch
from torch import Tensor

from tnav.monitor.absence_checks import Absence, Unfused, update_absence, update_unfused
from tnav.monitor.altimeter_checks import (
    Kinematic,
    RatioLimits,
    RatioTest,
    Stuck,
    Unsteady,
    predicted_rate_m_s,
    update_kinematic,
    update_ratio,
    update_stuck,
    update_unsteady,
)
from tnav.monitor.changes import ChangeWindow, update_change
from tnav.monitor.detectors import (
    GateCount,
    Scatter,
    Shift,
    update_count,
    update_scatter,
    update_shift,
)
from tnav.monitor.inertial_checks import Inertial, update_inertial
from tnav.monitor.integrity import RiskBudget, alert_limit, exclude, separate, stanford
from tnav.monitor.thresholds import DescentSamples, Rates, Tuning, thresholds

F64 = torch.float64
LIMITS = thresholds(
    Rates(false_alarm_probability=0.5),  # so that alarms come, too
    DescentSamples(altimeter=100, vision=10, star_tracker=50, inertial=500),
    Tuning(unfused_least=3),
)

# A detector's first state on a device, and its update by the numbers of an epoch.
Fresh = Callable[[int, str], object]
Update = Callable[[object, float, dict[str, Tensor]], object]
DETECTORS: dict[str, tuple[Fresh, Update]] = {
    "count": (
        lambda b, device: GateCount.fresh(b, 5, device),
        lambda s, t, x: update_count(s, t, x["nis"], x["there"], LIMITS.altimeter.count),
    ),
    "scatter": (
        lambda b, device: Scatter.fresh(b, 6, device),
        lambda s, t, x: update_scatter(s, t, x["nis"], x["there"], LIMITS.altimeter.scatter),
    ),
    "shift": (
        lambda b, device: Shift.fresh(b, 3, device),
        lambda s, t, x: update_shift(s, t, x["z3"], x["there"], LIMITS.star_tracker),
    ),
    "change": (
        lambda b, device: ChangeWindow.fresh(b, 12, device),
        lambda s, t, x: update_change(s, t, x["error_m"], x["sigma_m"], x["there"], LIMITS.change),
    ),
    "stuck": (
        lambda b, device: Stuck.fresh(b, device),
        lambda s, t, x: update_stuck(
            s, t, x["range_m"], x["expected_m"], x["sigma_m"], x["there"], LIMITS.stuck
        ),
    ),
    "unsteady": (
        lambda b, device: Unsteady.fresh(b, 5, device),
        lambda s, t, x: update_unsteady(
            s, t, 5 * x["error_m"], x["sigma_m"], x["there"], LIMITS.unsteady
        ),
    ),
    "kinematic": (
        lambda b, device: Kinematic.fresh(b, 5, device),
        lambda s, t, x: update_kinematic(
            s, t, x["range_m"], x["sigma_m"], x["rate"], x["sigma_m"], x["there"], LIMITS.kinematic
        ),
    ),
    "ratio": (
        lambda b, device: RatioTest.fresh(b, device),
        lambda s, t, x: update_ratio(
            s, t, x["range_m"], x["sigma_m"], x["rate"], x["sigma_m"], x["there"], RatioLimits()
        ),
    ),
    "unfused": (
        lambda b, device: Unfused.fresh(b, device),
        lambda s, t, x: update_unfused(
            s, t, 0.15 * x["error_m"], x["there"], x["taken"], LIMITS.unfused
        ),
    ),
    "absence": (
        lambda b, device: Absence.fresh(b, device),
        lambda s, t, x: update_absence(
            s, t, x["taken"], x["taken"] & x["there"], x["there"], LIMITS.absence
        ),
    ),
    "inertial": (
        lambda b, device: Inertial.fresh(b, device),
        lambda s, t, x: update_inertial(
            s, t, 0.01, x["z3"], 0.1 * x["z3"], x["taken"], LIMITS.inertial
        ),
    ),
}


def epoch(i: int, batch: int = 6) -> dict[str, Tensor]:
    """Numbers of one epoch, of sensors that begin to fail at different times."""
    generator = torch.Generator().manual_seed(i)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator, dtype=F64)

    failing = torch.arange(batch) * 8 < i
    error_m = 2.0 * normal() + 9.0 * failing
    expected_m = 800.0 - 3.0 * i + 0.0 * error_m
    frozen = failing & (torch.arange(batch) % 2 == 0)
    z3 = normal(3) + 3.0 * failing[:, None]
    return {
        "nis": (error_m / 2).square(),
        "z3": torch.where(frozen[:, None], 0.0, z3),
        "error_m": error_m,
        "sigma_m": torch.full_like(error_m, 2.0),
        "range_m": torch.where(frozen, 700.0, expected_m + error_m),
        "expected_m": expected_m,
        "rate": torch.full_like(error_m, -30.0),
        "there": torch.rand(batch, generator=generator) < 0.9,
        "taken": torch.rand(batch, generator=generator) < torch.where(failing, 0.1, 0.95),
    }


def leaves(record: object) -> list[Tensor]:
    """All tensors of a state and of what is in it."""
    if isinstance(record, Tensor):
        return [record]
    assert is_dataclass(record)
    return [t for f in fields(record) for t in leaves(getattr(record, f.name))]


def alarm_of(state: object) -> Tensor:
    return state.jump.alarm if isinstance(state, ChangeWindow) else state.alarm


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(torch.nan_to_num(a, -7.0), torch.nan_to_num(b, -7.0))


@pytest.mark.parametrize("name", DETECTORS)
def test_same_numbers_and_no_waiting_on_an_accelerator(name: str) -> None:
    simulated_device.install()
    fresh, update = DETECTORS[name]
    epochs = [epoch(i) for i in range(60)]

    def watch(device: str, inputs: list[dict[str, Tensor]]) -> list[object]:
        states = [fresh(6, device)]
        for i, x in enumerate(inputs):
            states.append(update(states[-1], 0.1 * i, x))
        return states

    expected = watch("cpu", epochs)
    moved = [{k: v.to(simulated_device.DEVICE) for k, v in x.items()} for x in epochs]
    with simulated_device.count_syncs() as syncs:
        actual = watch(simulated_device.DEVICE, moved)
    assert not syncs, syncs
    for want, got in zip(expected, actual, strict=True):
        for a, b in zip(leaves(want), leaves(got), strict=True):
            assert b.device.type == simulated_device.DEVICE
            assert same(a, b.cpu())
    # Some descent alarms at some time, and some does not at some time: both branches were run.
    alarms = torch.stack([alarm_of(s) for s in expected])
    assert bool(alarms.any())
    assert not bool(alarms.all())


@pytest.mark.parametrize("name", DETECTORS)
def test_absent_samples_leave_states_unchanged(name: str) -> None:
    """No flag; and a flag on what is not a number. Lanes beside it go on."""
    fresh, update = DETECTORS[name]
    state = fresh(6, "cpu")
    for i in range(45):
        state = update(state, 0.1 * i, epoch(i))
    x = epoch(45)
    x["there"] = torch.tensor([False, True, True, False, True, True])
    spoilt = torch.tensor([False, True, False, False, False, False])
    nan = {
        k: torch.where(spoilt, math.nan, v) for k, v in x.items() if v.dim() == 1 and k[0] != "t"
    }
    nan["z3"] = torch.where(spoilt[:, None], math.nan, x["z3"])
    flags = {"there": x["there"], "taken": x["taken"]}
    if name == "inertial":  # has no flag: every step has increments, or none
        idle = spoilt
    elif name == "absence":  # has no numbers
        idle = ~x["there"]
    else:
        idle = spoilt | ~x["there"]
    after = update(state, 4.5, nan | flags)
    changed = torch.zeros(6, dtype=torch.bool)
    for before, now in zip(leaves(state), leaves(after), strict=True):
        a, b = torch.nan_to_num(before, -7.0), torch.nan_to_num(now, -7.0)
        assert torch.equal(a[idle], b[idle])
        changed |= (a != b).reshape(6, -1).any(1)
    assert bool(changed[~idle].any())


def test_integrity_on_an_accelerator() -> None:
    simulated_device.install()
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=F64)

    eye = torch.eye(3, dtype=F64)
    inputs = [
        normal(5, 3),
        eye.expand(5, 3, 3).contiguous(),
        8.0 * normal(5, 2, 3),
        3 * eye.expand(5, 2, 3, 3).contiguous(),
        torch.rand(5, 2, generator=generator) < 0.8,
        100.0 * normal(5).abs(),
        20.0 * normal(5),
    ]
    multipliers = RiskBudget(fault_probabilities=(1e-2, 1e-6)).multipliers()

    def everything(
        x: Tensor, P: Tensor, subs: Tensor, sub_P: Tensor, there: Tensor, agl: Tensor, v: Tensor
    ) -> list[Tensor]:
        s = separate(x, P, subs, sub_P, there, multipliers)
        limit = alert_limit(agl, v, v.abs() / 10)
        rate = predicted_rate_m_s(x, subs[:, 0], subs[:, 1], agl, x / 100)
        return [
            *leaves(s),
            exclude(s, there),
            *leaves(limit),
            stanford(x[:, 2], s.vertical_m, limit.limit_m, s.alert),
            rate,
        ]

    expected = everything(*inputs)
    moved = [t.to(simulated_device.DEVICE) for t in inputs]
    with simulated_device.count_syncs() as syncs:
        actual = everything(*moved)
    assert not syncs, syncs
    for a, b in zip(expected, actual, strict=True):
        assert same(a, b.cpu())
