"""A seeded RESILIENCE-like run folder in the real format: ``run.json`` and its 16-bit pictures.

The descent is in closed form: 1 m/s^2 net down to 893 m at 66 m/s, then 1.85 m/s^2 to 42 m/s.
"""

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tnav.evaluate.runlog import RunDocument, write_document
from tnav.images import write_png16

SIZE_PX = 240
KNEE_M, KNEE_M_S, END_M_S, EARLY, LATE = 893.0, 66.0, 42.0, 1.0, 1.85
START_M, SPEC_M, NOISE_M = 10_000.0, 3000.0, 0.6
START_M_S = math.sqrt(KNEE_M_S**2 + 2 * EARLY * (START_M - KNEE_M))
KNEE_S = (START_M_S - KNEE_M_S) / EARLY
END_S = KNEE_S + (KNEE_M_S - END_M_S) / LATE
FAILED = {9: "too_few_matches", 19: "not_settled"}
ALERT_S = 58.6  # about 2.9 km


def height_m(t_s: NDArray[np.float64]) -> NDArray[np.float64]:
    early = START_M - START_M_S * t_s + EARLY * t_s**2 / 2
    dt = t_s - KNEE_S
    return np.where(dt < 0, early, KNEE_M - KNEE_M_S * dt + LATE * dt**2 / 2)


def speed_m_s(t_s: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(t_s < KNEE_S, START_M_S - EARLY * t_s, KNEE_M_S - LATE * (t_s - KNEE_S))


def write_run(folder: Path, *, faulty: bool = True, seed: int = 0) -> RunDocument:
    """Write a run folder; ``faulty=False`` is the same descent with a healthy altimeter."""
    rng = np.random.default_rng(seed)
    (folder / "frames").mkdir(parents=True, exist_ok=True)
    frames = [_frame(folder, rng, i) for i in range(20)]
    document = RunDocument.model_validate(
        {
            "setup": _setup(seed, faulty),
            "frames": frames,
            "states": _states(rng, faulty),
            "altimeter": (altimeter := _altimeter(rng, faulty)),
            "innovations": _innovations(rng, altimeter),
            "statistics": _statistics(rng, faulty),
            "verdicts": [_verdict()] if faulty else [],
            "point_of_no_return": _no_return() if faulty else _NEVER,
            "summary": _summary(frames, faulty),
        }
    )
    write_document(folder / "run.json", document)
    return document


_NEVER = {"t_s": None, "height_m": None, "speed_m_s": None, "net_deceleration_m_s2": LATE}


def _no_return() -> dict[str, float]:
    # h = v^2 / (2 LATE) on the early arc, where v^2 = KNEE^2 + 2 EARLY (h - KNEE).
    h = (KNEE_M_S**2 - 2 * EARLY * KNEE_M) / (2 * (LATE - EARLY))
    v = math.sqrt(2 * LATE * h)
    return {"t_s": START_M_S - v, "height_m": h, "speed_m_s": v, "net_deceleration_m_s2": LATE}


def _setup(seed: int, faulty: bool) -> dict[str, object]:
    return {
        "scenario": "resilience_late_acquisition" if faulty else "resilience_nominal",
        "seed": seed,
        "fidelity": "image",
        "epoch_utc": "2025-06-05T19:17:00Z",
        "latitude_deg": 60.5,
        "longitude_deg": -4.6,
        "dem": "LOLA LDEM_16 (PDS LRO-L-LOLA-4-GDR-V1.0), Mare Frigoris crop, 1/16 deg",
        "relief": "seeded craters and fractal roughness below 1895 m, down to 0.5 m posts",
        "map_note": "2 times coarser than the image, 3 m rms vertical noise over 300 m, no detail "
        "below its posting",
        "injected_fault": "late_acquisition: valid only near 893 m" if faulty else "none",
        "altimeter_range_max_m": SPEC_M,
        "sun": {"azimuth_deg": 108.36, "elevation_deg": 11.86},
        "camera": {
            "width_px": SIZE_PX,
            "height_px": SIZE_PX,
            "focal_px": 1.2 * SIZE_PX,
            "cx_px": SIZE_PX / 2,
            "cy_px": SIZE_PX / 2,
        },
        "device": "cpu",
        "version": "0.1.0",
    }


def _verdict() -> dict[str, object]:
    return {
        "kind": "late_acquisition",
        "onset_s": 57.6,
        "alert_s": ALERT_S,
        "cleared_s": 86.0,
        "statistic": 15.3,
        "threshold": 14.2,
        "reason": "no valid range in 10 of 10 epochs where the map predicts 2989 to 2902 m, "
        "inside the specified 3000 m; acquisition probability 0.99 an epoch",
    }


def _view(seed: int, scale: float) -> NDArray[np.float64]:
    """Shaded craters under a low Sun from the right: enough of a Moon to look at."""
    rng = np.random.default_rng(seed)
    surface = np.zeros((SIZE_PX, SIZE_PX))
    for _ in range(40):
        x, y = rng.uniform(-20, SIZE_PX + 20, 2)
        radius = min(scale * 4 * rng.pareto(1.8) + 3, SIZE_PX / 4)
        rows, columns = (
            slice(max(round(c - 2.2 * radius), 0), max(round(c + 2.2 * radius), 0)) for c in (y, x)
        )
        v, u = np.mgrid[rows, columns].astype(np.float64)
        d = np.hypot(u - x, v - y) / radius
        bowl = radius * (0.22 * np.exp(-((d - 1) ** 2) / 0.06) - 0.35 * np.exp(-(d**2) * 1.5))
        patch = surface[rows, columns]
        patch += bowl[: patch.shape[0], : patch.shape[1]]
    slope = np.gradient(surface, axis=1)
    return np.clip(0.2 + 0.17 * slope, 0, 0.9)


def _frame(folder: Path, rng: np.random.Generator, index: int) -> dict[str, object]:
    t = 5.0 * index
    agl = float(height_m(np.array(t)))
    view = _view(100 + index, 1.0 + index / 12)
    sensed = view + rng.normal(0, 0.012, view.shape)
    for name, picture in ((f"camera_{index:03d}", sensed), (f"map_{index:03d}", view)):
        write_png16(folder / f"frames/{name}.png", torch.from_numpy(picture).float())
    failed = index in FAILED
    n = 30 if failed else int(rng.integers(110, 180))
    uv = rng.uniform(8, SIZE_PX - 8, (n, 2))
    inlier = rng.random(n) < (0.15 if failed else 0.93)
    moved = uv + np.where(inlier[:, None], rng.normal(0, 0.4, (n, 2)), rng.normal(0, 25, (n, 2)))
    moved = moved.clip(1, SIZE_PX - 1)

    def estimate(value: float) -> float | None:
        return None if failed else value

    sigma = 0.0007 * agl + 0.4
    e_up, e_range = (sigma * rng.standard_normal(2)).tolist()
    across = 0.0011 * agl + 0.8
    return {
        "index": index,
        "t_s": t,
        "image": f"frames/camera_{index:03d}.png",
        "map_view": f"frames/map_{index:03d}.png",
        "ground_sample_distance_m": agl / (1.2 * SIZE_PX),
        "true_agl_m": agl,
        "status": FAILED.get(index, "ok"),
        "renders": 3,
        "learned": False,
        "out_of_contract": [],
        "n_matches": n,
        "n_inliers": int(inlier.sum()),
        "rms_px": estimate(0.42 + 0.1 * float(rng.random())),
        "altitude_m": estimate(agl - 2650 + e_up),
        "altitude_sigma_m": estimate(sigma),
        "altitude_error_m": estimate(e_up),
        "agl_m": estimate(agl + 0.9 * e_up),
        "agl_sigma_m": estimate(1.1 * sigma),
        "agl_error_m": estimate(0.9 * e_up),
        "range_m": estimate(1.02 * agl + e_range),
        "range_sigma_m": estimate(1.1 * sigma),
        "range_error_m": estimate(e_range),
        "horizontal_error_m": estimate(float(np.hypot(*rng.normal(0, across, 2)))),
        "horizontal_sigma_m": estimate(across),
        "nees": estimate(float(rng.chisquare(6))),
        "seconds": 1.2 + float(rng.random()),
        "matches": [
            {
                "u_map_px": float(a[0]),
                "v_map_px": float(a[1]),
                "u_px": float(b[0]),
                "v_px": float(b[1]),
                "inlier": bool(good),
            }
            for a, b, good in zip(uv, moved, inlier, strict=True)
        ],
    }


def _states(rng: np.random.Generator, faulty: bool) -> dict[str, list[float]]:
    t = np.arange(0, END_S, 0.2)
    h, v = height_m(t), speed_m_s(t)
    since = np.where(t % 5 < 1e-9, 0.0, t % 5)
    sigma = np.where(t < 0.1, 300.0, 0.4 + 0.0005 * h + 0.12 * since)

    def walk(scale: float) -> NDArray[np.float64]:
        noise = rng.standard_normal(t.size)
        error = np.zeros(t.size)
        for i in range(1, t.size):
            error[i] = 0.97 * error[i - 1] + 0.24 * noise[i]
        return scale * sigma * error

    up, east, north = walk(0.8), walk(1.3), walk(1.3)
    up[0], east[0], north[0] = 180.0, -350.0, 210.0
    stop = v**2 / (2 * LATE)
    relief = 2 * np.sin(h / 300)
    columns = {
        "t_s": t,
        "true_altitude_m": h - 2650,
        "altitude_m": h - 2650 + up,
        "altitude_sigma_m": sigma,
        "true_agl_m": h,
        "agl_m": h + up + relief * (h > 500),
        "agl_sigma_m": np.hypot(sigma, 1.5),
        "speed_m_s": v,
        "error_east_m": east,
        "error_north_m": north,
        "error_up_m": up,
        "sigma_east_m": 1.5 * sigma,
        "sigma_north_m": 1.5 * sigma,
        "sigma_up_m": sigma,
        "stopping_height_m": stop if faulty else 0.5 * h * stop / stop.max(),
    }
    return {name: values.tolist() for name, values in columns.items()}


def _altimeter(rng: np.random.Generator, faulty: bool) -> dict[str, list[float | None]]:
    t = np.arange(0, END_S, 0.1)
    h = height_m(t)
    true = 1.001 * h + 3 * np.sin(t)
    reading = true + rng.normal(0, NOISE_M, t.size)
    if faulty:
        valid = rng.random(t.size) < 0.5 * (1 + np.tanh((KNEE_M - true) * 4.394 / 100))
    else:
        valid = (true < SPEC_M) & (rng.random(t.size) < 0.99)
    sigma = 1.5 + 0.001 * h
    predicted = true + sigma * np.sin(t / 7)
    misses = (t > 12) & (t < 13.5)  # over the edge of the map
    return {
        "t_s": t.tolist(),
        "true_range_m": true.tolist(),
        "range_m": [float(r) if ok else None for r, ok in zip(reading, valid, strict=True)],
        "predicted_m": [None if m else float(p) for p, m in zip(predicted, misses, strict=True)],
        "predicted_sigma_m": [None if m else float(s) for s, m in zip(sigma, misses, strict=True)],
    }


def _innovations(
    rng: np.random.Generator, altimeter: dict[str, list[float | None]]
) -> list[dict[str, object]]:
    fixes = [5.0 * i for i in range(20) if i not in FAILED]
    ranges = [t for t, r in zip(altimeter["t_s"], altimeter["range_m"], strict=True) if r]
    rows: list[dict[str, object]] = []
    for sensor, times, dof, gate in (
        ("star_tracker", np.arange(0, END_S, 1.0).tolist(), 3, 14.16),
        ("vision", fixes, 6, 20.06),
        ("altimeter", ranges, 1, 9.0),
    ):
        whitened = rng.standard_normal((len(times), dof))
        if sensor == "altimeter" and len(times) > 20:
            whitened[4] = 7.5  # one that is not fused
        nis = (whitened**2).sum(1)
        rows.append(
            {
                "sensor": sensor,
                "degrees_of_freedom": dof,
                "t_s": times,
                "nis": nis.tolist(),
                "whitened": whitened.tolist(),
                "fused": (nis <= gate).tolist(),
                "gate": gate,
            }
        )
    return rows


def _statistics(rng: np.random.Generator, faulty: bool) -> list[dict[str, object]]:
    t = np.arange(0, END_S, 0.1)
    absent = np.zeros(t.size)
    noise = rng.standard_normal((2, t.size))
    cusum = np.zeros((2, t.size))
    for i in range(1, t.size):
        silent = faulty and 57.6 < t[i] < 86.0
        absent[i] = min(15.3, max(0.0, absent[i - 1] + (1.53 if silent else -4.6)))
        cusum[:, i] = np.maximum(0, cusum[:, i - 1] + np.abs(noise[:, i]) - 1.3)
    return [
        {"name": name, "t_s": t.tolist(), "value": value.tolist(), "threshold": 14.2}
        for name, value in (
            ("altimeter_absent", absent),
            ("altimeter_cusum", cusum[0]),
            ("vision_cusum", cusum[1]),
        )
    ]


def _summary(frames: list[dict[str, object]], faulty: bool) -> dict[str, object]:
    kind = "late_acquisition" if faulty else "healthy"
    return {
        "floor_agl_m": 1000.0,
        "fixes_scored": 17,
        "fixes_failed": 1,
        "agl_error_percent_max": 0.187,
        "agl_error_percent_rms": 0.071,
        "horizontal_error_m_max": 17.4,
        "horizontal_error_m_rms": 8.8,
        "horizontal_margin_m_min": 4.3,
        "fixes_within_limits": 16,
        "verdict": kind,
        "expected_verdict": kind,
        "alert_s": ALERT_S if faulty else None,
        "seconds_before_no_return": _no_return()["t_s"] - ALERT_S if faulty else None,
        "false_alarms": 0,
        "seconds": 61.5,
    }
