"""The offline report: self-contained, strict, escaped, whole or not there at all."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from descent_document import ALERT_S, FAILED, SPEC_M, write_run

from tnav.errors import ImageError, RunFileError
from tnav.evaluate.metrics import AGL_LIMIT_PERCENT
from tnav.evaluate.runlog import RunDocument, write_document
from tnav.images import draw_matches, read_image, write_png16
from tnav.report.figures import figures
from tnav.report.html import write_report
from tnav.report.layout import Figure
from tnav.report.page import figure_json

SIZE_LIMIT_BYTES = 9_000_000


class Page(HTMLParser):
    """Tags with their attributes, styles, figures' JSON and visible text of a report."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.styles: list[str] = []
        self.json: list[str] = []
        self.words: list[str] = []
        self._inside: tuple[str, dict[str, str]] = ("", {})
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = (tag, {name: value or "" for name, value in attrs})
        self.tags.append(self._inside)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = ("", {})

    def handle_data(self, data: str) -> None:
        tag, attributes = self._inside
        if tag == "style":
            self.styles.append(data)
        elif tag == "script" and attributes.get("type") == "application/json":
            self.json.append(data)
        elif tag != "script":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunDocument]:
    folder = tmp_path_factory.mktemp("faulty")
    document = write_run(folder)
    write_report(folder)
    return folder, document


@pytest.fixture(scope="module")
def nominal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunDocument]:
    folder = tmp_path_factory.mktemp("nominal")
    document = write_run(folder, faulty=False)
    write_report(folder)
    return folder, document


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def change(folder: Path, target: Path, edit: Any) -> Path:
    """A copy of a run folder with its run.json edited as a dict."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("report.html*"))
    data = json.loads((target / "run.json").read_text(encoding="utf-8"))
    edit(data)
    write_document(target / "run.json", RunDocument.model_validate(data))
    return target


def strict(text: str) -> Any:
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} in a figure")

    return json.loads(text, parse_constant=refuse)


def test_nothing_is_loaded_from_outside(faulty: tuple[Path, RunDocument]) -> None:
    page = page_of(faulty[0])
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "srcset", "poster", "data", "action", "xlink:href"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:image/jpeg;base64,")), (tag, name, value[:80])
        assert "url(" not in attributes.get("style", "")
    styles = "".join(page.styles)
    assert styles
    assert "url(" not in styles
    assert "@import" not in styles
    assert "http" not in styles
    policy = next(a["content"] for t, a in page.tags if "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert "*" not in policy


def test_plotly_is_inlined_once_and_ends_no_script(faulty: tuple[Path, RunDocument]) -> None:
    text = (faulty[0] / "report.html").read_text(encoding="utf-8")
    assert len(re.findall(r"plotly\.js v\d", text)) == 1
    scripts = [a for t, a in page_of(faulty[0]).tags if t == "script"]
    assert len([a for a in scripts if not a]) == 2  # the library, and what draws
    assert text.count("</script>") == len(scripts)


def test_figures_are_strict_and_are_what_plotly_takes(
    faulty: tuple[Path, RunDocument], nominal: tuple[Path, RunDocument]
) -> None:
    for folder, document in (faulty, nominal):
        specs = [strict(text) for text in page_of(folder).json]
        assert len(specs) == len(figures(document)) == 5 + len(document.innovations)
        for spec in specs:
            go.Figure(spec)  # raises on any property that plotly does not know
            assert spec["layout"]["xaxis"]["range"] == specs[0]["layout"]["xaxis"]["range"]
            assert "s" in spec["layout"]["xaxis"]["title"]["text"]


def test_every_frame_is_shown_with_its_numbers(faulty: tuple[Path, RunDocument]) -> None:
    folder, document = faulty
    page = page_of(folder)
    pictures = [a for t, a in page.tags if t == "img" and a.get("src")]
    assert len(pictures) == len(document.frames)
    for frame, picture in zip(document.frames, pictures, strict=True):
        assert picture["alt"].startswith(f"Frame {frame.index} at {frame.t_s:.1f} s")
        assert f"Frame {frame.index}" in page.text
        if frame.agl_m is not None:
            assert f"{frame.agl_m:.2f} ± {frame.agl_sigma_m:.2f} m" in page.text
    failed = [a for _, a in page.tags if a.get("class", "") == "card failed"]
    assert len(failed) == len(FAILED)
    assert page.text.count("✕ too few matches") == 2  # gallery and table
    assert all(a.get("aria-label") for _, a in page.tags if a.get("role") == "img")


def test_banner_labels_and_limits(faulty: tuple[Path, RunDocument]) -> None:
    folder, document = faulty
    page, summary = page_of(folder), document.summary
    assert any(a.get("class") == "banner fault" for _, a in page.tags)
    assert f"alert at {ALERT_S:.1f} s" in page.text
    before = summary.seconds_before_no_return
    assert before is not None
    assert f"{before:.1f} s before the point of no return" in page.text
    assert "1512 m at 74.8 m/s down" in page.text
    assert f"limit {AGL_LIMIT_PERCENT:g} %" in page.text
    assert "Synthetic relief" in page.text
    assert document.setup.relief in page.text
    assert document.setup.map_note in page.text
    assert document.verdicts[0].reason in page.text


def test_nominal_run_says_no_alarm(nominal: tuple[Path, RunDocument]) -> None:
    page = page_of(nominal[0])
    assert any(a.get("class") == "banner calm" for _, a in page.tags)
    assert "No alarm" in page.text
    assert "not passed" in page.text
    for spec in (strict(text) for text in page.json):
        assert spec["layout"]["shapes"] == []


@pytest.mark.parametrize(
    ("change_summary", "headline"),
    [
        ({"expected_verdict": "dropout"}, "but expected for this scenario: dropout"),
        ({"seconds_before_no_return": -3.2}, "3.2 s AFTER the point of no return"),
        ({"seconds_before_no_return": None}, "no point of no return was passed"),
    ],
)
def test_banner_says_what_went_wrong(
    faulty: tuple[Path, RunDocument],
    tmp_path: Path,
    change_summary: dict[str, Any],
    headline: str,
) -> None:
    folder = change(faulty[0], tmp_path / "run", lambda d: d["summary"].update(change_summary))
    write_report(folder)
    page = page_of(folder)
    assert headline in page.text
    wrong = "expected_verdict" in change_summary
    assert any(a.get("class") == "banner wrong" for _, a in page.tags) == wrong


def test_missed_fault_is_no_green_banner(nominal: tuple[Path, RunDocument], tmp_path: Path) -> None:
    def expect(data: dict[str, Any]) -> None:
        data["summary"]["expected_verdict"] = "late_acquisition"

    folder = change(nominal[0], tmp_path / "run", expect)
    write_report(folder)
    page = page_of(folder)
    assert any(a.get("class") == "banner wrong" for _, a in page.tags)
    assert "there was something to find" in page.text


def test_everything_is_escaped(faulty: tuple[Path, RunDocument], tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"

    def poison(data: dict[str, Any]) -> None:
        data["verdicts"][0] |= {"reason": bad, "kind": bad}
        data["summary"]["verdict"] = bad
        data["setup"] |= {"scenario": bad, "relief": bad, "map_note": bad, "injected_fault": bad}
        data["statistics"][0]["name"] = bad
        data["innovations"][0]["sensor"] = bad
        data["frames"][9]["status"] = bad

    clean = page_of(faulty[0])
    folder = change(faulty[0], tmp_path / "run", poison)
    write_report(folder)
    page = page_of(folder)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in clean.tags]
    assert not any(name.startswith("on") for _, a in page.tags for name in a)
    assert bad in page.text
    for spec in (strict(text) for text in page.json):
        assert "<script" not in json.dumps(spec)  # plotly reads markup in its texts


def testfigure_json_cannot_end_its_element() -> None:
    spec = {"data": [{"name": "</script><!-- & é"}], "layout": {}}
    text = figure_json(Figure("f", "", "", "", 100, spec))
    assert not set("<>&") & set(text)
    assert strict(text) == spec
    with pytest.raises(ValueError, match="not JSON compliant"):
        figure_json(Figure("f", "", "", "", 100, {"data": [float("nan")]}))


def test_phases_of_the_timeline(faulty: tuple[Path, RunDocument]) -> None:
    document = faulty[1]
    bars = {b["name"]: b for b in figures(document)[0].spec["data"] if b["type"] == "bar"}
    verdict = document.verdicts[0]
    assert verdict.cleared_s is not None
    assert bars["onset to alert"]["base"] == [verdict.onset_s]
    assert bars["alert to cleared"]["x"] == [pytest.approx(verdict.cleared_s - verdict.alert_s)]
    a = document.altimeter
    step_s = a.t_s[1] - a.t_s[0]
    for name, epochs in (
        ("valid range", [r is not None for r in a.range_m]),
        (
            "expected, but absent",
            [
                r is None and p is not None and p <= SPEC_M
                for r, p in zip(a.range_m, a.predicted_m, strict=True)
            ],
        ),
    ):
        assert sum(bars[name]["x"]) == pytest.approx(step_s * sum(epochs), rel=1e-4)
        assert bars[name]["base"][0] == pytest.approx(a.t_s[epochs.index(True)], rel=1e-5)


def test_bands_are_three_sigma_and_break_at_gaps(faulty: tuple[Path, RunDocument]) -> None:
    document = faulty[1]
    up = next(f for f in figures(document) if f.name == "position").spec["data"][4]
    sigma = document.states.sigma_up_m
    assert max(v for v in up["y"] if v is not None) == pytest.approx(3 * max(sigma), rel=1e-5)
    predicted = next(f for f in figures(document) if f.name == "altimeter").spec["data"][0]
    assert predicted["x"].count(None) == predicted["y"].count(None) == 2  # one gap: two polygons


def test_empty_series_still_make_a_report(
    nominal: tuple[Path, RunDocument], tmp_path: Path
) -> None:
    def empty(data: dict[str, Any]) -> None:
        for part in ("states", "altimeter"):
            data[part] = {name: [] for name in data[part]}
        for series in data["innovations"]:
            series |= {"t_s": [], "nis": [], "whitened": [], "fused": []}
        data["statistics"], data["frames"] = [], data["frames"][9:10]
        data["frames"][0]["matches"] = []
        for name in data["summary"]:
            if name.endswith(("_max", "_rms", "_min")):
                data["summary"][name] = None

    folder = change(nominal[0], tmp_path / "run", empty)
    write_report(folder)
    page = page_of(folder)
    assert len(page.json) == 4 + 3
    for spec in (strict(text) for text in page.json):
        go.Figure(spec)
    assert "– %" in page.text


def test_long_run_shows_a_choice_of_frames_and_names_all(
    nominal: tuple[Path, RunDocument], tmp_path: Path
) -> None:
    def lengthen(data: dict[str, Any]) -> None:
        first = data["frames"][0] | {"matches": data["frames"][0]["matches"][:5]}
        data["frames"] = [first | {"index": k, "t_s": 0.5 * k} for k in range(150)]

    folder = change(nominal[0], tmp_path / "run", lengthen)
    path = write_report(folder)
    page = page_of(folder)
    assert len([a for t, a in page.tags if t == "img" and a.get("src")]) == 60
    assert "60 of 150 frames" in page.text
    assert len([t for t, a in page.tags if t == "tr" and "class" in a]) == 150
    assert path.stat().st_size < SIZE_LIMIT_BYTES


def test_matches_are_drawn_where_they_are(
    faulty: tuple[Path, RunDocument], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Any, ...]] = []

    def note(*arguments: Any) -> Any:
        drawn.append(arguments)
        return draw_matches(*arguments)

    monkeypatch.setattr("tnav.report.html._VIEW_WIDTHS_PX", (120,))  # half of the pictures' 240
    monkeypatch.setattr("tnav.report.html.draw_matches", note)
    folder = change(faulty[0], tmp_path / "run", lambda data: None)
    write_report(folder)
    assert len(drawn) == len(faulty[1].frames)
    for frame, (left, right, left_uv_px, right_uv_px, inlier) in zip(
        faulty[1].frames, drawn, strict=True
    ):
        assert right.shape == (120, 120)
        assert left.shape[1] > 120  # with the gutter, so that the right view's own start is kept
        places = {
            (m.u_map_px / 2, m.v_map_px / 2, m.u_px / 2, m.v_px / 2): m for m in frame.matches
        }
        for (u_map, v_map), (u, v), good in zip(left_uv_px, right_uv_px, inlier, strict=True):
            assert places[u_map, v_map, u, v].inlier == good
        assert len(inlier) == min(len(frame.matches), 60)
        assert (~inlier).sum() == min(sum(not m.inlier for m in frame.matches), 30)


@pytest.mark.parametrize("name", ["camera_007.png", "map_007.png"])
def test_missing_picture_leaves_nothing(
    faulty: tuple[Path, RunDocument], tmp_path: Path, name: str
) -> None:
    folder = change(faulty[0], tmp_path / "run", lambda data: None)
    (folder / "frames" / name).unlink()
    with pytest.raises(ImageError, match=name) as caught:
        write_report(folder)
    assert "\n" not in str(caught.value)
    assert not list(folder.glob("report*"))


def test_picture_outside_the_folder_is_refused(
    faulty: tuple[Path, RunDocument], tmp_path: Path
) -> None:
    def escape(data: dict[str, Any]) -> None:
        data["frames"][0]["image"] = "../frames/camera_000.png"

    folder = change(faulty[0], tmp_path / "run", escape)
    with pytest.raises(RunFileError, match="outside the run folder"):
        write_report(folder)
    assert not list(folder.glob("report*"))


def test_views_of_two_sizes_are_refused(faulty: tuple[Path, RunDocument], tmp_path: Path) -> None:
    folder = change(faulty[0], tmp_path / "run", lambda data: None)
    view = folder / "frames/map_003.png"
    write_png16(view, read_image(view)[0, 0, :100])
    with pytest.raises(ImageError, match=r"map_003.*240 x 100 pixels.*240 x 240"):
        write_report(folder)


def test_missing_run_and_blocked_place_are_one_line(
    faulty: tuple[Path, RunDocument], tmp_path: Path
) -> None:
    with pytest.raises(RunFileError, match=r"run\.json: missing"):
        write_report(tmp_path)
    folder = change(faulty[0], tmp_path / "run", lambda data: None)
    (folder / "report.html").mkdir()
    with pytest.raises(RunFileError, match="cannot be written") as caught:
        write_report(folder)
    assert "\n" not in str(caught.value)
    assert not list(folder.glob("*.part"))


def test_same_input_gives_same_bytes_under_the_size_limit(
    faulty: tuple[Path, RunDocument],
) -> None:
    path = faulty[0] / "report.html"
    before = path.read_bytes()
    assert len(before) < SIZE_LIMIT_BYTES
    assert write_report(faulty[0]) == path
    assert path.read_bytes() == before


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_browser_draws_every_figure(faulty: tuple[Path, RunDocument], tmp_path: Path) -> None:
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", f"--user-data-dir={tmp_path}", "--virtual-time-budget=4000"),
        *("--dump-dom", (faulty[0] / "report.html").resolve().as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    page = Page(done.stdout)
    canvases = [a for _, a in page.tags if a.get("class", "").startswith("canvas")]
    drawn = [a for a in canvases if "js-plotly-plot" in a["class"]]
    assert len(drawn) == len(canvases) == len(figures(faulty[1]))
    assert sum("main-svg" in a.get("class", "") for _, a in page.tags) >= len(canvases)
    assert sum("trace scatter" in a.get("class", "") for _, a in page.tags) > 20
