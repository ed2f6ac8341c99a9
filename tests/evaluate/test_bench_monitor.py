"""What a batch of faults is scored as, and the Stanford counts behind it."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from flights import DESCENT, flight, plain

from tnav.cli import main
from tnav.evaluate import bench_monitor
from tnav.evaluate.bench_monitor import VERDICTS, _kind_rows, _total_rows, score
from tnav.evaluate.descent_plan import scenario_of
from tnav.evaluate.flight import Monitoring
from tnav.evaluate.flight_integrity import IntegrityLog
from tnav.evaluate.flight_runs import Site
from tnav.evaluate.limits import Row
from tnav.evaluate.stanford import Diagram
from tnav.monitor.integrity import Stanford
from tnav.monitor.thresholds import Tuning
from tnav.monitor.watch import KINDS, Watch
from tnav.records import FaultKind
from tnav.simulate.faults import BiasFault, Fault, Onset

F64 = torch.float64
NAN, INF = math.nan, math.inf


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


@pytest.fixture(scope="module")
def scored():
    """Found in time; found too late; never found; alarmed before; began after touchdown."""
    fault = BiasFault(kind="bias", begins=Onset(below_agl_m=1000.0), bias_m=50.0)
    one = flight(batch=5, keep=None, faults=(fault,), monitor=Monitoring.ACTS)
    assert one.monitor is not None
    begun_s = tensor(500.0, 500.0, 500.0, 500.0, 700.0)
    one.faults.state = replace(one.faults.state, begun_s=begun_s[:, None])
    contact = one.log.contact
    one.log.contact = replace(
        contact, t_s=torch.full((5,), 600.0, dtype=F64), down_m_s=tensor(1.5, 40.0, 2.9, 3.1, 1.5)
    )
    one.log.landed = torch.ones(5, dtype=torch.bool)
    right, wrong = (
        KINDS.index(k) for k in (FaultKind.ALTIMETER_INCONSISTENT, FaultKind.VISION_INCONSISTENT)
    )
    one.monitor.watch = replace(
        one.monitor.watch,
        alert_s=tensor(501.0, 502.0, NAN, 400.0, NAN),
        named_s=tensor(505.0, 506.0, NAN, 405.0, NAN),
        first_kind=torch.tensor([right, wrong, 0, right, 0]),
    )
    one.integrity.alert_limit_m = tensor(10.0, -10.0, NAN, 10.0, NAN)
    assert one.detectable is not None
    one.detectable.exceeded = torch.tensor([True, True, True, True, True])
    one.integrity.looks[2, int(Stanford.HAZARDOUS)] = 1.0
    return score(one, "bias")


def test_each_descent_is_scored_once(scored) -> None:
    assert scored.begun.tolist() == [True, True, True, True, False]
    assert scored.alerted.tolist() == [True, True, False, False, False]
    assert scored.sized.tolist() == [True, True, True, False, False]
    assert scored.in_time.tolist() == [True, False, False, False, False]
    assert scored.early.tolist() == [False, False, False, True, False]
    assert scored.right.tolist() == [True, False, False, True, False]
    assert scored.soft.tolist() == [True, False, True, False, True]
    assert scored.hazardous.tolist() == [False, False, True, False, False]
    assert scored.delay_s[:2].tolist() == [1.0, 2.0]


def test_healthy_descents_are_flown_and_told_in_batches(monkeypatch) -> None:
    """Two seconds of three descents, in batches of two."""
    monkeypatch.setattr(bench_monitor, "_BATCH", 2)
    descent = DESCENT.model_copy(update={"duration_max_s": 2.0})
    site, said = Site(scenario_of(descent), plain()), []
    rows, diagram = bench_monitor._nominal(descent, site, 3, "cpu", said.append, 5)
    told = {row.name.partition(" (")[0]: row for row in rows}
    assert told["nominal: descents with an alarm"].n == 3
    assert told["nominal: contact under 3 m/s"].passed is False  # all are aloft
    level = told["nominal: places off by more than their horizontal protection level"]
    assert (level.value, level.passed) == (0, True)
    assert told["nominal: variance of sums of 20 range innovations, all heights"].n == 0
    assert sum(line == "nominal: 1 descents" for line in said) == 1
    assert int(diagram.classes.sum()) == 0  # too high for anybody to look


def test_rows_say_of_how_many(scored) -> None:
    rows = {row.name: row for row in _kind_rows("bias", scored, "cpu")}
    assert (rows["bias: detected"].value, rows["bias: detected"].n) == (2, 4)
    assert rows["bias: ... before the point of no return"].value == 1
    right = rows["bias: right verdict of those named"]
    assert (right.value, right.n) == (2, 3)
    totals = _total_rows(scored, "cpu")
    assert [row.passed for row in totals] == [None, False, False, False]
    assert (totals[1].value, totals[1].n) == (round(1 / 3, 4), 3)
    sized = rows["bias: ... of those larger than detectable"]
    assert (sized.value, sized.n, sized.passed) == (1, 3, False)


def test_every_kind_of_the_catalogue_has_its_verdict() -> None:
    union = get_args(get_args(Fault)[0])
    kinds = {kind for member in union for kind in _kinds(member)}
    assert kinds - {"compound"} == set(VERDICTS)


def _kinds(member) -> list[str]:
    if hasattr(member, "model_fields"):
        return list(get_args(member.model_fields["kind"].annotation))
    return [kind for each in get_args(get_args(member)[0]) for kind in _kinds(each)]


def test_an_error_over_the_limit_under_the_level_without_alert_is_hazardous() -> None:
    one = flight(batch=4, keep=None)
    lander, state = one.descent.lander, one.lander
    mass_kg = lander.dry_mass_kg + state.propellant_kg
    net = lander.thrust_max_n * state.thrust_scale / mass_kg - 1.62
    velocity_L = torch.zeros_like(state.velocity_L)
    velocity_L[:, 2] = -20.0
    limit_m = 100.0
    agl_m = limit_m + 200.0 / net
    state = replace(state, velocity_L=velocity_L)
    watch = Watch.fresh(4, Tuning(), "cpu")
    watch = replace(
        watch,
        protection_m=tensor(50.0, 50.0, 150.0, 50.0),
        alert_s=tensor(NAN, NAN, NAN, 3.0),
    )
    log = IntegrityLog(4, torch.device("cpu"))
    across = tensor(4.0, 6.0, 6.0, 6.0), tensor(5.0, 5.0, NAN, 5.0)
    log.look(lander, state, agl_m, tensor(49.0, -101.0, -101.0, -101.0), watch, across)
    log.look(lander, state, agl_m, tensor(51.0, 99.0, 0.0, 0.0), watch, across)
    assert log.placed.tolist() == [2.0, 2.0, 2.0, 0.0]  # the last one is under an alert
    assert log.beside.tolist() == [0.0, 2.0, 0.0, 0.0]
    nominal, misleading, hazardous, away = (int(s) for s in Stanford)
    assert log.looks[0].tolist() == [1.0 if c in (nominal, misleading) else 0.0 for c in range(4)]
    assert log.looks[1, hazardous] == 1.0
    assert log.looks[2, away] == 2.0
    assert log.looks[3, away] == 2.0
    assert float(log.alert_limit_m[3]) == pytest.approx(limit_m)
    assert float(log.alert_margin_s[3]) == pytest.approx(limit_m / 20.0)
    assert math.isnan(float(log.alert_limit_m[0]))


def test_the_command_hands_on_how_many_and_fails_with_a_row(
    monkeypatch, capsys, tmp_path: Path
) -> None:
    asked = []

    def measured(device, *, quick, say, count, kinds, seed):
        asked.append((quick, count, tuple(kinds), seed))
        rows = [Row("faults: detected", 1, "descents", "= 2", False, 2, "cpu")]
        return rows, CHARTS, Diagram().chart()

    monkeypatch.setattr(bench_monitor, "measure_monitor", measured)
    with pytest.raises(SystemExit) as done:
        main(["bench", "monitor", "--descents", "3", "--device", "cpu"])
    assert done.value.code == 1
    assert asked == [(False, 3, (), 7)]
    assert "faults: detected" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["bench", "monitor", "--kind", "bias", "--device", "cpu", "--out", str(tmp_path),
              "--seed", "12"])  # fmt: skip
    assert asked[1] == (False, None, ("bias",), 12)
    page = (tmp_path / "monitor.html").read_text()
    assert "faults: detected" in page
    figures = re.findall(r"<script type=.application/json.[^>]*>(.*?)</script>", page, re.S)
    curves, stanford = (json.loads(figure) for figure in figures)
    assert stanford["data"][0]["type"] == "heatmap"
    for spec in (curves,):
        assert {mark["name"] for mark in spec["data"]} == {"tnav", "hard gate"}
        delays = [m["y"] for m in spec["data"] if m["name"] == "hard gate"][1]
        assert delays == [0.5]  # a threshold that finds nothing has none


CHARTS = {
    "bias": {
        "title": "bias",
        "n": 4,
        "sized": 3,
        "curves": [
            {"label": "tnav", "false": [0.25], "found": [1.0], "delay_s": [0.25]},
            {"label": "hard gate", "false": [0.5, 0.0], "found": [1.0, 0.0],
             "delay_s": [0.5, None]},
        ],
    }
}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["monitor", "--kind", "biass"], "'biass', expected one of: dropout"),
        (["pose", "--kind", "bias"], "--kind is of 'monitor'"),
        (["pose", "--seed", "3"], "--seed is of 'monitor'"),
    ],
)
def test_a_kind_that_is_none_is_told(words: list[str], said: str, capsys) -> None:
    with pytest.raises(SystemExit) as done:
        main(["bench", *words, "--device", "cpu"])
    assert done.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())
