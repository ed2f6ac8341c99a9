"""``run.json``: everything that a report or a score needs of one run, under a schema.

Strict JSON: a missing value is ``null``, never NaN. ``run.npz`` beside it holds the same run at
full rate. Errors are estimate minus truth.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tnav.errors import RunFileError
from tnav.files import written_aside

SCHEMA: Literal["tnav-run/1"] = "tnav-run/1"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SunRecord(_Record):
    """Where the Sun stands at the site."""

    azimuth_deg: float
    elevation_deg: float


class CameraRecord(_Record):
    """Camera, in pixels; no distortion is a pinhole."""

    width_px: int
    height_px: int
    focal_px: float
    cx_px: float
    cy_px: float
    distortion: dict[str, float | str] | None = None


class SetupRecord(_Record):
    """What was flown, over what, with what."""

    scenario: str
    seed: int
    fidelity: Literal["image"]
    epoch_utc: str
    latitude_deg: float
    longitude_deg: float
    dem: str
    relief: str  # the label that says what of the terrain is synthetic
    map_note: str  # how the map differs from the truth
    injected_fault: str  # truth: what was done to the altimeter
    altimeter_range_max_m: float
    sun: SunRecord
    camera: CameraRecord
    device: str
    version: str


class MatchRecord(_Record):
    """One correspondence, for drawing."""

    u_map_px: float
    v_map_px: float
    u_px: float
    v_px: float
    inlier: bool


class FrameRecord(_Record):
    """One image and its fix. Estimates are null where the fix failed."""

    index: int
    t_s: float
    image: str  # file below the run folder: what the camera saw
    map_view: str  # the view rendered from the map at the solution (or the prediction)
    ground_sample_distance_m: float
    true_agl_m: float
    status: str
    renders: int  # map views that were rendered and matched
    learned: bool  # matched by a network's features, not by gradients
    out_of_contract: list[str]  # what of the image the network was not trained for
    n_matches: int
    n_inliers: int
    rms_px: float | None
    altitude_m: float | None
    altitude_sigma_m: float | None
    altitude_error_m: float | None
    agl_m: float | None
    agl_sigma_m: float | None
    agl_error_m: float | None
    range_m: float | None
    range_sigma_m: float | None
    range_error_m: float | None
    horizontal_error_m: float | None
    horizontal_sigma_m: float | None  # sqrt of the larger eigenvalue
    nees: float | None  # of the 6-DoF fix, 6 degrees of freedom
    seconds: float  # wall clock of rendering the map, matching and solving
    matches: list[MatchRecord]


class StateSeries(_Record):
    """Truth and navigation over time; lists of one length."""

    t_s: list[float]
    true_altitude_m: list[float]
    altitude_m: list[float]
    altitude_sigma_m: list[float]
    true_agl_m: list[float]
    agl_m: list[float]  # navigation's altitude over the map
    agl_sigma_m: list[float]
    speed_m_s: list[float]  # true, downwards
    error_east_m: list[float]
    error_north_m: list[float]
    error_up_m: list[float]
    sigma_east_m: list[float]
    sigma_north_m: list[float]
    sigma_up_m: list[float]
    stopping_height_m: list[float]  # v^2 / (2 a_net)


class AltimeterSeries(_Record):
    """Every epoch of the altimeter."""

    t_s: list[float]
    true_range_m: list[float | None]  # null: the beam misses the ground
    range_m: list[float | None]  # null: no valid range
    predicted_m: list[float | None]  # null: the map predicts none
    predicted_sigma_m: list[float | None]


class InnovationSeries(_Record):
    """Normalised innovations of one sensor. ``whitened`` has one row an epoch (Cholesky of S)."""

    sensor: str
    degrees_of_freedom: int
    t_s: list[float]
    nis: list[float]
    whitened: list[list[float]]
    fused: list[bool]
    gate: float  # NIS over which a measurement is not fused


class StatisticSeries(_Record):
    """One statistic of the monitor with its threshold."""

    name: str
    t_s: list[float]
    value: list[float]
    threshold: float


class VerdictRecord(_Record):
    """One alert."""

    kind: str
    onset_s: float
    alert_s: float
    cleared_s: float | None
    statistic: float
    threshold: float
    reason: str


class PointOfNoReturn(_Record):
    """Where the height falls under the stopping distance ``v^2 / (2 a_net)`` (true state)."""

    t_s: float | None  # null: never passed
    height_m: float | None
    speed_m_s: float | None
    net_deceleration_m_s2: float


class SummaryRecord(_Record):
    """The run in a few numbers; errors over fixes at or above the floor."""

    floor_agl_m: float  # fixes below it are shown, not scored
    fixes_scored: int
    fixes_failed: int
    agl_error_percent_max: float | None
    agl_error_percent_rms: float | None
    horizontal_error_m_max: float | None
    horizontal_error_m_rms: float | None
    horizontal_margin_m_min: float | None  # 2 ground pixels + 5 m, minus the error
    fixes_within_limits: int
    verdict: str  # kind of the first alert, or healthy
    expected_verdict: str
    alert_s: float | None
    seconds_before_no_return: float | None
    false_alarms: int
    seconds: float  # wall clock of the whole run


class RunDocument(_Record):
    """The whole of ``run.json``."""

    schema_name: Literal["tnav-run/1"] = SCHEMA
    setup: SetupRecord
    frames: list[FrameRecord]
    states: StateSeries
    altimeter: AltimeterSeries
    innovations: list[InnovationSeries]
    statistics: list[StatisticSeries]
    verdicts: list[VerdictRecord]
    point_of_no_return: PointOfNoReturn
    summary: SummaryRecord


def write_document(path: Path, document: RunDocument) -> None:
    """Write strict JSON beside its place, then rename."""
    text = json.dumps(document.model_dump(mode="json"), allow_nan=False, indent=1)
    with written_aside(path) as aside:
        aside.write_text(text + "\n", encoding="utf-8")


def read_document(folder: Path) -> RunDocument:
    """Read and check ``run.json`` of a run folder.

    Raises:
        RunFileError: missing, not strict JSON, or not of this schema; names file and field.
    """
    path = folder / "run.json"
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise RunFileError(f"{path}: missing; expected a folder that 'tnav run' wrote") from error
    except ValueError as error:
        raise RunFileError(f"{path}: not strict JSON: {error}") from error
    try:
        return RunDocument.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise RunFileError(
            f"{path}: {field}: {first['msg'].lower()}; expected schema {SCHEMA}, run again"
        ) from error


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of ``run.json``."""
    return RunDocument.model_json_schema()


def _refuse_constant(text: str) -> float:
    raise ValueError(f"found {text}, which JSON does not have")
