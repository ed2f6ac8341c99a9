"""The whole chain, on a small camera: fault and healthy twin, files, score, commands."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tnav.cli import main
from tnav.errors import RunFileError
from tnav.evaluate.archive import arrays_of, load, save
from tnav.evaluate.limits import rows_of
from tnav.evaluate.metrics import (
    point_of_no_return,
    score,
    score_folder,
    summary_lines,
    within_limits,
)
from tnav.evaluate.run import run
from tnav.evaluate.runlog import RunDocument, json_schema, read_document, write_document
from tnav.evaluate.scenario import CameraRecipe, Imaging, load_scenario
from tnav.evaluate.world import build_world
from tnav.match import search
from tnav.simulate.fault_prescribed import Bias, Dropout

CPU = torch.device("cpu")


def _small():
    return load_scenario("resilience").model_copy(
        update={
            "camera": CameraRecipe(width_px=448, height_px=384),
            "imaging": Imaging(interval_s=8.0, samples=1),
        }
    )


def _quiet(*_):
    pass


@pytest.fixture(scope="module", autouse=True)
def exact():
    """Convolutions are the same sums on all devices, which are compared to rounding.

    Else a match at a threshold is lost or won, which moves the end by a millimetre.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_has_bfloat16", lambda kind: False)
        patch.setattr(search, "_one_by_one", lambda kind: False)
        yield


@pytest.fixture(scope="module")
def world():
    return build_world(_small(), CPU)


@pytest.fixture(scope="module")
def faulty(world):
    return run(world, _quiet, _quiet)


@pytest.fixture(scope="module")
def folder(faulty, tmp_path_factory):
    where = tmp_path_factory.mktemp("run")
    save(faulty, where, seed=0)
    write_document(where / "run.json", score(load(where)))
    return where


def test_every_fix_above_1_km_is_within_limits(folder):
    document = read_document(folder)
    scored = [f for f in document.frames if f.true_agl_m >= 1000]
    assert len(scored) == 11
    for frame in scored:
        assert frame.status == "ok"
        assert frame.agl_error_m is not None
        assert frame.horizontal_error_m is not None
        assert abs(frame.agl_error_m) < 0.005 * frame.true_agl_m
        assert frame.horizontal_error_m < 2 * frame.ground_sample_distance_m + 5
        assert within_limits(frame)


def test_late_acquisition_is_flagged_in_time(folder):
    document = read_document(folder)
    assert [v.kind for v in document.verdicts] == ["late_acquisition"]
    verdict, limit = document.verdicts[0], document.point_of_no_return
    assert verdict.statistic > verdict.threshold
    assert verdict.onset_s <= verdict.alert_s < limit.t_s
    # expected from 3000 m on; the point of no return is at 1.5 km and 75 m/s: 16 s of warning
    assert document.summary.seconds_before_no_return > 10
    assert document.summary.false_alarms == 0
    assert all(row.passed is not False for row in rows_of(document))


@pytest.fixture(scope="module")
def twin(world, faulty):
    return run(world.healthy_twin(), _quiet, _quiet)


def test_the_healthy_twin_raises_nothing(twin):
    document = score(arrays_of(twin, 0))
    assert document.verdicts == []
    assert document.summary.verdict == "healthy"
    assert all(row.passed is not False for row in rows_of(document))
    readings = [r for r in document.altimeter.range_m if r is not None]
    assert max(readings) > 3000


@pytest.mark.parametrize(
    ("fault", "kind", "latest_s"),
    [
        (Dropout(kind="dropout", start_s=70.0, duration_s=6.0), "dropout", 70.6),
        # the next fix, at 73 s, is the witness that exonerates the state
        (Bias(kind="bias", start_s=70.0, bias_m=80.0), "altimeter_inconsistent", 73.2),
    ],
)
def test_other_altimeter_faults_are_named(world, fault, kind, latest_s):
    scenario = world.scenario.model_copy(update={"fault": fault})
    document = score(arrays_of(run(replace(world, scenario=scenario), _quiet, _quiet), 0))
    assert [v.kind for v in document.verdicts] == [kind]
    assert document.summary.expected_verdict == kind
    assert 70.0 < document.verdicts[0].alert_s <= latest_s


def test_the_same_run_on_the_simulated_accelerator(world, faulty, simgpu):
    """Terrain, images, matching and solving there; the filter and the log here."""
    there = replace(
        world,
        device=torch.device(simgpu),
        truth=world.truth.to(simgpu),
        terrain_map=world.terrain_map.to(simgpu),
        observed={},
    )
    log = run(there, _quiet, _quiet)
    assert log.frames[0].localisation.matches.uv_px.device.type == simgpu
    for a, b in zip(log.frames, faulty.frames, strict=True):
        assert torch.equal(a.image, b.image)
        assert a.localisation.fix.status is b.localisation.fix.status
    assert torch.allclose(log.states[-1].position_L, faulty.states[-1].position_L, atol=1e-4)
    assert len(arrays_of(log, 0)["frame_t_s"]) == len(faulty.frames)


def test_filter_is_not_overconfident(faulty):
    """Position NEES under chi-square's 99.9 % at every state from 20 s on, map error included."""
    run_arrays = arrays_of(faulty, 0)
    late = run_arrays["state_t_s"] > 20.0
    error = (run_arrays["state_position_L"] - run_arrays["true_position_L"])[late]
    covariance = run_arrays["state_covariance"][late, :3, :3]
    nees = np.einsum("ni,nij,nj->n", error, np.linalg.inv(covariance), error)
    assert float(nees.max()) < 16.27


def test_scoring_from_the_file_equals_scoring_in_memory(faulty, folder):
    assert score(arrays_of(faulty, 0)) == score(load(folder))


def test_same_seed_same_run(world, faulty):
    again = run(world, _quiet, _quiet)
    for a, b in zip(faulty.states, again.states, strict=True):
        assert torch.equal(a.position_L, b.position_L)


def test_run_json_is_strict_and_fits_its_schema(folder):
    text = (folder / "run.json").read_text()
    data = json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} in run.json"))
    assert RunDocument.model_validate(data) == read_document(folder)
    schema = json_schema()
    assert set(schema["required"]) <= set(data)
    assert schema["additionalProperties"] is False
    assert "SYNTHETIC" in data["setup"]["relief"]


def test_summary_names_the_four_figures(folder):
    text = "\n".join(summary_lines(read_document(folder)))
    for words in ("altitude error", "position error", "verdict: late_acquisition", "point of no"):
        assert words in text


def test_eval_command_passes_and_fails_by_its_limits(folder, tmp_path, capsys):
    main_ok = _exit_code(["eval", str(folder), "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert main_ok == 0
    assert {"name", "value", "unit", "limit", "passed", "n", "device"} == set(rows[0])
    spoilt = tmp_path / "spoilt"
    shutil.copytree(folder, spoilt)
    arrays = dict(load(folder))
    arrays["frame_altitude"] = arrays["frame_altitude"] + np.array([0, 0, 100.0, 0, 0, 0])
    np.savez(spoilt / "run.npz", **arrays)
    assert _exit_code(["eval", str(spoilt)]) == 1
    assert "NO" in capsys.readouterr().out


def test_report_command(folder, capsys):
    assert _exit_code(["report", str(folder)]) == 0
    assert (folder / "report.html").stat().st_size > 1e6


def test_infer_finds_the_camera_of_a_demo_frame(folder, tmp_path, capsys):
    image, overlay = folder / "frames/003.png", tmp_path / "overlay.png"
    assert _exit_code(["infer", str(image), "--overlay", str(overlay)]) == 0
    found = json.loads(capsys.readouterr().out)
    true = load(folder)["frame_true_position_L"][3]
    agl_m = load(folder)["frame_true_agl_m"][3]
    assert found["status"] == "ok"
    assert np.hypot(*(np.array(found["position_L"]) - true)[:2]) < 10
    assert abs(found["agl_m"] - agl_m) < 0.005 * agl_m
    assert overlay.stat().st_size > 10_000


def test_infer_refuses_what_does_not_belong_together(folder, tmp_path, capsys):
    image = tmp_path / "a.png"
    shutil.copy(folder / "frames/000.png", image)
    assert _exit_code(["infer", str(image)]) == 2
    assert "a.json: cannot be read" in capsys.readouterr().err
    sidecar = json.loads((folder / "frames/000.json").read_text())
    sidecar["scenario"]["camera"]["width_px"] = 512
    image.with_suffix(".json").write_text(json.dumps(sidecar, indent=1))
    assert _exit_code(["infer", str(image)]) == 2
    assert "448 x 384 px, but a.json says 512 x 384" in capsys.readouterr().err
    sidecar["R_L_C"][0] = [2.0, 0.0, 0.0]
    image.with_suffix(".json").write_text(json.dumps(sidecar, indent=1))
    assert _exit_code(["infer", str(image)]) == 2
    assert "R_L_C: not a rotation" in capsys.readouterr().err


def test_infer_from_under_the_ground_is_no_fix(folder, tmp_path, capsys):
    shutil.copy(folder / "frames/003.png", tmp_path / "u.png")
    sidecar = json.loads((folder / "frames/003.json").read_text())
    sidecar["position_L"][2] = -50_000.0
    (tmp_path / "u.json").write_text(json.dumps(sidecar, indent=1))
    assert _exit_code(["infer", str(tmp_path / "u.png")]) == 1
    assert json.loads(capsys.readouterr().out)["position_L"] is None


def test_a_night_flight_has_no_fix_and_still_a_report(tmp_path, capsys):
    recipe = tmp_path / "night.yaml"
    recipe.write_text(
        "name: night\nepoch_utc: 2025-06-25T00:00:00Z\n"
        "site: {latitude_deg: 60.5, longitude_deg: -4.6, cells: 256}\n"
        "camera: {width_px: 160, height_px: 128}\nimaging: {interval_s: 30, samples: 1}\n"
    )
    assert _exit_code(["run", str(recipe), "--out", str(tmp_path / "out")]) == 0
    assert _exit_code(["report", str(tmp_path / "out")]) == 0
    document = read_document(tmp_path / "out")
    assert {f.status for f in document.frames} == {"too_few_matches"}
    assert document.summary.fixes_failed == document.summary.fixes_scored > 0
    assert _exit_code(["eval", str(tmp_path / "out")]) == 1  # no fix is within limits
    assert not list(tmp_path.rglob("*.part"))


def test_a_run_replaces_an_earlier_one(faulty, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "again")
    (tmp_path / "again/frames/099.png").write_bytes(b"stale")
    (tmp_path / "again/notes.txt").write_text("mine")
    save(faulty, tmp_path / "again", seed=0)
    assert not (tmp_path / "again/frames/099.png").exists()
    assert not (tmp_path / "again/run.json").exists()
    assert (tmp_path / "again/notes.txt").read_text() == "mine"


def test_an_alert_before_the_fault_is_false(faulty):
    arrays = arrays_of(faulty, 0)
    setup = json.loads(str(arrays["setup"]))
    alert_s = float(arrays["verdict_alert_s"][0])
    for start_s, false_alarms in ((alert_s - 0.01, 0), (alert_s + 0.01, 1)):
        arrays["setup"] = np.array(json.dumps({**setup, "fault_start_s": start_s}))
        assert score(arrays).summary.false_alarms == false_alarms


def test_an_image_of_another_place_is_no_fix(folder, tmp_path, capsys):
    """Noise that is not this terrain: a status, no pose, exit status 1."""
    from tnav.images import write_png16

    noise = torch.rand(384, 448, generator=torch.Generator().manual_seed(0))
    write_png16(tmp_path / "n.png", noise)
    shutil.copy(folder / "frames/003.json", tmp_path / "n.json")
    assert _exit_code(["infer", str(tmp_path / "n.png")]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["status"] in ("too_few_matches", "no_consensus")
    assert found["position_L"] is None
    assert found["agl_m"] is None


def test_damaged_run_files_are_refused(folder, tmp_path):
    with pytest.raises(RunFileError, match=r"run.npz: missing"):
        load(tmp_path)
    with pytest.raises(RunFileError, match=r"run.json: missing"):
        read_document(tmp_path)
    (tmp_path / "run.npz").write_bytes((folder / "run.npz").read_bytes()[:1000])
    with pytest.raises(RunFileError, match=r"run.npz: damaged"):
        load(tmp_path)
    arrays = dict(load(folder))
    del arrays["frame_status"]
    np.savez(tmp_path / "run.npz", **arrays)
    with pytest.raises(RunFileError, match=r"run.npz: not a run of this version.*frame_status"):
        score_folder(tmp_path)
    arrays["setup"] = np.array("{}")
    np.savez(tmp_path / "run.npz", **arrays)
    with pytest.raises(RunFileError, match=r"run.npz: not a run of this version"):
        score_folder(tmp_path)
    np.savez(tmp_path / "run.npz", setup=np.array("{}"))
    with pytest.raises(RunFileError, match="no array 'frame_t_s'"):
        load(tmp_path)
    data = json.loads((folder / "run.json").read_text())
    data["summary"]["verdict"] = None
    (tmp_path / "run.json").write_text(json.dumps(data))
    with pytest.raises(RunFileError, match=r"summary.verdict: .*expected schema tnav-run/1"):
        read_document(tmp_path)
    (tmp_path / "run.json").write_text('{"setup": NaN}')
    with pytest.raises(RunFileError, match=r"not strict JSON: found NaN"):
        read_document(tmp_path)


@given(st.floats(0.5, 5.0), st.floats(10, 70))
def test_point_of_no_return_of_a_constant_speed(a_net, speed):
    """At constant speed v the stopping height is v^2 / 2a: passed at the first step below it."""
    height = np.linspace(5000, 0, 5001)
    arrays = {
        "true_velocity_L": np.tile([0.0, 0.0, -speed], (5001, 1)),
        "true_agl_m": height,
        "state_t_s": np.arange(5001) / speed,
    }
    limit = point_of_no_return(arrays, a_net)
    stopping = speed**2 / (2 * a_net)
    assert limit.height_m is not None
    assert stopping - 1.0 <= limit.height_m < stopping
    assert limit.speed_m_s == pytest.approx(speed)


def test_a_slow_lander_has_no_point_of_no_return():
    arrays = {
        "true_velocity_L": np.tile([0.0, 0.0, -1.0], (10, 1)),
        "true_agl_m": np.linspace(100, 50, 10),
        "state_t_s": np.arange(10.0),
    }
    assert point_of_no_return(arrays, 1.85).t_s is None


def test_the_report_says_how_to_fly_it_again(twin, folder, tmp_path):
    save(twin, tmp_path, seed=7)
    write_document(tmp_path / "run.json", score_folder(tmp_path))
    assert _exit_code(["report", str(tmp_path)]) == 0
    assert "tnav run resilience --seed 7 --healthy " in (tmp_path / "report.html").read_text()
    assert _exit_code(["report", str(folder)]) == 0
    assert "tnav run resilience --seed 0 " in (folder / "report.html").read_text()


def _exit_code(argv):
    try:
        main(argv)
    except SystemExit as stop:
        return stop.code or 0
    return 0
