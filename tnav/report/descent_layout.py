"""Grids of small plots, as the page of closed-loop descents has them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from tnav.evaluate.descent_figures import Floats
from tnav.report import traces
from tnav.report.layout import Figure
from tnav.report.traces import QUIET, Json, Values, axis

TIME = "time since start (s)"
THIN = "rgba(110,120,132,0.45)"  # descents that are not the bold one

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_TOP_PX, _BOTTOM_PX, _LEFT_PX, _RIGHT_PX = 62, 52, 74, 14
_ROW_GAP_PX = 74  # ticks and title of an axis, title of the next plot
_COLUMN_GAP = 0.075  # of the figure's width: ticks and title of the next plot
_AXIS: Json = {
    "gridcolor": "#e8ebee",
    "linecolor": "#aeb5bd",
    "showline": True,
    "ticks": "outside",
    "tickcolor": "#aeb5bd",
    "ticklen": 4,
    "zeroline": False,
    "exponentformat": "none",
    "separatethousands": True,
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One plot: words above it, axes as plotly has them, traces and shapes without axes."""

    title: str
    x: Json
    y: Json
    marks: Sequence[Json]
    shapes: Sequence[Json] = field(default_factory=tuple)


def grid(
    name: str,
    title: str,
    caption: str,
    alt: str,
    cells: Sequence[Cell],
    *,
    columns: int,
    height_px: int,
) -> Figure:
    """A figure of cells, row by row, each of one height."""
    rows = -(-len(cells) // columns)
    inner = rows * height_px + (rows - 1) * _ROW_GAP_PX
    width = (1 - (columns - 1) * _COLUMN_GAP) / columns
    total_px = inner + _TOP_PX + _BOTTOM_PX
    layout: Json = {
        "height": total_px,
        "margin": {"l": _LEFT_PX, "r": _RIGHT_PX, "t": _TOP_PX, "b": _BOTTOM_PX},
        "font": {"family": _FONT, "size": 12, "color": "#2a2f36"},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "hovermode": "closest",
        "legend": {"orientation": "h", "x": 0, "y": 1 + 26 / inner, "yanchor": "bottom"},
        "shapes": [],
        "annotations": [],
    }
    data: list[Json] = []
    named: set[str] = set()  # a legend has each name once
    for number, cell in enumerate(cells, start=1):
        row, column = divmod(number - 1, columns)
        left, top_px = column * (width + _COLUMN_GAP), row * (height_px + _ROW_GAP_PX)
        place_x: Json = {"domain": [left, min(left + width, 1.0)], "anchor": axis("y", number)}
        low = max(1 - (top_px + height_px) / inner, 0.0)
        place_y: Json = {"domain": [low, 1 - top_px / inner], "anchor": axis("x", number)}
        layout[axis("xaxis", number)] = _AXIS | place_x | cell.x
        layout[axis("yaxis", number)] = _AXIS | place_y | cell.y
        own = {"xaxis": axis("x", number), "yaxis": axis("y", number)}
        for mark in cell.marks:
            shown = mark["showlegend"] and mark["name"] not in named
            named |= {mark["name"]} if shown else set()
            data.append(mark | own | {"showlegend": shown})
        layout["shapes"] += [_placed(shape, number) for shape in cell.shapes]
        layout["annotations"].append(_heading(cell.title, number))
    return Figure(name, title, caption, alt, total_px, {"data": data, "layout": layout})


def titled(text: str, **more: object) -> Json:
    """An axis by its title, and what else plotly shall know of it."""
    return {"title": {"text": text, "standoff": 6}} | more


def across(x: float | str, colour: str = QUIET, dash: str = "dot") -> Json:
    """A vertical line through a cell."""
    style = {"color": colour, "width": 1.1, "dash": dash}
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": style, "layer": "below"}


def shade(begin: float, end: float, colour: str) -> Json:
    """A stretch of a cell's horizontal axis, tinted."""
    ends = {"x0": begin, "x1": end, "y0": 0, "y1": 1}
    return {"type": "rect", "layer": "below", "fillcolor": colour, "line": {"width": 0}} | ends


def strokes(name: str, x: Values, y: Values, colour: str, width: float, *, show: bool) -> Json:
    """Many pieces of line in one trace, ``None`` between them; nothing is told on pointing."""
    return {
        "type": "scatter",
        "name": name,
        "x": traces.rounded(x),
        "y": traces.rounded(y),
        "mode": "lines",
        "line": {"color": colour, "width": width},
        "hoverinfo": "skip",
        "showlegend": show,
    }


def level(
    name: str, span: Sequence[float], value: float, colour: str, dash: str, show: bool
) -> Json:
    """A horizontal line over a span."""
    mark = traces.line(name, list(span), [value] * 2, colour, dash=dash, show=show)
    return mark | {"hoverinfo": "skip"}


def plain(values: Floats) -> list[float | None]:
    """For JSON, which knows no NaN."""
    return [v if math.isfinite(v) else None for v in values.ravel().tolist()]


def known(values: Floats) -> list[float]:
    """The same where nothing is NaN."""
    return [float(v) for v in values]


def _placed(shape: Json, number: int) -> Json:
    """On a cell's axes: by its ``refs`` in data, over the whole width, or (none) the height."""
    x, y, refs = axis("x", number), axis("y", number), shape.get("refs")
    place = {
        "xref": f"{x} domain" if refs == "width" else x,
        "yref": y if refs else f"{y} domain",
    }
    return place | {key: value for key, value in shape.items() if key != "refs"}


def _heading(text: str, number: int) -> Json:
    place = {"xref": f"{axis('x', number)} domain", "yref": f"{axis('y', number)} domain"}
    where: Json = {"x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom", "yshift": 3}
    look: Json = {"showarrow": False, "font": {"size": 12.5, "color": "#15181c"}}
    return {"text": f"<b>{text}</b>"} | place | where | look
