"""Figures with their limits, as rows that a table and a script can read."""

from dataclasses import asdict, dataclass
from typing import Any

from tnav.evaluate.metrics import AGL_LIMIT_PERCENT, HORIZONTAL_LIMIT_M, HORIZONTAL_LIMIT_PX
from tnav.evaluate.runlog import RunDocument
from tnav.records import FaultKind


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


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
