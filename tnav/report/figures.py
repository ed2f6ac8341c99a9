"""The report's figures as plotly specifications (plain JSON), all on one time axis.

Bands are 3 sigma, sigmas are per axis.
"""

import math
from collections.abc import Sequence
from itertools import groupby

from tnav.evaluate.runlog import InnovationSeries, RunDocument, StatisticSeries
from tnav.report import traces
from tnav.report.layout import Figure, Panel, figure, time_span
from tnav.report.traces import (
    ESTIMATE,
    FAULT,
    FAULT_PALE,
    FIX,
    QUIET,
    TRUTH,
    Json,
    Values,
    label,
    words,
)

_NIS_FLOOR = 0.01  # smaller ones say no more
_STATISTIC_VIEW = 4.0  # a panel shows up to this many thresholds: the crossing is what matters


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
        Panel("", 46 * len(rows), _row_axis(rows)),
        Panel("height (m)", 250, {"rangemode": "tozero"}),
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
    return figure(document, "timeline", "Verdict timeline", caption, alt, marks, panels)


def _rows(document: RunDocument, top: int) -> list[Json]:
    """Marks of the timeline's upper panel, from row ``top`` down to 0."""
    altimeter, verdicts = document.altimeter, document.verdicts
    limit_m, span = document.setup.altimeter_range_max_m, time_span(document)
    valid = [reading is not None for reading in altimeter.range_m]
    absent = [
        not seen and predicted is not None and predicted <= limit_m
        for seen, predicted in zip(valid, altimeter.predicted_m, strict=True)
    ]
    marks = [
        *traces.fixes(
            "vision fix", document.frames, lambda _: float(top), lambda _: float(top), show=False
        ),
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
    error = _apart(states.agl_m, states.true_agl_m)
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
    reach = [
        abs(f.agl_error_m) + 3 * (f.agl_sigma_m or 0.0) for f in frames if f.agl_error_m is not None
    ]
    reach += _reach(document, states.t_s, error, states.agl_sigma_m)
    panels = [
        Panel("AGL (m)", 270, {"rangemode": "tozero"}),
        Panel("AGL error (m)", 210, {"range": _symmetric(reach), "zeroline": True}),
    ]
    caption = (
        "Altitude above ground along the local vertical: truth, navigation and vision fixes; "
        "below, estimate minus truth. A failed fix is a red cross, drawn on the truth. The error "
        "axis is scaled to the time after the second fix; double-click shows all of it."
    )
    alt = "Altitude above ground over time, true and estimated, with the error and its 3-sigma band"
    if states.t_s:
        alt += f"; it falls from {states.true_agl_m[0]:.0f} to {states.true_agl_m[-1]:.0f} m"
    title = "Altitude above ground against truth"
    return figure(document, "altitude", title, caption, alt, marks, panels)


def _position(document: RunDocument) -> Figure:
    s = document.states
    axes = (
        ("east", s.error_east_m, s.sigma_east_m),
        ("north", s.error_north_m, s.sigma_north_m),
        ("up", s.error_up_m, s.sigma_up_m),
    )
    reach = [r for _, error, sd in axes for r in _reach(document, s.t_s, error, sd)]
    marks, panels, scale = [], [], _symmetric(reach)
    for panel, (name, error, sigma) in enumerate(axes, start=1):
        show, zero = panel == 1, [0.0] * len(error)
        marks.append(traces.band("± 3σ", s.t_s, zero, sigma, panel=panel, show=show))
        marks.append(
            traces.line("estimate minus truth", s.t_s, error, ESTIMATE, panel=panel, show=show)
        )
        panels.append(Panel(f"{name} (m)", 150, {"range": scale, "zeroline": True}))
    caption = (
        "Error of the navigation's position in the local east-north-up frame, with the filter's "
        "own 3-sigma band per axis; one scale for all three, set by the time after the second fix."
    )
    alt = "Position errors east, north and up over time, each with its 3-sigma band"
    title = "Navigation position error"
    return figure(document, "position", title, caption, alt, marks, panels)


def _altimeter(document: RunDocument) -> Figure:
    a, limit_m, span = document.altimeter, document.setup.altimeter_range_max_m, time_span(document)
    true, reading = _apart(a.true_range_m, a.predicted_m), _apart(a.range_m, a.predicted_m)
    zero = [None if p is None else 0.0 for p in a.predicted_m]
    marks = [
        traces.band("predicted ± 3σ", a.t_s, a.predicted_m, a.predicted_sigma_m),
        traces.line("true range", a.t_s, a.true_range_m, TRUTH),
        traces.line("predicted from state and map", a.t_s, a.predicted_m, ESTIMATE, dash="dash"),
        traces.points("valid reading", a.t_s, a.range_m, FIX, size=4),
        traces.line("specified maximum", span, [limit_m] * 2, QUIET, dash="dot"),
        traces.band("± 3σ", a.t_s, zero, a.predicted_sigma_m, panel=2, show=False),
        traces.line("true − predicted", a.t_s, true, TRUTH, panel=2, show=False),
        traces.points("reading − predicted", a.t_s, reading, FIX, panel=2, size=4, show=False),
    ]
    n_valid = sum(r is not None for r in a.range_m)
    caption = (
        f"Range along the boresight. {n_valid} of {len(a.t_s)} epochs gave a valid range; under "
        f"the dotted line ({limit_m:.0f} m, the maker's promise) a healthy altimeter ranges. "
        "Below, the distance from the prediction; the band is that of state and map, without the "
        "altimeter's own noise."
    )
    alt = f"Altimeter: predicted and true range, {n_valid} valid readings, specified maximum"
    reach = _reach(document, a.t_s, true, a.predicted_sigma_m)
    reach += _reach(document, a.t_s, reading, a.predicted_sigma_m)
    panels = [
        Panel("range (m)", 250, {"rangemode": "tozero"}),
        Panel("from predicted (m)", 160, {"range": _symmetric(reach), "zeroline": True}),
    ]
    title = "Altimeter against prediction"
    return figure(document, "altimeter", title, caption, alt, marks, panels)


def _innovations(document: RunDocument, series: InnovationSeries) -> Figure:
    span, dof, name = time_span(document), series.degrees_of_freedom, words(series.sensor)
    accepted = [nis if ok else None for nis, ok in zip(series.nis, series.fused, strict=True)]
    refused = [None if ok else nis for nis, ok in zip(series.nis, series.fused, strict=True)]
    marks = []
    for k in range(dof):
        column, title = [row[k] for row in series.whitened], f"component {k + 1}"
        marks.append(traces.points(title, series.t_s, column, ESTIMATE, size=4, show=False))
    for bound in (3.0, -3.0):
        marks.append(traces.line("± 3σ", span, [bound] * 2, QUIET, dash="dash", show=bound > 0))
    marks.append(traces.points("fused", series.t_s, accepted, ESTIMATE, panel=2, size=5))
    if any(not ok for ok in series.fused):
        title = "not fused"
        marks.append(traces.points(title, series.t_s, refused, FAULT, panel=2, size=8, symbol="x"))
    marks.append(traces.line("gate", span, [series.gate] * 2, FAULT, panel=2, dash="dash"))
    if not series.t_s:
        marks.append(traces.note("no measurement", sum(span) / 2, 0.0))
    high = max([4.0, *(1.1 * abs(value) for row in series.whitened for value in row)])
    decades = [math.log10(_NIS_FLOOR), math.log10(2 * max([series.gate, *series.nis]))]
    panels = [
        Panel("whitened (σ)", 170, {"range": [-high, high], "zeroline": True}),
        Panel(f"NIS ({dof} dof)", 150, {"type": "log", "dtick": 1, "range": decades}),
    ]
    caption = (
        f"{len(series.t_s)} innovations, {series.fused.count(False)} not fused; gate at "
        f"{series.gate:.4g}. Whitened by the Cholesky factor of S: a consistent filter keeps them "
        f"unit normal, 99.73 % within ± 3. NIS under {_NIS_FLOOR:g} lies below the axis."
    )
    alt = f"Innovations of the {name}: whitened values with bounds, and NIS with its gate"
    place = f"innovation-{document.innovations.index(series)}"
    return figure(document, place, f"Innovations: {name}", caption, alt, marks, panels)


def _statistics(document: RunDocument) -> Figure:
    marks, panels = [], []
    for panel, series in enumerate(document.statistics, start=1):
        show, threshold = panel == 1, [series.threshold] * 2
        marks += [
            traces.line("statistic", series.t_s, series.value, ESTIMATE, panel=panel, show=show),
            traces.line(
                "threshold",
                time_span(document),
                threshold,
                FAULT,
                panel=panel,
                dash="dash",
                show=show,
            ),
        ]
        title = label(series.name).replace(" ", "<br>", 1)
        panels.append(Panel(title, 120, _statistic_axis(series)))
    caption = (
        f"What the monitor decides by. An axis ends at {_STATISTIC_VIEW:g} thresholds where the "
        "statistic runs further; double-click shows all of it."
    )
    alt = "Monitor statistics over time, each with its threshold: "
    alt += ", ".join(words(series.name) for series in document.statistics)
    return figure(document, "statistics", "Monitor statistics", caption, alt, marks, panels)


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


def _reach(
    document: RunDocument, t_s: Sequence[float], error: Values, sigma: Values
) -> list[float]:
    """How far from zero errors and 3-sigma bands go from the second fix on (velocity is known).

    Without two fixes: how far they ever go.
    """
    fixed_s = sorted(f.t_s for f in document.frames if f.status == "ok")
    settled_s = fixed_s[1] if len(fixed_s) > 1 else -math.inf
    rows = zip(t_s, error, sigma, strict=True)
    return [max(abs(e or 0.0), 3 * (s or 0.0)) for t, e, s in rows if t > settled_s]


def _symmetric(reach: Sequence[float]) -> list[float] | None:
    top = 1.1 * max(reach, default=0.0)
    return [-top, top] if top > 0 else None


def _apart(value: Values, reference: Values) -> list[float | None]:
    """How far apart two drawn lines lie, where both are."""
    rows = zip(value, reference, strict=True)
    return [None if v is None or r is None else v - r for v, r in rows]


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
