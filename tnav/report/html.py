"""``report.html``: one offline file of a run, from ``run.json`` and the pictures beside it.

Nothing is computed here: numbers are formatted, frames selected, matches drawn. The file asks for
nothing from outside: plotly, the styles and the pictures are inlined, and its content security
policy forbids the rest.
"""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from tnav.errors import ImageError, RunFileError
from tnav.evaluate.metrics import (
    AGL_LIMIT_PERCENT,
    HORIZONTAL_LIMIT_M,
    HORIZONTAL_LIMIT_PX,
    within_limits,
)
from tnav.evaluate.runlog import FrameRecord, MatchRecord, RunDocument, read_document
from tnav.images import display_grey, draw_matches, encode_jpeg, read_image, resize
from tnav.report.figures import figures
from tnav.report.page import environment, figure_json, write_text
from tnav.report.traces import words

_PICTURES_BYTES = 2_600_000  # of all thumbnails together; base64 makes it 3.5 MB in the file
_VIEW_WIDTHS_PX = (440, 360, 300, 240, 180)  # of each half, the first that fits is taken
_JPEG_QUALITY = 80
_GALLERY_FRAMES = 60  # evenly chosen where a run has more; the table names every frame
_DRAWN_MATCHES = 60  # where an image has more, lest the lines hide the ground
_DRAWN_OUTLIERS = 30  # of them, all if there are fewer: a report shows what went wrong
_GUTTER_PX = 8
_DASH = "–"  # what was not measured
_HORIZONTAL_LIMIT = f"{HORIZONTAL_LIMIT_PX:g} ground pixels + {HORIZONTAL_LIMIT_M:g} m"

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Banner:
    """The answer of the run in one glance. ``tone`` is ``fault``, ``calm`` or ``wrong``."""

    tone: str
    headline: str
    facts: list[str]


@dataclass(frozen=True, slots=True)
class Tile:
    """One number of the summary. ``good`` is None where no limit applies."""

    name: str
    value: str
    detail: str
    good: bool | None


@dataclass(frozen=True, slots=True)
class Card:
    """One frame of the gallery."""

    frame: FrameRecord
    picture: str  # data URI
    width_px: int
    height_px: int
    n_drawn: int
    scored: bool
    within: bool


def write_report(folder: Path) -> Path:
    """Write ``report.html`` of a run: beside its place, then renamed.

    Args:
        folder: what ``tnav run`` wrote: ``run.json`` and the pictures that it names.

    Returns:
        The path of the report.

    Raises:
        RunFileError: ``run.json`` is missing, damaged or of another schema, or names a picture
            outside the folder, or the report cannot be written.
        ImageError: a picture is missing or cannot be read.
    """
    document = read_document(folder)
    page = _page(document, _gallery(document, folder))
    path = folder / "report.html"
    write_text(path, page)
    return path


def _page(document: RunDocument, cards: list[Card]) -> str:
    # Imported here: it is slow, and only a whole report needs it.
    from plotly.offline import get_plotlyjs

    templates = environment()
    templates.filters |= {"number": _number, "signed": _signed, "words": words}
    return templates.get_template("report.html.j2").render(
        title=_sentence(document.setup.scenario),
        run=document,
        setup=document.setup,
        summary=document.summary,
        banner=_banner(document),
        tiles=_tiles(document),
        cards=cards,
        figures=figures(document),
        figure_json=figure_json,
        scored=lambda frame: _scored(document, frame),
        within=within_limits,
        agl_limit_percent=AGL_LIMIT_PERCENT,
        horizontal_limit=_HORIZONTAL_LIMIT,
        drawn_matches=_DRAWN_MATCHES,
        plotly=Markup(get_plotlyjs()),  # noqa: S704 - a library without a closing tag: tested
    )


def _banner(document: RunDocument) -> Banner:
    summary, verdicts = document.summary, document.verdicts
    expected = f"expected for this scenario: {words(summary.expected_verdict)}"
    as_expected = summary.verdict == summary.expected_verdict and summary.false_alarms == 0
    if not verdicts:
        tone = "calm" if as_expected else "wrong"
        missed = "" if as_expected else ", though there was something to find"
        return Banner(tone, f"No alarm{missed}", [expected])
    first = verdicts[0]
    facts = [f"alert at {first.alert_s:.1f} s", _before_no_return(summary.seconds_before_no_return)]
    if len(verdicts) > 1:
        facts.append(f"{len(verdicts)} verdicts")
    tone = "fault" if as_expected else "wrong"
    note = "as expected for this scenario" if as_expected else f"but {expected}"
    return Banner(tone, _sentence(first.kind), [*facts, note])


def _before_no_return(seconds: float | None) -> str:
    if seconds is None:
        return "no point of no return was passed"
    side = "before" if seconds >= 0 else "AFTER"
    return f"{abs(seconds):.1f} s {side} the point of no return"


def _tiles(document: RunDocument) -> list[Tile]:
    s, no_return = document.summary, document.point_of_no_return
    agl, margin = s.agl_error_percent_max, s.horizontal_margin_m_min
    tiles = [
        Tile(
            "AGL error, largest",
            f"{_number(agl, 2)} %",
            f"rms {_number(s.agl_error_percent_rms, 2)} %; limit {AGL_LIMIT_PERCENT:g} %",
            None if agl is None else agl < AGL_LIMIT_PERCENT,
        ),
        Tile(
            "Horizontal error, largest",
            f"{_number(s.horizontal_error_m_max, 1)} m",
            f"rms {_number(s.horizontal_error_m_rms, 1)} m; least margin {_signed(margin, 1)} m "
            f"to {_HORIZONTAL_LIMIT}",
            None if margin is None else margin > 0,
        ),
        Tile(
            "Fixes within limits",
            f"{s.fixes_within_limits} of {s.fixes_scored}",
            f"at or above {s.floor_agl_m:g} m AGL; {s.fixes_failed} of them failed",
            s.fixes_within_limits == s.fixes_scored,
        ),
        Tile(
            "Verdict",
            words(s.verdict),
            f"expected {words(s.expected_verdict)}; false alarms: {s.false_alarms}",
            s.verdict == s.expected_verdict and s.false_alarms == 0,
        ),
    ]
    early = s.seconds_before_no_return
    tiles.append(
        Tile(
            "Alert",
            "none" if s.alert_s is None else f"{s.alert_s:.1f} s",
            "nothing was raised" if s.alert_s is None else _before_no_return(early),
            None if early is None else early > 0,
        )
    )
    passed = no_return.t_s is not None
    tiles.append(
        Tile(
            "Point of no return",
            f"{_number(no_return.t_s, 1)} s" if passed else "not passed",
            f"{_number(no_return.height_m, 0)} m at {_number(no_return.speed_m_s, 1)} m/s down"
            if passed
            else "full braking would have sufficed throughout",
            None,
        )
    )
    return tiles


def _gallery(document: RunDocument, folder: Path) -> list[Card]:
    frames = _evenly(document.frames, _GALLERY_FRAMES)
    return [_card(document, folder, frame, _PICTURES_BYTES // len(frames)) for frame in frames]


def _card(document: RunDocument, folder: Path, frame: FrameRecord, budget_bytes: int) -> Card:
    """Map view left, camera right, with matches; as wide as the budget of bytes allows."""
    views = [
        display_grey(read_image(_inside(folder, name), constant_allowed=True)[0, 0])
        for name in (frame.map_view, frame.image)
    ]
    shapes = [view.shape for view in views]
    if shapes[0] != shapes[1]:
        raise ImageError(
            f"{folder / frame.map_view}: {shapes[0][1]} x {shapes[0][0]} pixels, expected those of "
            f"{frame.image}, {shapes[1][1]} x {shapes[1][0]}"
        )
    matches = _drawn(frame)
    for width_px in _VIEW_WIDTHS_PX:
        picture = _draw(matches, views[0], views[1], min(width_px, shapes[0][1]))
        jpeg = encode_jpeg(picture, _JPEG_QUALITY)
        if len(jpeg) <= budget_bytes:
            break
    uri = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
    height_px, width_px = picture.shape[:2]
    scored = _scored(document, frame)
    return Card(frame, uri, width_px, height_px, len(matches), scored, within_limits(frame))


def _drawn(frame: FrameRecord) -> list[MatchRecord]:
    """The matches to draw, evenly chosen among inliers and outliers; outliers last, on top."""
    outliers = _evenly([m for m in frame.matches if not m.inlier], _DRAWN_OUTLIERS)
    inliers = [m for m in frame.matches if m.inlier]
    return _evenly(inliers, _DRAWN_MATCHES - len(outliers)) + outliers


def _draw(
    matches: list[MatchRecord], map_view: NDArray[np.uint8], image: NDArray[np.uint8], width_px: int
) -> NDArray[np.uint8]:
    scale = width_px / image.shape[1]  # pixel edges lie at integers: a plain factor is right
    left = np.pad(
        resize(map_view, width_px), ((0, 0), (0, _GUTTER_PX)), "constant", constant_values=255
    )
    return draw_matches(
        left,
        resize(image, width_px),
        scale * np.array([(m.u_map_px, m.v_map_px) for m in matches]).reshape(-1, 2),
        scale * np.array([(m.u_px, m.v_px) for m in matches]).reshape(-1, 2),
        np.array([m.inlier for m in matches], dtype=np.bool_),
    )


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise RunFileError(f"{folder / 'run.json'}: frames: {name} lies outside the run folder")
    return path


def _evenly(items: list[_Item], most: int) -> list[_Item]:
    """All, or ``most`` of them at even steps."""
    if len(items) <= most:
        return items
    return [items[k * len(items) // most] for k in range(most)]


def _scored(document: RunDocument, frame: FrameRecord) -> bool:
    return frame.true_agl_m >= document.summary.floor_agl_m


def _sentence(name: str) -> str:
    text = words(name)
    return text[:1].upper() + text[1:]


def _number(value: float | None, digits: int) -> str:
    return _DASH if value is None else f"{value:z.{digits}f}"


def _signed(value: float | None, digits: int) -> str:
    return _DASH if value is None else f"{value:+z.{digits}f}".replace("-", "−")
