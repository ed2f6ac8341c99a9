"""Historical events as replays: what failed there, flown by the lander and over the site here.

It is the failure's parameters that are replayed, not the vehicle. Each number says how well it is
sourced: A agency, operator or paper; B press that quotes them; C general knowledge, not traced;
D derived from the others; P is a choice of this project.
"""

from datetime import date
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from tnav.config import Recipe, datasets_dir, find_recipe, load_recipe
from tnav.errors import ConfigError
from tnav.evaluate.descent_plan import Descent, Dispersion, load_descent
from tnav.navigate.state import GatePolicy
from tnav.records import FaultKind
from tnav.simulate.altimeter import Altimeter
from tnav.simulate.faults import Fault
from tnav.simulate.inertial import InertialUnit
from tnav.simulate.instruments import StarTracker, TouchdownSwitch

_FOLDER = "events"


class Mark(StrEnum):
    """How well a number is sourced."""

    AGENCY = "A"  # agency, operator or paper
    PRESS = "B"  # that quotes them
    COMMON = "C"  # general knowledge, not traced
    DERIVED = "D"  # from the others
    PROJECT = "P"  # chosen here


class Parameter(Recipe):
    """One number of an event, as it is known or as it is replayed."""

    name: str
    value: float
    unit: str
    mark: Mark
    source: str = Field(min_length=1)


class Changes(Recipe):
    """What differs from a descent's recipe; of a group, only the keys that are given."""

    gate: GatePolicy | None = None
    with_altimeter: bool | None = None
    with_vision: bool | None = None
    dispersion: Dispersion | None = None
    inertial: InertialUnit | None = None
    star_tracker: StarTracker | None = None
    altimeter: Altimeter | None = None
    touchdown: TouchdownSwitch | None = None
    duration_max_s: float | None = Field(default=None, ge=1)

    def of(self, descent: Descent) -> Descent:
        """The descent with them.

        Raises:
            ConfigError: together they do not fit.
        """
        changed: dict[str, Any] = descent.model_dump()
        for name in self.model_fields_set:
            value = getattr(self, name)
            if isinstance(value, BaseModel):
                changed[name] = {**changed[name], **value.model_dump(exclude_unset=True)}
            else:
                changed[name] = value
        try:
            return Descent.model_validate(changed)
        except ValidationError as error:
            lines = [detail["msg"].removeprefix("Value error, ") for detail in error.errors()]
            raise ConfigError("; ".join(lines)) from error


class Event(Recipe):
    """One event. Without faults it is a nominal descent, on which nothing may alarm."""

    name: str
    title: str
    date: date
    what: str = Field(min_length=1)  # happened, in one sentence
    parameters: tuple[Parameter, ...] = ()
    descent: str = "resilience"  # recipe that all three flights begin from
    changes: Changes = Changes()  # to it, in all three
    as_flown: Changes | None = None  # besides, in the configuration that failed; None: not flown
    faults: tuple[Fault, ...] = ()
    # Any of them is right; healthy: nothing may be said.
    expected: tuple[FaultKind, ...]
    # Of what else fails: right, too, and may be said before; does not stand for what is expected.
    besides: tuple[FaultKind, ...] = ()
    clears: bool = False  # the verdict must have ended before touchdown
    saved: bool = True  # the lander must reach the ground under 3 m/s
    seed: int = Field(default=0, ge=-1000, le=1000)  # number of the draw, beside the caller's

    @field_validator("expected")
    @classmethod
    def _some(cls, value: tuple[FaultKind, ...]) -> tuple[FaultKind, ...]:
        if not value:
            raise ValueError(
                "no verdict: expected one at least; healthy where nothing is to be said"
            )
        if FaultKind.HEALTHY in value and len(value) > 1:
            raise ValueError("healthy beside other verdicts: expected it alone, or the others")
        return value

    @model_validator(mode="after")
    def _apart(self) -> "Event":
        both = sorted(set(self.expected) & set(self.besides))
        if both:
            raise ValueError(f"{both[0].value} among expected and besides: expected it in one")
        return self

    def flown_with_tnav(self) -> Descent:
        """The descent that tnav flies, and that its twin without faults does.

        Raises:
            ConfigError: no such descent, or changes that do not fit.
        """
        return self._changed(load_descent(self.descent), self.changes, "changes")

    def flown_then(self) -> Descent | None:
        """The descent in the configuration that failed, if it is to be flown.

        Raises:
            ConfigError: no such descent, or changes that do not fit.
        """
        if self.as_flown is None:
            return None
        return self._changed(self.flown_with_tnav(), self.as_flown, "as_flown")

    def _changed(self, descent: Descent, changes: Changes, where: str) -> Descent:
        try:
            return changes.of(descent)
        except ConfigError as error:
            raise ConfigError(f"event '{self.name}': {where}: {error}") from error


def load_event(name_or_path: str) -> Event:
    """An event by its name in the datasets folder, or by path.

    Raises:
        ConfigError: no such event, or one that does not fit; file, line and field are named.
    """
    event = load_recipe(find_recipe(name_or_path, _FOLDER, "event"), Event)
    event.flown_then() or event.flown_with_tnav()
    return event


def load_events() -> list[Event]:
    """All events among the datasets, the nominal ones last, each by date.

    Raises:
        ConfigError: one does not fit.
    """
    names = sorted(path.stem for path in (datasets_dir() / _FOLDER).glob("*.yaml"))
    events = [load_event(name) for name in names]
    return sorted(events, key=lambda event: (event.name.startswith("nominal"), event.date))
