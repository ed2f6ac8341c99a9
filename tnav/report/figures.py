"""The report's figures as plotly specifications (plain JSON), all on one time axis.

Bands are 3 sigma, sigmas are per axis.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from tnav.evaluate.runlog import InnovationSeries, RunDocument, StatisticSeries
from tnav.report import traces
from tnav.report.traces import ESTIMATE, FAULT, FAULT_PALE, FIX, QUIET, TRUTH, Json, label, words

_COMPONENTS = ("#1f5fa8", "#2f8f7f", "#8457a6", "#7b8794", "#a8773a", "#4aa3d9")
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_PANEL_GAP_PX, _TOP_PX, _BOTTOM_PX, _LEFT_PX = 22, 44, 48, 128
_STATISTIC_VIEW = 4.0  # a panel shows up to this many thresholds: the crossing is what matters


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: plotly ``data`` and ``layout`` with the words around them."""

    name: str
    title: str
    caption: str
    alt: str
    height_px: int
    spec: Json


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    height_px: int
    axis: Json


def figures(document: RunDocument) -> list[Figure]:
    """Every figure of a run, in the order of the report."""
    return [
        _timeline(document),
        _altitude(document),
        _position(document),
        _altimeter(document),
        *(_innovations(document, series) for series in document.innovations),
        *([_statistics(document)] if document.statistics else []),
    ]


def _timeline(document: RunDocument) -> Figure:
    verdicts, states, no_return = document.verdicts, document.states, document.point_of_no_return
    rows = ["vision fixes", "valid range", "expected,<br>but absent"]
    rows += [label(v.kind).replace(" ", "<br>", 1) for v in verdicts] or ["verdict"]
    panels = [
        _Panel("", 46 * len(rows), _row_axis(rows)),
        _Panel("height (m)", 250, {"rangemode": "tozero"}),
    ]
    marks = [
        *_rows(document, len(rows) - 1),
        traces.line("true height", states.t_s, states.true_agl_m, TRUTH, panel=2),
        traces.line(
            "stopping height", states.t_s, states.stopping_height_m, QUIET, panel=2, dash="dash"
        ),
    ]
    if no_return.t_s is not None and no_return.height_m is not None:
        text = f"  {no_return.height_m:.0f} m"
        text += "" if no_return.speed_m_s is None else f", {no_return.speed_m_s:.1f} m/s"
        place = (no_return.t_s, no_return.height_m)
        marks.append(traces.marked("point of no return", *place, text, TRUTH, panel=2))
    caption = (
        "Above: what was measured, what the map said must be measurable (predicted range within "
        f"the specified {document.setup.altimeter_range_max_m:.0f} m, no valid reading), and the "
        "verdicts from estimated onset through alert to clearing. Below: the true height above "
        "ground and the height needed to stop, v²/(2a) with "
        f"a = {no_return.net_deceleration_m_s2:g} m/s² net; where they cross lies the point of no "
        "return (a definition proposed here, not a standard)."
    )
    spoken = [
        f"{words(v.kind)} from {v.onset_s:.1f} s, alert at {v.alert_s:.1f} s" for v in verdicts
    ]
    alt = "Timeline of fixes, valid ranges and verdicts over height and stopping height: "
    alt += "; ".join(spoken or ["no alarm"])
    return _figure(document, "timeline", "Verdict timeline", caption, alt, marks, panels)


def _rows(document: RunDocument, top: int) -> list[Json]:
    """Marks of the timeline's upper panel, from row ``top`` down to 0."""
    altimeter, verdicts = document.altimeter, document.verdicts
    limit_m, span = document.setup.altimeter_range_max_m, _span(document)
    valid = [reading is not None for reading in altimeter.range_m]
    absent = [
        not seen and predicted is not None and predicted <= limit_m
        for seen, predicted in zip(valid, altimeter.predicted_m, strict=True)
    ]
    marks = [
        *traces.fixes("vision fix", document.frames, lambda _: float(top), lambda _: float(top)),
        traces.bars("valid range", _phases(altimeter.t_s, valid), top - 1, ESTIMATE),
        traces.bars("expected, but absent", _phases(altimeter.t_s, absent), top - 2, QUIET),
    ]
    for index, v in enumerate(verdicts):
        row, first = top - 3 - index, index == 0
        until_s = span[1] if v.cleared_s is None else v.cleared_s
        before, during = [(v.onset_s, v.alert_s)], [(v.alert_s, until_s)]
        marks.append(traces.bars("onset to alert", before, row, FAULT_PALE, show=first))
        marks.append(traces.bars("alert to cleared", during, row, FAULT, show=first))
    if not verdicts:
        marks.append(traces.note("no alarm", sum(span) / 2, 0.0))
    return marks


def _altitude(document: RunDocument) -> Figure:
    states, frames = document.states, document.frames
    # The distance between the two lines of the upper panel, drawn where it can be seen.
    error = [a - b for a, b in zip(states.agl_m, states.true_agl_m, strict=True)]
    zero = [0.0] * len(error)
    marks = [
        traces.band("navigation ± 3σ", states.t_s, states.agl_m, states.agl_sigma_m),
        traces.line("true", states.t_s, states.true_agl_m, TRUTH),
        traces.line("navigation", states.t_s, states.agl_m, ESTIMATE),
        *traces.fixes(
            "fix ± 3σ",
            frames,
            lambda f: f.agl_m,
            lambda f: f.true_agl_m,
            sigma=lambda f: f.agl_sigma_m,
        ),
        traces.band("± 3σ", states.t_s, zero, states.agl_sigma_m, panel=2, show=False),
        traces.line("navigation error", states.t_s, error, ESTIMATE, panel=2, show=False),
        *traces.fixes(
            "fix error ± 3σ",
            frames,
            lambda f: f.agl_error_m,
            lambda _: 0.0,
            sigma=lambda f: f.agl_sigma_m,
            panel=2,
            show=False,
        ),
    ]
    scale = _settled_range(document, [error], [states.agl_sigma_m])
    panels = [
        _Panel("AGL (m)", 270, {"rangemode": "tozero"}),
        _Panel("AGL error (m)", 210, {"range": scale, "zeroline": True}),
    ]
    caption = (
        "Altitude above ground along the local vertical: truth, navigation and vision fixes; below, "
        "estimate minus truth. A failed fix is a red cross, drawn on the truth. The error axis is "
        "scaled to the time after the first fix; double-click shows all of it."
    )
    alt = "Altitude above ground over time, true and estimated, with the error and its 3-sigma band"
    if states.t_s:
        alt += f"; it falls from {states.true_agl_m[0]:.0f} to {states.true_agl_m[-1]:.0f} m"
    title = "Altitude above ground against truth"
    return _figure(document, "altitude", title, caption, alt, marks, panels)


def _position(document: RunDocument) -> Figure:
    s = document.states
    axes = (
        ("east", s.error_east_m, s.sigma_east_m),
        ("north", s.error_north_m, s.sigma_north_m),
        ("up", s.error_up_m, s.sigma_up_m),
    )
    scale = _settled_range(document, [error for _, error, _ in axes], [sd for _, _, sd in axes])
    marks, panels = [], []
    for panel, (name, error, sigma) in enumerate(axes, start=1):
        show, zero = panel == 1, [0.0] * len(error)
        marks.append(traces.band("± 3σ", s.t_s, zero, sigma, panel=panel, show=show))
        marks.append(
            traces.line("estimate minus truth", s.t_s, error, ESTIMATE, panel=panel, show=show)
        )
        panels.append(_Panel(f"{name} (m)", 150, {"range": scale, "zeroline": True}))
    caption = (
        "Error of the navigation's position in the local east-north-up frame, with the filter's own "
        "3-sigma band per axis; one scale for all three, set by the time after the first fix."
    )
    alt = "Position errors east, north and up over time, each with its 3-sigma band"
    title = "Navigation position error"
    return _figure(document, "position", title, caption, alt, marks, panels)


def _altimeter(document: RunDocument) -> Figure:
    a, limit_m = document.altimeter, document.setup.altimeter_range_max_m
    marks = [
        traces.band("predicted ± 3σ", a.t_s, a.predicted_m, a.predicted_sigma_m),
        traces.line("true range", a.t_s, a.true_range_m, TRUTH),
        traces.line("predicted from state and map", a.t_s, a.predicted_m, ESTIMATE, dash="dash"),
        traces.points("valid reading", a.t_s, a.range_m, FIX, size=4),
        traces.line("specified maximum", _span(document), [limit_m] * 2, QUIET, dash="dot"),
    ]
    n_valid = sum(reading is not None for reading in a.range_m)
    caption = (
        f"Range along the boresight. {n_valid} of {len(a.t_s)} epochs gave a valid range. Under the "
        f"dotted line ({limit_m:.0f} m, the maker's promise) a healthy altimeter ranges."
    )
    alt = f"Altimeter: predicted and true range, {n_valid} valid readings, specified maximum"
    panels = [_Panel("range (m)", 300, {"rangemode": "tozero"})]
    title = "Altimeter against prediction"
    return _figure(document, "altimeter", title, caption, alt, marks, panels)


def _innovations(document: RunDocument, series: InnovationSeries) -> Figure:
    span, dof, name = _span(document), series.degrees_of_freedom, words(series.sensor)
    accepted = [nis if ok else None for nis, ok in zip(series.nis, series.fused, strict=True)]
    refused = [None if ok else nis for nis, ok in zip(series.nis, series.fused, strict=True)]
    marks = [
        traces.points(
            f"component {k + 1}" if dof > 1 else "whitened innovation",
            series.t_s,
            [row[k] for row in series.whitened],
            _COMPONENTS[k % len(_COMPONENTS)],
            size=4,
        )
        for k in range(dof)
    ]
    for bound in (3.0, -3.0):
        marks.append(traces.line("± 3", span, [bound] * 2, QUIET, dash="dash", show=bound > 0))
    marks += [
        traces.points("NIS, fused", series.t_s, accepted, ESTIMATE, panel=2, size=5),
        traces.points("NIS, not fused", series.t_s, refused, FAULT, panel=2, size=8, symbol="x"),
        traces.line("gate", span, [series.gate] * 2, FAULT, panel=2, dash="dash"),
    ]
    if not series.t_s:
        marks.append(traces.note("no measurement", sum(span) / 2, 0.0))
    panels = [
        _Panel("whitened (σ)", 170, {"zeroline": True}),
        _Panel(f"NIS ({dof} dof)", 150, {"type": "log", "dtick": 1}),
    ]
    caption = (
        f"{len(series.t_s)} innovations, {series.fused.count(False)} not fused; gate at "
        f"{series.gate:.4g}. Whitened by the Cholesky factor of S: a consistent filter keeps them "
        "unit normal, 99.73 % within ± 3."
    )
    alt = f"Innovations of the {name}: whitened values with bounds, and NIS with its gate"
    place = f"innovation-{document.innovations.index(series)}"
    return _figure(document, place, f"Innovations: {name}", caption, alt, marks, panels)


def _statistics(document: RunDocument) -> Figure:
    marks, panels = [], []
    for panel, series in enumerate(document.statistics, start=1):
        show, threshold = panel == 1, [series.threshold] * 2
        marks += [
            traces.line("statistic", series.t_s, series.value, ESTIMATE, panel=panel, show=show),
            traces.line(
                "threshold", _span(document), threshold, FAULT, panel=panel, dash="dash", show=show
            ),
        ]
        title = label(series.name).replace(" ", "<br>", 1)
        panels.append(_Panel(title, 120, _statistic_axis(series)))
    caption = (
        f"What the monitor decides by. An axis ends at {_STATISTIC_VIEW:g} thresholds where the "
        "statistic runs further; double-click shows all of it."
    )
    alt = "Monitor statistics over time, each with its threshold: "
    alt += ", ".join(words(series.name) for series in document.statistics)
    return _figure(document, "statistics", "Monitor statistics", caption, alt, marks, panels)


# Layout


def _figure(
    document: RunDocument,
    name: str,
    title: str,
    caption: str,
    alt: str,
    marks: list[Json],
    panels: Sequence[_Panel],
) -> Figure:
    inner = sum(p.height_px for p in panels) + _PANEL_GAP_PX * (len(panels) - 1)
    height_px = inner + _TOP_PX + _BOTTOM_PX
    axis = {"gridcolor": "#e8ebee", "linecolor": "#aeb5bd", "showline": True, "ticks": "outside"}
    axis |= {"tickcolor": "#aeb5bd", "ticklen": 4, "zerolinecolor": "#c3c9d0", "automargin": False}
    layout: Json = {
        "height": height_px,
        "margin": {"l": _LEFT_PX, "r": 18, "t": _TOP_PX, "b": _BOTTOM_PX},
        "font": {"family": _FONT, "size": 12.5, "color": "#2a2f36"},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "hovermode": "x unified",
        "barmode": "overlay",
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
    }
    time = {"title": {"text": "time since start (s)", "standoff": 8}, "range": _span(document)}
    time |= {"anchor": traces.axis("y", len(panels)), "hoverformat": ".2f", "zeroline": False}
    layout["xaxis"] = axis | time
    top_px = 0
    for number, panel in enumerate(panels, start=1):
        bottom_px = top_px + panel.height_px
        domain = [max(1 - bottom_px / inner, 0.0), 1 - top_px / inner]
        top_px = bottom_px + _PANEL_GAP_PX
        extra = {"domain": domain, "anchor": "x", "zeroline": False}
        heading = {"title": {"text": panel.title, "standoff": 10}}
        layout[traces.axis("yaxis", number)] = axis | extra | heading | panel.axis
    layout["shapes"], layout["annotations"] = _events(document)
    return Figure(name, title, caption, alt, height_px, {"data": marks, "layout": layout})


def _events(document: RunDocument) -> tuple[list[Json], list[Json]]:
    """Vertical lines through every figure, and their labels."""
    events = []
    for verdict in document.verdicts:
        events.append((verdict.onset_s, "", FAULT, "dot"))
        events.append((verdict.alert_s, "alert", FAULT, "solid"))
    if document.point_of_no_return.t_s is not None:
        events.append((document.point_of_no_return.t_s, "point of no return", TRUTH, "dashdot"))
    shapes, labels = [], []
    for t_s, text, colour, dash in events:
        ends = {"x0": t_s, "x1": t_s, "y0": 0, "y1": 1, "xref": "x", "yref": "paper"}
        style = {"color": colour, "width": 1.3, "dash": dash}
        shapes.append({"type": "line", "layer": "above", "line": style} | ends)
        if text:
            place = {"x": t_s, "y": 1, "xref": "x", "yref": "paper", "xshift": 3}
            anchor = {"xanchor": "left", "yanchor": "top", "showarrow": False}
            look = {"font": {"color": colour, "size": 11.5}, "bgcolor": "rgba(255,255,255,0.8)"}
            labels.append({"text": text} | place | anchor | look)
    return shapes, labels


def _row_axis(rows: Sequence[str]) -> Json:
    top = len(rows) - 1
    places = list(range(top, -1, -1))
    return {
        "tickvals": places,
        "ticktext": list(rows),
        "range": [-0.6, top + 0.6],
        "showgrid": False,
        "fixedrange": True,
    }


def _statistic_axis(series: StatisticSeries) -> Json:
    if series.threshold <= 0 or not series.value:
        return {}
    view = _STATISTIC_VIEW * series.threshold
    low, high = min(0.0, *series.value), max(series.threshold, *series.value)
    return {"range": [max(1.05 * low, -view), min(1.15 * high, view)]}


def _span(document: RunDocument) -> list[float]:
    """The time axis of every figure: all of the run, with a little air for marks at its ends."""
    times = [*document.states.t_s, *document.altimeter.t_s, *(f.t_s for f in document.frames)]
    if not times:
        return [0.0, 1.0]
    air = 0.01 * (max(times) - min(times)) or 1.0
    return [min(times) - air, max(times) + air]


def _settled_range(
    document: RunDocument, errors: Sequence[Sequence[float]], sigmas: Sequence[Sequence[float]]
) -> list[float] | None:
    """Symmetric axis range that holds errors and bands after the first fix."""
    first_s = min((f.t_s for f in document.frames if f.status == "ok"), default=-math.inf)
    top = 0.0
    for error, sigma in zip(errors, sigmas, strict=True):
        for t, e, s in zip(document.states.t_s, error, sigma, strict=True):
            if t > first_s:
                top = max(top, abs(e), 3 * s)
    return [-1.1 * top, 1.1 * top] if top > 0 else None


def _phases(t_s: Sequence[float], state: Sequence[bool]) -> list[tuple[float, float]]:
    """Stretches of true epochs; an epoch lasts until the next one."""
    last_step = t_s[-1] - t_s[-2] if len(t_s) > 1 else 1.0
    ends = [*t_s[1:], *(t + last_step for t in t_s[-1:])]
    phases = []
    for true, group in groupby(zip(t_s, ends, state, strict=True), key=lambda row: row[2]):
        rows = list(group)
        if true:
            phases.append((rows[0][0], rows[-1][1]))
    return phases
