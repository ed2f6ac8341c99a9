"""Trials of fixes: the record, its file, and their errors and covariances as tensors."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float64
from pydantic import Field, ValidationError
from scipy.stats import chi2
from torch import Tensor

from tnav.config import Recipe
from tnav.errors import RunFileError
from tnav.files import whole_lines
from tnav.records import FixStatus, MapErrorModel

FILE = "trials.jsonl"
SAME_RATIO = math.sqrt(2)  # postings double from level to level
# A fix that is called good and has a larger normalised squared error is an outlier.
OUTLIER_NEES = float(chi2.ppf(0.9999, 6))
POSITION, ATTITUDE = slice(0, 3), slice(3, 6)  # of (dp_L, dtheta_L)

Half = Literal["fit", "held out"]
Vector6 = tuple[float, float, float, float, float, float]
Matrix6 = tuple[Vector6, Vector6, Vector6, Vector6, Vector6, Vector6]


class FixTrial(Recipe):
    """One image, one fix, and its truth: a line of the trials' file."""

    setup: str  # hash of all that trials depend on
    number: int = Field(ge=0)
    half: Half
    knot_m: float = Field(gt=0)  # height that was planned
    agl_m: float = Field(gt=0)  # height that it was, above the true ground
    tilt_deg: float = Field(ge=0)
    sun_elevation_deg: float
    coarser: float = Field(gt=0)  # map posts over ground sample distance, at least
    gsd_ratio: float = Field(gt=0)  # the same as it was: posts double from level to level
    map_seed: int
    map_shift_m: tuple[float, float]  # east and north, of the map against the ground
    map_shift_sigma_m: float = Field(ge=0)  # as its maker states it, per axis
    status: FixStatus
    n_matches: int = Field(ge=0)
    n_inliers: int = Field(ge=0)
    error: Vector6 | None = None  # (dp_L, dtheta_L), estimate minus truth, m and rad
    covariance: Matrix6 | None = None  # stated, of the same
    map_covariance: Matrix6 | None = None  # its share that the map's error brings
    # Height over ground as the image has it: its error, stated sigma, and how far it lies from the
    # height over the map at the fix.
    agl_error_m: float | None = None
    agl_sigma_m: float | None = None
    map_news_m: float | None = None


def read_trials(path: Path) -> list[FixTrial]:
    """Trials that an earlier run left, none where there is no file.

    A last line without its end is what an interrupted run leaves: it is taken off the file.

    Raises:
        RunFileError: a line that is no trial.
    """
    return [_parsed(path, k, line) for k, line in enumerate(whole_lines(path), start=1)]


def append_trial(path: Path, trial: FixTrial) -> None:
    """Add a trial to a file, one line of strict JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(trial.model_dump(mode="json"), allow_nan=False) + "\n")


def _parsed(path: Path, number: int, line: str) -> FixTrial:
    try:
        return FixTrial.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "line"
        raise RunFileError(
            f"{path}:{number}: {field}: {first['msg']}; expected a trial of this version; take "
            "another folder, or delete the file"
        ) from error


def usual_of(trials: Sequence[FixTrial]) -> list[FixTrial]:
    """Those that look at the finest posting among the trials of their height."""
    least: dict[float, float] = {}
    for trial in trials:
        least[trial.knot_m] = min(least.get(trial.knot_m, math.inf), trial.gsd_ratio)
    return [trial for trial in trials if trial.gsd_ratio < SAME_RATIO * least[trial.knot_m]]


def solved_of(trials: Sequence[FixTrial]) -> list[FixTrial]:
    """Those with a fix."""
    return [trial for trial in trials if trial.error is not None]


def errors_of(trials: Sequence[FixTrial]) -> Float64[Tensor, "n 6"]:
    """(dp_L, dtheta_L) on the map, estimate minus truth less the map's shift, m and rad."""
    errors = torch.tensor([t.error for t in trials], dtype=torch.float64).reshape(-1, 6)
    shifts = torch.tensor([t.map_shift_m for t in trials], dtype=torch.float64).reshape(-1, 2)
    return errors - torch.nn.functional.pad(shifts, (0, 4))


def stated_of(trials: Sequence[FixTrial]) -> Float64[Tensor, "n 6 6"]:
    """Covariances of the same, as the fixes state them."""
    return torch.tensor([trial.covariance for trial in trials], dtype=torch.float64).reshape(
        -1, 6, 6
    )


def map_share_of(trials: Sequence[FixTrial]) -> Float64[Tensor, "n 6 6"]:
    """The map's share of them."""
    return torch.tensor([trial.map_covariance for trial in trials], dtype=torch.float64).reshape(
        -1, 6, 6
    )


def own_of(trials: Sequence[FixTrial]) -> Float64[Tensor, "n 6 6"]:
    """The rest of them, without the map's share."""
    return stated_of(trials) - map_share_of(trials)


def nees_of(trial: FixTrial) -> float:
    """Squared error of a fix on the Moon, normalised by what it states: 6 degrees of freedom."""
    error = torch.tensor(trial.error, dtype=torch.float64)
    shift = MapErrorModel(0.0, 1.0, trial.map_shift_sigma_m)
    covariance = shift.absolute(stated_of([trial])[0])
    return float(error @ torch.linalg.solve(covariance, error))


def good_of(trials: Sequence[FixTrial]) -> list[FixTrial]:
    """Those with a fix that is no outlier."""
    return [trial for trial in solved_of(trials) if nees_of(trial) <= OUTLIER_NEES]
