"""Rows of `tnav bench match` from scores."""

import math
from collections.abc import Sequence

from tnav.evaluate.limits import Row
from tnav.evaluate.match_cases import Limits, MatchCase
from tnav.evaluate.match_methods import TNAV
from tnav.evaluate.match_scores import SOLVED_PX, PairScore, binomial_interval, pooled, rank

_GROUPED = "true-sun"  # the row that is told by kind of ground, too


def case_rows(case: MatchCase, scores: Sequence[PairScore], device: str) -> list[Row]:
    """Each method's shares and errors on a row, the shipped one's against limits."""
    if not case.answerable:
        return [_refused(case, method, chosen, device) for method, chosen in _by_method(scores)]
    rows = []
    for method, chosen in _by_method(scores):
        limits = case.limits if method == TNAV else Limits()
        rows += _figures(f"{case.name}: {method}", chosen, limits, device)
        groups = sorted({s.group for s in chosen}) if case.slug == _GROUPED else []
        for group in groups:
            of_group = [s for s in chosen if s.group == group]
            rows += _figures(f"{case.name}, {group}: {method}", of_group, limits, device)
    return rows


def wrong_rows(scores: Sequence[PairScore], device: str) -> list[Row]:
    """Wrong poses called good, over all rows: none may be of the shipped matcher."""
    rows = []
    for method, chosen in _by_method(scores):
        wrong = sum(s.wrong for s in chosen)
        limited = method.startswith(f"{TNAV},") or method == TNAV  # its second round too
        rows.append(
            Row(
                f"wrong poses called good: {method}",
                wrong,
                f"poses ({_interval(wrong, len(chosen))} %)",
                "= 0" if limited else None,
                wrong == 0 if limited else None,
                len(chosen),
                device,
            )
        )
    return rows


def first_rows(cases: Sequence[MatchCase], scores: Sequence[PairScore], device: str) -> list[Row]:
    """Which method leads each row: by solved pairs, then matches within 3 px, then median error.

    Where another one leads, or is ahead of the shipped matcher in any of the three, it is named.
    They are compared on the pairs that all of them saw.
    """
    rows = []
    for case in cases:
        shared = _shared([s for s in scores if s.case == case.slug]) if case.answerable else {}
        if len(shared) < 2:
            continue
        ranks = {method: rank(chosen) for method, chosen in shared.items()}
        leader = max(ranks, key=lambda name: (ranks[name], name == TNAV))
        n = len(shared[leader])
        said = f"{leader}{_ahead(ranks)}"
        rows.append(Row(f"first: {case.name}", said, "", None, None, n, device))
    return rows


def _shared(scores: Sequence[PairScore]) -> dict[str, list[PairScore]]:
    """Scores by method, of the pairs that all have; a second round is another contest."""
    by_method = {
        m: chosen for m, chosen in _by_method(scores) if m == TNAV or not m.startswith(f"{TNAV},")
    }
    seen = [{s.index for s in chosen} for chosen in by_method.values()]
    common = set.intersection(*seen) if seen else set()
    if not common:
        return {}
    return {m: [s for s in chosen if s.index in common] for m, chosen in by_method.items()}


def _ahead(ranks: dict[str, tuple[float, float, float]]) -> str:
    """Where others are ahead of the shipped matcher, in words."""
    if TNAV not in ranks:
        return ""
    parts = []
    for k, what in enumerate(("solved", "within 3 px", "median error")):
        best = max(ranks, key=lambda name: (ranks[name][k], name == TNAV))
        if best != TNAV:
            shown = [_shown(k, ranks[name][k]) for name in (best, TNAV)]
            parts.append(f"{what}: {best} {shown[0]}, {TNAV} {shown[1]}")
    return f" ({'; '.join(parts)})" if parts else ""


def _shown(k: int, value: float) -> str:
    if k == 2:
        return f"{-value:.3f} px" if math.isfinite(value) else "no match"
    return f"{100 * value:.1f} %" if k == 0 else f"{max(value, 0.0):.2f} %"


def _by_method(scores: Sequence[PairScore]) -> list[tuple[str, list[PairScore]]]:
    names = dict.fromkeys(s.method for s in scores)
    return [(name, [s for s in scores if s.method == name]) for name in names]


def _figures(name: str, scores: Sequence[PairScore], limits: Limits, device: str) -> list[Row]:
    n, solved = len(scores), sum(s.solved for s in scores)
    matches, within, median = pooled(scores)
    share = 100 * solved / n
    return [
        Row(
            f"{name}: solved",
            round(share, 2),
            f"% ({_interval(solved, n)})",
            _limit(">=", limits.solved_percent),
            None if limits.solved_percent is None else share >= limits.solved_percent,
            n,
            device,
        ),
        Row(
            f"{name}: matches within {SOLVED_PX:g} px",
            None if within is None else round(within, 2),
            "%",
            _limit(">=", limits.within_percent),
            None
            if limits.within_percent is None
            else within is not None and within >= limits.within_percent,
            matches,
            device,
        ),
        Row(
            f"{name}: median error",
            None if median is None else round(median, 3),
            "px",
            _limit("<", limits.median_px),
            None
            if limits.median_px is None
            else median is not None and median < limits.median_px,
            matches,
            device,
        ),
    ]  # fmt: skip


def _refused(case: MatchCase, method: str, scores: Sequence[PairScore], device: str) -> Row:
    """There is nothing to find: every pair must end in a status that says so."""
    n, refused = len(scores), sum(not s.answered for s in scores)
    limited = method == TNAV
    return Row(
        f"{case.name}: {method}: refused",
        round(100 * refused / n, 2),
        f"% ({_interval(refused, n)})",
        "= 100" if limited else None,
        refused == n if limited else None,
        n,
        device,
    )


def _interval(successes: int, n: int) -> str:
    """Exact binomial 95 % interval, percent. Of pairs only: matches of one image err together."""
    low, high = binomial_interval(successes, n)
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _limit(sign: str, value: float | None) -> str | None:
    return None if value is None else f"{sign} {value:g}"
