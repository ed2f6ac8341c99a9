"""``descents.html``: a folder of closed-loop descents on one offline page.

Nothing is computed here: ``tnav.evaluate.descent_figures`` and ``descent_score`` do, this draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from tnav.evaluate.descent_figures import (
    Ending,
    agl_rms,
    consistency_of,
    endings_of,
    gate_of,
    nis_of,
    track_of,
)
from tnav.evaluate.descent_folder import DescentGroup
from tnav.evaluate.descent_record import DescentRecord
from tnav.evaluate.descent_score import (
    BLIND_DOWN_MAX_M_S,
    group_rows,
    judged_heights_m,
    missed,
)
from tnav.evaluate.flight_score import DOWN_MAX_M_S
from tnav.evaluate.limits import Row
from tnav.records import Sensor
from tnav.report.descent_charts import errors, height_error, touchdowns, trajectory
from tnav.report.descent_consistency import consistency_figure, innovations
from tnav.report.layout import Figure
from tnav.report.page import figure_json, write_page
from tnav.report.traces import words

_DASH = "–"  # what is not known
_FIDELITIES = {
    "image": "every image rendered, matched and solved",
    "model": "fixes drawn from an error model of image runs",
}


@dataclass(frozen=True, slots=True)
class Section:
    """Descents of one name as the page shows them."""

    place: str  # its id, and what ids of its figures begin with
    title: str
    lead: str
    good: bool
    headline: str
    missed: list[Row]
    figures: list[Figure]
    endings: list[Ending]
    rows: list[Row]


def write_descents_page(path: Path, groups: Sequence[DescentGroup]) -> Path:
    """Write the page.

    Args:
        path: of the page; its folder is made where it is missing.
        groups: what the folder holds (``read_groups``).

    Raises:
        RunFileError: the page cannot be written.
    """
    # Imported here: it is slow, and only a whole page needs it.
    from plotly.offline import get_plotlyjs

    return write_page(
        path,
        "descents.html.j2",
        sections=[_section(f"group-{k}", group) for k, group in enumerate(groups)],
        figure_json=figure_json,
        number=_number,
        words=words,
        plotly=Markup(get_plotlyjs()),  # noqa: S704 - a library without a closing tag: tested
    )


def group_figures(place: str, group: DescentGroup) -> list[Figure]:
    """Every figure of a group that its files allow, in the order of the page.

    Args:
        place: what the names of the figures begin with.
        group: descents of one name.
    """
    figures = _flights(place, group) if group.records else []
    if group.flown is not None:
        title = "Consistency by band of height"
        consistency = consistency_figure(f"{place}-bands", title, consistency_of(group.flown))
        # After the errors that it sums up.
        figures[2:2] = [] if consistency is None else [consistency]
    return figures


def _flights(place: str, group: DescentGroup) -> list[Figure]:
    tracks = [track_of(record) for record in group.records]
    of_sensor = [nis for record in group.records for nis in nis_of(record)]
    first = group.records[0]
    first_s = {nis.sensor: float(nis.t_s[0]) for nis in nis_of(first)}
    rms = [] if group.flown is None else agl_rms(group.flown)
    judged_m = [] if group.flown is None else judged_heights_m(group.flown)
    down_max_m_s = BLIND_DOWN_MAX_M_S if group.blind else DOWN_MAX_M_S
    gates = {nis.sensor: _gate(first, nis.sensor, nis.degrees) for nis in of_sensor}
    return [
        trajectory(f"{place}-trajectory", tracks),
        errors(f"{place}-errors", tracks, first_s),
        *([innovations(f"{place}-nis", of_sensor, gates)] if of_sensor else []),
        height_error(f"{place}-agl", tracks, rms, judged_m),
        touchdowns(f"{place}-touchdown", tracks, down_max_m_s),
    ]


def _gate(record: DescentRecord, sensor: Sensor, degrees: int) -> float | None:
    return gate_of(sensor, degrees, record.policy)


def _section(place: str, group: DescentGroup) -> Section:
    rows, endings = group_rows(group), endings_of(group)
    lost, landed = missed(rows), sum(ending.outcome == "landed" for ending in endings)
    headline = f"{landed} of {len(endings)} landed"
    judged = sum(row.passed is not None for row in rows)
    headline += f"; {judged - len(lost)} of {judged} limits kept"
    return Section(
        place=place,
        title=f"Descents: {group.title}",
        lead=_lead(group),
        good=not lost and landed == len(endings),
        headline=headline,
        missed=lost,
        figures=group_figures(place, group),
        endings=endings,
        rows=rows,
    )


def _lead(group: DescentGroup) -> str:
    count = len(group.seeds)
    text = f"{count} descent{'' if count == 1 else 's'}, "
    text += f"seed{'' if count == 1 else 's'} {_seeds(group.seeds)}"
    text += ", flown without altimeter" if group.blind else ""
    if not group.records:
        return f"{text}. The folder holds no histories of them: nothing is drawn over time."
    first = group.records[0]
    text += f". Fidelity: {first.fidelity} ({_FIDELITIES[first.fidelity]}). Site "
    text += f"{_degrees(first.latitude_deg, 'NS')}, {_degrees(first.longitude_deg, 'EW')}."
    if len(group.records) > 1:
        text += f" Seed {first.seed} is drawn bold, the others thin."
    if len(group.records) < count:
        text += f" Histories are there of {len(group.records)} of them."
    return text


def _degrees(value: float, sides: str) -> str:
    return f"{abs(value):.3f}°\u00a0{sides[value < 0]}"


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(str(seed) for seed in seeds)


def _number(value: float | None, digits: int) -> str:
    return _DASH if value is None else f"{value:z.{digits}f}".replace("-", "−")
