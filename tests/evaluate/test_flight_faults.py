"""Faults where truth becomes a reading: each is seen where it acts, and only from its onset on."""

from itertools import pairwise

import pytest
import torch
from flights import flight, over

from tnav.records import Sensor
from tnav.simulate.faults import (
    BiasFault,
    CameraFault,
    DropoutFault,
    ImuDropoutFault,
    MapFault,
    NotFusedFault,
    Onset,
    SpuriousEventFault,
    StepTerrainFault,
    ThrustBiasFault,
)

NOW, LATER = Onset(at_s=0.0), Onset(at_s=1e6)


def ranged(*faults) -> torch.Tensor:
    """NIS of an altimeter over two seconds at 1 km; a fault is there from the second reading on."""
    one = over(flight(batch=2, with_vision=False, faults=faults), 1000.0)
    for k in range(1, 21):
        one._step(k)
    found = [i for i in one.log.innovations if i.sensor is Sensor.ALTIMETER and bool(i.present[0])]
    return torch.stack([i.nis[0] for i in found])


def test_nothing_is_drawn_and_nothing_changes_without_a_fault() -> None:
    healthy, later = (
        over(flight(batch=3, keep=None, faults=faults), 2000.0)
        for faults in ((), (BiasFault(kind="bias", begins=LATER, bias_m=50.0),))
    )
    for k in range(1, 16):
        healthy._step(k)
        later._step(k)
    assert not healthy.faults.any
    assert torch.equal(healthy.state.position_L, later.state.position_L)
    assert torch.equal(healthy.state.covariance, later.state.covariance)
    assert torch.equal(healthy.lander.position_L, later.lander.position_L)


def test_a_bias_is_in_the_innovation_and_a_dropout_leaves_none() -> None:
    assert float(ranged().mean()) < 4.0
    assert float(ranged(BiasFault(kind="bias", begins=NOW, bias_m=100.0))[1:].min()) > 100.0
    assert bool(ranged(DropoutFault(kind="dropout", begins=NOW, lasts_s=60.0))[1:].numel() == 0)
    assert bool(ranged(NotFusedFault(kind="not_fused", begins=NOW))[1:].numel() == 0)


def test_a_rim_that_the_map_lacks_lowers_the_ground_once_it_is_crossed() -> None:
    rim = StepTerrainFault(
        kind="step_terrain", begins=Onset(below_agl_m=2000.0), size_m=500.0, crossed_in_s=0.1
    )
    one = over(flight(batch=1, keep=None, faults=(rim,)), 2000.5, 10.0)
    heights = []
    for k in range(1, 9):
        one._contact(k)
        looks = one.faults.looks_from_L(one.state.t_s, one.lander.position_L)
        heights.append(
            float((one.ground.agl_m(looks) - one.ground.agl_m(one.lander.position_L))[0])
        )
        one._step(k)
    assert heights[0] == 0.0
    assert heights[-1] == pytest.approx(500.0, abs=0.5)


def test_a_map_that_lies_too_high_and_aside_moves_ranges_and_fixes_alike() -> None:
    fault = MapFault(kind="map_fault", begins=NOW, vertical_m=80.0, shift_m=30.0)
    one, healthy = (
        over(flight(batch=1, keep=None, faults=faults), 3000.0) for faults in ((fault,), ())
    )
    fixes = []
    for each in (one, healthy):
        each._contact(0)
        each._expose(5)
        assert each.pending is not None
        fixes.append(each.pending.exposure.fix.position_L[0])
    moved = fixes[0] - fixes[1]
    assert float(moved[2]) == pytest.approx(80.0, rel=0.02)  # sigma grows a little with height
    assert float(moved[:2].norm()) == pytest.approx(30.0, rel=0.02)
    looks = one.faults.looks_from_L(one.state.t_s, one.lander.position_L)
    assert float((looks - one.lander.position_L)[0, 2]) == pytest.approx(80.0)


def test_a_camera_loses_images_or_moves_fixes() -> None:
    lost = CameraFault(kind="camera_fault", begins=NOW, lost_share=1.0)
    beside = CameraFault(
        kind="camera_fault", begins=NOW, lost_share=0.0, bias_m=40.0, toward="vertical"
    )
    fixes = []
    for faults in ((lost,), (beside,), ()):
        one = over(flight(batch=1, keep=None, faults=faults), 3000.0)
        one._contact(0)
        one._expose(5)
        assert one.pending is not None
        fixes.append(one.pending.exposure)
    assert [bool(f.available[0]) for f in fixes] == [False, True, True]
    moved = (fixes[1].fix.position_L - fixes[2].fix.position_L)[0]
    assert float(moved[2].abs()) == pytest.approx(40.0)
    assert moved[:2].tolist() == pytest.approx([0.0, 0.0], abs=1e-9)


def test_increments_that_are_missing_are_those_before() -> None:
    gone = ImuDropoutFault(kind="imu_dropout", begins=Onset(at_s=1.0), lasts_s=5.0, reads="missing")
    one = over(flight(batch=1, keep=None, with_altimeter=False, faults=(gone,)), 5000.0)
    read = []
    for k in range(1, 21):
        one._step(k)
        assert one.faults._last is not None
        read.append(one.faults._last[0][0])
    apart = [bool((a != b).any()) for a, b in pairwise(read)]
    assert all(apart[:8])
    assert not any(apart[11:])


def test_a_spurious_contact_ends_the_descent_in_the_air_only_when_armed() -> None:
    pulse = SpuriousEventFault(kind="spurious_event", begins=NOW, lasts_s=0.5)
    for height_m, off in ((30.0, True), (50.0, False)):
        one = over(flight(batch=1, keep=None, faults=(pulse,)), height_m)
        one._contact(0)
        assert bool(one.cut_off_agl_m.isfinite()[0]) is off


def test_engines_that_give_more_do_so_from_the_onset_on() -> None:
    strong = ThrustBiasFault(kind="thrust_bias", begins=Onset(at_s=1.0), bias=0.02)
    one, healthy = (
        over(flight(batch=1, keep=None, with_altimeter=False, faults=faults), 5000.0)
        for faults in ((strong,), ())
    )
    for each in (one, healthy):
        for k in range(1, 31):
            each._step(k)
    assert one.lander.thrust_scale.tolist() == pytest.approx(
        [1.02 * s for s in healthy.lander.thrust_scale.tolist()]
    )
