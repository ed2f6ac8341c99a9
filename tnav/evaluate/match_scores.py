"""What one matched pair is worth, and what many are: scores, kept line by line, and shares.

Solved means: the solver's status is OK, and the root mean square over a grid of the view's ground
between where it truly lies in the image and where the solved pose projects it is under 3 px.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from tnav.errors import RunFileError
from tnav.files import whole_lines
from tnav.geometry.camera import Camera
from tnav.geometry.pose import Pose
from tnav.records import FixStatus

SOLVED_PX = 3.0  # pose grid error under which a pose is right, and match error likewise
_WORST_PX = 9999.0  # errors are kept up to here: more says no more, and infinity is no JSON


@dataclass(frozen=True, slots=True)
class PairScore:
    """One method on one pair of images."""

    case: str
    index: int  # of the pair
    method: str
    key: str  # of recipe and method; another key is another measurement
    group: str  # kind of ground
    status: str
    grid_px: float | None  # None: no pose, or an image that does not show the view's ground
    error_px: tuple[float, ...]  # of the valid matches, ascending
    seconds: float  # of the matcher, wall clock

    @property
    def answered(self) -> bool:
        """A pose was called good."""
        return self.status == FixStatus.OK.value

    @property
    def solved(self) -> bool:
        """A pose was called good, and it is."""
        return self.answered and self.grid_px is not None and self.grid_px < SOLVED_PX

    @property
    def wrong(self) -> bool:
        """A pose was called good, and it is not."""
        return self.answered and not self.solved


def pose_grid_error_px(
    pose: Pose,
    camera: Camera,
    point_L: Float64[Tensor, "n 3"],
    true_uv_px: Float64[Tensor, "n 2"],
) -> float:
    """Root mean square distance between true places and projections by one pose, px.

    Args:
        pose: the solved one, a batch of one.
        camera: of the image.
        point_L: points of the map.
        true_uv_px: where their ground truly lies in the image.

    Returns:
        The error, ``_WORST_PX`` at most; that, too, where a point is behind the camera.
    """
    point_C = (point_L - pose.position_L) @ pose.R_L_C[0]
    if len(point_L) == 0 or not bool(camera.sees(point_C).all()):
        return _WORST_PX
    squares = (camera.project(point_C) - true_uv_px).square().sum(-1)
    return _bounded(math.sqrt(float(squares.mean())))


def match_errors_px(
    uv_px: Float64[Tensor, "n 2"], true_uv_px: Float64[Tensor, "n 2"], valid: Bool[Tensor, " n"]
) -> tuple[float, ...]:
    """Distances of valid matches from the truth, ascending, to a thousandth of a pixel."""
    error = (uv_px - true_uv_px).norm(dim=-1)[valid].nan_to_num(nan=_WORST_PX)
    return tuple(round(_bounded(e), 3) for e in error.sort().values.tolist())


def grid_of(hit: Bool[Tensor, "h w"], per_side: int) -> Bool[Tensor, "h w"]:
    """Mask of a regular grid of the pixels that hit the ground."""
    mask = torch.zeros_like(hit)
    rows, columns = (
        ((torch.arange(per_side) + 0.5) * side / per_side).long() for side in hit.shape
    )
    mask[rows.to(hit.device)[:, None], columns.to(hit.device)] = True
    return mask & hit


def binomial_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a share (Clopper and Pearson 1934, Biometrika 26, p. 404).

    Returns:
        Lower and upper bound of the share, in [0, 1].
    """
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = beta.ppf(tail, successes, trials - successes + 1) if successes > 0 else 0.0
    high = beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)


def pooled(scores: Iterable[PairScore]) -> tuple[int, float | None, float | None]:
    """All valid matches of many pairs together: their number, percent within 3 px, and median."""
    errors = sorted(e for score in scores for e in score.error_px)
    if not errors:
        return 0, None, None
    n = len(errors)
    within = 100 * sum(e < SOLVED_PX for e in errors) / n
    return n, within, (errors[(n - 1) // 2] + errors[n // 2]) / 2


def read_scores(path: Path) -> list[PairScore]:
    """Scores that an earlier run left, none where there is no file.

    A last line without its end is what an interrupted run leaves: it is taken off the file.

    Raises:
        RunFileError: a line that is no score.
    """
    return [_parsed(path, k, line) for k, line in enumerate(whole_lines(path), start=1)]


def append_score(path: Path, score: PairScore) -> None:
    """Add a score to a file, one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(score), allow_nan=False) + "\n")


def _parsed(path: Path, number: int, line: str) -> PairScore:
    try:
        data = json.loads(line)
        return PairScore(**{**data, "error_px": tuple(data["error_px"])})
    except (ValueError, TypeError, KeyError) as error:
        raise RunFileError(
            f"{path}:{number}: not a score of this version ({error}); take another folder, or "
            "delete the file"
        ) from error


def _bounded(value: float) -> float:
    return min(value, _WORST_PX) if math.isfinite(value) else _WORST_PX


def rank(scores: Sequence[PairScore]) -> tuple[float, float, float]:
    """Sort key of a method on a row, the higher the better: solved, within 3 px, median error."""
    _, within, median = pooled(scores)
    solved = sum(score.solved for score in scores) / len(scores)
    return solved, -1.0 if within is None else within, -math.inf if median is None else -median
