"""Whether a replayed event went as it must: verdicts, silence of the twin, a slow touchdown."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tnav.evaluate.events import Event
from tnav.evaluate.events_fly import Ending, EventResult, Flown, Heard
from tnav.records import FaultKind


@dataclass(frozen=True, slots=True)
class Judged:
    """One event; numbers are of descents."""

    descents: int
    right: int  # verdict expected, not raised before the fault, ended where it must
    twin_alarms: int
    saved: int  # reached the ground slowly enough with tnav
    passed: bool


def judge(result: EventResult) -> Judged:
    """An event against what its recipe expects."""
    event, flown = result.event, result.with_tnav
    descents = len(flown.endings)
    right = sum(is_right(event, heard) for heard in flown.heard)
    alarms = sum(heard.alert_s is not None for heard in result.twin.heard)
    saved = sum(ending.saved for ending in flown.endings)
    passed = right == descents and alarms == 0 and (saved == descents or not event.saved)
    return Judged(descents, right, alarms, saved, passed)


def is_right(event: Event, heard: Heard) -> bool:
    """Whether what was said of one descent is what must be said of the event.

    An alert before the fault is a false one, whatever it is called later.
    """
    if heard.delay_s is not None and heard.delay_s < 0:
        return False
    if event.clears and heard.last is not FaultKind.HEALTHY:
        return False
    return heard.verdict(event.besides) in event.expected


def cells(result: EventResult) -> dict[str, str]:
    """One row of the table, by column."""
    judged, heard = judge(result), result.with_tnav.heard
    delays_s = sorted(h.delay_s for h in heard if h.delay_s is not None)
    margins_m = [h.margin_m for h in heard if h.margin_m is not None]
    margins_s = [h.margin_s for h in heard if h.margin_s is not None]
    least = f"{min(margins_m):.0f} m" if margins_m else ""
    if margins_s:
        least += f", {min(margins_s):.1f} s"
    return {
        "event": result.event.name,
        "expected": " or ".join(result.event.expected),
        "verdicts": _counted([_words(h) for h in heard]),
        "alert after": f"{_median(delays_s):.1f} s" if delays_s else "",
        "least margin": least,
        "as flown": _ended(result.as_flown),
        "with tnav": _ended(result.with_tnav),
        "twin": "same" if result.twin is result.with_tnav else _twin(result.twin, judged),
        "passed": "yes" if judged.passed else "NO",
    }


def as_dict(result: EventResult) -> dict[str, Any]:
    """All of it, for JSON."""
    event, judged = result.event, judge(result)
    return {
        "name": event.name,
        "title": event.title,
        "date": event.date.isoformat(),
        "what": event.what,
        "parameters": [p.model_dump(mode="json") for p in event.parameters],
        "fidelity": "model",
        "seed": result.seed,
        "device": result.device,
        "expected": [kind.value for kind in event.expected],
        "besides": [kind.value for kind in event.besides],
        "must_be_saved": event.saved,
        "descents": judged.descents,
        "verdicts_right": judged.right,
        "twin_alarms": judged.twin_alarms,
        "saved": judged.saved,
        "passed": judged.passed,
        "as_flown": None if result.as_flown is None else _flown(result.as_flown),
        "with_tnav": _flown(result.with_tnav),
        "twin": _flown(result.twin),
    }


def _flown(flown: Flown) -> list[dict[str, Any]]:
    rows = [_ending(ending) for ending in flown.endings]
    for row, heard in zip(rows, flown.heard, strict=False):
        row["monitor"] = _heard(heard)
    return rows


def _ending(ending: Ending) -> dict[str, Any]:
    return {
        "how": ending.how.value,
        "speed_m_s": _rounded(ending.speed_m_s),
        "down_m_s": _rounded(ending.down_m_s),
        "miss_m": _rounded(ending.miss_m),
        "propellant_kg": _rounded(ending.propellant_kg),
    }


def _heard(heard: Heard) -> dict[str, Any]:
    numbers = {
        name: _rounded(getattr(heard, name))
        for name in (
            "begun_s", "onset_s", "alert_s", "named_s", "delay_s", "agl_m", "descent_rate_m_s",
            "margin_m", "margin_s",
        )
    }  # fmt: skip
    kinds = [kind.value for kind in heard.kinds]
    return {"kind": heard.kind.value, "kinds": kinds, "last": heard.last.value, **numbers}


def _words(heard: Heard) -> str:
    """All that was named of one descent."""
    return ", then ".join(kind.value for kind in heard.kinds) or heard.kind.value


def _ended(flown: Flown | None) -> str:
    if flown is None:
        return ""
    counted = _counted([ending.how.value for ending in flown.endings])
    speeds = [ending.speed_m_s for ending in flown.endings if ending.speed_m_s is not None]
    return f"{counted}; to {max(speeds):.1f} m/s" if speeds else counted


def _twin(twin: Flown, judged: Judged) -> str:
    alarms = f"{judged.twin_alarms} ALARMS" if judged.twin_alarms else "no alarm"
    return f"{_ended(twin)}; {alarms}"


def _counted(words: Sequence[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in Counter(words).most_common())


def _median(ordered: Sequence[float]) -> float:
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
