"""Scores a run from its ``run.npz`` alone: errors, normalised errors, verdict against expectation.

Errors are estimate minus truth, never aligned first. NEES is e^T P^-1 e (Bar-Shalom 2001, 5.4.2).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import chi2

from tnav.errors import RunFileError
from tnav.evaluate.archive import load
from tnav.evaluate.run import FrameLog
from tnav.evaluate.runlog import (
    AltimeterSeries,
    FrameRecord,
    InnovationSeries,
    MatchRecord,
    PointOfNoReturn,
    RunDocument,
    SetupRecord,
    StateSeries,
    StatisticSeries,
    SummaryRecord,
    VerdictRecord,
)
from tnav.geometry.moon import altitude_m
from tnav.geometry.pose import so3_log
from tnav.navigate.state import FilterConfig
from tnav.records import FaultKind, FixStatus, Sensor

AGL_LIMIT_PERCENT = 0.5
HORIZONTAL_LIMIT_PX = 2.0  # ground pixels ...
HORIZONTAL_LIMIT_M = 5.0  # ... plus this
_SERIES_STEP_S = 0.25  # state series in run.json; run.npz keeps every step

Arrays = Mapping[str, NDArray[Any]]
_DOF = {Sensor.STAR_TRACKER: 3, Sensor.VISION: 6, Sensor.ALTIMETER: 1}


@dataclass(frozen=True, slots=True)
class _Setup:
    record: SetupRecord
    floor_agl_m: float
    net_deceleration_m_s2: float
    expected_verdict: str
    fault_start_s: float
    seconds: float


def score_folder(folder: Path) -> RunDocument:
    """The document of a run folder.

    Raises:
        RunFileError: ``run.npz`` is missing, damaged, or not what this version writes.
    """
    run = load(folder)
    try:
        return score(run)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RunFileError(
            f"{folder / 'run.npz'}: not a run of this version ({reason}); run the scenario again"
        ) from error


def score(run: Arrays) -> RunDocument:
    """The document of a run, from the arrays that ``archive.load`` returns."""
    raw = json.loads(str(run["setup"]))
    setup = _Setup(SetupRecord.model_validate(raw.pop("record")), **raw)
    frames = [_frame(run, i) for i in range(len(run["frame_t_s"]))]
    verdicts = _verdicts(run)
    no_return = point_of_no_return(run, setup.net_deceleration_m_s2)
    return RunDocument(
        setup=setup.record,
        frames=frames,
        states=_states(run, setup.net_deceleration_m_s2),
        altimeter=_altimeter(run),
        innovations=_innovations(run),
        statistics=_statistics(run),
        verdicts=verdicts,
        point_of_no_return=no_return,
        summary=_summary(setup, frames, verdicts, no_return),
    )


def within_limits(frame: FrameRecord) -> bool:
    """AGL within 0.5 % and position within two ground pixels plus 5 m."""
    if frame.agl_error_m is None or frame.horizontal_error_m is None:
        return False
    percent = 100 * abs(frame.agl_error_m) / frame.true_agl_m
    return percent < AGL_LIMIT_PERCENT and frame.horizontal_error_m < _horizontal_limit_m(frame)


def frame_line(frame: FrameLog) -> str:
    """One line on an image and its fix, for people who watch."""
    place = frame.localisation
    head = f"t {frame.t_s:6.1f} s  agl {frame.true_agl_m:7.1f} m  "
    if place.altitude is None or place.fix.position_L is None:
        return f"{head}no fix: {place.fix.status.value}"
    agl_m, sigma_m = float(place.altitude.agl_m[0]), float(place.altitude.agl_sigma_m[0])
    error_L = place.fix.position_L - frame.true_pose.position_L[0].cpu()
    return (
        f"{head}estimated {agl_m:7.1f} +- {sigma_m:4.2f} m  "
        f"error {agl_m - frame.true_agl_m:+6.2f} m  "
        f"horizontal {float(error_L[:2].norm()):5.2f} m  "
        f"{place.fix.n_inliers:3d} of {place.fix.n_matches:3d} matches  views {place.renders}"
    )


def summary_lines(document: RunDocument) -> list[str]:
    """The run in a few lines: altitude, position, verdict, time left."""
    s, limit = document.summary, document.point_of_no_return
    lines = [
        f"fixes above {s.floor_agl_m:.0f} m: {s.fixes_within_limits} of {s.fixes_scored} in limits"
    ]
    if s.agl_error_percent_max is not None and s.horizontal_error_m_max is not None:
        lines.append(
            f"altitude error (AGL): rms {s.agl_error_percent_rms:.3f} %, "
            f"largest {s.agl_error_percent_max:.3f} %"
        )
        lines.append(
            f"position error (horizontal): rms {s.horizontal_error_m_rms:.2f} m, "
            f"largest {s.horizontal_error_m_max:.2f} m"
        )
    lines.append(f"verdict: {s.verdict} (injected: {document.setup.injected_fault})")
    lines += [f"  at {v.alert_s:.1f} s: {v.kind}: {v.reason}" for v in document.verdicts]
    if s.alert_s is not None and s.seconds_before_no_return is not None:
        lines.append(
            f"alert {s.seconds_before_no_return:.1f} s before the point of no return "
            f"({limit.height_m:.0f} m, {limit.speed_m_s:.0f} m/s at {limit.t_s:.1f} s)"
        )
    lines.append(f"wall clock: {s.seconds:.0f} s on {document.setup.device}")
    return lines


def point_of_no_return(run: Arrays, net_deceleration_m_s2: float) -> PointOfNoReturn:
    """First time at which the true height is under the stopping distance ``v^2 / (2 a_net)``.

    A proposal of this project, not a standard: it asks whether full braking from now on would
    still end above the ground.
    """
    down = -run["true_velocity_L"][:, 2]
    stopping_m = np.maximum(down, 0.0) ** 2 / (2 * net_deceleration_m_s2)
    passed = np.flatnonzero(run["true_agl_m"] < stopping_m)
    if passed.size == 0:
        return PointOfNoReturn(
            t_s=None, height_m=None, speed_m_s=None, net_deceleration_m_s2=net_deceleration_m_s2
        )
    k = int(passed[0])
    return PointOfNoReturn(
        t_s=float(run["state_t_s"][k]),
        height_m=float(run["true_agl_m"][k]),
        speed_m_s=float(down[k]),
        net_deceleration_m_s2=net_deceleration_m_s2,
    )


def _horizontal_limit_m(frame: FrameRecord) -> float:
    return HORIZONTAL_LIMIT_PX * frame.ground_sample_distance_m + HORIZONTAL_LIMIT_M


def _optional(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _difference(estimate: float | None, true: float) -> float | None:
    return None if estimate is None else _optional(estimate - true)


def _frame(run: Arrays, i: int) -> FrameRecord:
    fixed = str(run["frame_status"][i]) == FixStatus.OK.value
    error_L = run["frame_position_L"][i] - run["frame_true_position_L"][i]
    covariance = run["frame_covariance"][i]
    altitude, altitude_sigma, agl, agl_sigma, range_m, range_sigma = (
        _optional(v) for v in run["frame_altitude"][i]
    )
    true_altitude_m = float(altitude_m(torch.from_numpy(run["frame_true_position_L"][i])))
    matches = np.flatnonzero(run["match_frame"] == i)
    return FrameRecord(
        index=i,
        t_s=float(run["frame_t_s"][i]),
        image=str(run["frame_image"][i]),
        map_view=str(run["frame_map_view"][i]),
        ground_sample_distance_m=float(run["frame_gsd_m"][i]),
        true_agl_m=float(run["frame_true_agl_m"][i]),
        status=str(run["frame_status"][i]),
        renders=int(run["frame_renders"][i]),
        learned=bool(run["frame_learned"][i]),
        out_of_contract=str(run["frame_out_of_contract"][i]).splitlines(),
        n_matches=int(run["frame_n_matches"][i]),
        n_inliers=int(run["frame_n_inliers"][i]),
        rms_px=_optional(run["frame_rms_px"][i]),
        altitude_m=altitude,
        altitude_sigma_m=altitude_sigma,
        altitude_error_m=_difference(altitude, true_altitude_m),
        agl_m=agl,
        agl_sigma_m=agl_sigma,
        agl_error_m=_difference(agl, float(run["frame_true_agl_m"][i])),
        range_m=range_m,
        range_sigma_m=range_sigma,
        range_error_m=_difference(range_m, float(run["frame_true_range_m"][i])),
        horizontal_error_m=float(np.hypot(error_L[0], error_L[1])) if fixed else None,
        horizontal_sigma_m=_largest_sigma(covariance[:2, :2]) if fixed else None,
        nees=_fix_nees(run, i, error_L) if fixed else None,
        seconds=float(run["frame_seconds"][i]),
        matches=[
            MatchRecord(
                u_map_px=round(float(run["match_uv_map_px"][k, 0]), 2),
                v_map_px=round(float(run["match_uv_map_px"][k, 1]), 2),
                u_px=round(float(run["match_uv_px"][k, 0]), 2),
                v_px=round(float(run["match_uv_px"][k, 1]), 2),
                inlier=bool(run["match_inlier"][k]),
            )
            for k in matches
        ],
    )


def _largest_sigma(covariance: NDArray[np.float64]) -> float:
    return float(np.sqrt(max(float(np.linalg.eigvalsh(covariance)[-1]), 0.0)))


def _fix_nees(run: Arrays, i: int, error_L: NDArray[np.float64]) -> float:
    """Of position and rotation together; ``dtheta`` leads from the truth to the estimate."""
    turn = torch.from_numpy(run["frame_R_L_C"][i] @ run["frame_true_R_L_C"][i].T)
    error = np.concatenate([error_L, so3_log(turn).numpy()])
    return float(error @ np.linalg.solve(run["frame_covariance"][i], error))


def _states(run: Arrays, net_deceleration_m_s2: float) -> StateSeries:
    t_s = run["state_t_s"]
    stride = max(1, round(_SERIES_STEP_S / float(t_s[1] - t_s[0])))
    defined = np.isfinite(run["true_agl_m"]) & np.isfinite(run["state_agl_m"])
    keep = np.flatnonzero(defined)[::stride]
    position, true = run["state_position_L"][keep], run["true_position_L"][keep]
    error = position - true
    sigma = np.sqrt(np.diagonal(run["state_covariance"][keep], axis1=1, axis2=2))
    down = -run["true_velocity_L"][keep, 2]
    columns = {
        "t_s": t_s[keep],
        "true_altitude_m": altitude_m(torch.from_numpy(true)).numpy(),
        "altitude_m": altitude_m(torch.from_numpy(position)).numpy(),
        "altitude_sigma_m": sigma[:, 2],
        "true_agl_m": run["true_agl_m"][keep],
        "agl_m": run["state_agl_m"][keep],
        "agl_sigma_m": run["state_agl_sigma_m"][keep],
        "speed_m_s": down,
        "error_east_m": error[:, 0],
        "error_north_m": error[:, 1],
        "error_up_m": error[:, 2],
        "sigma_east_m": sigma[:, 0],
        "sigma_north_m": sigma[:, 1],
        "sigma_up_m": sigma[:, 2],
        "stopping_height_m": np.maximum(down, 0.0) ** 2 / (2 * net_deceleration_m_s2),
    }
    return StateSeries(**{name: column.tolist() for name, column in columns.items()})


def _altimeter(run: Arrays) -> AltimeterSeries:
    def optional(name: str) -> list[float | None]:
        return [_optional(v) for v in run[f"altimeter_{name}"]]

    return AltimeterSeries(
        t_s=run["altimeter_t_s"].tolist(),
        true_range_m=optional("true_range_m"),
        range_m=optional("range_m"),
        predicted_m=optional("predicted_m"),
        predicted_sigma_m=optional("predicted_sigma_m"),
    )


def _innovations(run: Arrays) -> list[InnovationSeries]:
    series = []
    for sensor, dof in _DOF.items():
        rows = np.flatnonzero(run["innovation_sensor"] == sensor.value)
        if rows.size:
            series.append(
                InnovationSeries(
                    sensor=sensor.value,
                    degrees_of_freedom=dof,
                    t_s=run["innovation_t_s"][rows].tolist(),
                    nis=run["innovation_nis"][rows].tolist(),
                    whitened=run["innovation_whitened"][rows, :dof].tolist(),
                    fused=run["innovation_fused"][rows].tolist(),
                    gate=float(chi2.ppf(FilterConfig().gate_probability, dof)),
                )
            )
    return series


def _statistics(run: Arrays) -> list[StatisticSeries]:
    series = []
    for name in sorted(set(run["statistic_name"].tolist())):
        rows = np.flatnonzero(run["statistic_name"] == name)
        finite = rows[np.isfinite(run["statistic_value"][rows])]
        if finite.size:
            series.append(
                StatisticSeries(
                    name=name,
                    t_s=run["statistic_t_s"][finite].tolist(),
                    value=run["statistic_value"][finite].tolist(),
                    threshold=float(run["statistic_threshold"][finite[0]]),
                )
            )
    return series


def _verdicts(run: Arrays) -> list[VerdictRecord]:
    return [
        VerdictRecord(
            kind=str(run["verdict_kind"][k]),
            onset_s=float(run["verdict_onset_s"][k]),
            alert_s=float(run["verdict_alert_s"][k]),
            cleared_s=_optional(run["verdict_cleared_s"][k]),
            statistic=float(run["verdict_statistic"][k]),
            threshold=float(run["verdict_threshold"][k]),
            reason=str(run["verdict_reason"][k]),
        )
        for k in range(len(run["verdict_kind"]))
    ]


def _summary(
    setup: _Setup,
    frames: list[FrameRecord],
    verdicts: list[VerdictRecord],
    no_return: PointOfNoReturn,
) -> SummaryRecord:
    scored = [f for f in frames if f.true_agl_m >= setup.floor_agl_m]
    good = [f for f in scored if f.agl_error_m is not None and f.horizontal_error_m is not None]
    percent = np.array([100 * abs(f.agl_error_m or 0.0) / f.true_agl_m for f in good])
    across = np.array([f.horizontal_error_m or 0.0 for f in good])
    margin = np.array([_horizontal_limit_m(f) - (f.horizontal_error_m or 0.0) for f in good])
    first = verdicts[0] if verdicts else None
    expected = setup.expected_verdict
    before = None
    if first is not None and no_return.t_s is not None:
        before = no_return.t_s - first.alert_s
    return SummaryRecord(
        floor_agl_m=setup.floor_agl_m,
        fixes_scored=len(scored),
        fixes_failed=len(scored) - len(good),
        agl_error_percent_max=float(percent.max()) if good else None,
        agl_error_percent_rms=float(np.sqrt(np.mean(percent**2))) if good else None,
        horizontal_error_m_max=float(across.max()) if good else None,
        horizontal_error_m_rms=float(np.sqrt(np.mean(across**2))) if good else None,
        horizontal_margin_m_min=float(margin.min()) if good else None,
        fixes_within_limits=sum(within_limits(f) for f in scored),
        verdict=first.kind if first else FaultKind.HEALTHY.value,
        expected_verdict=expected,
        alert_s=first.alert_s if first else None,
        seconds_before_no_return=before,
        false_alarms=sum(v.kind != expected or v.alert_s < setup.fault_start_s for v in verdicts),
        seconds=setup.seconds,
    )
