"""``run.npz``: a run at full rate, estimates beside truth, so that scoring needs no flight.

Plain arrays only (numbers, booleans, fixed-width text): loaded with ``allow_pickle=False``.
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor

import tnav
from tnav.errors import RunFileError
from tnav.evaluate.run import FrameLog, RunLog
from tnav.evaluate.scenario import Scenario
from tnav.files import written_aside
from tnav.geometry.moon import up_L
from tnav.images import write_png16
from tnav.navigate.altimetry import agl_sigma_m, over_map_L
from tnav.records import FixStatus, Innovation
from tnav.terrain.heightfield import Terrain
from tnav.terrain.raycast import cast

Arrays = dict[str, NDArray[np.generic]]
_MAX_DOF = 6  # widest innovation


def save(log: RunLog, folder: Path, seed: int) -> Path:
    """Write frames and ``run.npz`` of a run; each file aside, then renamed.

    Args:
        log: the run.
        folder: made when absent.
        seed: number of the draw, for the record.
    """
    arrays = arrays_of(log, seed)  # first of all: what cannot be put together is not written
    (folder / "frames").mkdir(parents=True, exist_ok=True)
    _clear(folder)
    for index, frame in enumerate(log.frames):
        write_png16(folder / _image_name(index), frame.image)
        view = frame.localisation.map_view.image[0, 0]
        write_png16(folder / _map_name(index), view / view.max().clamp_min(1e-6))
        _write_sidecar(folder, index, frame, log.world.scenario)
    path = folder / "run.npz"
    with written_aside(path) as aside, aside.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)
    return path


def arrays_of(log: RunLog, seed: int) -> Arrays:
    """What ``run.npz`` holds of a run."""
    return {
        "setup": np.array(json.dumps(_setup(log, seed), allow_nan=False)),
        **_state_arrays(log),
        **_frame_arrays(log),
        **_altimeter_arrays(log),
        **_innovation_arrays(log.innovations),
        **_monitor_arrays(log),
    }


def load(folder: Path) -> Mapping[str, NDArray[np.generic]]:
    """Read ``run.npz`` of a run folder.

    Raises:
        RunFileError: missing, damaged, or without an array that scoring needs.
    """
    path = folder / "run.npz"
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except FileNotFoundError as error:
        raise RunFileError(f"{path}: missing; expected a folder that 'tnav run' wrote") from error
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise RunFileError(f"{path}: damaged ({error}); run the scenario again") from error
    missing = sorted({"setup", "state_t_s", "frame_t_s", "verdict_kind"} - arrays.keys())
    if missing:
        raise RunFileError(f"{path}: no array '{missing[0]}'; expected a file of 'tnav run'")
    return arrays


def _clear(folder: Path) -> None:
    """Remove what an earlier run left, lest a report mixes two runs."""
    for pattern in ("run.npz", "run.json", "report.html", "frames/[0-9][0-9][0-9]*"):
        for stale in folder.glob(pattern):
            stale.unlink()


def _image_name(index: int) -> str:
    return f"frames/{index:03d}.png"


def _map_name(index: int) -> str:
    return f"frames/{index:03d}_map.png"


def _write_sidecar(folder: Path, index: int, frame: FrameLog, scenario: Scenario) -> None:
    """What navigation knew at an image, so that ``tnav infer`` can take it up again.

    The scenario goes along because the map is made anew from it; the true pose does not.
    """
    prediction = frame.prediction
    data = {
        "t_s": frame.t_s,
        "position_L": prediction.pose.position_L[0].tolist(),
        "R_L_C": prediction.pose.R_L_C[0].tolist(),
        "position_covariance": prediction.position_covariance.tolist(),
        "attitude_sigma_rad": prediction.attitude_sigma_rad,
        "scenario": scenario.model_dump(mode="json"),
    }
    path = (folder / _image_name(index)).with_suffix(".json")
    with written_aside(path) as aside:
        aside.write_text(json.dumps(data, allow_nan=False, indent=1) + "\n", encoding="utf-8")


def _setup(log: RunLog, seed: int) -> dict[str, object]:
    world, scenario = log.world, log.world.scenario
    quality, camera = scenario.map, world.camera
    finest_m = world.terrain_map.levels[0].post_m
    return {
        "record": {
            "scenario": scenario.name,
            "seed": seed,
            "fidelity": "image",
            "epoch_utc": scenario.epoch_utc.isoformat(),
            "latitude_deg": scenario.site.latitude_deg,
            "longitude_deg": scenario.site.longitude_deg,
            "dem": dem if isinstance(dem := scenario.site.dem, str) else ", ".join(dem),
            "relief": (
                "SYNTHETIC below the DEM's resolution: seeded craters, boulders and fractal "
                f"roughness down to {scenario.site.finest_post_m} m posts "
                f"(terrain seed {scenario.seeds.terrain})"
            ),
            "map_note": (
                f"map posts at least {quality.coarser} times the image's ground sample distance "
                f"(the altimeter is predicted on the finest, {finest_m:g} m), "
                f"height error {quality.vertical_rms_m} m rms correlated over "
                f"{quality.vertical_correlation_m} m, shifted by {quality.shift_m} m, no albedo"
            ),
            "injected_fault": scenario.fault.kind,
            "altimeter_range_max_m": scenario.altimeter.range_max_m,
            "sun": {
                "azimuth_deg": world.sun.azimuth_deg,
                "elevation_deg": world.sun.elevation_deg,
            },
            "camera": camera.described(),
            "device": str(world.device),
            "version": tnav.__version__,
        },
        "floor_agl_m": scenario.floor_agl_m,
        "net_deceleration_m_s2": scenario.net_deceleration_m_s2,
        "expected_verdict": scenario.expected_verdict.value,
        "fault_start_s": scenario.fault_start_s,
        "seconds": log.seconds,
    }


def _state_arrays(log: RunLog) -> Arrays:
    trajectory, world = log.world.trajectory, log.world
    position = torch.cat([s.position_L for s in log.states])
    covariance = torch.cat([s.covariance[:, :9, :9] for s in log.states])
    over_map = torch.cat([over_map_L(s) for s in log.states])
    return {
        "state_t_s": np.array([s.t_s for s in log.states]),
        "state_position_L": position.numpy(),
        "state_velocity_L": torch.cat([s.velocity_L for s in log.states]).numpy(),
        "state_R_L_B": torch.cat([s.R_L_B for s in log.states]).numpy(),
        "state_covariance": covariance.numpy(),
        "state_agl_m": _agl_m(world.terrain_map, over_map),
        "state_agl_sigma_m": torch.cat([agl_sigma_m(s) for s in log.states]).numpy(),
        "true_position_L": trajectory.position_L.numpy(),
        "true_velocity_L": trajectory.velocity_L.numpy(),
        "true_R_L_B": trajectory.R_L_B.numpy(),
        "true_agl_m": _agl_m(world.truth, trajectory.position_L),
    }


def _agl_m(terrain: Terrain, position_L: Float64[Tensor, "n 3"]) -> NDArray[np.float64]:
    p = position_L.to(terrain.device)
    hits = cast(terrain, p, -up_L(p))
    return torch.where(hits.hit, hits.range_m, torch.nan).cpu().numpy()


def _frame_arrays(log: RunLog) -> Arrays:
    frames = log.frames
    fixes = [f.localisation.fix for f in frames]
    map_error = log.world.scenario.map.error_model()
    covariances = [
        None if x.covariance is None else map_error.absolute(x.covariance) for x in fixes
    ]
    places = [f.localisation for f in frames]
    matches = [p.matches for p in places]
    used = [p.matches.valid[0].cpu() for p in places]
    return {
        "frame_t_s": np.array([f.t_s for f in frames]),
        "frame_image": np.array([_image_name(i) for i in range(len(frames))]),
        "frame_map_view": np.array([_map_name(i) for i in range(len(frames))]),
        "frame_gsd_m": np.array([p.ground_sample_distance_m for p in places]),
        "frame_true_agl_m": np.array([f.true_agl_m for f in frames]),
        "frame_true_range_m": np.array([f.true_range_m for f in frames]),
        "frame_true_position_L": np.stack([f.true_pose.position_L[0].cpu() for f in frames]),
        "frame_true_R_L_C": np.stack([f.true_pose.R_L_C[0].cpu() for f in frames]),
        "frame_status": np.array([fix.status.value for fix in fixes]),
        "frame_learned": np.array([bool(m.learned[0]) for m in matches]),
        "frame_out_of_contract": np.array(["\n".join(p.out_of_contract) for p in places]),
        "frame_renders": np.array([p.renders for p in places]),
        "frame_n_matches": np.array([fix.n_matches for fix in fixes]),
        "frame_n_inliers": np.array([fix.n_inliers for fix in fixes]),
        "frame_rms_px": np.array([np.nan if x.rms_px is None else x.rms_px for x in fixes]),
        "frame_position_L": np.stack([_or_nan(x.position_L, (3,)) for x in fixes]),
        "frame_R_L_C": np.stack([_or_nan(x.R_L_C, (3, 3)) for x in fixes]),
        "frame_covariance": np.stack([_or_nan(c, (6, 6)) for c in covariances]),
        "frame_altitude": np.stack([_altitude_row(f) for f in frames]),
        "frame_seconds": np.array([f.seconds for f in frames]),
        "match_frame": np.repeat(np.arange(len(frames)), [int(u.sum()) for u in used]),
        "match_uv_map_px": _gather([m.uv_map_px for m in matches], used),
        "match_uv_px": _gather([m.uv_px for m in matches], used),
        "match_inlier": _gather([p.solution.inlier for p in places], used),
    }


def _or_nan(value: Tensor | None, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.full(shape, np.nan) if value is None else value.cpu().numpy()


def _altitude_row(frame: FrameLog) -> NDArray[np.float64]:
    """Altitude, AGL and range, each with its sigma; NaN where there is none."""
    a = frame.localisation.altitude
    if frame.localisation.fix.status is not FixStatus.OK or a is None:
        return np.full(6, np.nan)
    values = (
        a.altitude_m, a.altitude_sigma_m, a.agl_m, a.agl_sigma_m, a.range_m, a.range_sigma_m
    )  # fmt: skip
    row = np.array([float(v[0]) for v in values])
    if not bool(a.range_valid[0]):
        row[4:] = np.nan
    return row


def _gather(values: list[Tensor], used: list[Tensor]) -> NDArray[np.generic]:
    return np.concatenate([v[0].cpu()[u].numpy() for v, u in zip(values, used, strict=True)])


def _altimeter_arrays(log: RunLog) -> Arrays:
    names = ("t_s", "true_range_m", "range_m", "predicted_m", "predicted_sigma_m")
    return {
        f"altimeter_{name}": np.array([getattr(e, name) for e in log.altimeter], dtype=np.float64)
        for name in names
    }


def _innovation_arrays(innovations: list[Innovation]) -> Arrays:
    whitened = np.full((len(innovations), _MAX_DOF), np.nan)
    for row, innovation in zip(whitened, innovations, strict=True):
        factor = torch.linalg.cholesky(innovation.covariance[0])
        value = torch.linalg.solve_triangular(factor, innovation.value[0][:, None], upper=False)
        row[: value.shape[0]] = value[:, 0].numpy()
    return {
        "innovation_sensor": np.array([i.sensor.value for i in innovations]),
        "innovation_t_s": np.array([i.t_s for i in innovations]),
        "innovation_whitened": whitened,
        "innovation_nis": np.array([float(i.nis[0]) for i in innovations]),
        "innovation_fused": np.array([bool(i.fused[0]) for i in innovations]),
    }


def _monitor_arrays(log: RunLog) -> Arrays:
    history = log.monitor.history if log.monitor else ()
    verdicts = log.verdicts
    return {
        "statistic_name": np.array([h.name for h in history], dtype=np.str_),
        "statistic_t_s": np.array([h.t_s for h in history]),
        "statistic_value": np.array([h.value for h in history]),
        "statistic_threshold": np.array([h.threshold for h in history]),
        "verdict_kind": np.array([v.kind.value for v in verdicts], dtype=np.str_),
        "verdict_onset_s": np.array([v.onset_s for v in verdicts]),
        "verdict_alert_s": np.array([v.alert_s for v in verdicts]),
        "verdict_cleared_s": np.array(
            [np.nan if v.cleared_s is None else v.cleared_s for v in verdicts]
        ),
        "verdict_statistic": np.array([v.statistic for v in verdicts]),
        "verdict_threshold": np.array([v.threshold for v in verdicts]),
        "verdict_reason": np.array([v.reason for v in verdicts], dtype=np.str_),
    }
