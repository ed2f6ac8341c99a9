"""Events as recipes: all are there, what differs is what is said, bad ones are told in a line."""

import pytest

from tnav.config import datasets_dir, load_recipe
from tnav.errors import ConfigError
from tnav.evaluate.descent_plan import load_descent
from tnav.evaluate.events import Changes, Event, Mark, load_event, load_events
from tnav.navigate.state import GatePolicy
from tnav.records import FaultKind

FAILED = {
    "hakuto_r_m1": {FaultKind.TERRAIN},
    "hakuto_r_m2": {FaultKind.LATE_ACQUISITION},
    "im1_odysseus": {FaultKind.DROPOUT, FaultKind.LATE_ACQUISITION},
    "im1_not_fused": {FaultKind.NOT_FUSED},
    "im2_athena": {FaultKind.ALTIMETER_NOISE, FaultKind.UNDECIDED},
    "schiaparelli": {FaultKind.INERTIAL},
    "beresheet": {FaultKind.INERTIAL},
    "luna_25": {FaultKind.INERTIAL},
    "vikram": {FaultKind.HEALTHY},
    "mars_polar_lander": {FaultKind.SPURIOUS_EVENT},
    "apollo_14": {FaultKind.LATE_ACQUISITION},
    "apollo_12": {FaultKind.HEALTHY},
    "surveyor_3": {FaultKind.DROPOUT},
}
NOMINAL = {"nominal_slim", "nominal_change_5", "nominal_blue_ghost"}
WHOLE = """\
name: one
title: One
date: 2000-01-01
what: It happened.
expected: [healthy]
"""


def _numbers(node, found):
    """All numbers in a recipe."""
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, dict | list):
            _numbers(value, found)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.add(float(value))
    return found


@pytest.fixture(scope="module")
def events() -> dict[str, Event]:
    return {event.name: event for event in load_events()}


def test_every_event_is_there_with_the_verdict_that_is_right(events) -> None:
    assert set(events) == set(FAILED) | NOMINAL
    for name, kinds in FAILED.items():
        assert set(events[name].expected) == kinds, name
        assert events[name].as_flown is not None, name
        assert events[name].parameters, name


def test_nominal_descents_fail_in_nothing_and_differ_from_each_other(events) -> None:
    nominal = [events[name] for name in sorted(NOMINAL)]
    assert all(event.expected == (FaultKind.HEALTHY,) for event in nominal)
    assert all(not event.faults and event.as_flown is None for event in nominal)
    assert len({event.flown_with_tnav().dispersion for event in nominal}) == len(nominal)
    assert len({event.seed for event in nominal}) == len(nominal)


def test_names_are_those_of_the_files_and_say_what_a_replay_is(events) -> None:
    for path in (datasets_dir() / "events").glob("*.yaml"):
        assert events[path.stem].name == path.stem
        assert "`model` fidelity" in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("name", sorted(FAILED))
def test_all_that_is_replayed_is_a_number_with_a_source(events, name) -> None:
    """Nothing is drawn, and each number of a fault, but zeros and begins, is a parameter's."""
    event = events[name]
    told = {parameter.value for parameter in event.parameters} | {0.0}
    for fault in event.faults:
        given = fault.model_dump(exclude_unset=True)
        assert "log" not in str(given), "a replay's numbers are fixed"
        begins = given.pop("begins")
        assert _numbers(given, set()) <= told, name
        below_m = begins.get("below_agl_m")
        assert below_m is None or below_m in told or name == "hakuto_r_m2", name
    assert all(parameter.mark in Mark for parameter in event.parameters)


def test_the_figures_of_the_events_are_those_of_the_study(events) -> None:
    m1, m2 = events["hakuto_r_m1"], events["hakuto_r_m2"]
    assert (m1.faults[0].kind, m1.faults[0].size_m) == ("step_terrain", 3000.0)
    assert m1.flown_then().gate is GatePolicy.HARD
    assert not m1.flown_then().with_vision
    assert m1.flown_with_tnav().gate is GatePolicy.TERRAIN_AWARE
    assert (m2.faults[0].range_max_m, m2.faults[0].of_speed_m_s) == (893.0, 66.0)
    assert events["schiaparelli"].faults[0].lasts_s == 1.0
    assert events["im1_odysseus"].faults[0].begins.below_agl_m == 15000.0
    assert events["mars_polar_lander"].faults[0].begins.below_agl_m == 40.0
    assert events["apollo_14"].clears
    assert not events["luna_25"].saved


def test_changes_touch_only_the_keys_that_are_given() -> None:
    descent = load_descent("resilience")
    changes = Changes.model_validate({"altimeter": {"range_max_m": 9000.0}, "with_vision": False})
    changed = changes.of(descent)
    assert changed.altimeter == descent.altimeter.model_copy(update={"range_max_m": 9000.0})
    assert changed.altimeter.bias_sigma_m == descent.altimeter.bias_sigma_m > 0
    assert (
        changed.model_copy(update={"altimeter": descent.altimeter, "with_vision": True}) == descent
    )
    assert Changes().of(descent) == descent


def test_what_failed_is_changed_on_top_of_what_all_have() -> None:
    event = Event.model_validate(
        {
            "name": "one", "title": "One", "date": "2000-01-01", "what": "It happened.",
            "expected": ["healthy"], "changes": {"dispersion": {"position_m": 300.0}},
            "as_flown": {"dispersion": {"velocity_m_s": 3.0}, "gate": "hard"},
        }
    )  # fmt: skip
    then, now = event.flown_then(), event.flown_with_tnav()
    assert (then.dispersion.position_m, then.dispersion.velocity_m_s) == (300.0, 3.0)
    assert (now.dispersion.position_m, now.dispersion.velocity_m_s) == (300.0, 0.2)
    assert now.gate is GatePolicy.TERRAIN_AWARE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (WHOLE.replace("[healthy]", "[sick]"), ["one.yaml:5", "expected.0", "'sick'"]),
        (WHOLE.replace("[healthy]", "[]"), ["one.yaml:5", "expected", "one at least"]),
        (WHOLE.replace("[healthy]", "[healthy, stuck]"), ["healthy beside other verdicts"]),
        (WHOLE + "fault: []\n", ["one.yaml:6", "fault", "'faults'"]),
        (WHOLE + "faults: [{kind: bias, bias: 3.0}]\n", ["faults.0", "bias"]),
        (WHOLE + "as_flown: {gate: soft}\n", ["as_flown.gate", "'soft'"]),
        (
            WHOLE + "parameters: [{name: a, value: 1, unit: m, mark: X, source: s}]\n",
            ["parameters.0.mark", "'X'"],
        ),
        (WHOLE + "descent: gone\n", ["descent 'gone'", "known: resilience"]),
        (
            WHOLE + "changes: {star_tracker: {rate_hz: 3.0}}\n",
            ["event 'one'", "changes", "star_tracker.rate_hz"],
        ),
    ],
)
def test_a_bad_event_is_one_line(tmp_path, text, words) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_event(str(path))
    assert len(str(error.value).splitlines()) == 1, error.value
    for word in words:
        assert word in str(error.value), error.value


def test_the_least_that_an_event_says_is_enough(tmp_path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(WHOLE)
    event = load_recipe(path, Event)
    assert event.flown_then() is None
    assert event.flown_with_tnav() == load_descent("resilience")
