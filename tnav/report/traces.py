"""Marks of the report's figures as plotly traces (plain JSON): lines, points, 3-sigma bands, bars.

Truth is black, estimates blue, fixes orange, faults red.
"""

import html
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

from tnav.evaluate.runlog import FrameRecord

Json = dict[str, Any]
Values = Sequence[float | None]

TRUTH, ESTIMATE, FIX, FAULT, QUIET = "#15181c", "#1f5fa8", "#d9730d", "#c0262d", "#8a939d"
FAULT_PALE = "rgba(192,38,45,0.28)"
_BAND = "rgba(31,95,168,0.17)"


def words(name: str) -> str:
    """An identifier as people write it: ``late_acquisition`` becomes ``late acquisition``."""
    return name.replace("_", " ")


def label(name: str) -> str:
    """The same for plotly, which reads markup in its texts."""
    return html.escape(words(name))


def axis(kind: str, panel: int) -> str:
    """Plotly's name of an axis of a panel (from 1): ``y``, ``y2``, ..."""
    return kind if panel == 1 else f"{kind}{panel}"


def rounded(values: Iterable[float | None]) -> list[float | None]:
    """Six significant digits: more than can be seen, at half the bytes."""
    return [None if v is None else float(f"{v:.6g}") for v in values]


def line(
    name: str,
    t_s: Sequence[float],
    value: Values,
    colour: str,
    *,
    panel: int = 1,
    dash: str = "solid",
    show: bool = True,
) -> Json:
    """A line; ``None`` leaves a gap."""
    style = {"color": colour, "width": 1.6, "dash": dash}
    return _scatter(name, t_s, value, panel, show) | {"mode": "lines", "line": style}


def points(
    name: str,
    t_s: Sequence[float],
    value: Values,
    colour: str,
    *,
    panel: int = 1,
    size: int = 6,
    symbol: str = "circle",
    show: bool = True,
) -> Json:
    """Markers; ``None`` draws none."""
    marker = {"color": colour, "size": size, "symbol": symbol}
    return _scatter(name, t_s, value, panel, show) | {"mode": "markers", "marker": marker}


def band(
    name: str,
    t_s: Sequence[float],
    centre: Values,
    sigma: Values,
    *,
    panel: int = 1,
    show: bool = True,
) -> Json:
    """Closed polygons of centre plus and minus 3 sigma, one for each stretch without gaps."""
    x: list[float | None] = []
    y: list[float | None] = []
    rows = zip(t_s, centre, sigma, strict=True)
    for known, group in groupby(rows, key=lambda row: row[1] is not None and row[2] is not None):
        if known:
            run = [(t, float(c or 0.0), 3 * float(s or 0.0)) for t, c, s in group]
            x += [*(t for t, _, _ in run), *(t for t, _, _ in reversed(run)), None]
            y += [*(c + w for _, c, w in run), *(c - w for _, c, w in reversed(run)), None]
    style = {"mode": "lines", "line": {"width": 0, "color": ESTIMATE}, "fillcolor": _BAND}
    return _scatter(name, x, y, panel, show) | style | {"fill": "toself", "hoverinfo": "skip"}


def fixes(
    name: str,
    frames: Sequence[FrameRecord],
    value: Callable[[FrameRecord], float | None],
    failed_at: Callable[[FrameRecord], float],
    *,
    sigma: Callable[[FrameRecord], float | None] | None = None,
    panel: int = 1,
    show: bool = True,
) -> list[Json]:
    """Fixes as orange points, with 3-sigma bars if asked for; failed ones as red crosses."""
    good = [f for f in frames if f.status == "ok"]
    bad = [f for f in frames if f.status != "ok"]
    times = [f.t_s for f in good]
    marks = points(name, times, [value(f) for f in good], FIX, panel=panel, size=7, show=show)
    if sigma is not None:
        bars = [3 * float(sigma(f) or 0.0) for f in good]
        marks["error_y"] = {"array": rounded(bars), "color": FIX, "thickness": 1.2, "width": 3}
    if not bad:
        return [marks]
    times, place = [f.t_s for f in bad], [failed_at(f) for f in bad]
    crosses = points("failed fix", times, place, FAULT, panel=panel, size=10, symbol="x", show=show)
    text = {"text": [label(f.status) for f in bad], "hovertemplate": "%{text}"}
    return [marks, crosses | text]


def bars(
    name: str, phases: Sequence[tuple[float, float]], row: int, colour: str, *, show: bool = False
) -> Json:
    """Horizontal bars from begin to end of each phase (s), on a row of the first panel."""
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "base": rounded(begin for begin, _ in phases),
        "x": rounded(end - begin for begin, end in phases),
        "y": [row] * len(phases),
        "width": 0.5,
        "marker": {"color": colour, "line": {"width": 0}},
        "text": [f"{begin:.1f} to {end:.1f} s" for begin, end in phases],
        "textposition": "none",
        "hovertemplate": "%{text}",
        "showlegend": show,
        "xaxis": "x",
        "yaxis": "y",
    }


def marked(name: str, t_s: float, value: float, text: str, colour: str, *, panel: int) -> Json:
    """One diamond with words beside it."""
    mark = points(name, [t_s], [value], colour, panel=panel, size=11, symbol="diamond")
    style: Json = {"mode": "markers+text", "text": [text], "textposition": "top right"}
    style |= {"textfont": {"color": colour, "size": 13}, "showlegend": False}
    return mark | style


def note(text: str, t_s: float, value: float) -> Json:
    """Quiet words in the first panel."""
    style = {"mode": "text", "text": [text], "textfont": {"color": QUIET, "size": 13}}
    return _scatter(text, [t_s], [value], 1, False) | style | {"hoverinfo": "skip"}


def _scatter(name: str, x: Values, y: Values, panel: int, show: bool) -> Json:
    return {
        "type": "scatter",
        "name": name,
        "x": rounded(x),
        "y": rounded(y),
        "xaxis": "x",
        "yaxis": axis("y", panel),
        "showlegend": show,
        "hovertemplate": "%{y:.5~g}",
    }
