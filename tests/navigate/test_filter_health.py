"""The filter's covariance and numbers over long runs and at extremes."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jaxtyping
import pytest
import torch
from descent_model import (
    DT_S,
    FRAME,
    R_B_C,
    SPEC,
    at_truth,
    fix_at,
    ideal_increments,
    plane_prediction,
    truth,
)
from torch import Tensor

from tnav.geometry.moon import gravity_L
from tnav.geometry.pose import so3_exp
from tnav.navigate.altimetry import view_of
from tnav.navigate.filter import (
    propagate,
    update_altimeter,
    update_ground,
    update_star_tracker,
    update_vision,
)
from tnav.navigate.map_error import View, places_m, travel
from tnav.navigate.mechanisation import STATES
from tnav.navigate.state import FilterConfig, FilterState, clone, initial_state
from tnav.records import (
    AltimeterReading,
    AltimeterSpec,
    InertialIncrements,
    StarTrackerReading,
    VisionFix,
)

F64 = torch.float64
CONFIG = FilterConfig(thrust_scale_sigma=3e-4)
LOW_L = torch.tensor([[40.0, -20.0, 600.0]], dtype=F64)
TURN = so3_exp(torch.tensor([0.02, -0.1, 0.3], dtype=F64))


def smallest_eigenvalue(P: Tensor) -> Tensor:
    """Of the correlation matrix; states that are known for certain are left as they are."""
    sigma = P.diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
    unit = torch.where(sigma > 0, sigma, 1.0)
    return torch.linalg.eigvalsh(P / unit[:, :, None] / unit[:, None, :])[:, 0]


def is_healthy(state: FilterState, worst: float = -1e-12 * STATES) -> None:
    P = state.covariance
    assert torch.equal(P, P.mT)
    for name in state.__slots__:
        value = getattr(state, name)
        if isinstance(value, Tensor):
            assert bool(value.isfinite().all()), name
    assert bool((P.diagonal(dim1=-2, dim2=-1) >= 0).all())
    # A clone of now repeats six states: then, and only then, eigenvalues of zero are right.
    assert float(smallest_eigenvalue(P).min()) >= worst
    eye = torch.eye(3, dtype=F64, device=P.device)
    assert float((state.R_L_B @ state.R_L_B.mT - eye).abs().max()) < 1e-9


@contextlib.contextmanager
def annotations_unchecked() -> Iterator[None]:
    """A million steps take half the time; every other test has them checked."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def hanging(dt_s: float) -> InertialIncrements:
    """What a lander that hangs still over the Moon feels in one step."""
    spin, away = FRAME.spin_L(), LOW_L[0] - FRAME.centre_L
    force_L = torch.linalg.cross(spin, torch.linalg.cross(spin, away)) - gravity_L(LOW_L, FRAME)[0]
    return InertialIncrements(
        0.0, dt_s, (TURN.T @ force_L * dt_s)[None], (TURN.T @ spin * dt_s)[None]
    )


@pytest.mark.parametrize("steps", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_long_hover_keeps_the_covariance(steps: int) -> None:
    """Every 100 steps a star, every 50 a range, every 400 a fix; checked every 2000 steps.

    The measurements are exact: what moves the state is rounding. A million steps are 14 hours.
    """
    state = initial_state(
        0.0,
        LOW_L,
        torch.zeros(1, 3, dtype=F64),
        TURN[None],
        position_sigma_m=100.0,
        velocity_sigma_m_s=0.5,
        attitude_sigma_rad=3e-4,
        config=CONFIG,
    )
    still = hanging(DT_S)
    one, zero = torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=F64)
    spread = torch.tensor([1.0, 1.0, 1.5, 1e-4, 1e-4, 1e-4], dtype=F64)
    of_map = torch.zeros(1, 6, 6, dtype=F64)
    of_map[0, 2, 2] = 5.0
    fix = VisionFix(0.0, LOW_L, (TURN @ R_B_C)[None], torch.diag(spread**2)[None] + of_map, of_map)
    star = StarTrackerReading(0.0, TURN[None], 1e-4)
    beside_m, elsewhere_L = LOW_L[:, :2] * 0 + 12.0, torch.tensor([[40.0, 0.0, 0.0]])
    view = View(torch.full((1,), 500.0, dtype=F64), beside_m)
    with annotations_unchecked():
        for k in range(1, steps + 1):
            t_s = k * DT_S
            state = propagate(state, replace(still, t_s=t_s), FRAME, CONFIG)
            if k % 100 == 0:
                state, _ = update_star_tracker(state, replace(star, t_s=t_s), CONFIG)
            if k % 400 == 0:
                # As if it had come over 40 m of ground, every other time.
                came_L = LOW_L + (k // 400 % 2) * elsewhere_L
                state = replace(state, map_places_m=places_m(came_L, beside_m))
                state = clone(travel(state, view, CONFIG))
                state, innovation = update_vision(state, replace(fix, t_s=t_s), one, R_B_C, CONFIG)
                assert bool(innovation.fused)
                state, _ = update_ground(state, zero, zero + 1.0, one, CONFIG)
            if k % 50 == 25:
                prediction, H = plane_prediction(state, CONFIG)
                reading = AltimeterReading(t_s, LOW_L[:, 2] / TURN[2, 2], one)
                state, _ = update_altimeter(state, reading, prediction, H, SPEC, CONFIG)
            if k % 2000 == 0:
                is_healthy(state)
    sigma = state.covariance[0].diagonal().sqrt()
    assert bool((sigma[:3] < 3.0).all())  # the map's mean over each view is new: sqrt(5) m
    assert float((state.position_L - LOW_L).abs().max()) < 1e-3


def descend(
    position_sigma_m: float,
    fix_sigma: float,
    range_sigma_m: float,
    config: FilterConfig,
    measured: bool = True,
    off_m: float = 0.0,
    device: str = "cpu",
    batch: int = 3,
    steps: int = 160,
    fix_every: int = 40,
) -> FilterState:
    """Eight seconds of the descent from 70 s on, with exact sensors of the stated noise."""
    state = at_truth(70.0, config, batch)
    begun = initial_state(
        70.0,
        state.position_L + off_m * torch.linspace(-1.0, 1.0, batch, dtype=F64)[:, None],
        state.velocity_L,
        state.R_L_B,
        position_sigma_m=position_sigma_m,
        velocity_sigma_m_s=1.0,
        attitude_sigma_rad=1e-3,
        config=config,
    )
    state = replace(
        begun,
        **{
            name: value.to(device)
            for name in begun.__slots__
            if isinstance(value := getattr(begun, name), Tensor)
        },
    )
    spec = AltimeterSpec((0.0, 0.0, -1.0), 3000.0, 0.99, 30.0, range_sigma_m, 1e-15, 10.0)
    yes = torch.ones(batch, dtype=torch.bool).to(device)
    tight = torch.eye(6, dtype=F64).expand(batch, 6, 6) * fix_sigma**2
    R_B_C_ = R_B_C.to(device)
    for k in range(1400, 1400 + steps):
        t_s = (k + 1) * DT_S
        delta_v, delta_theta = (x.repeat(batch, 1).to(device) for x in ideal_increments(k))
        increments = InertialIncrements(t_s, DT_S, delta_v, delta_theta)
        state = propagate(state, increments, FRAME, config)
        here = truth(t_s)
        if not measured:
            continue
        if (k + 1) % (fix_every // 2) == 0:
            R = here.R_L_B.repeat(batch, 1, 1).to(device)
            state, _ = update_star_tracker(state, StarTrackerReading(t_s, R, fix_sigma), config)
        if (k + 1) % fix_every == 0:
            at_m = torch.full((batch,), 2e3, dtype=F64).to(device)
            state = clone(travel(state, view_of(state, at_m, at_m, spec), config))
            fix, _ = fix_at(t_s, config)
            exact = VisionFix(
                t_s,
                fix.position_L.repeat(batch, 1).to(device),
                fix.R_L_C.repeat(batch, 1, 1).to(device),
                tight.to(device),
                torch.zeros(batch, 6, 6, dtype=F64).to(device),
            )
            state, _ = update_vision(state, exact, yes, R_B_C_, config)
        if (k + 1) % 2 == 0:
            prediction, H = plane_prediction(state, config, spec)
            range_m = (here.position_L[2] / here.R_L_B[2, 2]).repeat(batch).to(device)
            reading = AltimeterReading(t_s, range_m, yes)
            state, _ = update_altimeter(state, reading, prediction, H, spec, config)
    return state


SHARP = FilterConfig(
    relief_sigma_m=1e-12, map_sigma_m=1e-12, map_shift_sigma_m=1e-12, range_bias_sigma_m=1e-12
)


EXTREMES: dict[str, dict[str, Any]] = {
    "prior of 100 km": {"position_sigma_m": 1e5, "off_m": 1e5},
    "sensors without noise": {"fix_sigma": 1e-12, "range_sigma_m": 1e-12, "config": SHARP},
    "nothing measured": {"measured": False},
    "both": {"position_sigma_m": 1e5, "fix_sigma": 1e-12, "range_sigma_m": 1e-12},
}
USUAL = {"position_sigma_m": 100.0, "fix_sigma": 1e-3, "range_sigma_m": 0.3, "config": CONFIG}


@pytest.mark.parametrize("name", EXTREMES)
def test_extremes_leave_no_nan(name: str) -> None:
    """Prior 100 km off, noise of 1e-12 and no measurement: finite, symmetric, and near the truth.

    Without any noise variances fall by 28 orders, more than a double has: there the covariance may
    lose its positive sign in the 5th digit of a correlation, and elsewhere not at all.
    """
    state = descend(**{**USUAL, **EXTREMES[name]})
    worst = -1e-4 if name == "sensors without noise" else -1e-12 * STATES
    is_healthy(state, worst)
    assert float((state.position_L - truth(state.t_s).position_L).norm(dim=-1).max()) < 1e-3


def test_extremes_on_an_accelerator(simgpu: str) -> None:
    """The two extremes at once, the same numbers."""
    want = descend(**{**USUAL, **EXTREMES["both"]}, steps=10, fix_every=10)
    got = descend(**{**USUAL, **EXTREMES["both"]}, steps=10, fix_every=10, device=simgpu)
    assert torch.equal(got.covariance.cpu(), want.covariance)
    assert torch.equal(got.position_L.cpu(), want.position_L)
