"""`tnav bench match`: every method at hand on the same pairs of views and images.

One round of matches from the prior, then the pose from them, is what a row scores. The shipped
matcher is scored a second time on a view that is rendered again at the pose it found.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tnav.errors import ConfigError
from tnav.estimate.pnp import solve_pose
from tnav.evaluate.bench_lost_in_space import SLUG as LOST_ROW
from tnav.evaluate.bench_lost_in_space import measure_lost_in_space
from tnav.evaluate.limits import Row
from tnav.evaluate.match_cases import CaseScenes, MatchCase, named_cases
from tnav.evaluate.match_methods import PLAIN, QUICK, TNAV, Method, methods_at_hand
from tnav.evaluate.match_scores import (
    PairScore,
    append_score,
    grid_of,
    match_errors_px,
    pose_grid_error_px,
    read_scores,
)
from tnav.evaluate.match_table import case_rows, first_rows, wrong_rows
from tnav.geometry.pose import Pose
from tnav.images import opencv_threads
from tnav.learn.scenes import Scene
from tnav.match.keypoints import describe_gradients, describe_with
from tnav.match.weights import default_model
from tnav.records import FIX_STATUSES, FixStatus, Frame, Matches
from tnav.render.renderer import render

Say = Callable[[str], None]
AGAIN = f"{TNAV}, view rendered again"
TIME_ROW = "time"
_PAIRS, _QUICK_PAIRS = 200, 6
_QUICK_SECONDS = 280.0  # no pair is begun that would end after this, were it as slow as the last
_GRID_PER_SIDE = 16
_AGAIN_RADIUS_PX = 6.0  # what a pose that is right leaves, with room: no coarse search
_CLOCKED, _QUICK_CLOCKED = 12, 5  # scenes on which methods are timed
_CLOCKED_CASES = ("true-sun", "sun-90")  # under the true Sun the matcher has less to do


def measure_match(
    device: torch.device,
    *,
    quick: bool,
    pairs: int | None,
    methods: Sequence[str] | None,
    say: Say,
    rows: Sequence[str] | None = None,
    out: Path | None = None,
    other_pairs: int | None = None,
) -> list[Row]:
    """Compare matchers on test regions.

    Args:
        device: where scenes are rendered and matched.
        quick: few pairs, few methods, two regions, at most five minutes on two cores.
        pairs: of each row; 200, or 6 for a quick look, when absent.
        methods: by name; all that are at hand when absent.
        say: takes progress and what is left out.
        rows: of the table by slug, ``time`` and ``lost-in-space``; all when absent, without the
            last one for a quick look.
        out: folder of one file a row with all scores. What is there already is not measured again,
            so that a long run may be cut into slices and several may run side by side on different
            rows. The digest in it holds recipe and weights, not the code: after a change of code
            take another folder.
        other_pairs: of each row for all but the shipped matcher, and for its own second round;
            as many as it when absent.

    Raises:
        ConfigError: an unknown method or row, or damaged weights.
        RunFileError: a file of scores that cannot be read.
    """
    began = time.perf_counter()
    timed = rows is None or TIME_ROW in rows
    lost = not quick if rows is None else LOST_ROW in rows
    cases = named_cases(rows, apart=(TIME_ROW, LOST_ROW))
    at_hand = methods_at_hand(QUICK if quick and methods is None else methods, device, say)
    if not at_hand:
        raise ConfigError("no method at hand; expected one of those that need no weights")
    count = (_QUICK_PAIRS if quick else _PAIRS) if pairs is None else pairs
    others = count if other_pairs is None else min(count, other_pairs)
    scenes = CaseScenes(device, quick=quick)
    found: list[Row] = []
    if timed:
        say("clock: one thread")
        found += _time_rows(scenes, quick)
    keeper = _Keeper(out, cases)
    last_s = 0.0
    for index in range(count if cases else 0):
        start_s = time.perf_counter() - began
        if quick and start_s + last_s > _QUICK_SECONDS:
            say(f"{index} of {count} pairs a row: the time of a quick look is over")
            break
        say(f"pair {index + 1} of {count}, {start_s:.0f} s")
        for case in cases:
            _measure_pair(scenes, case, index, at_hand, keeper, alone=index >= others)
        last_s = time.perf_counter() - began - start_s
    scores, where = keeper.of_methods(at_hand), str(device)
    if lost:
        found += _lost_rows(device, count, say, out)
    for case in cases:
        found += case_rows(case, [s for s in scores if s.case == case.slug], where)
    return [*found, *wrong_rows(scores, where), *first_rows(cases, scores, where)]


def score_matches(
    scene: Scene, case: MatchCase, matches: Matches
) -> tuple[str, Pose, float | None, tuple[float, ...]]:
    """Solve for the pose and hold it, and the matches, against the truth.

    Returns:
        Status, pose (to be read only where the status is OK), error on the grid, errors of matches.
        Where the image does not show the view's ground there is nothing to hold against.
    """
    solution = solve_pose(
        matches,
        scene.camera,
        scene.predicted_pose,
        attitude_sigma_rad=case.attitude_sigma_rad,
        map_error=scene.map_error,
        seed=0,
    )
    status = FIX_STATUSES[int(solution.status_code)]
    if not case.answerable:
        return status.value, solution.pose, None, ()
    true_uv_px, _ = scene.true_uv_px(matches.point_L[0])
    errors = match_errors_px(matches.uv_px[0], true_uv_px, matches.valid[0])
    if status is not FixStatus.OK:
        return status.value, solution.pose, None, errors
    point_L = scene.map_view.xyz_L[0][grid_of(scene.map_view.hit[0], _GRID_PER_SIDE)]
    grid_uv_px, _ = scene.true_uv_px(point_L)
    size = grid_uv_px.new_tensor([scene.camera.width_px, scene.camera.height_px])
    inside = ((grid_uv_px >= 0) & (grid_uv_px < size)).all(-1)
    grid_px = pose_grid_error_px(solution.pose, scene.camera, point_L[inside], grid_uv_px[inside])
    return status.value, solution.pose, grid_px, errors


class _Keeper:
    """Scores of this run and of earlier ones, in memory and, where asked for, in files."""

    def __init__(self, out: Path | None, cases: Sequence[MatchCase]) -> None:
        self._out = out
        self._held: dict[tuple[str, int, str, str], PairScore] = {}
        for case in cases if out is not None else ():
            for score in read_scores(self._path(case.slug)):
                self._held[score.case, score.index, score.method, score.key] = score
        self._current: set[tuple[str, int, str, str]] = set()

    def recall(self, case: str, index: int, method: str, key: str) -> bool:
        """Whether it was measured; it then counts for the table."""
        known = (case, index, method, key) in self._held
        if known:
            self._current.add((case, index, method, key))
        return known

    def add(self, score: PairScore) -> None:
        """Keep a new score."""
        name = (score.case, score.index, score.method, score.key)
        self._held[name] = score
        self._current.add(name)
        if self._out is not None:
            append_score(self._path(score.case), score)

    def of_methods(self, methods: Sequence[Method]) -> list[PairScore]:
        """What counts for the table, in the order of the methods."""
        names = [name for method in methods for name in _scored_as(method)]
        chosen = [self._held[name] for name in self._current]
        return sorted(chosen, key=lambda s: (names.index(s.method), s.case, s.index))

    def _path(self, slug: str) -> Path:
        assert self._out is not None
        return self._out / f"{slug}.jsonl"


def _scored_as(method: Method) -> tuple[str, ...]:
    return (method.name, AGAIN) if method.name == TNAV else (method.name,)


def _measure_pair(
    scenes: CaseScenes,
    case: MatchCase,
    index: int,
    methods: Sequence[Method],
    keeper: _Keeper,
    *,
    alone: bool,
) -> None:
    """All methods on one pair, or the shipped one alone, save what was measured before."""
    digest = case.digest(index, scenes.regions)
    keys = {method.name: f"{digest}/{method.identity}" for method in methods}
    due: dict[str, Method] = {}
    for method in methods:
        for name in _names(method, case, alone=alone):
            if not keeper.recall(case.slug, index, name, keys[method.name]):
                due[name] = method
    if not due:
        return
    scene = scenes.scene(case, index)
    blank = PairScore(case.slug, index, "", "", scenes.kind(scene), "", None, (), 0.0)
    for method in dict.fromkeys(due.values()):
        began = time.perf_counter()
        matches = method.match(scene.map_view, scene.image, case.search_radius_px)
        seconds = round(time.perf_counter() - began, 4)
        status, pose, grid_px, errors = score_matches(scene, case, matches)
        score = replace(
            blank, method=method.name, key=keys[method.name], status=status, grid_px=grid_px,
            error_px=errors, seconds=seconds,
        )  # fmt: skip
        keeper.add(score)
        if AGAIN in due and method.name == TNAV:
            keeper.add(_again(scene, case, method, score, pose))


def _names(method: Method, case: MatchCase, *, alone: bool) -> tuple[str, ...]:
    """What a method is scored as on a pair of a row."""
    if alone:
        return (TNAV,) if method.name == TNAV else ()
    return _scored_as(method) if case.answerable else (method.name,)


def _again(
    scene: Scene, case: MatchCase, method: Method, first: PairScore, pose: Pose
) -> PairScore:
    """The same, on the map as it looks from the pose that was found, if one was."""
    if not first.answered:
        return replace(first, method=AGAIN, error_px=())
    began = time.perf_counter()
    view = render(scene.terrain_map, scene.camera, pose, scene.view_sun_L, first_level=scene.level)
    matches = method.match(view, scene.image, _AGAIN_RADIUS_PX)
    seconds = round(time.perf_counter() - began, 4)
    nearer = replace(scene, map_view=view)
    status, _, grid_px, errors = score_matches(nearer, case, matches)
    return replace(
        first, method=AGAIN, status=status, grid_px=grid_px, error_px=errors, seconds=seconds
    )


def _lost_rows(device: torch.device, pairs: int, say: Say, out: Path | None) -> list[Row]:
    """Without a prior position: by the shipped network, or by gradients where there is none."""
    model = default_model(device)
    describe = describe_gradients if model is None else describe_with(model.network)
    identity = "gradients" if model is None else model.contract.sha256
    return measure_lost_in_space(describe, device, pairs, say, out=out, identity=identity)


def _time_rows(scenes: CaseScenes, quick: bool) -> list[Row]:
    """Ours against SIFT on one thread of the CPU, turn by turn over the same scenes, medians."""
    count = _QUICK_CLOCKED if quick else _CLOCKED
    methods = methods_at_hand((TNAV, PLAIN, "sift"), torch.device("cpu"), lambda _: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with opencv_threads(1):
            return [
                row
                for case in named_cases(_CLOCKED_CASES)
                for row in _clocked(scenes, case, methods, count)
            ]
    finally:
        torch.set_num_threads(threads)


def _clocked(
    scenes: CaseScenes, case: MatchCase, methods: Sequence[Method], count: int
) -> list[Row]:
    seconds: dict[str, list[float]] = {method.name: [] for method in methods}
    for turn in range(count + 1):
        view, image = _on_cpu(scenes.scene(case, max(0, turn - 1)))
        for method in methods:
            began = time.process_time()
            method.match(view, image, case.search_radius_px)
            if turn > 0:  # the first one allocates
                seconds[method.name].append(time.process_time() - began)
    what = f"CPU time of a pair, one thread, {case.name}"
    rows = [
        Row(f"{what}: {name}", round(statistics.median(each), 3), "s", None, None, count, "cpu")
        for name, each in seconds.items()
    ]
    ratios = [a / b for a, b in zip(seconds[TNAV], seconds["sift"], strict=True)]
    ratio, name = round(statistics.median(ratios), 3), f"{what}: {TNAV} over sift"
    if default_model(torch.device("cpu")) is None:  # the shipped matcher is not what was timed
        return [*rows, Row(name, ratio, "", None, None, count, "cpu")]
    return [*rows, Row(name, ratio, "", "<= 1", ratio <= 1, count, "cpu")]


def _on_cpu(scene: Scene) -> tuple[Frame, Tensor]:
    """A scene's view and image there."""
    names = ("image", "range_m", "xyz_L", "hit", "lit")
    moved = {name: getattr(scene.map_view, name).cpu() for name in names}
    return replace(scene.map_view, **moved), scene.image.cpu()
