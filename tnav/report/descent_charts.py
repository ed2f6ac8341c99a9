"""Flights of closed-loop descents as plotly specifications: one descent bold, all others thin."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from tnav.evaluate.descent_figures import Floats, Track, beyond_3_sigma
from tnav.evaluate.descent_score import AGL_PERCENT_MAX
from tnav.evaluate.flight_score import ACROSS_MAX_M_S
from tnav.records import Sensor
from tnav.report import traces
from tnav.report.descent_layout import (
    THIN,
    TIME,
    Cell,
    across,
    grid,
    known,
    level,
    plain,
    shade,
    strokes,
    titled,
)
from tnav.report.layout import Figure
from tnav.report.traces import ESTIMATE, FAULT, FIX, QUIET, Json, words

_THIN_POINTS = 250  # of a thin line
_BEFORE_FIX_S = 30.0
_NEAR_M = 12_000.0  # height from which the end of the path is shown
_PHASES = {
    "coast": "rgba(138,147,157,0.22)",
    "braking": "rgba(217,115,13,0.10)",
    "approach": "rgba(31,95,168,0.10)",
    "terminal": "rgba(44,122,70,0.20)",
}
_LANDED = "#2c7a46"
# Where an axis turns from linear to logarithmic, and how far its ticks go, by what is drawn.
_TURNS = {"position (m)": 0.1, "velocity (m/s)": 0.01, "attitude (deg)": 0.001}
_DECADES = 6
_LEAST_DECADE, _CROWDED = 1, 1.6  # over so many decades the ticks next to zero would overlap


def trajectory(place: str, tracks: Sequence[Track]) -> Figure:
    """Path and speeds of every descent, with the phases of the bold one."""
    timed: Json = {"x": titled(TIME, range=_whole(tracks)), "shapes": _phases(tracks[0])}

    def cell(title: str, unit: str, of: Callable[[Track], Floats], show: bool = False) -> Cell:
        marks = _lines(tracks, lambda t: t.t_s, of, show=show)
        return Cell(title, timed["x"], titled(unit), marks, timed["shapes"])

    path = _lines(tracks, lambda t: t.range_m / 1e3, lambda t: t.height_m / 1e3)
    widest_m = max(float(t.range_m[t.height_m < _NEAR_M].max(initial=1.0)) for t in tracks)
    near: Json = {"range": [1.1e-3 * widest_m, -0.05e-3 * widest_m]}
    cells = [
        Cell("Whole path", titled("range to target (km)", autorange="reversed"),
             titled("height (km)", rangemode="tozero"), path),
        Cell("End of the path", titled("range to target (km)", **near),
             titled("height (km)", range=[-0.3, _NEAR_M / 1e3]), path),
        cell("Height", "height (km)", lambda t: t.height_m / 1e3),
        cell("Vertical speed", "down (m/s)", lambda t: t.down_m_s),
        cell("Horizontal speed", "horizontal (m/s)", lambda t: t.across_m_s),
        cell("Propellant", "left (kg)", lambda t: t.propellant_kg, show=True),
    ]  # fmt: skip
    cells[-1] = _with(cells[-1], [_patch(name, colour) for name, colour in _PHASES.items()])
    caption = (
        "True flight. Height is over the ground where a descent came down, range runs along the "
        f"sphere to the target. Shaded are the phases of guidance of seed {tracks[0].seed}."
    )
    alt = f"Path, speeds and propellant of {len(tracks)} descents"
    return grid(place, "Trajectory", caption, alt, cells, columns=3, height_px=215)


def errors(place: str, tracks: Sequence[Track], first_s: dict[Sensor, float]) -> Figure:
    """Nine errors over time against their own 3 sigma.

    Args:
        place: name of the figure.
        tracks: descents, the bold one first.
        first_s: when the bold one's sensors first spoke.
    """
    beyond, bold = beyond_3_sigma(list(tracks)), tracks[0]
    begin_s = first_s.get(Sensor.VISION, bold.t_s[0]) - _BEFORE_FIX_S
    span = [max(begin_s, float(bold.t_s[0])), float(bold.t_s[-1]) + 2]
    first = {Sensor.VISION: ("first fix", FIX), Sensor.ALTIMETER: ("first range", _LANDED)}
    lines = [(*first[s], t_s) for s, t_s in first_s.items() if s in first]
    cells = []
    for row, direction in enumerate(("east", "north", "up")):
        for column, (unit, turn) in enumerate(_TURNS.items()):
            k = 3 * column + row
            title = f"{unit.split(' ')[0].capitalize()} {direction}"
            title += f"</b> · {beyond[k]:.2f} % beyond 3σ<b>"
            cells.append(
                Cell(
                    title,
                    titled(TIME if row == 2 else "", range=span),
                    titled(unit, **_folded_axis(tracks, span, k, turn)),
                    _error_marks(tracks, k, turn, show=row + column == 0),
                    [across(t_s, colour) for _, colour, t_s in lines],
                )
            )
    cells[0] = _with(cells[0], [_dotted(text, colour) for text, colour, _ in lines])
    caption = (
        "Navigation minus truth along east, north and up; the band is ± 3σ as the filter of seed "
        f"{bold.seed} had it. Axes are linear near zero and logarithmic further out, so that the "
        "drift before the first fix and the last metres are seen at once. They begin "
        f"{_BEFORE_FIX_S:g} s before the first fix; double-click shows the whole flight. Beyond 3σ "
        "is the share of moments, against each descent's own sigma over its whole flight; a "
        "Gaussian gives 0.27 %, but the moments of one descent are not independent."
    )
    alt = f"Errors of position, velocity and attitude of {len(tracks)} descents with 3-sigma bands"
    return grid(place, "Navigation error against 3σ", caption, alt, cells, columns=3, height_px=175)


def height_error(
    place: str,
    tracks: Sequence[Track],
    rms: Sequence[tuple[float, float]],
    judged_m: Sequence[float],
) -> Figure:
    """Error of the height over the ground in per cent, against that height.

    Args:
        place: name of the figure.
        tracks: descents, the bold one first.
        rms: heights (m) with the rms error of all descents (%).
        judged_m: heights at which that has a limit.
    """
    marks = _lines(tracks, lambda t: t.agl_m, lambda t: t.agl_error_percent, show=True)
    if rms:
        heights, percents = zip(*rms, strict=True)
        name = "rms of all descents" if len(tracks) > 1 else "at set heights"
        dots = traces.points(name, heights, percents, FIX, size=9, symbol="diamond")
        marks.append(dots | {"hovertemplate": "%{x:.5~g} m: %{y:.3~g} %"})
    if judged_m:
        span = [max(judged_m), min(judged_m)]
        marks.append(level("limit of the rms", span, AGL_PERCENT_MAX, FAULT, "dash", True))
    decades = {"type": "log", "tickvals": _marks_of(range(5), (1, 2, 5))}
    heights_m = np.concatenate([t.agl_m[np.isfinite(t.agl_m)] for t in tracks])
    top = math.log10(1.2 * float(heights_m.max())) if heights_m.size else 4.3
    x = titled("true height over the ground (m)", range=[top, 1], **decades)
    y = titled("error (%)", type="log", range=[-3.3, 1.2], tickvals=_marks_of(range(-3, 2), (1,)))
    caption = (
        "Height over the ground as navigation has it (its position over its map) minus the true "
        "one, as a share of the true one. Lower down, decimetres are a large share of it."
    )
    alt = f"Relative error of the height over the ground of {len(tracks)} descents"
    cell = Cell("", x, y, marks)
    return grid(place, "Height over the ground", caption, alt, [cell], columns=1, height_px=300)


def touchdowns(place: str, tracks: Sequence[Track], down_max_m_s: float) -> Figure:
    """Where they came down and how fast."""
    cells = [_places(tracks), _speeds(tracks, down_max_m_s), _tanks(tracks)]
    caption = (
        "Left: where they came down about the target, and by a line where navigation believed to "
        "be. Middle: speeds at contact with the box of a landing. Right: propellant left."
    )
    alt = f"Places, speeds and propellant left at the touchdown of {len(tracks)} descents"
    return grid(place, "Touchdown", caption, alt, cells, columns=3, height_px=300)


def _places(tracks: Sequence[Track]) -> Cell:
    reach = max(1.0, *(max(abs(c) for c in (*t.end_m, *t.end_believed_m)) for t in tracks))
    side = [-1.15 * reach, 1.15 * reach]
    x: list[float | None] = []
    y: list[float | None] = []
    for t in tracks:
        x += [t.end_m[0], t.end_believed_m[0], None]
        y += [t.end_m[1], t.end_believed_m[1], None]
    marks = [
        strokes("to where navigation believed to be", x, y, QUIET, 1.4, show=True),
        *_by_outcome(tracks, lambda t: t.end_m, "%{x:.2f} m east, %{y:.2f} m north", show=True),
        traces.points("target", [0.0], [0.0], FAULT, size=13, symbol="cross-thin")
        | {"marker": {"symbol": "cross-thin", "size": 15, "line": {"width": 2, "color": FAULT}}},
    ]
    ring = 10.0 ** math.floor(math.log10(reach))
    rings = [_ring(k * ring) for k in range(1, 10) if k * ring <= reach]
    flat = titled("north (m)", range=side, scaleanchor="x", constrain="domain")
    title = f"Place</b> · rings every {ring:g} m<b>"
    return Cell(title, titled("east (m)", range=side, constrain="domain"), flat, marks, rings)


def _ring(radius_m: float) -> Json:
    ends = {"x0": -radius_m, "x1": radius_m, "y0": -radius_m, "y1": radius_m, "refs": "data"}
    return {"type": "circle", "layer": "below", "line": {"color": "#d5dae0", "width": 1}} | ends


def _speeds(tracks: Sequence[Track], down_max_m_s: float) -> Cell:
    down = [t for t in tracks if t.speeds_m_s is not None]
    marks = _by_outcome(
        down,
        lambda t: (t.speeds_m_s[1], t.speeds_m_s[0]) if t.speeds_m_s else (0.0, 0.0),
        "%{y:.3f} m/s down, %{x:.4f} m/s across",
        show=False,
    )
    corner_x, corner_y = [0.0, ACROSS_MAX_M_S, ACROSS_MAX_M_S], [down_max_m_s, down_max_m_s, 0.0]
    marks.append(traces.line("limit", corner_x, corner_y, FAULT, dash="dash", show=False))
    widest = max([ACROSS_MAX_M_S, *(t.speeds_m_s[1] for t in down if t.speeds_m_s)])
    fastest = max([down_max_m_s, *(t.speeds_m_s[0] for t in down if t.speeds_m_s)])
    return Cell(
        "Speed at contact",
        titled("horizontal (m/s)", range=[-0.04 * widest, 1.1 * widest]),
        titled("down (m/s)", range=[0, 1.1 * fastest]),
        marks,
    )


def _tanks(tracks: Sequence[Track]) -> Cell:
    marks = _by_outcome(
        tracks,
        lambda t: (float(t.seed), float(t.propellant_kg[-1])),
        "seed %{x}: %{y:.1f} kg",
        show=False,
    )
    x = titled("seed", dtick=max(1, len(tracks) // 6), zeroline=False)
    return Cell("Propellant left", x, titled("left (kg)", rangemode="tozero"), marks)


def _by_outcome(
    tracks: Sequence[Track],
    of: Callable[[Track], tuple[float, float]],
    told: str,
    *,
    show: bool,
) -> list[Json]:
    marks = []
    for good, colour, symbol in ((True, _LANDED, "circle"), (False, FAULT, "x")):
        own = [t for t in tracks if (t.outcome == "landed") is good]
        if own:
            points = [of(t) for t in own]
            name = "landed" if good else "not landed"
            mark = traces.points(
                name, [p[0] for p in points], [p[1] for p in points], colour, size=8, symbol=symbol,
                show=show,
            )  # fmt: skip
            seeds = {"text": [f"seed {t.seed}, {words(t.outcome)}" for t in own]}
            marks.append(mark | seeds | {"hovertemplate": "%{text}<br>" + told})
    return marks


def _lines(
    tracks: Sequence[Track],
    x: Callable[[Track], Floats],
    y: Callable[[Track], Floats],
    *,
    show: bool = False,
) -> list[Json]:
    """All but the first in one thin trace, the first bold on top."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    for track in tracks[1:]:
        step = max(1, len(track.t_s) // _THIN_POINTS)
        xs += [*plain(x(track)[::step]), None]
        ys += [*plain(y(track)[::step]), None]
    first, there = tracks[0], np.isfinite(x(tracks[0]))
    bold = traces.line(
        f"seed {first.seed}", known(x(first)[there]), plain(y(first)[there]), ESTIMATE, show=show
    )
    thin = strokes("the other descents", xs, ys, THIN, 0.9, show=show)
    return [thin, bold] if xs else [bold]


def _error_marks(tracks: Sequence[Track], k: int, turn: float, *, show: bool) -> list[Json]:
    bold = tracks[0]
    three = _fold(3 * bold.sigma[:, k], turn)
    band = traces.band("± 3σ", known(bold.t_s), [0.0] * three.size, plain(three / 3), show=show)
    marks = _lines(tracks, lambda t: t.t_s, lambda t: _fold(t.error[:, k], turn), show=show)
    pairs = zip(bold.error[:, k], 3 * bold.sigma[:, k], strict=True)
    marks[-1]["text"] = [f"{error:.3g}, 3σ {sigma:.3g}" for error, sigma in pairs]
    marks[-1]["hovertemplate"] = "%{x:.1f} s: %{text}"
    return [band, *marks]


def _fold(value: Floats, turn: float) -> Floats:
    """Linear about zero, logarithmic beyond: asinh in decades of ``turn``."""
    return np.arcsinh(value / (2 * turn)) / math.log(10)


def _folded_axis(tracks: Sequence[Track], span: Sequence[float], k: int, turn: float) -> Json:
    """Ticks at zero and at decades; a range that holds errors and 3 sigma of the view."""
    most = turn
    for track in tracks:
        seen = track.t_s >= span[0]
        reach = np.maximum(np.abs(track.error[seen, k]), 3 * track.sigma[seen, k])
        most = max(most, float(reach.max(initial=0.0)))
    top = 1.08 * float(_fold(np.array([most]), turn)[0])
    decades = [turn * 10**d for d in range(_LEAST_DECADE if top > _CROWDED else 0, _DECADES)]
    values = [-v for v in reversed(decades)] + [0.0, *decades]
    return {
        "range": [-top, top],
        "tickvals": traces.rounded(plain(_fold(np.array(values), turn))),
        "ticktext": [f"{v:g}".replace("-", "−") for v in values],
        "zeroline": True,
        "zerolinecolor": "#c3c9d0",
    }


def _phases(track: Track) -> list[Json]:
    return [
        shade(s.begin_s, s.end_s, _PHASES[s.phase]) for s in track.stretches if s.phase in _PHASES
    ]


def _patch(name: str, colour: str) -> Json:
    """A legend's entry of a tint."""
    mark = traces.points(name, [], [], colour, size=12, symbol="square", show=True)
    return mark | {"x": [None], "y": [None]}


def _dotted(name: str, colour: str) -> Json:
    mark = traces.line(name, [], [], colour, dash="dot", show=True)
    return mark | {"x": [None], "y": [None]}


def _with(cell: Cell, marks: Sequence[Json]) -> Cell:
    return Cell(cell.title, cell.x, cell.y, [*cell.marks, *marks], cell.shapes)


def _whole(tracks: Sequence[Track]) -> list[float]:
    last_s = max(float(t.t_s[-1]) for t in tracks)
    return [min(float(t.t_s[0]) for t in tracks), 1.01 * last_s]


def _marks_of(decades: range, digits: Sequence[int]) -> list[float]:
    return [digit * 10.0**k for k in decades for digit in digits]
