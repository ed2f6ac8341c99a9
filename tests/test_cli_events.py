"""`tnav events`: the list, exit statuses and output, with flights that are none."""

import json

import pytest
import torch

from tnav.cli import main
from tnav.evaluate import events_fly
from tnav.evaluate.events_fly import Ending, EventResult, Flown, Heard, How
from tnav.records import FaultKind

SOFT = Ending(How.SOFT, 1.5, 1.5, 4.0, 30.0)
CRASHED = Ending(How.CRASHED, 66.0, 66.0, 400.0, 20.0)
SILENT = Heard((), FaultKind.HEALTHY, *([None] * 8))


@pytest.fixture
def flown(monkeypatch):
    """Events that were asked for; flights say what is expected, but for what a test sets."""
    asked = []
    said = {"kind": None, "twin": SILENT, "ending": SOFT}

    def fake(event, device, descents, seed, progress, shared):
        asked.append((event.name, device, descents, seed))
        progress("flying", 0.5)
        kind = said["kind"] or event.expected[0]
        alert_s = None if kind is FaultKind.HEALTHY else 502.0
        kinds = (kind,) if kind not in (FaultKind.HEALTHY, FaultKind.UNDECIDED) else ()
        heard = Heard(kinds, FaultKind.HEALTHY, 500.0, alert_s, alert_s, alert_s, *([None] * 4))
        return EventResult(
            event, seed, str(device),
            Flown((CRASHED,) * descents, ()),
            Flown((said["ending"],) * descents, (heard,) * descents),
            Flown((SOFT,) * descents, (said["twin"],) * descents),
        )  # fmt: skip

    monkeypatch.setattr(events_fly, "run_event", fake)
    return asked, said


def _status(argv) -> int:
    try:
        main(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_list_names_all_events_with_their_verdicts(capsys) -> None:
    assert _status(["events", "list"]) == 0
    out = capsys.readouterr().out
    for words in ("hakuto_r_m1", "2023-04-25", "late_acquisition", "nominal_blue_ghost"):
        assert words in out


def test_all_events_by_default_and_named_ones_in_their_order(flown, capsys) -> None:
    asked, _ = flown
    assert _status(["events", "run", "--device", "cpu"]) == 0
    assert len(asked) == 16
    assert asked[0] == ("surveyor_3", torch.device("cpu"), 4, 0)
    assert asked[-1][0].startswith("nominal")
    asked.clear()
    capsys.readouterr()
    argv = ["events", "run", "vikram", "apollo_14", "--descents", "2", "--seed", "7"]
    assert _status([*argv, "--device", "cpu"]) == 0
    assert asked == [(name, torch.device("cpu"), 2, 7) for name in ("vikram", "apollo_14")]
    table = capsys.readouterr().out
    assert table.index("vikram") < table.index("apollo_14")
    assert table.count("2 crashed") == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kind", FaultKind.ALTIMETER_INCONSISTENT),
        ("kind", FaultKind.HEALTHY),
        ("twin", Heard((), FaultKind.HEALTHY, None, 3.0, 3.0, *([None] * 5))),
        ("ending", CRASHED),
    ],
)
def test_status_1_where_something_is_not_as_it_must(flown, capsys, key, value) -> None:
    flown[1][key] = value
    assert _status(["events", "run", "hakuto_r_m2", "--device", "cpu"]) == 1
    assert "NO" in capsys.readouterr().out


def test_json_is_alone_on_standard_output_and_files_are_the_same(flown, capsys, tmp_path) -> None:
    out = tmp_path / "new" / "events"
    argv = ["events", "run", "hakuto_r_m2", "vikram", "--device", "cpu", "--json"]
    assert _status([*argv, "--out", str(out)]) == 0
    read = json.loads(capsys.readouterr().out)
    assert [event["name"] for event in read] == ["hakuto_r_m2", "vikram"]
    assert read[0]["fidelity"] == "model"
    assert read[0]["with_tnav"][0]["monitor"]["delay_s"] == 2.0
    assert read[0]["as_flown"][0]["how"] == "crashed"
    assert {p["mark"] for p in read[0]["parameters"]} <= set("ABCDP")
    kept = [json.loads((out / f"{event['name']}.json").read_text()) for event in read]
    assert kept == read


def test_an_unknown_name_is_one_line_before_anything_is_flown(flown, capsys, tmp_path) -> None:
    out = tmp_path / "out"
    assert _status(["events", "run", "vikram", "vikrant", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert error.startswith("error: event 'vikrant': not found; known: apollo_12, ")
    assert flown[0] == []
    assert not out.exists()
