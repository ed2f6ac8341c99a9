"""Which poses and Suns a dataset holds: each a function of recipe and number, not of order."""

import csv
import itertools
import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from tnav.errors import ConfigError
from tnav.evaluate.dataset import (
    FRAMES_MAX,
    AngleSuns,
    EpochSuns,
    FilePoses,
    FlightPoses,
    GridPoses,
    RandomPoses,
    RandomSuns,
    RenderRecipe,
    suns_listed,
)
from tnav.evaluate.dataset_ground import Ground, check_heights
from tnav.evaluate.world import R_B_C
from tnav.geometry.moon import LocalFrame, up_L
from tnav.geometry.pose import Pose, matrix_from_quaternion, so3_log
from tnav.geometry.sun import direction_L, sun_at
from tnav.simulate.descent import fly

_LEAST_QUATERNION = 0.5  # norm; a quaternion of a file is normalised, one of zeros is a mistake
_PLACE_LOCAL = ("x_m", "y_m", "z_m")
_PLACE_MOON = ("latitude_deg", "longitude_deg", "altitude_m")
_QUATERNION = ("qw", "qx", "qy", "qz")


@dataclass(frozen=True, slots=True)
class PosePlan:
    """All poses of a dataset, on the host."""

    pose: Pose
    agl_m: Float64[Tensor, " n"]  # as planned: views choose their levels by it
    t_s: tuple[float, ...] | None = None  # of a flight, or of a file that says so
    velocity_L: Float64[Tensor, "n 3"] | None = None  # m/s, of a flight
    rate_C: Float64[Tensor, "n 3"] | None = None  # rad/s, of a flight

    def __len__(self) -> int:
        return len(self.pose)


@dataclass(frozen=True, slots=True)
class Sun:
    """A Sun over a view."""

    azimuth_deg: float
    elevation_deg: float
    sun_L: Float64[Tensor, "3"]
    epoch_utc: datetime | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """All frames of a dataset: every pose under each of its Suns, the Suns changing fastest."""

    poses: PosePlan
    suns: tuple[tuple[Sun, ...], ...]  # of each pose

    @property
    def suns_per_pose(self) -> int:
        """How many views share a pose."""
        return len(self.suns[0])

    def __len__(self) -> int:
        return len(self.poses) * self.suns_per_pose

    def of_frame(self, number: int) -> tuple[int, Sun]:
        """Pose number and Sun of a frame."""
        pose, sun = divmod(number, self.suns_per_pose)
        return pose, self.suns[pose][sun]


def plan_of(recipe: RenderRecipe, ground: Ground) -> Plan:
    """Poses and Suns of a resolved recipe.

    Raises:
        ConfigError: a pose that is not above the modelled ground, a time outside the flight, a file
            of poses that cannot be read, or too many frames.
    """
    source = recipe.poses
    match source:
        case FlightPoses():
            poses = _flown(source, recipe.frame, ground)
        case RandomPoses():
            poses = _drawn(source, recipe.seeds.poses, ground)
        case GridPoses():
            poses = _on_grid(source, ground)
        case FilePoses():
            poses = _of_file(source.path, recipe.frame, ground)
    check_heights(poses.agl_m)
    plan = Plan(poses, tuple(suns_of(recipe, index) for index in range(len(poses))))
    if len(plan) > FRAMES_MAX:
        raise ConfigError(f"{len(plan)} frames, expected at most {FRAMES_MAX}")
    return plan


def suns_of(recipe: RenderRecipe, pose: int) -> tuple[Sun, ...]:
    """The Suns over a pose."""
    suns = recipe.sun
    assert suns is not None, "resolve the recipe first"
    count = recipe.suns_per_pose
    if isinstance(suns, RandomSuns):
        wanted = count or 1
        draws = uniform(recipe.seeds.sun, pose, 2 * wanted).reshape(wanted, 2)
        return tuple(
            _by_angles(_between(suns.azimuth_deg, u), _between(suns.elevation_deg, v))
            for u, v in draws
        )
    listed = suns_listed(suns)
    assert listed is not None
    chosen = range(listed)
    if count is not None and count < listed:
        chosen = np.argsort(uniform(recipe.seeds.sun, pose, listed))[:count].tolist()
    return tuple(_listed(suns, k, recipe.frame) for k in chosen)


def look_down(
    position_L: Float64[Tensor, "n 3"], heading_deg: Tensor, tilt_deg: Tensor, roll_deg: Tensor
) -> Float64[Tensor, "n 3 3"]:
    """``R_L_C`` of cameras that look down.

    Args:
        position_L: where; the local vertical there is what counts.
        heading_deg: azimuth that the top of an untilted image points to, from L's north over east.
        tilt_deg: of the optical axis from the nadir towards the heading.
        roll_deg: then, about the optical axis, clockwise as the camera sees it.
    """
    up = up_L(position_L)
    heading, tilt, roll = (torch.deg2rad(a)[:, None] for a in (heading_deg, tilt_deg, roll_deg))
    flat = torch.cat([heading.sin(), heading.cos(), torch.zeros_like(heading)], 1)
    ahead = flat - (flat * up).sum(1, keepdim=True) * up
    ahead = ahead / ahead.norm(dim=1, keepdim=True)
    x, z = torch.linalg.cross(ahead, up), tilt.sin() * ahead - tilt.cos() * up
    y = torch.linalg.cross(z, x)
    return torch.stack([roll.cos() * x + roll.sin() * y, roll.cos() * y - roll.sin() * x, z], -1)


def uniform(seed: int, index: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Numbers in (0, 1) of one index: raw Philox bits (Salmon et al. 2011), one key an index."""
    key = np.array([seed % 2**64, index], dtype=np.uint64)
    raw = np.random.Philox(key=key).random_raw(count)
    return ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _between(interval: tuple[float, float], share: float) -> float:
    return interval[0] + float(share) * (interval[1] - interval[0])


def _by_angles(azimuth_deg: float, elevation_deg: float) -> Sun:
    return Sun(azimuth_deg, elevation_deg, direction_L(azimuth_deg, elevation_deg))


def _listed(suns: EpochSuns | AngleSuns, index: int, frame: LocalFrame) -> Sun:
    if isinstance(suns, EpochSuns):
        epoch_utc = suns.epochs_utc[index]
        found = sun_at(frame, epoch_utc)
        return Sun(found.azimuth_deg, found.elevation_deg, found.sun_L, epoch_utc)
    azimuth_deg = suns.azimuth_deg[index if len(suns.azimuth_deg) > 1 else 0]
    return _by_angles(azimuth_deg, suns.elevation_deg[index if len(suns.elevation_deg) > 1 else 0])


def _flown(source: FlightPoses, frame: LocalFrame, ground: Ground) -> PosePlan:
    assert source.descent is not None, "resolve the recipe first"
    origin_z_m = float(ground.height_L(torch.zeros(1, 2, dtype=torch.float64))[0])
    trajectory = fly(source.descent, frame, origin_z_m)
    end_s, dt_s = float(trajectory.t_s[-1]), trajectory.dt_s
    if source.times_s is not None:
        times_s = list(source.times_s)
    else:
        assert source.every_s is not None
        times_s = [k * source.every_s for k in range(int(end_s / source.every_s + 1e-9) + 1)]
    for t_s in times_s:
        if t_s > end_s:
            raise ConfigError(f"time {t_s} s: outside the flight, expected 0 to {end_s:.2f} s")
    k = torch.tensor([trajectory.index_at(t_s) for t_s in times_s])
    R_L_B, position_L = trajectory.R_L_B, trajectory.position_L[k]
    before, after = (k - 1).clamp_min(0), (k + 1).clamp_max(len(R_L_B) - 1)
    turn_B = so3_log(R_L_B[before].transpose(1, 2) @ R_L_B[after])
    return PosePlan(
        pose=Pose(R_L_B[k] @ R_B_C, position_L),
        agl_m=ground.agl_m(position_L),
        t_s=tuple(trajectory.t_s[k].tolist()),
        velocity_L=trajectory.velocity_L[k],
        rate_C=turn_B / ((after - before)[:, None] * dt_s) @ R_B_C,
    )


def _drawn(source: RandomPoses, seed: int, ground: Ground) -> PosePlan:
    draws = torch.from_numpy(np.stack([uniform(seed, k, 6) for k in range(source.count)]))
    low_m, high_m = source.agl_m
    intervals = (
        source.east_m, source.north_m, (math.log(low_m), math.log(high_m)), source.tilt_deg,
        source.heading_deg, source.roll_deg,
    )  # fmt: skip
    east, north, log_agl, tilt, heading, roll = (
        low + draws[:, i] * (high - low) for i, (low, high) in enumerate(intervals)
    )
    return _over_ground(ground, torch.stack([east, north], 1), log_agl.exp(), heading, tilt, roll)


def _on_grid(source: GridPoses, ground: Ground) -> PosePlan:
    axes = (source.east_m, source.north_m, source.agl_m, source.tilt_deg, source.heading_deg)
    count = math.prod(len(axis) for axis in axes)
    if count > FRAMES_MAX:
        raise ConfigError(f"poses: a grid of {count}, expected at most {FRAMES_MAX}")
    rows = torch.tensor(list(itertools.product(*axes)), dtype=torch.float64)
    agl_m, tilt, heading = rows[:, 2:].unbind(1)
    return _over_ground(ground, rows[:, :2], agl_m, heading, tilt, torch.zeros_like(tilt))


def _over_ground(
    ground: Ground,
    xy_L: Float64[Tensor, "n 2"],
    agl_m: Float64[Tensor, " n"],
    heading_deg: Float64[Tensor, " n"],
    tilt_deg: Float64[Tensor, " n"],
    roll_deg: Float64[Tensor, " n"],
) -> PosePlan:
    z_m = ground.height_L(xy_L)
    check_heights(torch.where(z_m.isfinite(), agl_m, math.nan))
    place_L = torch.cat([xy_L, z_m[:, None]], 1)
    position_L = place_L + agl_m[:, None] * up_L(place_L)
    return PosePlan(Pose(look_down(position_L, heading_deg, tilt_deg, roll_deg), position_L), agl_m)


def _of_file(path: Path, frame: LocalFrame, ground: Ground) -> PosePlan:
    header, rows = _read_csv(path)
    columns = torch.tensor(rows, dtype=torch.float64).unbind(1)
    values = dict(zip(header, columns, strict=True))
    if _PLACE_LOCAL[0] in values:
        position_L = torch.stack([values[name] for name in _PLACE_LOCAL], 1)
    else:
        position_L = frame.local(*(values[name] for name in _PLACE_MOON))
    q = torch.stack([values[name] for name in _QUATERNION], 1)
    for line, norm in enumerate(q.norm(dim=1).tolist(), start=2):
        if norm < _LEAST_QUATERNION:
            raise ConfigError(f"{path}:{line}: quaternion of norm {norm:g}, expected a unit one")
    t_s = tuple(values["t_s"].tolist()) if "t_s" in values else None
    pose = Pose(matrix_from_quaternion(q), position_L)
    return PosePlan(pose, ground.agl_m(position_L), t_s)


def _read_csv(path: Path) -> tuple[list[str], list[list[float]]]:
    """Header and numbers. Raises ConfigError with file and line."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            lines = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason}); expected a CSV of poses") from error
    header = [name.strip() for name in lines[0]] if lines else []
    wanted = [sorted((*place, *_QUATERNION)) for place in (_PLACE_LOCAL, _PLACE_MOON)]
    if sorted(set(header) - {"t_s"}) not in wanted or len(set(header)) != len(header):
        raise ConfigError(
            f"{path}:1: columns {','.join(header) or 'none'}; expected {','.join(_PLACE_LOCAL)} or "
            f"{','.join(_PLACE_MOON)}, then {','.join(_QUATERNION)} and perhaps t_s"
        )
    rows = []
    for line, cells in enumerate(lines[1:], start=2):
        try:
            row = [float(cell) for cell in cells]
        except ValueError as error:
            raise ConfigError(f"{path}:{line}: {error}") from error
        if len(row) != len(header) or not all(math.isfinite(v) for v in row):
            raise ConfigError(f"{path}:{line}: expected {len(header)} finite numbers")
        rows.append(row)
    if not rows:
        raise ConfigError(f"{path}: no pose after the header")
    return header, rows
