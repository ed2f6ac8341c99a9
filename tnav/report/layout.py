"""What all figures of the report share: panels on one time axis, vertical lines of the events."""

from collections.abc import Sequence
from dataclasses import dataclass

from tnav.evaluate.runlog import RunDocument
from tnav.report import traces
from tnav.report.traces import FAULT, TRUTH, Json

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_PANEL_GAP_PX, _TOP_PX, _BOTTOM_PX, _LEFT_PX = 22, 72, 48, 104
_EVENTS_PX = 20  # strip of event labels, between plot and legend


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
class Panel:
    """One plot of a figure: title of its axis, height, and what else plotly shall know of it."""

    title: str
    height_px: int
    axis: Json


def figure(
    document: RunDocument,
    name: str,
    title: str,
    caption: str,
    alt: str,
    marks: list[Json],
    panels: Sequence[Panel],
) -> Figure:
    """A figure of panels one over the other, on the run's time axis and with its events."""
    inner = sum(p.height_px for p in panels) + _PANEL_GAP_PX * (len(panels) - 1)
    height_px = inner + _TOP_PX + _BOTTOM_PX
    axis: Json = {
        "gridcolor": "#e8ebee",
        "linecolor": "#aeb5bd",
        "showline": True,
        "ticks": "outside",
    }
    axis |= {"tickcolor": "#aeb5bd", "ticklen": 4, "zerolinecolor": "#c3c9d0"}
    axis |= {"exponentformat": "none", "separatethousands": True}
    layout: Json = {
        "height": height_px,
        "margin": {"l": _LEFT_PX, "r": 18, "t": _TOP_PX, "b": _BOTTOM_PX},
        "font": {"family": _FONT, "size": 12.5, "color": "#2a2f36"},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "hovermode": "x unified",
        "barmode": "overlay",
        "legend": {"orientation": "h", "x": 0, "y": 1 + _EVENTS_PX / inner, "yanchor": "bottom"},
    }
    time: Json = {"title": {"text": "time since start (s)", "standoff": 8}}
    time |= {"range": time_span(document)}
    time |= {"anchor": traces.axis("y", len(panels)), "hoverformat": ".2f", "zeroline": False}
    layout["xaxis"] = axis | time
    top_px = 0
    for number, panel in enumerate(panels, start=1):
        bottom_px = top_px + panel.height_px
        domain = [max(1 - bottom_px / inner, 0.0), 1 - top_px / inner]
        top_px = bottom_px + _PANEL_GAP_PX
        extra: Json = {"domain": domain, "anchor": "x", "zeroline": False}
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
            place: Json = {"x": t_s, "y": 1, "xref": "x", "yref": "paper", "xshift": -3}
            anchor: Json = {"xanchor": "left", "yanchor": "bottom", "showarrow": False}
            look = {"font": {"color": colour, "size": 12}}
            labels.append({"text": text} | place | anchor | look)
    return shapes, labels


def time_span(document: RunDocument) -> list[float]:
    """The time axis of every figure: all of the run, with a little air for marks at its ends."""
    times = [*document.states.t_s, *document.altimeter.t_s, *(f.t_s for f in document.frames)]
    if not times:
        return [0.0, 1.0]
    air = 0.01 * (max(times) - min(times)) or 1.0
    return [min(times) - air, max(times) + air]
