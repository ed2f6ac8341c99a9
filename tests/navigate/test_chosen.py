"""`chosen`: each descent goes on with one of two states, whole, and with nothing of the other."""

from dataclasses import fields, replace

import pytest
import simulated_device
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tnav.geometry.moon import LocalFrame
from tnav.geometry.pose import so3_exp
from tnav.navigate.filter import propagate, update_star_tracker
from tnav.navigate.mechanisation import STATES
from tnav.navigate.state import FilterConfig, FilterState, chosen, initial_state
from tnav.records import InertialIncrements, StarTrackerReading

F64 = torch.float64
CONFIG = FilterConfig()
FRAME = LocalFrame(60.5, -4.6)
BATCH = 4
TENSORS = [f.name for f in fields(FilterState) if f.name not in ("t_s", "clone_t_s")]


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=F64)


def random_state(seed: int, batch: int = BATCH) -> FilterState:
    """A state of the same epoch as any other of these, all its numbers its own."""
    generator = torch.Generator().manual_seed(seed)
    state = initial_state(
        10.0,
        100.0 * normal(generator, batch, 3),
        normal(generator, batch, 3),
        so3_exp(0.1 * normal(generator, batch, 3)),
        position_sigma_m=10.0,
        velocity_sigma_m_s=0.1,
        attitude_sigma_rad=1e-4,
        config=CONFIG,
    )
    own = {name: normal(generator, *getattr(state, name).shape) for name in TENSORS}
    spread = 0.1 * normal(generator, batch, STATES, STATES)
    own["covariance"] = spread @ spread.mT
    own |= {"R_L_B": state.R_L_B, "clone_R_L_B": state.R_L_B, "position_L": state.position_L}
    return replace(state, **own)


def moved_to(state: FilterState, device: str) -> FilterState:
    return replace(state, **{name: getattr(state, name).to(device) for name in TENSORS})


def assert_rows(state: FilterState, row: int, source: FilterState, source_row: int) -> None:
    for name in TENSORS:
        found, expected = getattr(state, name)[row], getattr(source, name)[source_row]
        assert torch.equal(found.nan_to_num(-7.0), expected.nan_to_num(-7.0)), name


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=BATCH, max_size=BATCH))
def test_each_row_is_one_of_the_two_in_every_field(here: list[bool]) -> None:
    a, b = random_state(1), random_state(2)
    for name in TENSORS:
        differs = (getattr(a, name) != getattr(b, name)).reshape(BATCH, -1)
        assert bool(differs.any(1).all()), name
    one = chosen(torch.tensor(here), a, b)
    for row, first in enumerate(here):
        assert_rows(one, row, a if first else b, row)
    assert (one.t_s, one.clone_t_s) == (10.0, 10.0)
    for name in TENSORS:
        assert getattr(one, name).shape == getattr(a, name).shape
        assert getattr(one, name).dtype == F64


def test_what_is_not_chosen_may_be_anything() -> None:
    a, b = random_state(1), random_state(2)
    here = torch.tensor([True, False, False, True])
    broken_a, broken_b = (
        replace(s, **{n: _spoilt(getattr(s, n), rows) for n in TENSORS})
        for s, rows in ((a, ~here), (b, here))
    )
    one, whole = chosen(here, broken_a, broken_b), chosen(here, a, b)
    for name in TENSORS:
        assert bool(getattr(one, name).isfinite().all()), name
        assert torch.equal(getattr(one, name), getattr(whole, name))


def _spoilt(value: Tensor, rows: Tensor) -> Tensor:
    return torch.where(rows.view(-1, *([1] * (value.dim() - 1))), torch.nan, value)


def test_both_states_are_left_as_they_were() -> None:
    a, b = random_state(1), random_state(2)
    one = chosen(torch.tensor([True, False, True, False]), a, b)
    one.covariance.zero_()
    one.position_L.zero_()
    for state, seed in ((a, 1), (b, 2)):
        for row in range(BATCH):
            assert_rows(state, row, random_state(seed), row)


def test_choosing_before_a_step_is_choosing_after_it() -> None:
    """The filter goes on from a choice as from the state itself: nothing crosses between rows."""
    generator = torch.Generator().manual_seed(3)
    increments = InertialIncrements(
        10.1, 0.1, normal(generator, BATCH, 3), 1e-3 * normal(generator, BATCH, 3)
    )
    a, b = random_state(1), random_state(2)
    here = torch.tensor([True, False, False, True])
    stars = StarTrackerReading(10.1, so3_exp(0.1 * normal(generator, BATCH, 3)), 1e-4)

    def on(state: FilterState) -> FilterState:
        return update_star_tracker(propagate(state, increments, FRAME, CONFIG), stars, CONFIG)[0]

    after, before = chosen(here, on(a), on(b)), on(chosen(here, a, b))
    for name in TENSORS:
        torch.testing.assert_close(
            getattr(before, name), getattr(after, name), rtol=1e-12, atol=1e-12
        )


def test_a_choice_of_one_state_is_that_state() -> None:
    a, b = random_state(1), random_state(2)
    for flag, source in ((True, a), (False, b)):
        one = chosen(torch.full((BATCH,), flag), a, b)
        for row in range(BATCH):
            assert_rows(one, row, source, row)


@pytest.mark.parametrize("batch", [1, 32])
def test_batches_as_long_as_a_row_is_wide_are_not_taken_for_it(batch: int) -> None:
    """32 descents of 32 states: a flag that is spread along the wrong axis would go unnoticed."""
    a, b = random_state(1, batch), random_state(2, batch)
    here = torch.arange(batch) % 3 == 0
    one = chosen(here, a, b)
    for row in range(batch):
        assert_rows(one, row, a if bool(here[row]) else b, row)


def test_same_numbers_and_no_waiting_on_an_accelerator(simgpu: str) -> None:
    a, b = random_state(1), random_state(2)
    here = torch.tensor([True, False, False, True])
    expected = chosen(here, a, b)
    there = here.to(simgpu), moved_to(a, simgpu), moved_to(b, simgpu)
    with simulated_device.count_syncs(uploads=True) as syncs:
        actual = chosen(*there)
    assert not syncs, syncs
    for name in TENSORS:
        assert getattr(actual, name).device.type == simgpu
        assert torch.equal(getattr(actual, name).cpu(), getattr(expected, name))
