"""Figures with their limits, as rows that a table and a script can read."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from tnav.evaluate.metrics import AGL_LIMIT_PERCENT, HORIZONTAL_LIMIT_M, HORIZONTAL_LIMIT_PX
from tnav.evaluate.runlog import RunDocument, StateSeries
from tnav.records import FaultKind

_SETTLED_S = 20.0
# One descent is one draw, as the map's error stays: sqrt of chi-square(3 dof, 99.9 %) / 3.
_RATIO_LIMIT = 2.33


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. ``passed`` is None where there is no limit."""

    name: str
    value: float | int | str | None
    unit: str
    limit: str | None
    passed: bool | None
    n: int
    device: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def rows_of(document: RunDocument) -> list[Row]:
    """The figures of one run against what it must reach."""
    s, device = document.summary, document.setup.device
    n = s.fixes_scored
    rows = [
        Row(
            "fixes within limits",
            s.fixes_within_limits,
            "fixes",
            f"= {n}",
            s.fixes_within_limits == n and n > 0,
            n,
            device,
        ),
        Row(
            "agl error, largest",
            _rounded(s.agl_error_percent_max),
            "%",
            f"< {AGL_LIMIT_PERCENT}",
            s.agl_error_percent_max is not None and s.agl_error_percent_max < AGL_LIMIT_PERCENT,
            n - s.fixes_failed,
            device,
        ),
        Row("agl error, rms", _rounded(s.agl_error_percent_rms), "%", None, None, n, device),
        Row(
            f"horizontal margin to {HORIZONTAL_LIMIT_PX:g} px + {HORIZONTAL_LIMIT_M:g} m, least",
            _rounded(s.horizontal_margin_m_min),
            "m",
            "> 0",
            s.horizontal_margin_m_min is not None and s.horizontal_margin_m_min > 0,
            n - s.fixes_failed,
            device,
        ),
        Row(
            "horizontal error, rms", _rounded(s.horizontal_error_m_rms), "m", None, None, n, device
        ),
        Row(
            "verdict",
            s.verdict,
            "",
            f"= {s.expected_verdict}",
            s.verdict == s.expected_verdict,
            1,
            device,
        ),
        Row("false alarms", s.false_alarms, "alerts", "= 0", s.false_alarms == 0, 1, device),
    ]
    ratio = _error_over_sigma(document.states)
    rows.append(
        Row(
            f"navigation error over sigma, rms after {_SETTLED_S:.0f} s",
            _rounded(ratio),
            "",
            f"< {_RATIO_LIMIT}",
            ratio is not None and ratio < _RATIO_LIMIT,
            1,
            device,
        )
    )
    if s.expected_verdict != FaultKind.HEALTHY.value:
        before = s.seconds_before_no_return
        rows.append(
            Row(
                "alert before the point of no return",
                _rounded(before),
                "s",
                "> 0",
                before is not None and before > 0,
                1,
                device,
            )
        )
    return rows


def _error_over_sigma(states: StateSeries) -> float | None:
    """Root mean square of position error over its sigma, over axes and time."""
    squares = [
        (error / sigma) ** 2
        for errors, sigmas in (
            (states.error_east_m, states.sigma_east_m),
            (states.error_north_m, states.sigma_north_m),
            (states.error_up_m, states.sigma_up_m),
        )
        for t_s, error, sigma in zip(states.t_s, errors, sigmas, strict=True)
        if t_s > _SETTLED_S
    ]
    return math.sqrt(sum(squares) / len(squares)) if squares else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
