"""Folders of closed-loop descents: read or refused by name, scored, and turned into figures."""

import io
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from flown_descents import (
    CONTACT_S,
    DEGREES,
    DOWN_M_S,
    DRIFT_M_S,
    SIGMA,
    made_arrays,
    made_record,
    recipe,
    row_of,
    write_folder,
)
from scipy.stats import binom, chi2

from tnav.errors import RunFileError
from tnav.evaluate import bench_filter
from tnav.evaluate.descent_archive import write_descent
from tnav.evaluate.descent_figures import (
    agl_rms,
    beyond_3_sigma,
    consistency_of,
    endings_of,
    gate_of,
    nis_of,
    track_of,
)
from tnav.evaluate.descent_folder import DescentGroup, holds_descents, read_arrays, read_groups
from tnav.evaluate.descent_score import group_rows, judged_heights_m, missed, score_descents
from tnav.evaluate.flight_log import EDGES_M
from tnav.evaluate.flight_runs import keep_arrays
from tnav.geometry.moon import RADIUS_M, LocalFrame
from tnav.navigate.state import FilterConfig
from tnav.records import Sensor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("descents"), 12, 3)


@pytest.fixture
def groups(folder):
    return read_groups(folder)


def npy_bytes():
    """An array of its own, which numpy also loads."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def group_of(**changes):
    arrays = made_arrays(4)
    for name, value in changes.items():
        arrays[name][0] = value
    return DescentGroup("image", (0, 1, 2, 3), arrays, ())


def test_a_folder_is_read_by_name_and_seed(groups, folder):
    assert holds_descents(folder)
    assert [(g.name, g.title, g.blind) for g in groups] == [
        ("image", "image", False),
        ("image-no-altimeter", "image, no altimeter", True),
    ]
    assert groups[0].seeds == tuple(range(12))  # 10 comes after 9, not after 1
    assert [r.seed for r in groups[0].records] == [0, 1, 2]
    expected = made_arrays(12, seed=7)
    assert expected.keys() == groups[0].flown.keys()
    for name, array in groups[0].flown.items():
        np.testing.assert_array_equal(array, expected[name])


def test_the_rows_are_those_of_the_bench(groups, folder, monkeypatch):
    monkeypatch.setattr(bench_filter, "identity_of", lambda *_: "made up")
    said = []
    descent = bench_filter.load_descent(bench_filter.DESCENT)
    rows = bench_filter._images(descent, 12, folder, torch.device("cpu"), said.append)
    assert not said  # nothing was flown
    ours = score_descents(groups)
    assert [replace(row, device="cpu") for row in ours] == rows
    assert not missed(ours)


def test_a_missed_limit_is_a_row(groups):
    hard = group_of(contact_down_m_s=2.5)
    assert [row.name for row in missed(group_rows(hard))] == [
        "image: vertical speed at contact, 99.73 %"
    ]
    assert not missed(group_rows(replace(hard, name="image-no-altimeter")))  # 3 m/s there
    assert missed(group_rows(replace(group_of(contact_down_m_s=3.5), name="image-no-altimeter")))


def test_histories_alone_are_scored_one_by_one(tmp_path):
    path = write_descent(made_record(seed=4), tmp_path)
    write_descent(made_record(seed=5, landed=False), tmp_path)
    [group] = read_groups(tmp_path)
    assert (group.flown, group.seeds, len(group.records)) == (None, (4, 5), 2)
    rows = group_rows(group)
    assert [row.name for row in missed(rows)] == ["image-5: outcome"]
    assert {row.name: row.value for row in rows}["image-4: miss"] == 5.0
    [alone] = read_groups(path)
    assert alone.seeds == (4,)
    assert holds_descents(path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "image-3.npz").write_bytes(b"PK\x03\x04 no zip"), "image-3.npz: damaged"),
        (
            lambda f: (f / "image-3.npz").write_bytes((f / "image-3.npz").read_bytes()[:-400]),
            "image-3.npz: damaged",
        ),
        (lambda f: (f / "image-3.npz").write_bytes(npy_bytes()), "image-3.npz: damaged"),
        (lambda f: np.savez(f / "image-3.npz", error=1.0), "image-3.npz: agl_error_m: missing"),
        (
            lambda f: keep_arrays(f / "image-3.npz", "", made_arrays(2)),
            r"image-3.npz: \w+: found float64 \(2,",
        ),
        (
            lambda f: keep_arrays(f / "image-3.npz", "", made_arrays(1) | {"more": np.zeros(1)}),
            "image-3.npz: more: unknown array",
        ),
        (lambda f: (f / "records/image-1.npz").unlink(), "records/image-1.npz: missing"),
        (lambda f: (f / "records/image-1.json").write_text("{"), "image-1.json: not strict JSON"),
        (
            lambda f: write_descent(made_record(seed=1, landed=False), f / "records"),
            "image-1.json: touchdown.t_s: found nan, expected 59.8 .* not the same descent",
        ),
        (
            lambda f: write_descent(replace(made_record(seed=1), recipe=recipe(True)),
                                    f / "records"),
            "image-1.json: recipe: not that of image-0.json",
        ),
    ],
)  # fmt: skip
def test_what_is_damaged_or_foreign_is_named(tmp_path, folder, damage, words):
    copy = shutil.copytree(folder, tmp_path / "copy")
    damage(copy)
    with pytest.raises(RunFileError, match=words) as error:
        read_groups(copy)
    assert "\n" not in str(error.value)


def test_an_empty_folder_has_no_descents(tmp_path):
    assert not holds_descents(tmp_path)
    with pytest.raises(RunFileError, match=r"no NAME-SEED\.npz"):
        read_groups(tmp_path)


def test_a_history_s_arrays_are_not_taken_for_a_descent_s(folder):
    [group, _] = read_groups(folder / "records")
    assert group.flown is None
    assert group.seeds == (0, 1, 2)
    with pytest.raises(RunFileError, match="array"):
        read_arrays(folder / "records/image-0.npz")


def test_a_track_ends_at_contact_and_is_in_what_people_read():
    record = made_record()
    track = track_of(record)
    assert track.t_s[-1] == 59.5  # the last epoch before CONTACT_S
    assert track.end_m == (3.0, 4.0)  # of the epoch after it
    assert track.speeds_m_s == (1.5, 0.3)
    np.testing.assert_allclose(track.down_m_s, DOWN_M_S, atol=0.2)  # the vertical leans by 1 mrad
    np.testing.assert_allclose(track.across_m_s, DRIFT_M_S, atol=0.2)
    left_s = CONTACT_S - track.t_s
    np.testing.assert_allclose(track.height_m, DOWN_M_S * left_s, rtol=1e-4, atol=0.1)
    n = track.t_s.size
    error = (record.series.position_nav_L - record.series.position_L)[:n]
    np.testing.assert_array_equal(track.error[:, :3], error)
    np.testing.assert_allclose(track.sigma[:, 8], math.degrees(SIGMA[2]))
    assert np.isnan(track.agl_error_percent[:10]).all()
    np.testing.assert_allclose(track.agl_error_percent[10:], 0.1, rtol=1e-9)


def test_attitude_errors_are_degrees_from_truth_to_navigation():
    record = made_record()
    angle = torch.tensor(0.3, dtype=torch.float64)
    turn = torch.eye(3, dtype=torch.float64)
    turn[0, 0] = turn[1, 1] = angle.cos()
    turn[1, 0], turn[0, 1] = angle.sin(), -angle.sin()  # navigation's body is turned about up
    series = replace(record.series, R_nav_L_B=turn @ record.series.R_L_B)
    error = track_of(replace(record, series=series)).error[:, 6:]
    np.testing.assert_allclose(
        error, np.tile([0, 0, math.degrees(0.3)], (len(error), 1)), atol=1e-9
    )


@pytest.mark.parametrize("height_m", [0.0, 20e3])
def test_range_is_the_arc_along_the_sphere(height_m):
    frame, arc_deg = LocalFrame(60.5, -4.6), 13.0
    latitude = torch.tensor([60.5 - arc_deg, 60.5], dtype=torch.float64)
    longitude = torch.full((2,), -4.6, dtype=torch.float64)
    height = torch.full((2,), height_m, dtype=torch.float64)
    record = made_record()
    n = len(record.series.t_s)
    point = frame.local(latitude, longitude, height)[:1].expand(n, 3).clone()
    track = track_of(replace(record, series=replace(record.series, position_L=point)))
    np.testing.assert_allclose(track.range_m, RADIUS_M * math.radians(arc_deg), rtol=1e-12)


def test_phases_follow_each_other_without_gaps():
    stretches = track_of(made_record()).stretches
    assert [s.phase for s in stretches] == ["coast", "braking", "approach"]
    assert [(s.begin_s, s.end_s) for s in stretches] == [(0, 20), (20, 40), (40, 59.5)]
    record = made_record()
    odd = replace(record, series=replace(record.series, phase=record.series.phase + 2))
    assert [s.phase for s in track_of(odd).stretches] == ["approach", "terminal", "phase 4"]


def test_errors_of_three_sigma_are_within_and_more_are_beyond():
    track = track_of(made_record())
    at = replace(track, error=3 * track.sigma)
    assert beyond_3_sigma([at]) == (0.0,) * 9
    assert beyond_3_sigma([replace(at, error=-np.nextafter(at.error, np.inf))]) == (100.0,) * 9
    assert beyond_3_sigma([at, replace(at, error=-3.01 * at.sigma)]) == (50.0,) * 9
    tracks = [track_of(made_record(seed=seed)) for seed in range(20)]
    n = sum(9 * t.t_s.size for t in tracks)
    low, high = binom.ppf([1e-6, 1 - 1e-6], n, 0.0026998)
    assert low <= np.mean(beyond_3_sigma(tracks)) / 100 * n <= high


def test_innovations_are_those_that_were_there():
    found = nis_of(made_record())
    assert {nis.sensor: nis.degrees for nis in found} == DEGREES
    for nis in found:
        assert nis.t_s.size == nis.nis.size == 32  # of 40, every fifth is missing
        assert (~nis.fused).sum() == 1
        assert nis.nis[-1] == pytest.approx(100 * nis.degrees)
    assert {nis.sensor for nis in nis_of(made_record(blind=True))} == set(DEGREES) - {
        Sensor.ALTIMETER
    }


@pytest.mark.parametrize(("sensor", "degrees"), DEGREES.items())
def test_a_gate_passes_as_many_as_the_filter_is_told(sensor, degrees):
    gate = gate_of(sensor, degrees, "terrain_aware")
    assert chi2.cdf(gate, degrees) == pytest.approx(FilterConfig().gate_probability, abs=1e-12)
    none = gate_of(sensor, degrees, "none")
    assert none is None if sensor is Sensor.ALTIMETER else none == gate


def test_honest_descents_lie_within_the_bounds_and_others_do_not():
    of = consistency_of(made_arrays(400, seed=3))
    whats = ["NEES position", "NEES velocity", "NEES attitude"]
    assert list(of.bands)[:3] == whats
    assert len(of.bands) == 3 + len(DEGREES)
    for bands in of.bands.values():
        assert [band.height_m for band in bands] == list(EDGES_M)
        for band in bands:
            assert band.n == 400
            assert band.together[0] < band.own[0] < 1 < band.own[1] < band.together[1]
            assert band.together[0] < band.value < band.together[1]
    for shares in of.within.values():
        n = 400 * 3 * len(EDGES_M)
        for share, honest in zip(shares, of.honest, strict=True):
            low, high = binom.ppf([1e-6, 1 - 1e-6], n, honest / 100)
            assert low - 1 <= share / 100 * n <= high + 1  # shares are rounded to 0.01 %
    proud = consistency_of(made_arrays(400, seed=3, sigma_told=0.8))
    for what in whats:
        for band, honest in zip(proud.bands[what], of.bands[what], strict=True):
            assert band.value == pytest.approx(honest.value / 0.64)
            assert band.value > band.together[1]


def test_few_descents_have_no_means_but_a_coverage():
    of = consistency_of(made_arrays(9))
    assert not of.bands
    assert list(of.within) == ["position", "velocity", "attitude"]
    assert {len(shares) for shares in of.within.values()} == {3}


def test_the_rms_of_the_height_is_by_band_where_the_ground_is_known():
    arrays = made_arrays(4)
    arrays["agl_error_m"][:, 2] = 7000 * np.array([0.01, -0.01, 0.03, np.nan])
    arrays["agl_m"][:, 0] = np.nan
    found = agl_rms(arrays)
    assert [height for height, _ in found] == pytest.approx(EDGES_M[1:])
    assert found[1][1] == pytest.approx(100 * math.sqrt(11 / 3) * 0.01)
    assert [percent for _, percent in found[2:]] == pytest.approx([0.1] * 6)


def test_heights_with_a_limit_are_those_where_a_large_error_is_missed():
    arrays = made_arrays(4)
    judged = judged_heights_m(arrays)
    for k, edge_m in enumerate(EDGES_M):
        wrong = made_arrays(4)
        wrong["agl_error_m"][:, k] = 0.01 * edge_m
        lost = missed(group_rows(DescentGroup("image", (0, 1, 2, 3), wrong, ())))
        assert (f"image: AGL error at {edge_m:.0f} m, rms" in [r.name for r in lost]) is (
            edge_m in judged
        )


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, "landed"),
        ({"contact_down_m_s": 2.0}, "landed"),
        ({"contact_down_m_s": 2.001}, "crashed"),
        ({"contact_horizontal_m_s": 1.001}, "crashed"),
        ({"contact_down_m_s": 9.0, "propellant_kg": 0.0}, "ran_dry"),
        ({"contact_t_s": np.nan, "contact_down_m_s": np.nan}, "timeout"),
    ],
)
def test_an_ending_is_told_from_arrays_as_from_a_history(changes, outcome):
    ending = endings_of(group_of(**changes))[0]
    assert ending.outcome == outcome
    assert (ending.down_m_s is None) is (outcome == "timeout")
    if outcome == "landed":
        assert ending.horizontal_error_m == pytest.approx(1.0)
        assert ending.velocity_error_m_s == pytest.approx(0.05)
        assert (ending.fixes, ending.exposures) == (25, 26)


def test_endings_of_histories_alone_know_the_fixes_but_not_the_images():
    record = made_record()
    [ending] = endings_of(DescentGroup("image", (0,), None, (record,)))
    assert (ending.miss_m, ending.fixes, ending.exposures) == (5.0, 32, None)
    told = endings_of(DescentGroup("image", (0,), row_of(made_arrays(1), 0), (record,)))
    assert told[0].outcome == "landed"
