"""Whether descents know how wrong they are, drawn: innovations with gates, NEES, NIS, coverage."""

import math
from collections.abc import Sequence

import numpy as np

from tnav.evaluate.descent_figures import Band, Consistency, Floats, SensorNis
from tnav.records import Sensor
from tnav.report import traces
from tnav.report.descent_layout import THIN, TIME, Cell, grid, known, level, plain, strokes, titled
from tnav.report.layout import Figure
from tnav.report.traces import ESTIMATE, FAULT, FIX, QUIET, TRUTH, Json

_DOTS = 1500  # of a sensor over all thin descents
_SENSORS = {
    Sensor.STAR_TRACKER: "Star tracker",
    Sensor.VISION: "Vision",
    Sensor.ALTIMETER: "Altimeter",
    Sensor.GROUND: "Height in images",
}
_NAMES = {sensor.value: name.lower() for sensor, name in _SENSORS.items()}
_COLOURS = {"position": ESTIMATE, "velocity": FIX, "attitude": "#2c7a46"}


def innovations(
    place: str, of_sensor: Sequence[SensorNis], gates: dict[Sensor, float | None]
) -> Figure:
    """NIS of each sensor over time, those of the first descent bold."""
    bold = of_sensor[0].seed
    sensors = [s for s in Sensor if any(n.sensor is s for n in of_sensor)]
    cells = []
    for sensor in sensors:
        own = [n for n in of_sensor if n.sensor is sensor]
        degrees, gate = own[0].degrees, gates[sensor]
        top = max([gate or degrees, *(float(np.max(n.nis)) for n in own)])
        spans = [min(float(n.t_s[0]) for n in own), max(float(n.t_s[-1]) for n in own)]
        first = sensor is sensors[0]
        marks = _nis_marks(own, bold, gate, show=first)
        marks.append(level("mean of an honest filter", spans, float(degrees), TRUTH, "dot", first))
        if gate is not None:
            marks.append(level("gate", spans, gate, FAULT, "dash", first))
        taken = sum(int(n.fused.sum()) for n in own)
        everything = sum(n.nis.size for n in own)
        title = f"{_SENSORS[sensor]}</b> · {everything:,} measurements, "
        title += f"{everything - taken:,} refused<b>"
        log_range = [math.log10(degrees) - 3, math.log10(top) + 0.25]
        y = titled("NIS", type="log", range=log_range, dtick=1, exponentformat="power")
        cells.append(Cell(title, titled(TIME), y, marks))
    caption = (
        "Normalised innovation squared of every measurement, and the gate of its sensor. Of the "
        "thin descents evenly chosen ones are drawn, and all that were refused or taken in spite "
        "of their gate. Very small ones lie below the axes."
    )
    alt = "Normalised innovations of the sensors over time with their gates"
    columns = 2 if len(cells) in (2, 4) else 3
    title = "Innovations and gates"
    return grid(place, title, caption, alt, cells, columns=columns, height_px=210)


def consistency_figure(place: str, title: str, of: Consistency) -> Figure | None:
    """NEES and NIS by band with chi-square bounds, and coverage; None where nothing is known."""
    cells = [
        _band_cell(what, bands, show=k == 0) for k, (what, bands) in enumerate(of.bands.items())
    ]
    if of.within:
        cells.append(_coverage_cell(of))
    if not cells:
        return None
    caption = (
        "Mean normalised square over its degrees of freedom, one draw a descent where it first "
        "comes below a height: 1 is honest, more is overconfident. Thick bars: 95 % chi-square "
        "bounds of each mean; thin bars: those that hold for all means of the table at once. At "
        "the end the share of errors within 1, 2 and 3 sigma, and what a Gaussian gives."
        if of.bands
        else "Share of errors within 1, 2 and 3 sigma over all heights and axes, and what a "
        "Gaussian gives. Means by height need ten descents."
    )
    alt = "Normalised squares by band of height with chi-square bounds, and coverage"
    return grid(place, title, caption, alt, cells, columns=4, height_px=200)


def _nis_marks(
    own: Sequence[SensorNis], bold: int, gate: float | None, *, show: bool
) -> list[Json]:
    marks = []
    thin = [n for n in own if n.seed != bold]
    if thin:
        t_s = np.concatenate([n.t_s for n in thin])
        nis = np.concatenate([n.nis for n in thin])
        step = max(1, t_s.size // _DOTS)
        marks.append(_dots("the other descents", t_s[::step], nis[::step], THIN, 3, "circle", show))
    first = [n for n in own if n.seed == bold]
    if first:
        name = f"seed {bold}"
        marks.append(_dots(name, first[0].t_s, first[0].nis, ESTIMATE, 3, "circle", show))
    t_s, nis = np.concatenate([n.t_s for n in own]), np.concatenate([n.nis for n in own])
    fused = np.concatenate([n.fused for n in own])
    spite = fused & (nis > gate) if gate is not None else np.zeros_like(fused)
    for name, which, colour, symbol in (
        ("refused", ~fused, FAULT, "x"),
        ("taken in spite of its gate", spite, FIX, "diamond"),
    ):
        if which.any():
            marks.append(_dots(name, t_s[which], nis[which], colour, 7, symbol, True))
    return marks


def _dots(
    name: str, t_s: Floats, value: Floats, colour: str, size: int, symbol: str, show: bool
) -> Json:
    mark = traces.points(
        name, known(t_s), plain(value), colour, size=size, symbol=symbol, show=show
    )
    return mark | {"hovertemplate": "%{x:.1f} s: %{y:.3~g}"}


def _band_cell(what: str, bands: Sequence[Band], *, show: bool) -> Cell:
    kind, quantity = what.split(" ", 1)
    labels = [f"{band.height_m / 1e3:g}" for band in bands]
    colour = _COLOURS.get(quantity, TRUTH)
    marks = [
        _bounds("bounds of all at once", labels, [b.together for b in bands], 2.0, "#aeb5bd", show),
        _bounds("95 % bounds of each", labels, [b.own for b in bands], 8.0, "#d5dbe2", show),
        traces.points("mean", [], [b.value for b in bands], colour, size=8, show=False),
    ]
    marks[-1] |= {"x": labels, "hovertemplate": "under %{x} km: %{y:.3f}"}
    ends = [edge for b in bands for edge in (*b.together, b.value)]
    y = titled("", range=[min(0.0, *ends), 1.08 * max(ends)])
    x = titled("first under (km)", type="category", tickangle=0, tickfont={"size": 10})
    n = {band.n for band in bands}
    what = _NAMES.get(quantity, quantity)
    title = f"{kind} {what}</b> · n = {_from_to(n)}<b>"
    one = {"type": "line", "x0": 0, "x1": 1, "y0": 1, "y1": 1, "layer": "below"}
    honest = one | {"line": {"color": TRUTH, "width": 1, "dash": "dot"}}
    return Cell(title, x, y, marks, [honest | {"refs": "width"}])


def _bounds(
    name: str,
    labels: Sequence[str],
    edges: Sequence[tuple[float, float]],
    width: float,
    colour: str,
    show: bool,
) -> Json:
    x = [each for label in labels for each in (label, label, None)]
    y = [each for low, high in edges for each in (low, high, None)]
    return strokes(name, [], traces.rounded(y), colour, width, show=show) | {"x": x}


def _from_to(counts: set[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _coverage_cell(of: Consistency) -> Cell:
    sigmas = ["1σ", "2σ", "3σ"]
    marks: list[Json] = [
        {
            "type": "bar",
            "name": f"{quantity} ",
            "x": sigmas[: len(shares)],
            "y": list(shares),
            "marker": {"color": _COLOURS.get(quantity, QUIET)},
            "hovertemplate": f"{quantity} within %{{x}}: %{{y:.2f}} %",
            "showlegend": True,
        }
        for quantity, shares in of.within.items()
    ]
    honest = traces.points("a Gaussian", [], [], TRUTH, size=22, symbol="line-ew", show=True)
    honest |= {"x": sigmas, "y": list(of.honest), "hovertemplate": "a Gaussian: %{y:.2f} %"}
    honest["marker"] |= {"line": {"width": 2, "color": TRUTH}}
    return Cell("Errors within", titled(""), titled("share (%)", range=[0, 104]), [*marks, honest])
