"""``relief.html``: the synthetic relief beside what is published of mare, one offline file.

Nothing is computed here: ``tnav.evaluate.relief_statistics`` measures, this draws.
"""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from tnav.evaluate.limits import Row
from tnav.evaluate.relief_charts import Chart
from tnav.report.layout import Figure
from tnav.report.page import figure_json, write_page
from tnav.report.traces import ESTIMATE, FIX, QUIET, TRUTH, Json

_HEIGHT_PX = 470
_AXIS: Json = {
    "type": "log",
    "gridcolor": "#e8ebee",
    "linecolor": "#aeb5bd",
    "showline": True,
    "mirror": True,
    "ticks": "outside",
    "tickcolor": "#aeb5bd",
    "ticklen": 4,
    "exponentformat": "power",
}
_MANY_DECADES: Json = {"dtick": 2}
_PUBLISHED = (TRUTH, QUIET)
_MEASURED = (ESTIMATE, FIX)
_DASHES = ("solid", "dash")
_CAPTIONS = {
    "counts": (
        "Craters of a diameter and more, per km². Points are counted: all that the relief draws, "
        "and those of them that its finished heights still show; bars are exact 95 % Poisson "
        "intervals, widened for clusters. The relief shall follow the lower of the two published "
        "curves: production (Neukum, Ivanov and Hartmann 2001) where craters are few, equilibrium "
        "(Trask 1966) where new ones wear away as many as they make."
    ),
    "deviation": (
        "Root mean square difference of two heights against their distance. The line is not "
        "published as such: it is what the published median slope and Hurst exponent (Rosenburg et "
        "al. 2011, table 2) give where slopes are Gaussian. The few steep walls of craters lift "
        "the mean square over that of the median."
    ),
    "slope": (
        "Median over places of the slope from two perpendicular differences of height, against "
        "their baseline. Marked is the published median of lunar maria over 17 m, and how it falls "
        "with their median Hurst exponent up to 530 m (Rosenburg et al. 2011, table 2)."
    ),
}
_LEAD = Markup(
    "What is measured here is the relief alone, from metres up to kilometres, as if there were no "
    "DEM below it. It is <strong>SYNTHETIC</strong>: it has statistics of mare and shows no place "
    "on the Moon."
)
_SOURCES = (
    "Garwood 1936, Fiducial limits for the Poisson distribution, Biometrika 28",
    "Trask 1966, Size and spatial distribution of craters estimated from the Ranger photographs, "
    "JPL Technical Report 32-800",
    "Gault 1970, Saturation and equilibrium conditions for impact cratering on the lunar surface, "
    "Radio Science 5",
    "Neukum, Ivanov and Hartmann 2001, Cratering records in the inner solar system, Space Science "
    "Reviews 96",
    "Rosenburg et al. 2011, Global surface slopes and roughness of the Moon from the Lunar Orbiter "
    "Laser Altimeter, Journal of Geophysical Research 116, E02001",
    "Cai and Fa 2020, Meter-scale topographic roughness of the Moon: the effect of small impact "
    "craters, Journal of Geophysical Research: Planets 125, doi:10.1029/2020JE006429",
)


def write_relief_page(folder: Path, rows: Sequence[Row], charts: dict[str, Chart]) -> Path:
    """Write ``relief.html``.

    Args:
        folder: to write to; made where it is missing.
        rows: what was measured, with limits.
        charts: ``counts``, ``deviation`` and ``slope`` (``measure_relief``).

    Raises:
        RunFileError: the page cannot be written.
    """
    # Imported here: it is slow, and only a whole page needs it.
    from plotly.offline import get_plotlyjs

    return write_page(
        folder / "relief.html",
        "charts.html.j2",
        title="Synthetic relief against lunar mare",
        lead=_LEAD,
        figures=[relief_figure(name, charts[name]) for name in _CAPTIONS],
        rows=rows,
        sources=_SOURCES,
        figure_json=figure_json,
        plotly=Markup(get_plotlyjs()),  # noqa: S704 - a library without a closing tag: tested
    )


def relief_figure(name: str, chart: Chart) -> Figure:
    """A log-log figure of a chart's curves and points."""
    marks = [*_curves(chart["curves"]), *_points(chart["points"])]
    layout: Json = {
        "height": _HEIGHT_PX,
        "margin": {"l": 78, "r": 18, "t": 12, "b": 52},
        "font": {"size": 12.5, "color": "#2a2f36"},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "hovermode": "closest",
        "xaxis": _AXIS | _ticks(1, 2, 5) | {"title": {"text": chart["x_label"], "standoff": 8}},
        "yaxis": _AXIS
        | (_MANY_DECADES if name == "counts" else _ticks(1, 2, 3, 5, 7))
        | {"title": {"text": chart["y_label"], "standoff": 10}},
        "legend": _legend_place(name),
    }
    alt = f"{chart['title']} against {chart['x_label']}, both axes logarithmic: "
    alt += ", ".join(each["label"] for each in (*chart["curves"], *chart["points"]))
    spec = {"data": marks, "layout": layout}
    return Figure(name, chart["title"], _CAPTIONS[name], alt, _HEIGHT_PX, spec)


def _ticks(*digits: int) -> Json:
    """Labels of a logarithmic axis at these first digits of every decade."""
    values = [digit * 10.0**k for k in range(-2, 5) for digit in digits]
    return {"tickvals": values, "ticktext": [f"{v:g}" for v in values]}


def _legend_place(name: str) -> Json:
    """Inside the plot, in the corner that no curve enters."""
    place: Json = {"bgcolor": "rgba(255,255,255,0.85)", "bordercolor": "#dde1e6", "borderwidth": 1}
    if name == "deviation":
        return place | {"x": 0.02, "y": 0.98, "xanchor": "left", "yanchor": "top"}
    return place | {"x": 0.98, "y": 0.98, "xanchor": "right", "yanchor": "top"}


def _curves(curves: Sequence[Chart]) -> list[Json]:
    traces = []
    for number, curve in enumerate(curves):
        colour = _PUBLISHED[number % 2] if curve["published"] else ESTIMATE
        dash = _DASHES[number % 2] if curve["published"] else "dot"
        traces.append(
            {
                "type": "scatter",
                "name": curve["label"],
                "x": curve["x"],
                "y": curve["y"],
                "mode": "lines",
                "line": {"color": colour, "width": 1.6, "dash": dash},
            }
        )
    return traces


def _points(groups: Sequence[Chart]) -> list[Json]:
    traces = []
    for number, group in enumerate(groups):
        published = group["published"]
        colour = TRUTH if published else _MEASURED[number % 2]
        values = group["values"]
        trace: Json = {
            "type": "scatter",
            "name": group["label"],
            "x": [v["x"] for v in values],
            "y": [v["y"] for v in values],
            "mode": "markers",
            "marker": {
                "color": colour,
                "size": 13 if published else 8,
                "symbol": "star" if published else ("circle", "diamond")[number % 2],
            },
        }
        if "low" in values[0]:
            trace["error_y"] = {
                "type": "data",
                "symmetric": False,
                "array": [v["high"] - v["y"] for v in values],
                "arrayminus": [v["y"] - v["low"] for v in values],
                "color": colour,
                "thickness": 1.4,
                "width": 4,
            }
        traces.append(trace)
    return traces
