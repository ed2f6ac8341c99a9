"""Figures of closed-loop descents: normalised errors by altitude, touchdowns, outages.

The mean of n normalised squares of m degrees of freedom is chi-square of n m over n (Bar-Shalom
2001, 5.4.2). One draw a descent and band, so that n is the number of descents. A table of many rows
meets 95 % bounds too often: each row must lie within the bounds that hold for all of them at once
(Bonferroni), and one row says how many lie within their own 95 %, which should be 19 of 20.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta, chi2, norm
from torch import Tensor

from tnav.evaluate.flight_log import EDGES_M, FlightLog, normalised2
from tnav.evaluate.limits import Row
from tnav.records import Sensor

Arrays = dict[str, NDArray[np.float64]]
_PARTS = {"position": slice(0, 3), "velocity": slice(3, 6), "attitude": slice(6, 9)}
_DEGREES = {Sensor.STAR_TRACKER: 3, Sensor.VISION: 6, Sensor.ALTIMETER: 1, Sensor.GROUND: 1}
_LEAST_DRAWS = 10  # fewer descents say nothing of a mean
# Heights at which AGL errors are told, and from which on they have a limit: the pitch-up ends at 8
# to 9 km, and some descents have their first fix under 7 km.
_TOLD_M, _JUDGED_M = (500.0, 7000.0), 4000.0
# Bounds of a landing (vertical, horizontal), m/s.
DOWN_MAX_M_S, ACROSS_MAX_M_S = 2.0, 1.0


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean normalised square over descents, as a multiple of its degrees of freedom."""

    name: str
    value: float
    n: int
    degrees: int

    def bounds(self, probability: float) -> tuple[float, float]:
        """Within which an honest one lies."""
        tail, dof = 0.5 * (1 - probability), self.n * self.degrees
        low, high = chi2.ppf([tail, 1 - tail], dof) / dof
        return float(low), float(high)

    def inside(self, probability: float) -> bool:
        """Whether it does."""
        low, high = self.bounds(probability)
        return low < self.value < high


def arrays_of(log: FlightLog) -> Arrays:
    """A log as arrays of descents, as they are stored and joined."""
    contact = log.contact
    tensors: dict[str, Tensor] = {
        "error": log.error,
        "covariance": log.covariance,
        "agl_m": log.agl_m,
        "agl_error_m": log.agl_error_m,
        "agl_sigma_m": log.agl_sigma_m,
        "contact_t_s": contact.t_s,
        "contact_down_m_s": contact.down_m_s,
        "contact_horizontal_m_s": contact.horizontal_m_s,
        "contact_miss_m": contact.miss_m,
        "contact_agl_error_m": contact.agl_error_m,
        "contact_agl_sigma_m": contact.agl_sigma_m,
        "contact_position_error_L": contact.position_error_L,
        "contact_velocity_error_L": contact.velocity_error_L,
        "propellant_kg": log.propellant_kg,
        "exposures": log.exposures,
        "fixes": log.fixes,
    }
    for sensor, tally in log.tallies.items():
        tensors[f"nis_{sensor.value}"] = tally.first
        tensors[f"rejected_{sensor.value}"] = tally.rejected
        # Sums are over the batch: kept as one row, so that batches join.
        tensors[f"sum_{sensor.value}"] = tally.total[None]
        tensors[f"count_{sensor.value}"] = tally.count[None]
    return {name: tensor.detach().cpu().double().numpy() for name, tensor in tensors.items()}


def join(parts: Iterable[Arrays]) -> Arrays:
    """Descents of several batches as one."""
    parts = list(parts)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def means_of(flown: Arrays) -> list[Mean]:
    """All normalised squares by band of height over the site."""
    error, covariance = torch.from_numpy(flown["error"]), torch.from_numpy(flown["covariance"])
    means = []
    for name, part in _PARTS.items():
        nees = normalised2(error[..., part], covariance[..., part, part]).numpy()
        means += _by_band(f"NEES {name}", nees, 3)
    for sensor, degrees in _DEGREES.items():
        means += _by_band(f"NIS {sensor.value}", flown[f"nis_{sensor.value}"], degrees)
    return means


def _by_band(name: str, values: NDArray[np.float64], degrees: int) -> list[Mean]:
    means = []
    for k, edge_m in enumerate(EDGES_M):
        column = values[:, k][np.isfinite(values[:, k])]
        if column.size >= _LEAST_DRAWS:
            label = f"{name}, under {edge_m:.0f} m"
            means.append(Mean(label, float(column.mean()) / degrees, column.size, degrees))
    return means


def rows_of_means(flown: Arrays, title: str, device: str) -> list[Row]:
    """Every mean against the bounds that hold for the whole table at once."""
    means = means_of(flown)
    together = 1 - 0.05 / max(len(means), 1)
    rows = []
    for mean in means:
        low, high = mean.bounds(together)
        limit = f"in [{low:.2f}, {high:.2f}]"
        name = f"{title}: {mean.name}"
        value = round(mean.value, 3)
        rows.append(Row(name, value, "", limit, mean.inside(together), mean.n, device))
    inside = sum(mean.inside(0.95) for mean in means)
    name = f"{title}: means within their own 95 % bounds"
    rows.append(Row(name, inside, "", f"19 in 20 of {len(means)}", None, len(means), device))
    return rows


def coverage_rows(flown: Arrays, title: str, device: str) -> list[Row]:
    """Share of errors within 1, 2 and 3 sigma, over components and bands, and what is honest."""
    variance = np.diagonal(flown["covariance"], axis1=-2, axis2=-1)
    ratio = np.abs(flown["error"]) / np.sqrt(variance)
    rows = []
    for name, part in _PARTS.items():
        column = ratio[..., part][np.isfinite(ratio[..., part])]
        for sigmas in (1, 2, 3):
            value = round(100 * float((column < sigmas).mean()), 2) if column.size else None
            honest = f"honest: {100 * (2 * norm.cdf(sigmas) - 1):.2f}"
            label = f"{title}: {name} within {sigmas} sigma"
            rows.append(Row(label, value, "%", honest, None, column.size, device))
    return rows


def overall_rows(flown: Arrays, title: str, device: str) -> list[Row]:
    """Mean NIS over everything that a sensor said, and how often its gate refused it."""
    rows = []
    for sensor, degrees in _DEGREES.items():
        count = float(flown[f"count_{sensor.value}"].sum())
        if count == 0:
            continue
        value = float(flown[f"sum_{sensor.value}"].sum()) / count / degrees
        refused = float(flown[f"rejected_{sensor.value}"].sum())
        name = f"{title}: NIS {sensor.value}, all under {EDGES_M[0]:.0f} m"
        rows.append(Row(name, round(value, 4), "", None, None, int(count), device))
        name = f"{title}: {sensor.value} refused"
        rows.append(Row(name, int(refused), "", None, None, int(count), device))
    return rows


def touchdown_rows(
    flown: Arrays,
    title: str,
    device: str,
    *,
    down_max_m_s: float = DOWN_MAX_M_S,
    blind: bool = False,
) -> list[Row]:
    """Speeds at contact, and what navigation was off by.

    Args:
        blind: without altimeter the errors at contact have no limit.
    """
    velocity = np.linalg.norm(flown["contact_velocity_error_L"], axis=-1)
    level = np.linalg.norm(flown["contact_position_error_L"][:, :2], axis=-1)
    agl = np.abs(flown["contact_agl_error_m"])
    down, across = flown["contact_down_m_s"], flown["contact_horizontal_m_s"]
    n = down.size
    landed, judged = int(np.isfinite(down).sum()), not blind
    whole = int(np.isfinite(flown["error"]).all(axis=(1, 2)).sum())
    return [
        Row(f"{title}: errors known in every band", whole, "", f"= {n}", whole == n, n, device),
        Row(f"{title}: touched down", landed, "", f"= {n}", landed == n, n, device),
        _under(f"{title}: vertical speed at contact", down, down_max_m_s, "m/s", device),
        _under(f"{title}: horizontal speed at contact", across, ACROSS_MAX_M_S, "m/s", device),
        Row(f"{title}: miss, median", _median(flown["contact_miss_m"]), "m", None, None, n, device),
        _under(f"{title}: AGL error at contact", agl, 1.0, "m", device, judged=judged),
        _under(f"{title}: horizontal error at contact", level, 5.0, "m", device, judged=judged),
        _under(f"{title}: velocity error at contact", velocity, 0.1, "m/s", device, judged=judged),
        Row(
            f"{title}: propellant left, least",
            round(float(flown["propellant_kg"].min()), 1), "kg", None, None, n, device,
        ),
        Row(
            f"{title}: images that gave a fix",
            round(100 * _ratio(flown["fixes"].sum(), flown["exposures"].sum()), 2),
            "%", None, None, int(flown["exposures"].sum()), device,
        ),
    ]  # fmt: skip


def height_rows(flown: Arrays, title: str, limit_percent: float, device: str) -> list[Row]:
    """Error of the height over the ground, as a share of it, by band."""
    rows = []
    percent = 100 * np.abs(flown["agl_error_m"]) / flown["agl_m"]
    for k, edge_m in enumerate(EDGES_M):
        column = percent[:, k][np.isfinite(percent[:, k])]
        if column.size and _TOLD_M[0] <= edge_m <= _TOLD_M[1]:
            rms = float(np.sqrt(np.mean(column**2)))
            name = f"{title}: AGL error at {edge_m:.0f} m, rms"
            judged = edge_m <= _JUDGED_M
            limit = f"< {limit_percent}"
            passed = rms < limit_percent if judged else None
            rows.append(Row(name, round(rms, 3), "%", limit, passed, column.size, device))
            name = f"{title}: AGL error at {edge_m:.0f} m"
            rows.append(_under(name, column, limit_percent, "%", device, judged=judged))
    return rows


def _under(
    name: str,
    values: NDArray[np.float64],
    limit: float,
    unit: str,
    device: str,
    *,
    judged: bool = True,
) -> Row:
    """The 99.73 % quantile against a limit.

    Of fewer descents than resolve it, that is the largest; the share under the limit is told with
    its exact lower bound (Clopper and Pearson 1934, 95 % one-sided).
    """
    values = np.where(np.isfinite(values), values, np.inf)
    n, under = values.size, int((values < limit).sum())
    quantile = float(np.quantile(values, 0.9973, method="higher"))
    least = float(beta.ppf(0.05, under, n - under + 1)) if under else 0.0
    told = f"< {limit:g} ({under} of {n}, over {100 * least:.2f} % at 95 %)"
    value = round(quantile, 4) if math.isfinite(quantile) else None
    passed = (quantile < limit) if judged else None
    return Row(f"{name}, 99.73 %", value, unit, told, passed, n, device)


def _median(values: NDArray[np.float64]) -> float | None:
    known = values[np.isfinite(values)]
    return round(float(np.median(known)), 2) if known.size else None


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
