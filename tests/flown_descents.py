"""Closed-loop descents made up of seeded draws, in the files that `tnav bench filter` writes.

A made-up lander falls straight for a minute over flat ground; errors are Gaussian of the sigmas
that are told, so that everything that is scored has a known answer.
"""

import numpy as np
import torch

from tnav.evaluate.descent_archive import write_descent
from tnav.evaluate.descent_plan import load_descent
from tnav.evaluate.descent_record import (
    FILTER_STATES,
    DescentRecord,
    DescentSeries,
    InnovationSeries,
    Touchdown,
)
from tnav.evaluate.flight_log import EDGES_M
from tnav.evaluate.flight_runs import keep_arrays, without
from tnav.geometry.pose import so3_exp
from tnav.records import Sensor

SECONDS, STEP_S = 60.0, 0.5
CONTACT_S = 59.8  # between two epochs
DOWN_M_S, DRIFT_M_S = 200.0, 20.0
SIGMA = (2.0, 0.1, 1e-4)  # position (m), velocity (m/s), attitude (rad)
DEGREES = {Sensor.STAR_TRACKER: 3, Sensor.ALTIMETER: 1, Sensor.VISION: 6, Sensor.GROUND: 1}


def recipe(blind=False):
    """As a record holds it."""
    return without(load_descent("resilience"), altimeter=not blind).model_dump(mode="json")


def made_record(name="image", seed=0, *, blind=False, landed=True):
    """A history that comes down 3 m east and 4 m north of the target."""
    g = torch.Generator().manual_seed(1000 + seed)
    t_s = torch.arange(0.0, SECONDS + STEP_S / 2, STEP_S, dtype=torch.float64)
    n, left_s = len(t_s), (CONTACT_S - t_s).clamp_min(0.0)
    three = torch.repeat_interleave(torch.tensor(SIGMA, dtype=torch.float64), 3)
    error = torch.randn(n, 9, generator=g, dtype=torch.float64) * three
    position = torch.stack([3 + DRIFT_M_S * left_s, 4 + 0 * left_s, 50 + DOWN_M_S * left_s], -1)
    velocity = torch.tensor([-DRIFT_M_S, 0.0, -DOWN_M_S], dtype=torch.float64).expand(n, 3)
    agl = DOWN_M_S * left_s
    agl[:10] = torch.nan
    sigma = torch.zeros(n, len(FILTER_STATES), dtype=torch.float64)
    sigma[:, :9] = three
    series = DescentSeries(
        t_s=t_s,
        position_L=position,
        velocity_L=velocity.clone(),
        R_L_B=torch.eye(3, dtype=torch.float64).expand(n, 3, 3).clone(),
        agl_m=agl,
        propellant_kg=100 - t_s,
        thrust_n=torch.zeros(n, dtype=torch.float64),
        phase=(t_s / 20).long(),
        position_nav_L=position + error[:, :3],
        velocity_nav_L=velocity + error[:, 3:6],
        R_nav_L_B=so3_exp(error[:, 6:]),
        agl_nav_m=agl * 1.001,
        sigma=sigma,
    )
    sensors = [s for s in DEGREES if not (blind and s is Sensor.ALTIMETER)]
    end = Touchdown(CONTACT_S, 1.5, 0.3, 5.0, 40.2, "landed", 0.2, 1.0, 0.05)
    return DescentRecord(
        name=name,
        fidelity="image",
        policy="terrain_aware",
        seed=seed,
        latitude_deg=60.5,
        longitude_deg=-4.6,
        series=series,
        innovations=tuple(made_innovations(sensor, g) for sensor in sensors),
        touchdown=end if landed else None,
        recipe=recipe(blind),
    )


def made_innovations(sensor, g):
    """Forty, every fifth of them missing and the last one refused."""
    m, k = 40, DEGREES[sensor]
    value = torch.randn(m, k, generator=g, dtype=torch.float64)
    value[-1] = 10.0
    present = torch.arange(m) % 5 != 0
    return InnovationSeries(
        sensor=sensor,
        t_s=20.0 + torch.arange(m, dtype=torch.float64),
        value=value,
        covariance=torch.eye(k, dtype=torch.float64).expand(m, k, k).clone(),
        nis=value.square().sum(-1),
        present=present,
        fused=present & (torch.arange(m) < m - 1),
    )


def made_arrays(count, seed=0, *, blind=False, sigma_told=1.0):
    """Joined arrays of honest descents; of dishonest ones where sigmas are told times that."""
    rng, k = np.random.default_rng(seed), len(EDGES_M)
    three = np.repeat(SIGMA, 3)
    edges = np.broadcast_to(EDGES_M, (count, k)).astype(np.float64)

    def column(value):
        return np.full(count, value, dtype=np.float64)

    arrays = {
        "error": rng.normal(size=(count, k, 9)) * three,
        "covariance": np.broadcast_to(np.diag((sigma_told * three) ** 2), (count, k, 9, 9)).copy(),
        "agl_m": edges,
        "agl_error_m": 0.001 * edges * np.where(rng.random((count, k)) < 0.5, -1.0, 1.0),
        "agl_sigma_m": 0.001 * edges,
        "contact_t_s": column(CONTACT_S),
        "contact_down_m_s": column(1.5),
        "contact_horizontal_m_s": column(0.3),
        "contact_miss_m": column(5.0),
        "contact_agl_error_m": column(-0.2),
        "contact_agl_sigma_m": column(0.2),
        "contact_position_error_L": np.tile([0.6, 0.8, 7.0], (count, 1)),
        "contact_velocity_error_L": np.tile([0.03, 0.04, 0.0], (count, 1)),
        "propellant_kg": column(40.2),
        "exposures": column(26.0),
        "fixes": column(25.0),
    }
    for sensor, degrees in DEGREES.items():
        heard = not (blind and sensor is Sensor.ALTIMETER)
        nis = rng.chisquare(degrees, size=(count, k)) if heard else np.full((count, k), np.nan)
        arrays[f"nis_{sensor.value}"] = nis
        arrays[f"rejected_{sensor.value}"] = column(0.0)
        arrays[f"sum_{sensor.value}"] = np.nan_to_num(nis)
        arrays[f"count_{sensor.value}"] = np.isfinite(nis).astype(np.float64)
    return arrays


def row_of(arrays, k):
    """One descent of joined arrays."""
    return {name: array[k : k + 1] for name, array in arrays.items()}


def write_folder(folder, count=12, blind_count=0, *, histories=3):
    """A folder of descents: all have arrays, the first ones histories too."""
    for name, number, blind in (("image", count, False), ("image-no-altimeter", blind_count, True)):
        arrays = made_arrays(number, seed=7, blind=blind) if number else {}
        for seed in range(number):
            keep_arrays(folder / f"{name}-{seed}.npz", "made up", row_of(arrays, seed))
            if seed < histories:
                write_descent(made_record(name, seed, blind=blind), folder / "records")
    return folder
