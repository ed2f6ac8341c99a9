"""``monitor.html``: the monitor's table, and its curves against what others do, offline.

Nothing is computed here: ``tnav.evaluate.bench_monitor`` measures, this draws.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from tnav.evaluate.limits import Row
from tnav.evaluate.relief_charts import Chart
from tnav.report.descent_layout import Cell, grid, titled
from tnav.report.layout import Figure
from tnav.report.page import figure_json, write_page
from tnav.report.traces import ESTIMATE, FAULT, FIX, QUIET, TRUTH, Json

_COLOURS = (ESTIMATE, FAULT, FIX, QUIET, TRUTH)
_LEAD = Markup(
    "Closed-loop descents in <code>model</code> fidelity with faults drawn over their whole ranges."
    " Found is what alarms between the fault and the point of no return. The curves: the same "
    "flights by every method, at every threshold, where nobody acts."
)


def write_monitor_page(
    folder: Path, rows: Sequence[Row], charts: dict[str, Chart], diagram: Chart
) -> Path:
    """Write ``monitor.html``.

    Args:
        folder: to write to; made where it is missing.
        rows: what was measured, with limits.
        charts: by kind of fault (``tnav.evaluate.bench_baselines``).
        diagram: of all looks (``tnav.evaluate.stanford``).

    Raises:
        RunFileError: the page cannot be written.
    """
    # Imported here: it is slow, and only a whole page needs it.
    from plotly.offline import get_plotlyjs

    return write_page(
        folder / "monitor.html",
        "charts.html.j2",
        title="The fault monitor, measured",
        lead=_LEAD,
        figures=[
            *(curves_figure(name, chart) for name, chart in charts.items()),
            stanford_figure(diagram),
        ],
        rows=rows,
        sources=(),
        figure_json=figure_json,
        plotly=Markup(get_plotlyjs()),  # noqa: S704 - a library without a closing tag: tested
    )


def curves_figure(kind: str, chart: Chart) -> Figure:
    """Detection and delay against the share of healthy descents that alarm."""
    n, sized = chart["n"], chart["sized"]
    found, late = [], []
    for number, curve in enumerate(chart["curves"]):
        colour = _COLOURS[number % len(_COLOURS)]
        found.append(_marks(curve, "found", colour, show=True))
        late.append(_marks(curve, "delay_s", colour, show=False))
    false = titled("healthy descents with an alarm (share)", range=[-0.02, 1.02])
    cells = [
        Cell("Found in time", false, titled("share of faults", range=[-0.02, 1.02]), found),
        Cell("Delay, median", false, titled("s", rangemode="tozero"), late),
    ]
    caption = (
        f"{n} healthy descents, and {sized} of {n} with a fault of this kind that begins before "
        "the point of no return, however small. Each point is one threshold; tnav's are its rates "
        "of 1e-1 to 1e-4 a descent, a baseline's end where it alarms on no healthy descent. Up and "
        "to the left is better; for the delay, down."
    )
    alt = f"{kind}: share found and delay against share of false alarms, " + ", ".join(
        curve["label"] for curve in chart["curves"]
    )
    return grid(
        f"monitor-{kind}", kind.replace("_", " "), caption, alt, cells, columns=2, height_px=300
    )


def stanford_figure(chart: Chart) -> Figure:
    """How many looks there were at each error and protection level, as shares of the limit."""
    power, counts = chart["power"], chart["counts"]
    looks = {
        "type": "heatmap",
        "name": "looks",
        "showlegend": False,
        "x": power,
        "y": power,
        "z": [[math.log10(n) if n else None for n in row] for row in counts],
        "text": [[f"{n:,} looks" if n else "" for n in row] for row in counts],
        "hovertemplate": "%{text}<extra></extra>",
        "colorscale": [[0.0, "#dfe7f1"], [1.0, ESTIMATE]],
        "showscale": False,
    }
    low, high = power[0], power[-1]
    lines = [
        _line([low, high], [low, high], "error = level"),
        _line([low, high], [0.0, 0.0], "level = limit"),
        _line([0.0, 0.0], [low, high], "error = limit"),
    ]
    regions = {
        "type": "scatter", "mode": "text", "name": "regions",
        "showlegend": False, "hoverinfo": "skip",
        "x": [-3.6, -1.2, 0.55, -2.2], "y": [-1.0, -3.4, -2.2, 0.6],
        "text": ["nominal", "misleading", "hazardous", "unavailable"],
        "textfont": {"color": "#545d68", "size": 13},
    }  # fmt: skip
    axis = "share of the alert limit, power of ten"
    cells = [
        Cell("", titled(f"error of the height, {axis}"), titled(f"protection level, {axis}"),
             [looks, *lines, regions])
    ]  # fmt: skip
    classes = ", ".join(f"{count:,} {name}" for name, count in chart["classes"].items())
    caption = (
        "Two looks a second of all descents, healthy and faulty, up to the first alert, while the "
        f"lander could still stop; darker is more, by its logarithm. Of all looks: {classes} "
        "(an alert counts as unavailable)."
    )
    return grid(
        "monitor-stanford", "Stanford diagram of heights", caption,
        f"looks by error and protection level: {classes}", cells, columns=1, height_px=460,
    )  # fmt: skip


def _line(x: list[float], y: list[float], name: str) -> Json:
    return {
        "type": "scatter", "mode": "lines", "x": x, "y": y, "name": name, "showlegend": False,
        "hoverinfo": "name", "line": {"color": QUIET, "width": 1.0},
    }  # fmt: skip


def _marks(curve: Chart, what: str, colour: str, *, show: bool) -> Json:
    points = [(x, y) for x, y in zip(curve["false"], curve[what], strict=True) if y is not None]
    first = curve["label"] == "tnav"
    return {
        "type": "scatter",
        "name": curve["label"],
        "legendgroup": curve["label"],
        "showlegend": show,
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "mode": "markers" if first else "lines+markers",
        "line": {"color": colour, "width": 1.4},
        "marker": {"color": colour, "size": 12 if first else 4, "symbol": "star" if first else
                   "circle"},
    }  # fmt: skip
