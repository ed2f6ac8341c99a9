"""``events.html``: how each historical event ended then, and how it ends with tnav, offline.

Nothing is computed here: ``tnav.evaluate.events_fly`` flies, ``events_score`` judges, this draws.
"""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from tnav.evaluate import events_score
from tnav.evaluate.events_fly import SAVED_M_S, Ending, EventResult, Flown
from tnav.report.descent_layout import Cell, across, grid, titled
from tnav.report.layout import Figure
from tnav.report.page import figure_json, write_page
from tnav.report.traces import ESTIMATE, FAULT, Json

_MARKS = {
    "A": "agency, operator or paper",
    "B": "press that quotes them",
    "C": "general knowledge, not traced",
    "D": "derived from the others",
    "P": "chosen here",
}
_ROW_PX = 34
_SPEEDS_M_S = (1, 2, 3, 5, 10, 20, 50, 100)


def write_events_page(folder: Path, results: Sequence[EventResult]) -> Path:
    """Write ``events.html``.

    Args:
        folder: to write to; made where it is missing.
        results: of the events, in the order of the page.

    Raises:
        RunFileError: the page cannot be written.
    """
    # Imported here: it is slow, and only a whole page needs it.
    from plotly.offline import get_plotlyjs

    return write_page(
        folder / "events.html",
        "events.html.j2",
        events=[_told(result) for result in results],
        descents=len(results[0].with_tnav.endings) if results else 0,
        marks=_MARKS,
        figure=endings_figure(results),
        figure_json=figure_json,
        plotly=Markup(get_plotlyjs()),  # noqa: S704 - a library without a closing tag: tested
    )


def endings_figure(results: Sequence[EventResult]) -> Figure:
    """Speeds at contact, a row for each event: as it was flown then, and with tnav."""
    order = [result.event.title for result in reversed(results)]
    then = [(r.event.title, r.as_flown) for r in results if r.as_flown is not None]
    now = [(r.event.title, r.with_tnav) for r in results]
    marks = [
        _dots(then, "as flown then", FAULT, "x"),
        _dots(now, "with tnav", ESTIMATE, "circle"),
    ]
    speed = titled("speed at contact, m/s", type="log", tickvals=_SPEEDS_M_S)
    events: Json = {"categoryorder": "array", "categoryarray": order, "automargin": True}
    caption = (
        "Each mark is one descent, with all that is drawn drawn anew; the dashed line is 3 m/s. "
        "A descent that never came down has no mark."
    )
    alt = "speeds at contact of each event, as flown then and with tnav"
    cells = [Cell("", speed, events, marks, [across(SAVED_M_S, "#545d68", "dash")])]
    return grid(
        "events-endings", "How they end", caption, alt, cells,
        columns=1, height_px=max(160, _ROW_PX * len(order)),
    )  # fmt: skip


def _dots(flown: Sequence[tuple[str, Flown]], name: str, colour: str, symbol: str) -> Json:
    points = [
        (title, ending)
        for title, each in flown
        for ending in each.endings
        if ending.speed_m_s is not None
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "showlegend": True,
        "x": [ending.speed_m_s for _, ending in points],
        "y": [title for title, _ in points],
        "text": [_words(ending) for _, ending in points],
        "hovertemplate": "%{text}<extra>%{y}</extra>",
        "marker": {"color": colour, "symbol": symbol, "size": 8},
    }


def _words(ending: Ending) -> str:
    speed = "" if ending.speed_m_s is None else f" at {ending.speed_m_s:.1f} m/s"
    return f"{ending.how.value.replace('_', ' ')}{speed}, {ending.propellant_kg:.0f} kg left"


def _told(result: EventResult) -> dict[str, object]:
    """What the template shows of one event."""
    event, row = result.event, events_score.cells(result)
    lines = [
        ("Expected verdict", _plain(row["expected"])),
        ("Said, of each descent", _plain(row["verdicts"])),
        ("Alert after, median", row["alert after"]),
        ("Least margin to the point of no return", row["least margin"]),
        ("As flown then", _plain(row["as flown"])),
        ("With tnav", _plain(row["with tnav"])),
        ("Twin without the fault", _plain(row["twin"])),
    ]
    return {
        "name": event.name,
        "title": event.title,
        "date": event.date.isoformat(),
        "what": event.what,
        "passed": events_score.judge(result).passed,
        "lines": [(name, value) for name, value in lines if value],
        "parameters": event.parameters,
    }


def _plain(words: str) -> str:
    return words.replace("_", " ")
