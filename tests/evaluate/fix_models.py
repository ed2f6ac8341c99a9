"""Error models of fixes made by hand, and trials that err as they say."""

import math

import torch

from tnav.evaluate.fix_model import FixModel, conditions
from tnav.evaluate.fix_trials import FixTrial
from tnav.records import FixStatus

F64 = torch.float64
ONE = {"value": 1.0, "n": 9, "low": 0.5, "high": 2.0}


def eye(k):
    return [[float(i == j) for j in range(k)] for i in range(k)]


def share(value, n=20):
    return {"value": value, "n": n, "low": 0.0, "high": 1.0}


def scale(value):
    return {**ONE, "value": value}


def knot(agl_m, **changes):
    """A knot whose position and attitude go together, as those of a camera do."""
    coupled = eye(6)
    coupled[0][4] = coupled[4][0] = -0.9
    coupled[1][3] = coupled[3][1] = 0.9
    m = 1e-4 * agl_m
    return {
        "agl_m": agl_m,
        "gsd_ratio": 3.0,
        "availability": share(1.0),
        "outlier_rate": share(0.0),
        "bias": [0.0] * 6,
        "bias_half_width": [0.0] * 6,
        "sigma": [m, m, 0.5 * m, 8e-5, 8e-5, 2e-5],
        "correlation": coupled,
        "map_position_sigma_m": [0.2, 0.2, 1.5],
        "map_position_correlation": eye(3),
        "map_attitude_sigma_rad": [1e-4, 1e-4, 1e-5],
        "map_attitude_correlation": eye(3),
        "position_scale": scale(1.0),
        "attitude_scale": scale(1.0),
        "ground_sigma_m": round(1e-3 * agl_m, 3),
        "ground_scale": scale(1.0),
        **changes,
    }


def factor(at, **changes):
    plain = {
        "at": at,
        "sigma": [[ONE] * 4 for _ in at],
        "map_sigma": [[ONE] * 4 for _ in at],
        "position_scale": [ONE for _ in at],
        "attitude_scale": [ONE for _ in at],
        "availability": [ONE for _ in at],
        "ground_sigma": [ONE for _ in at],
    }
    return {**plain, **changes}


def document(knots=None, **changes):
    return {
        "scenario": "test",
        "setup": "0" * 64,
        "trials": 100,
        "gsd_ratio_max": 14.0,
        "map_sigma_m": 3.0,
        "sun": factor([4.0, 12.0, 25.0]),
        "gsd": factor([1.0, 2.0, 4.0]),
        "knots": knots or [knot(9000.0), knot(1000.0), knot(100.0)],
        **changes,
    }


def model_of(*args, **changes):
    return FixModel.model_validate(document(*args, **changes))


def at(model, agl_m, sun_deg=12.0, ratio=3.0):
    heights = torch.as_tensor(agl_m, dtype=F64).reshape(-1)
    light, posting = (torch.full_like(heights, v) for v in (sun_deg, ratio))
    return conditions(model, heights, light, posting)


def trials_of(model, repeats, seed, *, inflate=1.0, half="fit"):
    """Trials whose fixes err as the model says, at its knots, Suns and postings."""
    generator = torch.Generator().manual_seed(seed)
    trials = []
    kinds = [(k, sun, times) for k in model.knots for sun in model.sun.at for times in model.gsd.at]
    heres = [at(model, k.agl_m, sun_deg, k.gsd_ratio * times) for k, sun_deg, times in kinds]
    for _ in range(repeats):
        for (k, sun_deg, times), here in zip(kinds, heres, strict=True):
            trials.append(_drawn(len(trials), k, here, sun_deg, times, generator, inflate, half))
    return trials


def _drawn(number, k, here, sun_deg, times, generator, inflate, half):
    M = torch.zeros(6, 6, dtype=F64)
    M[:3, :3] = here.map_position_covariance[0]
    turn = torch.tensor(k.map_attitude_sigma_rad, dtype=F64)
    M[3:, 3:] = torch.diag(turn.square())
    C = here.covariance[0].clone()
    C[:3, :3] += M[:3, :3]
    z = torch.randn(6, generator=generator, dtype=F64)
    heading, u = torch.rand(2, generator=generator, dtype=F64).tolist()
    shift = (math.sin(2 * math.pi * heading), math.cos(2 * math.pi * heading))
    error = here.bias[0] + inflate * here.scale[0] * (torch.linalg.cholesky(C) @ z)
    error[:2] += torch.tensor(shift, dtype=F64)
    solved = u < float(here.availability[0])
    sigma_m = float(here.agl_sigma_m[0])
    of_ground = torch.randn((), generator=torch.Generator().manual_seed(number), dtype=F64)
    agl_error_m = inflate * float(here.agl_scale[0].sqrt() * of_ground) * sigma_m

    def rows(matrix):
        return [row.tolist() for row in matrix] if solved else None

    return FixTrial.model_validate(
        {
            "setup": "0" * 64,
            "number": number,
            "half": half,
            "knot_m": k.agl_m,
            "agl_m": k.agl_m,
            "tilt_deg": 5.0,
            "sun_elevation_deg": sun_deg,
            "coarser": 2.0 * times,
            "gsd_ratio": k.gsd_ratio * times,
            "map_seed": number,
            "map_shift_m": shift,
            "map_shift_sigma_m": math.sqrt(0.5),
            "status": FixStatus.OK if solved else FixStatus.TOO_FEW_MATCHES,
            "n_matches": 100,
            "n_inliers": 90,
            "error": error.tolist() if solved else None,
            "covariance": rows(C),
            "map_covariance": rows(M),
            "agl_error_m": agl_error_m if solved else None,
            "agl_sigma_m": sigma_m if solved else None,
            "map_news_m": agl_error_m if solved else None,
        }
    )


KNOWN_GSD = factor(
    [1.0, 2.0, 4.0],
    sigma=[[ONE] * 4, [scale(v) for v in (2.0, 3.0, 2.0, 3.5)], [scale(3.0)] * 4],
    availability=[ONE, ONE, scale(0.4)],
    ground_sigma=[ONE, scale(2.0), scale(4.0)],
)


def known(**changes):
    knots = [
        knot(9000.0, availability=share(0.9), **changes),
        knot(1000.0, availability=share(0.9), bias=[0.0, 0.0, 2.0, 0.0, 0.0, 0.0], **changes),
    ]
    return model_of(knots, gsd=KNOWN_GSD)
