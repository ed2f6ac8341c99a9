"""The page of the relief's figures: strict, offline, and nothing but what was measured."""

import json
import re

import plotly.graph_objects as go
import pytest

from tnav.cli import main
from tnav.errors import RunFileError
from tnav.evaluate.limits import Row
from tnav.report.relief import relief_figure, write_relief_page


def _points(label, values, *, published=False):
    return {"label": label, "values": values, "published": published}


def _curve(label, *, published=True):
    return {"label": label, "x": [1.0, 10.0], "y": [5.0, 0.5], "published": published}


@pytest.fixture
def charts():
    counted = [{"x": 2.0, "y": 10.0, "low": 7.0, "high": 16.0}]
    axes = {"x_label": "baseline (m)", "y_label": "slope (deg)"}
    return {
        "counts": {
            "title": "Craters",
            "x_label": "diameter (m)",
            "y_label": "craters per km²",
            "curves": [_curve("production"), _curve("</script><b>"), _curve("model")],
            "points": [_points("drawn", counted)],
        },
        "slope": {
            "title": "Slope",
            **axes,
            "curves": [_curve("maria")],
            "points": [
                _points("relief", [{"x": 3.0, "y": 1.0}]),
                _points("published", [{"x": 17.0, "y": 2.0}], published=True),
            ],
        },
        "deviation": {
            "title": "Deviation",
            **axes,
            "curves": [_curve("maria")],
            "points": [_points("relief", [{"x": 3.0, "y": 1.0}])],
        },
    }


ROWS = [
    Row("met <limit>", 1.25, "deg", "2 +- 1", True, 12345, "cpu"),
    Row("missed", 7.5, "m", "< 7", False, 3, "cpu"),
    Row("unlimited", 0.5, "", None, None, 6, "cpu"),
]


def test_figures_are_logarithmic_and_bars_end_where_intervals_do(charts):
    for name, chart in charts.items():
        figure = relief_figure(name, chart)
        go.Figure(figure.spec)  # plotly itself takes every key of it
        assert figure.spec["layout"]["xaxis"]["type"] == "log"
        assert figure.spec["layout"]["yaxis"]["type"] == "log"
        named = [trace["name"] for trace in figure.spec["data"]]
        assert named == [each["label"] for each in (*chart["curves"], *chart["points"])]
    drawn = relief_figure("counts", charts["counts"]).spec["data"][-1]
    assert drawn["y"][0] + drawn["error_y"]["array"][0] == 16.0
    assert drawn["y"][0] - drawn["error_y"]["arrayminus"][0] == 7.0
    slope = relief_figure("slope", charts["slope"]).spec["data"]
    assert [trace.get("marker", {}).get("symbol") for trace in slope] == [None, "circle", "star"]
    assert "error_y" not in slope[1]


def test_the_page_is_one_offline_file_with_every_number(charts, tmp_path):
    path = write_relief_page(tmp_path / "new", ROWS, charts)
    assert [p.name for p in path.parent.iterdir()] == ["relief.html"]
    page = path.read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img)[^>]*\b(src|href)=", page)
    assert page.count("Plotly.newPlot(canvas") == 1
    specs = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)
    assert [json.loads(s)["data"][0]["name"] for s in specs] == ["production", "maria", "maria"]
    assert json.loads(specs[0])["data"][1]["name"] == "</script><b>"
    assert "met &lt;limit&gt;" in page
    assert "12,345" in page
    assert page.count("✕ missed") == 1
    assert "Rosenburg et al. 2011" in page
    assert "SYNTHETIC" in page


def test_a_page_that_cannot_be_written_is_said(charts, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunFileError, match=r"relief\.html: cannot be written"):
        write_relief_page(tmp_path / "file", ROWS, charts)


def test_only_the_relief_has_a_page(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "pose", "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert "'match', 'filter', 'fix-model', 'monitor' and 'relief'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
