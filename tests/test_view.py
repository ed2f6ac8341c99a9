"""`tnav view`: a recording that is read back, offline and without a viewer."""

import importlib.util
import math
import socket
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from tnav.cli import main
from tnav.errors import ConfigError
from tnav.evaluate.descent_archive import write_descent
from tnav.evaluate.descent_record import (
    FILTER_STATES,
    DescentRecord,
    DescentSeries,
    InnovationSeries,
    Touchdown,
)
from tnav.geometry.moon import RADIUS_M
from tnav.geometry.pose import so3_exp
from tnav.records import Sensor
from tnav.report.rerun_export import write_rerun

EPOCHS = 9
SPEED_M_S = 30.0
OFFSET_L = torch.tensor([10.0, -20.0, 5.0], dtype=torch.float64)

needs_rerun = pytest.mark.skipif(
    importlib.util.find_spec("rerun") is None, reason="the extra tnav[viz] is not installed"
)


def _fall(seed=0):
    """Straight down over the pole of L; navigation is off by a constant, sigma is 1, 2, 3, ..."""
    t_s = torch.arange(EPOCHS, dtype=torch.float64)
    zero = torch.zeros_like(t_s)
    position_L = torch.stack([zero, zero, 1000.0 - SPEED_M_S * t_s], -1)
    velocity_L = torch.stack([zero, zero, zero - SPEED_M_S], -1)
    R_L_B = so3_exp(torch.stack([zero, zero, math.pi / 16 * t_s], -1))
    agl_m = position_L[:, 2].clone()
    agl_m[4] = torch.nan
    series = DescentSeries(
        t_s=t_s,
        position_L=position_L,
        velocity_L=velocity_L,
        R_L_B=R_L_B,
        agl_m=agl_m,
        propellant_kg=50.0 - t_s,
        thrust_n=100.0 + t_s,
        phase=torch.arange(EPOCHS) // 3,
        position_nav_L=position_L + OFFSET_L,
        velocity_nav_L=velocity_L,
        R_nav_L_B=R_L_B,
        agl_nav_m=position_L[:, 2] + 5.0,
        sigma=torch.arange(1.0, len(FILTER_STATES) + 1.0, dtype=torch.float64)
        .expand(EPOCHS, -1)
        .clone(),
    )
    present = torch.tensor([True, False, True, True])
    altimeter = InnovationSeries(
        sensor=Sensor.ALTIMETER,
        t_s=torch.tensor([0.5, 1.5, 2.5, 3.5], dtype=torch.float64),
        value=torch.tensor([[1.0], [torch.nan], [2.0], [9.0]], dtype=torch.float64),
        covariance=torch.ones(4, 1, 1, dtype=torch.float64),
        nis=torch.tensor([1.0, torch.nan, 4.0, 81.0], dtype=torch.float64),
        present=present,
        fused=torch.tensor([True, False, True, False]),
    )
    return DescentRecord(
        name="fall",
        fidelity="model",
        policy="isolate",
        seed=seed,
        latitude_deg=47.581,
        longitude_deg=44.094,
        series=series,
        innovations=(altimeter,),
        touchdown=Touchdown(8.5, 1.25, 0.5, 42.0, 70.0, "landed", -0.4, 5.0, 0.1),
        recipe={},
    )


@pytest.fixture
def unwired(monkeypatch):
    """No host is met, no program is started."""

    def refuse(*args, **_):
        raise AssertionError(f"asked for {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("subprocess.Popen.__init__", refuse)
    monkeypatch.setattr("webbrowser.open", refuse)


def _chunks(path):
    from rerun.chunk import RrdReader

    reader = RrdReader(path)
    assert len(reader.recordings()) == 1
    assert len(reader.blueprints()) == 1
    return list(reader.stream())


def _column(chunks, entity, component):
    """One component of an entity: its times (None where static) and its rows."""
    name = component.rsplit(":")[-1]
    for chunk in chunks:
        batch = chunk.to_record_batch()
        for column in batch.schema.names:
            if chunk.entity_path == entity and column.rsplit(":")[-1] == name:
                rows = np.array(batch.column(column).to_pylist())
                if chunk.is_static:
                    return None, rows
                times = batch.column("flight").to_numpy(zero_copy_only=False)
                return times.astype("timedelta64[ns]").astype(np.int64) / 1e9, rows
    raise AssertionError(f"no {component} in {entity}")


@needs_rerun
def test_what_is_logged_is_the_record(tmp_path, unwired):
    path, record = tmp_path / "new" / "one.rrd", _fall()
    assert write_rerun(path, [record]) == 1
    assert [p.name for p in path.parent.iterdir()] == ["one.rrd"]  # nothing aside is left
    chunks, s = _chunks(path), record.series
    for whose, position_L in (("truth", s.position_L), ("navigation", s.position_nav_L)):
        static, line = _column(chunks, f"/world/fall-0/{whose}/path", "strips")
        assert static is None
        np.testing.assert_allclose(line[0, 0], position_L.numpy(), rtol=1e-6)
        t_s, places = _column(chunks, f"/world/fall-0/{whose}/body", "translation")
        np.testing.assert_array_equal(t_s, s.t_s.numpy())
        np.testing.assert_allclose(places[:, 0], position_L.numpy(), rtol=1e-6)
        _, turns = _column(chunks, f"/world/fall-0/{whose}/body", "mat3x3")
        columns = s.R_L_B.transpose(1, 2).reshape(EPOCHS, 9).numpy()  # the format's order
        np.testing.assert_allclose(turns[:, 0], columns, atol=1e-6)


@needs_rerun
def test_the_bound_is_three_sigma_about_the_estimate(tmp_path, unwired):
    write_rerun(tmp_path / "one.rrd", [_fall()])
    chunks, s = _chunks(tmp_path / "one.rrd"), _fall().series
    t_s, half = _column(chunks, "/world/fall-0/navigation/bound", "half_sizes")
    np.testing.assert_array_equal(t_s, s.t_s.numpy())
    np.testing.assert_array_equal(half[:, 0], np.tile([3.0, 6.0, 9.0], (EPOCHS, 1)))
    _, centres = _column(chunks, "/world/fall-0/navigation/bound", "centers")
    np.testing.assert_allclose(centres[:, 0], s.position_nav_L.numpy(), rtol=1e-6)
    for what, state, error in (
        ("position_error_m", "position", OFFSET_L.tolist()),
        ("velocity_error_m_s", "velocity", [0.0, 0.0, 0.0]),
    ):
        for axis, off in zip(("east", "north", "up"), error, strict=True):
            sigma = FILTER_STATES.index(f"{state}_{axis}") + 1.0  # as _fall has it
            for line, value in (("error", off), ("upper", 3 * sigma), ("lower", -3 * sigma)):
                _, rows = _column(chunks, f"/{what}/fall-0/{axis}/{line}", "scalars")
                np.testing.assert_allclose(rows[:, 0], np.full(EPOCHS, value), atol=1e-9)


@needs_rerun
def test_scalars_are_on_the_time_line_and_missing_ones_are_not(tmp_path, unwired):
    write_rerun(tmp_path / "one.rrd", [_fall()])
    chunks, s = _chunks(tmp_path / "one.rrd"), _fall().series
    t_s, agl_m = _column(chunks, "/agl_m/fall-0/truth", "scalars")
    there = np.arange(EPOCHS) != 4
    np.testing.assert_array_equal(t_s, s.t_s.numpy()[there])
    np.testing.assert_array_equal(agl_m[:, 0], s.agl_m.numpy()[there])
    t_s, agl_m = _column(chunks, "/agl_m/fall-0/navigation", "scalars")
    np.testing.assert_array_equal(agl_m[:, 0], s.agl_nav_m.numpy())
    _, speed = _column(chunks, "/speed_down_m_s/fall-0/truth", "scalars")
    np.testing.assert_allclose(speed[:, 0], SPEED_M_S, rtol=1e-12)
    # navigation stands 22 m aside, where down leans by 22 m over the radius
    _, speed = _column(chunks, "/speed_down_m_s/fall-0/navigation", "scalars")
    lean = math.cos(math.hypot(10, 20) / RADIUS_M)
    np.testing.assert_allclose(speed[:, 0], SPEED_M_S * lean, rtol=1e-11)
    t_s, nis = _column(chunks, "/nis/fall-0/altimeter", "scalars")
    np.testing.assert_array_equal(t_s, [0.5, 2.5, 3.5])
    np.testing.assert_array_equal(nis[:, 0], [1.0, 4.0, 81.0])
    t_s, nis = _column(chunks, "/nis/fall-0/altimeter/refused", "scalars")
    assert (t_s.tolist(), nis.tolist()) == ([3.5], [[81.0]])
    _, phase = _column(chunks, "/phase/fall-0", "scalars")
    np.testing.assert_array_equal(phase[:, 0], s.phase.numpy())
    t_s, text = _column(chunks, "/touchdown/fall-0", "text")
    assert t_s.tolist() == [8.5]
    assert "landed at 1.25 m/s down, 0.50 m/s sideways, 42.0 m from the target" in text[0, 0]


@needs_rerun
def test_a_record_without_touchdown_or_innovations(tmp_path, unwired):
    bare = replace(_fall(), touchdown=None, innovations=())
    write_rerun(tmp_path / "bare.rrd", [bare])
    entities = {chunk.entity_path for chunk in _chunks(tmp_path / "bare.rrd")}
    assert not any(entity.startswith(("/touchdown", "/nis")) for entity in entities)


@needs_rerun
def test_the_command_writes_a_folder_s_descents(tmp_path, capsys, unwired):
    for seed in (0, 1, 2):
        path = write_descent(_fall(seed), tmp_path / "descents")
    out = tmp_path / "out" / "all.rrd"
    _view(tmp_path / "descents", "--out", out)
    said = capsys.readouterr().out
    assert said.startswith(f"{out}: descents: 3; ")
    assert f"rerun {out}" in said
    for seed in (0, 1, 2):
        assert _column(_chunks(out), f"/thrust_n/fall-{seed}", "scalars")[1].size == EPOCHS
    _view(path, "--out", out)  # replaced by one of them
    entities = {chunk.entity_path for chunk in _chunks(out)}
    assert "/phase/fall-2" in entities
    assert "/phase/fall-0" not in entities


@needs_rerun
def test_a_damaged_descent_leaves_no_recording(tmp_path, capsys, unwired):
    write_descent(_fall(0), tmp_path / "descents")
    write_descent(_fall(1), tmp_path / "descents").with_suffix(".npz").unlink()
    out = tmp_path / "out" / "all.rrd"
    _fails_in_one_line(capsys, [tmp_path / "descents", "--out", out], "fall-1.npz: missing")
    assert list(out.parent.iterdir()) == []


@needs_rerun
def test_recording_that_is_switched_off_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("RERUN", "off")
    with pytest.raises(ConfigError, match="RERUN: the environment switches recording off"):
        write_rerun(tmp_path / "one.rrd", [_fall()])
    assert list(tmp_path.iterdir()) == []


@needs_rerun
def test_another_suffix_is_refused(tmp_path, capsys):
    path = write_descent(_fall(), tmp_path)
    _fails_in_one_line(capsys, [path, "--out", tmp_path / "one.html"], "'.html'", ".rrd")


def test_without_the_extra_it_is_one_line(tmp_path, capsys, monkeypatch):
    path = write_descent(_fall(), tmp_path)
    for name in ("rerun", "rerun.blueprint"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    out = tmp_path / "out" / "one.rrd"
    _fails_in_one_line(capsys, [path, "--out", out], "rerun-sdk: not installed", "tnav[viz]")
    assert not out.parent.exists()


@needs_rerun
def test_where_no_descent_is_it_is_one_line(tmp_path, capsys):
    _fails_in_one_line(capsys, [tmp_path], str(tmp_path), "no NAME-SEED.json")
    gone = tmp_path / "gone-1.json"
    _fails_in_one_line(capsys, [gone, "--out", tmp_path / "x.rrd"], f"{gone}: missing")


def _view(*argv):
    with pytest.raises(SystemExit) as stop:
        main(["view", *map(str, argv)])
    assert not stop.value.code


def _fails_in_one_line(capsys, argv, *words):
    with pytest.raises(SystemExit) as stop:
        main(["view", *map(str, argv)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1, error
    assert error.startswith("error: ")
    for word in words:
        assert word in error, error
