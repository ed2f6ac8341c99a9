"""Rows of a folder of closed-loop descents, with the limits that they must keep.

They are those that ``tnav bench filter`` prints of descents in `image` fidelity.
"""

import numpy as np

from tnav.evaluate.descent_figures import beyond_3_sigma, outcome_of, track_of
from tnav.evaluate.descent_folder import DescentGroup
from tnav.evaluate.descent_record import DescentRecord
from tnav.evaluate.flight_score import (
    ACROSS_MAX_M_S,
    DOWN_MAX_M_S,
    Arrays,
    coverage_rows,
    height_rows,
    overall_rows,
    rows_of_means,
    touchdown_rows,
)
from tnav.evaluate.limits import Row

AGL_PERCENT_MAX = 0.3  # rms error of the height over the ground, as a share of it
BLIND_DOWN_MAX_M_S = 3.0  # vertical speed at contact without altimeter


def score_descents(groups: list[DescentGroup]) -> list[Row]:
    """Rows of every group."""
    return [row for group in groups for row in group_rows(group)]


def group_rows(group: DescentGroup) -> list[Row]:
    """The table of the filter, or of each descent where there are only histories."""
    if group.flown is None:
        return [row for record in group.records for row in record_rows(record, group.blind)]
    return flown_rows(group.flown, group.title, blind=group.blind)


def flown_rows(flown: Arrays, title: str, *, blind: bool, device: str = "") -> list[Row]:
    """What a batch of image descents must reach.

    Args:
        flown: joined arrays.
        title: what the names of the rows begin with.
        blind: flown without altimeter.
        device: that it was flown on, if known.
    """
    heights = height_rows(flown, title, AGL_PERCENT_MAX, device)
    if blind:
        ends = touchdown_rows(flown, title, device, blind=True, down_max_m_s=BLIND_DOWN_MAX_M_S)
        return [*heights, *ends]
    return [
        *rows_of_means(flown, title, device),
        *overall_rows(flown, title, device),
        *coverage_rows(flown, title, device),
        *touchdown_rows(flown, title, device),
        *heights,
    ]


def judged_heights_m(flown: Arrays) -> list[float]:
    """Heights at which the error of the height over the ground has a limit, from above."""
    rows = height_rows(flown, "", AGL_PERCENT_MAX, "")
    told = [row.name.rsplit(" at ", 1)[1] for row in rows if row.passed is not None]
    return [float(text.split(" m", 1)[0]) for text in told]


def record_rows(record: DescentRecord, blind: bool) -> list[Row]:
    """One descent's touchdown against its limits, and how far errors went beyond their sigma."""
    title, end = f"{record.name}-{record.seed}", record.touchdown
    outcome = outcome_of(record)
    rows = [Row(f"{title}: outcome", outcome, "", "= landed", outcome == "landed", 1, "")]
    if end is not None:
        down_max = BLIND_DOWN_MAX_M_S if blind else DOWN_MAX_M_S
        told = (
            ("vertical speed at contact", end.speed_down_m_s, "m/s", down_max),
            ("horizontal speed at contact", end.speed_horizontal_m_s, "m/s", ACROSS_MAX_M_S),
            ("miss", end.miss_m, "m", None),
            ("height over ground, error at contact", abs(end.agl_error_m), "m", None),
            ("horizontal error at contact", end.horizontal_error_m, "m", None),
            ("velocity error at contact", end.velocity_error_m_s, "m/s", None),
            ("propellant left", end.propellant_kg, "kg", None),
        )
        for name, value, unit, most in told:
            limit = None if most is None else f"< {most:g}"
            passed = None if most is None else value < most
            rows.append(Row(f"{title}: {name}", round(value, 3), unit, limit, passed, 1, ""))
    track = track_of(record)
    for name, share in zip(
        ("position", "velocity", "attitude"), _by_quantity(beyond_3_sigma([track])), strict=True
    ):
        name = f"{title}: {name} beyond 3 sigma, of all moments and axes"
        rows.append(Row(name, round(share, 2), "%", "honest: 0.27", None, track.t_s.size, ""))
    return rows


def missed(rows: list[Row]) -> list[Row]:
    """Rows whose limit is missed."""
    return [row for row in rows if row.passed is False]


def _by_quantity(shares: tuple[float, ...]) -> tuple[float, float, float]:
    """Means over the axes of position, velocity and attitude."""
    means = np.array(shares).reshape(3, 3).mean(-1)
    return float(means[0]), float(means[1]), float(means[2])
