"""Faults drawn for ``b`` descents, and when they begin.

Every number of every fault has a random stream of its own, named by the seed, the fault's kind and
the number's name: a fault that is added, or a number that is fixed, changes no other draw.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from tnav.simulate.fault_spans import Span, draw
from tnav.simulate.faults import (
    CameraFault,
    CompoundFault,
    Fault,
    ImuSaturationFault,
    MapFault,
    Place,
    SingleFault,
)

CLOCK_ROUNDING_S = 1e-6  # a time of many summed steps may fall short by less than this


@dataclass(frozen=True, slots=True)
class DrawnFault:
    """One fault with its numbers for each of ``b`` descents."""

    recipe: SingleFault
    seed: int  # of what it draws in flight
    values: dict[str, Float64[Tensor, " b"]]  # by the name of the recipe's field
    direction: Float64[Tensor, "b 3"] | None  # unit vectors, isotropic, for who needs one


@dataclass(frozen=True, slots=True)
class FaultBank:
    """``n`` faults of ``b`` descents; n may be 0, which costs nothing in flight."""

    faults: tuple[DrawnFault, ...]
    below_agl_m: Float64[Tensor, "b n"]  # a fault begins below this; -inf: never for its height
    at_s: Float64[Tensor, "b n"]  # or from then on; inf: never for its time
    lasts_s: Float64[Tensor, "b n"]  # inf: to the end
    leader: Int64[Tensor, " n"]  # or so long after the begin of another fault; inf: never
    lag_s: Float64[Tensor, "b n"]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of the faults, in the order of the columns."""
        return tuple(fault.recipe.kind for fault in self.faults)

    def at(self, place: Place) -> list[int]:
        """Columns of the faults of one place, in the order in which they act there."""
        found = [i for i, fault in enumerate(self.faults) if fault.recipe.place is place]
        return sorted(found, key=lambda i: self.faults[i].recipe.order)

    def filled(self, value: float) -> Float64[Tensor, " b"]:
        """The same number for every descent, on the faults' device."""
        device = self.at_s.device
        return torch.full((self.at_s.shape[0],), value, dtype=torch.float64, device=device)


@dataclass(frozen=True, slots=True)
class PastRanges:
    """Readings that an altimeter still has to deliver, the oldest first."""

    on_host_s: tuple[float, ...]  # their times
    t_s: Float64[Tensor, " k"]  # the same, on the device
    range_m: Float64[Tensor, "k b"]
    valid: Bool[Tensor, "k b"]


@dataclass(frozen=True, slots=True)
class FaultState:
    """Memory of the faults in flight. Its generators move on: a state is for one flight."""

    begun_s: Float64[Tensor, "b n"]  # inf: not yet
    noise: tuple[torch.Generator, ...]  # of each fault, on the CPU
    held_m: dict[int, Float64[Tensor, " b"]]  # what stuck altimeters hold; NaN: nothing yet
    past: dict[int, PastRanges]  # of late altimeters


def draw_faults(
    faults: Sequence[Fault],
    batch: int,
    generator: torch.Generator,
    device: torch.device | str,
) -> FaultBank:
    """Numbers of all faults for a batch of descents.

    Args:
        faults: recipes; of a compound, each member has a column of its own.
        batch: number of descents.
        generator: of the faults, on the CPU; moved on by one draw, by none without a fault.
        device: where the descents are flown.
    """
    singles, leaders, gaps = _flattened(faults)
    base = int(torch.randint(2**62, (1,), generator=generator)) if singles else 0
    seen: Counter[str] = Counter()
    drawn, columns = [], []
    for number, (recipe, leader) in enumerate(zip(singles, leaders, strict=True)):
        stream = recipe.stream or recipe.kind
        name = f"{base}/{stream}/{seen[stream]}"
        seen[stream] += 1
        drawn.append(_drawn(recipe, name, batch, device))
        columns.append(_timing(recipe, gaps[number], leader == number, name, batch))
    times = torch.stack(columns, -1) if columns else torch.zeros(4, batch, 0, dtype=torch.float64)
    below_agl_m, at_s, lasts_s, lag_s = times.to(device)
    leader_of = torch.tensor(leaders, dtype=torch.int64).to(device)
    return FaultBank(tuple(drawn), below_agl_m, at_s, lasts_s, leader_of, lag_s)


def before_faults(bank: FaultBank) -> FaultState:
    """Nothing has begun."""
    noise = tuple(torch.Generator().manual_seed(fault.seed) for fault in bank.faults)
    return FaultState(torch.full_like(bank.at_s, math.inf), noise, {}, {})


def advance(
    bank: FaultBank, state: FaultState, t_s: float, agl_m: Float64[Tensor, " b"]
) -> FaultState:
    """Lets the faults begin that are due now; to be called with every step.

    Args:
        bank: the faults.
        state: after the step before, or ``before_faults``.
        t_s: now.
        agl_m: true heights over the ground; of NaN, nothing begins for its height.
    """
    if not bank.faults:
        return state
    due = (agl_m[:, None] < bank.below_agl_m) | (bank.at_s <= t_s + CLOCK_ROUNDING_S)
    begun_s = _begun(state.begun_s, due, t_s)
    followed_s = begun_s.index_select(1, bank.leader) + bank.lag_s
    begun_s = _begun(begun_s, followed_s <= t_s + CLOCK_ROUNDING_S, t_s)
    return replace(state, begun_s=begun_s)


def active(bank: FaultBank, state: FaultState, t_s: float) -> Bool[Tensor, "b n"]:
    """Which faults are there now. When they began is ``state.begun_s``."""
    ends_s = state.begun_s + bank.lasts_s
    return (state.begun_s <= t_s + CLOCK_ROUNDING_S) & (t_s < ends_s - CLOCK_ROUNDING_S)


def uniform(state: FaultState, column: int, like: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
    """Numbers in [0, 1) from a fault's own stream."""
    u = torch.rand(like.shape, generator=state.noise[column], dtype=torch.float64)
    return u.to(like.device)


def normal(state: FaultState, column: int, like: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
    """Standard normal numbers from a fault's own stream."""
    white = torch.randn(like.shape, generator=state.noise[column], dtype=torch.float64)
    return white.to(like.device)


def _begun(
    begun_s: Float64[Tensor, "b n"], due: Bool[Tensor, "b n"], t_s: float
) -> Float64[Tensor, "b n"]:
    return torch.where(due, begun_s.clamp_max(t_s), begun_s)


def _flattened(
    faults: Sequence[Fault],
) -> tuple[list[SingleFault], list[int], list[float | Span]]:
    """Single faults; for each the column of the one that it follows, or its own; and the gap."""
    singles: list[SingleFault] = []
    leaders: list[int] = []
    gaps: list[float | Span] = []
    for fault in faults:
        first = len(singles)
        members = fault.faults if isinstance(fault, CompoundFault) else (fault,)
        for member in members:
            leaders.append(first if len(singles) > first else len(singles))
            gaps.append(fault.gap_s if isinstance(fault, CompoundFault) else math.inf)
            singles.append(member)
    return singles, leaders, gaps


def _seed(name: str) -> int:
    """A seed for a random stream of that name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) >> 1


def _stream(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(name))


def _value(number: float | Span, name: str, batch: int) -> Float64[Tensor, " b"]:
    return draw(number, batch, _stream(name), _stream(f"{name}/sign"))


def _drawn(recipe: SingleFault, name: str, batch: int, device: torch.device | str) -> DrawnFault:
    fields = {field: getattr(recipe, field) for field in type(recipe).model_fields}
    values = {
        field: _value(number, f"{name}/{field}", batch).to(device)
        for field, number in fields.items()
        if isinstance(number, float | Span)
    }
    direction = None
    if isinstance(recipe, CameraFault | ImuSaturationFault | MapFault):
        white = torch.randn(batch, 3, generator=_stream(f"{name}/direction"), dtype=torch.float64)
        direction = torch.nn.functional.normalize(white, dim=-1).to(device)
    return DrawnFault(recipe, _seed(f"{name}/flight"), values, direction)


def _timing(
    recipe: SingleFault, gap: float | Span, leads: bool, name: str, batch: int
) -> Float64[Tensor, "4 b"]:
    """below_agl_m, at_s, lasts_s and lag_s of one fault, on the CPU."""
    begins = recipe.begins

    def value(number: float | Span | None, field: str, none: float) -> Float64[Tensor, " b"]:
        return _value(none if number is None else number, f"{name}/{field}", batch)

    return torch.stack(
        [
            value(begins.below_agl_m if leads else None, "begins", -math.inf),
            value(begins.at_s if leads else None, "begins", math.inf),
            value(recipe.lasts_s, "lasts_s", math.inf),
            value(None if leads else gap, "gap_s", math.inf),
        ]
    )
