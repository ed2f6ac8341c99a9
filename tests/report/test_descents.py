"""The page of a folder of descents: one offline file, strict, with what the folder holds."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest
from flown_descents import CONTACT_S, DEGREES, made_arrays, made_record, row_of, write_folder

from tnav.cli import main
from tnav.errors import RunFileError
from tnav.evaluate.descent_archive import write_descent
from tnav.evaluate.descent_figures import consistency_of, gate_of, nis_of, track_of
from tnav.evaluate.descent_folder import DescentGroup, read_groups
from tnav.evaluate.flight_log import EDGES_M
from tnav.evaluate.flight_runs import keep_arrays
from tnav.records import Sensor
from tnav.report.descent_charts import errors, height_error, touchdowns, trajectory
from tnav.report.descent_consistency import consistency_figure, innovations
from tnav.report.descents import group_figures, write_descents_page

FIGURES = ["trajectory", "errors", "bands", "nis", "agl", "touchdown"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("descents"), 12, 2)


@pytest.fixture(scope="module")
def groups(folder):
    return read_groups(folder)


@pytest.fixture(scope="module")
def tracks():
    return [track_of(made_record(seed=seed)) for seed in range(3)]


def named(figure, name):
    return [trace for trace in figure.spec["data"] if trace["name"] == name]


def status(argv):
    """Exit status of the command line."""
    try:
        main([str(word) for word in argv])
    except SystemExit as stopped:
        return stopped.code
    return 0


def test_every_figure_is_one_that_plotly_takes_and_its_shapes_lie_on_axes(groups):
    for group in groups:
        figures = group_figures("group-0", group)
        assert [figure.name for figure in figures] == [f"group-0-{name}" for name in FIGURES]
        for figure in figures:
            go.Figure(figure.spec)
            json.dumps(figure.spec, allow_nan=False)
            layout = figure.spec["layout"]
            shown = [trace["name"] for trace in figure.spec["data"] if trace["showlegend"]]
            assert len(shown) == len(set(shown)) > 0
            for trace in figure.spec["data"]:
                assert layout["xaxis" + trace["xaxis"][1:]]["anchor"] == trace["yaxis"]
                assert layout["yaxis" + trace["yaxis"][1:]]["anchor"] == trace["xaxis"]


def test_plots_of_a_grid_do_not_overlap(groups):
    for figure in group_figures("g", groups[0]):
        layout = figure.spec["layout"]
        boxes = [
            (*layout[key]["domain"], *layout["yaxis" + key[5:]]["domain"])
            for key in layout
            if key.startswith("xaxis")
        ]
        for k, (left, right, low, high) in enumerate(boxes):
            assert 0 <= left < right <= 1
            assert 0 <= low < high <= 1
            for other in boxes[:k]:
                apart = left >= other[1] or right <= other[0] or low >= other[3] or high <= other[2]
                assert apart


def test_phases_are_shaded_where_time_runs(tracks):
    spec = trajectory("t", tracks).spec
    shaded = {shape["xref"] for shape in spec["layout"]["shapes"]}
    assert shaded == {"x3", "x4", "x5", "x6"}
    ends = [(s["x0"], s["x1"]) for s in spec["layout"]["shapes"] if s["xref"] == "x3"]
    assert ends == [(0, 20), (20, 40), (40, 59.5)]


def test_errors_and_their_band_are_drawn_on_one_folded_axis(tracks):
    figure = errors("e", tracks, {Sensor.VISION: 21.0, Sensor.ALTIMETER: 30.0})
    layout = figure.spec["layout"]
    bold, bands = named(figure, "seed 0"), named(figure, "± 3σ")
    assert len(bold) == len(bands) == 9
    for k, turn in ((0, 0.1), (1, 0.01), (2, 0.001)):  # the first row: east of each
        error, sigma = tracks[0].error[:, 3 * k], tracks[0].sigma[:, 3 * k]
        back = 2 * turn * np.sinh(np.array(bold[k]["y"]) * math.log(10))
        np.testing.assert_allclose(back, error, rtol=1e-4, atol=1e-4 * turn)
        edge = 2 * turn * math.sinh(max(y for y in bands[k]["y"] if y is not None) * math.log(10))
        assert edge == pytest.approx(3 * sigma[0], rel=1e-4)
        axis = layout["yaxis" + bold[k]["yaxis"][1:]]
        for value, text in zip(axis["tickvals"], axis["ticktext"], strict=True):
            told = float(text.replace("−", "-"))
            assert 2 * turn * math.sinh(value * math.log(10)) == pytest.approx(told, rel=1e-4)
        assert axis["range"][1] > max(bands[k]["y"][0], *np.abs(bold[k]["y"]))
    assert layout["xaxis"]["range"][0] == 0  # not before the flight
    lines = {shape["x0"] for shape in layout["shapes"]}
    assert lines == {21.0, 30.0}


def test_innovations_stand_beside_their_gate():
    of_sensor = [nis for seed in range(3) for nis in nis_of(made_record(seed=seed))]
    gates = {nis.sensor: gate_of(nis.sensor, nis.degrees, "none") for nis in of_sensor}
    figure = innovations("n", of_sensor, gates)
    drawn = {trace["xaxis"]: trace["y"] for trace in named(figure, "gate")}
    wanted = [gates[sensor] for sensor in Sensor if gates[sensor] is not None]
    assert len(wanted) == len(DEGREES) - 1  # this policy has no gate of the altimeter
    np.testing.assert_allclose(list(drawn.values()), np.transpose([wanted, wanted]), rtol=1e-5)
    refused = named(figure, "refused")
    assert [len(trace["x"]) for trace in refused] == [3] * len(DEGREES)
    assert not named(figure, "taken in spite of its gate")
    forced = [replace(nis, fused=np.ones_like(nis.fused)) for nis in of_sensor]
    spite = named(innovations("n", forced, gates), "taken in spite of its gate")
    assert [len(trace["x"]) for trace in spite] == [3] * (len(DEGREES) - 1)


def test_all_that_is_refused_is_drawn_of_many():
    [nis] = [n for n in nis_of(made_record()) if n.sensor is Sensor.ALTIMETER]
    number = 20_000
    fused = np.ones(number, dtype=np.bool_)
    fused[[3, 7777]] = False
    t_s, values = np.arange(float(number)), np.full(number, 2.0)
    many = replace(nis, seed=9, t_s=t_s, nis=values, fused=fused)
    figure = innovations("n", [nis, many], {Sensor.ALTIMETER: 15.0})
    assert set(named(figure, "refused")[0]["x"]) >= {3.0, 7777.0}
    assert len(named(figure, "the other descents")[0]["x"]) <= 2000


def test_bands_are_drawn_with_both_bounds():
    of = consistency_of(made_arrays(50))
    figure = consistency_figure("c", "Consistency", of)
    means, own = named(figure, "mean"), named(figure, "95 % bounds of each")
    together = named(figure, "bounds of all at once")
    for trace, inner, outer, bands in zip(means, own, together, of.bands.values(), strict=True):
        assert trace["x"] == [f"{edge / 1e3:g}" for edge in EDGES_M]
        np.testing.assert_allclose(trace["y"], [band.value for band in bands], rtol=1e-5)
        np.testing.assert_allclose(inner["y"][:2], bands[0].own, rtol=1e-5)
        np.testing.assert_allclose(outer["y"][:2], bands[0].together, rtol=1e-5)
    assert [named(figure, f"{what} ")[0]["y"] for what in of.within] == [
        list(shares) for shares in of.within.values()
    ]


def test_few_descents_have_a_figure_of_coverage_only():
    figure = consistency_figure("c", "Consistency", consistency_of(made_arrays(5)))
    assert not named(figure, "mean")
    assert "need ten descents" in figure.caption
    nothing = made_arrays(5)
    nothing["error"][:] = np.nan
    assert consistency_figure("c", "Consistency", consistency_of(nothing)) is None


def test_the_height_error_leaves_out_what_is_not_known(tracks):
    figure = height_error("a", tracks, [(1000.0, 0.2)], [5000.0, 500.0])
    [bold] = named(figure, "seed 0")
    assert len(bold["x"]) == tracks[0].t_s.size - 10  # NaN at first
    np.testing.assert_allclose(bold["y"], 0.1, rtol=1e-5)
    assert named(figure, "rms of all descents")[0]["y"] == [0.2]
    assert named(figure, "limit of the rms")[0]["x"] == [5000.0, 500.0]
    nowhere = replace(tracks[0], agl_m=np.full_like(tracks[0].agl_m, np.nan))
    json.dumps(height_error("a", [nowhere], [], []).spec, allow_nan=False)


def test_touchdowns_tell_landings_from_others(tracks):
    crashed = replace(tracks[2], outcome="crashed", speeds_m_s=(7.0, 3.0))
    flying = replace(tracks[1], outcome="timeout", speeds_m_s=None)
    figure = touchdowns("d", [tracks[0], flying, crashed], 2.0)
    landed, others = named(figure, "landed"), named(figure, "not landed")
    assert [len(trace["x"]) for trace in landed] == [1, 1, 1]
    assert [len(trace["x"]) for trace in others] == [2, 1, 2]
    assert (landed[0]["x"], landed[0]["y"]) == ([3.0], [4.0])
    layout = figure.spec["layout"]
    assert layout["xaxis2"]["range"][1] > 3.0
    assert layout["yaxis2"]["range"][1] > 7.0
    assert {s["yref"] for s in layout["shapes"]} == {"y"}  # rings, in metres


def test_the_page_is_one_offline_file(groups, tmp_path):
    path = write_descents_page(tmp_path / "new" / "page.html", groups)
    page = path.read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img)[^>]*\b(src|href)=", page)
    assert "default-src 'none'" in page
    specs = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)
    assert len(specs) == 2 * len(FIGURES)
    assert all(json.loads(spec)["data"] for spec in specs)
    ids = re.findall(r'id="((?:group|figure)[^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert "12 of 12 landed" in page
    assert "2 of 2 landed" in page
    assert "seeds 0 to 11" in page
    assert "60.500°\u00a0N, 4.600°\u00a0W" in page
    assert "flown without altimeter" in page
    assert page.count("✓ landed") == 14
    assert "missed:" not in page
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_the_page_says_what_is_missed_and_what_is_not_there(tmp_path):
    arrays = [row_of(made_arrays(3), k) for k in range(3)]
    arrays[2]["contact_down_m_s"][:] = 9.0
    for seed, each in enumerate(arrays):
        keep_arrays(tmp_path / f"<b>-{seed}.npz", "", each)
    page = write_descents_page(tmp_path / "p.html", read_groups(tmp_path)).read_text("utf-8")
    assert "2 of 3 landed" in page
    assert "missed: &lt;b&gt;: vertical speed at contact, 99.73 %: 9.0 m/s" in page
    assert "<b>:" not in page
    assert "✕ crashed" in page
    assert "holds no histories" in page
    assert page.count('class="canvas"') == 1  # coverage


def test_a_page_that_cannot_be_written_is_said(groups, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunFileError, match=r"page\.html: cannot be written"):
        write_descents_page(tmp_path / "file" / "page.html", groups)


def test_eval_prints_the_rows_and_writes_the_page(folder, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert status(["eval", folder, "--page", page]) == 0
    out = capsys.readouterr().out
    assert f"page: {page}" in out
    assert "image: NEES position, under 15000 m" in out
    assert "image, no altimeter: AGL error at 500 m, rms" in out
    assert page.is_file()
    assert not (folder / "descents.html").exists()


def test_eval_as_json_leaves_the_page_in_the_folder(tmp_path, capsys):
    arrays = made_arrays(1)
    arrays["contact_agl_error_m"][:] = 1.5
    keep_arrays(tmp_path / "image-0.npz", "", arrays)
    assert status(["eval", tmp_path, "--json"]) == 1  # a limit is missed
    told = capsys.readouterr()
    rows = json.loads(told.out)
    assert [row["name"] for row in rows if row["passed"] is False] == [
        "image: AGL error at contact, 99.73 %"
    ]
    assert f"page: {tmp_path / 'descents.html'}" in told.err
    assert (tmp_path / "descents.html").is_file()


def test_one_history_is_evaluated_and_reported(tmp_path, capsys):
    path = write_descent(made_record(seed=4), tmp_path)
    assert status(["eval", path]) == 0
    assert (tmp_path / "image-4.html").is_file()
    assert "image-4: outcome" in capsys.readouterr().out
    assert status(["report", tmp_path]) == 0
    assert (tmp_path / "descents.html").is_file()
    assert str(CONTACT_S) in (tmp_path / "descents.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("files", "argv", "words"),
    [
        ([], [], ["run.npz: missing", "'tnav bench filter'"]),
        (["image-0.npz", "model.yaml"], [], ["'model.yaml' and 'NAME-SEED.npz", "one kind"]),
        (["image-0.npz", "run.npz"], [], ["'run.npz' and 'NAME-SEED.npz", "one kind"]),
        (["image-0.npz"], [], ["image-0.npz: damaged"]),
        (["image-0.npz"], ["--quick"], ["--quick", "model's folder"]),
        (["run.npz"], ["--page", "x.html"], ["--page goes with a folder of descents"]),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(tmp_path, capsys, files, argv, words):
    for name in files:
        (tmp_path / name).write_bytes(b"nothing")
    assert status(["eval", tmp_path, *argv]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert error.startswith("error: ")
    for word in words:
        assert word in error
    assert {p.name for p in tmp_path.iterdir()} == set(files)


def test_a_batch_without_histories_has_its_consistency_drawn():
    group = DescentGroup("model", tuple(range(30)), made_arrays(30), ())
    [figure] = group_figures("m", group)
    assert figure.name == "m-bands"
    go.Figure(figure.spec)
